"""Every operation of RULES.md beyond the plain convolutional net, against `oracle.py` and `oracle_data.py`.

First operation by operation (affine, products, matmul, maxima, movement, activations), then attention, LSTM and
whole nets written out literally, then what must hold for any net: conservation, exact zeros, a hand-wired
detector, images one by one, linearity, gradient × input.
"""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
import oracle
import oracle_data
from oracle_data import Trace, adaptive, after, held, normalised, over, sliding, winners
from test_rules_oracle import (
    ALL_RULES,
    CONSTANT_RULES,
    EPSILONS,
    TOLERANCE,
    Alone,
    Branch,
    Branches,
    Call,
    Case,
    agrees,
    explain_alone,
    halves,
    images,
    rows_of,
    sums,
    total,
)

TERMS = ("bias", "epsilon", "dropped")

# ------------------------------------------------------------------------------------ affine, under the rules

# each rule, each ε, each treatment of the bias: not their full product, `test_rules_oracle.py` has that
SOME = (
    "Zero(absorb)", "Epsilon(1e-06, absorb)", "Epsilon(0.25, ignore)", "Gamma(0.25, 0.25, absorb)",
    "Gamma(0.25, 1e-06, ignore)", "Gamma(7, absorb)", "ZPlus(0.0, ignore)", "ZPlus(0.25, absorb)",
    "AlphaBeta(2, 1, 0.25, absorb)", "AlphaBeta(2, 1, 1e-06, full)", "AlphaBeta(1.7, 0.7, ignore)",
    "ZBox(0.25)", "WSquare(1e-06)", "Flat(0.25)",
)  # fmt: skip
ELEMENTWISE = (*SOME, "Pass")


def affine(function, *shape, rules=SOME, **parameters):
    """A function of [N, *shape] that is affine. `parameters`: the shapes of its constants, drawn at random."""

    def make():
        return Call(function, **{name: torch.randn(size) for name, size in parameters.items()})

    return Case(make, shape, lambda op: oracle_data.measured(op, shape), rules=rules)


def on(module, *shape, before=lambda x: x, after=lambda z: z):
    """A module without parameters, between two movements."""
    return affine(lambda x: after(module(before(x))), *shape)


def scale_from_data(make, groups, *shape, view=None, centred=True, rules=ELEMENTWISE):
    """A norm that takes σ from the image: its matrix is another for every image.

    `groups`: how the flat indices, in the shape the norm sees, fall into rows that share a σ.
    """
    seen = view or shape

    def matrix(op):
        def at(image):
            rows = groups(np.arange(np.prod(shape)).reshape(seen))
            spread = [
                None if p is None else np.broadcast_to(p.detach().numpy().reshape(op.spread_over), seen)
                for p in (getattr(op, "weight", None), getattr(op, "bias", None))
            ]
            return normalised(image, rows, *spread, eps=op.eps, centred=centred)

        return at

    def build():
        op = make()
        with torch.no_grad():
            for p in op.parameters():
                p.copy_(torch.randn_like(p) + 0.1)
        elements_of_last_axes = isinstance(op, nn.LayerNorm | nn.RMSNorm)
        op.spread_over = op.normalized_shape if elements_of_last_axes else (-1, *[1] * (len(seen) - 1))
        return op

    return Case(build, shape, matrix, prepare=lambda x: (x.reshape(x.shape[0], *seen),), rules=rules)


def rows(axes):
    return lambda index: index.reshape(-1, int(np.prod(index.shape[-axes:])))


def resize(*shape, **options):
    return affine(lambda x: F.interpolate(x, **options), *shape)


def grid(x):
    ys, xs = torch.meshgrid(
        torch.linspace(-1, 1, x.shape[2], dtype=x.dtype),
        torch.linspace(0, 1, x.shape[3], dtype=x.dtype),
        indexing="ij",
    )
    return ys + 2 * xs


