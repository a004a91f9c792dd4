"""A test that cannot fail proves nothing: each deliberate mistake in a family's rule must turn one red.

A row names the family or rule, the file, one line of it as it is and as a mistake, and the tests that are
to notice. The mistake is made in a copy of the package; the tests run against that copy.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.mutation
TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
PACKAGE = ROOT / "src" / "lrp"
LAYERS, NORMS, POOLS = (f"engine/graph/vocabulary/{name}.py" for name in ("layers", "norms", "pools"))
ELEMENTWISE, MOVEMENT = (f"engine/graph/vocabulary/{name}.py" for name in ("elementwise", "movement"))
GATES = "engine/graph/gates.py"
RULE, OLD = "test_rules_oracle.py::test_rule_on_operation", "test_rules_oracle.py"
NEW, MOVES, KNOWN = "test_vocabulary.py", "test_movement.py", "test_known_operations.py"

# (what, file, as it is, the mistake, the test that notices)
MUTATIONS = [
    ("conv: bias lost", LAYERS, "weight, per_channel(bias, n), fused", "weight, None, fused",
     f"{RULE}[conv2d-Epsilon(0.25, absorb)]"),
    ("conv: adjoint of another padding", LAYERS, "c = transposed(s, w, None, stride, padding, left,",
     "c = transposed(s.roll(1, -1), w, None, stride, padding, left,", f"{RULE}[conv2d-ZPlus(0.25, absorb)]"),
    ("conv_transpose: kernel turned", LAYERS, "c = conv(s, w, None, stride, padding, dilation, groups)",
     "c = conv(s, w.flip(-1), None, stride, padding, dilation, groups)",
     f"{RULE}[conv_transpose2d-Zero(absorb)]"),
    ("conv_transpose: room beyond the last input kept", LAYERS, "c = c.narrow(d - n, 0, inner[d])",
     "c = c.narrow(d - n, c.shape[d - n] - inner[d], inner[d])",
     f"{KNOWN}::test_zero_is_gradient_times_input[conv_transpose_dilated_output_padding_1d]"),
    ("pool: volumes pooled with the depth last", "engine/structured_weights.py", "for m in reversed(matrices[:-1]):",
     "for m in matrices[:-1]:", f"{KNOWN}::test_zero_is_gradient_times_input[adaptive_avg_pool_uneven_3d]"),
    ("linear: relevance a thousandth too much", LAYERS, "return F.linear(s, w.t())",
     "return F.linear(s, w.t()) * 1.001", f"{RULE}[linear-Zero(absorb)]"),
    ("matmul with a constant: not transposed back", LAYERS, "c = s @ w.mT if data_left else w.mT @ s",
     "c = s @ w.mT.abs() if data_left else w.mT @ s", f"{OLD}::test_default_rule_is_epsilon[matmul_right_stacked]"),
    ("norm: sign of the scale", NORMS, 'lambda s, w: s * w, op["weight"], op["bias"])',
     'lambda s, w: s * w.abs(), op["weight"], op["bias"])', f"{RULE}[batch_norm-Epsilon(0.25, absorb)]"),
    ("layer_norm: the mean forgotten", NORMS, "return Affine(forward, adjoint, Centred(own, -own / n), bias)",
     "return Affine(forward, adjoint, Centred(own, 0 * own), bias)", f"{OLD}::test_default_rule_is_epsilon[layer_norm]"),
    ("group_norm: scale of the whole image", NORMS,
     "own = (a.var(dim=[2, 3], correction=0, keepdim=True) + eps).rsqrt().expand_as(a)",
     "own = (a.var(dim=[1, 2, 3], correction=0, keepdim=True) + eps).rsqrt().expand_as(a)",
     f"{OLD}::test_default_rule_is_epsilon[group_norm]"),
    ("rms_norm: mean taken off", NORMS, "own = (a.square().mean(dim=dims, keepdim=True) + eps).rsqrt()",
     "own = (a.var(dim=dims, keepdim=True) + eps).rsqrt()", f"{OLD}::test_default_rule_is_epsilon[rms_norm]"),
    ("pool: a mean hands down n times as much", POOLS, "return (s if n == 1 else s / n).expand(size)",
     "return s.expand(size)", f"{RULE}[mean_positions-Zero(absorb)]"),
    ("pool: padding gets a share", POOLS, "own = pool(blank, *windows) / pool(blank, *cuts, True, 1)",
     "own = pool(blank, *windows)", f"{RULE}[avg_pool2d_overlap_padding-Flat(0.25)]"),
    ("upsampling: rows for columns", POOLS, "return _separable(_interpolation(op, d).to(**op.meta)",
     "return _separable(_interpolation(op, d).flip(0).to(**op.meta)",
     f"{OLD}::test_default_rule_is_epsilon[bilinear]"),
    ("scale: over a constant as times it", ELEMENTWISE, '1 / weight if op.name == "div" else weight',
     "weight", f"{OLD}::test_default_rule_is_epsilon[divided_spread]"),
    ("sum: a difference as a sum", ELEMENTWISE, '"sub": (1.0, -factor)', '"sub": (1.0, factor)',
     f"{RULE}[subtract-Zero(absorb)]"),
    ("sum: a constant's share handed on", "engine/rules.py", "for share, is_data in shares if not is_data), start=0.0",
     "for share, is_data in shares if is_data), start=0.0", f"{RULE}[plus_constant-Zero(absorb)]"),
    ("product: the gate takes all", GATES, 'return 1 - gate, f"gate: {_ordinal(gate)} operand, from',
     'return gate, f"gate: {_ordinal(gate)} operand, from', f"{NEW}::test_signal_takes_all[sigmoid]"),
    ("product: broadcasting not summed back", GATES, "broadcast[0] != broadcast[1]", "False",
     f"{NEW}::test_signal_takes_all[broadcast]"),
    ("maxpool: the least of a window wins", POOLS, "received = received.scatter_add(-1, z[1].flatten(lead)",
     "received = received.scatter_add(-1, z[1].flatten(lead).flip(-1)", f"{OLD}::test_winner_takes_all[plain-real]"),
    ("activation: relevance doubled", "engine/rules_beyond_affine.py", "return Flow((relevance,))", "return Flow((relevance * 2,))",
     f"{MOVES}::test_activation_passes[GELU(approximate='none')]"),
    ("movement: rolled on instead of back", MOVEMENT, "back = [-s for s in shifts]", "back = list(shifts)",
     f"{MOVES}::test_relevance_moves_with_its_element[roll]"),
    ("movement: a selection of positions off by one", MOVEMENT, "source = target(positions, **given).flatten()",
     "source = target(positions, **given).flatten().roll(1)", f"{MOVES}::test_relevance_moves_with_its_element[index]"),
    ("movement: copies not summed back", MOVEMENT, "r[0].reshape(apart).sum(dim=copies)",
     "r[0].reshape(apart).amax(dim=copies)", f"{MOVES}::test_relevance_moves_with_its_element[repeat]"),
    ("ε forgotten", "engine/affine.py", "torch.sign(d), alpha=rule.epsilon)", "torch.sign(d), alpha=0.0)",
     f"{RULE}[linear-Epsilon(0.25, absorb)]"),
    ("γ: contributions of the other sign", "engine/speed/gamma.py", "signed = sign * s", "signed = s",
     f"{RULE}[linear-Gamma(7, absorb)]"),
    ("γ: one sign where an ignored bias turns it", "engine/speed/gamma.py", "if single and not ignored:",
     "if single:",
     "test_proofs.py::test_without_biases_and_epsilon_nothing_is_lost[epsilon_gamma_box-residual]"),
    ("αβ: β added", "engine/rules.py", "factor=-self.beta,", "factor=self.beta,", f"{RULE}[linear-AlphaBeta(2, 1, 0.25, absorb)]"),
    ("z⁺: negative inputs forgotten", "engine/rules.py", 'return (Branch((("a+", positive), ("a-", negative)), positive, sign=1),)',
     'return (Branch((("a+", positive),), positive, sign=1),)', f"{RULE}[linear-ZPlus(0.25, absorb)]"),
    ("zᴮ: low for high", "engine/rules.py", '("low", positive), ("high", negative)', '("high", positive), ("low", negative)',
     f"{RULE}[conv2d-ZBox(0.25)]"),
    ("w²: weights not squared", "engine/rules.py", 'Branch((("1", square),)', 'Branch((("1", positive),)', f"{RULE}[conv2d-WSquare(0.25)]"),
    ("flat: by weight", "engine/rules.py", 'Branch((("1", ones),)', 'Branch((("1", positive),)', f"{RULE}[conv2d-Flat(0.25)]"),
]  # fmt: skip


@pytest.fixture(scope="module")
def mutants() -> Iterator[subprocess.Popen[str]]:
    """`helpers.mutants`, with nothing of the package imported and nothing of this run's settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-B", "-m", "helpers.mutants"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate()


