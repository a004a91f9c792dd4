"""zennit 0.5.1 (LGPL; read, never copied) on torchvision's VGG11, VGG11-BN and ResNet18: the same numbers.

Known differences, each with the reason, and what the test does about it:

1. zennit merges batch norm into the convolution but leaves the batch norm standing, with variance 1 and its eps:
   every normalisation shrinks its value by 1/√(1 + 1e-5). Left alone: 1e-4 is the tolerance. With that eps taken
   out (`NoEps`) the two engines must agree to 1e-9. (A random net with a z close to 0 amplifies the difference
   up to 1e-2, which would say nothing about either engine; hence `SEEDS`.)
2. zennit's `excitation_backprop` has no rule for batch norm and takes its gradient: the same 1/√(1 + 1e-5), on
   the relevance as well, once for each of the up to 17 batch norms on a path.
3. zennit's Gamma tests the sign of z with the bias in it even where `zero_params="bias"`; ours leaves the bias
   out everywhere. `test_gamma_without_bias_differs_in_the_sign_test_alone` shows that this is all.
4. zennit makes float32 of ZBox bounds given as numbers (2e-8 in the result): ours are exact there.
5. zennit hands R through an empty denominator with its stabiliser, ours drops it: the shares are 0 either way.
6. zennit's WSquare squares the bias too, unless `zero_params="bias"`; ours leaves it out.
"""

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
import zennit.composites
import zennit.rules
import zennit.torchvision
import zennit.types
from torch import nn
from zennit.attribution import Gradient
from zennit.layer import Sum

import lrp
from helpers import oracle

LOW, HIGH = -2.25, 2.75  # exact in float32, which zennit makes of a number
MODELS = ("vgg11", "vgg11_bn", "resnet18")
SEEDS = {"vgg11": 0, "vgg11_bn": 21, "resnet18": 22}  # no z so close to 0 that difference 1 is amplified


# --------------------------------------------------------------------------------------------- the two sides


@cache
def model(name: str, dtype=torch.float64) -> nn.Module:
    """Random weights with biases; batch norms as after a training, some scales negative."""
    torch.manual_seed(SEEDS[name])
    if name.startswith("vgg"):
        found = torchvision.models.vgg._vgg(
            "A", name.endswith("bn"), None, False, num_classes=10, init_weights=False
        )
        # the classifier's width says nothing about LRP, and 120 million weights cost seconds each time
        found.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 64), nn.ReLU(True), nn.Dropout(),
            nn.Linear(64, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10),
        )  # fmt: skip
    else:
        found = torchvision.models.resnet18(num_classes=10)
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.05)
            if isinstance(module, nn.BatchNorm2d):
                sign = torch.where(torch.rand(module.num_features) < 0.2, -1.0, 1.0)
                module.weight.copy_(sign * (0.5 + torch.rand(module.num_features)))
                nn.init.normal_(module.bias, std=0.2)
                nn.init.normal_(module.running_mean, std=0.3)
                module.running_var.uniform_(0.5, 2.0)
    return found.eval().to(dtype)


def images(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64).clamp(LOW, HIGH).to(dtype)