AFFINE = {
    # upsampling, and downsampling
    "nearest": resize(2, 2, 3, scale_factor=2.0),
    "nearest_uneven": resize(2, 2, 3, size=(5, 4)),
    "nearest_down": resize(2, 5, 4, size=(2, 3)),
    "nearest_exact": resize(2, 3, 2, size=(4, 5), mode="nearest-exact"),
    "nearest_1d": affine(lambda x: F.interpolate(x.flatten(2), scale_factor=2.0), 2, 1, 3),
    "nearest_3d": affine(lambda x: F.interpolate(x.unflatten(1, (2, 2)), scale_factor=2.0), 4, 1, 2),
    "linear_1d": affine(lambda x: F.interpolate(x.flatten(2), size=5, mode="linear"), 2, 1, 3),
    "bilinear": resize(2, 2, 3, scale_factor=2.0, mode="bilinear"),
    "bilinear_corners": resize(2, 2, 3, size=(3, 5), mode="bilinear", align_corners=True),
    "bilinear_factor": resize(1, 3, 4, scale_factor=1.7, mode="bilinear"),
    "bilinear_factor_recomputed": resize(
        1, 3, 4, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True
    ),
    "bilinear_down": resize(2, 5, 4, size=(2, 3), mode="bilinear"),
    "bilinear_antialias": resize(1, 6, 5, size=(2, 3), mode="bilinear", antialias=True),
    "trilinear": affine(
        lambda x: F.interpolate(x.unflatten(1, (1, 2)), size=(3, 3, 2), mode="trilinear"), 2, 2, 3
    ),
    "bicubic": resize(1, 3, 3, scale_factor=2.0, mode="bicubic"),
    "bicubic_corners": resize(1, 3, 3, size=(4, 5), mode="bicubic", align_corners=True),
    "bicubic_down": resize(1, 5, 5, size=(3, 2), mode="bicubic"),
    "bicubic_antialias": resize(1, 6, 5, size=(3, 2), mode="bicubic", antialias=True),
    # sums and averages
    "sum_positions": affine(lambda x: x.sum((2, 3)), 3, 2, 3),
    "sum_channels": affine(lambda x: x.sum(1), 3, 2, 3),
    "sum_keepdim": affine(lambda x: x.sum(-1, keepdim=True), 3, 2, 3),
    "sum_all": affine(lambda x: x.sum((1, 2, 3)).unsqueeze(1), 3, 2, 2),
    "mean_tokens": affine(lambda x: x.flatten(2).transpose(1, 2).mean(1), 3, 2, 3),
    "mean_batch_second": affine(lambda x: x.flatten(2).permute(2, 0, 1).mean(0), 3, 2, 3),
    "cumsum": affine(lambda x: x.cumsum(-1), 2, 2, 4),
    "cumsum_channels": affine(lambda x: x.cumsum(1), 4, 2, 2),
    "avg_pool1d": on(nn.AvgPool1d(3, 2, 1), 3, 1, 7, before=lambda x: x.flatten(2)),
    "avg_pool1d_not_counted": on(
        nn.AvgPool1d(3, 2, 1, count_include_pad=False), 3, 1, 7, before=lambda x: x.flatten(2)
    ),
    "avg_pool3d": on(nn.AvgPool3d(2, 1, 1), 2, 2, 3, before=lambda x: x.unflatten(1, (1, 2))),
    "avg_pool3d_ceil": on(
        nn.AvgPool3d(2, 2, ceil_mode=True), 6, 3, 2, before=lambda x: x.unflatten(1, (2, 3))
    ),
    "adaptive_avg_pool1d": on(nn.AdaptiveAvgPool1d(3), 2, 1, 7, before=lambda x: x.flatten(2)),
    "adaptive_avg_pool1d_global": on(nn.AdaptiveAvgPool1d(1), 2, 1, 5, before=lambda x: x.flatten(2)),
    "adaptive_avg_pool3d": on(
        nn.AdaptiveAvgPool3d((2, 1, 2)), 3, 2, 3, before=lambda x: x.unflatten(1, (1, 3))
    ),
    "fold": affine(lambda x: F.fold(x.flatten(2), (3, 4), kernel_size=2), 8, 2, 3),
    "fold_stride_padding": affine(
        lambda x: F.fold(x.flatten(2), (4, 4), kernel_size=3, stride=2, padding=1), 9, 2, 2
    ),
    # linear, convolutions
    "linear_3d": affine(
        lambda x, w, b: F.linear(x.flatten(2).transpose(1, 2), w, b), 4, 2, 2, w=(3, 4), b=(3,)
    ),
    "linear_4d": affine(lambda x, w, b: F.linear(x, w, b), 2, 2, 4, w=(3, 4), b=(3,)),
    "linear_tokens_first": affine(
        lambda x, w, b: F.linear(x.flatten(2).permute(2, 0, 1), w, b).transpose(0, 1), 4, 2, 2, w=(3, 4), b=(3,)
    ),
    "linear_windows_merged": affine(
        lambda x, w, b: F.linear(x.reshape(-1, 4), w, b).reshape(x.shape[0], -1), 3, 2, 4, w=(3, 4), b=(3,)
    ),
    "conv2d_same_dilated": affine(
        lambda x, w, b: F.conv2d(x, w, b, padding="same", dilation=2), 2, 4, 3, w=(3, 2, 2, 3), b=(3,)
    ),
    "conv1d_same": affine(lambda x, w, b: F.conv1d(x.flatten(2), w, b, padding="same"), 2, 1, 5, w=(3, 2, 4), b=(3,)),
    "conv2d_valid": affine(lambda x, w, b: F.conv2d(x, w, b, padding="valid"), 2, 3, 3, w=(3, 2, 2, 2), b=(3,)),
    "addmm": affine(lambda x, w, b: torch.addmm(b, x.flatten(1), w), 2, 2, 2, w=(8, 3), b=(3,)),
    # matmul and einsum with a constant
    "matmul_right": affine(lambda x, c: x @ c, 2, 3, 4, c=(4, 3)),
    "matmul_left": affine(lambda x, c: c @ x, 2, 3, 4, c=(5, 3)),
    "matmul_right_stacked": affine(lambda x, c: x @ c, 2, 3, 4, c=(2, 4, 3)),
    "matmul_left_stacked": affine(lambda x, c: c @ x, 2, 3, 4, c=(1, 2, 5, 3)),
    "matmul_vector": affine(lambda x, c: x @ c, 2, 3, 4, c=(4,)),
    "bmm_left": affine(lambda x, c: torch.bmm(c.expand(x.shape[0], 5, 3), x[:, 0]), 1, 3, 4, c=(1, 5, 3)),
    "bmm_right": affine(lambda x, c: torch.bmm(x[:, 0], c.expand(x.shape[0], 4, 2)), 1, 3, 4, c=(4, 2)),
    "einsum_channels": affine(lambda x, c: torch.einsum("nchw,cd->ndhw", x, c), 3, 2, 2, c=(3, 4)),
    "einsum_constant_first": affine(lambda x, c: torch.einsum("ij,nchi->ncjh", c, x), 2, 2, 3, c=(3, 4)),
    "einsum_two_axes": affine(lambda x, c: torch.einsum("nchw,hwk->nck", x, c), 2, 2, 3, c=(2, 3, 4)),
    "einsum_groups": affine(
        lambda x, c: torch.einsum("ngc,gcd->ngd", x.reshape(x.shape[0], 2, 3), c), 6, 1, 1, c=(2, 3, 4)
    ),
    "einsum_sum": affine(lambda x, c: torch.einsum("nchw,c->nhw", x, c), 3, 2, 2, c=(3,)),
    # times and plus constants
    "neg": affine(lambda x: -x, 2, 2, 2, rules=ELEMENTWISE),
    "times_spread": affine(lambda x, c: x * c, 3, 1, 1, c=(1, 3, 4, 4)),
    "times_spread_left": affine(lambda x, c: c * x, 2, 3, 1, c=(2, 3, 2)),
    "divided_spread": affine(lambda x, c: x / c, 3, 1, 1, c=(1, 3, 4, 4)),
    "divided_by_constant": affine(lambda x, c: x / c, 3, 2, 2, rules=ELEMENTWISE, c=(3, 1, 1)),
    "times_linspace": affine(lambda x: x * torch.linspace(-1, 2, x.shape[-1]), 2, 2, 4, rules=ELEMENTWISE),
    "times_grid": affine(lambda x: x * grid(x), 2, 2, 3, rules=ELEMENTWISE),
    "times_whole_numbers": affine(
        lambda x: (torch.arange(3) - 4)[:, None, None] * x, 3, 2, 2, rules=ELEMENTWISE
    ),
    "plus_positions": affine(lambda x, c: x + c, 3, 2, 2, rules=CONSTANT_RULES, c=(1, 3, 2, 2)),
    "plus_spread": affine(lambda x, c: x + c, 3, 1, 1, rules=CONSTANT_RULES, c=(3, 2, 2)),
    "minus_constant": affine(lambda x, c: x - c, 3, 2, 2, rules=CONSTANT_RULES, c=(3, 1, 1)),
    "constant_minus": affine(lambda x, c: c - x, 3, 2, 2, rules=CONSTANT_RULES, c=(3, 1, 1)),
    "one_minus": affine(lambda x: 1.0 - x, 2, 2, 2, rules=CONSTANT_RULES),
    "plus_number": affine(lambda x: x + 0.75, 2, 2, 2, rules=CONSTANT_RULES),
    "plus_arange": affine(lambda x: x + torch.arange(x.shape[-1]), 2, 2, 3, rules=CONSTANT_RULES),
    "plus_grid": affine(lambda x: x + grid(x), 2, 2, 3, rules=CONSTANT_RULES),
    "plus_zeros": affine(lambda x: torch.zeros(2, 3, dtype=x.dtype) + x, 2, 2, 3, rules=CONSTANT_RULES),
    "plus_zeros_like": affine(lambda x: x + torch.zeros_like(x), 2, 2, 3, rules=CONSTANT_RULES),
    "plus_full": affine(
        lambda x: x + torch.full((3,), 0.5, dtype=x.dtype) * 3, 2, 2, 3, rules=CONSTANT_RULES
    ),
    "plus_computed": affine(lambda x, c: x + (c @ c.T).softmax(-1), 2, 3, 3, rules=CONSTANT_RULES, c=(3, 2)),
    # σ from the data
    "layer_norm": scale_from_data(lambda: nn.LayerNorm(5), rows(1), 2, 2, 5),
    "layer_norm_two_axes": scale_from_data(lambda: nn.LayerNorm((2, 3)), rows(2), 2, 2, 3),
    "layer_norm_all": scale_from_data(lambda: nn.LayerNorm((2, 2, 3)), rows(3), 2, 2, 3),
    "layer_norm_no_affine": scale_from_data(
        lambda: nn.LayerNorm(5, elementwise_affine=False), rows(1), 2, 2, 5
    ),
    "layer_norm_no_bias": scale_from_data(lambda: nn.LayerNorm(5, bias=False), rows(1), 2, 2, 5),
    "layer_norm_tokens": scale_from_data(lambda: nn.LayerNorm(6, eps=0.1), rows(1), 2, 3, 4, view=(4, 6)),
    "rms_norm": scale_from_data(lambda: nn.RMSNorm(5, eps=1e-3), rows(1), 2, 2, 5, centred=False),
    "rms_norm_no_affine": scale_from_data(
        lambda: nn.RMSNorm((2, 3), eps=1e-3, elementwise_affine=False), rows(2), 2, 2, 3, centred=False
    ),
    "group_norm": scale_from_data(
        lambda: nn.GroupNorm(2, 4), lambda index: index.reshape(2, -1), 4, 2, 2
    ),
    "group_norm_one_group": scale_from_data(
        lambda: nn.GroupNorm(1, 3), lambda index: index.reshape(1, -1), 3, 2, 2
    ),
    "group_norm_tokens": scale_from_data(
        lambda: nn.GroupNorm(3, 6), lambda index: index.reshape(3, -1), 6, 1, 3, view=(6, 3)
    ),
    "instance_norm": scale_from_data(
        lambda: nn.InstanceNorm2d(3), lambda index: index.reshape(3, -1), 3, 2, 3
    ),
    "instance_norm_affine": scale_from_data(
        lambda: nn.InstanceNorm2d(3, affine=True), lambda index: index.reshape(3, -1), 3, 2, 3
    ),
}  # fmt: skip
AFFINE_PRODUCT = [(operation, rule) for operation in AFFINE for rule in AFFINE[operation].rules]


