"""Averages, sums, upsamplings and maxima: operations that reduce or interpolate without learned weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Matrix, MaxPool
from lrp.engine.graph.capture import Batch
from lrp.engine.graph.ops import Operation, one, one_per_dimension, register
from lrp.engine.structured_weights import Separable, Uniform
from lrp.errors import RuleError


def _uniform(average: Callable[[Any], Any], back: Callable[[Any], Any], own: Any) -> Affine:
    """An operation in which each output gives equal weights to its inputs.

    average: a -> Σ u a; back: its adjoint; own: u of each output, a number or a tensor that broadcasts.
    """

    def scaled(z: Any, w: Uniform) -> Any:
        extra = w.factor if w.power == 1 else w.factor * own ** (w.power - 1)
        return z if isinstance(extra, float) and extra == 1 else z * extra

    return Affine(lambda a, w: scaled(average(a), w), lambda s, w: back(scaled(s, w)), Uniform())


# ---------------------------------------------------------------- over whole dimensions


def _dims(op: Operation, key: str = "dim") -> list[int]:
    rank, given = len(op.input_shape()), op.arguments.get(key)
    listed_ = [given] if isinstance(given, int) else given
    return sorted(d % rank for d in (listed_ if listed_ else range(rank)))


def _kept(s: Any, dims: list[int], keepdim: bool) -> Any:
    """Restore the dimensions that a reduction removed, with size 1."""
    for d in () if keepdim else dims:
        s = s.unsqueeze(d)
    return s


def _within_images(op: Operation) -> bool:
    """Whether images stay separate: the batch dimension is not reduced."""
    return not any(isinstance(op.input_shape()[d], Batch) for d in _dims(op))


@register("mean", "sum", family="pool", when=_within_images, nonnegative="kept", allocates=True)
def _mean(op: Operation) -> Affine:
    shape, dims, keep = op.input_shape(), _dims(op), bool(op.arguments.get("keepdim"))
    n = math.prod([one(shape)[d] for d in dims]) if op.name == "mean" else 1
    size = [one(shape)[d] if d in dims else -1 for d in range(len(shape))]

    def back(s: Any) -> Any:
        s = _kept(s, dims, keep)
        return (s if n == 1 else s / n).expand(size)

    if op.name == "mean":
        return _uniform(lambda a: a.mean(dim=dims, keepdim=keep), back, 1 / n)
    return _uniform(lambda a: a.sum(dim=dims, keepdim=keep), back, 1.0)


@register("logsumexp", family="pool", when=_within_images)
def _logsumexp(op: Operation) -> Matrix:
    """log Σ exp(x) = Σ p x + H: an average with the weights p = softmax(x), treated as constants; the entropy H is its bias."""
    dims, keep = _dims(op), bool(op.arguments.get("keepdim"))

    def at(a: Any) -> Affine:
        norm = a.logsumexp(dim=dims, keepdim=True)
        p = torch.where(a == -torch.inf, 0.0, torch.exp(a - norm))
        finite = torch.where(a == -torch.inf, 0.0, a)
        entropy = (norm - (p * finite).sum(dim=dims, keepdim=True)).sum(dim=[] if keep else dims, keepdim=keep)
        return Affine(
            lambda a, w: (a * w).sum(dim=dims, keepdim=keep), lambda s, w: _kept(s, dims, keep) * w, p, entropy
        )

    return Matrix(at)


@register("cumsum", family="pool", when=_within_images, nonnegative="kept")
def _cumsum(op: Operation) -> Affine:
    (dim,) = _dims(op)
    return _uniform(lambda a: a.cumsum(dim), lambda s: s.flip(dim).cumsum(dim).flip(dim), 1.0)


# ---------------------------------------------------------------- average pools


@register("avg_pool2d", family="pool", nonnegative="kept", allocates=True)
def _avg_pool2d(op: Operation) -> Affine:
    return average_pool(
        op, op["kernel_size"], op["stride"] or op["kernel_size"], op["padding"], op["ceil_mode"],
        op["count_include_pad"], op["divisor_override"],
    )  # fmt: skip


def average_pool(
    op: Operation,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> Affine:
    cuts = (
        one_per_dimension(kernel, 2),
        one_per_dimension(stride, 2),
        one_per_dimension(padding, 2),
        ceil_mode,
    )
    windows = (*cuts, include_pad, divisor)
    height, width = one(op.input_shape())[-2:]
    blank = torch.ones(1, 1, height, width, **op.meta)
    # A window holds as many real inputs as the sum of ones in it; the padding has no share.
    own = F.avg_pool2d(blank, *windows) / F.avg_pool2d(blank, *cuts, True, 1)

    def back(s: Any) -> Any:
        # Only the size of the second argument is used.
        like = s.new_empty((1, 1, 1, 1)).expand(s.shape[0], s.shape[1], height, width)
        return torch.ops.aten.avg_pool2d_backward(s, like, *windows)

    return _uniform(lambda a: F.avg_pool2d(a, *windows), back, own)


@register("avg_pool1d", family="pool", nonnegative="kept")
def _avg_pool1d(op: Operation) -> Affine:
    """As one of two dimensions, the first of size 1."""
    kernel, stride, padding = (
        one_per_dimension(op[key], 1)[0] for key in ("kernel_size", "stride", "padding")
    )
    stride = one_per_dimension(op["stride"] or kernel, 1)[0]
    length = one(op.input_shape())[-1]
    windows = ([1, kernel], [1, stride], [0, padding], op["ceil_mode"], op["count_include_pad"], None)
    blank = torch.ones(1, 1, 1, length, **op.meta)
    own = F.avg_pool2d(blank, *windows) / F.avg_pool2d(blank, *windows[:4], True, 1)

    def back(s: Any) -> Any:
        like = s.new_empty((1, 1, 1, 1)).expand(s.shape[0], s.shape[1], 1, length)
        return torch.ops.aten.avg_pool2d_backward(s.unsqueeze(-2), like, *windows).squeeze(-2)

    return _uniform(lambda a: F.avg_pool2d(a.unsqueeze(-2), *windows).squeeze(-2), back, own.squeeze(-2))


@register("avg_pool3d", family="pool", nonnegative="kept")
def _avg_pool3d(op: Operation) -> Affine:
    kernel = one_per_dimension(op["kernel_size"], 3)
    cuts = (
        kernel,
        one_per_dimension(op["stride"] or kernel, 3),
        one_per_dimension(op["padding"], 3),
        op["ceil_mode"],
    )
    windows = (*cuts, op["count_include_pad"], op["divisor_override"])
    space = one(op.input_shape())[-3:]
    blank = torch.ones(1, 1, *space, **op.meta)
    own = F.avg_pool3d(blank, *windows) / F.avg_pool3d(blank, *cuts, True, 1)

    def back(s: Any) -> Any:
        like = s.new_empty((1, 1, 1, 1, 1)).expand(s.shape[0], s.shape[1], *space)
        return torch.ops.aten.avg_pool3d_backward(s, like, *windows)

    return _uniform(lambda a: F.avg_pool3d(a, *windows), back, own)


# ---------------------------------------------------------------- one matrix per spatial dimension


def _separable(rows: Tensor, columns: Tensor) -> Affine:
    return Affine(lambda a, w: w.forward(a), lambda s, w: w.adjoint(s), Separable(((rows, columns),)))


@register("adaptive_avg_pool2d", family="pool", nonnegative="kept", allocates=True)
def _adaptive_avg_pool2d(op: Operation) -> Affine:
    sides = zip(one(op.input_shape())[-2:], one(op.shape)[-2:], strict=True)
    rows, columns = (_cells(size, out).to(**op.meta) for size, out in sides)
    return _separable(rows, columns)


@register("adaptive_avg_pool1d", family="pool", nonnegative="kept")
def _adaptive_avg_pool1d(op: Operation) -> Affine:
    return _separable_1d(_cells(one(op.input_shape())[-1], one(op.shape)[-1]).to(**op.meta))


def _separable_1d(columns: Tensor) -> Affine:
    """[N, C, L] as an image of one row."""
    weight = Separable(((torch.ones_like(columns[:1, :1]), columns),))

    def forward(a: Any, w: Separable) -> Any:
        return w.forward(a.unsqueeze(-2)).squeeze(-2)

    def adjoint(s: Any, w: Separable) -> Any:
        return w.adjoint(s.unsqueeze(-2)).squeeze(-2)

    return Affine(forward, adjoint, weight)


@register("adaptive_avg_pool3d", family="pool", nonnegative="kept")
def _adaptive_avg_pool3d(op: Operation) -> Affine:
    space, out = one(op.input_shape())[-3:], one(op.shape)[-3:]
    return _separable_3d(op, *(_cells(s, o).to(**op.meta) for s, o in zip(space, out, strict=True)))


def _separable_3d(op: Operation, depth: Tensor, rows: Tensor, columns: Tensor) -> Affine:
    """One matrix for depth, one for height and width together."""
    space, out = one(op.input_shape())[-3:], one(op.shape)[-3:]
    weight = Separable(((depth, torch.kron(rows, columns)),))

    def forward(a: Any, w: Separable) -> Any:
        return w.forward(a.flatten(-2)).unflatten(-1, out[1:])

    def adjoint(s: Any, w: Separable) -> Any:
        return w.adjoint(s.flatten(-2)).unflatten(-1, space[1:])

    return Affine(forward, adjoint, weight)


def _cells(size: int, out: int) -> Tensor:
    """Cell i of `out` averages the inputs from floor(i·in/out) to ceil((i+1)·in/out): [out, size]."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@register(
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    family="pool",
    nonnegative="kept",
)
@register("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", family="pool")
def _upsampling(op: Operation) -> Affine:
    """One matrix along height and one along width: the operation's results for unit vectors."""
    given = {k: v for k, v in op.arguments.items() if k not in ("input", "self")}
    height, width = one(op.input_shape())[-2:]
    target: Any = op.node.target

    def matrix(image: Tensor) -> Tensor:
        return target(image, **given)

    # In float64 whatever the model's dtype: in half precision, the interpolation weights differ.
    unit = {"dtype": torch.float64, "device": op.meta["device"]}
    tall = matrix(torch.eye(height, **unit).view(height, 1, height, 1).expand(-1, -1, -1, width))
    wide = matrix(torch.eye(width, **unit).view(width, 1, 1, width).expand(-1, -1, height, -1))
    return _separable(tall[:, 0, :, 0].t().to(**op.meta), wide[:, 0, 0, :].t().to(**op.meta))


