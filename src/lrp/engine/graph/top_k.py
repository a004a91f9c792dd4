"""`top_k`: of the relevance at the output of a conv, linear or pool, the largest elements are kept, the rest is dropped.

Source: the VGG program that the preset `kaifishr` follows.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lrp.engine.affine import total
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import shape_for_reshape, shape_of_one_image


def keep_top_k(operation: Operation, outputs: list[Any], share: float) -> tuple[list[Any], Any]:
    """(kept relevance, sum of the dropped); `share` of an image's elements, the largest signed ones, is kept; 0: all."""
    if not share or operation.family not in ("conv", "linear", "pool", "maxpool"):
        return outputs, 0.0
    r = outputs[0]
    flat = r.flatten(1)
    found = flat.topk(max(1, int(share * math.prod(shape_of_one_image(operation.shape)))), dim=1)
    kept = (
        torch.zeros_like(flat)
        .scatter(1, found.indices, found.values)
        .reshape(shape_for_reshape(operation.shape))
    )
    return [kept] + outputs[1:], total(r - kept)
