"""The captured graph -> the canonical graph: all rewrites, then facts about each operation for composites and rules."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph as FxGraph
from torch.fx import Node

from lrp.engine.graph import ops, registry
from lrp.engine.graph import vocabulary as vocabulary  # registers it
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.gates import signal_or_gate, values_or_attention_gate
from lrp.engine.graph.layer_kinds import unify_layers
from lrp.engine.graph.ops import Operation, data_nodes
from lrp.engine.graph.rewriting import distances as distances  # registers decompositions
from lrp.engine.graph.rewriting import recurrence as recurrence
from lrp.engine.graph.rewriting.blends import recognise_blends
from lrp.engine.graph.rewriting.decompositions import decompose
from lrp.engine.graph.rewriting.dtypes import (
    CASTS,
    cast_constants_to_dtype,
    cast_to_dtype,
    is_floating_dtype,
    replace_dtype_arguments,
)
from lrp.engine.graph.rewriting.fusion import (
    fold_scale_into_consumers,
    fold_scale_into_producer,
    merge_branches,
    merge_zero_pads,
    pass_scales_on,
)
from lrp.engine.graph.rewriting.rectifiers import recognise_rectifiers
from lrp.engine.graph.rewriting.scales import (
    normalise_input,
    recognise_scales,
    restore_scales,
    scale_products,
)
from lrp.engine.graph.rewriting.simplify import (
    drop_no_ops,
    fold_constants,
    simplify_batch_norms,
    simplify_constant_expansions,
    simplify_matmuls,
    simplify_paddings,
    simplify_pools,
    simplify_squeezes,
)
from lrp.engine.graph.signs import nonnegative_nodes
from lrp.engine.graph.tracing.captured import Captured

REWRITES = (
    replace_dtype_arguments,
    simplify_squeezes,
    drop_no_ops,
    recognise_rectifiers,
    decompose,
    recognise_blends,
    fold_constants,
    simplify_constant_expansions,
    simplify_pools,
    simplify_batch_norms,
    simplify_paddings,
    simplify_matmuls,
    recognise_scales,
    scale_products,
    fold_scale_into_producer,
    merge_branches,
    normalise_input,
    merge_zero_pads,
    pass_scales_on,
    fold_scale_into_consumers,
    restore_scales,
    cast_constants_to_dtype,
)


def canonize(
    captured: Captured,
    values: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    lay_out: bool = True,
    held: Collection[int] = (),
) -> Graph:
    """All rewrites, then the facts that rules need about the remaining operations.

    Args:
        values: the constants as they are now (`Captured.values`).
        dtype: what everything is computed in.
        lay_out: use the channels-last memory format where that is faster.
        held: the inputs that are constants, by number.
    """
    copy, env = FxGraph(), dict[Node, Node]()
    for node in captured.graph.nodes:
        env[node] = copy.node_copy(node, lambda n: env[n])
        env[node].meta = dict(node.meta)
    logits: Any = captured.graph.output_node().args[0]
    copy.output_node().args = (env[logits],)
    graph = Graph(copy, {n: cast_to_dtype(v, dtype) for n, v in values.items()}, dtype, device)
    _mark_entries(graph, held)
    for rewrite in REWRITES:
        rewrite(graph)
        graph.fx.eliminate_dead_code()
    for node in graph.fx.nodes:
        node.meta["dtype"] = dtype if is_floating_dtype(node.meta.get("dtype")) else node.meta.get("dtype")
        node.meta["device"] = device
    used = {str(n.target) for n in graph.fx.nodes if n.op == "get_attr"}
    graph.constants = {n: v for n, v in graph.constants.items() if n in used}
    _recognise(graph)
    unify_layers(graph)
    if lay_out:
        _lay_out(graph)
    return graph


def _lay_out(graph: Graph) -> None:
    """Use the channels-last memory format if images are convolved: convolutions are fastest with it.

    Not in float64, where a convolution in groups takes 20 times as long with it.
    """
    kernels = {
        str(o.node.args[1].target)
        for o in graph.operations.values()
        if o.name in ("conv2d", "padded_conv")
        and isinstance(o.node.args[1], Node)
        and o.node.args[1].op == "get_attr"
    }
    kernels = {name for name in kernels if graph.constants[name].dim() == 4}
    images = any(n.op == "placeholder" and len(n.meta["shape"]) == 4 for n in graph.entries)
    graph.channels_last = bool(kernels) and graph.dtype == torch.float32 and images
    if graph.channels_last:
        for name in kernels:
            graph.constants[name] = graph.constants[name].contiguous(memory_format=torch.channels_last)


def _mark_entries(graph: Graph, held: Collection[int]) -> None:
    """Relevance ends at floating inputs, and at the embeddings of inputs that hold ids, unless they are held."""
    for node in graph.inputs:
        if node.meta["input"] in held:
            node.meta.pop("entry", None)
            continue
        for embedding in _embeddings(node):
            embedding.meta["entry"] = node.meta["input"]


def _embeddings(ids: Node) -> list[Node]:
    """The embeddings of an input, with one vector for each of its elements."""
    found, waiting = list[Node](), [ids]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            name = ops.operation_name(user) if user.op == "call_function" else ""
            if name == "embedding" and user.args[1] is node:
                found.append(user)
            elif (
                name in (*CASTS, "clone", "contiguous", "view", "reshape")
                and user.meta["shape"] == ids.meta["shape"]
            ):
                waiting.append(user)
    return found


# ---------------------------------------------------------------- the remaining operations


def _recognise(graph: Graph) -> None:
    """Name every operation on data, its family, and the facts that composites use."""
    data, nonneg = data_nodes(graph.fx), nonnegative_nodes(graph.fx, graph.constants)
    behind: set[Node] = set()  # nodes that depend on the output of a conv or linear
    index = 0
    for node in graph.fx.nodes:
        is_operation = node.op == "call_function" and node.target is not operator.getitem
        if node not in data or "entry" in node.meta or not is_operation:
            if any(n in behind for n in node.all_input_nodes):
                behind.add(node)
            continue
        name, meta = ops.operation_name(node), node.meta
        operation = Operation(
            node, name, "unknown", meta["path"], meta["module"], meta["shape"] or (), meta["source"], index,
            arguments=ops.arguments_of(node), constants=graph.constants,
            data=[n for n in ops.nodes_read_by_operation(node) if n in data],
        )  # fmt: skip
        operation.family = next(
            (e.family for e in registry.vocabulary_entries(name) if e.when(operation)), "unknown"
        )
        if operation.family in ("product", "matmul"):
            choose = signal_or_gate if operation.family == "product" else values_or_attention_gate
            operation.signal, operation.note = choose(operation, graph.operations)
            operation.evident = operation.signal is not None
        operation.nonneg = all(n in nonneg for n in operation.data)
        affine = operation.family in ("conv", "linear")
        reached = any(n in behind for n in node.all_input_nodes)
        operation.first = affine and not reached
        if affine or reached:
            behind.add(node)
        index += 1
        graph.operations[node] = operation
