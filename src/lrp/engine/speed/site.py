"""The context of an operation, with facts that save work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrp.engine.affine import Affine, Site


@dataclass(frozen=True)
class KnownSite(Site):
    """A `Site` with more facts about the operation.

    Attributes:
        nonneg: the input is provably >= 0, so its a⁻ terms need no computing.
        zero_below: relevance is zero wherever the output is <= 0.
        rectified: max(z, 0), if the net computes it anyway and `zero_below` holds; else None.
        low_precision: products of one sign run in bfloat16; nothing is subtracted from them.
        data_dependent: the program may branch on values of tensors; a compiled one may not.
        blank: an input of ones, [1, *in]: for denominators that do not depend on the input.
    """

    nonneg: bool = False
    zero_below: bool = False
    rectified: Any = None
    low_precision: bool = False
    data_dependent: bool = False
    blank: Callable[[], Tensor] | None = None

    def total(self, op: Affine, a: Any, w: Any, c: Any = None) -> Any:
        """Σ a w + c, in one operation if `op` is fused; c broadcasts against the output, or is a number."""
        if op.fused and c is not None:
            c = w.new_full(w.shape[:1], c) if isinstance(c, float) else c.flatten().to(w.dtype)
            return op.forward(a, w, c)
        return op.forward(a, w) if c is None else op.forward(a, w) + c

    def part(self, a: Any, part: str) -> Any:
        if part == "a+" and self.nonneg:
            return a
        if part == "1" and self.blank is not None:
            return self.blank()
        return super().part(a, part)
