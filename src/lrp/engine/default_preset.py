"""The preset that fits an architecture, used if the caller names none.

Measured by `make faithfulness` and `python benchmarks/architectures.py`; the tables are in the README.
"""

from __future__ import annotations

import math
from typing import Any

from lrp.engine.composite import Composite
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import shape_of_one_image
from lrp.engine.presets import attention, preset


def default_preset(graph: Graph, **options: Any) -> Composite:
    """The preset that fits the architecture; `options` as `preset` takes them."""
    name, because = CHOICES[_kind(graph)]
    chosen = preset(name, **options)
    return Composite(
        chosen.pairs, chosen.name, chosen.seed, chosen.top_k,
        f"{chosen.reason} Chosen for {because}.", chosen.attention, chosen.settings,
    )  # fmt: skip


# The operations that do most of a net's work -> preset, and the words for it in the reason.
CHOICES = {
    "conv": ("epsilon_gamma_wsquare", "a convolutional net"),
    "attention": ("cp_lrp", "a transformer: attention, and linear layers do most of the work"),
    "dense": ("gamma", "a net whose linear layers do most of the work"),
    "data norms": ("gamma", "a convolutional net whose norms are computed from the data, as in ConvNeXt"),
}


def _kind(graph: Graph) -> str:
    operations = graph.operations.values()
    work = {name: sum(_products(o) for o in operations if o.family == name) for name in ("conv", "linear")}
    if work["linear"] > work["conv"]:
        return "attention" if any(map(attention, operations)) else "dense"
    return "data norms" if any(o.family == "layer_norm" for o in operations) else "conv"


def _products(operation: Operation) -> int:
    """The number of multiplications of a weight and an input that the operation needs for one image."""
    algebra: Any = operation.algebra
    weight = algebra.fixed.weight
    shape = shape_of_one_image(operation.shape)
    return math.prod(shape) * weight.numel() // max(1, shape[1 if "conv" in operation.name else -1])
