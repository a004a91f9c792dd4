"""αβ's second denominator as z minus the first one, which saves a product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrp.engine.affine import Affine, Branch
from lrp.engine.speed.site import KnownSite
from lrp.engine.weight_versions import negative, positive

CANCELS = 1e-3  # relative to D⊕: a difference smaller than this has lost half its digits


def subtraction_applies(first: Branch, second: Branch) -> bool:
    """Whether the denominators of two branches sum to z: each part of the input and the bias, split by sign."""
    return (
        _by_part(first) == {"a+": positive, "a-": negative}
        and _by_part(second) == {"a+": negative, "a-": positive}
        and (first.bias, second.bias) == (positive, negative)
        and first.where is second.where is None
    )


def _by_part(branch: Branch) -> dict[str, Any]:
    return dict(branch.terms) if len(branch.terms) == 2 else {}


def subtraction(op: Affine, site: KnownSite, shift: float) -> Callable[..., Tensor]:
    """A function that computes D⊖ = z − D⊕, D⊕ >= 0, without a product. A channel in which this would lose half the
    digits, at an output that has relevance, is computed by its own product. ε is in both: z − (D⊕ + ε) = D⊖ − ε."""

    def rest(z: Tensor, plus: Tensor, relevance: Tensor, a: Tensor, w: Tensor, c: Any) -> Tensor:
        d = z - plus
        inexact = torch.zeros(d.shape[1], dtype=torch.bool, device=d.device)
        for difference, whole, r in zip(d, plus, relevance, strict=True):  # one image at a time: less memory
            here = (torch.add(difference, whole, alpha=CANCELS) > shift).logical_and_(r != 0)
            inexact |= here.flatten(1).any(1)
        channels = inexact.nonzero()[:, 0]
        if len(channels) > d.shape[1] // 2:
            return site.total(op, a, w, c)
        if len(channels):
            d[:, channels] = site.total(op, a, w[channels], c[channels] if isinstance(c, Tensor) else c)
        return d.clamp_(max=shift)

    return rest