def matrix_at(case, op, image):
    matrix = case.matrix(op)
    return matrix if isinstance(matrix, oracle.Affine) else matrix(image)


@cache
def explained(operation):
    try:
        return explain_branches(AFFINE[operation], operation)
    except Exception as error:
        return error


def explain_branches(case, operation):
    """One branch per rule, each on its own channels: rule -> (input, R, relevance, ledger rows, operation)."""
    torch.manual_seed(sum(map(ord, operation)))
    names = {f"b{i:02d}": rule for i, rule in enumerate(case.rules)}
    model = Branches({name: Branch(case) for name in names}, case.shape[0]).double().eval()
    x = images((len(names) * case.shape[0], *case.shape[1:]), whole=False)
    R = torch.randn_like(model(x)).detach()
    composite = lrp.Composite([(lrp.path(f"{name}.op*"), ALL_RULES[rule][0]) for name, rule in names.items()])
    e = lrp.Explainer(model, composite=composite, dtype=torch.float64)(x, target=R)
    torch.testing.assert_close(e.logits, model(x), rtol=1e-12, atol=1e-12)
    ledger, count = e.ledger, len(names)
    cut = zip(names, x.chunk(count, 1), R.chunk(count, 1), e.relevance.chunk(count, 1), strict=True)
    return {
        names[name]: (a, r, relevance, rows_of(ledger, name), getattr(model, name).op)
        for name, a, r, relevance in cut
    }