@register("upsample_nearest3d", "upsample_trilinear3d", family="pool", nonnegative="kept")
def _upsampling_3d(op: Operation) -> Affine:
    given = {k: v for k, v in op.arguments.items() if k not in ("input", "self")}
    space: list[int] = one(op.input_shape())[-3:]
    target: Any = op.node.target
    sides = []
    for d in range(3):
        unit = torch.eye(space[d], dtype=torch.float64, device=op.meta["device"])
        shape = [space[d], 1, 1, 1, 1]
        shape[2 + d] = space[d]
        made = target(unit.view(shape).expand(-1, 1, *space).contiguous(), **given)[:, 0]
        made = made.movedim(1 + d, 1)[:, :, 0, 0]
        sides.append(made.t().contiguous().to(**op.meta))
    return _separable_3d(op, *sides)


@register("upsample_nearest1d", "upsample_linear1d", family="pool", nonnegative="kept")
def _upsampling_1d(op: Operation) -> Affine:
    given = {k: v for k, v in op.arguments.items() if k not in ("input", "self")}
    length = one(op.input_shape())[-1]
    target: Any = op.node.target
    unit = torch.eye(length, dtype=torch.float64, device=op.meta["device"]).unsqueeze(1)
    return _separable_1d(target(unit, **given)[:, 0].t().to(**op.meta))


