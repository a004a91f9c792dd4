"""Movement: operations whose outputs are elements of their inputs; relevance goes back to the input element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from lrp.engine.affine import total
from lrp.engine.graph.algebra import Movement
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.registry import register
from lrp.engine.graph.shapes import (
    Batch,
    Shape,
    shape_for_reshape,
    shape_of_one_image,
    sizes_per_dimension,
    sum_to_shape,
)


def _first_data(op: Operation) -> bool:
    """Whether the tensor that is moved is data, and all other arguments are constants."""
    return len(op.data) == 1 and op.is_data(next(iter(op.arguments.values())))


# ---------------------------------------------------------------- another view of the same elements


@register(
    "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "reshape_as",
    "ravel", family="movement", nonnegative="kept",
)  # fmt: skip
def _reshape(op: Operation) -> Movement:
    back = shape_for_reshape(op.input_shape())
    return Movement(lambda r: [r[0].reshape(back)])


@register("permute", family="movement", nonnegative="kept")
def _permute(op: Operation) -> Movement:
    dims = [d % len(op.shape) for d in op["dims"]]
    inverse = [dims.index(d) for d in range(len(dims))]
    return Movement(lambda r: [r[0].permute(inverse)])


@register("transpose", "swapaxes", "swapdims", family="movement", nonnegative="kept")
def _transpose(op: Operation) -> Movement:
    d0, d1 = list(op.arguments.values())[1:3]
    return Movement(lambda r: [r[0].transpose(d0, d1)])


@register("t", "mT", "mH", "numpy_T", "matrix_H", "adjoint", family="movement", nonnegative="kept")
def _last_two(op: Operation) -> Movement:
    n = len(op.shape)
    inverse = list(range(n))[::-1] if op.name == "numpy_T" else [*range(n - 2), n - 1, n - 2]
    return Movement(lambda r: [r[0].permute(inverse)])


@register("movedim", "moveaxis", family="movement", nonnegative="kept")
def _movedim(op: Operation) -> Movement:
    source, destination = list(op.arguments.values())[1:3]
    return Movement(lambda r: [r[0].movedim(destination, source)])


@register("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", family="movement", nonnegative="kept")
def _shuffle(op: Operation) -> Movement:
    if op.name == "pixel_shuffle":
        return Movement(lambda r: [F.pixel_unshuffle(r[0], op["upscale_factor"])])
    if op.name == "pixel_unshuffle":
        return Movement(lambda r: [F.pixel_shuffle(r[0], op["downscale_factor"])])
    channels, groups = shape_of_one_image(op.shape)[1], op["groups"]
    return Movement(lambda r: [r[0].unflatten(1, (channels // groups, groups)).transpose(1, 2).flatten(1, 2)])


@register("roll", family="movement", nonnegative="kept")
def _roll(op: Operation) -> Movement:
    shifts, dims = sizes_per_dimension(op["shifts"], 1), sizes_per_dimension(op["dims"], 1)
    back = [-s for s in shifts]
    return Movement(lambda r: [r[0].roll(back, dims) if dims else r[0].roll(back)])


@register("flip", "fliplr", "flipud", "rot90", family="movement", nonnegative="kept")
def _flip(op: Operation) -> Movement:
    if op.name == "rot90":
        return Movement(lambda r: [r[0].rot90(-op["k"], op["dims"])])
    dims = op["dims"] if op.name == "flip" else [1] if op.name == "fliplr" else [0]
    return Movement(lambda r: [r[0].flip(dims)])


# ---------------------------------------------------------------- parts


@register("slice", "narrow", family="movement", nonnegative="kept", when=lambda op: _window(op) is not None)
def _slice(op: Operation) -> Movement:
    shape, dim = op.input_shape(), op["dim"] % len(op.shape)
    window = _window(op)
    assert window is not None
    start, taken, length, step = window
    images = isinstance(shape[dim], Batch)  # then these numbers count batches

    def back(r: list[Any]) -> list[Any]:
        received = r[0]
        if images and start == 0 and taken == length:
            return [received]
        if step > 1:  # spread: one element, then step - 1 zeros
            received = F.pad(received.unsqueeze(dim + 1), _pads(len(shape) + 1, dim + 1, 0, step - 1))
            received = received.flatten(dim, dim + 1)
        unit = received.shape[dim] // taken if images else 1
        after = length - start - taken * step
        return [F.pad(received, _pads(len(shape), dim, start * unit, after * unit))]

    return Movement(back)


def _window(op: Operation) -> tuple[int, int, int, int] | None:
    """(start, number taken, length, step) of a slice; along a dimension of images in multiples of their number.

    None: it takes some of the images, or their number decides what it takes of each.
    """
    dim = op["dim"] % len(op.shape)
    length, taken = op.input_shape()[dim], op.shape[dim]
    start = op["start"] or 0
    step = op["step"] if op.name == "slice" else 1
    if isinstance(start, fx.Node):
        start = start.meta.get("size")
    if isinstance(length, Batch):
        first = start.times if isinstance(start, Batch) else 0 if start == 0 else None
        if first is None or step != 1 or not isinstance(taken, Batch):
            return None
        return first + length.times * (first < 0), taken.times, length.times, 1
    if not isinstance(start, int) or isinstance(taken, Batch):
        return None
    start = max(start + length, 0) if start < 0 else min(start, length)
    return start, taken, length, step


@register(
    "select", family="movement", nonnegative="kept", when=lambda op: isinstance(op.arguments["index"], int)
)
def _select(op: Operation) -> Movement:
    shape = op.input_shape()
    dim, length = op["dim"] % len(shape), shape_of_one_image(shape)[op["dim"] % len(shape)]
    index = op["index"] % length
    return Movement(lambda r: [F.pad(r[0].unsqueeze(dim), _pads(len(shape), dim, index, length - index - 1))])


def _pads(dims: int, dim: int, before: int, after: int) -> list[int]:
    """`F.pad`'s list for one dimension; negative cuts away."""
    return [0, 0] * (dims - 1 - dim) + [before, after]


