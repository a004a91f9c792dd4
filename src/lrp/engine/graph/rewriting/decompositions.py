"""Compound operations decomposed into their parts: attention, GLU, fused sums and products.

The parts have rules, the ledger has a row for each, and no rule is needed for the compound operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.shapes import Shape, broadcast_shape, shape_for_reshape
from lrp.errors import UnsupportedError

aten = torch.ops.aten
Decomposition = Callable[[Graph, Node, dict[str, Any]], Any]
DECOMPOSITIONS: dict[str, Decomposition] = {}


def decomposes(*names: str) -> Callable[[Decomposition], Decomposition]:
    """Register a function that returns the node that replaces the operation; a list of nodes for several outputs."""

    def add(decomposition: Decomposition) -> Decomposition:
        DECOMPOSITIONS.update(dict.fromkeys(names, decomposition))
        return decomposition

    return add


def decompose(graph: Graph) -> None:
    """Replace each compound operation that has a decomposition by its parts, which may have one themselves."""
    while _decompose_once(graph):
        pass


def _decompose_once(graph: Graph) -> bool:
    changed = False
    for node in list(graph.fx.nodes):
        if node.op != "call_function":
            continue
        decomposition = DECOMPOSITIONS.get(ops.operation_name(node))
        made = decomposition(graph, node, ops.arguments_of(node)) if decomposition else None
        if made is None:
            continue
        changed = True
        if isinstance(made, list):
            for user in [u for u in node.users if u.target is operator.getitem]:
                graph.substitute(user, made[user.args[1]])
            graph.fx.erase_node(node)
        else:
            graph.substitute(node, made)
    return changed


def _shape(value: Any) -> Shape:
    return value.meta["shape"] if isinstance(value, Node) else ()


# ---------------------------------------------------------------- attention


@decomposes("scaled_dot_product_attention")
def _attention(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """softmax(q kᵀ · scale + mask) v."""
    q, k, v = a["query"], a["key"], a["value"]
    if a["dropout_p"]:
        return None  # with dropout, attention is random
    if a["enable_gqa"] and _shape(q)[-3] != _shape(k)[-3]:
        k, v = (_shared_heads(graph, node, x, _shape(q)[-3]) for x in (k, v))
    *lead, length, width = _shape(q)
    keys = _shape(k)[-2]
    turned = (*_shape(k)[:-2], _shape(k)[-1], keys)
    shape: Shape = (*lead, length, keys)
    k = graph.insert(node, aten.transpose.int, (k, -2, -1), turned)
    scores = graph.insert(node, aten.matmul.default, (q, k), shape)
    scale = _size(width) ** -0.5 if a["scale"] is None else a["scale"]
    scores = graph.insert(node, aten.mul.Tensor, (scores, scale), shape)
    mask = a["attn_mask"]
    if a["is_causal"]:
        mask = graph.constant(
            torch.ones(_size(length), _size(keys), dtype=torch.bool, device=graph.device).tril(),
            "causal",
            node,
        )
    if mask is not None:
        if mask.meta["dtype"] == torch.bool:
            closed = graph.insert(node, aten.logical_not.default, (mask,), _shape(mask))
            closed.meta["dtype"] = torch.bool
            open_ = graph.insert(node, aten.zeros_like.default, (closed,), _shape(mask))
            open_.kwargs = {"dtype": graph.dtype}
            mask = graph.insert(node, aten.masked_fill.Scalar, (open_, closed, float("-inf")), _shape(mask))
        scores = graph.insert(node, aten.add.Tensor, (scores, mask), shape)
    attention = graph.insert(node, aten.softmax.int, (scores, -1), shape)
    return graph.insert(node, aten.matmul.default, (attention, v), _shape(node))


def _shared_heads(graph: Graph, node: Node, x: Node, heads: Any) -> Node:
    shape = _shape(x)
    args = (x, heads // shape[-3], len(shape) - 3)
    return graph.insert(node, aten.repeat_interleave.self_int, args, (*shape[:-3], heads, *shape[-2:]))


def _size(size: Any) -> int:
    return int(size)


# ---------------------------------------------------------------- fused sums and products


@decomposes("glu")
def _glu(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """a · σ(b) of the two halves."""
    shape = _shape(node)
    dim = a["dim"] % len(shape)
    both = graph.insert(node, aten.split.Tensor, (a["self"], shape[dim], dim), shape)
    both.meta["shapes"] = [shape, shape]
    signal, gate = (graph.insert(node, operator.getitem, (both, i), shape) for i in range(2))
    gate = graph.insert(node, aten.sigmoid.default, (gate,), shape)
    return graph.insert(node, aten.mul.Tensor, (signal, gate), shape)


@decomposes("addcmul", "addcdiv")
def _fused_product(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """self + value · x · y, or x / y."""
    target = aten.mul.Tensor if ops.operation_name(node) == "addcmul" else aten.div.Tensor
    shape = broadcast_shape(_shape(a["tensor1"]), _shape(a["tensor2"]))
    product = graph.insert(node, target, (a["tensor1"], a["tensor2"]), shape)
    return graph.insert(
        node, aten.add.Tensor, (a["self"], _times(graph, node, product, a["value"])), _shape(node)
    )


@decomposes("add", "sub", "rsub")
def _weighted_sum(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """x ± α y, with the product written out; rsub is y − α x."""
    if "alpha" not in a or a["alpha"] == 1 or not isinstance(a["other"], Node):
        return None
    x, y = (a["other"], a["self"]) if ops.operation_name(node) == "rsub" else (a["self"], a["other"])
    target = aten.add.Tensor if ops.operation_name(node) == "add" else aten.sub.Tensor
    return graph.insert(node, target, (x, _times(graph, node, y, a["alpha"])), _shape(node))


@decomposes("broadcast_tensors")
def _broadcast(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """Each tensor expanded to the shape of all."""
    shape = broadcast_shape(*map(_shape, a["tensors"]))
    size = shape_for_reshape(shape)
    return [graph.insert(node, aten.expand.default, (value, size), shape) for value in a["tensors"]]


def _times(graph: Graph, node: Node, x: Node, factor: Any) -> Node:
    return x if factor == 1 else graph.insert(node, aten.mul.Tensor, (x, factor), _shape(x))


@decomposes("fractional_max_pool2d", "fractional_max_pool3d")
def _fractional_max_pool(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """Has a rule of its own, where its windows are fixed."""
    if _drawn(a["random_samples"]):
        name = ops.operation_name(node)
        raise UnsupportedError(
            f"{node.meta['path'] or 'the model'} ({name}) draws its windows at random, other ones at each call: there is no one "
            "function to explain; give it fixed windows (_random_samples=), or take an adaptive max pool."
        )
    return None


def _drawn(node: Node) -> bool:
    """Whether random numbers enter its value."""
    return node.op == "call_function" and (
        ops.operation_name(node).startswith("rand") or any(map(_drawn, node.all_input_nodes))
    )


@decomposes("addmm", "baddbmm")
def _fused_matmul(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """β · self + α · x @ y; a linear layer where self and y are the model's weights."""
    x, y = (a[k] for k in (("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")))
    plain = a["alpha"] == 1 and a["beta"] == 1 and len(_shape(a["self"])) == 1 and len(_shape(y)) == 2
    if plain and a["self"].op == "get_attr" and y.op == "get_attr":
        turned = graph.insert(node, aten.t.default, (y,), tuple(reversed(_shape(y))))
        return graph.insert(node, aten.linear.default, (x, turned, a["self"]), _shape(node))
    product = graph.insert(node, aten.matmul.default, (x, y), _shape(node))
    added = _times(graph, node, a["self"], a["beta"])
    return graph.insert(
        node, aten.add.Tensor, (added, _times(graph, node, product, a["alpha"])), _shape(node)
    )


# ---------------------------------------------------------------- norms that also return their statistics


@decomposes("native_layer_norm", "native_group_norm")
def _plain_norm(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    if any(u.args[1] for u in node.users):
        return None  # the statistics are used as well
    if ops.operation_name(node) == "native_layer_norm":
        args = (a["input"], a["normalized_shape"], a["weight"], a["bias"], a["eps"])
        return [graph.insert(node, aten.layer_norm.default, args, _shape(node))]
    args = (a["input"], a["group"], a["weight"], a["bias"], a["eps"])
    return [graph.insert(node, aten.group_norm.default, args, _shape(node))]
