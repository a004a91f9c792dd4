r"""One affine operation z = Σ a w + b and the one function that propagates relevance through it for every rule.

Letters, as in the papers: a input, w weights, b bias, z output, R relevance. All these rules have the form

    R_j = Σ_k  part_j v_jk  R_k / s(D_k),      D_k = Σ_i part_i v_ik + c_k,

where `part` is a part of the input (a, a⁺, a⁻, 1), v a version of the weights and c a version of the bias.
One such fraction is a `Branch`; `hand_down` computes it. `lrp.engine.speed` computes the same numbers with
less work.

The stabiliser is s(D) = D + ε sgn(D). Where D is exactly 0, no input can receive a share: the relevance there is
*dropped*, and the ledger records it. The three losses are:

    bias     Σ R c / s(D)              the share of the bias
    epsilon  Σ R (s(D) − D) / s(D)     the share of the stabiliser
    dropped  Σ R [D = 0]

The code here runs on tensors, and on fx proxies, which record it as nodes of the explanation program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrp.engine.structured_weights import Structured
from lrp.engine.weight_versions import Version
from lrp.errors import RuleError

PARTS = {
    "a": "the input",
    "a+": "its positive part",
    "a-": "its negative part",
    "1": "ones",
    "low": "minus the least value that the input can have",
    "high": "minus the largest",
}
"""The parts of the input that a `Branch` may use."""


class Flow(NamedTuple):
    """What one operation does with the relevance at its output.

    `relevance` is for its data inputs, None where an input receives none. The other fields are sums over the
    whole batch, float64; a program computes them only if it has a ledger. `bias`, `epsilon` and `dropped` are in
    units of the relevance. `wrong_sign`: over the denominators whose sign a rule declares, the part of Σ|D| that
    has the other sign.
    """

    relevance: tuple[Tensor | None, ...]
    bias: Tensor | float = 0.0
    epsilon: Tensor | float = 0.0
    dropped: Tensor | float = 0.0
    wrong_sign: Tensor | float = 0.0


@dataclass(frozen=True)
class Affine:
    """One affine operation z = forward(a, w) + b.

    Attributes:
        forward: (a, w) -> Σ a w, without bias. Zero padding is part of it, and receives no relevance.
        adjoint: (s, w) -> Σ_k w_jk s_k, of the input's shape.
        weight: as `forward` takes it: a tensor, or a `Structured` matrix.
        bias: broadcasts against the output, or None.
        fused: `forward` takes a bias [out] as its third argument.
    """

    forward: Callable[..., Any]
    adjoint: Callable[[Any, Any], Any]
    weight: Any
    bias: Any = None
    fused: bool = False


@dataclass(frozen=True)
class Branch:
    """One fraction of a rule.

    Args:
        terms: (part of a, version of w) each; the parts are the keys of `PARTS`.
        bias: the version of b that is added to the denominator; None: none.
        factor: the fraction is multiplied by it.
        sign: the denominator is >= 0 (+1) or <= 0 (-1) for every input; 0: it has both signs. The ledger checks it.
        where: "z > 0" or "z < 0": the branch applies to these outputs only; None: to all.

    Raises:
        RuleError: no terms, or an unknown part, sign or `where`.
    """

    terms: tuple[tuple[str, Version], ...]
    bias: Version | None
    factor: float = 1.0
    sign: int = 0
    where: str | None = None

    def __post_init__(self) -> None:
        parts = ", ".join(f"{part!r} ({what})" for part, what in PARTS.items())
        pairs = "(part, version) pairs such as ('a+', lrp.positive)"
        if not self.terms or not all(
            isinstance(t, tuple) and len(t) == 2 and callable(t[1]) for t in self.terms
        ):
            raise RuleError(f"Branch(terms={self.terms!r}): expected {pairs}, at least one.")
        if unknown := [part for part, _ in self.terms if part not in PARTS]:
            raise RuleError(f"Branch part {unknown[0]!r}: expected one of {parts}.")
        if self.bias is not None and not callable(self.bias):
            raise RuleError(f"Branch(bias={self.bias!r}): expected a version such as lrp.unchanged, or None.")
        if self.sign not in (-1, 0, 1):
            raise RuleError(
                f"Branch(sign={self.sign!r}): expected 1 (never < 0), -1 (never > 0) or 0 (either)."
            )
        if self.where not in (None, "z > 0", "z < 0"):
            raise RuleError(f"Branch(where={self.where!r}): expected 'z > 0', 'z < 0' or None (all outputs).")

    def chosen(self, z: Any) -> Any:
        """The mask of the outputs that the branch applies to; None: all."""
        if self.where is None:
            return None
        return z > 0 if self.where == "z > 0" else z < 0


def total(relevance: Any) -> Any:
    return relevance.sum(dtype=torch.float64)


def stabilise(d: Any, rule: Any, dims: int = 2, all_d: Any = None) -> Any:
    """s(D) = D + ε sgn(D); relative: ε times the root mean square of each sample's D.

    Args:
        dims: the number of dimensions of D, which a proxy does not know.
        all_d: D of all outputs, for the root mean square, if `d` is valid at some of them only.
    """
    if rule.epsilon == 0:
        return d
    if rule.relative:
        mean = (d if all_d is None else all_d).square().mean(dim=list(range(1, dims)), keepdim=True)
        return d + torch.where(d < 0, -rule.epsilon * mean.sqrt(), rule.epsilon * mean.sqrt())
    # Where D = 0 relevance is dropped, so sgn(0) = 0 does no harm.
    return torch.add(d, torch.sign(d), alpha=rule.epsilon)


def fraction(relevance: Any, d: Any, rule: Any, dims: int = 2, all_d: Any = None) -> tuple[Any, ...]:
    """(R / s(D), 0 where D = 0; the share of ε; the dropped relevance)."""
    s = stabilise(d, rule, dims, all_d)
    quotient = torch.where(d == 0, 0.0, relevance / s)
    return quotient, total(quotient * (s - d)), total(torch.where(d == 0, relevance, 0.0))


def wrong_sign(d: Any, sign: int, rule: Any) -> Any:
    """The part of Σ|D| with another sign than declared. ε counts as part of |D|: below it, a sign is rounding."""
    least = 0.0 if rule.relative else rule.epsilon
    return total((-sign * d).clamp(min=0)) / total(abs(d) + least).clamp(min=torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class Site:
    """The context of an affine operation in a program: what a rule may need besides the weights.

    Attributes:
        name: the name of the operation in errors.
        dims: the number of dimensions of its output.
        versions: (w, version) -> version(w), cached, so that a program and its ledger program share positive parts.
        bounds: a -> (low, high), the range of the input, which broadcasts against it; None: not known.
    """

    name: str = "the operation"
    dims: int = 2
    versions: Callable[[Any, Version], Any] = lambda w, version: version(w)
    bounds: Callable[[Any], tuple[Any, Any]] | None = None

    def version(self, w: Any, version: Version) -> Any:
        try:
            return self.versions(w, version)
        except (AttributeError, TypeError) as error:
            if not isinstance(w, Structured):
                raise
            raise RuleError(
                f"{getattr(version, '__name__', version)} cannot be taken of the weights of {self.name}, a {type(w).__name__} matrix: build it "
                "from lrp.positive, lrp.negative, lrp.square, lrp.ones, sums and factors, or give the rule to other operations."
            ) from error

    def part(self, a: Any, part: str) -> Any:
        """A part of the input, one of `PARTS`."""
        if part == "a":
            return a
        if part in ("a+", "a-"):
            return a.clamp(min=0) if part == "a+" else a.clamp(max=0)
        if part == "1":
            return torch.ones_like(a)
        if self.bounds is None:
            raise RuleError(
                f"ZBox needs the range of the input of {self.name}, and it is known only at the first layer."
            )
        return -self.bounds(a)[0 if part == "low" else 1]

    def hand_down(self, rule: Any, op: Affine, a: Any, z: Any, relevance: Any) -> Flow:
        """Compute what `AffineRule.through_affine` returns; the sites of `lrp.engine.speed` need less work for it."""
        return hand_down(rule.branches(), rule, op, self, a, z, relevance)


def hand_down(
    branches: Sequence[Branch], rule: Any, op: Affine, site: Site, a: Any, z: Any, relevance: Any
) -> Flow:
    """Propagate relevance from the output of one affine operation to its input, by a rule's branches.

    Args:
        rule: its `epsilon` and `relative` set the stabiliser; its `bias` is "ignore" if biases are left out.
        a: its input, [N, *in].
        z: its output with bias, [N, *out].
        relevance: at the output, [N, *out], in units of the start relevance (logits).

    Returns:
        Relevance at the input, [N, *in]: its sum is that of `relevance` minus bias, epsilon and dropped.
    """
    b = op.bias
    if rule.bias == "ignore" and b is not None:
        z, b = z - b, None
    taken = [(branch, branch.chosen(z), *_denominator(branch, b, op, site, a)) for branch in branches]
    parts = [torch.where(chosen, d, 0.0) for _, chosen, _, _, d in taken if chosen is not None]
    all_d = sum(parts[1:], start=parts[0]) if parts else None
    received, bias, epsilon, wrong = torch.zeros_like(a), 0.0, 0.0, 0.0
    dropped = total(_relevance_of_no_branch(branches, z, relevance))
    for branch, chosen, terms, c, d in taken:
        here, r = (v if chosen is None else torch.where(chosen, v, 0.0) for v in (d, relevance))
        s, by_epsilon, by_zero = fraction(r, d, rule, site.dims, None if chosen is None else all_d)
        for part, w in terms:
            share = op.adjoint(s, w) if part == "1" else site.part(a, part) * op.adjoint(s, w)
            received = received + branch.factor * share
        epsilon, dropped = epsilon + branch.factor * by_epsilon, dropped + branch.factor * by_zero
        bias = bias if c is None else bias + branch.factor * total(s * c)
        wrong = wrong + wrong_sign(here, branch.sign, rule) if branch.sign else wrong
    return Flow((received,), bias, epsilon, dropped, wrong)


def _denominator(branch: Branch, b: Any, op: Affine, site: Site, a: Any) -> tuple[Any, Any, Any]:
    """(terms with their weights, c, D)."""
    terms = [(part, site.version(op.weight, version)) for part, version in branch.terms]
    c = branch.bias(b) if branch.bias is not None and b is not None else None
    products = [op.forward(site.part(a, part), w) for part, w in terms]
    return terms, c, sum(products, start=0.0 if c is None else c)


def _relevance_of_no_branch(branches: Sequence[Branch], z: Any, relevance: Any) -> Any:
    """The relevance at outputs that no branch applies to, such as z = 0 with γ."""
    rest = relevance
    for branch in branches:
        chosen = branch.chosen(z)
        rest = torch.zeros_like(rest) if chosen is None else torch.where(chosen, 0.0, rest)
    return rest
