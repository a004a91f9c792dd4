"""Constant scales and shifts in one form, however a model writes them: x w + b, w and b varying along one dimension.

`(x - mean) / std`, a frozen batch norm, a layer scale, `2 * x`, a learned bias that is added: each is such a map. They are
merged, passed on to the convolution or linear layer that they belong to, or, in front of the first layer, treated as
the preparation of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.capture import Batch
from lrp.engine.graph.ops import data_nodes
from lrp.engine.graph.vocabulary.norms import normalise, scale_shift

aten = torch.ops.aten
Part = Tensor | None  # of a scale_shift: None where there is no factor, or no shift


def recognise_scales(graph: Graph) -> None:
    """Sums and products with a constant that varies along one dimension become `scale_shift`; neighbours are merged."""
    data = data_nodes(graph.fx)
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or node not in data:
            continue
        found = (
            (node.args[0], *_parts(graph, node)) if node.target is scale_shift else _scale(graph, node, data)
        )
        if found is None:
            continue
        source, w, b = found
        if source.target is scale_shift and list(source.users) == [node]:
            merged = _merged(_parts(graph, source), (w, b), len(node.meta["shape"]))
            if merged is not None:
                source, (w, b) = source.args[0], merged
        data.add(_replace(graph, node, source, w, b))


def _scale(graph: Graph, node: Node, data: set[Node]) -> tuple[Node, Part, Part] | None:
    """(x, w, b) if the operation is x w or x + b; None: it is not, or the constant varies along several dimensions."""
    name, arguments = ops.operation_name(node), ops.arguments_of(node)
    if name == "neg":
        return arguments["self"], _number(graph, -1.0), None
    if name not in ("add", "sub", "rsub", "mul", "div") or arguments.get("rounding_mode") is not None:
        return None
    first, second = arguments["self"], arguments["other"]
    if (first in data) == (isinstance(second, Node) and second in data):
        return None
    source, other = (first, second) if first in data else (second, first)
    value = graph.value(other) if isinstance(other, Node) else _number(graph, other)
    rank = len(node.meta["shape"])
    if value is None or source.meta["shape"] != node.meta["shape"] or not _along_one_dimension(value, rank):
        return None
    value = value.double()
    if name == "mul":
        return source, value, None
    if name == "div":
        return (source, 1 / value, None) if source is first and bool((value != 0).all()) else None
    if name == "rsub":  # other - alpha · self
        signs = (-1.0, 1.0) if source is first else (1.0, -1.0)
        alpha = (float(arguments["alpha"]), 1.0) if source is first else (1.0, float(arguments["alpha"]))
    else:
        minus = -1.0 if name == "sub" else 1.0
        signs = (1.0, minus) if source is first else (minus, 1.0)
        alpha = (1.0, float(arguments["alpha"])) if source is first else (float(arguments["alpha"]), 1.0)
    factor = signs[0] * alpha[0]
    return source, None if factor == 1 else _number(graph, factor), signs[1] * alpha[1] * value


def _number(graph: Graph, value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=graph.device)


def _along_one_dimension(value: Tensor, rank: int) -> bool:
    varying = sum(size != 1 for size in value.shape)
    return varying <= 1 and value.dim() <= rank and bool(value.isfinite().all())


def axis_of(value: Tensor, rank: int) -> int | None:
    """The dimension, of `rank`, along which a constant varies; None: it is a number."""
    return next((rank - value.dim() + d for d, size in enumerate(value.shape) if size != 1), None)


def _parts(graph: Graph, node: Node) -> tuple[Part, Part]:
    return tuple(None if v is None else graph.value(v).double() for v in node.args[1:])  # type: ignore[return-value]


def _merged(first: tuple[Part, Part], second: tuple[Part, Part], rank: int) -> tuple[Part, Part] | None:
    """w₂ (w₁ x + b₁) + b₂ as one; None if they vary along different dimensions."""
    axes = {axis_of(v, rank) for v in (*first, *second) if v is not None} - {None}
    if len(axes) > 1:
        return None
    (w1, b1), (w2, b2) = first, second
    w = w2 if w1 is None else w1 if w2 is None else w1 * w2
    shift = b1 if b1 is None or w2 is None else b1 * w2
    return w, b2 if shift is None else shift if b2 is None else shift + b2


def _replace(graph: Graph, node: Node, source: Node, w: Part, b: Part) -> Node:
    """Replace a node by scale_shift(source, w, b); its constants have the shape that broadcasts from the right."""
    rank = len(node.meta["shape"])
    made: list[Node | None] = []
    for value, suffix in ((w, "weight"), (b, "bias")):
        if value is None:
            made.append(None)
            continue
        axis = axis_of(value, rank)
        shape = () if axis is None else (value.numel(), *[1] * (rank - 1 - axis))
        made.append(graph.constant(value.reshape(shape), f"{node.name}_{suffix}", node))
    return graph.replace(node, scale_shift, (source, *made))


# ---------------------------------------------------------------- where they go


def _moves(name: str) -> bool:
    return any(entry.family == "movement" for entry in ops.vocabulary_entries(name))


def normalise_input(graph: Graph) -> None:
    """Scales and shifts between the image and the first layer prepare the input: relevance passes through them.

    The map is that of the net behind them, for the prepared input: the same whether a model normalises its input itself
    or is given a normalised one.
    """
    inputs, before = {graph.image}, _before_a_layer(graph)
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or node not in before:
            continue
        sources = [n for n in ops.nodes_read_by_operation(node) if n.op != "get_attr"]
        if not sources or not all(n in inputs for n in sources):
            continue
        if node.target is scale_shift:
            w, _ = _parts(graph, node)
            if w is None or bool((w != 0).all()):
                node.target = normalise
                inputs.add(node)
        elif _moves(ops.operation_name(node)) or getattr(node.target, "__name__", "") == "getitem":
            inputs.add(node)


def _before_a_layer(graph: Graph) -> set[Node]:
    """The nodes that a convolution or linear layer depends on."""
    found: set[Node] = set()
    for node in reversed(graph.fx.nodes):
        if any(user in found or (user.op == "call_function" and _is_layer(user)) for user in node.users):
            found.add(node)
    return found


def _is_layer(node: Node) -> bool:
    return any(
        entry.family in ("conv", "linear") for entry in ops.vocabulary_entries(ops.operation_name(node))
    )


def scale_products(graph: Graph) -> None:
    """A factor of an operand of a matrix product of data becomes a factor of the product: q · c @ kᵀ = (q @ kᵀ) · c."""
    for node in list(graph.fx.nodes):
        if node.target is not scale_shift or node.args[2] is not None:
            continue
        w = graph.value(node.args[1])
        product = _product_behind(node) if w.numel() == 1 else None
        if product is None:
            continue
        node.replace_all_uses_with(node.args[0])
        readers = list(product.users)
        with graph.fx.inserting_after(product):
            scaled = graph.fx.call_function(scale_shift, (product, node.args[1], None))
        scaled.meta = dict(product.meta)
        for reader in readers:
            reader.replace_input_with(product, scaled)
        graph.fx.erase_node(node)
    recognise_scales(graph)  # those of both operands, and of the product itself, become one


def _product_behind(node: Node) -> Node | None:
    """The matrix product of data that is the only reader of a node, through movement."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_function":
            return None
        name = ops.operation_name(user)
        if name in ("matmul", "bmm"):
            data = [n for n in user.all_input_nodes if n.op != "get_attr"]
            return user if len(data) == 2 else None
        if not _moves(name) or len([n for n in user.all_input_nodes if n.op != "get_attr"]) != 1:
            return None
        if name in ("constant_pad_nd", "pad", "where", "masked_fill", "tril", "triu", "fill", "zero", "copy"):
            return None  # constants come in: they are not scaled
        node = user
    return None


