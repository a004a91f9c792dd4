r"""The rules of layer-wise relevance propagation, as frozen values: equations, nothing about graphs.

Letters, as in the papers: a input, w weights, b bias, z = Σ a w + b output, R relevance,
x⁺ = max(x, 0), x⁻ = min(x, 0). Every rule for affine operations has one form,

    R_j = Σ_k  part_j v_jk  R_k / s(D_k),      D_k = Σ_i part_i v_ik + c_k,

with `part` some part of the input (a, a⁺, a⁻, 1), v some version of the weights, c of the bias.
A rule says only which (`branches`); `AffineRule.propagate` is the one place that runs it.

The stabiliser is s(D) = D + ε sgn(D). An exactly empty denominator (D = 0) has nothing to share:
what reached it is *dropped*, and booked so. Each loss has a formula of its own:

    bias     Σ R c / s(D)              the share of the bias
    epsilon  Σ R (s(D) − D) / s(D)     what the stabiliser took
    dropped  Σ R [D = 0]

Sources: Bach et al. 2015 (LRP, ε, αβ); Montavon et al. 2017 (z⁺, w², zᴮ) and 2019 (γ, composites);
Kohlbrenner et al. 2020 (flat).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lrp.errors import RuleError

AFFINE = frozenset({"conv", "linear", "norm", "pool", "scale"})


@dataclass(frozen=True)
class Uniform:
    """Weights that are equal for all inputs of an output, as in a mean or a sum: factor · u^power, where u is
    the operation's own weight of that output, 1 / (size of its window)."""

    factor: float = 1.0
    power: int = 1

    def __add__(self, other: Uniform) -> Uniform:
        return Uniform(self.factor + other.factor, self.power)

    def __rmul__(self, number: float) -> Uniform:
        return Uniform(number * self.factor, self.power)


Weight = Tensor | Uniform


def unchanged(w: Weight) -> Weight:
    return w


def positive(w: Weight) -> Weight:
    return Uniform(max(w.factor, 0.0), w.power) if isinstance(w, Uniform) else w.clamp(min=0)


def negative(w: Weight) -> Weight:
    return Uniform(min(w.factor, 0.0), w.power) if isinstance(w, Uniform) else w.clamp(max=0)


def square(w: Weight) -> Weight:
    return Uniform(w.factor**2, 2 * w.power) if isinstance(w, Uniform) else w * w


def ones(w: Weight) -> Weight:
    return Uniform(1.0, 0) if isinstance(w, Uniform) else torch.ones_like(w)


class Flow(NamedTuple):
    """What one operation does with the relevance at its output.

    `relevance` goes to its data inputs; the others are sums in relevance units over everything in
    the batch, float64, computed only where a ledger asks for them.
    """

    relevance: tuple[Tensor | None, ...]
    bias: Tensor | float = 0.0
    epsilon: Tensor | float = 0.0
    dropped: Tensor | float = 0.0


@dataclass
class Affine:
    """One affine operation z = forward(a, w) + b, as the rules need it.

    Attributes:
        forward: (a, w) -> Σ a w, without bias. A zero padding happens inside: it has no share.
        adjoint: (s, w) -> Σ_k w_jk s_k, of the input's shape.
        weight: as `forward` takes it; `Uniform` where all weights of an output are equal.
        bias: broadcasts against the output, or None.
        nonneg: the input is provably >= 0, so its a⁻ terms need no computing.
        bounds: (low, high) of the input, [1, *in]; only ZBox asks.
        blank: an input of ones, [1, *in]: for rules whose denominators do not see the input.
        transform: remembers fn(weight), so that a program and its ledger share the positive parts.
        where: how to name the operation in an error.
        dims: the number of dimensions of its output.
    """

    forward: Callable[[Any, Weight], Any]
    adjoint: Callable[[Any, Weight], Any]
    weight: Weight
    bias: Tensor | None = None
    nonneg: bool = False
    bounds: Callable[[], tuple[Tensor, Tensor]] | None = None
    blank: Callable[[], Tensor] | None = None
    transform: Callable[[Weight, Callable[[Weight], Weight]], Weight] = lambda w, fn: fn(w)
    where: str = "the operation"
    dims: int = 2


class Branch(NamedTuple):
    """One fraction of a rule: its terms (part of a, version of w), version of b, and factor.

    `side` "+" or "-" lets only outputs with z > 0 or z < 0 through. `sign` says that D is known to be
    >= 0 (+1) or <= 0 (-1). `exact` says that D is the operation's own output z.
    """

    terms: tuple[tuple[str, Callable[[Weight], Weight]], ...]
    bias: Callable[[Tensor], Any] | None
    factor: float = 1.0
    side: str = ""
    sign: int = 0
    exact: bool = False


