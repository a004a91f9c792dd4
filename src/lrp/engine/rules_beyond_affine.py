"""The rules for operations that are not affine: activations, movement, maxima, sums, products, attention.

The algebra object that a rule receives (`lrp.engine.graph.algebra`) describes the operation and maps relevance back
through it; the rule decides how much of it each operand receives.

Sources: Bach et al. 2015 (winner takes all); Arras et al. 2017 (gates); Ali et al. 2022 (CP-LRP); Achtibat et al. 2024
(AttnLRP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lrp.engine.affine import Affine, Flow, Site, fraction, total
from lrp.engine.rules import AnyStabilised, Epsilon, Rule, SumRule
from lrp.errors import RuleError

if TYPE_CHECKING:
    from lrp.engine.graph.algebra import Bilinear, MaxPool, Movement, Product, Softmax
    from lrp.engine.graph.ops import Operation


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged, element by element: activations, affine operations that keep the shape."""

    moves: ClassVar[bool] = True

    def through_elementwise(self, relevance: Any) -> Flow:
        return Flow((relevance,))

    def through_affine(self, op: Affine, site: Site, a: Any, z: Any, relevance: Any) -> Flow:
        return Flow((relevance,))

    def refusal(self, operation: Operation) -> str | None:
        if len(operation.data) != 1:
            return f"it has {len(operation.data)} inputs, and Pass is defined for one."
        if operation.input_shape() != operation.shape:
            before, after = (operation.shown(shape) for shape in (operation.input_shape(), operation.shape))
            return f"it changes the shape from {before} to {after}, and Pass hands relevance on element by element; use Epsilon()."
        return None


@dataclass(frozen=True)
class Move(Rule):
    """Relevance moves with its element: reshape, permute, slice, cat, pad. The share of a constant is recorded as bias."""

    moves: ClassVar[bool] = True

    def through_movement(self, op: Movement, relevance: list[Any]) -> Flow:
        return Flow(tuple(op.back(relevance)), bias=op.constant(relevance) if op.constant else 0.0)


@dataclass(frozen=True)
class WinnerTakesAll(Rule):
    """Max pool, max over dimensions: the largest input of a window receives all relevance. Source: Bach et al. 2015."""

    moves: ClassVar[bool] = True

    def through_maxpool(self, op: MaxPool, site: Site, a: Any, z: Any, relevance: Any) -> Flow:
        return Flow((op.route(relevance, a, z),))


