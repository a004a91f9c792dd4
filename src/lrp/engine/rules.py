r"""The rules of layer-wise relevance propagation for affine operations: equations as frozen values, without graphs.

Letters, as in the papers: a input, w weights, b bias, z = Σ a w + b output, R relevance,
x⁺ = max(x, 0), x⁻ = min(x, 0). A rule only lists which part of the input is multiplied by which version of
the weights (`branches`); `affine.hand_down` computes the result, and documents its form. The rules of all other
operations are in `rules_beyond_affine`.

Sources: Bach et al. 2015 (LRP, ε, αβ); Montavon et al. 2017 (z⁺, w², zᴮ) and 2019 (γ, composites);
Kohlbrenner et al. 2020 (flat).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lrp.engine.affine import Affine, Branch, Flow, Site, fraction, total, wrong_sign
from lrp.engine.weight_versions import Amplified, negative, ones, positive, square, unchanged
from lrp.errors import RuleError

if TYPE_CHECKING:
    from lrp.engine.graph.ops import Operation

EQUATIONS = {
    **dict.fromkeys(("conv", "linear", "norm", "layer_norm", "pool", "scale"), "through_affine"),
    "sum": "through_sum",
    "product": "through_product",
    "matmul": "through_matmul",
    "softmax": "through_softmax",
    "maxpool": "through_maxpool",
    "activation": "through_elementwise",
    "unknown": "through_elementwise",
    "movement": "through_movement",
}
"""Family of operations -> the method of a rule that propagates relevance through them."""


class _Families:
    """The families that a rule's class has an equation for."""

    def __get__(self, rule: object, kind: type) -> frozenset[str]:
        return frozenset(family for family, equation in EQUATIONS.items() if hasattr(kind, equation))


@dataclass(frozen=True)
class Rule:
    """How one operation propagates relevance from its output to its inputs.

    A rule is defined for the families whose equation it has: `through_affine` for conv, linear, norm, layer_norm, pool
    and scale; `through_sum`, `through_product`, `through_matmul`, `through_softmax`, `through_maxpool`,
    `through_elementwise`, `through_movement` for the others. Each returns a `Flow`. A class may set `families` to
    support fewer.
    """

    families: ClassVar[Any] = _Families()
    in_proportion: ClassVar[Any] = False
    """Whether an input element of 0 never receives relevance; programs then skip computations whose result is zero."""
    moves: ClassVar[bool] = False
    """Whether the relevance of an output element goes only to the one input element that it was made from."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # These are not inherited by a class that overrides an equation: they need not hold for the new one.
        if {*EQUATIONS.values(), "measure"} & set(cls.__dict__):
            for promise in {"in_proportion", "moves"} - set(cls.__dict__):
                setattr(cls, promise, False)

    def takes(self, operation: Any) -> Sequence[int]:
        """The indices of the data operands that receive relevance, for an operation with several operands."""
        return operation.data_sides

    def refusal(self, operation: Operation) -> str | None:
        """Why the rule cannot be used at this operation, which is of one of its families; None: it can."""
        return None

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
        bias: "absorb": the bias is part of the denominator and keeps its share; "ignore": it is left
            out everywhere, also of the z whose sign selects a branch.
    """

    bias: str = field(default="absorb", kw_only=True)
    biases: ClassVar[tuple[str, ...]] = ("absorb", "ignore")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias not in self.biases:
            known = " or ".join(repr(b) for b in self.biases)
            raise RuleError(f"{type(self).__name__}(bias={self.bias!r}): bias must be {known}.")
        if type(self).through_affine is AffineRule.through_affine:  # report a mistake in the branches now
            made = self.branches()
            if not (isinstance(made, tuple) and made and all(isinstance(branch, Branch) for branch in made)):
                raise RuleError(
                    f"{type(self).__name__}.branches() returned {made!r}: expected a tuple of lrp.Branch."
                )

    def branches(self) -> tuple[Branch, ...]:
        raise RuleError(f"{type(self).__name__} is a base class: use one of its rules, such as Epsilon().")

    @property
    def in_proportion(self) -> bool:
        return all(part in ("a", "a+", "a-") for branch in self.branches() for part, _ in branch.terms)

    def through_affine(self, op: Affine, site: Site, a: Any, z: Any, relevance: Any) -> Flow:
        """Propagate relevance from the output of one affine operation to its input.

        Args:
            op: the operation; site: its context.
            a: its input, [N, *in].
            z: its output with bias, [N, *out].
            relevance: at the output, [N, *out], in units of the start relevance (logits).

        Returns:
            Relevance at the input, [N, *in]: its sum is that of `relevance` minus bias, epsilon and dropped.
        """
        return site.hand_down(self, op, a, z, relevance)

    def refusal(self, operation: Operation) -> str | None:
        own = type(self).through_affine is not AffineRule.through_affine
        boxed = not own and any(part in ("low", "high") for b in self.branches() for part, _ in b.terms)
        if boxed and not (hasattr(self, "low") and hasattr(self, "high")):
            return (
                "its branches name 'low' or 'high': give it such attributes, the range of the model's input."
            )
        return None

    def _shown(self) -> list[Any]:
        return super()._shown() + ([] if self.bias == "absorb" else [f"bias={self.bias}"])


