"""Norms: batch norm with fixed statistics, and those whose scale is computed from the data and treated as a constant."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Activation, Matrix
from lrp.engine.graph.ops import Operation, operation_name
from lrp.engine.graph.registry import register
from lrp.engine.graph.shapes import Batch, shape_of_one_image
from lrp.engine.structured_weights import Centred


def scale_shift(image: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x w + b, elementwise: what a batch norm is, once its statistics are constants; None: no factor, no shift."""
    scaled = image if weight is None else image * weight
    return scaled if bias is None else scaled + bias


def normalise(image: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x w + b in front of the first layer: relevance passes through, as if the net's input were normalised already."""
    return scale_shift(image, weight, bias)


def _after_a_norm_of_the_data(op: Operation) -> bool:
    """Whether it is the learned part of a norm that is written out, or of one without: (x - mean) / σ · w + b."""
    source = op.data[0]
    name = operation_name(source) if source.op == "call_function" else ""
    if name in ("mul", "div"):
        return sum(n.op != "get_attr" for n in source.all_input_nodes) == 2
    return name in ("layer_norm", "group_norm", "instance_norm", "rms_norm")


@register("scale_shift", family="layer_norm", when=_after_a_norm_of_the_data)
@register("scale_shift", family="norm")
def _norm(op: Operation) -> Affine:
    return Affine(lambda a, w: a * w, lambda s, w: s * w, op["weight"], op["bias"])


@register("normalise", family="activation")
def _normalised_input(op: Operation) -> Activation:
    return Activation()


def _fixed(op: Operation) -> bool:
    return op.is_constant("weight") and (op.arguments.get("bias") is None or op.is_constant("bias"))


def _of_each(op: Operation) -> bool:
    """Whether the norm is not over the batch, where images would share a scale."""
    over = op.input_shape()[-len(op["normalized_shape"]) :]
    return _fixed(op) and not any(isinstance(size, Batch) for size in over)


@register("layer_norm", family="layer_norm", when=_of_each, allocates=True)
def _layer_norm(op: Operation) -> Matrix:
    dims = list(range(-len(op["normalized_shape"]), 0))
    n, weight, bias, eps = math.prod(op["normalized_shape"]), op["weight"], op["bias"], op["eps"]

    def at(a: Any) -> Affine:
        own = (a.var(dim=dims, correction=0, keepdim=True) + eps).rsqrt().expand_as(a)
        own = own if weight is None else own * weight

        def forward(a: Any, w: Centred) -> Any:
            return w.own * a + w.shared * a.sum(dim=dims, keepdim=True)

        def adjoint(s: Any, w: Centred) -> Any:
            return w.own * s + (w.shared * s).sum(dim=dims, keepdim=True)

        return Affine(forward, adjoint, Centred(own, -own / n), bias)

    return Matrix(at)


@register("rms_norm", family="layer_norm", when=_of_each)
def _rms_norm(op: Operation) -> Matrix:
    dims, weight = list(range(-len(op["normalized_shape"]), 0)), op["weight"]
    eps = torch.finfo(op.meta["dtype"]).eps if op["eps"] is None else op["eps"]

    def at(a: Any) -> Affine:
        own = (a.square().mean(dim=dims, keepdim=True) + eps).rsqrt()
        own = own if weight is None else own * weight
        return Affine(lambda a, w: a * w, lambda s, w: s * w, own)

    return Matrix(at)


@register("group_norm", family="layer_norm", when=_fixed, allocates=True)
def _group_norm(op: Operation) -> Matrix:
    return _over_groups(op, op["num_groups"])


def _of_the_image(op: Operation) -> bool:
    return _fixed(op) and bool(op["use_input_stats"])


@register("instance_norm", family="layer_norm", when=_of_the_image)
def _instance_norm(op: Operation) -> Matrix:
    return _over_groups(op, shape_of_one_image(op.shape)[1])


def _over_groups(op: Operation, groups: int) -> Matrix:
    """Viewed as [N, groups, channels of a group, positions]; mean and scale of each group."""
    channels, *space = shape_of_one_image(op.shape)[1:]
    weight, bias, eps = op["weight"], op["bias"], op["eps"]
    each, n = channels // groups, channels // groups * math.prod(space)
    apart, together = (-1, groups, each, math.prod(space)), (-1, channels, *space)
    gain = None if weight is None else weight.reshape(1, groups, each, 1)
    shift = None if bias is None else bias.reshape(-1, *[1] * len(space))

    def at(a: Any) -> Affine:
        a = a.reshape(apart)
        own = (a.var(dim=[2, 3], correction=0, keepdim=True) + eps).rsqrt().expand_as(a)
        own = own if gain is None else own * gain

        def forward(a: Any, w: Centred) -> Any:
            a = a.reshape(apart)
            return (w.own * a + w.shared * a.sum(dim=[2, 3], keepdim=True)).reshape(together)

        def adjoint(s: Any, w: Centred) -> Any:
            s = s.reshape(apart)
            return (w.own * s + (w.shared * s).sum(dim=[2, 3], keepdim=True)).reshape(together)

        return Affine(forward, adjoint, Centred(own, -own / n), shift)

    return Matrix(at)


@register(
    "linalg_vector_norm",
    family="pool",
    when=lambda op: op["ord"] == 2 and bool(op["dim"]),
    nonnegative="always",
)
def _length(op: Operation) -> Matrix:
    """‖x‖ = Σ x · (x / ‖x‖): a sum whose weights, the direction of x, are treated as constants."""
    dims, keep, rank = op["dim"], op["keepdim"], len(op.input_shape())
    dims = sorted(d % rank for d in dims)

    def kept(s: Any) -> Any:
        for d in () if keep else dims:
            s = s.unsqueeze(d)
        return s

    def at(a: Any) -> Affine:
        length = a.square().sum(dim=dims, keepdim=True).sqrt()
        direction = torch.where(length == 0, 0.0, a / length)
        return Affine(lambda a, w: (a * w).sum(dim=dims, keepdim=keep), lambda s, w: kept(s) * w, direction)

    return Matrix(at)
