"""docs/rules.md, "What must hold", 1 to 7, on random small nets: biases, negative batch-norm scales, signed inputs."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import lrp
from helpers.gradient import is_gradient_times_input
from helpers.relu_nets import RELU_NETS, ReluNet, lively, relu_net

torch.set_num_threads(1)  # the nets are small: threads would only wait for each other

LOW, HIGH = -3.0, 3.0
PRESETS = {
    "epsilon": {},
    "epsilon_plus": {},
    "epsilon_plus_flat": {},
    "epsilon_gamma_box": {"low": LOW, "high": HIGH},
    "epsilon_gamma_wsquare": {},
    "epsilon_alpha2_beta1": {},
    "epsilon_alpha2_beta1_flat": {},
    "sequential_preset_a": {},
    "sequential_preset_b_flat": {},
    "deep_taylor": {"low": LOW, "high": HIGH},
    "excitation_backprop": {},
    "kaifishr": {},
}
TERMS = ("bias", "epsilon", "dropped")
few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # each try captures a model: no hundreds of them to shrink one
    suppress_health_check=list(HealthCheck),
)


# --------------------------------------------------------------------------------------------- random nets


class Residual(nn.Module):
    def __init__(self, body, shortcut, sign=1):
        super().__init__()
        self.body, self.shortcut, self.sign = body, shortcut, sign

    def forward(self, x):
        y = self.body(x)
        return F.relu(y + self.shortcut(x) if self.sign > 0 else y - self.shortcut(x))


class Beside(nn.Module):
    def __init__(self, one, other, back):
        super().__init__()
        self.one, self.other, self.back = one, other, back

    def forward(self, x):
        return self.back(torch.cat([self.one(x), self.other(x)], dim=1))


def conv(size=3, **options):
    return nn.Conv2d(4, 4, size, padding=size // 2, **options)


BLOCKS = {
    "conv": lambda: [conv(), nn.ReLU()],
    "conv_norm": lambda: [conv(bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)],
    "norm_conv": lambda: [nn.BatchNorm2d(4), nn.ReLU(), conv()],
    "depthwise": lambda: [conv(groups=4), nn.BatchNorm2d(4), nn.ReLU(), conv(1)],
    "max_pool": lambda: [nn.MaxPool2d(3, 2, 1)],
    "max_pool_2": lambda: [nn.MaxPool2d(2)],
    "avg_pool": lambda: [nn.AvgPool2d(3, 2, 1)],
    "residual": lambda: [Residual(nn.Sequential(conv(), nn.BatchNorm2d(4)), nn.Identity())],
    "difference": lambda: [
        Residual(nn.Sequential(conv(), nn.ReLU(), conv()), nn.Sequential(conv(1), nn.BatchNorm2d(4)), -1)
    ],
    "beside": lambda: [Beside(conv(1), nn.Sequential(conv(), nn.ReLU()), nn.Conv2d(8, 4, 1)), nn.ReLU()],
    "pad_conv": lambda: [nn.ZeroPad2d((0, 2, 1, 0)), nn.Conv2d(4, 4, 2), nn.ReLU()],
    "dropout": lambda: [nn.Dropout(0.5)],
}
plans = st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=4, unique=True)
seeds = st.integers(0, 10**6)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Double, eval; weights that keep the signal's size, biases, batch norms with some negative scales."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like):
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear | nn.ConvTranspose2d):
                module.weight.copy_(normal(module.weight) * (2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * normal(module.bias))
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                if module.affine:
                    sign = torch.where(normal(module.weight) < -0.5, -1.0, 1.0)
                    module.weight.copy_(sign * (0.8 + 0.2 * normal(module.weight).abs()))
                    module.bias.copy_(0.2 * normal(module.bias))
                module.running_mean.copy_(0.2 * normal(module.running_mean))
                module.running_var.copy_(0.5 + normal(module.running_var).abs())
    return model.double().eval()


def net(plan, seed) -> nn.Module:
    body = [layer for block in plan for layer in BLOCKS[block]()]
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        *body,
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(),
        nn.Linear(24, 5),
    ]
    return randomise(nn.Sequential(*layers), seed)


def images(n=3, shape=(3, 9, 8), seed=0):
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.clamp(LOW, HIGH)


def start_of(model, x, seed=1):
    """Signed relevance on all classes."""
    with torch.no_grad():
        z = model(x)
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explainer_of(model, preset="epsilon_plus", **options):
    composite = lrp.preset(preset, **(PRESETS[preset] | options)) if isinstance(preset, str) else preset
    return lrp.Explainer(model, composite=composite, dtype=torch.float64)


def close(a, b, tolerance, what=""):
    a, b = a.detach(), b.detach()
    assert a.shape == b.shape
    largest = float(b.abs().max())
    assert largest > 0, "nothing to compare"
    assert float((a - b).abs().max()) <= tolerance * largest, what


# ------------------------------------------------------------------------------------- 1: the ledger closes


def reaches(e, start):
    """A model whose input receives less than 1e-6 of the start tests nothing."""
    return bool((e.relevance.flatten(1).abs().sum(1) >= 1e-6 * start.abs().sum(1)).all())


def closes(e, start):
    """Node by node and as a whole, and the totals are what they say."""
    ledger, totals = e.ledger, e.ledger.totals
    rows = list(ledger)
    largest = torch.as_tensor(totals["largest"])
    for row in rows:
        left = row.relevance_in - row.relevance_out - row.bias - row.epsilon - row.dropped
        assert (left.abs() <= 1e-9 * largest).all(), str(row)
        assert (torch.as_tensor(row.unexplained).abs() <= 1e-9 * largest).all(), str(row)
    bound = 1e-9 * torch.maximum(start.sum(1).abs(), largest)
    assert ((totals["start"] - start.sum(1)).abs() <= bound).all()
    assert ((totals["input"] - e.relevance.flatten(1).sum(1)).abs() <= bound).all()
    for term in TERMS:
        assert ((totals[term] - sum(getattr(row, term) for row in rows)).abs() <= bound).all(), term
    missing = totals["start"] - totals["input"] - totals["bias"] - totals["epsilon"] - totals["dropped"]
    assert (missing.abs() <= bound).all()
    assert (torch.as_tensor(totals["unexplained"]).abs() <= bound).all()
    assert e.health.ok
    assert reaches(e, start)
    assert (largest >= start.abs().sum(1) * (1 - 1e-12)).all()
    assert (largest <= 1e6 * start.abs().sum(1)).all(), "so large that everything closes"


@few
@given(plan=plans, seed=seeds, preset=st.sampled_from(sorted(set(PRESETS) - {"kaifishr"})))
def test_ledger_closes(plan, seed, preset):
    model, x = net(plan, seed), images()
    R = start_of(model, x)
    e = explainer_of(model, preset)(x, R)
    assume(reaches(e, R))
    closes(e, R)


@pytest.mark.parametrize("preset", PRESETS)
def test_ledger_closes_under_every_preset(preset):
    model, x = net(["residual", "norm_conv", "max_pool_2", "difference", "avg_pool"], 7), images()
    R = start_of(model, x)
    if preset == "kaifishr":  # its start is the softmax of all classes, whatever the target
        R = model(x).softmax(1).detach()
        closes(explainer_of(model, preset)(x), R)
    else:
        closes(explainer_of(model, preset)(x, R), R)


def test_kaifishr_on_a_pool_that_is_not_two_by_two():
    """AvgPool2d(2, 2) does not fit its output: explained all the same, or refused with an error of ours."""
    model, x = net(["max_pool"], 7), images()
    try:
        e = explainer_of(model, "kaifishr")(x)
    except lrp.LrpError:
        return
    closes(e, model(x).softmax(1).detach())


def test_ledger_closes_with_top_k_and_without_bias():
    model, x = net(["conv_norm", "beside", "max_pool"], 8), images()
    R = start_of(model, x)
    cut = explainer_of(model, "epsilon_plus", top_k=0.2)(x, R)
    closes(cut, R)
    assert (cut.ledger.totals["dropped"].abs() > 1e-3).all()
    e = explainer_of(model, "epsilon_plus", bias="ignore")(x, R)
    closes(e, R)
    assert (e.ledger.totals["bias"].abs() <= 1e-12 * R.abs().sum(1)).all()


# ------------------------------------------------------------------------------------ 2: gradient × input


@few
@given(plan=plans, seed=seeds, target=st.integers(0, 4))
def test_of_random_nets(plan, seed, target):
    is_gradient_times_input(net(plan, seed), images(), target)


@pytest.mark.parametrize("name", RELU_NETS)
def test_of_nets_of_each_kind(name):
    model, x = relu_net(name)
    e = is_gradient_times_input(model, x, torch.randn(3, 5).double())
    assert e.health.ok, e.health.problems


def test_of_all_that_is_piecewise_linear():
    torch.manual_seed(21)
    model, x = lively(ReluNet()), torch.randn(3, 3, 6, 8).double()
    is_gradient_times_input(model, x, (model(x) * torch.randn(3, 5)).detach())


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.norm, self.position = nn.BatchNorm2d(4), nn.Parameter(torch.randn(1, 4, 1, 1))
        self.mix, self.out = nn.Conv2d(4, 2, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(F.pad(self.one(x), (1, 0, 0, 2))) + self.position)
        y = self.two(F.max_pool2d(x, 3, 1, 1))
        y = F.relu(y - F.avg_pool2d(x, 2, ceil_mode=True)[..., : y.shape[-2], : y.shape[-1]])
        z = torch.cat([self.mix(y).mean((2, 3)), F.adaptive_avg_pool2d(y, 1)[:, 1:3].flatten(1)], dim=1)
        return self.out(z)


def test_of_sums_of_pools_and_constants():
    torch.manual_seed(0)
    is_gradient_times_input(randomise(Everything(), 3), images(2, (3, 8, 8)), 2)


# ------------------------------------------------------------------------------- 3: rules that are equal


def only(family, rule):
    return lrp.Composite([(lrp.family(family), rule)])


@few
@given(plan=plans, seed=seeds)
def test_z_plus_is_alpha_1_beta_0(plan, seed):
    model, x = net(plan, seed), images()
    R = start_of(model, x)
    plus, alpha = lrp.ZPlus(), lrp.AlphaBeta(1.0, 0.0)
    one, other = (
        lrp.Composite([(lrp.family("conv"), rule), (lrp.family("linear"), rule), (lrp.family("norm"), rule)])
        for rule in (plus, alpha)
    )
    close(explainer_of(model, one)(x, R).relevance, explainer_of(model, other)(x, R).relevance, 1e-12)


@few
@given(seed=seeds, bias=st.sampled_from(["absorb", "ignore"]), stride=st.sampled_from([1, 2]))
def test_z_plus_is_gamma_towards_infinity(seed, bias, stride):
    """For inputs >= 0, at outputs with z > 0: relevance starts at those alone."""
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride, padding=1), nn.Flatten()), seed)
    x = images(seed=seed).abs()
    with torch.no_grad():
        z = model(x) if bias == "absorb" else F.conv2d(x, model[0].weight, None, stride, 1).flatten(1)
    R = start_of(model, x) * (z > 0)
    plus = explainer_of(model, only("conv", lrp.ZPlus(epsilon=0.0, bias=bias)))(x, R)
    gamma = explainer_of(model, only("conv", lrp.Gamma(1e8, epsilon=0.0, bias=bias)))(x, R)
    close(gamma.relevance, plus.relevance, 1e-6)


CONSERVING = {
    "Zero": lrp.Zero(bias="ignore"),
    "Gamma": lrp.Gamma(0.25, epsilon=0.0, bias="ignore"),
    "AlphaBeta": lrp.AlphaBeta(2.0, 1.0, epsilon=0.0, bias="ignore"),
    "ZPlus": lrp.ZPlus(epsilon=0.0, bias="ignore"),
    "ZBox": lrp.ZBox(LOW, HIGH, epsilon=0.0),
    "WSquare": lrp.WSquare(epsilon=0.0),
    "Flat": lrp.Flat(epsilon=0.0),
}


@pytest.mark.parametrize("rule", CONSERVING)
def test_without_bias_and_epsilon_a_rule_conserves(rule):
    """Through two convolutions and a linear; signed inputs everywhere, so that no denominator is empty."""
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.LeakyReLU(0.3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Flatten(),
        nn.Linear(48, 5),
    ]
    model, x = randomise(nn.Sequential(*layers), 11), images()
    R = start_of(model, x)
    composite = lrp.Composite([(lrp.family("conv", "linear"), CONSERVING[rule])])
    e = explainer_of(model, composite)(x, R)
    scale = float(e.ledger.totals["largest"].max())
    assert all((e.ledger.totals[term].abs() <= 1e-12 * scale).all() for term in TERMS)
    assert ((e.relevance.flatten(1).sum(1) - R.sum(1)).abs() <= 1e-11 * scale).all()
    assert ((e.relevance.flatten(1).sum(1) - R.sum(1)).abs() <= 1e-6 * R.abs().sum(1)).all()


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 1.0), (1.5, 0.5)])
def test_alpha_beta_with_nothing_negative_hands_down_alpha_times_R(alpha, beta):
    model, x = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), 12), images().abs()
    with torch.no_grad():
        model[0].weight.abs_()
    R = start_of(model, x)
    rule = lrp.AlphaBeta(alpha, beta, epsilon=0.0, bias="ignore")
    e = explainer_of(model, only("conv", rule))(x, R)
    close(e.relevance.flatten(1).sum(1), alpha * R.sum(1), 1e-11)
    close(e.ledger.totals["dropped"], -beta * R.sum(1), 1e-11)


# -------------------------------------------------- 4: batches, linearity, the same twice, several at once


@few
@given(
    plan=plans, seed=seeds, preset=st.sampled_from(["epsilon", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
)
def test_batch_linear_and_repeatable(plan, seed, preset):
    model, x = net(plan, seed), images(4)
    R, S = start_of(model, x, 1), start_of(model, x, 2)
    explainer = explainer_of(model, preset)
    e = explainer(x, R)
    assert torch.equal(explainer(x, R).relevance, e.relevance)
    alone = torch.cat([explainer(x[i : i + 1], R[i : i + 1]).relevance for i in range(4)])
    close(alone, e.relevance, 1e-10, "one by one")
    S_relevance = explainer(x, S).relevance
    close(explainer(x, 2 * R - 3 * S).relevance, 2 * e.relevance - 3 * S_relevance, 1e-10, "linear")
    shuffled = explainer(x.flip(0), R.flip(0)).relevance.flip(0)
    close(shuffled, e.relevance, 1e-10, "order")


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_memory_layout_does_not_matter(layout):
    model, x = net(["beside", "residual", "avg_pool"], 6), images(3)
    if layout == "expanded":
        x = x[:1].expand(3, -1, -1, -1)
    R = start_of(model, x)
    expected = explainer_of(model)(x.contiguous(), R).relevance
    other = {
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "strided": lambda: torch.stack([x, -x], dim=-1)[..., 0],
        "expanded": lambda: x,
    }[layout]()
    assert not other.is_contiguous()
    e = explainer_of(model)(other, R)
    close(e.relevance, expected, 1e-12)
    closes(e, R)
    if layout == "channels_last":
        close(explainer_of(model.to(memory_format=torch.channels_last))(other, R).relevance, expected, 1e-12)


def test_dtypes():
    """float64 on request, from a float32 model that stays one; half precision raised to float32."""
    model = net(["conv_norm", "residual"], 9)
    single, half = copy.deepcopy(model).float(), copy.deepcopy(model).half()
    x, before = images(2).float(), Snapshot(single)
    e = lrp.Explainer(single, composite="epsilon_plus", dtype=torch.float64)(x, target=1)
    same = copy.deepcopy(single).double()
    close(e.relevance, explainer_of(same)(x.double(), target=1).relevance, 1e-12)
    close(e.logits, same(x.double()), 1e-12)
    before.assert_same(single)
    assert lrp.Explainer(single, composite="epsilon_plus")(x, target=1).relevance.dtype == torch.float32
    assert lrp.Explainer(half, composite="epsilon_plus")(x.half(), target=1).relevance.dtype == torch.float32


def test_first_call_with_one_image_then_many():
    model, x = net(["residual", "max_pool"], 3), images(3)
    R = start_of(model, x)
    explainer = explainer_of(model)
    one = explainer(x[:1], R[:1])
    close(explainer(x, R).relevance[:1], one.relevance, 1e-10)
    assert one.ledger.totals["start"].shape == (1,)


def test_another_input_size():
    model, small, large = net(["conv_norm"], 4), images(2), images(2, (3, 12, 10))
    explainer = explainer_of(model)
    explainer(small, target=0)
    close(explainer(large, target=0).relevance, explainer_of(model)(large, target=0).relevance, 1e-12)


def test_many_targets_are_the_single_ones():
    model, x = net(["residual", "avg_pool"], 5), images(3)
    R = start_of(model, x)
    explainer = explainer_of(model, "epsilon_alpha2_beta1")
    targets = ["predicted", 2, [4, 0, 1], R]
    together = explainer.many(x, targets=targets)
    assert together.relevance.shape == (4, *x.shape)
    for relevance, target in zip(together.relevance, targets, strict=True):
        close(relevance, explainer(x, target=target).relevance, 1e-10)


# --------------------------------------------------------------------------------- 5: folding batch norm


def folded(layer, norm):
    """The layer a batch norm after it makes of it, from the definition."""
    scale = norm.running_var.add(norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    shift = (0.0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    new = copy.deepcopy(layer)
    with torch.no_grad():
        new.weight.copy_(layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
        new.bias = nn.Parameter((bias * scale + shift).detach())
    return new


FOLDS = {
    "conv2d": lambda: (nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)),
    "conv2d_no_bias": lambda: (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "depthwise": lambda: (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
    "no_affine": lambda: (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1)),
}


@pytest.mark.parametrize("preset", ["epsilon_gamma_box", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("kind", FOLDS)
def test_folded_batch_norm(kind, preset):
    layer, norm = FOLDS[kind]()
    head = nn.Sequential(
        nn.Conv2d(norm.num_features, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)
    )
    model = randomise(nn.Sequential(layer, norm, nn.ReLU(), head), 21)
    by_hand = nn.Sequential(folded(layer, norm), nn.ReLU(), head).eval()
    x = images()
    R = start_of(model, x)
    ours, theirs = explainer_of(model, preset)(x, R), explainer_of(by_hand, preset)(x, R)
    close(ours.logits, model(x), 1e-12)
    close(by_hand(x), model(x), 1e-12)
    close(ours.relevance, theirs.relevance, 1e-10)
    closes(ours, R)


def test_folded_batch_norm_after_a_linear():
    layer, norm = nn.Linear(12, 6), nn.BatchNorm1d(6)
    model = randomise(nn.Sequential(nn.Flatten(), layer, norm, nn.ReLU(), nn.Linear(6, 5)), 22)
    by_hand = nn.Sequential(nn.Flatten(), folded(layer, norm), nn.ReLU(), model[4]).eval()
    x = images(3, (3, 2, 2))
    R = start_of(model, x)
    composite = lrp.Composite([(lrp.family("linear"), lrp.AlphaBeta(2.0, 1.0))])
    ours = explainer_of(model, composite)(x, R)
    close(ours.logits, model(x), 1e-12)
    close(ours.relevance, explainer_of(by_hand, composite)(x, R).relevance, 1e-10)


@pytest.mark.parametrize("preset", ["epsilon", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
def test_folded_batch_norm_before_a_convolution(preset):
    """Without padding, a batch norm before a convolution is part of it: w scale, b + Σ w shift."""
    behind = [nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(168, 5)]
    model = randomise(nn.Sequential(nn.Conv2d(3, 3, 1), *behind), 24)
    norm, layer = model[2], model[3]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    by_hand = copy.deepcopy(nn.Sequential(*model[:2], *model[3:]))
    with torch.no_grad():
        by_hand[2].weight.mul_(scale.reshape(1, -1, 1, 1))
        by_hand[2].bias.add_((layer.weight * shift.reshape(1, -1, 1, 1)).sum((1, 2, 3)))
    x = images()
    R = start_of(model, x)
    ours = explainer_of(model, preset)(x, R)
    close(ours.logits, model(x), 1e-12)
    close(by_hand(x), model(x), 1e-12)
    close(ours.relevance, explainer_of(by_hand, preset)(x, R).relevance, 1e-10)
    closes(ours, R)


class TwoNorms(nn.Module):
    """One convolution, two batch norms after it; the third use has none. Nothing may be folded twice."""

    def __init__(self, convs):
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        one, other, third = (self.convs[min(i, len(self.convs) - 1)] for i in range(3))
        y = F.relu(self.norms[0](one(x)))
        y = F.relu(self.norms[1](other(y)))
        return self.out(F.relu(third(y)).mean((2, 3)))


class SharedOutput(nn.Module):
    """A convolution's output goes into a batch norm and elsewhere, in both orders."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        y = self.conv(x)
        return self.out(F.relu(self.norm(y) + y).mean((2, 3)))


