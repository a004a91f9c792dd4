"""Every layer in one, two and three dimensions with its options, and every other operation: end to end.

    conv → ReLU → the layer → flatten → linear

Under LRP-0 relevance is gradient × input, by autograd and without the engine; scales computed from the data, gates and
activations are held constant in a twin of the layer. What is run here is what `lrp rules --known` lists.
"""

import json
import re
from functools import cache

import pytest
import torch
from torch import nn

import lrp
from helpers import oracle, oracle_data
from helpers.checks import TERMS, TOLERANCE, Alone, agrees, explain_alone, images, total
from helpers.known import CASES, Net, operations_of, subject
from helpers.layers import FRACTIONAL, LAYERS, MAX_POOLS
from helpers.rules import RULES, SOME
from lrp.engine.graph import registry
from lrp.engine.graph.rewriting.decompositions import DECOMPOSITIONS
from lrp.engine.results import known

MATRICES = [name for name, layer in LAYERS.items() if layer.matrix]


def gradient_times_input(model: Net, x, R):
    """Of Σ logits · (R / logits), by autograd on the twin."""
    leaf = x.clone().requires_grad_()
    logits = model.twin(leaf)
    torch.testing.assert_close(logits, model(x), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad((logits * (R / logits).detach()).sum(), leaf)
    return gradient * x


@cache
def subject_of(name):
    """One model for all tests, so that it is captured once."""
    return subject(name)


@pytest.mark.parametrize("name", CASES)
def test_zero_is_gradient_times_input(name):
    """For one, two and three images; one by one the same; the ledger closes, and health is ok."""
    model, x = subject_of(name)
    R = torch.randn_like(model(x)).detach()
    explainer = lrp.Explainer(model, lrp.preset("epsilon", epsilon=0.0), dtype=torch.float64)
    expected = gradient_times_input(model, x, R)
    largest = expected.abs().amax()
    assert largest > 0, "nothing to compare"
    for n in (1, 2, 3):
        e = explainer(x[:n], target=R[:n])
        torch.testing.assert_close(e.logits, model(x[:n]).detach(), rtol=1e-12, atol=1e-12)
        assert (e.relevance - expected[:n]).abs().amax() <= 1e-9 * largest
    assert e.health.ok, e.health.problems
    assert (e.ledger.totals["unexplained"].abs() <= 1e-9 * e.ledger.totals["largest"]).all()


PRESETS = ("epsilon_gamma_box", "epsilon_alpha2_beta1")


@pytest.mark.parametrize("name", LAYERS)
def test_presets_close_and_do_not_depend_on_the_batch(name):
    model, x = subject_of(name)
    for preset in PRESETS:
        bounds = {"low": -5.0, "high": 5.0} if preset.endswith("box") else {}
        explainer = lrp.Explainer(model, lrp.preset(preset, **bounds), dtype=torch.float64)
        e = explainer(x)
        assert e.health.ok, (preset, e.health.problems)
        totals = e.ledger.totals
        assert (totals["unexplained"].abs() <= 1e-9 * totals["largest"]).all(), preset
        for n in (1, 2):
            fewer = explainer(x[:n])
            assert (fewer.relevance - e.relevance[:n]).abs().amax() <= 1e-9 * e.relevance.abs().amax(), preset


@cache
def alone(name):
    """The layer alone, its matrix, images of both signs and all zeros, and relevance for its outputs."""
    torch.manual_seed(sum(map(ord, name)))
    layer = LAYERS[name]
    model = Alone(layer.make()).double().eval()
    x = images(layer.shape, whole=False)
    return model, oracle_data.measured(model.op, layer.shape), x, torch.randn_like(model(x)).detach()


@pytest.mark.parametrize("rule", SOME)
@pytest.mark.parametrize("name", MATRICES)
def test_rules_on_dense_matrices(name, rule):
    model, matrix, x, R = alone(name)
    e = explain_alone(model, RULES[rule][0], x, R)
    for i in range(len(x)):
        handed, scale = oracle.distribute(RULES[rule][1], matrix, x[i], R[i]), float(R[i].abs().sum())
        agrees(e.relevance[i].flatten(), handed.relevance, f"relevance of image {i}")
        for term in TERMS:
            agrees(total(e.ledger, term, i), getattr(handed, term), f"{term} of image {i}", scale)
        assert abs(total(e.ledger, "unexplained", i)) <= TOLERANCE * scale


# ------------------------------------------------------------------------------------------------- maxima


def as_average(pool):
    """The average pool over the windows of a max pool."""
    kind = getattr(nn, type(pool).__name__.replace("Max", "Avg"))
    if hasattr(pool, "output_size"):
        return kind(pool.output_size)
    return kind(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


@pytest.mark.parametrize("values", ["real", "ties"])
@pytest.mark.parametrize("name", MAX_POOLS)
def test_the_winner_is_autograds(name, values):
    """Of equal ones too: that which the pool itself chose."""
    torch.manual_seed(3)
    pool = MAX_POOLS[name].make()
    x = images(MAX_POOLS[name].shape, whole=values == "ties").requires_grad_()
    z = pool(x).flatten(1)
    R = torch.randn_like(z)
    (expected,) = torch.autograd.grad((z * R).sum(), x)
    e = explain_alone(Alone(pool), None, x.detach(), R)
    agrees(e.relevance.flatten(), expected.flatten(), name)
    assert max(abs(total(e.ledger, term)) for term in TERMS) <= 1e-12


@pytest.mark.parametrize("name", [name for name in MAX_POOLS if "dilated" not in name])
def test_proportional_is_an_average_over_the_same_windows(name):
    torch.manual_seed(4)
    pool, shape = MAX_POOLS[name].make(), MAX_POOLS[name].shape
    x = images(shape, whole=False)
    R = torch.randn_like(pool(x).flatten(1))
    matrix = oracle_data.measured(as_average(pool), shape)
    e = explain_alone(Alone(pool), lrp.Proportional(epsilon=0.25), x, R, lrp.family("maxpool"))
    for i in range(len(x)):
        handed = oracle.distribute(oracle.proportional(0.25), matrix, x[i], R[i])
        agrees(e.relevance[i].flatten(), handed.relevance, f"image {i}")
        for term in TERMS:
            agrees(total(e.ledger, term, i), getattr(handed, term), term, float(R[i].abs().sum()))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_proportional_over_windows_of_its_own(dimensions):
    """2 x 2 windows with stride 2, whatever the pool's; refused where they give another number of outputs."""
    torch.manual_seed(5)
    shape = (2, *[6] * dimensions)
    kinds = getattr(nn, f"MaxPool{dimensions}d"), getattr(nn, f"AvgPool{dimensions}d")
    pool, average = kinds[0](3, 2, 1), kinds[1](2, 2)
    x = images(shape, whole=False)
    R = torch.randn_like(pool(x).flatten(1))
    e = explain_alone(Alone(pool), lrp.Proportional((2, 2), epsilon=0.25), x, R, lrp.family("maxpool"))
    matrix = oracle_data.measured(average, shape)
    for i in range(len(x)):
        handed = oracle.distribute(oracle.proportional(0.25), matrix, x[i], R[i])
        agrees(e.relevance[i].flatten(), handed.relevance, f"image {i}")
    before, after = (str([n] * dimensions) for n in (6, 2))
    windows = " x ".join(["2"] * dimensions)
    with pytest.raises(lrp.CompositeError) as error:
        explain_alone(Alone(kinds[0](3, 3)), lrp.Proportional((2, 2)), x, None, lrp.family("maxpool"))
    assert str(error.value) == (
        f"Proportional(window=(2, 2)) at op (max_pool{dimensions}d): it turns {before} into {after}, and an average "
        f"pool over {windows} would give {[3] * dimensions!s}; use Proportional()."
    )


@pytest.mark.parametrize("name", [name for name in MAX_POOLS if "dilated" in name])
def test_a_dilated_max_pool_has_no_average(name):
    with pytest.raises(lrp.LrpError) as error:
        x = images(MAX_POOLS[name].shape, whole=False)
        explain_alone(Alone(MAX_POOLS[name].make()), lrp.Proportional(), x, None, lrp.family("maxpool"))
    assert str(error.value) == (
        f"Proportional at op (max_pool{MAX_POOLS[name].dimensions}d): a dilated max pool has no average pool; "
        "use WinnerTakesAll()."
    )


@pytest.mark.parametrize("name", FRACTIONAL)
def test_fractional_windows_that_are_fixed_have_no_average(name):
    model, x = subject_of(name)
    d = FRACTIONAL[name].dimensions
    with pytest.raises(lrp.LrpError) as error:
        lrp.Explainer(model, lrp.Composite([(lrp.family("maxpool"), lrp.Proportional())]))(x)
    assert str(error.value) == (
        f"Proportional at layer (fractional_max_pool{d}d): a fractional max pool has no average pool; use WinnerTakesAll()."
    )


@pytest.mark.parametrize("kind", [nn.FractionalMaxPool2d, nn.FractionalMaxPool3d])
def test_fractional_windows_drawn_at_each_call_are_refused(kind):
    d = 2 if kind is nn.FractionalMaxPool2d else 3
    model = nn.Sequential(kind(2, output_size=2), nn.Flatten(), nn.Linear(3 * 2**d, 4)).eval()
    with pytest.raises(lrp.UnsupportedError) as error:
        lrp.Explainer(model)(torch.randn(2, 3, *[6] * d))
    assert str(error.value) == (
        f"0 (fractional_max_pool{d}d) draws its windows at random, other ones at each call: there is no one function to "
        "explain; give it fixed windows (_random_samples=), or take an adaptive max pool."
    )


# ------------------------------------------------------------------------------------- what is listed


def content():
    return json.loads(known.TRIED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_the_list_holds_what_a_case_runs(name):
    d = str(CASES[name].dimensions)
    listed = {operation for operation, cases in content().items() if name in cases.get(d, [])}
    assert listed == operations_of(*subject_of(name)), "python tools/known_operations.py"


def test_the_list_holds_cases_of_the_table_only():
    for operation, cases in content().items():
        for d, names in cases.items():
            wrong = [name for name in names if name not in CASES or CASES[name].dimensions != int(d)]
            assert not wrong and names, (operation, wrong)


def test_all_that_is_registered_has_been_run():
    own = {name for name in registry.registered() if "::" not in name} | set(
        DECOMPOSITIONS
    )  # others are of users
    own -= {"normalise"}  # stands in front of the first layer: test_same_function
    assert own <= content().keys(), sorted(own - content().keys())


def test_everything_has_been_run_in_every_dimension_it_has():
    """The digit in a name such as avg_pool3d is its number of dimensions; norms and pads of any have been run in all."""
    for operation, families, dimensions in known.known_operations():
        if digit := re.search(r"([123])d(_aa)?$", operation):
            assert int(digit[1]) in dimensions, operation
        elif operation in (
            "batch_norm",
            "group_norm",
            "instance_norm",
            "layer_norm",
            "rms_norm",
            "pad",
            "mean",
            "prelu",
        ):
            assert dimensions == (1, 2, 3), (operation, families)


def test_the_command_prints_the_list(capsys):
    from typer.testing import CliRunner

    from lrp.cli import app

    printed = CliRunner().invoke(app, ["rules", "--known"]).stdout.splitlines()
    assert len(printed) == len(content())
    assert "max_pool3d                   maxpool                3-d" in printed
    assert "batch_norm                   rewritten as others    1-d, 2-d, 3-d" in printed
    assert "matmul                       matmul, linear         2-d" in printed