@register(
    "split",
    "split_with_sizes",
    "chunk",
    "unbind",
    "unsafe_chunk",
    "unsafe_split",
    "tensor_split",
    family="movement",
    nonnegative="kept",
)
def _split(op: Operation) -> Movement:
    shapes: list[Shape] = op.node.meta["shapes"]
    dim = op["dim"] % len(op.input_shape())
    stacked = op.name == "unbind"

    def back(r: list[Any]) -> list[Any]:
        have = next(v for v in r if v is not None)
        parts = []
        for index, shape in enumerate(shapes):
            part = r[index] if index < len(r) else None
            if part is None:  # an unused output
                size: list[Any] = [have.shape[i] if isinstance(s, Batch) else s for i, s in enumerate(shape)]
                part = have.new_zeros(size)
            parts.append(part)
        return [torch.stack(parts, dim) if stacked else torch.cat(parts, dim)]

    return Movement(back)


@register("diagonal", family="movement", nonnegative="kept", when=_first_data)
def _diagonal(op: Operation) -> Movement:
    return _by_positions(op)


# ---------------------------------------------------------------- copies


@register("expand", "expand_as", "broadcast_to", family="movement", nonnegative="kept")
def _expand(op: Operation) -> Movement:
    shape = op.input_shape()
    return Movement(lambda r: [sum_to_shape(r[0], op.shape, shape)])


@register("repeat", "tile", family="movement", nonnegative="kept")
def _repeat(op: Operation) -> Movement:
    """Each dimension is viewed as two: the copies, and what is copied."""
    times = list(next(v for k, v in op.arguments.items() if k != "self"))
    shape = op.input_shape()
    times = [1] * (len(op.shape) - len(times)) + times
    wanted: Shape = (*[1] * (len(times) - len(shape)), *shape)
    apart: list[int] = []
    for n, size in zip(times, wanted, strict=True):
        apart += [n, -1 if isinstance(size, Batch) else size]
    copies = list(range(0, 2 * len(times), 2))
    return Movement(lambda r: [r[0].reshape(apart).sum(dim=copies).reshape(shape_for_reshape(shape))])


def _whole_repeats(op: Operation) -> bool:
    return _first_data(op) and isinstance(op.arguments["repeats"], int) and op.arguments["dim"] is not None