def test_batch_norm_on_a_shared_output():
    model, x = randomise(SharedOutput(), 23), images()
    R = start_of(model, x)
    for preset in ("epsilon", "epsilon_alpha2_beta1"):
        e = explainer_of(model, preset)(x, R)
        close(e.logits, model(x), 1e-12)
        closes(e, R)
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    close(explainer_of(model, "epsilon", epsilon=0)(x.detach(), 1).relevance, gradient * x, 1e-9)


class Branches(nn.Module):
    """Linear maps of one input side by side, as RepVGG and MobileOne are trained: each sign times its module."""

    def __init__(self, *branches, signs=None):
        super().__init__()
        self.branches, self.signs = nn.ModuleList(branches), signs or [1] * len(branches)

    def forward(self, x):
        z = 0
        for branch, sign in zip(self.branches, self.signs, strict=True):
            z = z + branch(x) if sign > 0 else z - branch(x)
        return z


def conv_norm(*arguments, **options):
    conv = nn.Conv2d(*arguments, **options, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


BRANCHES = {
    "rep_vgg": lambda: Branches(conv_norm(4, 4, 3, padding=1), conv_norm(4, 4, 1), nn.BatchNorm2d(4)),
    "strided": lambda: Branches(conv_norm(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2), conv_norm(4, 6, 5, 2, 2)),
    "depthwise": lambda: Branches(
        nn.BatchNorm2d(4), conv_norm(4, 4, 3, padding=1, groups=4), conv_norm(4, 4, 1, groups=4)
    ),
    "grouped": lambda: Branches(conv_norm(4, 8, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1, groups=2)),
    "difference": lambda: Branches(conv_norm(4, 4, 3, padding=1), nn.BatchNorm2d(4), signs=[1, -1]),
    "dilated": lambda: Branches(nn.Conv2d(4, 4, 3, padding=4, dilation=2), nn.Conv2d(4, 4, 1, padding=2)),
    "oblong": lambda: Branches(
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ),
    "flat": lambda: Branches(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)),
}


