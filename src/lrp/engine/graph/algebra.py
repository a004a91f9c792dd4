"""The algebra of each family: how relevance is mapped back through one operation.

The function that is registered for an operation returns one of these (or an `Affine`). Each states which data inputs
receive relevance under a rule (`receivers`), and calls the rule's equation (`hand_down`), which runs on proxies while
the program is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lrp.engine.affine import Affine, Flow, Site, total
from lrp.engine.graph.shapes import Shape, sum_to_shape
from lrp.engine.rules import Rule


@dataclass
class Step:
    """What the equation of a rule needs to know of one operation.

    Attributes:
        rule: the operation's; it has the equation of the operation's family.
        inputs: its data inputs' values.
        output: its value; a tuple where it has several.
        relevance: at each output; None for an unused output.
        read: an argument of the operation (a data input, a constant, a number) -> its value.
        site: the context of the operation.
    """

    rule: Any
    inputs: list[Any]
    output: Any
    relevance: list[Any]
    read: Callable[[Any], Any]
    site: Site


class Algebra:
    """Base class: `hand_down` calls the rule's equation."""

    def receivers(self, rule: Rule, inputs: int) -> list[int]:
        """The data inputs that get relevance."""
        return list(range(inputs))

    def hand_down(self, step: Step) -> Flow:
        """Relevance at the output -> relevance at the inputs; of an elementwise operation by default."""
        flow: Flow = step.rule.through_elementwise(step.relevance[0])
        return flow


@dataclass
class Activation(Algebra):
    """Acts on each element alone."""


@dataclass
class Matrix(Algebra):
    """An affine operation; its weights may be computed from its input and treated as constants, as in a layer norm.

    at: input -> the affine operation at this input. fixed: the operation, if its weights do not depend on the input.
    reads: nodes (indices, a grid), whose values `at` takes as further arguments.
    """

    at: Callable[..., Affine]
    fixed: Affine | None = None
    reads: Sequence[Any] = ()

    def hand_down(self, step: Step) -> Flow:
        a = step.inputs[0]
        operation = self.at(a, *(step.read(node) for node in self.reads))
        flow: Flow = step.rule.through_affine(operation, step.site, a, step.output, step.relevance[0])
        return flow


def as_algebra(made: Algebra | Affine) -> Algebra:
    return Matrix(lambda a: made, made) if isinstance(made, Affine) else made


@dataclass
class Movement(Algebra):
    """Copies elements from inputs to outputs.

    back: relevance per output -> relevance per data input; constant: -> the sum that constants among the
    inputs receive, if there can be any. reads: nodes (masks, indices, the operation itself), whose values both take as
    further arguments.
    """

    back: Callable[..., list[Any]]
    constant: Callable[..., Any] | None = None
    reads: Sequence[Any] = ()

    def hand_down(self, step: Step) -> Flow:
        values = [step.read(node) for node in self.reads]
        back, constant = self.back, self.constant
        known = Movement(
            lambda r: back(r, *values), None if constant is None else lambda r: constant(r, *values)
        )
        flow: Flow = step.rule.through_movement(known if values else self, step.relevance)
        return flow


@dataclass
class Sum(Algebra):
    """Σ c_i x_i over operands that may broadcast to `shape`.

    terms: (operand: as in the graph, c); shapes: of the data inputs; data: which those are. masked: a constant
    among them holds −inf, which receives all relevance at these outputs.
    """

    terms: list[tuple[Any, float]]
    shape: Shape
    shapes: list[Shape]
    data: list[Any]
    masked: bool = False

    def hand_down(self, step: Step) -> Flow:
        summands, indices = [], []
        z, r, taken = step.output, step.relevance[0], 0.0
        if self.masked:
            closed = z.isinf()
            taken = total(torch.where(closed, r, 0.0))
            z, r = torch.where(closed, 0.0, z), torch.where(closed, 0.0, r)
        for operand, factor in self.terms:
            x, is_data = step.read(operand), operand in self.data
            if self.masked and not is_data:
                x = torch.where(x.isinf(), 0.0, x)
            summands.append((x if factor == 1 else x * factor, is_data))
            if is_data:
                indices.append(self.data.index(operand))
        flow: Flow = step.rule.through_sum(summands, z, r, len(self.shape))
        shares: list[Any] = [None] * len(step.inputs)
        for index, share in zip(indices, flow.relevance, strict=True):
            share = sum_to_shape(share, self.shape, self.shapes[index])
            shares[index] = share if shares[index] is None else shares[index] + share
        return flow._replace(relevance=tuple(shares), bias=flow.bias + taken)


