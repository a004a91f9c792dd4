"""The canonical graph: what the rules are assigned to and the program is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph as FxGraph
from torch.fx import Node

from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import Shape


@dataclass
class Graph:
    """The canonical graph: what the rules are assigned to and the program is built from.

    Attributes:
        fx: nodes; one placeholder, constants as `get_attr`, one output.
        constants: values of the `get_attr` nodes, in `dtype`.
        operations: the nodes that relevance passes through, in order of execution; those that the
            vocabulary does not have are of family "unknown".
        channels_last: images and kernels have this memory format.
    """

    fx: FxGraph
    constants: dict[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    operations: dict[Node, Operation] = field(default_factory=dict)
    channels_last: bool = False

    @property
    def image(self) -> Node:
        return next(n for n in self.fx.nodes if n.op == "placeholder")

    @property
    def logits(self) -> Node:
        output: Any = self.fx.output_node().args[0]
        return output

    def value(self, node: Any) -> Any:
        """A constant's value, or None if the node is not one."""
        is_constant = isinstance(node, Node) and node.op == "get_attr"
        return self.constants[str(node.target)] if is_constant else None

    def constant(self, value: Tensor, name: str, before: Node) -> Node:
        """A new constant node in front of `before`."""
        name = f"constant_{name}"  # without the prefix, a name could be that of a method of nn.Module, such as "to"
        while name in self.constants:
            name += "_"
        self.constants[name] = value
        with self.fx.inserting_before(before):
            node = self.fx.create_node("get_attr", name, name=name)
        node.meta = {**before.meta, "shape": tuple(value.shape), "dtype": value.dtype}
        return node

    def replace(self, old: Node, target: Callable[..., Any], args: tuple[Any, ...]) -> Node:
        """Replace one operation by another, which keeps the position and the metadata."""
        with self.fx.inserting_before(old):
            new = self.fx.call_function(target, args)
        new.meta = dict(old.meta)
        old.replace_all_uses_with(new)
        self.fx.erase_node(old)
        return new

    def insert(self, before: Node, target: Callable[..., Any], args: tuple[Any, ...], shape: Shape) -> Node:
        """A new operation in front of `before`, with the metadata of `before`."""
        with self.fx.inserting_before(before):
            node = self.fx.call_function(target, args)
        node.meta = {**before.meta, "shape": shape, "shapes": [shape]}
        return node
