r"""The rules of layer-wise relevance propagation, as frozen values: equations, nothing about graphs.

Letters, as in the papers: a input, w weights, b bias, z = Σ a w + b output, R relevance,
x⁺ = max(x, 0), x⁻ = min(x, 0). A rule for affine operations only says which parts of the input meet which
version of the weights (`branches`); `affine.hand_down` is the one place that runs it, and explains its form.

Sources: Bach et al. 2015 (LRP, ε, αβ); Montavon et al. 2017 (z⁺, w², zᴮ) and 2019 (γ, composites);
Kohlbrenner et al. 2020 (flat); Ali et al. 2022 (CP-LRP); Achtibat et al. 2024 (AttnLRP).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lrp.engine.affine import Affine, Branch, Flow, Times, fraction, hand_down, shifted, total
from lrp.engine.structured_weights import magnitude, negative, ones, positive, square, unchanged
from lrp.errors import RuleError

AFFINE = frozenset({"conv", "linear", "norm", "layer_norm", "pool", "scale"})


@dataclass(frozen=True)
class Rule:
    """How one operation hands relevance from its output to its inputs."""

    families: ClassVar[frozenset[str]] = frozenset()

    def __str__(self) -> str:
        shown = [f"{v:g}" if isinstance(v, float) else str(v) for v in self._shown()]
        return type(self).__name__ + (f"({', '.join(shown)})" if shown else "")

    def _shown(self) -> list[Any]:
        return []


@dataclass(frozen=True)
class AnyStabilised(Rule):
    """Any rule with a denominator. ε >= 0 is absolute, or relative to the root mean square of D."""

    epsilon: float = field(default=1e-6, kw_only=True)
    relative: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and math.isfinite(self.epsilon)):
            raise RuleError(
                f"{type(self).__name__}(epsilon={self.epsilon}): epsilon must be a finite number >= 0; "
                "epsilon=0 divides by the denominator as it is."
            )

    def _shown(self) -> list[Any]:
        shown: list[Any] = [] if self.epsilon == 1e-6 else [f"epsilon={self.epsilon:g}"]
        return shown + (["relative"] if self.relative else [])


@dataclass(frozen=True)
class AffineRule(AnyStabilised):
    """A rule for affine operations: convolution, linear, average pool, batch norm, constant factor.

    Args:
        bias: "absorb": the bias stands in the denominator and keeps its share; "ignore": it is left
            out everywhere, also of the sign of z.
    """

    bias: str = field(default="absorb", kw_only=True)
    families: ClassVar[frozenset[str]] = AFFINE
    biases: ClassVar[tuple[str, ...]] = ("absorb", "ignore")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias not in self.biases:
            known = " or ".join(repr(b) for b in self.biases)
            raise RuleError(f"{type(self).__name__}(bias={self.bias!r}): bias must be {known}.")

    def branches(self) -> tuple[Branch, ...]:
        raise RuleError(f"{type(self).__name__} is a base class: use one of its rules, such as Epsilon().")

    @property
    def in_proportion(self) -> bool:
        """Whether an input of 0 gets nothing."""
        return all(part in ("a", "a+", "a-") for branch in self.branches() for part, _ in branch.terms)

    def propagate(self, op: Affine, a: Any, z: Any, relevance: Any) -> Flow:
        """Hand relevance from one affine operation's output down to its input.

        Args:
            op: the operation.
            a: its input, [N, *in].
            z: its output with bias, [N, *out].
            relevance: at the output, [N, *out], in units of the start relevance (logits).

        Returns:
            Relevance at the input, [N, *in]: `relevance` less what bias, ε and empty denominators took.
        """
        return hand_down(self.branches(), self, self.bias == "ignore", op, a, z, relevance)

    def _shown(self) -> list[Any]:
        return super()._shown() + ([] if self.bias == "absorb" else [f"bias={self.bias}"])


class SumRule(AnyStabilised):
    """How a sum hands relevance to its summands; what constants among them get is booked as bias."""

    def measure(self, summand: Any) -> Any:
        """What a summand counts for."""
        return summand

    def propagate_sum(self, summands: Sequence[tuple[Any, bool]], z: Any, relevance: Any, dims: int) -> Flow:
        """Share relevance among summands.

        Args:
            summands: (value, is it data) each; they broadcast to z's shape.
            z: their sum, [N, *out].
            relevance: at the output, [N, *out].
            dims: how many dimensions z has.

        Returns:
            Relevance per summand that is data, [N, *out]: the caller sums it back where one was broadcast.
        """
        counts = [(self.measure(value), is_data) for value, is_data in summands]
        signed = isinstance(self, Epsilon)
        d = z if signed else sum(count for count, _ in counts)
        s, epsilon, dropped = fraction(relevance, d, self, 0 if signed else 1, dims)
        shares = [(count * s, is_data) for count, is_data in counts]
        bias = sum(
            (total(torch.where(d == 0, 0.0, share)) for share, is_data in shares if not is_data), start=0.0
        )
        return Flow(tuple(share for share, is_data in shares if is_data), bias, epsilon, dropped)


@dataclass(frozen=True)
class Epsilon(AffineRule, SumRule):
    r"""LRP-ε: in proportion to the contributions, R_j = a_j Σ_k w_jk R_k / s(z_k).

    Faithful to the function; noisy in deep convolutional nets, as is the gradient it generalises.
    Source: Bach et al. 2015, eq. 58.
    """

    epsilon: float = 1e-6
    families: ClassVar[frozenset[str]] = frozenset({*AFFINE, "sum"})

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("a", unchanged),), lambda b: b, exact=True),)


@dataclass(frozen=True)
class Zero(Epsilon):
    """LRP-0: Epsilon with ε = 0. On a ReLU net, gradient × input. Source: Bach et al. 2015."""

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon != 0:
            raise RuleError(
                f"Zero(epsilon={self.epsilon}): Zero has no epsilon; use Epsilon({self.epsilon})."
            )

    def _shown(self) -> list[Any]:
        return [f"bias={self.bias}"] if self.bias != "absorb" else []


@dataclass(frozen=True)
class Gamma(AffineRule):
    r"""LRP-γ, generalised: contributions of the output's own sign count 1 + γ times.

        z > 0:  Σ a⁺(w + γw⁺) + a⁻(w + γw⁻) + b + γb⁺
        z < 0:  Σ a⁺(w + γw⁻) + a⁻(w + γw⁺) + b + γb⁻

    For a >= 0 and z > 0 the weights are w + γw⁺, as first published; γ = 0 is LRP-ε, γ → ∞ is z⁺.
    Right for inputs of any sign. Source: Montavon et al. 2019; signed form: Andéol et al. 2021.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= 0:
            raise RuleError(f"Gamma(gamma={self.gamma}): gamma must be >= 0; gamma=0 is LRP-ε.")

    in_proportion: ClassVar[bool] = True

    def amplified(self, w: Any) -> Any:
        return w + self.gamma * positive(w)

    def propagate(self, op: Affine, a: Any, z: Any, relevance: Any) -> Flow:
        """One product more than ε where a >= 0 and only z > 0 has relevance, else two. There, from
        a⁺w⁺ + a⁻w⁻ = (aw + |a||w|) / 2 and a⁺w⁻ + a⁻w⁺ = (aw − |a||w|) / 2, and the bias alike,

            D = sgn(z) ((1 + γ/2) |z| + γ/2 (Σ |a||w| + |b|)),   no part of which cancels.
        """
        ignored = self.bias == "ignore" and op.bias is not None
        if op.silent and op.nonneg and not ignored:  # an ignored bias may turn the sign of z
            return self._single(op, a, z, relevance)
        z, b = (z - op.bias, None) if ignored else (z, op.bias)
        own, more = Times(1 + self.gamma / 2, unchanged), Times(self.gamma / 2, magnitude)
        weights = [op.transform(op.weight, version) for version in (own, more)]
        shift = 0.0 if self.relative else self.epsilon
        size = abs(z) * own.factor + op.total(
            a if op.nonneg else abs(a),
            weights[1],
            shifted(None if b is None else more(b), shift),
            one_signed=True,
        )
        sign = torch.sign(z)
        s = sign * fraction(relevance, size, self, 1, op.dims, shifted=shift != 0)[0]
        signed = sign * s
        first, second = op.adjoint(s, weights[0]), op.adjoint(signed, weights[1])
        received = a * (first + second) if op.nonneg else a * first + abs(a) * second
        decided = torch.where(z == 0, 0.0, relevance)
        _, epsilon, dropped = fraction(decided, size, self, 1, op.dims, shifted=shift != 0)
        bias = 0.0 if b is None else total(s * own(b) + signed * more(b))
        return Flow((received,), bias, epsilon, dropped + total(relevance - decided))

    def _single(self, op: Affine, a: Any, z: Any, relevance: Any) -> Flow:
        """Where a >= 0 and only z > 0 has relevance: weights w + γw⁺, bias b + γb⁺."""
        more, own, sign = Times(self.gamma, positive), z, 0
        c = None if op.bias is None else more(op.bias)
        shift = 0.0
        if op.rectified is not None:
            own, sign, shift = op.rectified, 1, 0.0 if self.relative else self.epsilon
        d = own + op.total(a, op.transform(op.weight, more), shifted(c, shift), one_signed=True)
        s, epsilon, dropped = fraction(relevance, d, self, sign, op.dims, shifted=shift != 0)
        bias = 0.0 if c is None else total(torch.where(d == shift, 0.0, s * (op.bias + c)))
        return Flow((a * op.adjoint(s, op.transform(op.weight, self.amplified)),), bias, epsilon, dropped)

    def _shown(self) -> list[Any]:
        return [self.gamma, *super()._shown()]