@pytest.mark.parametrize(
    "rule", [lrp.Gamma(0.25), lrp.AlphaBeta(2.0, 1.0), lrp.ZPlus(bias="ignore")], ids=str
)
@pytest.mark.parametrize("kind", BRANCHES)
def test_branches_side_by_side_are_one_matrix(kind, rule):
    """However they are written: the rule sees the sum of their matrices, here a dense linear layer."""
    size = (4, 6) if kind == "flat" else (4, 5, 6)
    branches = BRANCHES[kind]()
    with torch.no_grad():
        outputs = branches(torch.zeros(2, *size)).flatten(1).shape[1]
    model = randomise(nn.Sequential(branches, nn.ReLU(), nn.Flatten(), nn.Linear(outputs, 5)), 25)
    basis = torch.eye(math.prod(size)).double().reshape(-1, *size)
    dense = nn.Linear(len(basis), outputs).double()
    with torch.no_grad():
        shift = branches(torch.zeros(1, *size).double())
        dense.weight.copy_((branches(basis) - shift).flatten(1).t())
        dense.bias.copy_(shift.flatten())
    by_hand = nn.Sequential(nn.Flatten(), dense, nn.ReLU(), model[3]).eval()
    x = images(3, size)
    R = start_of(model, x)
    ours = explainer_of(model, lrp.Composite([(lrp.everything, lrp.Epsilon()), (lrp.family("conv"), rule)]))
    theirs = explainer_of(by_hand, lrp.Composite([(lrp.everything, lrp.Epsilon()), (lrp.first, rule)]))
    assert [o.name for o in ours.prepare(x).graph.operations.values()].count("add") == 0
    ours, theirs = ours(x, R), theirs(x, R)
    close(ours.logits, model(x), 1e-12)
    close(ours.relevance, theirs.relevance, 1e-10)
    closes(ours, R)