class SumRule(AnyStabilised):
    """How relevance of a sum is shared among its summands; the share of constants is recorded as bias."""

    signed: ClassVar[bool] = False
    """Whether the measures sum to the output itself, of either sign; else they are >= 0, which the ledger checks."""

    def measure(self, summand: Any) -> Any:
        """The value in proportion to which a summand receives relevance."""
        return summand

    def through_sum(self, summands: Sequence[tuple[Any, bool]], z: Any, relevance: Any, dims: int) -> Flow:
        """Share relevance among summands.

        Args:
            summands: (value, whether it is data) each; they broadcast to z's shape.
            z: their sum, [N, *out].
            relevance: at the output, [N, *out].
            dims: how many dimensions z has.

        Returns:
            Relevance per summand that is data, [N, *out]: the caller sums it over broadcast dimensions.
        """
        counts = [(self.measure(value), is_data) for value, is_data in summands]
        d = z if self.signed else sum(count for count, _ in counts)
        s, epsilon, dropped = fraction(relevance, d, self, dims)
        shares = [(count * s, is_data) for count, is_data in counts]
        bias = sum(
            (total(torch.where(d == 0, 0.0, share)) for share, is_data in shares if not is_data), start=0.0
        )
        wrong = 0.0 if self.signed else wrong_sign(d, 1, self)
        return Flow(tuple(share for share, is_data in shares if is_data), bias, epsilon, dropped, wrong)


@dataclass(frozen=True)
class Epsilon(AffineRule, SumRule):
    r"""LRP-ε: in proportion to the contributions, R_j = a_j Σ_k w_jk R_k / s(z_k).

    Faithful to the function; noisy in deep convolutional nets, as is the gradient it generalises.
    Source: Bach et al. 2015, eq. 58.
    """

    epsilon: float = 1e-6
    signed: ClassVar[bool] = True

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("a", unchanged),), unchanged),)


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
    Valid for inputs of any sign. Source: Montavon et al. 2019; signed form: Andéol et al. 2021.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= 0:
            raise RuleError(f"Gamma(gamma={self.gamma}): gamma must be >= 0; gamma=0 is LRP-ε.")

    def branches(self) -> tuple[Branch, ...]:
        more, less = Amplified(self.gamma, positive), Amplified(self.gamma, negative)
        return (
            Branch((("a+", more), ("a-", less)), more, sign=1, where="z > 0"),
            Branch((("a+", less), ("a-", more)), less, sign=-1, where="z < 0"),
        )

    def _shown(self) -> list[Any]:
        return [self.gamma, *super()._shown()]


@dataclass(frozen=True)
class AlphaBeta(AffineRule):
    r"""LRP-αβ: activating and inhibiting contributions are treated separately, α − β = 1.

        R_j = Σ_k (α (a⁺w⁺ + a⁻w⁻)_jk / s(z⊕_k) − β (a⁺w⁻ + a⁻w⁺)_jk / s(z⊖_k)) R_k

    Where z⊖ = 0, −βR is dropped and αR is propagated. `bias="full"` puts the whole bias into both
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
    r"""LRP-z⁺: positive contributions only, R_j = Σ_k (a⁺w⁺ + a⁻w⁻)_jk R_k / s(z⊕_k).

    The same as AlphaBeta(1, 0). Smooth and class-focused in convolutional layers. Source: Montavon et
    al. 2017 (deep Taylor decomposition).
    """

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("a+", positive), ("a-", negative)), positive, sign=1),)


@dataclass(frozen=True)
class Biasless(AffineRule):
    """A rule whose denominators have no bias."""

    bias: str = field(default="ignore", kw_only=True)

    def _shown(self) -> list[Any]:
        return AnyStabilised._shown(self)


@dataclass(frozen=True)
class ZBox(Biasless):
    r"""LRP-zᴮ, for a first layer whose input is in a range (a box): a w − l w⁺ − h w⁻, the bias cancels.

    Args:
        low, high: the range of the model's input in its own, normalised units: a number, one number
            per channel, or a tensor that broadcasts to [1, C, H, W].

    Source: Montavon et al. 2017.
    """

    low: Any
    high: Any

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
        return [f"low={shown[0]}", f"high={shown[1]}", *super()._shown()]


def _bound(value: Any) -> Any:
    """A bound as something hashable: a float, a tuple of floats, or the tensor itself."""
    if isinstance(value, Tensor) and value.dim() > 1:
        return value
    values = value.tolist() if isinstance(value, Tensor) else value
    return tuple(float(v) for v in values) if isinstance(values, Sequence) else float(values)


@dataclass(frozen=True)
class WSquare(Biasless):
    r"""LRP-w²: in proportion to squared weights, R_j = Σ_k w²_jk R_k / Σ_i w²_ik; for first layers.

    The bias is left out. Source: Montavon et al. 2017.
    """

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("1", square),), None, sign=1),)


@dataclass(frozen=True)
class Flat(Biasless):
    """LRP-flat: all inputs of an output receive the same share; for first layers. The bias is left out.

    Source: Kohlbrenner et al. 2020.
    """

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("1", ones),), None, sign=1),)


@dataclass(frozen=True)
class WPlus(Biasless):
    """z⁺ of an input of ones, R_j = Σ_k w⁺_jk R_k / s(Σ_i w⁺_ik): the first layer of `kaifishr`."""

    def branches(self) -> tuple[Branch, ...]:
        return (Branch((("1", positive),), None, sign=1),)