@register("repeat_interleave", family="movement", nonnegative="kept", when=_whole_repeats)
def _repeat_interleave(op: Operation) -> Movement:
    dim, n = op["dim"] % len(op.shape), op["repeats"]
    return Movement(lambda r: [r[0].unflatten(dim, (-1, n)).sum(dim + 1)])


@register("im2col", family="movement", nonnegative="kept")
def _unfold(op: Operation) -> Movement:
    options = [sizes_per_dimension(op[key], 2) for key in ("kernel_size", "dilation", "padding", "stride")]
    space = shape_of_one_image(op.input_shape())[-2:]

    def back(r: list[Any]) -> list[Any]:
        return [torch.ops.aten.col2im(r[0], space, *options)]

    # Windows over the padding read zeros; their relevance belongs to a constant.
    blank = torch.ones(1, *shape_of_one_image(op.input_shape())[1:], **op.meta)
    outside = 1 - torch.ops.aten.im2col(blank, *options)
    return Movement(back, (lambda r: total(r[0] * outside)) if any(options[2]) else None)


# ---------------------------------------------------------------- joined with others


def pieces(
    op: Operation, values: list[Any], take: Callable[..., Any]
) -> tuple[Callable[..., list[Any]], Callable[..., Any]]:
    """`back` and `constant` of a `Movement` with several inputs; `take(r, i)` extracts the i-th input's part of r.

    What the movement reads besides (`Movement.reads`) is handed on to `take`.
    """
    fixed = [i for i, value in enumerate(values) if not op.is_data(value)]

    def back(r: list[Any], *read: Any) -> list[Any]:
        received: list[Any] = [None] * len(op.data)
        for i, value in enumerate(values):  # the same tensor may occur twice
            if i not in fixed:
                index, part = op.data.index(value), take(r[0], i, *read)
                received[index] = part if received[index] is None else received[index] + part
        return received

    return back, lambda r, *read: sum((total(take(r[0], i, *read)) for i in fixed), start=0.0)


@register("cat", "concat", "concatenate", family="movement", nonnegative="kept", allocates=True)
def _cat(op: Operation) -> Movement:
    values = op.arguments["tensors"]
    dim = op["dim"] % len(op.shape)
    lengths = [shape_of_one_image(value.meta["shape"])[dim] for value in values]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    images = isinstance(op.shape[dim], Batch)  # then the lengths count batches

    def take(r: Any, i: int) -> Any:
        unit = r.shape[dim] // sum(lengths) if images else 1
        return r.narrow(dim, starts[i] * unit, lengths[i] * unit)

    return Movement(*pieces(op, values, take))


@register("stack", family="movement", nonnegative="kept")
def _stack(op: Operation) -> Movement:
    dim = op["dim"] % len(op.shape)
    return Movement(*pieces(op, op.arguments["tensors"], lambda r, i: r.select(dim, i)))


@register("slice_scatter", "select_scatter", family="movement")
def _scatter(op: Operation) -> Movement:
    """`self`, with a part of it replaced by `src`."""
    a = op.arguments
    shape, dim = op.shape, a["dim"] % len(op.shape)
    length = shape_of_one_image(shape)[dim]
    if op.name == "select_scatter":
        window = slice(a["index"] % length, a["index"] % length + 1)
    else:
        window = slice(a["start"], a["end"], a["step"])
    inside = torch.zeros(length, dtype=torch.bool)
    inside[window] = True
    mask = inside.to(op.meta["device"]).reshape([-1] + [1] * (len(shape) - 1 - dim))
    start, end, step = window.indices(length)

    def take(r: Any, i: int) -> Any:
        if i == 0:
            return torch.where(mask, 0.0, r)
        if op.name == "select_scatter":
            return r.select(dim, start)
        return torch.ops.aten.slice.Tensor(r, dim, start, end, step)

    whole = isinstance(shape[dim], Batch)
    if whole:  # an assignment to x[:] replaces everything
        return Movement(*pieces(op, [a["self"], a["src"]], lambda r, i: torch.zeros_like(r) if i == 0 else r))
    return Movement(*pieces(op, [a["self"], a["src"]], take))


