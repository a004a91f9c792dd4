"""graph -> graph: the same function in fewer, simpler operations. One pure function per rewrite.

A rewrite takes the graph and its constants and changes only its own copy; the model's tensors are read,
never written. What a rewrite computes (a folded weight) is new memory, in the explainer's precision.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node, map_arg

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph, inherited
from lrp.engine.graph.rewriting.dtypes import CASTS, cast_to_dtype, is_floating_dtype
from lrp.engine.graph.shapes import Batch, Shape, sizes_per_dimension
from lrp.engine.graph.vocabulary.layers import CONV_NAMES as CONVS
from lrp.engine.graph.vocabulary.layers import per_channel
from lrp.engine.graph.vocabulary.norms import scale_shift

aten = torch.ops.aten


NO_OPS = frozenset({
    "clone", "contiguous", "alias", "detach", "detach_", "lift", "lift_fresh", "lift_fresh_copy", "dropout",
    "feature_dropout", "alpha_dropout", "native_dropout",
})  # fmt: skip


SAME_SIZE = frozenset({
    "adaptive_avg_pool2d", "expand", "expand_as", "view", "view_as", "reshape", "squeeze",
})  # fmt: skip


def drop_no_ops(graph: Graph) -> None:
    """Remove copies, eval-mode dropout, casts between floating types, x + 0, pools and slices that keep the size."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        name, source = ops.operation_name(node), node.all_input_nodes[0]
        arguments = ops.arguments_of(node)
        same = source.meta.get("shape") == node.meta.get("shape")
        retyped = name in CASTS
        retyped = retyped and all(is_floating_dtype(n.meta.get("dtype")) for n in (node, source))
        whole = name in SAME_SIZE or (name == "slice" and arguments["step"] == 1)
        # Without the copies, a tensor may have another memory format.
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        nothing = (
            name in ("add", "sub") and not isinstance(arguments["other"], Node) and arguments["other"] == 0
        )
        nothing = nothing and is_floating_dtype(source.meta.get("dtype"))
        if (name in NO_OPS and not arguments.get("train")) or retyped or nothing or (whole and same):
            graph.substitute(node, source)


def simplify_squeezes(graph: Graph) -> None:
    """squeeze() removes the dimensions that have size 1 for any number of images: not that of one image alone."""
    for node in list(graph.fx.nodes):
        if node.target is aten.squeeze.default:
            source: Any = node.args[0]
            sizes: Shape = source.meta["shape"]
            ones = [d for d, size in enumerate(sizes) if size == 1]
            graph.replace(node, aten.squeeze.dims, (source, ones))


def fold_constants(graph: Graph) -> None:
    """Compute once what depends neither on pixels nor on the batch size."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or not node.users or _symbolic(node):
            continue
        if all(n.op == "get_attr" for n in node.all_input_nodes):
            args, kwargs = (map_arg(v, graph.value) for v in (node.args, node.kwargs))
            value = node.target(*args, **kwargs)
            if isinstance(value, Tensor):
                node.replace_all_uses_with(graph.constant(cast_to_dtype(value, graph.dtype), node.name, node))
            elif isinstance(value, (tuple, list)):
                for user in list(node.users):
                    part = value[user.args[1]]
                    user.replace_all_uses_with(
                        graph.constant(cast_to_dtype(part, graph.dtype), user.name, user)
                    )


BROADCASTS = frozenset({"add", "sub", "rsub", "mul", "div", "matmul", "bmm", "where", "masked_fill"})


def simplify_constant_expansions(graph: Graph) -> None:
    """Remove the expansion of a constant over the images where its readers broadcast it anyway."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or ops.operation_name(node) not in ("expand", "repeat"):
            continue
        constant: Any = node.args[0]
        if constant.op != "get_attr" or not _spread(constant.meta["shape"], node.meta["shape"]):
            continue
        for user in list(node.users):
            if user.op == "call_function" and ops.operation_name(user) in BROADCASTS:
                user.replace_input_with(node, constant)
                if ops.operation_name(user) == "bmm":
                    user.target = aten.matmul.default


def _spread(shape: Shape, wanted: Shape) -> bool:
    """Whether the first shape broadcasts to the second."""
    full = (*[1] * (len(wanted) - len(shape)), *shape)
    return all(s in (1, w) for s, w in zip(full, wanted, strict=True))


def _symbolic(node: Node) -> bool:
    """Whether it depends on the batch size: it has such a size, or is one."""
    return node.meta.get("shape") is None or any(isinstance(s, Batch) for s in node.meta["shape"])


