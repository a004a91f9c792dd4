"""Fuses linear maps that follow each other, or that read the same input, into one. Exact; computed in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph, inherited
from lrp.engine.graph.rewriting.scales import Part, axis_of, axis_of_scale, parts_of_scale, replace_by_scale
from lrp.engine.graph.shapes import Batch, Shape, sizes_per_dimension
from lrp.engine.graph.vocabulary.layers import CONV_NAMES as CONVS
from lrp.engine.graph.vocabulary.layers import padded_conv
from lrp.engine.graph.vocabulary.norms import scale_shift

aten = torch.ops.aten
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
LAYERS_BY_CHANNEL = CONVS + TRANSPOSED  # their outputs are dimension 1; a linear layer's the last


def fold_scale_into_producer(graph: Graph) -> None:
    """A conv or linear, and the scale and shift of its outputs that alone reads it, are one with other weights."""
    for node in list(graph.fx.nodes):
        if node.target is not scale_shift:
            continue
        parts = parts_of_scale(graph, node)
        axis = axis_of_scale(parts, len(node.meta["shape"]))
        layer, axis = _producer(node, axis)
        if layer is None or not _constant_weights(graph, layer):
            continue
        outputs = 1 if ops.operation_name(layer) in LAYERS_BY_CHANNEL else len(layer.meta["shape"]) - 1
        if axis not in (None, outputs):
            continue  # along another dimension than the outputs of the layer
        channels = layer.meta["shape"][outputs]
        w, b = (None if v is None else v.flatten().expand(channels) for v in parts)
        arguments = ops.arguments_of(layer)
        weight, bias = graph.value(arguments["weight"]).double(), graph.value(arguments["bias"])
        bias = None if bias is None else bias.double()
        if w is not None:
            weight = _scaled_outputs(weight, w, ops.operation_name(layer), arguments.get("groups", 1))
            bias = None if bias is None else bias * w
        _set_weights(graph, layer, weight, b if bias is None else bias if b is None else bias + b)
        graph.substitute(node, node.args[0])


def _producer(node: Node, axis: int | None) -> tuple[Node | None, int | None]:
    """The layer whose outputs a node reads, through permutations that nothing else reads; and where `axis` lies there."""
    source: Any = node.args[0]
    while source.op == "call_function" and len(_readers(source)) == 1:
        name = ops.operation_name(source)
        if name in LAYERS_BY_CHANNEL or name == "linear":
            return source, axis
        before: Any = source.args[0]
        found = _axis_before(axis, name, source, before)
        if found is None:
            break
        axis, source = found, before
    return None, axis


def _readers(node: Node) -> list[Node]:
    """The users that read its values: not those that read its shape alone."""
    return [user for user in node.users if node in ops.nodes_read_by_operation(user)]


def _axis_before(axis: int | None, name: str, movement: Node, before: Any) -> int | None:
    """Where a dimension of a movement's output lies in its input; None: it is no movement that keeps it."""
    if axis is None or not isinstance(before, Node) or not before.meta["shape"]:
        return None
    sizes = before.meta["shape"], movement.meta["shape"]
    places = (d for d, size in enumerate(sizes[0]) if size == sizes[1][axis])
    return next((d for d in places if _moved_axis(d, name, movement.args, *sizes) == axis), None)


def _constant_weights(graph: Graph, layer: Node) -> bool:
    arguments = ops.arguments_of(layer)
    weight, bias = graph.value(arguments["weight"]), graph.value(arguments["bias"])
    return weight is not None and (arguments["bias"] is None or bias is not None)


def _scaled_outputs(weight: Tensor, w: Tensor, name: str, groups: int) -> Tensor:
    """The weights of a layer whose outputs are multiplied by w."""
    if name not in TRANSPOSED:
        return weight * w.reshape(-1, *[1] * (weight.dim() - 1))
    apart = weight.reshape(groups, -1, *weight.shape[1:])  # [groups, inputs, outputs of the group, *kernel]
    factors = w.reshape(groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
    return (apart * factors).reshape(weight.shape)


# ---------------------------------------------------------------- over movements and averages

RESHAPES = frozenset({
    "view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "view_as", "reshape_as",
})  # fmt: skip
# Their windows average, each with weights that sum to 1, where they pad no zeros.
AVERAGES = frozenset({
    *(f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)),
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d")),
})  # fmt: skip


