"""ε of a denominator whose sign is known, added to the bias: one operation fewer over all outputs."""

from __future__ import annotations

from typing import Any

import torch

from lrp.engine.affine import stabilise, total


def bias_with_epsilon(c: Any, shift: float) -> Any:
    """The bias plus ε; ε alone if there is no bias."""
    if not shift:
        return c
    return shift if c is None else c + shift


def quotient_with_epsilon_in_bias(
    relevance: Any, d: Any, rule: Any, sign: int = 0, dims: int = 2, shifted: bool = False
) -> tuple[Any, Any, Any]:
    """(R / s(D), 0 where D = 0; the share of ε; the dropped relevance): `affine.fraction` with less work.

    A denominator of one sign is 0 only where all its terms are 0. Any finite quotient then gives every input a share
    of 0, so that the test for D = 0 is not needed.

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