def total(relevance: Any) -> Any:
    return relevance.sum(dtype=torch.float64)


def stabilise(d: Any, epsilon: float, *, sign: int = 0, relative: bool = False, dims: int = 2) -> Any:
    """s(D) = D + ε sgn(D), sgn(0) = +1; relative: ε times the root mean square of each sample's D.

    `dims` is D's number of dimensions: a proxy does not tell.
    """
    if epsilon == 0:
        return d
    if relative:
        rms = d.square().mean(dim=list(range(1, dims)), keepdim=True).sqrt()
        return d + torch.where(d < 0, -epsilon * rms, epsilon * rms)
    if sign:
        return d + sign * epsilon
    return d + torch.copysign(torch.full((), epsilon, dtype=d.dtype, device=d.device), d)


def fraction(
    relevance: Any, d: Any, rule: AnyStabilised, sign: int = 0, dims: int = 2
) -> tuple[Any, Any, Any]:
    """R / s(D), 0 where D = 0; with what ε took and what was dropped.

    A denominator of one sign is empty only where all its terms are 0: then any finite quotient
    gives every input its share of 0, and the guard against D = 0 can be saved.
    """
    s = stabilise(d, rule.epsilon, sign=sign, relative=rule.relative, dims=dims)
    quotient = relevance / s
    if sign == 0 or rule.epsilon == 0 or rule.relative:
        quotient = torch.where(d == 0, 0.0, quotient)
    filled = torch.where(d == 0, 0.0, quotient)
    return quotient, total(filled * (s - d)), total(torch.where(d == 0, relevance, 0.0))


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
        b = op.bias
        if self.bias == "ignore" and b is not None:
            z, b = z - b, None
        received, bias, epsilon, dropped = None, 0.0, 0.0, 0.0
        for branch in self.branches():
            r = relevance if branch.factor == 1 else relevance * branch.factor
            if branch.side:
                r = torch.where(z > 0 if branch.side == "+" else z < 0, r, 0.0)
            terms = [
                (part, op.transform(op.weight, version))
                for part, version in branch.terms
                if not (part == "a-" and op.nonneg)
            ]
            terms = [(part, w) for part, w in terms if not (isinstance(w, Uniform) and w.factor == 0)]
            c = branch.bias(b) if branch.bias is not None and b is not None else None
            d = z if branch.exact else _denominator(op, a, terms, c)
            if d is None:  # no term at all, as in z⊖ of a mean of values >= 0: empty everywhere
                dropped = dropped + total(r)
                continue
            s, by_epsilon, by_nothing = fraction(r, d, self, branch.sign, op.dims)
            for part, w in terms:
                share = op.adjoint(s, w)
                if part != "1":
                    share = _part(op, a, part) * share
                received = share if received is None else received + share
            epsilon, dropped = epsilon + by_epsilon, dropped + by_nothing
            if c is not None:
                bias = bias + total(torch.where(d == 0, 0.0, s * c))
        if self.branches()[0].side:
            dropped = dropped + total(torch.where(z == 0, relevance, 0.0))
        if received is None:
            received = torch.zeros_like(a)
        return Flow((received,), bias, epsilon, dropped)

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


def _part(op: Affine, a: Any, part: str) -> Any:
    if part == "a" or (part == "a+" and op.nonneg):
        return a
    if part == "a+":
        return a.clamp(min=0)
    if part == "a-":
        return a.clamp(max=0)
    if part == "1":
        return op.blank() if op.blank is not None else torch.ones_like(a)
    if op.bounds is None:
        raise RuleError(
            f"ZBox needs the range of the input of {op.where}, and it is known only at the first layer."
        )
    low, high = op.bounds()
    return -low if part == "low" else -high


def _denominator(op: Affine, a: Any, terms: Sequence[tuple[str, Weight]], bias: Any) -> Any:
    d = None
    for part, w in terms:
        z = op.forward(_part(op, a, part), w)
        d = z if d is None else d + z
    return d if bias is None or d is None else d + bias


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

    def up(self, w: Any) -> Any:
        return w + self.gamma * positive(w)

    def down(self, w: Any) -> Any:
        return w + self.gamma * negative(w)

    def branches(self) -> tuple[Branch, ...]:
        return (
            Branch((("a+", self.up), ("a-", self.down)), self.up, side="+"),
            Branch((("a+", self.down), ("a-", self.up)), self.down, side="-"),
        )

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
    """Max pool: the largest input of a window gets all. Source: Bach et al. 2015."""

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