def _moved_axis(axis: int, name: str, args: Any, before: Shape, after: Shape) -> int | None:
    """Where a dimension of the input of a movement lies in its output; None: it is not kept as it is."""
    rank = len(before)
    if name == "permute":
        return [d % rank for d in args[1]].index(axis)
    if name == "transpose":
        first, second = (d % rank for d in args[1:3])
        return {first: second, second: first}.get(axis, axis)
    if name not in RESHAPES:
        return None
    behind = rank - axis
    if before[-behind:] == after[-behind:]:
        return len(after) - behind
    return axis if before[: axis + 1] == after[: axis + 1] else None


def pass_scales_on(graph: Graph) -> None:
    """A scale and shift in front of an average over positions or of a movement comes after it, if the next layer takes it in.

    mean(w x + b) = w mean(x) + b, where w and b vary along another dimension than those that are averaged over.
    """
    for node in list(graph.fx.nodes):
        found = _in_front_of_a_layer(graph, node) if node.target is scale_shift else None
        if found is None:
            continue
        last, parts = found
        graph.substitute(node, node.args[0])
        readers = list(last.users)
        with graph.fx.inserting_after(last):
            later = graph.fx.call_function(scale_shift, (last, None, None))
        later.meta = dict(last.meta)
        last.meta = inherited(last)
        for reader in readers:
            reader.replace_input_with(last, later)
        replace_by_scale(graph, later, last, *parts)


def _in_front_of_a_layer(graph: Graph, scale: Node) -> tuple[Node, tuple[Part, Part]] | None:
    """The last of the averages and movements behind a scale, if layers read it that take the scale, as it is there."""
    node, parts = scale, parts_of_scale(graph, scale)
    while node.users:
        if all(_takes_scale(graph, user, node, parts) for user in node.users):
            return None if node is scale else (node, parts)
        (user, *others) = node.users
        passed = None if others or user.op != "call_function" else _passed(node, user, parts)
        if passed is None:
            return None
        node, parts = user, passed
    return None


def _passed(node: Node, user: Node, parts: tuple[Part, Part]) -> tuple[Part, Part] | None:
    """The scale and shift of `node` as those of the operation that reads it; None: it has none."""
    name, before, after = ops.operation_name(user), node.meta["shape"], user.meta["shape"]
    axis = axis_of_scale(parts, len(before))
    if user.args[:1] != (node,):
        return None
    flat = name in RESHAPES and len(after) == 2 and before[0] == after[0]
    if axis is None:
        moved: int | None = 0 if name in RESHAPES or _averages(user, None) else None
    elif flat:  # each feature has the factor of its channel
        moved = 1
    elif name in AVERAGES or name == "mean":
        moved = _averages(user, axis)
    else:
        moved = _moved_axis(axis, name, user.args, before, after)
    if moved is None:
        return None

    def there(value: Part) -> Part:
        if value is None or value.numel() == 1:
            return value
        if flat and isinstance(after[1], int) and value.numel() != after[1]:
            value = value.expand(*before[1:])
        return value.reshape(-1, *[1] * (len(after) - 1 - moved))

    return there(parts[0]), there(parts[1])


def _averages(user: Node, axis: int | None) -> int | None:
    """Where a dimension lies behind an average over others; None: it is averaged over, or it is no average of real elements."""
    a, name, before = ops.arguments_of(user), ops.operation_name(user), user.args[0].meta["shape"]  # type: ignore[union-attr]
    if name == "mean":
        given = [a["dim"]] if isinstance(a.get("dim"), int) else a.get("dim")
        dims = {d % len(before) for d in given or range(len(before))}
        if axis in dims or any(isinstance(before[d], Batch) for d in dims):
            return None
        return 0 if axis is None else axis if a["keepdim"] else axis - sum(d < axis for d in dims)
    if name not in AVERAGES or a.get("divisor_override") is not None:
        return None
    spatial = int(name.rstrip("d")[-1])
    padding = sizes_per_dimension(a.get("padding", 0), spatial)
    if any(padding) and a.get("count_include_pad", True):
        return None
    return 0 if axis is None else axis if axis < len(before) - spatial else None