@pytest.mark.parametrize(
    ("operation", "rule"), AFFINE_PRODUCT, ids=[f"{operation}-{rule}" for operation, rule in AFFINE_PRODUCT]
)
def test_affine(operation, rule):
    found = explained(operation)
    if isinstance(found, Exception):
        raise found
    a, R, relevance, ledger, op = found[rule]
    for i in range(len(a)):
        expected = oracle.distribute(ALL_RULES[rule][1], matrix_at(AFFINE[operation], op, a[i]), a[i], R[i])
        scale = float(R[i].abs().sum())
        agrees(relevance[i].reshape(-1), expected.relevance, f"relevance of image {i}", TINY * scale)
        for term in TERMS:
            agrees(sums(ledger, term)[i], getattr(expected, term), f"{term} of image {i}", scale)
        assert abs(sums(ledger, "unexplained")[i]) <= TOLERANCE * scale


TINY = 1e-7  # where next to nothing is expected: 1e-9 · 1e-7 of what entered


@pytest.mark.parametrize("operation", AFFINE)
def test_default_rule_is_epsilon(operation):
    torch.manual_seed(1)
    case = AFFINE[operation]
    model = Branch(case).double().eval()
    x = images(case.shape, whole=False)
    R = torch.randn_like(model(x)).detach()
    e = explain_alone(model, None, x, R)
    for i in range(len(x)):
        expected = oracle.distribute(oracle.epsilon(), matrix_at(case, model.op, x[i]), x[i], R[i])
        same(e, i, expected, R[i])
    assert e.health.ok, e.health.problems


