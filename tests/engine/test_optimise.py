"""What only saves work changes nothing: with and without it, the same relevance to 1e-12 in float64; and what a reader must
read to understand LRP here stays small."""

import ast
import io
import tokenize
from pathlib import Path

import pytest
import torch
from torch import nn

import lrp

SOURCE = Path(lrp.__file__).parent / "engine"


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.third = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = nn.functional.max_pool2d(x + self.third(self.second(x).relu()), 2)
        return self.head(nn.functional.avg_pool2d(x.relu(), 2).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.attention, self.mlp = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        n = self.norm(x)
        x = x + self.attention(n, n, n, need_weights=False)[0]
        return self.head((x + nn.functional.gelu(self.mlp(x))).mean(1))


MODELS = {"residual": Residual, "attention": Attention}


def made(kind):
    torch.manual_seed(3)
    model = MODELS[kind]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
    return model, torch.randn(3, 3, 16, 16).double()


@pytest.mark.parametrize("bias", [None, "ignore"])
@pytest.mark.parametrize("name", lrp.composites())
@pytest.mark.parametrize("kind", MODELS)
def test_without_what_saves_work_the_relevance_is_the_same(kind, name, bias):
    model, x = made(kind)
    preset = lrp.preset(name, low=-4.0, high=4.0, bias=bias)
    fast, plain = (lrp.Explainer(model, preset, optimise=on)(x, [0, 1, 2]) for on in (True, False))
    torch.testing.assert_close(fast.logits, plain.logits, rtol=1e-13, atol=1e-13)
    largest = float(plain.relevance.abs().max())
    assert float((fast.relevance - plain.relevance).abs().max()) <= 1e-12 * largest
    assert plain.health.ok, plain.health


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("rule", [lrp.Gamma, lrp.AlphaBeta, lrp.ZPlus, lrp.Epsilon, lrp.WSquare])
def test_and_with_a_large_or_relative_epsilon(rule, relative):
    model, x = made("residual")
    composite = lrp.Composite([(lrp.family("conv"), rule(epsilon=0.3, relative=relative))])
    fast, plain = (lrp.Explainer(model, composite, optimise=on)(x).relevance for on in (True, False))
    assert float((fast - plain).abs().max()) <= 1e-12 * float(plain.abs().max())


def test_without_it_programs_hold_none_of_it():
    model, x = made("residual")
    explainer = lrp.Explainer(model.float(), "epsilon_alpha2_beta1", precision="mixed", optimise=False)
    explainer(x.float())
    code = str(explainer.program)
    assert "rest" not in code and "bfloat16" not in code and "channels_last" not in code


CORE = ("rules.py", "affine.py", "program.py", "presets.py")


def lines_of_code(path):
    """Lines that hold code: no blank ones, comments or docstrings."""
    source = path.read_text(encoding="utf-8")
    docs = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            docs |= set(range(body[0].lineno, body[0].end_lineno + 1))
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docs)


def test_the_core_fits_into_600_lines():
    count = {name: lines_of_code(SOURCE / name) for name in CORE}
    assert sum(count.values()) <= 600, count


def test_the_core_knows_one_thing_of_what_saves_work():
    """That a plan may give an operation another site."""
    for name in CORE:
        found = [
            line
            for line in (SOURCE / name).read_text(encoding="utf-8").splitlines()
            if "engine.speed" in line and "import" in line
        ]
        assert found == (["from lrp.engine.speed.plan import Plan"] if name == "program.py" else [])


@pytest.mark.parametrize("fact", ["squashed", "bounded"])
def test_facts_stand_in_registrations(fact):
    """No module but the vocabulary (and the decompositions that write it) names the operations that are gates."""
    from lrp.engine.graph import ops, registry, vocabulary  # noqa: F401  (states the facts)
    from lrp.engine.graph.facts import _FACTS

    names = {name for name, facts in _FACTS.items() if facts.gate == fact} - set(registry.FAMILIES)
    assert names
    for path in (SOURCE / "graph").glob("*.py"):
        if path.name in ("decompositions.py", "outputs.py"):
            continue
        text = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        }
        assert not names & {t for t in text if isinstance(t, str)}, path