def fold_scale_into_consumers(graph: Graph) -> None:
    """Fold a scale and shift that only convs or linears read into these; a shift only where they pad no zeros after it."""
    for node in list(graph.fx.nodes):
        if node.target is not scale_shift or not node.users:
            continue
        parts = parts_of_scale(graph, node)
        if not all(_takes_scale(graph, user, node, parts) for user in node.users):
            continue
        for user in list(node.users):
            arguments = ops.arguments_of(user)
            weight = graph.value(arguments["weight"]).double()
            old = graph.value(arguments["bias"])
            groups = arguments.get("groups", 1)
            inputs, per = weight.shape[1], weight.shape[0] // groups
            w, b = (None if v is None else v.flatten().expand(inputs * groups) for v in parts)
            shape = (1, inputs, *[1] * (weight.dim() - 2))
            scaled, shift = [], []
            for g in range(groups):
                part = weight[g * per : (g + 1) * per]
                own = slice(g * inputs, (g + 1) * inputs)
                scaled.append(part if w is None else part * w[own].reshape(shape))
                if b is not None:
                    shift.append((part * b[own].reshape(shape)).flatten(1).sum(1))
            bias = None if old is None else old.double()
            if b is not None:
                bias = torch.cat(shift) + (0 if bias is None else bias)
            _set_weights(graph, user, torch.cat(scaled), bias)
        graph.substitute(node, node.args[0])


def _takes_scale(graph: Graph, user: Node, scale: Node, parts: tuple[Part, Part]) -> bool:
    if user.op != "call_function" or user.args[0] is not scale:
        return False
    name = ops.operation_name(user)
    if name not in CONVS + ("linear",) or not _constant_weights(graph, user):
        return False
    rank = len(scale.meta["shape"])
    axes = {axis_of(v, rank) for v in parts if v is not None} - {None}
    if axes - {1 if name in CONVS else rank - 1}:
        return False
    padding = () if name == "linear" else ops.arguments_of(user)["padding"]
    padded = any(padding if isinstance(padding, (list, tuple)) else [padding])
    return not padded or parts[1] is None or not bool(parts[1].any())


def _set_weights(graph: Graph, conv: Node, weight: Tensor, bias: Part) -> None:
    """Replace the weights of one call; other calls of the same module keep the module's weights."""
    new_weight = graph.constant(weight, f"{conv.name}_weight", conv)
    new_bias = None if bias is None else graph.constant(bias, f"{conv.name}_bias", conv)
    conv.args = (conv.args[0], new_weight, new_bias, *conv.args[3:])
    conv.kwargs = {k: v for k, v in conv.kwargs.items() if k not in ("weight", "bias")}


# ---------------------------------------------------------------- parallel branches


@dataclass(frozen=True, eq=False)
class _Kernel:
    """An affine map of `source`: a convolution's parameters, lists with one entry per spatial dimension (a linear
    layer's are empty)."""

    source: Node
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
    """conv(x) ± conv(x) ± batch norm(x), as RepVGG and MobileOne are trained, is one convolution; and so is a layer
    with a low-rank update, W x + B (A x), one layer.

    The outputs of such branches largely cancel in their sum, so that relevance shared among them would explode.
    """
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or ops.operation_name(node) not in ("add", "sub"):
            continue
        arguments = ops.arguments_of(node)
        operands = [arguments["self"], arguments["other"]]
        if arguments["alpha"] != 1 or not all(_branch(n) and list(n.users) == [node] for n in operands):
            continue
        kernels = _of_one_source(graph, [_kernel(graph, n) for n in operands])
        sign = -1 if ops.operation_name(node) == "sub" else 1
        merged = None if operands[0] is operands[1] or kernels is None else _sum(kernels, sign)
        if merged is None:
            continue
        linear = ops.operation_name(operands[0]) == "linear"
        conv: Any = aten.linear.default if linear else getattr(aten, CONVS[len(merged.size) - 1]).default
        settings = () if linear else (merged.stride, merged.padding, merged.dilation, merged.groups)
        weight, bias = (
            graph.constant(value, f"{node.name}_{name}", node)
            for name, value in (("weight", merged.weight), ("bias", merged.bias))
        )
        meta = next((n.meta for n in operands if n.target is not scale_shift), operands[0].meta)
        new = graph.replace(node, conv, (merged.source, weight, bias, *settings))
        new.meta |= {key: meta[key] for key in ("path", "module") if key in meta}


