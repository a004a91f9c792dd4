"""Distances, moments and logarithms of softmaxes decomposed into the sums, products and roots that they consist of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import data_nodes
from lrp.engine.graph.rewriting.decompositions import decomposes
from lrp.engine.graph.rewriting.rectifiers import is_zero
from lrp.engine.graph.shapes import Batch, Shape, broadcast_shape, shape_for_reshape, shape_of_one_image
from lrp.engine.graph.vocabulary.selection import indexed_sum, scattered_sum

aten = torch.ops.aten


def _reduced(shape: Shape, dims: list[int], keep: bool) -> Shape:
    kept = [1 if d in dims else size for d, size in enumerate(shape)]
    return tuple(size for d, size in enumerate(kept) if keep or d not in dims)


def _dims(shape: Shape, given: Any) -> list[int]:
    listed = [given] if isinstance(given, int) else given
    return sorted(d % len(shape) for d in (listed if listed else range(len(shape))))


def _both(graph: Graph, node: Node, target: Any, x: Any, y: Any) -> Node:
    shapes = [v.meta["shape"] if isinstance(v, Node) else () for v in (x, y)]
    return graph.insert(node, target, (x, y), broadcast_shape(*shapes))


def _each(graph: Graph, node: Node, target: Any, x: Node, *args: Any) -> Node:
    return graph.insert(node, target, (x, *args), x.meta["shape"])


def _over(graph: Graph, node: Node, target: Any, x: Node, dims: list[int], keep: bool) -> Node:
    return graph.insert(node, target, (x, dims, keep), _reduced(x.meta["shape"], dims, keep))


# ---------------------------------------------------------------- distances


@decomposes("cosine_similarity")
def _cosine_similarity(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """Σ (x / max(‖x‖, e)) (y / max(‖y‖, e))."""
    rank = len(broadcast_shape(a["x1"].meta["shape"], a["x2"].meta["shape"]))
    units = []
    for x in (a["x1"], a["x2"]):
        own = len(x.meta["shape"])
        dim = a["dim"] % rank - rank + own
        shape = _reduced(x.meta["shape"], [dim], True)
        length = graph.insert(node, aten.linalg_vector_norm.default, (x, 2, [dim], True), shape)
        length = _each(graph, node, aten.clamp_min.default, length, a["eps"])
        units.append(_both(graph, node, aten.div.Tensor, x, length))
    product = _both(graph, node, aten.mul.Tensor, *units)
    return _over(graph, node, aten.sum.dim_IntList, product, [a["dim"] % rank], False)


@decomposes("pairwise_distance")
def _pairwise_distance(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """‖x − y + e‖ along the last dimension."""
    difference = _both(graph, node, aten.sub.Tensor, a["x1"], a["x2"])
    shifted = _each(graph, node, aten.add.Tensor, difference, a["eps"])
    last = [len(difference.meta["shape"]) - 1]
    args = (shifted, a["p"], last, a["keepdim"])
    return graph.insert(
        node, aten.linalg_vector_norm.default, args, _reduced(difference.meta["shape"], last, a["keepdim"])
    )


@decomposes("linalg_vector_norm")
def _vector_norm(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """(Σ |x|ᵖ)^(1/p), with its limits for p = ∞; p = 2 has an algebra of its own."""
    x, order = a["self"], float(a["ord"])
    dims = _dims(x.meta["shape"], a["dim"])
    if order == 2:
        if a["dim"]:
            return None
        args = (x, 2, dims, a["keepdim"])
        return graph.insert(node, aten.linalg_vector_norm.default, args, node.meta["shape"])
    size = _each(graph, node, aten.abs.default, x)
    if math.isinf(order):
        return _over(
            graph, node, aten.amax.default if order > 0 else aten.amin.default, size, dims, a["keepdim"]
        )
    if order == 0:
        return None
    powers = size if order == 1 else _each(graph, node, aten.pow.Tensor_Scalar, size, order)
    total = _over(graph, node, aten.sum.dim_IntList, powers, dims, a["keepdim"])
    return total if order == 1 else _each(graph, node, aten.pow.Tensor_Scalar, total, 1 / order)


@decomposes("mse_loss", "l1_loss")
def _loss(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """(x − y)² or |x − y|, or the mean or sum of it."""
    difference = _both(graph, node, aten.sub.Tensor, a["self"], a["target"])
    if ops.operation_name(node) == "mse_loss":
        loss = _each(graph, node, aten.pow.Tensor_Scalar, difference, 2)
    else:
        loss = _each(graph, node, aten.abs.default, difference)
    if a["reduction"] == 0:
        return loss
    dims = list(range(len(loss.meta["shape"])))
    if any(isinstance(size, Batch) for size in loss.meta["shape"]):
        return None  # over all images: no relevance of one image
    return _over(
        graph, node, aten.mean.dim if a["reduction"] == 1 else aten.sum.dim_IntList, loss, dims, False
    )


@decomposes("bilinear")
def _bilinear(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """Σ_i Σ_j x_i A_kij y_j + b_k: a linear layer of x, then its product with y."""
    x, y, weight = a["input1"], a["input2"], graph.value(a["weight"])
    if weight is None:
        return None
    outputs, width, other = weight.shape
    rows = graph.constant(
        weight.permute(0, 2, 1).reshape(-1, width).contiguous(), f"{node.name}_weight", node
    )
    lead = x.meta["shape"][:-1]
    spread = graph.insert(node, aten.linear.default, (x, rows, None), (*lead, outputs * other))
    matrix = graph.insert(node, aten.unflatten.int, (spread, -1, [outputs, other]), (*lead, outputs, other))
    column = graph.insert(node, aten.unsqueeze.default, (y, -1), (*lead, other, 1))
    product = graph.insert(node, aten.matmul.default, (matrix, column), (*lead, outputs, 1))
    result = graph.insert(node, aten.squeeze.dim, (product, -1), (*lead, outputs))
    return result if a["bias"] is None else _both(graph, node, aten.add.Tensor, result, a["bias"])


# ---------------------------------------------------------------- moments


@decomposes("var", "std", "var_mean", "std_mean")
def _moments(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """var = Σ (x − mean)² / (n − c), std its root; with `_mean` both are results."""
    x, name = a["self"], ops.operation_name(node)
    shape = x.meta["shape"]
    dims, keep = _dims(shape, a.get("dim")), bool(a.get("keepdim"))
    if any(isinstance(shape[d], Batch) for d in dims):
        return None
    correction = a.get("correction", 1 if a.get("unbiased", True) else 0)
    n = math.prod(int(shape_of_one_image(shape)[d]) for d in dims)
    mean = _over(graph, node, aten.mean.dim, x, dims, True)
    squares = _each(graph, node, aten.pow.Tensor_Scalar, _both(graph, node, aten.sub.Tensor, x, mean), 2)
    moment = _over(graph, node, aten.mean.dim, squares, dims, keep)
    rest = n - (1 if correction is None else correction)
    if rest != n:
        moment = _each(graph, node, aten.mul.Tensor, moment, n / rest if rest > 0 else math.inf)
    if name.startswith("std"):
        moment = _each(graph, node, aten.sqrt.default, moment)
    if not name.endswith("_mean"):
        return moment
    return [moment, mean if keep else _over(graph, node, aten.mean.dim, x, dims, False)]


# ---------------------------------------------------------------- maxima, softmax


@decomposes("maximum", "max", "fmax", "minimum", "min", "fmin")
def _of_two(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """The larger of two tensors is the maximum over their stack; the smaller the minimum."""
    if not isinstance(a.get("other"), Node):
        return None
    operands = [a["self"], a["other"]]
    if not set(operands) <= data_nodes(graph.fx):
        return None  # with a constant it is an activation
    shape = node.meta["shape"]
    for i, value in enumerate(operands):
        if value.meta["shape"] != shape:
            operands[i] = graph.insert(node, aten.expand.default, (value, shape_for_reshape(shape)), shape)
    stacked = graph.insert(node, aten.stack.default, (operands, -1), (*shape, 2))
    largest = ops.operation_name(node) in ("maximum", "max", "fmax")
    return graph.insert(node, aten.amax.default if largest else aten.amin.default, (stacked, [-1]), shape)


@decomposes("log_softmax", "_log_softmax")
def _log_softmax(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """x − log Σ exp(x): stable where log(softmax(x)) underflows."""
    x, dim = a["self"], a["dim"] % len(node.meta["shape"])
    args = (x, [dim], True)
    norm = graph.insert(node, aten.logsumexp.default, args, _reduced(x.meta["shape"], [dim], True))
    return _both(graph, node, aten.sub.Tensor, x, norm)


@decomposes("scatter_add", "index_add")
def _scatter_add(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """self + zeros with the source added at the indices."""
    source: Any = a["src" if "src" in a else "source"]
    index = a["index"]
    shape, dim = node.meta["shape"], a["dim"] % len(node.meta["shape"])
    size = shape[dim]
    scattered = ops.operation_name(node) == "scatter_add"
    others = [source.meta["shape"][d] == shape[d] for d in range(len(shape)) if d != dim]
    same = not scattered or source.meta["shape"][dim] == index.meta["shape"][dim]
    if isinstance(size, Batch) or not all(others) or not same:
        return None
    target = scattered_sum if scattered else indexed_sum
    added = graph.insert(node, target, (source, index, dim, size), shape)
    factor = a.get("alpha", 1)
    added = added if factor == 1 else _each(graph, node, aten.mul.Tensor, added, factor)
    return added if is_zero(graph, a["self"]) else _both(graph, node, aten.add.Tensor, a["self"], added)