APART = {
    "pooled": lambda: Branches(nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(1, 2))),
    "dilations": lambda: Branches(nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 3, padding=1)),
    "crossed": lambda: Branches(nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.Conv2d(3, 4, (1, 3), padding=(0, 1))),
    "identity": lambda: Branches(nn.Conv2d(3, 3, 3, padding=1), nn.Identity()),
}  # fmt: skip


@pytest.mark.parametrize("kind", APART)
def test_branches_on_other_grids_stay_a_sum(kind):
    x, branches = images(), APART[kind]()
    outputs = branches(x.float()).flatten(1).shape[1]
    model = randomise(nn.Sequential(branches, nn.ReLU(), nn.Flatten(), nn.Linear(outputs, 5)), 26)
    prepared = explainer_of(model, "epsilon_gamma_box").prepare(x)
    assert [o.name for o in prepared.graph.operations.values()].count("add") == 1
    R = start_of(model, x)
    e = explainer_of(model, "epsilon_gamma_box")(x, R)
    close(e.logits, model(x), 1e-12)
    closes(e, R)


# ------------------------------------------------------------ 6: reuse, ties, in place, functions for modules


def same_explanation(model, other, x, presets=("epsilon", "epsilon_gamma_box", "epsilon_alpha2_beta1")):
    assert torch.equal(model(x), other(x))
    R = start_of(model, x)
    for preset in presets:
        ours = explainer_of(model, preset)(x, R)
        close(ours.relevance, explainer_of(other, preset)(x, R).relevance, 1e-12, preset)
        closes(ours, R)


