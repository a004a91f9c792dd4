"""One operation of a model, as composites and rules see it; and what a node's name, arguments and data are."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.graph.algebra import Activation, Algebra, as_algebra
from lrp.engine.graph.facts import Facts, facts
from lrp.engine.graph.registry import vocabulary_entries
from lrp.engine.graph.shapes import Shape, Size, shape_of_one_image, shape_text

# ---------------------------------------------------------------- one operation of a model


@dataclass
class Operation:
    """One operation of the canonical graph, as composites and rules see it.

    Attributes:
        name: the operation, such as "conv2d", "add", "relu".
        family: one of `FAMILIES`, or "unknown".
        path: dotted name of the module that called it, such as "features.3"; "" in the model itself.
        module: that module's class, such as "torch.nn.modules.conv.Conv2d".
        shape: of the output; batch sizes are `N` or multiples.
        first: a conv or linear whose input depends on no other conv or linear.
        nonneg: its data inputs are all provably >= 0.
        source: file:line of the model's code.
        index: position in the order of execution.
        signal: of a product, the operand that receives relevance; of a matrix product, the one that is not
            attention; None if unknown.
        evident: whether the graph determines all that the rule needs.
        note: what was chosen and why, for the rules table.
    """

    node: fx.Node
    name: str
    family: str
    path: str = ""
    module: str = ""
    shape: Shape = ()
    source: str = ""
    index: int = 0
    first: bool = False
    nonneg: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    data: list[fx.Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    signal: int | None = None
    evident: bool = True
    note: str = ""

    @functools.cached_property
    def algebra(self) -> Algebra:
        """How relevance is mapped back through it; an unknown operation is treated as an elementwise one."""
        entries = [e for e in vocabulary_entries(self.name) if e.family == self.family]
        # Where the family was decided by the operation's neighbours, no registration of it need hold for the operation.
        fitting = [e for e in entries if e.when(self)] or entries
        return as_algebra(fitting[0].lower(self)) if fitting else Activation()

    @property
    def outputs(self) -> list[Any]:
        """A node for each of its outputs, None for an unused one; several if its users are `getitem` nodes."""
        parts: dict[Any, fx.Node] = {u.args[1]: u for u in self.node.users if u.target is operator.getitem}
        return [parts.get(i) for i in range(len(self.node.meta["shapes"]))] if parts else [self.node]

    @property
    def facts(self) -> Facts:
        return facts(self.name)

    def __getitem__(self, name: str) -> Any:
        """An argument by its name in the operation's signature; constants as tensors."""
        return _resolved(self.arguments[name], self.constants)

    def is_data(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.data

    def is_constant(self, name: str) -> bool:
        """Whether an argument is a tensor of the model or a number: neither data nor dependent on the batch size."""
        value = self.arguments[name]
        return not isinstance(value, fx.Node) or value.op == "get_attr"

    def input_shape(self, index: int = 0) -> Shape:
        return self.data[index].meta["shape"]

    def space(self, first: int) -> tuple[list[int], list[int]]:
        """The sizes of its input and of its output, for one image, from dimension `first` on."""
        return shape_of_one_image(self.input_shape())[first:], shape_of_one_image(self.shape)[first:]

    @staticmethod
    def shown(shape: Sequence[Size]) -> str:
        return shape_text(shape)

    @property
    def meta(self) -> dict[str, Any]:
        """dtype and device of its output, as keyword arguments for a new tensor."""
        return {"dtype": self.node.meta["dtype"], "device": self.node.meta["device"]}

    def __str__(self) -> str:
        return f"{self.path or 'model'} ({self.name})"


def _resolved(value: Any, constants: dict[str, Tensor]) -> Any:
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return constants[str(value.target)]
    if isinstance(value, (list, tuple)):
        return type(value)(_resolved(v, constants) for v in value)
    return value


def operation_name(node: fx.Node) -> str:
    """The operation's short name: "conv2d" for torch.ops.aten.conv2d.default."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        name = name.removesuffix("_with_indices")  # the same max pool with or without indices
        return name if namespace in ("aten", "lrp") else f"{namespace}::{name}"
    return getattr(target, "__name__", str(target))


def nodes_read_by_operation(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values an operation reads: not those of which it uses only the shape or dtype."""
    name = operation_name(node)
    if facts(name).reads_shape:
        return []
    return node.all_input_nodes[:1] if name.endswith("_as") else node.all_input_nodes


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """All arguments by name, defaults filled in."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        formal = target._schema.arguments
        given = {a.name: v for a, v in zip(formal, node.args, strict=False)} | dict(node.kwargs)
        return {a.name: given.get(a.name, a.default_value) for a in formal}
    if target is operator.getitem:
        return {"source": node.args[0], "index": node.args[1]}
    bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def data_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value depends on the inputs that relevance is to reach, and not only in steps.

    It does not depend on them if it depends on the batch size or on held inputs alone. Comparisons, indices, signs and rounded values are constants between their steps: no relevance passes through them.
    """
    data: set[fx.Node] = set()
    for node in graph.nodes:
        if "entry" in node.meta or (
            node.op == "call_function"
            and any(n in data for n in nodes_read_by_operation(node))
            and not _in_steps(node)
        ):
            data.add(node)
    return data


def _in_steps(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    discrete = isinstance(dtype, torch.dtype) and not (dtype.is_floating_point or dtype.is_complex)
    return discrete or facts(operation_name(node)).steps(arguments_of(node))
