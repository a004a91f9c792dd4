"""Tensor code run on proxies -> nodes of a torch.fx graph, with constants named after their source tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer, Proxy

from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation

TERMS = ("relevance_in", "absolute", "relevance_out", "bias", "epsilon", "dropped", "wrong_sign")
"""The columns of a ledger."""


class Writer(GraphAppendingTracer):
    """Writes the canonical graph, and then operations on proxies, into a new graph; tensors become its constants."""

    def __init__(self, graph: Graph, names: dict[int, str], arguments: Sequence[str]) -> None:
        """names: id of a tensor -> the name of its constant. arguments: of the program, behind the model's inputs."""
        super().__init__(fx.Graph())
        self.constants, self.names = dict(graph.constants), names
        self.nodes: dict[int, fx.Node] = {}
        self.step = "program"  # the operation that is being written
        self.value: dict[fx.Node, Proxy] = {}
        self.arguments: list[Proxy] = []
        self._copy(graph, arguments)

    def _copy(self, source: Graph, arguments: Sequence[str]) -> None:
        made: dict[fx.Node, fx.Node] = {}
        inputs = source.inputs
        for node in source.fx.nodes:
            if node.op == "output":
                continue
            made[node] = self.graph.node_copy(node, lambda n: made[n])
            made[node].meta = {}
            if node.op == "get_attr":
                self.nodes[id(self.constants[str(node.target)])] = made[node]
            if node is inputs[-1]:
                self.arguments = [Proxy(self.graph.placeholder(name), self) for name in arguments]
                if source.channels_last:
                    for image in source.entries:
                        if image.op == "placeholder" and len(image.meta["shape"]) == 4:
                            layout: dict[str, Any] = {"memory_format": torch.channels_last}
                            made[image] = self.graph.call_method("contiguous", (made[image],), layout)
        self.value = {node: Proxy(copy, self) for node, copy in made.items()}

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            if id(a) not in self.nodes:
                wanted = name = self.names.get(id(a), f"{self.step}_constant")
                for number in itertools.count(2):
                    if name not in self.constants:
                        break
                    name = f"{wanted}_{number}"
                self.constants[name] = a  # keeps the tensor alive, so that its id is not reused
                with self.graph.inserting_before(next(iter(self.graph.nodes))):
                    self.nodes[id(a)] = self.graph.create_node("get_attr", name, name=name)
            return self.nodes[id(a)]
        return super().create_arg(a)

    @property
    def last(self) -> fx.Node:
        """The node written last."""
        return next(iter(reversed(self.graph.nodes)))

    def mark(self, since: fx.Node, step: str) -> None:
        """What was written after the node `since` belongs to this step."""
        for written in itertools.takewhile(lambda node: node is not since, reversed(self.graph.nodes)):
            written.meta["step"] = step

    def module(self, outputs: list[Any]) -> fx.GraphModule:
        """The written graph as a module, without unused nodes."""
        self.graph.output(tuple(output.node for output in outputs))
        self.graph.eliminate_dead_code()
        root = nn.Module()
        for node in self.graph.nodes:
            if node.op == "get_attr" and not hasattr(root, str(node.target)):
                root.register_buffer(str(node.target), self.constants[str(node.target)], persistent=False)
        return fx.GraphModule(root, self.graph, "Explanation")


@dataclass
class Program:
    """The explanation of one architecture under one composite, ready to run.

    Attributes:
        module: (*inputs, *arguments) -> (*relevance, logits, start, *inner[, ledger]). The arguments are given, weight,
            predicted, or else the start relevance of inner nodes, and then masks. The ledger is a float64 tensor [rows, 7] of
            sums over the whole batch, columns as in `TERMS`.
        rows: the operation of each ledger row, in order of execution.
        inputs: the numbers of the inputs that relevance is returned for, in order.
    """

    module: fx.GraphModule
    rows: list[Operation]
    inputs: Sequence[int] = (0,)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.module(*tensors)

    def __str__(self) -> str:
        """The program's code; a comment above the code of each operation, constants by their names."""
        steps = {node.name: node.meta.get("step", "") for node in self.module.graph.nodes}
        lines, last = [], ""
        for line in self.module.code.strip().splitlines():
            line = re.sub(r";  [\w = ]+ = None$", "", line)  # a variable that is freed after its last use
            name = line.split(" = ")[0].strip()
            if line.endswith(f" = self.{name}"):
                continue
            step = steps.get(name, "")
            if step and step != last:
                lines += ["", f"    # {step}"]
                last = step
            lines.append(line)
        return "\n".join(lines)


def write_call_as_one_node(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`; recorded as one node of the program if an argument is a proxy."""
    for argument in arguments:
        if isinstance(argument, Proxy):
            return argument.tracer.create_proxy("call_function", function, arguments, {})
    return function(*arguments)


def rename_written_node(relevance: Any, name: str) -> None:
    """Rename the node of a proxy; relevance that was only passed on keeps its name."""
    if isinstance(relevance, Proxy) and not relevance.node.name.startswith("R_"):
        relevance.node._rename(name)


@dataclass
class Versions:
    """Versions of tensors, computed once for all programs of a graph.

    Attributes:
        compute: (tensor, version) -> the version of it; may know it from another graph.
    """

    made: dict[Any, Any]
    alive: list[Any]
    names: dict[int, str]
    compute: Callable[[Tensor, Callable[[Any], Any]], Any] = lambda w, version: version(w)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def of(self, w: Any, version: Callable[[Any], Any]) -> Any:
        if not isinstance(w, Tensor):
            return version(w)
        self.alive.append(w)  # so that its id, the key, is not reused
        made = self.once((id(w), version), lambda: self.compute(w, version))
        if id(w) in self.names and isinstance(made, Tensor):
            called = re.sub(r"\W", "_", getattr(version, "__name__", str(version)))
            self.names.setdefault(id(made), f"{self.names[id(w)]}_{called}")
        return made
