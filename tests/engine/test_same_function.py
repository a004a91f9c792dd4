"""A map depends on the function, not on how it is written: every pair of tests/helpers/spellings.py, under every preset."""

import copy
import warnings

import pytest
import torch

import lrp
from helpers.spellings import MEAN, NORMALISED, SPELLINGS, STD, TOKENS, Written, channels, forms_of, plain

BOXED = {"epsilon_gamma_box", "deep_taylor"}
LINES = [("picture", name) for name in SPELLINGS] + [("tokens", name) for name in TOKENS]
LIMITS = {torch.float64: 1e-9, torch.float32: 2e-3}


def images(n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)[:n].to(
        dtype
    )


def preset(name: str, low=0.0, high=1.0) -> lrp.Composite:
    return lrp.preset(name, low=low, high=high) if name in BOXED else lrp.preset(name)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    largest = float(a.abs().max())
    return float((a - b).abs().max()) / (largest or 1.0)


def maps(model, name: str, x: torch.Tensor, **bounds) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of maps that are 0 under a preset
        e = lrp.Explainer(model, preset(name, **bounds), dtype=x.dtype)(x, 1)
    torch.testing.assert_close(e.logits, model(x).reshape(e.logits.shape).detach(), rtol=1e-4, atol=1e-5)
    return e.relevance


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(("kind", "name"), LINES)
def test_every_way_to_write_it_gives_one_map(kind, name, dtype):
    line = (SPELLINGS if kind == "picture" else TOKENS)[name]
    written = forms_of(line, kind, images(2, dtype), dtype)
    wrong = []
    for composite in lrp.composites():
        for n in (1, 2, 3):
            x = images(n, dtype)
            first, *others = (maps(model, composite, x) for model in written)
            assert composite not in ("epsilon", "epsilon_plus") or float(first.abs().max()) > 0, (
                "nothing to compare"
            )
            apart = [difference(first, other) for other in others]
            if not all(d <= LIMITS[dtype] for d in apart):
                wrong.append(f"{composite}, N = {n}: " + ", ".join(f"{d:.1e}" for d in apart))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("kind", "name"), LINES)
def test_it_depends_on_no_other_image(kind, name):
    line = (SPELLINGS if kind == "picture" else TOKENS)[name]
    x = images(5, torch.float64)
    for model in forms_of(line, kind, x[:2], torch.float64):
        explainer = lrp.Explainer(model, "epsilon_gamma_wsquare")
        together = explainer(x, 1)
        alone = torch.cat([explainer(image, 1).relevance for image in x.split(1)])
        assert difference(together.relevance, alone) <= 1e-9
        assert together.health.ok, together.health.problems


@pytest.mark.parametrize("name", NORMALISED)
def test_a_normalisation_in_the_model_is_none_of_its_layers(name):
    """The map is the bare net's, of the normalised image; zᴮ's range is that of the image as it was given."""
    x = images(3, torch.float64)
    inside = Written(lambda x, p: plain(NORMALISED[name](x, p), p), "whole").double().ready(x)
    bare = Written(plain, "whole").double().ready(x)
    given = (x - channels(MEAN, x)) / channels(STD, x)
    low, high = -MEAN / STD, (1 - MEAN) / STD
    for composite in lrp.composites():
        ours, right = maps(inside, composite, x), maps(bare, composite, given, low=low, high=high)
        assert difference(right, ours) <= 1e-9, composite
    e = lrp.Explainer(inside)(x)
    assert e.health.ok, e.health.problems
    # By what is known of the bare net: LRP-0 is gradient × input.
    given.requires_grad_()
    logits = bare(given)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), given)
    exact = lrp.Explainer(inside, lrp.preset("epsilon", epsilon=0), dtype=torch.float64)(x, 1).relevance
    assert difference((gradient * given).detach(), exact) <= 1e-9


def test_there_are_enough_pairs():
    pairs = sum(len(line) - 1 for line in (*SPELLINGS.values(), *TOKENS.values())) + len(NORMALISED)
    assert pairs >= 60


def test_a_norm_that_torch_has_fused():
    """conv + BN apart, and fused by torch.ao into one module."""
    torch.manual_seed(5)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 5),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight.copy_(torch.tensor([1.5, -0.7, 0.8, -1.2]))
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    fused = torch.ao.quantization.fuse_modules(copy.deepcopy(net), [["0", "1", "2"], ["3", "4"]])
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    x = images(3, torch.float64)
    for composite in lrp.composites():
        assert difference(maps(net, composite, x), maps(fused, composite, x)) <= 1e-9, composite
