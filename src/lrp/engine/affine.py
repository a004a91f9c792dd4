r"""One affine operation z = Σ a w + b as rules see it, and the one step that every rule for it takes.

Letters, as in the papers: a input, w weights, b bias, z output, R relevance. All these rules have the form

    R_j = Σ_k  part_j v_jk  R_k / s(D_k),      D_k = Σ_i part_i v_ik + c_k,

with `part` some part of the input (a, a⁺, a⁻, 1), v some version of the weights, c of the bias: one
`Branch`. `hand_down` is the one place that runs them.

The stabiliser is s(D) = D + ε sgn(D). An exactly empty denominator (D = 0) has nothing to share:
what reached it is *dropped*, and booked so. Each loss has a formula of its own:

    bias     Σ R c / s(D)              the share of the bias
    epsilon  Σ R (s(D) − D) / s(D)     what the stabiliser took
    dropped  Σ R [D = 0]

Everything here is written as tensor code. It runs on tensors, and on fx proxies, which write it down as
part of the explanation program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.fx import Proxy

from lrp.engine.structured_weights import Structured
from lrp.errors import RuleError


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
        weight: as `forward` takes it: a tensor, or a `weights` structure where the matrix has one.
        bias: broadcasts against the output, or None.
        nonneg: the input is provably >= 0, so its a⁻ terms need no computing.
        silent: relevance is zero wherever its output is <= 0.
        rectified: max(z, 0), where the net computes it anyway and the operation is silent; else None.
        coarse: products of one sign run in bfloat16; nothing is subtracted from them.
        branching: the program may look at its tensors and decide; a compiled one may not.
        bounds: a -> (low, high) of the input, to broadcast against it; only ZBox asks.
        fused: `forward` takes a bias [out] as its third argument.
        blank: an input of ones, [1, *in]: for rules whose denominators do not see the input.
        transform: remembers fn(weight), so that a program and its ledger share the positive parts.
        where: how to name the operation in an error.
        dims: the number of dimensions of its output.
    """

    forward: Callable[..., Any]
    adjoint: Callable[[Any, Any], Any]
    weight: Any
    bias: Any = None
    nonneg: bool = False
    silent: bool = False
    rectified: Any = None
    coarse: bool = False
    branching: bool = False
    bounds: Callable[[Any], tuple[Any, Any]] | None = None
    blank: Callable[[], Tensor] | None = None
    fused: bool = False
    transform: Callable[[Any, Callable[[Any], Any]], Any] = lambda w, fn: fn(w)
    where: str = "the operation"
    dims: int = 2

    def total(self, a: Any, w: Any, c: Any = None, one_signed: bool = False) -> Any:
        """Σ a w + c, in one step where the operation has one for it.

        Args:
            c: broadcasts against the output; or a number, or None.
            one_signed: no terms of different sign meet: what bfloat16 rounds off (one part in 256 of each factor)
                stays small beside the sum.
        """
        coarse = one_signed and self.coarse and not isinstance(w, Structured)
        if coarse:
            a, w = a.to(torch.bfloat16), self.transform(w, coarsened)
        if self.fused and c is not None:
            c = w.new_full(w.shape[:1], c) if isinstance(c, float) else c.flatten().to(w.dtype)
            z = self.forward(a, w, c)
        else:
            z = self.forward(a, w) if c is None else self.forward(a, w) + c
        return z.to(torch.float32) if coarse else z

    def back(self, s: Any, w: Any, one_signed: bool = False) -> Any:
        """`adjoint`, where no weights of different sign meet in bfloat16."""
        if not (one_signed and self.coarse) or isinstance(w, Structured):
            return self.adjoint(s, w)
        return self.adjoint(s.to(torch.bfloat16), self.transform(w, coarsened)).to(torch.float32)


def coarsened(w: Tensor) -> Tensor:
    return w.to(torch.bfloat16)