RESHAPES = frozenset({
    "view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "view_as", "reshape_as",
})  # fmt: skip


def moved_axis(axis: int | None, name: str, args: Any, before: Any, after: Any) -> int | bool | None:
    """Where a dimension of the input of a movement lies in its output; False: it is not kept as it is.

    Args:
        axis: of `before`, the input's shape; None: no dimension, which is kept by any movement.
        after: the output's shape.
    """
    if name not in RESHAPES and name not in ("permute", "transpose"):
        return False
    if axis is None:
        return None
    rank = len(before)
    if name == "permute":
        return [d % rank for d in args[1]].index(axis)
    if name == "transpose":
        first, second = (d % rank for d in args[1:3])
        return {first: second, second: first}.get(axis, axis)
    behind = rank - axis
    if len(after) >= behind and tuple(before[-behind:]) == tuple(after[-behind:]):
        return len(after) - behind
    return axis if tuple(before[: axis + 1]) == tuple(after[: axis + 1]) else False


def pass_scales_on(graph: Graph) -> None:
    """A scale and shift in front of an average over positions comes after it, where the next layer takes it in.

    mean(w x + b) = w mean(x) + b, where w and b vary along another dimension than those that are averaged over.
    """
    for node in list(graph.fx.nodes):
        if node.target is not scale_shift or not _leads_to_a_layer(node, _axis(graph, node)):
            continue
        while not _is_layer(next(iter(node.users))):
            (user,) = node.users
            moved = _behind(node, user, _axis(graph, node))
            assert moved is not False
            node = _swapped(graph, node, user, moved)


