"""Products in bfloat16, twice as fast on processors that support it: only where all terms of a sum have one sign, so
that nothing cancels and the rounding error (1/256 of each factor) stays small relative to the sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrp.engine.affine import Affine
from lrp.engine.speed.site import KnownSite
from lrp.engine.structured_weights import Structured


def _to_bfloat16(w: Tensor) -> Tensor:
    return w.to(torch.bfloat16)


def total_in_low_precision(op: Affine, site: KnownSite, a: Any, w: Any, c: Any) -> Any:
    """`site.total`, in bfloat16 where the site allows it."""
    if not site.low_precision or isinstance(w, Structured):
        return site.total(op, a, w, c)
    z = site.total(op, a.to(torch.bfloat16), site.version(w, _to_bfloat16), c)
    return z.to(torch.float32)


def adjoint_in_low_precision(op: Affine, site: KnownSite, s: Any, w: Any) -> Any:
    """`op.adjoint`, in bfloat16 where the site allows it."""
    if not site.low_precision or isinstance(w, Structured):
        return op.adjoint(s, w)
    return op.adjoint(s.to(torch.bfloat16), site.version(w, _to_bfloat16)).to(torch.float32)