@dataclass(frozen=True)
class AlphaBeta(AffineRule):
    r"""LRP-αβ: activating and inhibiting contributions apart, α − β = 1.

        R_j = Σ_k (α (a⁺w⁺ + a⁻w⁻)_jk / s(z⊕_k) − β (a⁺w⁻ + a⁻w⁺)_jk / s(z⊖_k)) R_k

    Where z⊖ is empty, −βR is dropped and αR goes down. `bias="full"` puts the whole bias into both
    denominators, as iNNvestigate does. Source: Bach et al. 2015, eq. 60.
    """

    alpha: float = 2.0
    beta: float = 1.0
    biases: ClassVar[tuple[str, ...]] = ("absorb", "ignore", "full")

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.alpha - self.beta - 1) > 1e-9 or self.beta < 0:
            raise RuleError(
                f"AlphaBeta(alpha={self.alpha:g}, beta={self.beta:g}): alpha - beta must be 1 and beta >= 0, "
                f"for example AlphaBeta(2, 1) or AlphaBeta(1, 0)."
            )

    def branches(self) -> tuple[Branch, ...]:
        full = self.bias == "full"
        plus = Branch(
            (("a+", positive), ("a-", negative)),
            unchanged if full else positive,
            factor=self.alpha,
            sign=0 if full else 1,
        )
        minus = Branch(
            (("a+", negative), ("a-", positive)),
            unchanged if full else negative,
            factor=-self.beta,
            sign=0 if full else -1,
            rest=not full,
        )
        return (plus,) if self.beta == 0 else (plus, minus)

    def _shown(self) -> list[Any]:
        return [self.alpha, self.beta, *super()._shown()]