class Branch(NamedTuple):
    """One fraction of a rule: its terms (part of a, version of w), version of b, and factor.

    `rest` says that D is what the branch before leaves of z. `sign` says that D is known to be
    >= 0 (+1) or <= 0 (-1). `exact` says that D is the operation's own output z.
    """

    terms: tuple[tuple[str, Callable[[Any], Any]], ...]
    bias: Callable[[Any], Any] | None
    factor: float = 1.0
    sign: int = 0
    exact: bool = False
    rest: bool = False


class Stabiliser(Protocol):
    @property
    def epsilon(self) -> float: ...
    @property
    def relative(self) -> bool: ...


def total(relevance: Any) -> Any:
    return relevance.sum(dtype=torch.float64)


def stabilise(d: Any, epsilon: float, *, sign: int = 0, relative: bool = False, dims: int = 2) -> Any:
    """s(D) = D + ε sgn(D); relative: ε times the root mean square of each sample's D.

    `dims` is D's number of dimensions: a proxy does not tell.
    """
    if epsilon == 0:
        return d
    if relative:
        rms = d.square().mean(dim=list(range(1, dims)), keepdim=True).sqrt()
        return d + torch.where(d < 0, -epsilon * rms, epsilon * rms)
    if sign:
        return d + sign * epsilon
    return torch.add(d, torch.sign(d), alpha=epsilon)  # at 0 it does not matter: there is nothing to share


def fraction(
    relevance: Any, d: Any, rule: Stabiliser, sign: int = 0, dims: int = 2, shifted: bool = False
) -> tuple[Any, Any, Any]:
    """R / s(D), 0 where D = 0; with what ε took and what was dropped.

    A denominator of one sign is empty only where all its terms are 0: then any finite quotient
    gives every input its share of 0, and the guard against D = 0 can be saved.

    Args:
        shifted: `d` is s(D) already, D of one sign.
    """
    if shifted:
        s, d = d, d - sign * rule.epsilon
    else:
        s = stabilise(d, rule.epsilon, sign=sign, relative=rule.relative, dims=dims)
    quotient = relevance / s
    if sign == 0 or rule.epsilon == 0 or rule.relative:
        quotient = torch.where(d == 0, 0.0, quotient)
    filled = torch.where(d == 0, 0.0, quotient)
    return quotient, total(filled * (s - d)), total(torch.where(d == 0, relevance, 0.0))


@dataclass(frozen=True)
class Times:
    """A version of the weights, multiplied: a factor is cheapest there."""

    factor: float
    version: Callable[[Any], Any]

    def __call__(self, w: Any) -> Any:
        return self.factor * self.version(w)

    def __str__(self) -> str:
        return f"{self.version.__name__}_times_{self.factor:g}"


