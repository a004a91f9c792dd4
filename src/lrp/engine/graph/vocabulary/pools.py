"""Averages, sums, upsamplings and maxima: operations that reduce or interpolate without learned weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Matrix, MaxPool
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.registry import register
from lrp.engine.graph.shapes import Batch, shape_of_one_image, sizes_per_dimension
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
    n = math.prod([shape_of_one_image(shape)[d] for d in dims]) if op.name == "mean" else 1
    size = [shape_of_one_image(shape)[d] if d in dims else -1 for d in range(len(shape))]

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
        entropy = norm - (p * finite).sum(dim=dims, keepdim=True)
        entropy = entropy if keep else entropy.sum(dim=dims)
        return Affine(
            lambda a, w: (a * w).sum(dim=dims, keepdim=keep),
            lambda s, w: _kept(s, dims, keep) * w,
            p,
            entropy,
        )

    return Matrix(at)


@register("cumsum", family="pool", when=_within_images, nonnegative="kept")
def _cumsum(op: Operation) -> Affine:
    (dim,) = _dims(op)
    return _uniform(lambda a: a.cumsum(dim), lambda s: s.flip(dim).cumsum(dim).flip(dim), 1.0)


# ---------------------------------------------------------------- average pools


def _dimensions(op: Operation) -> int:
    """Of the windows: the digit in names such as "avg_pool3d"."""
    return next(int(letter) for letter in op.name if letter.isdigit())


@register("avg_pool1d", "avg_pool2d", "avg_pool3d", family="pool", nonnegative="kept", allocates=True)
def _avg_pool(op: Operation) -> Affine:
    return average_pool(
        op, op["kernel_size"], op["stride"] or op["kernel_size"], op["padding"], op["ceil_mode"],
        op["count_include_pad"], op.arguments.get("divisor_override"),
    )  # fmt: skip


POOLS: dict[int, tuple[Any, Any]] = {
    2: (F.avg_pool2d, torch.ops.aten.avg_pool2d_backward),
    3: (F.avg_pool3d, torch.ops.aten.avg_pool3d_backward),
}


def average_pool(
    op: Operation,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> Affine:
    """The average over windows of the last one, two or three dimensions; one as two, the first of size 1."""
    n = _dimensions(op)
    row = n == 1
    kernel, stride, padding = ([fill] * row + sizes_per_dimension(given, n)
                               for given, fill in ((kernel, 1), (stride, 1), (padding, 0)))  # fmt: skip
    cuts = (kernel, stride, padding, ceil_mode)
    windows = (*cuts, include_pad, divisor)
    lead, space = len(op.shape) - n, [1] * row + shape_of_one_image(op.input_shape())[-n:]
    pool, backward = POOLS[len(space)]
    blank = torch.ones(1, 1, *space, **op.meta)
    # A window holds as many real inputs as the sum of ones in it; the padding has no share.
    own = pool(blank, *windows) / pool(blank, *cuts, True, 1)

    def forward(a: Any) -> Any:
        return pool(a.unsqueeze(-2), *windows).squeeze(-2) if row else pool(a, *windows)

    def back(s: Any) -> Any:
        s = s.unsqueeze(-2) if row else s
        # Only the size of the second argument is used.
        like = s.new_empty(()).expand(*[s.shape[d] for d in range(lead)], *space)
        made = backward(s, like, *windows)
        return made.squeeze(-2) if row else made

    return _uniform(
        forward,
        back,
        (own.squeeze(-2) if row else own).reshape(*[1] * lead, *shape_of_one_image(op.shape)[lead:]),
    )


# ---------------------------------------------------------------- one matrix per spatial dimension


def _separable(matrices: Iterable[Tensor]) -> Affine:
    return Affine(lambda a, w: w.forward(a), lambda s, w: w.adjoint(s), Separable((tuple(matrices),)))


@register(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", family="pool", nonnegative="kept",
    allocates=True,
)  # fmt: skip
def _adaptive_avg_pool(op: Operation) -> Affine:
    return _cell_averages(op)


def _cell_averages(op: Operation) -> Affine:
    sides = zip(*op.space(-_dimensions(op)), strict=True)
    return _separable(_cells(size, out).to(**op.meta) for size, out in sides)


def _cells(size: int, out: int) -> Tensor:
    """Cell i of `out` averages the inputs from floor(i·in/out) to ceil((i+1)·in/out): [out, size]."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@register(
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", family="pool", nonnegative="kept",
)  # fmt: skip
@register("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", family="pool")
def _upsampling(op: Operation) -> Affine:
    return _separable(_interpolation(op, d).to(**op.meta) for d in range(_dimensions(op)))


ROUNDING = 1e-12  # antialiasing leaves weights of 1e-17, which are no connections