@dataclass(frozen=True)
class ZPlus(AffineRule):
    r"""LRP-z⁺: only what argues for the output, R_j = Σ_k (a⁺w⁺ + a⁻w⁻)_jk R_k / s(z⊕_k).

    The same as AlphaBeta(1, 0). Smooth and class-focused in convolutional layers. Source: Montavon et
    al. 2017 (deep Taylor decomposition).
    """

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("a+", positive), ("a-", negative)), positive, sign=1),)


@dataclass(frozen=True)
class ZBox(AffineRule):
    r"""LRP-zᴮ, for a first layer whose input lies in a box: a w − l w⁺ − h w⁻, the bias cancels.

    Args:
        low, high: the range of the model's input in its own, normalised units: a number, one number
            per channel, or a tensor that broadcasts to [1, C, H, W].

    Source: Montavon et al. 2017.
    """

    low: Any
    high: Any
    bias: str = field(default="ignore", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "low", _bound(self.low))
        object.__setattr__(self, "high", _bound(self.high))
        low, high = (torch.as_tensor(v, dtype=torch.float64) for v in (self.low, self.high))
        if not bool((low <= high).all()):
            raise RuleError(f"ZBox(low={self.low}, high={self.high}): low must not exceed high.")

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("a", unchanged), ("low", positive), ("high", negative)), None),)

    def _shown(self) -> list[Any]:
        shown = [
            " ".join(f"{v:.3g}" for v in b) if isinstance(b, tuple) else b for b in (self.low, self.high)
        ]
        return [f"low={shown[0]}", f"high={shown[1]}", *AnyStabilised._shown(self)]


def _bound(value: Any) -> Any:
    """A bound as something hashable: a float, a tuple of floats, or the tensor itself."""
    if isinstance(value, Tensor) and value.dim() > 1:
        return value
    values = value.tolist() if isinstance(value, Tensor) else value
    return tuple(float(v) for v in values) if isinstance(values, Sequence) else float(values)


@dataclass(frozen=True)
class WSquare(AffineRule):
    r"""LRP-w²: by squared weights alone, R_j = Σ_k w²_jk R_k / Σ_i w²_ik; for first layers.

    The bias is left out. Source: Montavon et al. 2017.
    """

    bias: str = field(default="ignore", kw_only=True)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("1", square),), None, sign=1),)

    def _shown(self) -> list[Any]:
        return AnyStabilised._shown(self)


@dataclass(frozen=True)
class Flat(AffineRule):
    """LRP-flat: every input of an output gets the same; for first layers. The bias is left out.

    Source: Kohlbrenner et al. 2020.
    """

    bias: str = field(default="ignore", kw_only=True)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("1", ones),), None, sign=1),)

    def _shown(self) -> list[Any]:
        return AnyStabilised._shown(self)


