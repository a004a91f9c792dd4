"""Fuses linear maps that follow each other, or that read the same input, into one. Exact; computed in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.vocabulary.norms import scale_shift

aten = torch.ops.aten
CONVS = ("conv1d", "conv2d", "conv3d")


def fold_scale_into_producer(graph: Graph) -> None:
    """A conv or linear that only a batch norm reads, and that norm, become one conv or linear with other weights."""
    for node in list(graph.fx.nodes):
        if node.target is not scale_shift:
            continue
        conv: Node = node.args[0]
        if (
            conv.op != "call_function"
            or ops.operation_name(conv) not in CONVS + ("linear",)
            or len(conv.users) > 1
        ):
            continue
        arguments = ops.arguments_of(conv)
        weight, bias = graph.value(arguments["weight"]), graph.value(arguments["bias"])
        if weight is None or (arguments["bias"] is not None and bias is None):
            continue
        w, b = (graph.value(v).flatten() for v in node.args[1:])
        if len(w) != len(weight) or (ops.operation_name(conv) == "linear" and len(conv.meta["shape"]) > 2):
            continue  # a norm over another axis than the outputs of the layer
        weight = weight.double() * w.reshape(-1, *[1] * (weight.dim() - 1))
        bias = b if bias is None else bias.double() * w + b
        _set_weights(graph, conv, weight, bias)
        node.replace_all_uses_with(conv)
        graph.fx.erase_node(node)


def fold_scale_into_consumers(graph: Graph) -> None:
    """Fold a batch norm that only convs or linears read into these: exact only without zero padding after the norm."""
    for node in list(graph.fx.nodes):
        if (
            node.target is not scale_shift
            or not node.users
            or not all(_takes_scale(user, node) for user in node.users)
        ):
            continue
        w, b = (graph.value(v).flatten() for v in node.args[1:])
        for user in list(node.users):
            arguments = ops.arguments_of(user)
            weight = graph.value(arguments["weight"]).double()
            old = graph.value(arguments["bias"])
            groups = arguments.get("groups", 1)
            inputs, per = weight.shape[1], weight.shape[0] // groups
            shape = (1, inputs, *[1] * (weight.dim() - 2))
            scaled, shift = [], []
            for g in range(groups):
                part = weight[g * per : (g + 1) * per]
                own = slice(g * inputs, (g + 1) * inputs)
                scaled.append(part * w[own].reshape(shape))
                shift.append((part * b[own].reshape(shape)).flatten(1).sum(1))
            bias = torch.cat(shift) + (0 if old is None else old.double())
            _set_weights(graph, user, torch.cat(scaled), bias)
        node.replace_all_uses_with(node.args[0])
        graph.fx.erase_node(node)


def _takes_scale(user: Node, norm: Node) -> bool:
    if (
        user.op != "call_function"
        or ops.operation_name(user) not in CONVS + ("linear",)
        or user.args[0] is not norm
    ):
        return False
    arguments = ops.arguments_of(user)
    constant = all(isinstance(v, Node) and v.op == "get_attr" for v in (arguments["weight"],))
    if ops.operation_name(user) == "linear":
        return constant and len(user.meta["shape"]) == 2
    padding = arguments["padding"]
    return constant and all(p == 0 for p in (padding if isinstance(padding, (list, tuple)) else [padding]))


def _set_weights(graph: Graph, conv: Node, weight: Tensor, bias: Tensor) -> None:
    """Replace the weights of one call; other calls of the same module keep the module's weights."""
    new_weight = graph.constant(weight, f"{conv.name}_weight", conv)
    new_bias = graph.constant(bias, f"{conv.name}_bias", conv)
    conv.args = (conv.args[0], new_weight, new_bias, *conv.args[3:])
    conv.kwargs = {k: v for k, v in conv.kwargs.items() if k not in ("weight", "bias")}


# ---------------------------------------------------------------- parallel branches


@dataclass(frozen=True, eq=False)
class _Kernel:
    """The parameters of a convolution; lists have one entry per spatial dimension."""

    weight: Tensor
    bias: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @property
    def size(self) -> list[int]:
        return list(self.weight.shape[2:])