def start(dtype=torch.float64):
    """A class of its own for the first image, relevance of both signs on all classes for the second."""
    R = torch.randn(2, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    R[0] = torch.eye(10)[3] * 2.5
    return R.to(dtype)


def epsilon_everywhere(canonizers):
    types, rules = zennit.types, zennit.rules
    return zennit.composites.LayerMapComposite(
        [
            (types.Activation, rules.Pass()),
            (Sum, rules.Norm()),
            (types.AvgPool, rules.Norm()),
            (types.BatchNorm, rules.Pass()),
            (types.Linear, rules.Epsilon()),
        ],
        canonizers,
    )


def box(canonizers):
    return zennit.composites.EpsilonGammaBox(low=LOW, high=HIGH, canonizers=canonizers)


PRESETS = {
    "epsilon": ({}, epsilon_everywhere),
    "epsilon_plus": ({}, lambda c: zennit.composites.EpsilonPlus(canonizers=c)),
    "epsilon_plus_flat": ({}, lambda c: zennit.composites.EpsilonPlusFlat(canonizers=c)),
    "epsilon_gamma_box": ({"low": LOW, "high": HIGH}, box),
    "epsilon_alpha2_beta1": ({}, lambda c: zennit.composites.EpsilonAlpha2Beta1(canonizers=c)),
    "epsilon_alpha2_beta1_flat": ({}, lambda c: zennit.composites.EpsilonAlpha2Beta1Flat(canonizers=c)),
    "excitation_backprop": ({}, lambda c: zennit.composites.ExcitationBackprop(canonizers=c)),
}


def canonizer(name):
    return (
        zennit.torchvision.VGGCanonizer() if name.startswith("vgg") else zennit.torchvision.ResNetCanonizer()
    )


@cache
def theirs(name, preset, dtype=torch.float64):
    composite = PRESETS[preset][1]([canonizer(name)])
    _, relevance = Gradient(model(name, dtype), composite)(images(dtype), start(dtype))
    return relevance.detach().double()


@cache
def ours(name, preset, dtype=torch.float64):
    composite = lrp.preset(preset, **PRESETS[preset][0])
    relevance = lrp.Explainer(model(name, dtype), composite=composite, dtype=dtype)(
        images(dtype), start(dtype)
    ).relevance
    assert relevance.dtype == dtype
    return relevance.double()


def error(a, b):
    """Per image, so that the larger relevance of one does not hide the other."""
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


def substantial(relevance):
    """Relevance reaches the image, finite, on every channel."""
    return bool(torch.isfinite(relevance).all()) and float(relevance.abs().sum((2, 3)).min()) > 1e-6


# ------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_same_relevance(name, preset):
    expected = theirs(name, preset)
    assert substantial(expected)
    assert error(ours(name, preset), expected) < (1e-9 if name == "vgg11" else 1e-4)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_float32_is_as_good(name, preset):
    """Our rounding error in float32, against our float64, is at most four times zennit's against its own."""
    single, double = ours(name, preset, torch.float32), ours(name, preset)
    their_single, their_double = theirs(name, preset, torch.float32), theirs(name, preset)
    assert error(single, double) <= 4 * error(their_single, their_double)


class NoEps(zennit.torchvision.SequentialMergeBatchNorm):
    """Difference 1 taken out: after the merge the batch norm is the identity, not 1/√(1 + eps)."""

    def register(self, linears, batch_norm):
        super().register(linears, batch_norm)
        self.eps, batch_norm.eps = batch_norm.eps, 1e-30  # torch 2.10 refuses 0; 1 + 1e-30 is 1

    def remove(self):
        self.batch_norm.eps = self.eps
        super().remove()


def exact_canonizers(name):
    if name.startswith("vgg"):
        return [NoEps()]
    return [NoEps(), zennit.torchvision.ResNetBasicBlockCanonizer()]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18"])
def test_same_relevance_without_the_merged_eps(name, preset):
    composite = PRESETS[preset][1](exact_canonizers(name))
    _, expected = Gradient(model(name), composite)(images(), start())
    assert model(name).get_submodule("features.1" if name == "vgg11_bn" else "bn1").eps == 1e-5
    assert error(ours(name, preset), expected.detach()) < 1e-9


@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon_alpha2_beta1_flat", "excitation_backprop"])
def test_same_relevance_without_bias(preset):
    """bias="ignore" is zennit's zero_params="bias"."""
    kind = {
        "epsilon_plus": zennit.composites.EpsilonPlus,
        "epsilon_alpha2_beta1_flat": zennit.composites.EpsilonAlpha2Beta1Flat,
        "excitation_backprop": zennit.composites.ExcitationBackprop,
    }[preset]
    composite = kind(zero_params=["bias"], canonizers=exact_canonizers("resnet18"))
    _, expected = Gradient(model("resnet18"), composite)(images(), start())
    composite = lrp.preset(preset, bias="ignore")
    relevance = lrp.Explainer(model("resnet18"), composite=composite, dtype=torch.float64)(
        images(), start()
    ).relevance
    assert error(relevance, expected.detach()) < 1e-9
    assert error(relevance, ours("resnet18", preset)) > 1e-3  # the bias matters here


def test_models_are_as_before_zennit():
    """What is compared is one model, not two that drifted apart."""
    for name in MODELS:
        before = copy.deepcopy(model(name).state_dict())
        theirs(name, "epsilon_plus")
        for key, value in model(name).state_dict().items():
            assert torch.equal(value, before[key])


# ---------------------------------------------------------- the oracle itself, layer by layer, against zennit

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 5, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), (3, 3, 3)),
}
SAME_RULES = {
    "Epsilon": (zennit.rules.Epsilon(0.25), oracle.epsilon(0.25)),
    "Epsilon, no bias": (zennit.rules.Epsilon(0.25, zero_params=["bias"]), oracle.epsilon(0.25, "ignore")),
    "Gamma": (zennit.rules.Gamma(0.5, 0.25), oracle.gamma(0.5, 0.25)),
    "ZPlus": (zennit.rules.ZPlus(0.25), oracle.z_plus(0.25)),
    "ZPlus, no bias": (zennit.rules.ZPlus(0.25, zero_params=["bias"]), oracle.z_plus(0.25, "ignore")),
    "AlphaBeta": (zennit.rules.AlphaBeta(2.0, 1.0, 0.25), oracle.alpha_beta(2.0, 1.0, 0.25)),
    "ZBox": (zennit.rules.ZBox(LOW, HIGH, 0.25), oracle.z_box(LOW, HIGH, 0.25)),
    "WSquare": (zennit.rules.WSquare(0.25, zero_params=["bias"]), oracle.w_square(0.25)),
    "Flat": (zennit.rules.Flat(0.25), oracle.flat(0.25)),
}