def same(e, i, expected, R, largest=0.0):
    """One image's relevance and the three terms of the ledger's totals."""
    scale = max(float(np.abs(np.asarray(R)).sum()), largest)
    agrees(e.relevance[i].reshape(-1).numpy(), expected.relevance, f"relevance of image {i}", TINY * scale)
    for term in TERMS:
        agrees(total(e.ledger, term, i), getattr(expected, term), f"{term} of image {i}", scale)


FAMILIES = {
    "conv": ["conv2d_same_dilated", "conv1d_same"],
    "linear": ["linear_3d", "linear_4d", "addmm"],
    "layer_norm": ["layer_norm", "group_norm", "rms_norm", "instance_norm"],
    "pool": ["nearest", "bilinear", "bicubic_corners", "sum_channels", "cumsum", "fold", "avg_pool3d", "mean_tokens"],
    "scale": ["neg", "times_spread", "divided_by_constant", "times_grid"],
    "sum": ["plus_positions", "constant_minus", "plus_arange"],
}  # fmt: skip


@pytest.mark.parametrize(("family", "operation"), [(f, o) for f, os in FAMILIES.items() for o in os])
def test_family_finds_the_operation(family, operation):
    torch.manual_seed(2)
    case = AFFINE[operation]
    model = Branch(case).double().eval()
    x = images(case.shape, whole=False)[:1]
    R = torch.randn_like(model(x)).detach()
    e = explain_alone(model, lrp.Epsilon(0.25), x, R, lrp.family(family))
    same(e, 0, oracle.distribute(oracle.epsilon(0.25), matrix_at(case, model.op, x[0]), x[0], R[0]), R[0])


# ----------------------------------------------------------------------------------------------- products


def whole(x):
    return x


def corner(x):
    return x[:, :, :1, :1]


def channel(x):
    return x[:, :1]


# name: (function of two operands, which of them is the signal, how each is cut from its half of the image)
CHOICES = {
    "sigmoid": (lambda a, b: a * torch.sigmoid(b), 0),
    "sigmoid_left": (lambda a, b: torch.sigmoid(a) * b, 1),
    "hardsigmoid": (lambda a, b: a * F.hardsigmoid(b), 0),
    "softmax": (lambda a, b: a * b.softmax(1), 0),
    "sigmoid_moved": (lambda a, b: a * torch.sigmoid(b).flip(3).reshape(a.shape[0], -1).view_as(a), 0),
    "sigmoid_scaled": (lambda a, b: a * (2 * torch.sigmoid(b) - 0.5), 0),
    "sigmoid_left_scaled": (lambda a, b: (1 - torch.sigmoid(a) / 3) * b, 1),
    "sigmoid_pooled": (lambda a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True)), 0),
    "sigmoid_times_tanh": (lambda a, b: torch.sigmoid(a) * torch.tanh(b), 1),
    "tanh_times_sigmoid": (lambda a, b: torch.tanh(a) * torch.sigmoid(b), 0),
    "sigmoid_times_relu": (lambda a, b: torch.sigmoid(a) * F.relu(b), 1),
    "tanh": (lambda a, b: a * torch.tanh(b), 0),
    "tanh_left": (lambda a, b: torch.tanh(a) * b, 1),
    "erf": (lambda a, b: a * torch.erf(b), 0),
    "erf_shifted": (lambda a, b: a * (1 + torch.erf(b * 0.7)), 0),
    "tanh_times_clamp": (lambda a, b: torch.tanh(a) * b.clamp(-1, 1), 1),
    "clamp": (lambda a, b: a * b.clamp(0, 1), 0),
    "clamp_left": (lambda a, b: a.clamp(-0.5, 1) * b, 1),
    "hardtanh": (lambda a, b: a * F.hardtanh(b), 0),
    "relu6": (lambda a, b: a * F.relu6(b + 3), 0),
    "relu6_over_six": (lambda a, b: a * (F.relu6(b + 3) / 6), 0),
    "clamp_before_broadcast": (lambda a, b: a.clamp(0, 1) * b, 1, whole, corner),
    "broadcast": (lambda a, b: a * b, 0, whole, corner),
    "broadcast_left": (lambda a, b: a * b, 1, channel, whole),
    "broadcast_before_glu": (lambda a, b: F.silu(a) * b, 0, whole, corner),
    "two_sigmoids": (lambda a, b: torch.sigmoid(a) * torch.sigmoid(b), None),
    "two_sigmoids_one_broadcasts": (lambda a, b: torch.sigmoid(a) * torch.sigmoid(b), 0, whole, channel),
    "glu": (lambda a, b: F.glu(torch.cat([a, b], 1), 1), 0),
    "relu_glu": (lambda a, b: F.relu(a) * b, 1),
    "swiglu": (lambda a, b: F.silu(a) * b, 1),
    "swiglu_right": (lambda a, b: a * F.silu(b), 0),
    "geglu": (lambda a, b: F.gelu(a) * b, 1),
    "both_activated": (lambda a, b: F.silu(a) * F.gelu(b), None),
    "undecided": (lambda a, b: a * b, None),
    "undecided_moved": (lambda a, b: a * b.transpose(2, 3).reshape(a.shape), None),
    "quotient": (lambda a, b: a / b, 0),
    "quotient_of_sigmoid": (lambda a, b: torch.sigmoid(a) / b, 0),
    "quotient_broadcast": (lambda a, b: a / b, 0, channel, whole),
    "quotient_by_norm": (lambda a, b: a / b.norm(dim=1, keepdim=True), 0),
}


