"""What the algebra of a family is: how relevance can go back through one operation.

An operation's lowering gives one of these (or an `Affine`). Each says which data inputs receive relevance
under a rule (`receivers`), and hands it down (`hand_down`); the latter runs on proxies while the program is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lrp.engine.affine import Affine, Flow, fraction, total
from lrp.engine.graph.capture import Shape
from lrp.engine.rules import (
    AffineRule,
    Constant,
    Epsilon,
    Halves,
    Proportional,
    Rule,
    SignalTakesAll,
    SoftmaxTaylor,
    SumRule,
    Values,
)  # fmt: skip


@dataclass
class Step:
    """One operation while relevance goes through it.

    Attributes:
        rule: the operation's.
        inputs: its data inputs' values.
        output: its value; a tuple where it has several.
        relevance: at each output; None where nobody read it.
        read: an argument of the operation (a data input, a constant, a number) -> its value.
        equip: gives an `Affine` what rules may ask about it.
    """

    rule: Rule
    inputs: list[Any]
    output: Any
    relevance: list[Any]
    read: Callable[[Any], Any]
    equip: Callable[[Affine, Any], Affine]


class Algebra:
    def receivers(self, rule: Rule, inputs: int) -> list[int]:
        """The data inputs that get relevance."""
        return list(range(inputs))

    def hand_down(self, step: Step) -> Flow:
        raise NotImplementedError


@dataclass
class Activation(Algebra):
    """Acts on each element alone: relevance passes (`Pass`), and nothing is computed."""


@dataclass
class Movement(Algebra):
    """Carries elements from inputs to outputs.

    back: relevance per output -> relevance per data input; constant: -> the sum that constants among the
    inputs receive, where there can be any.
    """

    back: Callable[[list[Any]], list[Any]]
    constant: Callable[[list[Any]], Any] | None = None

    def hand_down(self, step: Step) -> Flow:
        bias = self.constant(step.relevance) if self.constant else 0.0
        return Flow(tuple(self.back(step.relevance)), bias=bias)


def sum_to(r: Any, shape: Shape, wanted: Shape) -> Any:
    """Sum relevance of `shape` back over the dimensions along which an operand of shape `wanted` was broadcast."""
    extra = len(shape) - len(wanted)
    if extra:
        r = r.sum(dim=list(range(extra)))
    grown = [i for i, size in enumerate(wanted) if size == 1 and shape[i + extra] != 1]
    return r.sum(dim=grown, keepdim=True) if grown else r


@dataclass
class Sum(Algebra):
    """Σ c_i x_i over operands that may broadcast to `shape`.

    terms: (operand: as in the graph, c); shapes: of the data inputs; data: which those are. masked: a constant
    among them holds −inf, which takes all that arrives there.
    """

    terms: list[tuple[Any, float]]
    shape: Shape
    shapes: list[Shape]
    data: list[Any]
    masked: bool = False

    def hand_down(self, step: Step) -> Flow:
        assert isinstance(step.rule, SumRule)
        summands, places = [], []
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
                places.append(self.data.index(operand))
        flow = step.rule.propagate_sum(summands, z, r, len(self.shape))
        shares: list[Any] = [None] * len(step.inputs)
        for place, share in zip(places, flow.relevance, strict=True):
            share = sum_to(share, self.shape, self.shapes[place])
            shares[place] = share if shares[place] is None else shares[place] + share
        return flow._replace(relevance=tuple(shares), bias=flow.bias + taken)


@dataclass
class Product(Algebra):
    """x · y or x / y, operands in order, as in the graph; they may broadcast to `shape`.

    shapes: theirs. signal: which operand takes all, None if that cannot be told; data: which are data.
    """

    operands: tuple[Any, Any]
    shapes: tuple[Shape, Shape]
    shape: Shape
    signal: int | None
    data: list[Any]

    def _sides(self, rule: Rule) -> list[int]:
        """The operands that take relevance."""
        of_data = [side for side in (0, 1) if self.operands[side] in self.data]
        signal = rule.signal if isinstance(rule, SignalTakesAll) and rule.signal is not None else self.signal
        if signal in of_data and not (isinstance(rule, Halves) and len(of_data) == 2):
            return [signal]
        return of_data

    def receivers(self, rule: Rule, inputs: int) -> list[int]:
        return sorted({self.data.index(self.operands[side]) for side in self._sides(rule)})

    def hand_down(self, step: Step) -> Flow:
        sides, r = self._sides(step.rule), step.relevance[0]
        shares: list[Any] = [None] * len(step.inputs)
        for side in sides:
            share = sum_to(r / len(sides) if len(sides) > 1 else r, self.shape, self.shapes[side])
            place = self.data.index(self.operands[side])
            shares[place] = share if shares[place] is None else shares[place] + share
        return Flow(tuple(shares))


@dataclass
class Bilinear(Algebra):
    """Σ a b over some indices, as a matrix product of two operands, as in the graph.

    backs: (s, value of the other operand) -> what s gives to each side, of its shape; weights: which operand
    is attention or a constant, None if neither is; dims: of the output; data: which are data.
    """

    operands: tuple[Any, Any]
    backs: tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
    weights: int | None
    dims: int
    data: list[Any]

    def _sides(self, rule: Rule) -> list[int]:
        of_data = [side for side in (0, 1) if self.operands[side] in self.data]
        if len(of_data) == 2 and isinstance(rule, Values) and self.weights is not None:
            return [1 - self.weights]
        return of_data

    def receivers(self, rule: Rule, inputs: int) -> list[int]:
        return sorted({self.data.index(self.operands[side]) for side in self._sides(rule)})

    def hand_down(self, step: Step) -> Flow:
        assert isinstance(step.rule, Halves | Values)
        sides = self._sides(step.rule)
        r = step.relevance[0] if len(sides) == 1 else step.relevance[0] / 2
        s, epsilon, dropped = fraction(r, step.output, step.rule, dims=self.dims)
        shares: list[Any] = [None] * len(step.inputs)
        for side in sides:
            a, b = (step.read(self.operands[i]) for i in (side, 1 - side))
            share, place = a * self.backs[side](s, b), self.data.index(self.operands[side])
            shares[place] = share if shares[place] is None else shares[place] + share
        return Flow(tuple(shares), 0.0, len(sides) * epsilon, len(sides) * dropped)


@dataclass
class Softmax(Algebra):
    """Softmax along a dimension."""

    dim: int

    def receivers(self, rule: Rule, inputs: int) -> list[int]:
        return [] if isinstance(rule, Constant) else [0]

    def hand_down(self, step: Step) -> Flow:
        r = step.relevance[0]
        if isinstance(step.rule, SoftmaxTaylor):
            return step.rule.propagate(step.inputs[0], step.output, r, self.dim)
        return Flow((None,), bias=total(r))


@dataclass
class MaxPool(Algebra):
    """Largest element of each window.

    route: (relevance, a, output) -> to the winners; average: the average pool over the same windows, and
    over (side, stride) windows where those are given.
    """

    route: Callable[[Any, Any, Any], Any]
    average: Callable[[tuple[int, int] | None], Affine]

    def hand_down(self, step: Step) -> Flow:
        rule, a, r = step.rule, step.inputs[0], step.relevance[0]
        if not isinstance(rule, Proportional):
            return Flow((self.route(r, a, step.output),))
        average = step.equip(self.average(rule.window), rule.window)
        epsilon = Epsilon(rule.epsilon, relative=rule.relative)
        return epsilon.propagate(average, a, average.forward(a, average.weight), r)


@dataclass
class Scaled(Algebra):
    """An affine operation whose weights come from its own input, and count as constants: a layer norm.

    at: a -> the affine operation there.
    """

    at: Callable[[Any], Affine]

    def hand_down(self, step: Step) -> Flow:
        assert isinstance(step.rule, AffineRule)
        a = step.inputs[0]
        return step.rule.propagate(step.equip(self.at(a), None), a, step.output, step.relevance[0])