class Repeated(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.stem, self.blocks, self.out = nn.Conv2d(3, 4, 3), nn.ModuleList(blocks), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for i in range(3):
            x = self.blocks[i % len(self.blocks)](x)
            if i == 1:
                x = F.max_pool2d(x, 2)
        return self.out(x.mean((2, 3)))


def test_a_module_used_three_times_is_its_unrolled_copy():
    block = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model = randomise(Repeated([block]), 31)
    unrolled = Repeated([copy.deepcopy(block) for _ in range(3)]).double().eval()
    unrolled.stem, unrolled.out = model.stem, model.out
    same_explanation(model, unrolled, images())


def test_a_convolution_under_two_batch_norms_is_its_unrolled_copy():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), TwoNorms([shared])), 32)
    unrolled = copy.deepcopy(model)
    unrolled[1].convs = nn.ModuleList([copy.deepcopy(shared) for _ in range(3)])
    same_explanation(model, unrolled, images())


def test_tied_weights_are_copies():
    model = randomise(Repeated([conv(), conv(), conv()]), 33)
    for block in model.blocks[1:]:
        block.weight, block.bias = model.blocks[0].weight, model.blocks[0].bias
    untied = Repeated([conv(), conv(), conv()]).double().eval()
    untied.load_state_dict(model.state_dict())
    same_explanation(model, untied, images())


