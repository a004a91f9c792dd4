"""The contract for those who write a rule: what is refused, when, in which words; and what the ledger and `check` notice."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import lrp


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.MaxPool2d(2),
        nn.AvgPool2d(2, 1, padding=1), nn.Conv2d(8, 8, 3, groups=2), nn.GELU(), nn.GroupNorm(2, 8), nn.Flatten(),
        nn.Linear(72, 5),
    ).eval()  # fmt: skip


X = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def of(rule, family="conv"):
    return lrp.Composite([(lrp.family(family), rule)])


# ---------------------------------------------------------------- refused when it is made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: lrp.Branch((("A+", lrp.positive),), None),
            "Branch part 'A+': expected one of 'a' (the input), 'a+' (its positive part), 'a-' (its negative part), "
            "'1' (ones), 'low' (minus the least value that the input can have), 'high' (minus the largest).",
        ),
        (
            lambda: lrp.Branch((), None),
            "Branch(terms=()): expected (part, version) pairs such as ('a+', lrp.positive), at least one.",
        ),
        (
            lambda: lrp.Branch((("a", 3),), None),
            "Branch(terms=(('a', 3),)): expected (part, version) pairs such as ('a+', lrp.positive), at least one.",
        ),
        (
            lambda: lrp.Branch((("a", lrp.unchanged),), 1),
            "Branch(bias=1): expected a version such as lrp.unchanged, or None.",
        ),
        (
            lambda: lrp.Branch((("a", lrp.unchanged),), None, sign=2),
            "Branch(sign=2): expected 1 (never < 0), -1 (never > 0) or 0 (either).",
        ),
        (
            lambda: lrp.Branch((("a", lrp.unchanged),), None, where="z >= 0"),
            "Branch(where='z >= 0'): expected 'z > 0', 'z < 0' or None (all outputs).",
        ),
        (lambda: lrp.AffineRule(), "AffineRule is a base class: use one of its rules, such as Epsilon()."),
    ],
)
def test_a_malformed_branch_is_refused_when_it_is_made(make, message):
    with pytest.raises(lrp.RuleError) as error:
        make()
    assert str(error.value) == message


@dataclass(frozen=True)
class Mistyped(lrp.AffineRule):
    def branches(self):
        return (lrp.Branch((("A+", lrp.positive),), None),)


@dataclass(frozen=True)
class NoTuple(lrp.AffineRule):
    def branches(self):
        return lrp.Branch((("a", lrp.unchanged),), None)


def test_a_rule_with_a_mistyped_part_is_refused_when_it_is_made():
    with pytest.raises(lrp.RuleError, match=r"^Branch part 'A\+': expected one of 'a' "):
        Mistyped()
    with pytest.raises(
        lrp.RuleError,
        match=r"^NoTuple\.branches\(\) returned Branch\(.*\): expected a tuple of lrp\.Branch\.$",
    ):
        NoTuple()


# ---------------------------------------------------------------- refused when it is assigned

FAMILIES = ("conv", "linear", "norm", "layer_norm", "pool", "scale", "sum", "product", "matmul", "softmax", "maxpool",
            "activation", "movement")  # fmt: skip


class Anything(lrp.Rule):
    """Says that it is for all families, and has an equation for none."""

    families = frozenset(FAMILIES)


@pytest.mark.parametrize(
    "family", ["conv", "linear", "pool", "layer_norm", "maxpool", "activation", "movement"]
)
def test_a_rule_without_an_equation_for_the_family_is_refused_when_it_is_assigned(net, family):
    with pytest.raises(lrp.CompositeError) as error:
        lrp.Explainer(net, of(Anything(), family))(X)
    method = {
        "maxpool": "through_maxpool",
        "activation": "through_elementwise",
        "movement": "through_movement",
    }
    equation = method.get(family, "through_affine")
    assert (
        f"Anything has no equation for operations of family {family}: define Anything.{equation}, or give it to another family."
        in str(error.value)
    )


def test_without_families_a_rule_is_for_those_whose_equation_it_has():
    assert lrp.ZPlus().families == {"conv", "linear", "norm", "layer_norm", "pool", "scale"}
    assert lrp.Epsilon().families == lrp.ZPlus().families | {"sum"}
    assert lrp.Halves().families == {"product", "matmul"}
    assert lrp.WinnerTakesAll().families == {"maxpool"}
    assert lrp.Rule().families == frozenset()
    assert lrp.Pass().families == lrp.ZPlus().families | {"activation", "unknown"}


def test_box_parts_need_bounds(net):
    class Boxed(lrp.AffineRule):
        def branches(self):
            return (lrp.Branch((("a", lrp.unchanged), ("low", lrp.positive)), None),)

    with pytest.raises(lrp.CompositeError) as error:
        lrp.Explainer(net, of(Boxed()))(X)
    assert str(error.value) == (
        "Boxed at 0 (conv2d): its branches name 'low' or 'high': give it such attributes, the range of the model's input."
    )


# ---------------------------------------------------------------- an equation of one's own, for every family


def test_a_max_pool_rule_runs_its_own_equation(net):
    class Uniformly(lrp.Rule):
        def through_maxpool(self, op, site, a, z, relevance):
            average = op.average(None)
            return lrp.Flow((average.adjoint(relevance, average.weight),))

    e, winner = (lrp.Explainer(net, of(r, "maxpool"))(X) for r in (Uniformly(), lrp.WinnerTakesAll()))
    assert e.health.ok, e.health
    assert "Uniformly" in str(lrp.Explainer(net, of(Uniformly(), "maxpool")).rules(X))
    assert not torch.allclose(e.relevance, winner.relevance, rtol=1e-3)


class Skipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 4)

    def forward(self, x):
        return self.head((x.relu() + self.body(x) * x.sigmoid()).flatten(1))


class Equally(lrp.SumRule):
    """Half each, whatever the values."""

    def measure(self, summand):
        return torch.ones_like(summand)


def test_a_sum_rule_of_ones_halves():
    torch.manual_seed(0)
    model, x = Skipped().double().eval(), torch.randn(2, 3, 4, 4).double()
    e = lrp.Explainer(model, of(Equally(epsilon=0.0), "sum"))(x)
    plain = lrp.Explainer(model, of(Equally(epsilon=0.0), "sum"), optimise=False)(x)
    assert e.health.ok and torch.allclose(e.relevance, plain.relevance, atol=1e-12)
    row = next(r for r in e.ledger if r.rule == "Equally(epsilon=0)")
    torch.testing.assert_close(row.relevance_in, row.relevance_out)


class ByMagnitude(lrp.Rule):
    """x · y in proportion to log|x| and log|y|, as an example of a rule for products."""

    def through_product(self, op, x, y, z, relevance):
        a, b = x.abs() + 1, y.abs() + 1
        return lrp.Flow((relevance * a / (a + b), relevance * b / (a + b)))


def test_a_product_rule_gives_each_operand_its_share():
    torch.manual_seed(0)
    model, x = Skipped().double().eval(), torch.randn(2, 3, 4, 4).double()
    e = lrp.Explainer(model, of(ByMagnitude(), "product"))(x)
    assert e.health.ok, e.health


# ---------------------------------------------------------------- promises are checked


@dataclass(frozen=True)
class WrongSign(lrp.AffineRule):
    """LRP-ε that declares its denominators to be >= 0: they are not."""

    def branches(self):
        return (lrp.Branch((("a", lrp.unchanged),), lrp.unchanged, sign=1),)


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_sign_turns_health_red(net, optimise, dtype):
    health = lrp.Explainer(net, of(WrongSign()), dtype=dtype, optimise=optimise)(X).health
    assert not health.ok
    assert any(
        "(conv2d, WrongSign): a Branch declares the sign of its denominator, and " in p
        and p.endswith("of Σ|D| has the other sign: remove `sign` from the Branch, or correct its terms")
        for p in health.problems
    ), health


def test_a_negative_measure_turns_health_red():
    class Signed(lrp.SumRule):
        def measure(self, summand):
            return summand

    torch.manual_seed(0)
    model, x = Skipped().eval(), torch.randn(2, 3, 4, 4)
    assert not lrp.Explainer(model, of(Signed(), "sum"))(x).health.ok


@pytest.mark.parametrize("name", lrp.composites())
def test_the_signs_of_our_own_rules_hold(net, name):
    e = lrp.Explainer(net, lrp.preset(name, low=-4.0, high=4.0))(X)
    assert e.health.ok, e.health
    assert max(float(row.wrong_sign.max()) for row in e.ledger) < 1e-6


def test_an_overridden_equation_promises_nothing_by_itself():
    class Other(lrp.Magnitude):
        def measure(self, summand):
            return torch.ones_like(summand)

    class Still(lrp.Magnitude):
        pass

    assert lrp.Magnitude().in_proportion and Still().in_proportion and not Other().in_proportion

    class MovesElsewhere(lrp.WinnerTakesAll):
        def through_maxpool(self, op, site, a, z, relevance):
            raise AssertionError

    assert lrp.WinnerTakesAll().moves and not MovesElsewhere().moves


# ---------------------------------------------------------------- Explainer.check


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("name", lrp.composites())
def test_check_finds_our_own_rules_right(net, name, optimise):
    explainer = lrp.Explainer(net, lrp.preset(name, low=-4.0, high=4.0), optimise=optimise)
    found = explainer.check(X, quiet=True)
    assert found.ok, found
    assert sum(row.difference is not None for row in found.rows) >= 6


class Doubled(lrp.Epsilon):
    """Overrides the step and gives too much."""

    def through_affine(self, op, site, a, z, relevance):
        flow = super().through_affine(op, site, a, z, relevance)
        return flow._replace(relevance=(2 * flow.relevance[0],))


class Mistaken(lrp.AffineRule):
    """Overrides the step, and takes the relevance of a neighbour."""

    def through_affine(self, op, site, a, z, relevance):
        s = (relevance / torch.where(z == 0, 1.0, z)).roll(1, -1)
        return lrp.Flow((a * op.adjoint(s, op.weight),))


def test_check_prints_where_a_rule_differs(net, capsys):
    found = lrp.Explainer(net, of(Doubled())).check(X)
    printed = capsys.readouterr().out
    assert not found.ok and printed == f"{found}\n"
    first, *lines = printed.splitlines()
    assert first.endswith("3 differ") and len(lines) == 3
    assert lines[0].startswith("  0 (conv2d, Doubled): ") and "of the relevance is unexplained" in lines[0]
    found = lrp.Explainer(net, of(Mistaken())).check(X, quiet=True)
    assert "relevance differs by" in str(found) and capsys.readouterr().out == ""


def test_check_notices_a_program_that_is_wrong(net, monkeypatch):
    """The engine's own step, a thousandth too large, differs from the matrix."""
    from lrp.engine.speed import fast_step

    right = fast_step.adjoint_in_low_precision
    monkeypatch.setattr(fast_step, "adjoint_in_low_precision", lambda *a: 1.001 * right(*a))
    found = lrp.Explainer(net, "epsilon_plus").check(X, quiet=True)
    assert not found.ok and "relevance differs by 1.0e-03 of the largest" in str(found)