MAX_POOLS = {
    aten.max_pool1d.default: aten.max_pool1d_with_indices.default,
    aten.max_pool2d.default: aten.max_pool2d_with_indices.default,
    aten.max_pool3d.default: aten.max_pool3d_with_indices.default,
}
MEANS = {
    "adaptive_avg_pool1d": aten.avg_pool1d.default,
    "adaptive_avg_pool2d": aten.avg_pool2d.default,
    "adaptive_avg_pool3d": aten.avg_pool3d.default,
}


def simplify_pools(graph: Graph) -> None:
    """A max pool also returns indices; an adaptive pool that divides evenly becomes an average pool or a mean."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function":
            continue
        name = ops.operation_name(node)
        if node.target in MAX_POOLS:
            args = tuple(ops.arguments_of(node).values())
            with graph.fx.inserting_before(node):
                both = graph.fx.call_function(MAX_POOLS[node.target], args)
            both.meta = {**inherited(node), "shapes": [node.meta["shape"]] * 2}
            graph.replace(node, operator.getitem, (both, 0))
        elif name in MEANS:
            source, n = node.args[0], int(name[-2])
            before, after = source.meta["shape"][-n:], node.meta["shape"][-n:]
            if all(out == 1 for out in after):
                graph.replace(node, aten.mean.dim, (source, list(range(-n, 0)), True))
            elif all(size % out == 0 for size, out in zip(before, after, strict=True)):
                kernel = [size // out for size, out in zip(before, after, strict=True)]
                graph.replace(node, MEANS[name], (source, kernel, kernel))


def simplify_batch_norms(graph: Graph) -> None:
    """A batch norm with fixed statistics is x w + b per channel: w = γ/√(σ² + e), b = β − μw."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or ops.operation_name(node) not in (
            "_native_batch_norm_legit_no_training", "batch_norm", "native_batch_norm", "instance_norm",
        ):  # fmt: skip
            continue
        arguments = ops.arguments_of(node)
        mean, var = graph.value(arguments["running_mean"]), graph.value(arguments["running_var"])
        if mean is None or var is None or arguments.get("training") or arguments.get("use_input_stats"):
            continue  # statistics of the batch itself: not a constant map, so not in the vocabulary
        gamma, beta = graph.value(arguments.get("weight")), graph.value(arguments.get("bias"))
        # In float64, so that folding loses no precision.
        w = (var.double() + arguments["eps"]).rsqrt() * (1 if gamma is None else gamma.double())
        b = (0 if beta is None else beta.double()) - mean.double() * w
        source: Node = arguments["input"]
        dims = len(source.meta["shape"]) - 2
        made = []
        for value, suffix in ((w, "weight"), (b, "bias")):
            shaped: Any = per_channel(value, dims)
            made.append(graph.constant(shaped, f"{node.name}_{suffix}", node))
        users = list(node.users)
        if ops.operation_name(node) in ("batch_norm", "instance_norm"):
            graph.replace(node, scale_shift, (source, *made))
            continue
        for user in users:
            if user.args[1] == 0:
                user.meta["shape"] = node.meta["shape"]
                graph.replace(user, scale_shift, (source, *made))


def simplify_paddings(graph: Graph) -> None:
    """Convert padding="same" to numbers; if its two sides differ, insert a zero pad in front."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or ops.operation_name(node) not in CONVS:
            continue
        a = ops.arguments_of(node)
        if not isinstance(a["padding"], str):
            continue
        kernel, n = a["weight"].meta["shape"][2:], len(node.meta["shape"]) - 2
        total = [
            sizes_per_dimension(a["dilation"], n)[d] * (kernel[d] - 1) * (a["padding"] == "same")
            for d in range(n)
        ]
        source, padding = a["input"], [t // 2 for t in total]
        if any(t % 2 for t in total):
            pads = [p for t in reversed(total) for p in (t // 2, t - t // 2)]
            with graph.fx.inserting_before(node):
                source = graph.fx.call_function(aten.constant_pad_nd.default, (source, pads))
            shape = a["input"].meta["shape"]
            grown = (*shape[:2], *(s + t for s, t in zip(shape[2:], total, strict=True)))
            source.meta = {**inherited(node), "shape": grown}
            padding = [0] * n
        conv = getattr(aten, ops.operation_name(node)).default
        graph.replace(
            node, conv, (source, a["weight"], a["bias"], a["stride"], padding, a["dilation"], a["groups"])
        )


def simplify_matmuls(graph: Graph) -> None:
    """A matrix product with a constant matrix on its right is a linear layer."""
    for node in list(graph.fx.nodes):
        if node.op != "call_function" or ops.operation_name(node) not in ("matmul", "mm"):
            continue
        x, weight = node.args
        value = graph.value(weight)
        if value is None or value.dim() != 2 or graph.value(x) is not None or len(x.meta["shape"]) < 2:
            continue
        turned = graph.constant(value.t().contiguous(), f"{node.name}_weight", node)
        graph.replace(node, aten.linear.default, (x, turned, None))