def merge_branches(graph: Graph) -> None:
    """conv(x) ± conv(x) ± batch norm(x), as RepVGG and MobileOne are trained, is one convolution.

    The outputs of such branches largely cancel in their sum, so that relevance shared among them would explode.
    """
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or ops.operation_name(node) not in ("add", "sub"):
            continue
        arguments = ops.arguments_of(node)
        operands = [arguments["self"], arguments["other"]]
        if arguments["alpha"] != 1 or not all(_branch(n) and list(n.users) == [node] for n in operands):
            continue
        if operands[0] is operands[1] or operands[0].args[0] is not operands[1].args[0]:
            continue
        kernels = [_kernel(graph, n) for n in operands]
        merged = _sum(kernels, -1 if ops.operation_name(node) == "sub" else 1) if all(kernels) else None
        if merged is None:
            continue
        conv = getattr(aten, CONVS[len(merged.size) - 1]).default
        source, settings = (
            operands[0].args[0],
            (merged.stride, merged.padding, merged.dilation, merged.groups),
        )
        weight, bias = (
            graph.constant(value, f"{node.name}_{name}", node)
            for name, value in (("weight", merged.weight), ("bias", merged.bias))
        )
        meta = next((n.meta for n in operands if n.target is not scale_shift), operands[0].meta)
        new = graph.replace(node, conv, (source, weight, bias, *settings))
        new.meta |= {key: meta[key] for key in ("path", "module") if key in meta}


def _branch(node: Any) -> bool:
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    return node.target is scale_shift or ops.operation_name(node) in CONVS


def _kernel(graph: Graph, node: Node) -> _Kernel | None:
    """None: weights that are not constant, or a norm over another axis than the channels."""
    spatial = len(node.meta["shape"]) - 2
    if node.target is scale_shift:
        w, b = (graph.value(v).double() for v in node.args[1:])
        channels = node.meta["shape"][1]
        if not 1 <= spatial <= 3 or w.shape != (channels, *[1] * spatial):
            return None
        ones, zeros = [1] * spatial, [0] * spatial
        return _Kernel(w.reshape(-1, 1, *ones), b.flatten(), ones, zeros, ones, channels)
    a = ops.arguments_of(node)
    weight, bias = graph.value(a["weight"]), graph.value(a["bias"])
    if weight is None or isinstance(a["padding"], str) or (a["bias"] is not None and bias is None):
        return None
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    stride, padding, dilation = (
        ops.one_per_dimension(a[key], spatial) for key in ("stride", "padding", "dilation")
    )
    return _Kernel(weight.double(), bias.double(), stride, padding, dilation, a["groups"])


def _sum(kernels: Sequence[Any], sign: int) -> _Kernel | None:
    """The kernel of the sum or difference of both. None: their strides or windows do not lie on one grid."""
    large, small = sorted(kernels, key=lambda k: k.size, reverse=True)
    if large.stride != small.stride:
        return None
    pads: list[int] = []
    for d, (k, s) in enumerate(zip(large.size, small.size, strict=True)):
        step = large.dilation[d]
        shift, rest = divmod(large.padding[d] - small.padding[d], step)
        if rest or shift < 0 or shift + s > k or (s > 1 and small.dilation[d] != step):
            return None
        pads = [shift, k - s - shift, *pads]
    groups = math.gcd(large.groups, small.groups)
    weights = {k: _regrouped(k.weight, k.groups, groups) for k in (large, small)}
    weights[small] = F.pad(weights[small], pads)
    first, second = kernels
    weight, bias = weights[first] + sign * weights[second], first.bias + sign * second.bias
    return _Kernel(weight, bias, large.stride, large.padding, large.dilation, groups)


def _regrouped(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """[O, I / groups, ...] as [O, I / fewer, ...]: zeros for the inputs that an output does not read."""
    outputs, inputs = weight.shape[:2]
    together = groups // fewer
    wide = weight.new_zeros(outputs, inputs * together, *weight.shape[2:])
    for g in range(groups):
        own = slice(g * outputs // groups, (g + 1) * outputs // groups)
        at = g % together * inputs
        wide[own, at : at + inputs] = weight[own]
    return wide