@register("col2im", family="pool", nonnegative="kept")
def _fold(op: Operation) -> Affine:
    """Overlapping windows: each output is the sum of the window elements at its position."""
    options = [one_per_dimension(op[key], 2) for key in ("kernel_size", "dilation", "padding", "stride")]
    size = one_per_dimension(op["output_size"], 2)
    aten = torch.ops.aten
    return _uniform(lambda a: aten.col2im(a, size, *options), lambda s: aten.im2col(s, *options), 1.0)


# ---------------------------------------------------------------- maxima


def _scattered(relevance: Any, indices: Any, space: list[int]) -> Any:
    """Add relevance [N, C, *out] at the indices [N, C, *out] of the maxima in [N, C, *space]."""
    received = relevance.new_zeros(()).expand(relevance.shape[0], relevance.shape[1], math.prod(space))
    # Windows may overlap: the maximum of several windows receives relevance from each.
    received = received.scatter_add(2, indices.flatten(2), relevance.flatten(2))
    return received.unflatten(2, space)


@register("max_pool2d", family="maxpool", nonnegative="kept", allocates=True)
def _max_pool2d(op: Operation) -> MaxPool:
    kernel = one_per_dimension(op["kernel_size"], 2)
    stride = one_per_dimension(op["stride"] or kernel, 2)
    padding, dilation = one_per_dimension(op["padding"], 2), one_per_dimension(op["dilation"], 2)
    space = one(op.input_shape())[-2:]

    def average(window: tuple[int, int] | None) -> Affine:
        if window:
            return average_pool(op, window[0], window[1], 0, False, True, None)
        if any(d != 1 for d in dilation):
            raise RuleError(
                f"Proportional at {op}: a dilated max pool has no average pool; use WinnerTakesAll()."
            )
        return average_pool(op, kernel, stride, padding, op["ceil_mode"], True, None)

    return MaxPool(lambda r, a, z: _scattered(r, z[1], space), average)


