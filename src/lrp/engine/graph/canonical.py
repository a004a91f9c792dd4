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
from lrp.engine.graph.shapes import Shape, Size


@dataclass
class Graph:
    """The canonical graph: what the rules are assigned to and the program is built from.

    Attributes:
        fx: nodes; a placeholder for each input, constants as `get_attr`, one output.
        constants: values of the `get_attr` nodes, in `dtype`.
        operations: the nodes that relevance passes through, in order of execution; those that the
            vocabulary does not have are of family "unknown".
        channels_last: images and kernels have this memory format.
        merged: module -> why no node holds its output alone.
    """

    fx: FxGraph
    constants: dict[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    operations: dict[Node, Operation] = field(default_factory=dict)
    channels_last: bool = False
    merged: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Node]:
        return [n for n in self.fx.nodes if n.op == "placeholder"]

    @property
    def entries(self) -> list[Node]:
        """The nodes at which relevance ends: inputs, and embeddings of inputs that hold ids. `meta["entry"]` is the input's number."""
        return [n for n in self.fx.nodes if "entry" in n.meta]

    @property
    def images(self) -> Size:
        """The number of images."""
        images: Size = next(n for n in self.inputs if n.meta["batched"]).meta["shape"][0]
        return images

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
        node.meta = {**inherited(before), "shape": tuple(value.shape), "dtype": value.dtype}
        return node

    def replace(self, old: Node, target: Callable[..., Any], args: tuple[Any, ...]) -> Node:
        """Replace one operation by another, which keeps the position and the metadata."""
        with self.fx.inserting_before(old):
            new = self.fx.call_function(target, args)
        new.meta = dict(old.meta)
        old.replace_all_uses_with(new)
        self.fx.erase_node(old)
        return new

    def substitute(self, old: Node, new: Any) -> None:
        """Let all readers of `old` read `new`, and remove `old`."""
        outputs = old.meta.pop("outputs", ())
        alone = set(new.users) <= {old}
        old.replace_all_uses_with(new)
        if alone:
            new.meta["outputs"] = (*new.meta.get("outputs", ()), *outputs)
        else:  # relevance at `new` is also that of its other readers
            place = new.meta.get("path") or new.name
            self.merged.update(
                (path, f"its output is that of {place}, which others read, too") for path, _ in outputs
            )
        if not old.users:
            self.fx.erase_node(old)

    def insert(self, before: Node, target: Callable[..., Any], args: tuple[Any, ...], shape: Shape) -> Node:
        """A new operation in front of `before`, with the metadata of `before`."""
        with self.fx.inserting_before(before):
            node = self.fx.call_function(target, args)
        node.meta = {**inherited(before), "shape": shape, "shapes": [shape]}
        return node


def inherited(node: Node) -> dict[str, Any]:
    """What a node made in place of another takes over from it: not that it is the output of a module, or where data enter."""
    return {key: value for key, value in node.meta.items() if key not in ("outputs", "entry")}
