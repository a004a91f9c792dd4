"""Constant scales and shifts in one form, however a model writes them: x w + b, w and b varying along one dimension.

`(x - mean) / std`, a frozen batch norm, a layer scale, `2 * x`, a learned bias that is added: each is such a map. They are
merged, passed on to the convolution or linear layer that they belong to, or, in front of the first layer, treated as
the preparation of the input.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrp.engine.graph import ops, registry
from lrp.engine.graph.canonical import Graph, inherited
from lrp.engine.graph.ops import data_nodes
from lrp.engine.graph.vocabulary.elementwise import sum_factors
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
            (node.args[0], *parts_of_scale(graph, node))
            if node.target is scale_shift
            else _scale(graph, node, data)
        )
        if found is None:
            continue
        source, w, b = found
        if source.target is scale_shift and list(source.users) == [node]:
            merged = _merged(parts_of_scale(graph, source), (w, b), len(node.meta["shape"]))
            if merged is not None:
                source, (w, b) = source.args[0], merged
        data.add(replace_by_scale(graph, node, source, w, b))


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
    factors = sum_factors(name, arguments["alpha"])
    own, others = factors if source is first else reversed(factors)
    return source, None if own == 1 else _number(graph, own), others * value


def _number(graph: Graph, value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=graph.device)


def _along_one_dimension(value: Tensor, rank: int) -> bool:
    varying = sum(size != 1 for size in value.shape)
    return varying <= 1 and value.dim() <= rank and bool(value.isfinite().all())


def axis_of_scale(parts: tuple[Part, Part], rank: int) -> int | None:
    """The dimension along which a scale and shift vary; None: both are numbers."""
    return next((axis_of(v, rank) for v in parts if v is not None and v.numel() > 1), None)


def axis_of(value: Tensor, rank: int) -> int | None:
    """The dimension, of `rank`, along which a constant varies; None: it is a number."""
    return next((rank - value.dim() + d for d, size in enumerate(value.shape) if size != 1), None)


def parts_of_scale(graph: Graph, node: Node) -> tuple[Part, Part]:
    """(w, b) of a scale_shift, in float64."""
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


def replace_by_scale(graph: Graph, node: Node, source: Node, w: Part, b: Part) -> Node:
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
    return any(entry.family == "movement" for entry in registry.vocabulary_entries(name))


def normalise_input(graph: Graph) -> None:
    """Scales and shifts between the image and the first layer prepare the input: relevance passes through them.

    The map is that of the net behind them, for the prepared input: the same whether a model normalises its input itself
    or is given a normalised one.
    """
    inputs, before = set(graph.entries), _before_a_layer(graph)
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or node not in before:
            continue
        sources = [n for n in ops.nodes_read_by_operation(node) if n.op != "get_attr"]
        if not sources or not all(n in inputs for n in sources):
            continue
        if node.target is scale_shift:
            w, _ = parts_of_scale(graph, node)
            if w is None or bool((w != 0).all()):
                node.target = normalise
                inputs.add(node)
        elif _moves(ops.operation_name(node)) or node.target is operator.getitem:
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
        entry.family in ("conv", "linear") for entry in registry.vocabulary_entries(ops.operation_name(node))
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
        factor = node.args[1]
        graph.substitute(node, node.args[0])
        readers = list(product.users)
        with graph.fx.inserting_after(product):
            scaled = graph.fx.call_function(scale_shift, (product, factor, None))
        scaled.meta = dict(product.meta)
        product.meta = inherited(product)
        for reader in readers:
            reader.replace_input_with(product, scaled)
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
