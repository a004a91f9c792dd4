"""Affine operations beyond a plain convolutional net; continues the table of `operations.py`.

Their matrices are measured, or, for operations whose scale depends on the data, computed for each image.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helpers import oracle_data
from helpers.operations import Call, Case
from helpers.oracle_data import normalised
from helpers.rules import CONSTANT_RULES, ELEMENTWISE, SOME


def affine(function, *shape, rules=SOME, **parameters):
    """An affine function of [N, *shape]. `parameters`: the shapes of its constants, which are random."""

    def make():
        return Call(function, **{name: torch.randn(size) for name, size in parameters.items()})

    return Case(make, shape, lambda op: oracle_data.measured(op, shape, "Pass" in rules), rules=rules)


def on(module, *shape, before=lambda x: x, after=lambda z: z):
    """A module without parameters, between two functions that only move elements."""
    return affine(lambda x: after(module(before(x))), *shape)


def scale_from_data(make, groups, *shape, view=None, centred=True, rules=ELEMENTWISE):
    """A norm that computes σ from the image, so that every image has another matrix.

    `groups`: flat indices, in the shape of the norm's input -> rows of indices that share a σ.
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
    "bmm_left": affine(lambda x, c: torch.bmm(c.expand(x.shape[0], 5, 3), x.flatten(2)), 3, 2, 2, c=(1, 5, 3)),
    "bmm_right": affine(lambda x, c: torch.bmm(x.flatten(2), c.expand(x.shape[0], 4, 2)), 3, 2, 2, c=(4, 2)),
    "einsum_channels": affine(lambda x, c: torch.einsum("nchw,cd->ndhw", x, c), 3, 2, 2, c=(3, 4)),
    "einsum_constant_first": affine(lambda x, c: torch.einsum("ij,nchi->ncjh", c, x), 2, 2, 3, c=(3, 4)),
    "einsum_two_axes": affine(lambda x, c: torch.einsum("nchw,hwk->nck", x, c), 2, 2, 3, c=(2, 3, 4)),
    "einsum_groups": affine(
        lambda x, c: torch.einsum("ngc,gcd->ngd", x.reshape(x.shape[0], 2, 3), c), 6, 1, 1, c=(2, 3, 4)
    ),
    "einsum_dots": affine(lambda x, c: torch.einsum("n...w,wd->n...d", x, c), 3, 2, 2, c=(2, 4)),
    "einsum_dots_behind": affine(lambda x, c: torch.einsum("nc...,cd->nd...", x, c), 3, 2, 2, c=(3, 4)),
    "einsum_implicit": affine(lambda x, c: torch.einsum("achw,cz", x, c), 3, 2, 2, c=(3, 4)),
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
