"""Facts about a graph, its rules and each of its operations that save work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from lrp.engine.affine import Site
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import Batch, shape_of_one_image
from lrp.engine.graph.vocabulary.layers import CONVOLUTIONS
from lrp.engine.graph.writer import Versions
from lrp.engine.rules import Rule
from lrp.engine.speed.fast_step import FastSite
from lrp.engine.speed.zero_relevance import zero_below


@dataclass
class Plan:
    """Gives each operation a `FastSite`.

    Attributes:
        low_precision: products of one sign may run in bfloat16.
        data_dependent: programs may branch on values of tensors.
        starts: inner nodes where relevance starts, whatever it is there.
    """

    graph: Graph
    rules: dict[fx.Node, Rule]
    low_precision: bool = False
    data_dependent: bool = False
    starts: tuple[fx.Node, ...] = ()
    zero_below: set[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.zero_below = zero_below(self.graph, self.rules, self.starts)

    def site(
        self, operation: Operation, value: dict[fx.Node, Any], versions: Versions, known: dict[str, Any]
    ) -> Site:
        """`value`: the value of each node in the program; `known`: the fields of a `Site`."""
        plain = operation.name in CONVOLUTIONS and operation.arguments.get("groups", 1) == 1
        below = operation.node in self.zero_below
        users = [user for user in operation.node.users if self._is_relu(user)]
        shape = operation.input_shape()
        single = shape[:1] == (Batch(1),) and not any(isinstance(s, Batch) for s in shape[1:])

        def ones() -> Any:
            def make() -> Any:
                return torch.ones(shape_of_one_image(shape), dtype=self.graph.dtype, device=self.graph.device)

            return versions.once((operation.node, "ones"), make)

        return FastSite(
            **known,
            nonneg=operation.nonneg,
            zero_below=below,
            rectified=value[users[0]] if below and users and operation.family != "maxpool" else None,
            low_precision=self.low_precision and plain,
            data_dependent=self.data_dependent and plain,
            blank=ones if single else None,
        )

    def _is_relu(self, node: fx.Node) -> bool:
        return node in self.graph.operations and self.graph.operations[node].name == "relu"
