"""Replacements for the operations of a program that ONNX has no operator for."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

Sides = Sequence[int]


def rewrite_for_onnx(program: fx.GraphModule) -> fx.GraphModule:
    """The same program, of operations that ONNX has operators for."""
    made = copy.copy(program)
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for node in graph.nodes:
        node.target = STEPS.get(node.target, node.target)
    made.graph = graph
    return made


def average_pool_back_for_onnx(
    s: Tensor,
    like: Tensor,
    kernel: Sides,
    stride: Sides,
    padding: Sides,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """The adjoint of an average pool: from its windows [N, C, *out] to its input, of the size of `like`.

    Each window adds s / divisor to every element that it covers: a transposed convolution with ones.
    """
    sizes, axes = like.shape[2:], range(len(kernel))
    for axis in axes:
        counts = [
            _counted(i * stride[axis] - padding[axis], kernel[axis], sizes[axis], padding[axis], include_pad)
            for i in range(s.shape[2 + axis])
        ]
        parts = s.new_tensor([1 if divisor else count for count in counts])
        s = s / parts.view([-1 if a == axis else 1 for a in axes])
    if divisor:
        s = s / divisor
    channels, ones = s.shape[1], s.new_ones((s.shape[1], 1, *kernel))
    spread = (F.conv_transpose2d if len(kernel) == 2 else F.conv_transpose3d)(
        s, ones, stride=list(stride), groups=channels
    )
    edges: list[int] = []  # crops the padding; elements that no window covers are 0
    for axis in reversed(axes):
        edges += [-padding[axis], sizes[axis] + padding[axis] - spread.shape[2 + axis]]
    return F.pad(spread, edges)


def _counted(start: int, side: int, size: int, padding: int, include_pad: bool) -> int:
    """How many elements of a window count in its mean, along one axis."""
    low, high = (-padding, size + padding) if include_pad else (0, size)
    return min(start + side, high) - max(start, low)


STEPS = {
    torch.ops.aten.avg_pool2d_backward: average_pool_back_for_onnx,
    torch.ops.aten.avg_pool3d_backward: average_pool_back_for_onnx,
}