class Functional(nn.Module):
    """The net below in functions and in-place operations."""

    def __init__(self, modules):
        super().__init__()
        self.a, self.norm, self.b, self.c, self.out = modules

    def forward(self, x):
        y = F.relu_(self.norm(self.a(x)))
        y = F.max_pool2d(y, 2)
        y = torch.dropout(y, 0.5, self.training)
        z = F.conv2d(y, self.b.weight, self.b.bias, padding=1)
        z += self.c(y)
        z = torch.relu(z)
        z = torch.flatten(F.adaptive_avg_pool2d(z, 1), 1)
        return F.linear(z, self.out.weight, self.out.bias)


class Modules(nn.Module):
    def __init__(self, modules):
        super().__init__()
        self.a, self.norm, self.b, self.c, self.out = modules
        self.relu, self.pool, self.last_relu = nn.ReLU(), nn.MaxPool2d(2), nn.ReLU()
        self.dropout, self.average = nn.Dropout(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        y = self.dropout(self.pool(self.relu(self.norm(self.a(x)))))
        z = self.last_relu(self.b(y) + self.c(y))
        return self.out(self.average(z).flatten(1))


def test_functions_are_as_good_as_modules():
    modules = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), conv(), conv(1), nn.Linear(4, 5)]
    model = randomise(Modules(modules), 34)
    functional = Functional(modules).eval()
    x = images()
    R = start_of(model, x)
    for preset in ("epsilon", "epsilon_gamma_box", "epsilon_alpha2_beta1"):
        ours = explainer_of(functional, preset)(x, R)
        close(ours.relevance, explainer_of(model, preset)(x, R).relevance, 1e-10, preset)