def _branch(node: Any) -> bool:
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    return node.target is scale_shift or ops.operation_name(node) in CONVS + ("linear",)


def _of_one_source(graph: Graph, kernels: list[_Kernel | None]) -> list[_Kernel] | None:
    """Both maps as maps of one source: one may be a chain of two layers, as a low-rank update is."""
    first, second = kernels
    if first is None or second is None or len(first.size) != len(second.size):
        return None
    if first.source is second.source:
        return [first, second]
    if (longer := _through_source(graph, second)) is not None and longer.source is first.source:
        return [first, longer]
    if (longer := _through_source(graph, first)) is not None and longer.source is second.source:
        return [longer, second]
    return None


def _through_source(graph: Graph, outer: _Kernel) -> _Kernel | None:
    """outer(inner(x)) as one map of x, if the outer one mixes channels only; None: it is not such a chain."""
    if not _branch(outer.source) or len(outer.source.users) != 1 or outer.groups != 1:
        return None
    inner = _kernel(graph, outer.source)
    pointwise = set(outer.size) <= {1} and set(outer.stride) <= {1} and not any(outer.padding)
    if inner is None or inner.groups != 1 or not pointwise or len(inner.size) != len(outer.size):
        return None
    mixing = outer.weight.reshape(outer.weight.shape[:2])
    weight = (mixing @ inner.weight.flatten(1)).reshape(-1, *inner.weight.shape[1:])
    bias = mixing @ inner.bias + outer.bias
    return replace(inner, weight=weight, bias=bias)


def _kernel(graph: Graph, node: Node) -> _Kernel | None:
    """None: weights that are not constant, or a norm over another axis than the channels."""
    source: Any = node.args[0]
    if node.target is scale_shift:
        spatial, channels = len(node.meta["shape"]) - 2, node.meta["shape"][1]
        parts = parts_of_scale(graph, node)
        axes = {axis_of(v, spatial + 2) for v in parts if v is not None} - {None}
        if not 1 <= spatial <= 3 or axes - {1}:
            return None
        w, b = (
            torch.full((channels,), fill, dtype=torch.float64, device=graph.device)
            if v is None
            else v.flatten().expand(channels)
            for v, fill in zip(parts, (1.0, 0.0), strict=True)
        )
        ones, zeros = [1] * spatial, [0] * spatial
        return _Kernel(source, w.reshape(-1, 1, *ones), b, ones, zeros, ones, channels)
    a = ops.arguments_of(node)
    if not _constant_weights(graph, node) or isinstance(a.get("padding"), str):
        return None
    weight, bias = graph.value(a["weight"]), graph.value(a["bias"])
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    spatial = weight.dim() - 2
    stride, padding, dilation = (
        sizes_per_dimension(a.get(key, []), spatial) for key in ("stride", "padding", "dilation")
    )
    return _Kernel(
        source, weight.double(), bias.double(), stride, padding, dilation, a.get("groups", 1)
    )  # fmt: skip


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
    return replace(large, weight=weight, bias=bias, groups=groups)


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


# ---------------------------------------------------------------- zero pads


def merge_zero_pads(graph: Graph) -> None:
    """A zero pad and the convolution after it are one affine operation: the padding receives no relevance."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or ops.operation_name(node) not in CONVS:
            continue
        arguments = ops.arguments_of(node)
        pad = arguments["input"]
        if not (isinstance(pad, Node) and pad.op == "call_function"):
            continue
        if ops.operation_name(pad) not in ("constant_pad_nd", "pad"):
            continue
        padded = ops.arguments_of(pad)
        spatial = len(node.meta["shape"]) - 2
        if padded.get("mode", "constant") != "constant" or padded.get("value") not in (None, 0, 0.0):
            continue
        if len(padded["pad"]) > 2 * spatial or any(p < 0 for p in padded["pad"]):
            continue
        amounts = list(padded["pad"]) + [0] * (2 * spatial - len(padded["pad"]))
        rest = [arguments[k] for k in ("stride", "padding", "dilation", "groups")]
        graph.replace(
            node, padded_conv, (padded["self"], arguments["weight"], arguments["bias"], amounts, *rest)
        )