class Binary(Algebra):
    """Two operands, in order, as in the graph; `data`: which nodes are data."""

    operands: tuple[Any, Any]
    data: list[Any]

    @property
    def data_sides(self) -> Sequence[int]:
        """The operands that are data, 0 and 1."""
        return [side for side in (0, 1) if self.operands[side] in self.data]

    def receivers(self, rule: Rule, inputs: int) -> list[int]:
        return sorted(
            {self.data.index(self.operands[side]) for side in rule.takes(self) if side in self.data_sides}
        )

    def collected(self, shares: Sequence[Any], inputs: int) -> tuple[Any, ...]:
        """Relevance per operand -> per data input; an input may be both operands."""
        received: list[Any] = [None] * inputs
        for side in self.data_sides:
            if shares[side] is not None:
                index = self.data.index(self.operands[side])
                received[index] = shares[side] if received[index] is None else received[index] + shares[side]
        return tuple(received)


@dataclass
class Product(Binary):
    """x · y or x / y; they may broadcast to `shape`.

    shapes: of the operands. signal: which operand receives all relevance; None if unknown.
    """

    operands: tuple[Any, Any]
    shapes: tuple[Shape, Shape]
    shape: Shape
    signal: int | None
    data: list[Any]

    def hand_down(self, step: Step) -> Flow:
        x, y = (step.read(operand) for operand in self.operands)
        flow: Flow = step.rule.through_product(self, x, y, step.output, step.relevance[0])
        shares = [
            None if share is None else sum_to_shape(share, self.shape, shape)
            for share, shape in zip(flow.relevance, self.shapes, strict=True)
        ]
        return flow._replace(relevance=self.collected(shares, len(step.inputs)))


@dataclass
class Bilinear(Binary):
    """Σ a b over some indices, as a matrix product of two operands.

    backs: (s, value of the other operand) -> s mapped back to each operand, of its shape; weights: which operand
    is attention or a constant, None if neither is; dims: of the output.
    """

    operands: tuple[Any, Any]
    backs: tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
    weights: int | None
    dims: int
    data: list[Any]

    def hand_down(self, step: Step) -> Flow:
        x, y = (step.read(operand) for operand in self.operands)
        flow: Flow = step.rule.through_matmul(self, x, y, step.output, step.relevance[0])
        return flow._replace(relevance=self.collected(flow.relevance, len(step.inputs)))


@dataclass
class Softmax(Algebra):
    """Softmax along a dimension."""

    dim: int
    data_sides: Sequence[int] = (0,)

    def receivers(self, rule: Rule, inputs: int) -> list[int]:
        return list(rule.takes(self))

    def hand_down(self, step: Step) -> Flow:
        flow: Flow = step.rule.through_softmax(self, step.inputs[0], step.output, step.relevance[0])
        return flow


@dataclass
class MaxPool(Algebra):
    """Largest element of each window.

    route: (relevance, a, output) -> relevance at the largest elements; average: the average pool over the same windows, and
    over (side, stride) windows where those are given.
    """

    route: Callable[[Any, Any, Any], Any]
    average: Callable[[tuple[int, int] | None], Affine]

    def hand_down(self, step: Step) -> Flow:
        a, z, r = step.inputs[0], step.output, step.relevance[0]
        flow: Flow = step.rule.through_maxpool(self, step.site, a, z, r)
        return flow