def choice(name):
    function, signal, *cuts = CHOICES[name]
    first, second = cuts or (whole, whole)
    return function, signal, lambda x: first(halves(x)[0]), lambda x: second(halves(x)[1])


def all_to(signal, a, b, x, R, shape):
    """R [n] of one image, each operand's share exactly, summed back over what was broadcast."""
    relevance = np.zeros(x.numel())
    for k, move in enumerate((a, b)):
        share = 0.5 if signal is None else float(k == signal)
        came_from = oracle.dense(lambda u, move=move: move(u).expand(len(u), *shape), tuple(x.shape))
        relevance += share * came_from.T @ R
    return relevance


def explain_product(name, rule=None):
    torch.manual_seed(3)
    function, signal, a, b = choice(name)
    model = Alone(Call(function), lambda x: (a(x), b(x)))
    x = torch.randn(2, 4, 2, 3).double()
    R = torch.randn_like(model(x))
    return explain_alone(model, rule, x, R, lrp.family("product")), signal, a, b, x, R


@pytest.mark.parametrize("name", CHOICES)
def test_signal_takes_all(name):
    e, signal, a, b, x, R = explain_product(name)
    shape = (2, 2, 3)
    for i in range(2):
        agrees(e.relevance[i].reshape(-1).numpy(), all_to(signal, a, b, x[i], R[i].numpy(), shape), name)
        for term in TERMS:
            assert total(e.ledger, term, i) == 0.0, term
    for k, half in enumerate(halves(e.relevance)):
        assert signal in (None, k) or (half == 0).all()
    assert e.health.ok, e.health.problems


# a broadcast operand that takes all gets its relevance summed back
OVERRIDES = ["sigmoid", "broadcast", "clamp_before_broadcast", "undecided", "swiglu", "tanh_times_sigmoid"]


@pytest.mark.parametrize("rule", [lrp.SignalTakesAll(0), lrp.SignalTakesAll(signal=1), lrp.Halves()], ids=str)
@pytest.mark.parametrize("name", OVERRIDES)
def test_signal_is_told(name, rule):
    e, _, a, b, x, R = explain_product(name, rule)
    signal = rule.signal if isinstance(rule, lrp.SignalTakesAll) else None
    for i in range(2):
        expected = all_to(signal, a, b, x[i], R[i].numpy(), (2, 2, 3))
        agrees(e.relevance[i].reshape(-1).numpy(), expected, name)


