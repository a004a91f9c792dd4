"""A blend of two values in one form: x + w (y − x), x − w (x − y) and lerp(x, y, w) become (1 − w) x + w y.

There w and 1 − w are gates of x and y, where x + w (y − x) would have x share relevance with a difference from itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from lrp.engine.graph import ops, registry
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.gates import THROUGH
from lrp.engine.graph.ops import data_nodes
from lrp.engine.graph.rewriting.decompositions import decomposes
from lrp.engine.graph.shapes import broadcast_shape

aten = torch.ops.aten


@decomposes("lerp")
def _lerp(graph: Graph, node: Node, a: dict[str, Any]) -> Node:
    return _blend(graph, node, a["self"], a["end"], a["weight"])


def recognise_blends(graph: Graph) -> None:
    """Rewrite the sums and differences that are blends, where w is a gate or no data."""
    data = data_nodes(graph.fx)
    for node in list(graph.fx.nodes):
        found = _parts(node, data) if node in data and node.op == "call_function" else None
        if found is not None:
            made = _blend(graph, node, *found)
            graph.substitute(node, made)
            data.add(made)


def _blend(graph: Graph, node: Node, x: Node, y: Node, w: Any) -> Node:
    rest: Any
    if isinstance(w, Node):
        rest = graph.insert(node, aten.rsub.Scalar, (w, 1), w.meta["shape"])
        rest.meta["dtype"] = w.meta["dtype"]
    else:
        rest = 1 - w
    parts = [_product(graph, node, value, factor) for value, factor in ((x, rest), (y, w))]
    return graph.insert(node, aten.add.Tensor, tuple(parts), node.meta["shape"])


def _product(graph: Graph, node: Node, x: Node, factor: Any) -> Node:
    shape = broadcast_shape(x.meta["shape"], factor.meta["shape"] if isinstance(factor, Node) else ())
    return graph.insert(node, aten.mul.Tensor, (x, factor), shape)


def _parts(node: Node, data: set[Node]) -> tuple[Node, Node, Any] | None:
    """(x, y, w) of a blend; None: it is none."""
    name, a = ops.operation_name(node), ops.arguments_of(node)
    if name not in ("add", "sub") or a["alpha"] != 1:
        return None
    orders = [(a["self"], a["other"])] + [(a["other"], a["self"])] * (name == "add")
    for x, product in orders:
        if not _is(product, "mul"):
            continue
        factors = product.args[:2]
        for w, difference in (factors, reversed(factors)):
            if not _is(difference, "sub") or ops.arguments_of(difference)["alpha"] != 1:
                continue
            first, second = difference.args[:2]
            y, same = (first, second) if name == "add" else (second, first)
            if same is x and isinstance(y, Node) and (w not in data or _is_gate(w, data)):
                return x, y, w
    return None


def _is(node: Any, name: str) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and ops.operation_name(node) == name


def _is_gate(node: Any, data: set[Node]) -> bool:
    """Whether its values come from a sigmoid or the like, by movement and elementwise operations with constants."""
    while node in data and node.op == "call_function":
        name = ops.operation_name(node)
        known = ops.facts(name)
        if known.gate == "squashed" and known.bounded(ops.arguments_of(node)):
            return True
        sources = [n for n in node.all_input_nodes if n in data]
        families = {entry.family for entry in registry.vocabulary_entries(name)}
        if len(sources) != 1 or not (families & THROUGH or name == "getitem"):
            return False
        node = sources[0]
    return False