@dataclass(frozen=True)
class Proportional(AnyStabilised):
    """Max pool treated as an average pool over the same windows: in proportion to the activations.

    Args:
        window: average over (side, stride) windows without padding instead of the pool's own.
    """

    window: tuple[int, int] | None = None
    in_proportion: ClassVar[bool] = True

    def through_maxpool(self, op: MaxPool, site: Site, a: Any, z: Any, relevance: Any) -> Flow:
        average = op.average(self.window)
        rule = Epsilon(self.epsilon, relative=self.relative)
        return rule.through_affine(average, site, a, average.forward(a, average.weight), relevance)

    def refusal(self, operation: Operation) -> str | None:
        if not self.window:
            return None
        side, stride = self.window
        before, after = operation.space(2)
        made = tuple((size - side) // stride + 1 for size in before)
        if made == tuple(after):
            return None
        windows = " x ".join([str(side)] * len(before))
        return (
            f"it turns {operation.shown(before)} into {operation.shown(after)}, and an average pool over {windows} "
            f"would give {operation.shown(made)}; use Proportional()."
        )

    def _shown(self) -> list[Any]:
        return ([f"window={self.window}"] if self.window else []) + super()._shown()


@dataclass(frozen=True)
class Magnitude(SumRule):
    """x + y in proportion to |x| and |y|: no summand receives more than arrives, whatever their signs."""

    in_proportion: ClassVar[bool] = True

    def measure(self, summand: Any) -> Any:
        return abs(summand)


@dataclass(frozen=True)
class SignalTakesAll(Rule):
    """Signal × gate: the gate is a constant, the signal receives all of the relevance.

    Args:
        signal: which operand is the signal, 0 or 1; None: the one found in the graph (`graph.gates`). Of
            a quotient x / y it is x.

    Source: Arras et al. 2017, for the gates of an LSTM.
    """

    signal: int | None = None
    in_proportion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.signal not in (None, 0, 1):
            raise RuleError(f"SignalTakesAll(signal={self.signal!r}): signal must be 0, 1 or None.")

    def takes(self, operation: Product) -> Sequence[int]:
        signal = operation.signal if self.signal is None else self.signal
        return [side for side in operation.data_sides if side == signal] or operation.data_sides

    def through_product(self, op: Product, x: Any, y: Any, z: Any, relevance: Any) -> Flow:
        return _equal_parts(self.takes(op), relevance)

    def refusal(self, operation: Operation) -> str | None:
        if operation.signal is None and self.signal is None:
            return "the graph does not show which operand is the signal; use Halves() or SignalTakesAll(signal=0 or 1)."
        return None

    def _shown(self) -> list[Any]:
        return [] if self.signal is None else [f"signal={self.signal}"]


def _equal_parts(sides: Sequence[int], relevance: Any) -> Flow:
    """Equal parts of the relevance to these operands, none to the others."""
    each = relevance / len(sides) if len(sides) > 1 else relevance
    return Flow(tuple(each if side in sides else None for side in (0, 1)))


@dataclass(frozen=True)
class Halves(AnyStabilised):
    """Half to each operand. x · y: R / 2 each; a matrix product: each half by LRP-ε.

    Source: Achtibat et al. 2024 (AttnLRP), the uniform rule.
    """

    epsilon: float = 1e-6
    in_proportion: ClassVar[bool] = True

    def takes(self, operation: Any) -> Sequence[int]:
        """Both operands; if only one is data, that one."""
        return operation.data_sides

    def through_product(self, op: Product, x: Any, y: Any, z: Any, relevance: Any) -> Flow:
        return _equal_parts(self.takes(op), relevance)

    def through_matmul(self, op: Bilinear, x: Any, y: Any, z: Any, relevance: Any) -> Flow:
        return _epsilon_shares(self, op, x, y, z, relevance)


@dataclass(frozen=True)
class Values(AnyStabilised):
    """Attention × values: attention is a constant, the values receive all relevance by LRP-ε (CP-LRP).

    Source: Ali et al. 2022.
    """

    epsilon: float = 1e-6
    in_proportion: ClassVar[bool] = True

    def takes(self, operation: Bilinear) -> Sequence[int]:
        if len(operation.data_sides) == 2 and operation.weights is not None:
            return [1 - operation.weights]
        return operation.data_sides

    def through_matmul(self, op: Bilinear, x: Any, y: Any, z: Any, relevance: Any) -> Flow:
        return _epsilon_shares(self, op, x, y, z, relevance)

    def refusal(self, operation: Operation) -> str | None:
        if operation.signal is None:
            return "the graph does not show which operand holds the values; use Halves()."
        return None


def _epsilon_shares(rule: AnyStabilised, op: Bilinear, x: Any, y: Any, z: Any, relevance: Any) -> Flow:
    """An equal part to each operand that receives relevance, shared by LRP-ε over the matrix product."""
    sides = rule.takes(op)
    r = relevance if len(sides) == 1 else relevance / 2
    s, epsilon, dropped = fraction(r, z, rule, op.dims)
    operands = x, y
    shares = [operands[i] * op.backs[i](s, operands[1 - i]) if i in sides else None for i in (0, 1)]
    return Flow(tuple(shares), 0.0, len(sides) * epsilon, len(sides) * dropped)


@dataclass(frozen=True)
class Constant(Rule):
    """The output is treated as a constant: its relevance is recorded as bias (softmax in CP-LRP).

    Source: Ali et al. 2022.
    """

    in_proportion: ClassVar[bool] = True

    def takes(self, operation: Softmax) -> Sequence[int]:
        return []

    def through_softmax(self, op: Softmax, x: Any, p: Any, relevance: Any) -> Flow:
        return Flow((None,), bias=total(relevance))


@dataclass(frozen=True)
class SoftmaxTaylor(Rule):
    r"""Softmax p(x), linearised at x: R_i = x_i (R_i − p_i Σ_j R_j), 0 where x_i = −inf.

    The constant of the linearisation receives Σ_i R_i (1 − x_i + Σ_j p_j x_j), recorded as bias.
    Source: Achtibat et al. 2024 (AttnLRP).
    """

    in_proportion: ClassVar[bool] = True

    def through_softmax(self, op: Softmax, x: Any, p: Any, relevance: Any) -> Flow:
        """x: the softmax's input, p: softmax(x), relevance: at p; all of one shape."""
        x = torch.where(x == -torch.inf, 0.0, x)
        mean = (p * x).sum(dim=op.dim, keepdim=True)
        received = x * (relevance - p * relevance.sum(dim=op.dim, keepdim=True))
        return Flow((received,), bias=total(relevance * (1 - x + mean)))