PASSING_PRODUCTS = {
    "self": lambda x: x * x,
    "self_moved_alike": lambda x: x.flatten(1) * x.flatten(1),
    "silu": lambda x: x * torch.sigmoid(x),
    "swish_beta": lambda x: x * torch.sigmoid(1.5 * x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish_gate": lambda x: x * (F.relu6(x + 3) / 6),
    "gelu_gate": lambda x: x * (1 + torch.erf(x / 2**0.5)),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "constant_over": lambda x: 1.5 / x,
    "reciprocal": lambda x: x.reciprocal(),
    "softsign": lambda x: x / (1 + x.abs()),
    "normalize": lambda x: F.normalize(x, dim=1),
    "over_its_norm": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "over_its_sum": lambda x: x / x.abs().sum(1, keepdim=True),
    "rms_norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
}


@pytest.mark.parametrize("name", PASSING_PRODUCTS)
def test_product_passes(name):
    """The gate, or the divisor, is made from the image too, and gets nothing."""
    torch.manual_seed(4)
    model = Alone(Call(PASSING_PRODUCTS[name]))
    x = torch.randn(3, 4, 2, 3).double()
    R = torch.randn(3, 24).double()
    e = explain_alone(model, None, x, R)
    for i in range(3):
        agrees(e.relevance[i].reshape(-1).numpy(), R[i].numpy(), name)
        for term in TERMS:
            assert abs(total(e.ledger, term, i)) <= TOLERANCE


def as_matrix(parameter):
    return parameter.flatten(1)


class SqueezeExcite(nn.Module):
    """The gate is computed by two convolutions, and none of it gets relevance."""

    def __init__(self, gate=torch.sigmoid):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 3)
        self.gate = gate

    def gated(self, y):
        return y * self.gate(self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True)))))

    def forward(self, x):
        y = F.relu(self.conv(x))
        return self.head(self.gated(y).mean((2, 3)))

    def trace(self, t):
        y = t.act(F.relu, t.module(self.conv, t.image))
        gated = self.gated(torch.from_numpy(y.array)[None])[0] / torch.from_numpy(y.array + (y.array == 0))
        out = t.mul(y, gated, signal=0)
        return t.linear(t.mean(t.move(lambda a: a.reshape(4, -1), out), 1), self.head.weight, self.head.bias)


class SelectiveKernel(nn.Module):
    """Two branches, weighted by a softmax over the branches."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=2, dilation=2)
        self.fc = nn.Linear(3, 6)

    def weights(self, y):
        return self.fc(y.sum(1).mean((2, 3))).reshape(-1, 2, 3, 1, 1).softmax(1)

    def forward(self, x):
        y = torch.stack([self.one(x), self.two(x)], 1)
        return (y * self.weights(y)).sum(1).flatten(1)

    def trace(self, t):
        y = t.join([t.module(self.one, t.image), t.module(self.two, t.image)], 0, np.stack)
        weights = self.weights(torch.from_numpy(y.array)[None])[0]
        weighted = t.mul(y, weights, signal=0)
        ones, twos = (t.move(lambda a, k=k: a[k], weighted) for k in range(2))
        return t.add(ones, twos)


class LayerScale(nn.Module):
    """x + γ f(x)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gamma = nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x):
        return (x + self.gamma * F.gelu(self.conv(x))).flatten(1)

    def trace(self, t):
        y = t.act(F.gelu, t.module(self.conv, t.image))
        return t.add(t.image, t.scale(y, self.gamma))


class GatedLinear(nn.Module):
    """SwiGLU as in language models: silu(W x) · V x, then a linear; or another activation."""

    def __init__(self, activation=F.silu):
        super().__init__()
        self.w, self.v, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 4)
        self.activation = activation

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.out(self.activation(self.w(x)) * self.v(x)).flatten(1)

    def trace(self, t):
        x = t.move(lambda a: a.reshape(6, -1).T, t.image)
        gate = t.act(self.activation, t.linear(x, self.w.weight, self.w.bias))
        value = t.linear(x, self.v.weight, self.v.bias)
        return t.linear(t.mul(gate, value, signal=1), self.out.weight, self.out.bias)


class PackedGatedLinear(nn.Module):
    """The same with one linear for both, cut in two; F.glu's gate is the second half."""

    def __init__(self):
        super().__init__()
        self.both, self.out = nn.Linear(6, 10), nn.Linear(5, 4)

    def forward(self, x):
        return self.out(F.glu(self.both(x.flatten(2).transpose(1, 2)))).flatten(1)

    def trace(self, t):
        x = t.move(lambda a: a.reshape(6, -1).T, t.image)
        both = t.linear(x, self.both.weight, self.both.bias)
        value, gate = (t.move(lambda a, k=k: np.split(a, 2, -1)[k], both) for k in range(2))
        return t.linear(
            t.mul(value, t.act(torch.sigmoid, gate), signal=0), self.out.weight, self.out.bias
        )