def one_layer(layer, rule, x, R):
    wrapped = nn.Sequential(layer)
    _, relevance = Gradient(wrapped, zennit.composites.LayerMapComposite([(type(layer), rule)]))(x, R)
    return relevance.detach()


@pytest.mark.parametrize("rule", SAME_RULES)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_oracle_is_right_where_zennit_is(kind, rule):
    torch.manual_seed(1)
    make, shape = LAYERS[kind]
    layer, x = make().double(), torch.randn(2, *shape).double()
    R = torch.randn_like(layer(x)).detach()
    expected = one_layer(layer, SAME_RULES[rule][0], x, R)
    for i in range(2):
        mine = oracle.distribute(SAME_RULES[rule][1], oracle.of_module(layer, shape), x[i], R[i])
        np.testing.assert_allclose(mine.relevance, expected[i].reshape(-1), rtol=1e-10, atol=1e-12)


def test_gamma_without_bias_differs_in_the_sign_test_alone():
    """Difference 3: equal where z has the same sign with and without its bias, different where it has not."""
    torch.manual_seed(2)
    layer, x = nn.Linear(6, 40).double(), torch.randn(1, 6).double()
    z, b = layer(x)[0].detach(), layer.bias.detach()
    same_sign = (z * (z - b) > 0)[None]
    assert 0 < int(same_sign.sum()) < 40
    matrix, R = oracle.of_module(layer, (6,)), torch.randn(1, 40).double()
    composite = lrp.Composite([(lrp.family("linear"), lrp.Gamma(0.25, epsilon=1e-6, bias="ignore"))])
    explainer = lrp.Explainer(
        nn.Sequential(nn.Flatten(), layer).eval(), composite=composite, dtype=torch.float64
    )
    for chosen, equal in ((same_sign, True), (~same_sign, False)):
        started = R * chosen
        expected = one_layer(layer, zennit.rules.Gamma(0.25, 1e-6, zero_params=["bias"]), x, started)[0]
        mine = explainer(x.reshape(1, 6, 1, 1), started).relevance.reshape(-1)
        literal = oracle.distribute(oracle.gamma(0.25, 1e-6, "ignore"), matrix, x, started).relevance
        np.testing.assert_allclose(mine, literal, rtol=1e-10)
        assert np.allclose(mine, expected, rtol=1e-9) == equal