def test_in_place_relu_on_the_input_leaves_the_image_alone():
    model = randomise(
        nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(168, 5)), 35
    )
    other = nn.Sequential(nn.ReLU(), *model[1:]).eval()
    x = images()
    before = x.clone()
    R = start_of(other, x)
    e = explainer_of(model, "epsilon")(x, R)
    assert torch.equal(x, before)
    close(e.relevance, explainer_of(other, "epsilon")(x, R).relevance, 1e-12)
    closes(e, R)  # the ledger is computed from x, later
    assert torch.equal(x, before)


# ----------------------------------------------------------------------------- 7: the model is as it was


class Snapshot:
    """All that an explanation could disturb."""

    HOOKS = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )

    def __init__(self, model):
        self.state = {key: value.clone() for key, value in model.state_dict().items()}
        self.ids = {name: id(p) for name, p in [*model.named_parameters(), *model.named_buffers()]}
        self.storage = {name: p.data_ptr() for name, p in [*model.named_parameters(), *model.named_buffers()]}
        self.versions = {name: p._version for name, p in [*model.named_parameters(), *model.named_buffers()]}
        self.grads = {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        }
        self.needs = {name: p.requires_grad for name, p in model.named_parameters()}
        self.modes = {name: module.training for name, module in model.named_modules()}
        self.hooks = {
            (name, kind): list(getattr(module, kind).items())
            for name, module in model.named_modules()
            for kind in self.HOOKS
        }
        self.attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
        self.grad_mode, self.threads = torch.is_grad_enabled(), torch.get_num_threads()
        self.default, self.random = torch.get_default_dtype(), torch.get_rng_state()

    def assert_same(self, model):
        now = Snapshot(model)
        for name in ("ids", "storage", "versions", "needs", "modes", "hooks", "attributes"):
            assert getattr(now, name) == getattr(self, name), name
        for name in ("grad_mode", "threads", "default"):
            assert getattr(now, name) == getattr(self, name), name
        assert torch.equal(now.random, self.random)
        assert now.state.keys() == self.state.keys()
        assert all(torch.equal(now.state[key], value) for key, value in self.state.items())
        for name, grad in self.grads.items():
            assert (now.grads[name] is None) == (grad is None)
            assert grad is None or torch.equal(now.grads[name], grad)