class Handwritten(nn.Module):
    """What a compiler would have written as one function: its pieces, each by its own rule."""

    def __init__(self, name):
        super().__init__()
        self.conv, self.gamma, self.beta = nn.Conv2d(2, 3, 2), nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.name = name

    def forward(self, x):
        return getattr(self, self.name)(self.conv(x), None).flatten(1)

    def trace(self, t):
        return getattr(self, self.name)(t.module(self.conv, t.image), t)

    def gelu(self, y, t):
        if t is None:
            return y * 0.5 * (1.0 + torch.erf(y / 2**0.5))
        return t.mul(t.scale(y, 0.5), 1.0, signal=0)

    def gelu_half_last(self, y, t):
        if t is None:
            return 0.5 * (y * (1.0 + torch.erf(y * 0.5**0.5)))
        gate = 1 + torch.erf(torch.from_numpy(y.array) * 0.5**0.5)
        return t.scale(t.mul(y, gate, signal=0), 0.5)

    def hardswish(self, y, t):
        if t is None:
            return y * F.relu6(y + 3.0) / 6.0
        gate = F.relu6(torch.from_numpy(y.array) + 3)
        return t.scale(t.mul(y, gate, signal=0), 1 / 6)

    def rms_norm(self, y, t):
        """x / σ · γ: the scale is a constant, γ is one by nature."""
        if t is None:
            y = y.permute(0, 2, 3, 1)
            return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gamma
        y = t.move(lambda a: a.transpose(1, 2, 0), y)
        gate = 1 / np.sqrt((y.array**2).mean(-1, keepdims=True) + 1e-6)
        return t.scale(t.mul(y, gate, signal=0), self.gamma)

    def layer_norm(self, y, t):
        """(x − mean) / σ · γ + β: a mean, a difference, a quotient, a product and a sum."""
        if t is None:
            y = y.permute(0, 2, 3, 1)
            mean = y.mean(-1, keepdim=True)
            sigma = torch.sqrt((y - mean).pow(2).mean(-1, keepdim=True) + 1e-6)
            return (y - mean) / sigma * self.gamma + self.beta
        y = t.move(lambda a: a.transpose(1, 2, 0), y)
        centred = t.add(y, t.negated(t.mean(y, 2, keepdims=True)))
        gate = 1 / np.sqrt((centred.array**2).mean(-1, keepdims=True) + 1e-6)
        return t.add(t.scale(t.mul(centred, gate, signal=0), self.gamma), np.broadcast_to(self.beta.detach(), y.array.shape))

    def addcmul(self, y, t):
        if t is None:
            return torch.addcmul(y, y.flip(1), torch.sigmoid(y), value=2)
        product = t.mul(t.move(lambda a: a[::-1], y), 1 / (1 + np.exp(-y.array)), signal=0)
        return t.add(y, t.scale(product, 2))

    def residual_gate(self, y, t):
        """Highway: g x + (1 − g) f(x)."""
        if t is None:
            g = torch.sigmoid(y[:, :1])
            return g * y[:, 1:] + (1 - g) * F.relu(y[:, :2])
        g = 1 / (1 + np.exp(-y.array[:1]))
        kept, new = t.move(lambda a: a[1:], y), t.act(F.relu, t.move(lambda a: a[:2], y))
        return t.add(t.mul(kept, g, signal=0), t.mul(new, 1 - g, signal=0))


HANDWRITTEN = ["gelu", "gelu_half_last", "hardswish", "rms_norm", "layer_norm", "addcmul", "residual_gate"]
NETS = {
    "squeeze_excite": (SqueezeExcite, 2),
    "squeeze_excite_hardsigmoid": (lambda: SqueezeExcite(F.hardsigmoid), 2),
    "squeeze_excite_relu": (lambda: SqueezeExcite(F.relu), 2),  # told by its broadcasting alone
    "selective_kernel": (SelectiveKernel, 2),
    "layer_scale": (LayerScale, 3),
    "swiglu": (GatedLinear, 6),
    "geglu": (lambda: GatedLinear(F.gelu), 6),
    "reglu": (lambda: GatedLinear(F.relu), 6),
    "glu": (PackedGatedLinear, 6),
} | {f"handwritten_{name}": ((lambda name=name: Handwritten(name)), 2) for name in HANDWRITTEN}


@pytest.mark.parametrize("name", NETS)
def test_net_with_products(name):
    torch.manual_seed(5)
    make, channels = NETS[name]
    check_net(make(), torch.randn(2, channels, 3, 4).double(), lambda image: Trace(image))


def check_net(model, x, trace_of, composite=None, **options):
    """A net that knows how to write itself out with a `Trace`."""
    model = model.double().eval()
    with torch.no_grad():
        logits = model(x)
    R = torch.randn_like(logits)
    composite = composite or lrp.Composite([], **options)
    e = lrp.Explainer(model, composite=composite, dtype=torch.float64)(x, target=R)
    for i in range(len(x)):
        t = trace_of(x[i])
        with torch.no_grad():
            out = model.trace(t)
        agrees(out.array.reshape(-1), logits[i].numpy(), "logits")
        expected = t.explain(out, R[i])
        same(e, i, expected, R[i], t.largest())
    assert e.health.ok, e.health.problems
    return e
