"""Activations, sums, products: what acts on each element alone, or joins elements of equal place."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Activation, Product, Sum, sum_to
from lrp.engine.graph.capture import Shape
from lrp.engine.graph.ops import Operation, register

# Each is a function of one tensor of data, element by element.
ACTIVATIONS = (
    "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "softsign", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold", "sigmoid",
    "log_sigmoid", "tanh", "erf", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "abs", "square", "sin",
    "cos", "atan", "clamp", "clamp_min", "clamp_max", "log2", "log10", "exp2", "rrelu", "rrelu_with_noise_functional",
)  # fmt: skip


def _same_shape(op: Operation) -> bool:
    return len(op.data) == 1 and op.input_shape() == op.shape


@register(*ACTIVATIONS, family="activation", when=_same_shape)
def _activation(op: Operation) -> Activation:
    return Activation()


@register("pow", "maximum", "minimum", "fmod", "remainder", "atan2", family="activation", when=_same_shape)
def _with_a_constant(op: Operation) -> Activation:
    return Activation()


@register("div", "true_divide", family="activation", when=lambda op: _same_shape(op) and not _numerator(op))
def _constant_over_data(op: Operation) -> Activation:
    """c / x: a function of x, element by element."""
    return Activation()


def _numerator(op: Operation) -> bool:
    return op.is_data(op.arguments["self"])


def _shapes(op: Operation) -> list[Shape]:
    return [node.meta["shape"] for node in op.data]


@register("add", "sub", "rsub", family="sum")
def _add(op: Operation) -> Sum:
    first, second = op.arguments["self"], op.arguments["other"]
    factor = float(op["alpha"])
    signs = {"add": (1.0, factor), "sub": (1.0, -factor), "rsub": (-factor, 1.0)}[op.name]
    fixed = [op[name] for name in ("self", "other") if op.is_constant(name)]
    masked = any(isinstance(v, torch.Tensor) and bool(torch.isinf(v).any()) for v in fixed)
    return Sum(list(zip((first, second), signs, strict=True)), op.shape, _shapes(op), op.data, masked)


def _operand_shape(value: Any) -> Shape:
    return value.meta["shape"] if isinstance(value, fx.Node) else ()


# ---------------------------------------------------------------- products


def _is_scale(op: Operation) -> bool:
    """Data times a constant, or over one."""
    constant = "other" if _numerator(op) else "self"
    return _is_product(op) and len(op.data) == 1 and op.is_constant(constant)


def _is_product(op: Operation) -> bool:
    return op.arguments.get("rounding_mode") is None and (op.name == "mul" or _numerator(op))


@register("mul", "div", family="product", when=_is_product)
def _product(op: Operation) -> Product:
    operands = op.arguments["self"], op.arguments["other"]
    shapes = _operand_shape(operands[0]), _operand_shape(operands[1])
    return Product(operands, shapes, op.shape, op.signal, op.data)


@register("mul", "div", family="scale", when=_is_scale)
def _scale(op: Operation) -> Affine:
    constant = op["other"] if _numerator(op) else op["self"]
    weight = torch.as_tensor(constant, **op.meta)
    shape = op.input_shape()

    def adjoint(s: Any, w: Any) -> Any:
        return sum_to(s * w, op.shape, shape)

    return Affine(lambda a, w: a * w, adjoint, 1 / weight if op.name == "div" else weight)


@register("neg", family="scale")
def _negative(op: Operation) -> Affine:
    return Affine(lambda a, w: a * w, lambda s, w: s * w, torch.full((), -1.0, **op.meta))
