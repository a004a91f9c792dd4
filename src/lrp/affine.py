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

from lrp.errors import RuleError
from lrp.structured import Structured


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
        bounds: a -> (low, high) of the input, to broadcast against it; only ZBox asks.
        blank: an input of ones, [1, *in]: for rules whose denominators do not see the input.
        transform: remembers fn(weight), so that a program and its ledger share the positive parts.
        where: how to name the operation in an error.
        dims: the number of dimensions of its output.
    """

    forward: Callable[[Any, Any], Any]
    adjoint: Callable[[Any, Any], Any]
    weight: Any
    bias: Any = None
    nonneg: bool = False
    silent: bool = False
    bounds: Callable[[Any], tuple[Any, Any]] | None = None
    blank: Callable[[], Tensor] | None = None
    transform: Callable[[Any, Callable[[Any], Any]], Any] = lambda w, fn: fn(w)
    where: str = "the operation"
    dims: int = 2


class Branch(NamedTuple):
    """One fraction of a rule: its terms (part of a, version of w), version of b, and factor.

    `side` "+" or "-" lets only outputs with z > 0 or z < 0 through. `sign` says that D is known to be
    >= 0 (+1) or <= 0 (-1). `exact` says that D is the operation's own output z.
    """

    terms: tuple[tuple[str, Callable[[Any], Any]], ...]
    bias: Callable[[Any], Any] | None
    factor: float = 1.0
    side: str = ""
    sign: int = 0
    exact: bool = False


class Stabiliser(Protocol):
    @property
    def epsilon(self) -> float: ...
    @property
    def relative(self) -> bool: ...


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


def fraction(relevance: Any, d: Any, rule: Stabiliser, sign: int = 0, dims: int = 2) -> tuple[Any, Any, Any]:
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
    if ignore_bias and b is not None:
        z, b = z - b, None
    received, bias, epsilon, dropped = None, 0.0, 0.0, 0.0
    for branch in branches:
        r = relevance if branch.factor == 1 else relevance * branch.factor
        if branch.side:
            r = torch.where(z > 0 if branch.side == "+" else z < 0, r, 0.0)
        terms = [
            (part, op.transform(op.weight, version))
            for part, version in branch.terms
            if not (part == "a-" and op.nonneg)
        ]
        terms = [(part, w) for part, w in terms if not (isinstance(w, Structured) and w.empty)]
        c = branch.bias(b) if branch.bias is not None and b is not None else None
        d = z if branch.exact else _denominator(op, a, terms, c)
        if d is None:  # no term at all, as in z⊖ of a mean of values >= 0: empty everywhere
            dropped = dropped + total(r)
            continue
        s, by_epsilon, by_nothing = fraction(r, d, rule, branch.sign, op.dims)
        for part, w in terms:
            share = op.adjoint(s, w)
            if part != "1":
                share = _part(op, a, part) * share
            received = share if received is None else received + share
        epsilon, dropped = epsilon + by_epsilon, dropped + by_nothing
        if c is not None:
            bias = bias + total(torch.where(d == 0, 0.0, s * c))
    if branches[0].side:
        dropped = dropped + total(torch.where(z == 0, relevance, 0.0))
    if received is None:
        received = torch.zeros_like(a)
    return Flow((received,), bias, epsilon, dropped)


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


def _denominator(op: Affine, a: Any, terms: Sequence[tuple[str, Any]], bias: Any) -> Any:
    d = None
    for part, w in terms:
        z = op.forward(_part(op, a, part), w)
        d = z if d is None else d + z
    return d if bias is None or d is None else d + bias
