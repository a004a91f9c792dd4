"""ReLU and leaky ReLU in other words: where(z > 0, z, 0), z · (z > 0), masked_fill(z < 0, 0), maximum(z, 0)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.rewriting.dtypes import CASTS

aten = torch.ops.aten


def recognise_rectifiers(graph: Graph) -> None:
    """Each of these forms becomes `relu` or `leaky_relu`, whose rule does not depend on how it is written."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function":
            continue
        name, arguments = ops.operation_name(node), ops.arguments_of(node)
        pieces = _pieces(graph, name, arguments)
        if pieces is None:
            continue
        z, below = pieces
        slope = _slope(graph, z, below)
        if slope is None or z.meta["shape"] != node.meta["shape"]:
            continue
        if slope == 0:
            graph.replace(node, aten.relu.default, (z,))
        else:
            graph.replace(node, aten.leaky_relu.default, (z, slope))


def _pieces(graph: Graph, name: str, a: dict[str, Any]) -> tuple[Node, Any] | None:
    """(z, the value where z < 0) of an operation that gives z where z > 0; None: it is another one."""
    if name in ("where", "masked_fill"):
        mask = a["condition" if name == "where" else "mask"]
        inside, outside = (a["self"], a["other"]) if name == "where" else (a["value"], a["self"])
        found = _sign_mask(graph, mask)
        if found is None:
            return None
        z, above = found
        own, other = (inside, outside) if above else (outside, inside)
        return (z, other) if own is z else None
    if name == "mul":
        if "self" not in a:
            return None  # a product of sizes
        for mask, z in ((a["self"], a["other"]), (a["other"], a["self"])):
            found = _sign_mask(graph, mask)
            if found is not None and found == (z, True):
                return z, 0
    if name in ("maximum", "max", "fmax") and isinstance(a.get("other"), (Node, int, float)):
        for z, other in ((a["self"], a["other"]), (a["other"], a["self"])):
            slope = _slope(graph, z, other) if isinstance(z, Node) and graph.value(z) is None else None
            if slope is not None and 0 <= slope <= 1:
                return z, other
    return None


def _sign_mask(graph: Graph, mask: Any) -> tuple[Node, bool] | None:
    """(z, whether it is z > 0 rather than z < 0), also where equality counts; None: another mask."""
    turned = False
    while isinstance(mask, Node) and mask.op == "call_function":
        name = ops.operation_name(mask)
        if name in ("logical_not", "bitwise_not"):
            turned = not turned
        elif name not in CASTS:
            break
        mask = mask.all_input_nodes[0]
    if not isinstance(mask, Node) or mask.op != "call_function":
        return None
    if ops.operation_name(mask) not in ("gt", "ge", "lt", "le"):
        return None
    first, second = mask.args[:2]
    above = ops.operation_name(mask) in ("gt", "ge")
    if is_zero(graph, first) and isinstance(second, Node):
        first, second, above = second, first, not above
    if not isinstance(first, Node) or not is_zero(graph, second):
        return None
    return first, above != turned


def is_zero(graph: Graph, value: Any) -> bool:
    """Whether an argument is the number 0, or a tensor of zeros that does not depend on the image."""
    if isinstance(value, Node):
        known = graph.value(value)
        if isinstance(known, Tensor):
            return not bool(known.any())
        return value.op == "call_function" and ops.operation_name(value) in (
            "zeros_like",
            "zeros",
            "new_zeros",
        )
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value == 0


def _slope(graph: Graph, z: Node, below: Any) -> float | None:
    """The number c with `below` = c z; None: it is something else."""
    if is_zero(graph, below):
        return 0.0
    if (
        not isinstance(below, Node)
        or below.op != "call_function"
        or ops.operation_name(below) not in ("mul", "div")
    ):
        return None
    a = ops.arguments_of(below)
    over = ops.operation_name(below) == "div"
    for source, factor in ((a["self"], a["other"]), (a["other"], a["self"])):
        value = graph.value(factor) if isinstance(factor, Node) else factor
        if isinstance(value, Tensor) and value.numel() == 1:
            value = float(value)
        if source is z and isinstance(value, (int, float)) and not (over and source is not a["self"]):
            return 1 / value if over else float(value)
    return None