def hand_down(
    branches: Sequence[Branch],
    rule: Stabiliser,
    ignore_bias: bool,
    op: Affine,
    a: Any,
    z: Any,
    relevance: Any,
) -> Flow:
    """Hand relevance from one affine operation's output down to its input, by a rule's branches.

    Args:
        a: its input, [N, *in].
        z: its output with bias, [N, *out].
        relevance: at the output, [N, *out], in units of the start relevance (logits).

    Returns:
        Relevance at the input, [N, *in]: `relevance` less what bias, ε and empty denominators took.
    """
    b = op.bias
    ignored = ignore_bias and b is not None
    if ignored:
        z, b = z - b, None
    # The same as z wherever there is relevance, kept anyway, and with less to guard against.
    own = (z, 0) if op.rectified is None or ignored else (op.rectified, 1)
    parts: list[_Part] = []
    dropped: Any = 0.0
    before = None
    for branch in branches:
        sign = branch.sign
        terms = [(part, version) for part, version in branch.terms if not (part == "a-" and op.nonneg)]
        terms = [(part, version) for part, version in terms if not _empty(op.transform(op.weight, version))]
        c = branch.bias(b) if branch.bias is not None and b is not None else None
        shift = 0.0 if rule.relative else sign * rule.epsilon
        if branch.exact:
            d, sign = own
        elif branch.rest and op.branching and not op.coarse and before is not None and len(terms) == 1:
            part, version = terms[0]
            w = op.transform(op.weight, version)
            d = call(
                subtraction(op, shift), own[0], before, relevance, _part(op, a, part), w, shifted(c, shift)
            )
        else:
            d = before = _denominator(op, a, terms, shifted(c, shift), bool(sign))
        if d is None:  # no term at all, as in z⊖ of a mean of values >= 0: empty everywhere
            dropped = dropped + branch.factor * total(relevance)
        else:
            parts.append(_Part(branch, terms, c, d, shift, sign))
    # All quotients before all shares: the denominators are let go of before the products, which need room.
    quotients = [
        fraction(relevance, part.d, rule, part.sign, op.dims, shifted=part.shift != 0) for part in parts
    ]
    received, bias, epsilon = None, 0.0, 0.0
    for (branch, terms, c, d, shift, _), (s, by_epsilon, by_nothing) in zip(parts, quotients, strict=True):
        factor = branch.factor
        for part, version in terms:
            w = op.transform(op.weight, version if factor == 1 else Times(factor, version))
            if part == "1":
                share = op.adjoint(s, w)
            else:
                share = _part(op, a, part) * op.back(s, w, one_signed=branch.sign != 0)
            received = share if received is None else received + share
        epsilon, dropped = epsilon + factor * by_epsilon, dropped + factor * by_nothing
        if c is not None:
            bias = bias + factor * total(torch.where(d == shift, 0.0, s * c))
    if received is None:
        received = torch.zeros_like(a)
    return Flow((received,), bias, epsilon, dropped)


class _Part(NamedTuple):
    """A branch that has terms here: c its bias, d its denominator, of this sign and with `shift` in it."""

    branch: Branch
    terms: list[tuple[str, Callable[[Any], Any]]]
    c: Any
    d: Any
    shift: float
    sign: int


def _empty(w: Any) -> bool:
    return isinstance(w, Structured) and w.empty


def shifted(c: Any, shift: float) -> Any:
    """A bias with ε in it; where there is none, ε alone."""
    if not shift:
        return c
    return shift if c is None else c + shift


CANCELS = 1e-3  # of D⊕: a remainder smaller than this has lost half its digits


def subtraction(op: Affine, shift: float) -> Callable[..., Tensor]:
    """What D⊕ >= 0 leaves of z = D⊕ + D⊖, without a product of its own; the channels in which it would have lost half
    its digits, at a place that has relevance, are computed as the sum they are. ε is in both: z − (D⊕ + ε) = D⊖ − ε."""

    def rest(z: Tensor, plus: Tensor, relevance: Tensor, a: Tensor, w: Tensor, c: Any) -> Tensor:
        d = z - plus
        unsure = torch.zeros(d.shape[1], dtype=torch.bool, device=d.device)
        for remainder, whole, r in zip(d, plus, relevance, strict=True):  # one image at a time: less memory
            here = (torch.add(remainder, whole, alpha=CANCELS) > shift).logical_and_(r != 0)
            unsure |= here.flatten(1).any(1)
        channels = unsure.nonzero()[:, 0]
        if len(channels) > d.shape[1] // 2:
            return op.total(a, w, c)
        if len(channels):
            d[:, channels] = op.total(a, w[channels], c[channels] if isinstance(c, Tensor) else c)
        return d.clamp_(max=shift)

    return rest


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`; as one step of the program where that is being written."""
    for argument in arguments:
        if isinstance(argument, Proxy):
            return argument.tracer.create_proxy("call_function", function, arguments, {})
    return function(*arguments)


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
    low, high = op.bounds(a)
    return -low if part == "low" else -high


def _denominator(op: Affine, a: Any, terms: Sequence[tuple[str, Any]], c: Any, one_signed: bool) -> Any:
    d = None
    for part, version in terms:
        w = op.transform(op.weight, version)
        z = op.total(_part(op, a, part), w, c if d is None else None, one_signed and part != "1")
        d = z if d is None else d + z
    return d
