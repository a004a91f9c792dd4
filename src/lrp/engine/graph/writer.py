"""Tensor code run on proxies -> nodes of a torch.fx graph, with constants named after their source tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer, Proxy

from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation

TERMS = ("relevance_in", "absolute", "relevance_out", "bias", "epsilon", "dropped", "wrong_sign")
"""The columns of a ledger."""


class Inner(NamedTuple):
    """What a program does with relevance inside the model; each is an argument or an output of it.

    Attributes:
        starts: relevance starts at these nodes, and not at the logits.
        through: relevance at these nodes is multiplied by a mask.
        at: relevance at these nodes is returned.
    """

    starts: tuple[fx.Node, ...] = ()
    through: tuple[fx.Node, ...] = ()
    at: tuple[fx.Node, ...] = ()


NOTHING_INSIDE = Inner()


class Writer(GraphAppendingTracer):
    """Writes the canonical graph, and then operations on proxies, into a new graph; tensors become its constants."""

    def __init__(self, graph: Graph, names: dict[int, str], inner: Inner = NOTHING_INSIDE) -> None:
        """names: id of a tensor -> the name of its constant."""
        super().__init__(fx.Graph())
        self.constants, self.names = dict(graph.constants), names
        self.nodes: dict[int, fx.Node] = {}
        self.step = "program"  # the operation that is being written
        self.value: dict[fx.Node, Proxy] = {}
        self.source, self.starts = graph, list[Proxy]()
        self.masks: dict[fx.Node, Proxy] = {}
        self._copy(graph, inner)

    def _arguments(self, inner: Inner) -> None:
        """The arguments of the program behind the model's inputs."""
        starts = [f"start_{i}" for i in range(len(inner.starts))] or ["given", "weight", "predicted"]
        self.starts = [Proxy(self.graph.placeholder(name), self) for name in starts]
        self.masks = {
            node: Proxy(self.graph.placeholder(f"mask_{i}"), self) for i, node in enumerate(inner.through)
        }

    def _copy(self, source: Graph, inner: Inner) -> None:
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
                self._arguments(inner)
                for image in source.entries if source.channels_last else ():
                    if image.op == "placeholder" and len(image.meta["shape"]) == 4:
                        layout: dict[str, Any] = {"memory_format": torch.channels_last}
                        made[image] = self.graph.call_method("contiguous", (made[image],), layout)
        self.value = {node: Proxy(copy, self) for node, copy in made.items()}

    def at_inputs(self, relevance: dict[fx.Node, Any]) -> dict[int, Any]:
        """Input's number -> relevance of its shape; at ids, summed over their embeddings."""
        results: dict[int, Any] = {}
        for node in self.source.entries:
            result = relevance.get(node)
            result = torch.zeros_like(self.value[node]) if result is None else result  # type: ignore[arg-type]
            if node.op != "placeholder":
                result = result.sum(-1)
            elif self.source.channels_last and len(node.meta["shape"]) == 4:
                result = result.contiguous()
            index = node.meta["entry"]
            results[index] = results[index] + result if index in results else result
        return dict(sorted(results.items()))

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


def forward_module(graph: Graph, names: dict[int, str]) -> fx.GraphModule:
    """A program that computes the logits alone: (*inputs) -> (logits,)."""
    writer = Writer(graph, names)
    for start in writer.starts:
        writer.graph.erase_node(start.node)
    return writer.module([writer.value[graph.logits]])
