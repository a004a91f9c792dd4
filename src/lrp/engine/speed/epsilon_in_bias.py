"""ε of a denominator whose sign is known, added to the bias: one operation less over all outputs."""

from __future__ import annotations

from typing import Any

import torch

from lrp.engine.affine import stabilise, total


def shifted(c: Any, shift: float) -> Any:
    """A bias with ε in it; where there is none, ε alone."""
    if not shift:
        return c
    return shift if c is None else c + shift


def quotient(
    relevance: Any, d: Any, rule: Any, sign: int = 0, dims: int = 2, shifted: bool = False
) -> tuple[Any, Any, Any]:
    """R / s(D), 0 where D = 0; with what ε took and what was dropped: `affine.fraction` with two savings.

    A denominator of one sign is empty only where all its terms are 0: then any finite quotient
    gives every input its share of 0, and the guard against D = 0 can be saved.

    Args:
        shifted: `d` is s(D) already, D of one sign.
    """
    if shifted:
        s, d = d, d - sign * rule.epsilon
    else:
        known = sign and not rule.relative
        s = d + sign * rule.epsilon if known and rule.epsilon else stabilise(d, rule, dims)
    share = relevance / s
    if sign == 0 or rule.epsilon == 0 or rule.relative:
        share = torch.where(d == 0, 0.0, share)
    filled = torch.where(d == 0, 0.0, share)
    return share, total(filled * (s - d)), total(torch.where(d == 0, relevance, 0.0))
