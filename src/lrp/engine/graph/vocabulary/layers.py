"""Convolutions, linear layers and matrix products with a constant."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp.engine.affine import Affine
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.registry import register
from lrp.engine.graph.shapes import shape_of_one_image, sizes_per_dimension, sum_to_shape
from lrp.engine.structured_weights import all_weights_alike

CONV_NAMES = ("conv1d", "conv2d", "conv3d")
CONVOLUTIONS = frozenset({*CONV_NAMES, "padded_conv"})
CONVS: tuple[Any, ...] = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def padded_conv(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """A zero pad and the convolution that reads it, as one affine operation."""
    conv = CONVS[weight.dim() - 3]
    return conv(F.pad(image, pad), weight, bias, stride, padding, dilation, groups)


def per_channel(values: Tensor | None, dims: int) -> Tensor | None:
    """[C] as [C, 1, ...], to broadcast against [N, C, ...]."""
    return None if values is None else values.reshape(-1, *[1] * dims)


def _constant_weight(op: Operation) -> bool:
    return op.is_constant("weight") and op.is_constant("bias") and op.is_data(op.arguments["input"])


def _constant_padded(op: Operation) -> bool:
    return op.is_constant("weight") and op.is_constant("bias")


def _decided_later(op: Operation) -> bool:
    """No use of the operation is recognised as one of this family: `layer_kinds` decides which are."""
    return False


@register("conv1d", "conv2d", "conv3d", "padded_conv", family="linear", when=_decided_later)
@register("conv1d", "conv2d", "conv3d", family="conv", when=_constant_weight, allocates=True)
@register("padded_conv", family="conv", when=_constant_padded)
def _conv(op: Operation) -> Affine:
    weight, bias = op["weight"], op["bias"]
    n = weight.dim() - 2
    stride, padding, dilation = (sizes_per_dimension(op[key], n) for key in ("stride", "padding", "dilation"))
    groups = op["groups"]
    pad = list(op["pad"]) if op.name == "padded_conv" else [0] * 2 * n
    conv, transposed = CONVS[n - 1], TRANSPOSED[n - 1]
    before = [
        s + pad[2 * (n - 1 - d)] + pad[2 * (n - 1 - d) + 1]
        for d, s in enumerate(shape_of_one_image(op.input_shape())[-n:])
    ]
    after = shape_of_one_image(op.shape)[-n:]
    kernel = weight.shape[2:]
    # Rows left over by the stride are read by no output: the adjoint needs their number to restore the size.
    left = [
        before[d] - ((after[d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + 1)
        for d in range(n)
    ]

    # torch's float64 convolution in groups takes 20 times as long in the channels-last format, as in ConvNeXt.
    make_contiguous = groups > 1 and op.meta["dtype"] == torch.float64

    def forward(a: Any, w: Any, c: Any = None) -> Any:
        a = a.contiguous() if make_contiguous else a
        return conv(F.pad(a, pad) if any(pad) else a, w, c, stride, padding, dilation, groups)

    def adjoint(s: Any, w: Any) -> Any:
        s = s.contiguous() if make_contiguous else s
        same = groups == 1 and all_weights_alike(w)
        if same:  # all channels of the input receive the same: one of them is computed
            s, w = s.sum(1, keepdim=True), w[:1, :1].contiguous()
        c = transposed(s, w, None, stride, padding, left, groups, dilation)
        c = c.expand(-1, weight.shape[1], *[-1] * n) if same else c
        return F.pad(c, [-p for p in pad]) if any(pad) else c

    return Affine(forward, adjoint, weight, per_channel(bias, n), fused=True)


@register("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", family="conv", when=_constant_weight)
def _conv_transpose(op: Operation) -> Affine:
    weight = op["weight"]
    n = weight.dim() - 2
    stride, padding, extra, dilation = (
        sizes_per_dimension(op[key], n) for key in ("stride", "padding", "output_padding", "dilation")
    )
    groups, conv, transposed = op["groups"], CONVS[n - 1], TRANSPOSED[n - 1]

    def forward(a: Any, w: Any) -> Any:
        return transposed(a, w, None, stride, padding, extra, groups, dilation)

    # With more output padding than a stride, there is room for the kernel beyond the last input.
    rooms = any(e >= s for e, s in zip(extra, stride, strict=True))
    inner = shape_of_one_image(op.input_shape())[-n:]

    def adjoint(s: Any, w: Any) -> Any:
        c = conv(s, w, None, stride, padding, dilation, groups)
        for d in range(n) if rooms else ():
            c = c.narrow(d - n, 0, inner[d])
        return c

    return Affine(forward, adjoint, weight, per_channel(op["bias"], n))


@register("linear", family="conv", when=_decided_later)
@register("linear", family="linear", when=_constant_weight, allocates=True)
def _linear(op: Operation) -> Affine:
    def forward(a: Any, w: Any, c: Any = None) -> Any:
        return F.linear(a, w, c)

    def adjoint(s: Any, w: Any) -> Any:
        return F.linear(s, w.t())

    return Affine(forward, adjoint, op["weight"], op["bias"], fused=True)


def _one_constant_factor(op: Operation) -> bool:
    left, right = list(op.arguments)[:2]
    return len(op.data) == 1 and (op.is_constant(left) or op.is_constant(right))


@register("matmul", "mm", "bmm", "mv", family="linear", when=_one_constant_factor)
def _matmul_constant(op: Operation) -> Affine:
    left, right = list(op.arguments)[:2]
    data_left = op.is_data(op.arguments[left])
    weight = op[right if data_left else left]
    shape = op.input_shape()
    vector_weight, vector_data = weight.dim() == 1, len(shape) == 1
    if vector_weight:  # as a matrix of one column, or one row
        weight = weight.unsqueeze(-1 if data_left else 0)
    lost = -1 if data_left else -2  # the dimension that a vector does not have

    def forward(a: Any, w: Any) -> Any:
        z = a @ w if data_left else w @ a
        return z.squeeze(lost) if vector_weight else z

    def adjoint(s: Any, w: Any) -> Any:
        s = s.unsqueeze(lost) if vector_weight else s
        c = s @ w.mT if data_left else w.mT @ s
        return c if broadcast is None else sum_to_shape(c, broadcast, shape)

    # A constant with more dimensions than the data broadcasts the data.
    lead = list(torch.broadcast_shapes(tuple(shape_of_one_image(shape)[:-2]), weight.shape[:-2]))
    grown = lead != shape_of_one_image(shape)[:-2] and not vector_data
    broadcast = (*lead[: len(lead)], *shape[-2:]) if grown else None
    return Affine(forward, adjoint, weight)
