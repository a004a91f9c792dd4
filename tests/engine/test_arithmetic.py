"""How much a program computes: counted, not timed, so that a lost optimisation turns red without a clock."""

import collections
import re

import pytest
import torch
from torch import nn

import lrp
from helpers.nets import BOX, DEPTH, IMAGE, Residual, made, plain
from lrp.engine.speed.zero_relevance import zero_below


def counted(explainer, x):
    """Convolutions forward and backward, and remainders had by subtraction, in the program."""
    explainer.prepare(x)
    steps = [node for node in explainer.program.module.graph.nodes if node.op == "call_function"]
    names = [getattr(step.target, "__name__", "") for step in steps]
    return collections.Counter(m[0] for n in names if (m := re.match(r"conv_transpose2d|conv2d|rest", n)))


# The gradient needs DEPTH forward and DEPTH backward.
@pytest.mark.parametrize(
    ("preset", "forward", "backward", "remainders"),
    [
        ("epsilon", DEPTH, DEPTH, 0),
        ("epsilon_plus", DEPTH + (DEPTH - 1) + 2, DEPTH + 1, 0),  # the image has both signs
        ("epsilon_plus_flat", DEPTH + (DEPTH - 1), DEPTH, 0),
        ("epsilon_gamma_box", DEPTH + (DEPTH - 1) + 1, DEPTH + 2, 0),
        ("epsilon_alpha2_beta1", DEPTH + (DEPTH - 1) + 4, 2 * (DEPTH - 1) + 4, DEPTH - 1),
        ("epsilon_alpha2_beta1_flat", DEPTH + (DEPTH - 1), 2 * (DEPTH - 1) + 1, DEPTH - 1),
    ],
)
def test_convolutions_of_a_plain_net(preset, forward, backward, remainders):
    model, x = made(plain)
    found = counted(lrp.Explainer(model, lrp.preset(preset, **BOX)), x)
    assert (found["conv2d"], found["conv_transpose2d"], found["rest"]) == (forward, backward, remainders)


def test_gamma_needs_one_product_more_only_where_both_signs_have_relevance():
    model, x = made(Residual)  # two's output is added to: what is below zero there has relevance
    found = counted(lrp.Explainer(model, lrp.preset("epsilon_gamma_box", **BOX)), x)
    assert (found["conv2d"], found["conv_transpose2d"]) == (3 + 2 + 1, 1 + 2 + 3)


def test_a_program_that_cannot_branch_computes_what_others_subtract():
    model, x = made(plain)
    explainer = lrp.Explainer(model, "epsilon_alpha2_beta1_flat", compile=True)
    found = counted(explainer, x)
    assert (found["conv2d"], found["rest"]) == (DEPTH + 2 * (DEPTH - 1), 0)


# ---------------------------------------------------------------- where relevance is zero


@pytest.mark.parametrize(
    ("preset", "silent"),
    [("epsilon", {"0", "2", "4"}), ("epsilon_plus_flat", {"0", "2", "4"}), ("deep_taylor", {"0", "2", "4"})],
)
def test_relevance_below_zero_is_zero_where_that_is_claimed(preset, silent):
    model, x = made(plain)
    explainer = lrp.Explainer(model, lrp.preset(preset, **BOX))
    prepared = explainer.prepare(x)
    found = {
        o.path
        for o in prepared.graph.operations.values()
        if o.node in zero_below(prepared.graph, prepared.rules)
    }
    assert silent <= found and "9" not in found  # of the logits nothing is known


def test_flat_gives_inputs_of_zero_a_share():
    model, x = made(plain)
    composite = lrp.Composite([(lrp.everything, lrp.Epsilon()), (lrp.family("conv"), lrp.Flat())])
    prepared = lrp.Explainer(model, composite).prepare(x)
    silent = {
        o.path
        for o in prepared.graph.operations.values()
        if o.node in zero_below(prepared.graph, prepared.rules)
    }
    assert not silent & {"0", "2", "4"} and "6" in silent  # under the last one lies the pool, not Flat


