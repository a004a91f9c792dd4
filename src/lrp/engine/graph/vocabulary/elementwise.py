"""Activations, sums, products: operations on each element alone, or on elements at the same position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Activation, Product, Sum
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.registry import register
from lrp.engine.graph.shapes import Shape, sum_to_shape


def _same_shape(op: Operation) -> bool:
    return len(op.data) == 1 and op.input_shape() == op.shape


def _from_zero(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    """A function: arguments -> whether the lower limit, which has one of these names, is 0."""
    return lambda arguments: next((arguments[n] for n in names if n in arguments), None) == 0


def _both_ends(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("min") is not None and arguments.get("max") is not None


def _activations(*names: str, **facts: Any) -> Callable[..., Any]:
    """Functions of one tensor of data, element by element."""
    return register(*names, family="activation", when=_same_shape, **facts)


@_activations(
    "prelu", "elu", "selu", "celu", "hardshrink", "softshrink", "log_sigmoid", "expm1", "log",
    "log1p", "rsqrt", "reciprocal", "sin", "cos", "atan", "clamp_max", "log2", "log10", "exp2", "rrelu",
    "rrelu_with_noise_functional", allocates=True,
)  # fmt: skip
@_activations("leaky_relu", "gelu", "silu", "mish", "hardswish", "sqrt", nonnegative="kept", allocates=True)
@_activations("exp", "abs", "square", "softplus", nonnegative="always", allocates=True)
@_activations("sigmoid", "hardsigmoid", nonnegative="always", gate="squashed", allocates=True)
@_activations("tanh", nonnegative="kept", gate="signed", allocates=True)
@_activations("erf", gate="signed")
@_activations("relu", nonnegative="always", rectifies=lambda arguments: True, allocates=True)
@_activations("relu6", nonnegative="always", rectifies=lambda arguments: True, gate="bounded")
@_activations("hardtanh", rectifies=_from_zero("min_val"), gate="bounded", allocates=True)
@_activations("clamp", rectifies=_from_zero("min"), gate="bounded", bounded=_both_ends)
@_activations("clamp_min", rectifies=_from_zero("min"))
@_activations("threshold", rectifies=lambda arguments: arguments["threshold"] == arguments["value"] == 0)
def _activation(op: Operation) -> Activation:
    return Activation()


@register("pow", "maximum", "minimum", "fmod", "remainder", "atan2", family="activation", when=_same_shape)
def _with_a_constant(op: Operation) -> Activation:
    return Activation()


@register("div", family="activation", when=lambda op: _same_shape(op) and not _numerator(op))
def _constant_over_data(op: Operation) -> Activation:
    """c / x: a function of x, element by element."""
    return Activation()


def _numerator(op: Operation) -> bool:
    return op.is_data(op.arguments["self"])


def _shapes(op: Operation) -> list[Shape]:
    return [node.meta["shape"] for node in op.data]


def sum_factors(name: str, alpha: Any) -> tuple[float, float]:
    """What `self` and `other` are multiplied by in add, sub and rsub."""
    factor = float(alpha)
    return {"add": (1.0, factor), "sub": (1.0, -factor), "rsub": (-factor, 1.0)}[name]


@register("add", family="sum", nonnegative="kept", numbers=("other", "alpha"), allocates=True)
@register("sub", "rsub", family="sum", allocates=True)
def _add(op: Operation) -> Sum:
    first, second = op.arguments["self"], op.arguments["other"]
    signs = sum_factors(op.name, op["alpha"])
    fixed = [op[name] for name in ("self", "other") if not op.is_data(op.arguments[name])]
    # The values of a held operand are not known here.
    masked = any(v.isinf().any() if isinstance(v, torch.Tensor) else isinstance(v, fx.Node) for v in fixed)
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


@register("mul", family="product", when=_is_product, nonnegative="kept", numbers=("other",), allocates=True)
@register(
    "div",
    family="product",
    when=_is_product,
    allocates=True,
    steps=lambda arguments: arguments.get("rounding_mode") is not None,
)
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
        return sum_to_shape(s * w, op.shape, shape)

    return Affine(lambda a, w: a * w, adjoint, 1 / weight if op.name == "div" else weight)


@register("neg", family="scale")
def _negative(op: Operation) -> Affine:
    return Affine(lambda a, w: a * w, lambda s, w: s * w, torch.full((), -1.0, **op.meta))