def _no_average(op: Operation) -> Callable[[Any], Affine]:
    def average(window: Any) -> Affine:
        raise RuleError(f"Proportional at {op}: it has no average pool of its own; use WinnerTakesAll().")

    return average


@register("max_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", family="maxpool", nonnegative="kept")
def _indexed_max_pool(op: Operation) -> MaxPool:
    space = one(op.input_shape())[2:]
    return MaxPool(lambda r, a, z: _scattered(r, z[1], space), _no_average(op))


@register(
    "amax",
    "max",
    "amin",
    "min",
    family="maxpool",
    when=lambda op: len(op.data) == 1 and _within_images(op),
    nonnegative="kept",
)
def _max_over_dims(op: Operation) -> MaxPool:
    """The first maximum along the dimensions receives all relevance; of a minimum, the first minimum."""
    smallest = op.name in ("amin", "min")
    dims, keep, shape = _dims(op), bool(op.arguments.get("keepdim")), op.input_shape()
    rank, last = len(shape), [len(shape) - len(_dims(op)) + i for i in range(len(_dims(op)))]
    order = [d for d in range(rank) if d not in dims] + dims
    inverse = [order.index(d) for d in range(rank)]
    inner = [one(shape)[d] for d in dims]

    def route(r: Any, a: Any, z: Any) -> Any:
        flat = a.permute(order).flatten(last[0])  # [..., all of the dims]
        winner = (flat.argmin if smallest else flat.argmax)(dim=-1, keepdim=True)
        r = _kept(r, dims, keep).permute(order).flatten(last[0])
        taken = torch.zeros_like(flat).scatter(-1, winner, r)
        return taken.unflatten(-1, inner).permute(inverse)

    def average(window: Any) -> Affine:
        n = math.prod(inner)
        size = [one(shape)[d] if d in dims else -1 for d in range(rank)]
        return _uniform(
            lambda a: a.mean(dim=dims, keepdim=keep), lambda s: (_kept(s, dims, keep) / n).expand(size), 1 / n
        )

    return MaxPool(route, average)