def _axis(graph: Graph, node: Node) -> int | None:
    rank = len(node.meta["shape"])
    return next((axis_of(v, rank) for v in _parts(graph, node) if v is not None and v.numel() > 1), None)


def _leads_to_a_layer(node: Node, axis: int | None) -> bool:
    """Whether averages and movements alone lie between a scale and a layer that reads it."""
    while len(node.users) == 1:
        (user,) = node.users
        if _is_layer(user):
            return user.args[0] is node
        moved = _behind(node, user, axis)
        if moved is False:
            return False
        node, axis = user, moved
    return False


def _behind(node: Node, user: Node, axis: int | None) -> int | bool | None:
    """Where the dimension `axis` lies behind an average or a movement; False: the scale cannot go there."""
    if user.op != "call_function" or not user.args or user.args[0] is not node:
        return False
    name, before, after = ops.operation_name(user), node.meta["shape"], user.meta["shape"]
    if name != "mean":
        return moved_axis(axis, name, user.args, before, after)
    a = ops.arguments_of(user)
    given = [a["dim"]] if isinstance(a.get("dim"), int) else a.get("dim")
    dims = {d % len(before) for d in given or range(len(before))}
    if axis is None or axis in dims or any(isinstance(before[d], Batch) for d in dims):
        return None if axis is None else False
    return axis if a["keepdim"] else axis - sum(d < axis for d in dims)


def _swapped(graph: Graph, node: Node, user: Node, axis: int | None) -> Node:
    """The operation first, then the scale and shift, along `axis` of its output."""
    w, b = _parts(graph, node)
    user.replace_input_with(node, node.args[0])  # type: ignore[arg-type]
    readers = list(user.users)
    with graph.fx.inserting_after(user):
        later = graph.fx.call_function(scale_shift, (user, None, None))
    later.meta = dict(user.meta)
    for reader in readers:
        reader.replace_input_with(user, later)
    rank = len(user.meta["shape"])

    def shaped(value: Part) -> Part:
        if value is None or value.numel() == 1 or axis is None:
            return value
        return value.reshape(-1, *[1] * (rank - 1 - axis))

    graph.fx.erase_node(node)
    return _replace(graph, later, user, shaped(w), shaped(b))


def restore_scales(graph: Graph) -> None:
    """What is left as a factor alone, or a shift alone, is a product or a sum with a constant."""
    for node in list(graph.fx.nodes):
        if node.target not in (scale_shift, normalise):
            continue
        source, w, b = node.args
        if node.target is normalise or (w is not None and b is not None):
            continue
        if b is None and graph.value(w).numel() == 1 and _into_sum(graph, node, float(graph.value(w))):
            continue
        graph.replace(
            node, aten.mul.Tensor if b is None else aten.add.Tensor, (source, w if b is None else b)
        )


def _into_sum(graph: Graph, node: Node, factor: float) -> bool:
    """Make a factor of a summand that of the sum x + α y of data, if it has none yet; return whether it was done."""
    (user, *others) = node.users
    if others or user.target not in (aten.add.Tensor, aten.sub.Tensor) or user.kwargs:
        return False
    first, second = user.args[:2]
    if first is second or len(user.args) > 2 or not {first, second} <= data_nodes(graph.fx):
        return False
    if node is first:
        if user.target is not aten.add.Tensor:
            return False
        first, second = second, first
    user.args, user.kwargs = (first, node.args[0]), {"alpha": factor}
    graph.fx.erase_node(node)
    return True