@pytest.mark.parametrize(
    ("file", "line", "mistake", "test"), [m[1:] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS]
)
def test_a_mistake_turns_a_test_red(file, line, mistake, test, tmp_path, mutants):
    copy = shutil.copytree(PACKAGE, tmp_path / "lrp", ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text(encoding="utf-8")
    assert line in text, f"{file} no longer says {line!r}: bring the row up to date"
    (copy / file).write_text(text.replace(line, mistake), encoding="utf-8")
    print(json.dumps([str(tmp_path), str(TESTS / test)]), file=mutants.stdin, flush=True)
    status, printed = json.loads(mutants.stdout.readline())
    assert status == 1 and "1 failed" in printed, f"nobody noticed (status {status}):\n{printed[-3000:]}"


def test_without_a_mistake_they_are_green(tmp_path, mutants):
    """What turns them red is the mistake, not the way they are run."""
    shutil.copytree(PACKAGE, tmp_path / "lrp", ignore=shutil.ignore_patterns("__pycache__"))
    for test in dict.fromkeys(m[-1].partition("[")[0] for m in MUTATIONS):
        kept = next(m[-1] for m in MUTATIONS if m[-1].startswith(test))
        print(json.dumps([str(tmp_path), str(TESTS / kept)]), file=mutants.stdin, flush=True)
        status, printed = json.loads(mutants.stdout.readline())
        assert status == 0 and "1 passed" in printed, f"{kept}: status {status}:\n{printed[-3000:]}"