@register("copy", family="movement")
def _copy(op: Operation) -> Movement:
    """`src` replaces all of `self`."""
    source = op.arguments["src"]
    shape = source.meta["shape"]

    def back(r: list[Any]) -> list[Any]:
        return [
            sum_to_shape(r[0], op.shape, shape) if node is source else torch.zeros_like(r[0])
            for node in op.data
        ]

    return Movement(back, lambda r: 0.0 if op.is_data(source) else total(r[0]))


@register("fill", "zero", family="movement", when=_first_data)
def _filled(op: Operation) -> Movement:
    """A number replaces every element: none of the data remains."""
    return Movement(lambda r: [torch.zeros_like(r[0])], lambda r: total(r[0]))


@register("tril", "triu", family="movement")
def _triangle(op: Operation) -> Movement:
    target: Any = getattr(torch, op.name)
    k = op["diagonal"]
    return Movement(lambda r: [target(r[0], k)], lambda r: total(r[0] - target(r[0], k)))


# ---------------------------------------------------------------- pads


@register("constant_pad_nd", "pad", family="movement", nonnegative="kept", numbers=("value",))
def _pad(op: Operation) -> Movement:
    pads = list(op["pad"])
    if op.arguments.get("mode", "constant") != "constant":
        return _copying_pad(op, pads)

    def back(r: list[Any]) -> list[Any]:
        return [F.pad(r[0], [-p for p in pads])]

    return Movement(back, lambda r: total(r[0] - F.pad(back(r)[0], pads)))


@register(
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", family="movement", nonnegative="kept",
)  # fmt: skip
def _named_pad(op: Operation) -> Movement:
    mode = "reflect" if op.name.startswith("reflection") else "replicate"
    return _copying_pad(op, list(op["padding"]), mode)


def _copying_pad(op: Operation, pads: list[int], mode: str | None = None) -> Movement:
    """Reflected, replicated and circular pads: each copy's relevance is added at its source."""
    shape, n = op.input_shape(), len(pads) // 2
    inner = shape_of_one_image(shape)[len(shape) - n :]
    positions = torch.arange(math.prod(inner), dtype=torch.float64).reshape(1, 1, *inner)
    source = F.pad(positions, pads, mode=mode or op["mode"]).flatten().long().to(op.node.meta["device"])
    lead = len(shape) - n

    def back(r: list[Any]) -> list[Any]:
        flat = r[0].flatten(lead)
        size = [flat.shape[d] for d in range(lead)]
        received = flat.new_zeros(()).expand(*size, math.prod(inner)).index_add(-1, source, flat)
        return [received.unflatten(-1, inner)]

    return Movement(back)


# ---------------------------------------------------------------- selected by constant indices


def _indices_known(op: Operation) -> bool:
    """Whether the indices are constants, and none selects among the images."""
    if not _first_data(op) or not isinstance(op.shape[0], Batch) or op.shape[0] != op.input_shape()[0]:
        return False
    if op.name in ("index", "_unsafe_index"):
        given = op.arguments["indices"]
        return given[0] is None and all(v is None or _known(v) for v in given)
    return op["dim"] % len(op.input_shape()) > 0 and op.is_constant("index")


def _known(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


@register("index", "_unsafe_index", "index_select", "unfold", family="movement", nonnegative="kept",
          when=lambda op: _first_data(op) if op.name == "unfold" else _indices_known(op))  # fmt: skip
def _selected(op: Operation) -> Movement:
    return _by_positions(op)


def _by_positions(op: Operation) -> Movement:
    """Any selection of elements within an image: it runs once, on the positions of the elements."""
    shape = op.input_shape()
    inner = shape_of_one_image(shape)[1:]
    positions = torch.arange(math.prod(inner), device=op.meta["device"]).reshape(1, *inner)
    given = {name: op[name] for name in list(op.arguments)[1:]}
    target: Any = op.node.target
    source = target(positions, **given).flatten()
    back = shape_for_reshape(shape)

    def moved(r: list[Any]) -> list[Any]:
        flat = r[0].flatten(1)
        received = flat.new_zeros(()).expand(flat.shape[0], math.prod(inner)).index_add(1, source, flat)
        return [received.reshape(back)]

    return Movement(moved)