@dataclass(frozen=True)
class WPlus(AffineRule):
    """z⁺ of an input of ones, R_j = Σ_k w⁺_jk R_k / s(Σ_i w⁺_ik): the first layer of `kaifishr`."""

    bias: str = field(default="ignore", kw_only=True)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("1", positive),), None, sign=1),)

    def _shown(self) -> list[Any]:
        return AnyStabilised._shown(self)


# ---------------------------------------------------------------- everything that is not affine


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged, element by element: activations, affine operations that keep the shape."""

    families: ClassVar[frozenset[str]] = frozenset({*AFFINE, "activation", "unknown"})


@dataclass(frozen=True)
class Move(Rule):
    """Relevance moves with its element: reshape, permute, slice, cat, pad. What a constant gets is bias."""

    families: ClassVar[frozenset[str]] = frozenset({"movement"})


@dataclass(frozen=True)
class WinnerTakesAll(Rule):
    """Max pool, max over dimensions: the largest input of a window gets all. Source: Bach et al. 2015."""

    families: ClassVar[frozenset[str]] = frozenset({"maxpool"})


@dataclass(frozen=True)
class Proportional(AnyStabilised):
    """Max pool treated as an average pool over the same windows: in proportion to the activations.

    Args:
        window: average over (side, stride) windows without padding instead of the pool's own.
    """

    window: tuple[int, int] | None = None
    families: ClassVar[frozenset[str]] = frozenset({"maxpool"})

    def _shown(self) -> list[Any]:
        return ([f"window={self.window}"] if self.window else []) + super()._shown()


@dataclass(frozen=True)
class Magnitude(SumRule):
    """x + y in proportion to |x| and |y|: no summand gets more than there is, whatever their signs."""

    families: ClassVar[frozenset[str]] = frozenset({"sum"})

    def measure(self, summand: Any) -> Any:
        return abs(summand)


@dataclass(frozen=True)
class SignalTakesAll(Rule):
    """Signal × gate: the gate is a constant, the signal takes all of the relevance.

    Args:
        signal: which operand is the signal, 0 or 1; None: the one that the graph tells (`graph.gates`). Of
            a quotient x / y it is x.

    Source: Arras et al. 2017, for the gates of an LSTM.
    """

    signal: int | None = None
    families: ClassVar[frozenset[str]] = frozenset({"product"})

    def __post_init__(self) -> None:
        if self.signal not in (None, 0, 1):
            raise RuleError(f"SignalTakesAll(signal={self.signal!r}): signal must be 0, 1 or None.")

    def _shown(self) -> list[Any]:
        return [] if self.signal is None else [f"signal={self.signal}"]


@dataclass(frozen=True)
class Halves(AnyStabilised):
    """Half to each operand. x · y: R / 2 each; a matrix product: each half by its ε share.

    Source: Achtibat et al. 2024 (AttnLRP), the uniform rule.
    """

    epsilon: float = 1e-6
    families: ClassVar[frozenset[str]] = frozenset({"product", "matmul"})


@dataclass(frozen=True)
class Values(AnyStabilised):
    """Attention × values: attention is a constant, the values take all by their ε share (CP-LRP).

    Source: Ali et al. 2022.
    """

    epsilon: float = 1e-6
    families: ClassVar[frozenset[str]] = frozenset({"matmul"})

    def as_affine(self) -> Epsilon:
        return Epsilon(self.epsilon, relative=self.relative)


@dataclass(frozen=True)
class Constant(Rule):
    """The output counts as a constant: what it gets is booked under bias (softmax in CP-LRP).

    Source: Ali et al. 2022.
    """

    families: ClassVar[frozenset[str]] = frozenset({"softmax"})


@dataclass(frozen=True)
class SoftmaxTaylor(Rule):
    r"""Softmax p(x) by its tangent at x: R_i = x_i (R_i − p_i Σ_j R_j), 0 where x_i = −inf.

    The tangent's constant takes Σ_i R_i (1 − x_i + Σ_j p_j x_j), booked under bias.
    Source: Achtibat et al. 2024 (AttnLRP).
    """

    families: ClassVar[frozenset[str]] = frozenset({"softmax"})

    def propagate(self, x: Any, p: Any, relevance: Any, dim: int) -> Flow:
        """x: what the softmax reads, p: softmax(x), relevance: at p; all of one shape."""
        x = torch.where(x == -torch.inf, 0.0, x)
        mean = (p * x).sum(dim=dim, keepdim=True)
        received = x * (relevance - p * relevance.sum(dim=dim, keepdim=True))
        return Flow((received,), bias=total(relevance * (1 - x + mean)))