# ------------------------------------------------------------------------------- remainders


def test_a_remainder_without_digits_is_computed_as_the_sum_it_is():
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    torch.manual_seed(1)
    with torch.no_grad():
        conv.weight.uniform_(0.5, 1.0)
        conv.weight[::2, 0, 0, 0] = -1e-7  # z⊖ is a millionth of z⊕: subtraction would leave noise
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), conv, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 14 * 14, 5)
    ).eval()
    x = torch.rand(2, *IMAGE)
    exact = lrp.explain(model.double(), x.double(), 0, "epsilon_alpha2_beta1").relevance
    found = lrp.explain(model.float(), x, 0, "epsilon_alpha2_beta1").relevance
    assert (found - exact).norm() < 1e-5 * exact.norm()


# ------------------------------------------------------------------------------- mixed


@pytest.mark.parametrize(
    "preset", ["epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"]
)
def test_mixed_is_near_and_leaves_the_logits_alone(preset):
    model, x = made(plain)
    composite = lrp.preset(preset, **BOX)
    exact = lrp.explain(model, x, 0, composite)
    mixed = lrp.explain(model, x, 0, composite, precision="mixed")
    assert torch.equal(mixed.logits, exact.logits)
    error = (mixed.relevance - exact.relevance).norm() / exact.relevance.norm()
    # αβ subtracts two rounded sums: 0.9 to 1.1 % on the processors tried.
    assert 1e-6 < error < (1.5e-2 if "alpha" in preset else 1e-2)
    assert mixed.health.ok and exact.health.ok
    assert mixed.health.closing_error > exact.health.closing_error


@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("channels", [1, 2])
def test_mixed_closes_where_little_is_summed_up(preset, channels):
    """Sums of one to three terms leave rounding errors no room to cancel; a remainder of such a sum would be all error."""

    def small():
        convs = [[nn.Conv2d(i, channels, 1), nn.ReLU()] for i in (3, channels, channels)]
        return nn.Sequential(*[p for pair in convs for p in pair], nn.Flatten(), nn.Linear(channels * 256, 5))

    for seed in range(10):
        model, x = made(small, seed)
        health = lrp.explain(model, x, 0, lrp.preset(preset, **BOX), precision="mixed").health
        assert health.ok, health.problems


def test_what_mixed_leaves_unexplained_is_still_limited(monkeypatch):
    model, x = made(plain)
    monkeypatch.setattr("lrp.engine.results.health.LOW_PRECISION", 1e-9)
    health = lrp.explain(model, x, 0, "epsilon_plus", precision="mixed").health
    assert not health.ok and "unexplained (limit 1e-09)" in health.problems[0]


def test_mixed_changes_nothing_where_terms_cancel():
    model, x = made(plain)
    exact, mixed = (lrp.explain(model, x, 0, "epsilon", precision=p).relevance for p in ("exact", "mixed"))
    assert torch.equal(exact, mixed)


def test_mixed_in_float64_is_exact():
    model, x = made(plain)
    model, x = model.double(), x.double()
    exact, mixed = (
        lrp.explain(model, x, 0, "epsilon_plus", precision=p).relevance for p in ("exact", "mixed")
    )
    assert torch.equal(exact, mixed)


# ------------------------------------------------------------------------------- the program as a value


def test_a_program_reads_like_the_algorithm():
    model, x = made(plain)
    explainer = lrp.Explainer(model, "epsilon_plus_flat")
    explainer.prepare(x)
    text = str(explainer.program)
    assert "# R: 2 (conv2d), ZPlus" in text and "# R: 0 (conv2d), Flat" in text
    assert re.search(r"R_relu = relu \* conv_transpose2d", text), text
    assert "model_2_weight_positive" in text and "self." not in text and "= None" not in text