class Breaks(nn.Module):
    """Passes on, unless it is told to raise."""

    error = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return x.clone()


def lived_in(seed=41):
    """A model in the middle of a training: mixed modes, hooks, a frozen layer, gradients."""
    model = net(["conv_norm", "residual", "dropout", "max_pool"], seed)
    model.append(Breaks())
    model.train()
    model[2].eval()
    model[0].requires_grad_(False)
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(type(out)))
    model[2].register_forward_pre_hook(lambda module, args: seen.append(type(args[0])))
    model[-2].register_full_backward_hook(lambda module, gin, gout: None)
    model(images()).sum().backward()
    seen.clear()
    return model, seen


def test_model_is_untouched():
    model, seen = lived_in()
    before = Snapshot(model)
    e = explainer_of(model, "epsilon_gamma_box")(images(), target=1)
    assert e.health.ok and len(list(e.ledger)) > 5
    before.assert_same(model)
    assert all(kind is torch.Tensor for kind in seen), "a hook of the user's saw a fake tensor"
    model(images())
    assert torch.Tensor in seen, "the hooks are still alive"


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_model_is_untouched_after_an_exception(error):
    model, _ = lived_in()
    model[-1].error = error
    before = Snapshot(model)
    expected = Exception if isinstance(error, ValueError) else type(error)
    with pytest.raises(expected):
        explainer_of(model, "epsilon_gamma_box")(images(), target=1)
    before.assert_same(model)
    model[-1].error = None  # and it still works
    explainer_of(model, "epsilon_gamma_box")(images(), target=1)


def test_train_mode_is_explained_in_eval_mode():
    model = net(["conv_norm", "dropout", "norm_conv"], 42)
    x = images()
    expected = explainer_of(model)(x, target=1)
    logits = model(x)
    model.train()
    before = Snapshot(model)
    e = explainer_of(model)(x, target=1)
    before.assert_same(model)
    close(e.logits, logits, 1e-12)
    close(e.relevance, expected.relevance, 1e-12)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_grad_mode_does_not_matter(context):
    model, x = net(["residual"], 43), images()
    expected = explainer_of(model)(x, target=1).relevance
    with context():
        mine = images()
        if context is torch.enable_grad:
            mine.requires_grad_()
        relevance = explainer_of(model)(mine, target=1).relevance
        assert not relevance.requires_grad
        close(relevance, expected, 1e-12)
    assert mine.grad is None


# ------------------------------------------------------------------------------------------ changed weights


def optimizer_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(images(seed=9)).square().sum().backward()
    optimizer.step()


def new_parameter(model):
    model[0].weight = nn.Parameter(model[0].weight.detach() * 1.5)


def new_data(model):
    model[0].weight.data = model[0].weight.data * 1.5


def new_module(model):
    model[0] = randomise(nn.Conv2d(3, 4, 3), 99)


def train_statistics(model):
    model.train()
    with torch.no_grad():
        model(images(4, seed=9))
    model.eval()


CHANGES = {
    "optimizer step": optimizer_step,
    "data written": lambda model: model[0].weight.data.mul_(1.5),
    "data written, folded": lambda model: model[2].weight.data.mul_(1.5),
    "data written, bias": lambda model: model[0].bias.data.add_(0.5),
    "data replaced": new_data,
    "parameter replaced": new_parameter,
    "module replaced": new_module,
    "state dict loaded": lambda model: model.load_state_dict(net(["conv_norm", "residual"], 52).state_dict()),
    "statistics of a batch norm": train_statistics,
    "numpy": lambda model: np.multiply(
        model[0].weight.detach().numpy(), 1.5, out=model[0].weight.detach().numpy()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(change):
    """Never the old explanation: an error, or the new one. The old explanation's ledger is an error."""
    model, x = net(["conv_norm", "residual"], 51), images()
    R = start_of(model, x)
    explainer = explainer_of(model, "epsilon_gamma_box")
    old, kept = explainer(x, R), explainer(x, R)
    assert kept.health.ok  # computed before the change
    CHANGES[change](model)
    fresh = explainer_of(model, "epsilon_gamma_box")(x, R)
    assert float((fresh.relevance - old.relevance).abs().max()) > 1e-3 * float(old.relevance.abs().max())
    try:
        again = explainer(x, R)
    except lrp.LrpError:
        pass
    else:
        close(again.relevance, fresh.relevance, 1e-12)
        close(again.logits, model(x), 1e-12)
    with pytest.raises(lrp.LrpError):
        _ = old.ledger.totals
