"""captum 0.9.0's LRP on a plain VGG11, its EpsilonRule everywhere: the same numbers as our preset `epsilon`.

captum's EpsilonRule: R_in = a · gradient of z by a · R / (z + ε sgn(z)), sgn(0) = 1, the bias in z: ours with
bias="absorb". Known differences, each taken out:

1. its ε is 1e-9 by default, ours 1e-6: both are set to the same value.
2. a max pool gets the ε rule too, so its winner keeps x / (x + ε); ours takes all. captum's pools get
   ε = 1e-300, which leaves 1 (0 would make 0/0 of windows that are all zero).
   `test_max_pools_explain_the_difference` shows that this is all.
3. it refuses in-place ReLU and `x + y`: the VGG here has neither.
4. it starts from 1 and multiplies by the logit at the end: the same, being linear.
"""

from functools import cache

import pytest
import torch
import torchvision
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import nn

import lrp

TARGETS = [3, 7]


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    vgg = torchvision.models.vgg11(init_weights=False, num_classes=1).features
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(),
        nn.Linear(64, 10),
    )  # fmt: skip
    found = torchvision.models.VGG(vgg, num_classes=1, init_weights=False)
    found.classifier = classifier
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.normal_(module.bias, std=0.05)
            if isinstance(module, nn.ReLU):
                module.inplace = False
    return found.eval().double()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def theirs(epsilon, pool_epsilon):
    for module in model().modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.AdaptiveAvgPool2d):
            module.rule = EpsilonRule(epsilon)
        if isinstance(module, nn.MaxPool2d):
            module.rule = EpsilonRule(pool_epsilon)
    return LRP(model()).attribute(images(), target=TARGETS).detach()  # removes the rules again


@cache
def ours(epsilon):
    # the preset's epsilon is that of every operation here: conv, linear and the adaptive pool
    composite = lrp.preset("epsilon", epsilon=epsilon)
    return lrp.Explainer(model(), composite=composite, dtype=torch.float64)(
        images(), target=TARGETS
    ).relevance


def error(a, b):
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize("epsilon", [1e-9, 1e-6, 1e-2])
def test_same_relevance(epsilon):
    expected = theirs(epsilon, pool_epsilon=1e-300)
    assert torch.isfinite(expected).all() and float(expected.abs().sum((1, 2, 3)).min()) > 1e-3
    assert error(ours(epsilon), expected) < 1e-9


def test_epsilon_matters_here():
    """Else the test above would pass whatever ε does."""
    assert error(ours(1e-9), ours(1e-2)) > 1e-3


def test_max_pools_explain_the_difference():
    """Difference 2: as captum comes, its pools lose ε / (x + ε) of a winner; all else is equal."""
    assert 1e-9 < error(ours(1e-2), theirs(1e-2, pool_epsilon=1e-2)) < 0.2
    assert error(ours(1e-6), theirs(1e-6, pool_epsilon=1e-6)) < 1e-3


def test_captum_has_put_the_model_back():
    before = {key: value.clone() for key, value in model().state_dict().items()}
    theirs(1e-6, 1e-6)
    for key, value in model().state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(hasattr(module, "rule") for module in model().modules())