def _interpolation(op: Operation, d: int) -> Tensor:
    """The operation along its d-th spatial dimension: its results for unit vectors, [out, in].

    In float64 whatever the model's dtype: in half precision, the interpolation weights differ.
    """
    n = _dimensions(op)
    size, out = (side[d] for side in op.space(-n))
    given = op.arguments.get("scale_factors") or [
        v for k, v in op.arguments.items() if k.startswith("scales")
    ]
    scales = [given[d] if given and i == d else None for i in range(n)]
    align = [op["align_corners"]] if "align_corners" in op.arguments else []
    units = torch.eye(size, dtype=torch.float64, device=op.meta["device"])
    # The other sides are 2: torch's antialiasing is wrong where a side is 1.
    others = [2] * n
    shape, wanted = ([*others[:d], own, *others[d + 1 :]] for own in (size, out))
    lines = units.reshape(size, 1, *[size if i == d else 1 for i in range(n)]).expand(-1, -1, *shape)
    made = getattr(torch.ops.aten, op.name).default(lines.contiguous(), wanted, *align, *scales)
    weights = made.movedim(2 + d, 1).flatten(2)[:, :, 0].t()
    return torch.where(weights.abs() < ROUNDING, 0.0, weights)


@register("col2im", family="pool", nonnegative="kept")
def _fold(op: Operation) -> Affine:
    """Overlapping windows: each output is the sum of the window elements at its position."""
    options = [sizes_per_dimension(op[key], 2) for key in ("kernel_size", "dilation", "padding", "stride")]
    size = sizes_per_dimension(op["output_size"], 2)
    aten = torch.ops.aten
    return _uniform(lambda a: aten.col2im(a, size, *options), lambda s: aten.im2col(s, *options), 1.0)


# ---------------------------------------------------------------- maxima


def _of_windows(op: Operation, own: Callable[[], Affine]) -> MaxPool:
    """A max pool that also returns the flat indices of the maxima; `own` makes the average over its windows."""
    n = _dimensions(op)
    lead, space = len(op.shape) - n, shape_of_one_image(op.input_shape())[-n:]

    def route(r: Any, a: Any, z: Any) -> Any:
        sizes = [r.shape[d] for d in range(lead)]
        received = r.new_zeros(()).expand(*sizes, math.prod(space))
        # Windows may overlap: the maximum of several windows receives relevance from each.
        received = received.scatter_add(-1, z[1].flatten(lead), r.flatten(lead))
        return received.unflatten(-1, space)

    def average(window: tuple[int, int] | None) -> Affine:
        return average_pool(op, window[0], window[1], 0, False, True, None) if window else own()

    return MaxPool(route, average)


@register("max_pool1d", "max_pool2d", "max_pool3d", family="maxpool", nonnegative="kept", allocates=True)
def _max_pool(op: Operation) -> MaxPool:
    def own() -> Affine:
        if any(d != 1 for d in sizes_per_dimension(op["dilation"], 1)):
            raise RuleError(
                f"Proportional at {op}: a dilated max pool has no average pool; use WinnerTakesAll()."
            )
        stride = op["stride"] or op["kernel_size"]
        return average_pool(op, op["kernel_size"], stride, op["padding"], op["ceil_mode"], True, None)

    return _of_windows(op, own)


@register(
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", family="maxpool", nonnegative="kept",
    allocates=True,
)  # fmt: skip
def _adaptive_max_pool(op: Operation) -> MaxPool:
    return _of_windows(op, lambda: _cell_averages(op))


@register(
    "fractional_max_pool2d", "fractional_max_pool3d", family="maxpool", nonnegative="kept", allocates=True
)
def _fractional_max_pool(op: Operation) -> MaxPool:
    def own() -> Affine:
        raise RuleError(
            f"Proportional at {op}: a fractional max pool has no average pool; use WinnerTakesAll()."
        )

    return _of_windows(op, own)


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
    inner = [shape_of_one_image(shape)[d] for d in dims]

    def route(r: Any, a: Any, z: Any) -> Any:
        flat = a.permute(order).flatten(last[0])  # [..., all of the dims]
        winner = (flat.argmin if smallest else flat.argmax)(dim=-1, keepdim=True)
        r = _kept(r, dims, keep).permute(order).flatten(last[0])
        taken = torch.zeros_like(flat).scatter(-1, winner, r)
        return taken.unflatten(-1, inner).permute(inverse)

    def average(window: Any) -> Affine:
        n = math.prod(inner)
        size = [shape_of_one_image(shape)[d] if d in dims else -1 for d in range(rank)]
        return _uniform(
            lambda a: a.mean(dim=dims, keepdim=keep), lambda s: (_kept(s, dims, keep) / n).expand(size), 1 / n
        )

    return MaxPool(route, average)
