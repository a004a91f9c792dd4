"""Elements chosen by masks, indices or grids, often computed from the image: the choice is a constant, relevance follows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Matrix, Movement
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.registry import register
from lrp.engine.graph.shapes import shape_for_reshape, sum_to_shape
from lrp.engine.graph.vocabulary.movement import pieces
from lrp.engine.structured_weights import NonNegative


def _computed(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op != "get_attr"


# ---------------------------------------------------------------- masks


def _mask(op: Operation) -> Any:
    return op.arguments["condition" if op.name == "where" else "mask"]


@register("where", "masked_fill", family="movement", when=lambda op: isinstance(_mask(op), fx.Node))
def _where(op: Operation) -> Movement:
    turned = op.name == "masked_fill"
    values = [op.arguments["self"], op.arguments["value" if turned else "other"]]

    def take(r: Any, i: int, mask: Any) -> Any:
        kept = (i == 0) != turned
        part = torch.where(mask, r, 0.0) if kept else torch.where(mask, 0.0, r)
        return sum_to_shape(part, op.shape, values[i].meta["shape"]) if op.is_data(values[i]) else part

    return Movement(*pieces(op, values, take), reads=[_mask(op)])


# ---------------------------------------------------------------- indices


def _source_is_data(op: Operation) -> bool:
    return op.data == [next(iter(op.arguments.values()))]


def _index_computed(op: Operation) -> bool:
    return _source_is_data(op) and _computed(op.arguments["index"])


@register("gather", family="movement", when=lambda op: _source_is_data(op))
def _gather(op: Operation) -> Movement:
    dim = op["dim"]
    return Movement(
        lambda r, a, index: [torch.zeros_like(a).scatter_add(dim, index, r[0])],
        reads=[op.data[0], op.arguments["index"]],
    )


@register("take_along_dim", family="movement", when=lambda op: _source_is_data(op) and op["dim"] is not None)
def _take_along(op: Operation) -> Movement:
    dim = op["dim"]

    def back(r: list[Any], a: Any, index: Any) -> list[Any]:
        blank = torch.zeros_like(a)  # of the shape that both broadcast to, but for `dim`
        other = torch.broadcast_tensors(blank.select(dim, 0), r[0].select(dim, 0))[0].unsqueeze(dim)
        size = [-1] * len(op.shape)
        size[dim] = a.shape[dim]
        wide = other.expand(size).clone()
        received = wide.scatter_add(dim, index.expand(r[0].shape), r[0])
        return [sum_to_shape(received, _with(op.shape, dim, op.input_shape()[dim]), op.input_shape())]

    return Movement(back, reads=[op.data[0], op.arguments["indices"]])


def _with(shape: Any, dim: int, size: Any) -> Any:
    changed = list(shape)
    changed[dim] = size
    return tuple(changed)


@register("index_select", family="movement", when=_index_computed)
def _index_select(op: Operation) -> Movement:
    dim = op["dim"]
    return Movement(
        lambda r, a, index: [torch.zeros_like(a).index_add(dim, index, r[0])],
        reads=[op.data[0], op.arguments["index"]],
    )


def _tensors_computed(op: Operation) -> bool:
    given = [v for v in op.arguments["indices"] if v is not None]
    return op.data == [op.arguments["self"]] and any(map(_computed, given))


@register("index", "_unsafe_index", family="movement", when=_tensors_computed)
def _index(op: Operation) -> Movement:
    given = op.arguments["indices"]

    def back(r: list[Any], a: Any, *tensors: Any) -> list[Any]:
        remaining = iter(tensors)
        indices = [None if v is None else next(remaining) for v in given]
        return [torch.ops.aten.index_put.default(torch.zeros_like(a), indices, r[0], True)]

    return Movement(back, reads=[op.data[0], *(v for v in given if v is not None)])


@register(
    "topk", "sort", "kthvalue", "median", "cummax", "cummin", family="movement",
    when=lambda op: _source_is_data(op) and "dim" in op.arguments,
)  # fmt: skip
def _with_indices(op: Operation) -> Movement:
    """(values, indices): each value is an element of the input, at its index."""
    dim, keep = op["dim"], bool(op.arguments.get("keepdim", True))

    def back(r: list[Any], a: Any, found: Any) -> list[Any]:
        values, indices = (r[0], found[1]) if keep else (r[0].unsqueeze(dim), found[1].unsqueeze(dim))
        return [torch.zeros_like(a).scatter_add(dim, indices, values)]

    return Movement(back, reads=[op.data[0], op.node])


@register("max_unpool2d", "max_unpool3d", family="movement", when=_source_is_data)
def _max_unpool(op: Operation) -> Movement:
    """Each element goes to the place that its index names; the places that none goes to are zeros."""
    space = 3 if op.name == "max_unpool3d" else 2

    def back(r: list[Any], a: Any, indices: Any) -> list[Any]:
        flat = r[0].flatten(-space)
        return [flat.gather(-1, indices.flatten(-space)).reshape(a.shape)]

    return Movement(back, reads=[op.data[0], op.arguments["indices"]])


# ---------------------------------------------------------------- written to chosen places


def _index_fits(op: Operation) -> bool:
    index, source = op.arguments["index"], op.arguments.get("src", op.arguments.get("source"))
    return not isinstance(source, fx.Node) or index.meta["shape"] == source.meta["shape"]


@register("scatter", family="movement", when=_index_fits)
def _scatter(op: Operation) -> Movement:
    """`self`, with other values at some places."""
    a, dim = op.arguments, op["dim"]
    written = a.get("src", a.get("value"))

    def take(r: Any, i: int, index: Any) -> Any:
        if i == 0:
            return r.scatter(dim, index, 0.0)
        return r.gather(dim, index) if isinstance(written, fx.Node) else r - r.scatter(dim, index, 0.0)

    return Movement(*pieces(op, [a["self"], written], take), reads=[a["index"]])


@register("index_copy", family="movement")
def _index_copy(op: Operation) -> Movement:
    a, dim = op.arguments, op["dim"]

    def take(r: Any, i: int, index: Any) -> Any:
        return r.index_fill(dim, index, 0.0) if i == 0 else r.index_select(dim, index)

    return Movement(*pieces(op, [a["self"], a["source"]], take), reads=[a["index"]])


@register("index_put", family="movement", when=lambda op: not op["accumulate"])
def _index_put(op: Operation) -> Movement:
    a = op.arguments
    given = a["indices"]

    def take(r: Any, i: int, *tensors: Any) -> Any:
        remaining = iter(tensors)
        indices = [None if v is None else next(remaining) for v in given]
        if i == 0:
            zero = torch.zeros((), dtype=op.meta["dtype"], device=op.meta["device"])
            return torch.ops.aten.index_put.default(r, indices, zero)
        part = torch.ops.aten.index.Tensor(r, indices)
        values = a["values"]
        return _sum_to_values(part, values.meta["shape"]) if op.is_data(values) else part

    return Movement(*pieces(op, [a["self"], a["values"]], take), reads=[v for v in given if v is not None])


def _sum_to_values(part: Any, shape: Any) -> Any:
    """Relevance at the places written to -> at the values, which broadcast to them."""
    if not shape:
        return part.sum()
    like = shape_for_reshape(shape)
    grown = [d - len(like) for d, size in enumerate(like) if size == 1]
    return (part.sum(dim=grown, keepdim=True) if grown else part).reshape(like)


def scattered_sum(source: Any, index: Any, dim: int, size: int) -> Any:
    """Zeros of `size` along `dim`, to which the elements of `source` are added at `index`, of its shape."""
    shape = list(source.shape)
    shape[dim] = size
    return source.new_zeros(shape).scatter_add(dim, index, source)


def indexed_sum(source: Any, index: Any, dim: int, size: int) -> Any:
    """Zeros of `size` along `dim`, to which the slices of `source` are added at `index`, one entry per slice."""
    shape = list(source.shape)
    shape[dim] = size
    return source.new_zeros(shape).index_add(dim, index, source)


@register("scattered_sum", "indexed_sum", family="pool", when=_source_is_data, nonnegative="kept")
def _sum_at_indices(op: Operation) -> Matrix:
    """Every output is the sum of the elements that were sent to it."""
    dim, size = op["dim"], op["size"]
    target: Any = op.node.target

    def at(a: Any, index: Any) -> Affine:
        def forward(a: Any, w: NonNegative) -> Any:
            return target(a, index, dim, size) * w.factor

        def adjoint(s: Any, w: NonNegative) -> Any:
            found = s.index_select(dim, index) if op.name == "indexed_sum" else s.gather(dim, index)
            return found * w.factor

        return Affine(forward, adjoint, NonNegative())

    return Matrix(at, reads=[op.arguments["index"]])


def _interpolates(op: Operation) -> bool:
    return op.data == [op.arguments["input"]] and op["interpolation_mode"] != 2  # bicubic has weights < 0


@register("grid_sampler", family="pool", when=_interpolates, nonnegative="kept")
def _grid_sampler(op: Operation) -> Matrix:
    """Every output is interpolated between elements around its place in the grid, which is a constant."""
    options = [op["interpolation_mode"], op["padding_mode"], op["align_corners"]]
    space = len(op.shape) - 2
    back = torch.ops.aten.grid_sampler_2d_backward if space == 2 else torch.ops.aten.grid_sampler_3d_backward

    def at(a: Any, grid: Any) -> Affine:
        def forward(a: Any, w: NonNegative) -> Any:
            return torch.ops.aten.grid_sampler.default(a, grid, *options) * w.factor

        def adjoint(s: Any, w: NonNegative) -> Any:
            return back(s, a, grid, *options, [True, False])[0] * w.factor

        return Affine(forward, adjoint, NonNegative())

    return Matrix(at, reads=[op.arguments["grid"]])