def test_check_notices_a_false_promise(net):
    class Promising(lrp.Flat):
        in_proportion = True

    rectified = nn.Sequential(nn.ReLU(), net)
    found = lrp.Explainer(rectified, of(Promising())).check(X, quiet=True)
    assert "in_proportion is true, and inputs of 0 get relevance" in str(found)


def test_a_version_that_is_no_function_of_structured_weights_is_explained(net):
    class Clamped(lrp.AffineRule):
        def branches(self):
            return (lrp.Branch((("a", lambda w: w.clamp(min=0)),), None),)

    with pytest.raises(lrp.RuleError) as error:
        lrp.Explainer(net, of(Clamped(), "pool"))(X)
    assert str(error.value) == (
        "<lambda> cannot be taken of the weights of 5 (avg_pool2d), a Uniform matrix: build it from lrp.positive, lrp.negative, "
        "lrp.square, lrp.ones, sums and factors, or give the rule to other operations."
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
def test_check_in_one_two_and_three_dimensions(name, dims):
    conv, norm = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm"))
    pool, transposed = (getattr(nn, f"{kind}{dims}d") for kind in ("AvgPool", "ConvTranspose"))
    torch.manual_seed(0)
    net = nn.Sequential(
        conv(2, 4, 3, padding=1), norm(4), nn.ReLU(), transposed(4, 4, 2, 2), pool(2), conv(4, 4, 3, groups=2), nn.GELU(),
        nn.Flatten(), nn.Linear(4 * 4**dims, 3),
    ).eval()  # fmt: skip
    explainer = lrp.Explainer(net, lrp.preset(name, low=-4.0, high=4.0))
    for images in (1, 2, 3):
        found = explainer.check(torch.randn(images, 2, *[6] * dims), quiet=True)
        assert found.ok, found
        assert sum(row.difference is not None for row in found.rows) == 5


def test_check_of_a_layer_whose_outputs_are_all_below_zero():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    found = lrp.Explainer(net, "epsilon_gamma_wsquare").check(torch.randn(1, 3, 6, 6), quiet=True)
    assert found.ok and found.rows[0].difference is None, found
