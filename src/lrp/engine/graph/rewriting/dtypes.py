"""One floating dtype, the explainer's, for the whole graph: its constants and the dtype arguments of its operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrp.engine.graph.canonical import Graph

CASTS = frozenset({"_to_copy", "to", "type_as", "float", "double", "half", "bfloat16"})  # operations


def is_floating_dtype(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def cast_to_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to another floating type; integers and masks stay."""
    return value.to(dtype) if value.is_floating_point() else value


def replace_dtype_arguments(graph: Graph) -> None:
    """Replace every floating dtype argument by the explainer's dtype: a half-precision model runs in float32."""
    for node in graph.fx.nodes:
        if node.op == "call_function":
            node.args = tuple(graph.dtype if is_floating_dtype(a) else a for a in node.args)
            node.kwargs = {k: graph.dtype if is_floating_dtype(a) else a for k, a in node.kwargs.items()}


def cast_constants_to_dtype(graph: Graph) -> None:
    """Convert folded weights, computed in float64, to the precision of the explainer."""
    graph.constants = {name: cast_to_dtype(value, graph.dtype) for name, value in graph.constants.items()}
