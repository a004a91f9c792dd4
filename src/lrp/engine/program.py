"""graph + rules -> the explanation program: forward pass, then relevance pass, as plain tensor operations.

The program is one torch.fx graph. It has no hooks and needs no autograd, and it frees every tensor after its last
use. Its relevance pass is written by running the rules on proxies: the operations that a rule performs become the nodes
of the program.

    (*inputs, given, weight, predicted) -> (*relevance, logits, start[, ledger])

The start relevance is `given + (weight + predicted · onehot(argmax)) · seed(logits)`, of the logits' shape, so that
one program serves every kind of target. Relevance at inner nodes can be read, replaced and masked (`Inner`).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lrp.engine.affine import Flow, Site, total
from lrp.engine.graph import bounds
from lrp.engine.graph.algebra import Step
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.reached import refuse_reached_unknowns
from lrp.engine.graph.top_k import keep_top_k
from lrp.engine.graph.writer import Program, Versions, Writer, rename_written_node
from lrp.engine.rules import Rule
from lrp.engine.speed.plan import Plan

SEEDS = ("logit", "one", "softmax")


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


@dataclass
class Builder:
    """Writes programs for one graph and its rules; positive parts are computed once for all of them.

    Attributes:
        top_k: the fraction of an image's relevance elements that is kept at the output of each conv, linear and pool; 0: all.
        speed: optimisations; None: everything is computed as in the equations.
    """

    graph: Graph
    rules: dict[fx.Node, Rule]
    top_k: float = 0.0
    seed: str = "logit"
    speed: Plan | None = None
    versions: Versions = field(init=False)

    def __post_init__(self) -> None:
        refuse_reached_unknowns(self.graph, self.rules)
        self.versions = Versions({}, [], {id(value): name for name, value in self.graph.constants.items()})

    def program(self, *, ledger: bool = False, inner: Inner = NOTHING_INSIDE) -> Program:
        """Write the program.

        Args:
            ledger: add the ledger as an output.
            inner: where relevance is read, replaced or masked inside the model.
        """
        starts = [f"start_{i}" for i in range(len(inner.starts))] or ["given", "weight", "predicted"]
        masks = [f"mask_{i}" for i in range(len(inner.through))]
        writer = Writer(self.graph, self.versions.names, starts + masks)
        value: dict[fx.Node, Any] = dict(writer.value)
        logits = value[self.graph.logits]
        given = writer.arguments[: len(starts)]
        mask = dict(zip(inner.through, writer.arguments[len(starts) :], strict=True))
        start = torch.zeros_like(logits) if inner.starts else self._start(logits, *given)
        rename_written_node(start, "R_start")
        relevance: dict[fx.Node, Any] = (
            dict(zip(inner.starts, given, strict=True)) if inner.starts else {self.graph.logits: start}
        )
        speed = self.speed and dataclasses.replace(self.speed, starts=inner.starts)
        book: dict[fx.Node, tuple[Any, ...]] = {}
        for node, operation in reversed(self.graph.operations.items()):
            parts = self._output_nodes(node)
            arrived = [relevance.get(part) for part in parts]
            if all(r is None for r in arrived):
                continue
            writer.step, before = node.name, writer.last
            for part, r in zip(parts, arrived, strict=True):
                if part in mask and r is not None:
                    relevance[part] = r * mask[part]
            passed = [relevance.get(part) for part in parts]
            kept, cut = keep_top_k(operation, passed, self.top_k)
            if any(part in mask for part in parts):
                cut = cut + _sum(arrived) - _sum(passed)
            flow = self._flow(operation, value, kept, speed)
            for source, r in zip(operation.data, flow.relevance, strict=True):
                if r is not None:
                    relevance[source] = r if source not in relevance else relevance[source] + r
                    rename_written_node(relevance[source], f"R_{source.name}")
            writer.mark(before, f"R: {operation}, {self.rules[node]}")
            book[node] = (
                _sum(arrived), _sum(map(abs, _given(arrived))), _sum(flow.relevance), flow.bias, flow.epsilon,
                flow.dropped + cut, flow.wrong_sign,
            )  # fmt: skip
        results = self._at_inputs(relevance, value)
        inside = [torch.zeros_like(value[n]) if relevance.get(n) is None else relevance[n] for n in inner.at]
        rows = [self.graph.operations[n] for n in self.graph.operations if n in book]
        account = [_stacked([book[o.node] for o in rows], logits)] if ledger else []
        outputs = [*results.values(), logits, start, *inside, *account]
        return Program(writer.module(outputs), rows, tuple(results))

    def forward(self) -> fx.GraphModule:
        """A program that computes the logits alone: (*inputs) -> (logits,)."""
        writer = Writer(self.graph, self.versions.names, ())
        return writer.module([writer.value[self.graph.logits]])

    def _at_inputs(self, relevance: dict[fx.Node, Any], value: dict[fx.Node, Any]) -> dict[int, Any]:
        """Input's number -> relevance of its shape; at ids, summed over their embeddings."""
        results: dict[int, Any] = {}
        for node in self.graph.entries:
            result = relevance.get(node)
            result = torch.zeros_like(value[node]) if result is None else result
            if node.op != "placeholder":
                result = result.sum(-1)
            elif self.graph.channels_last and len(node.meta["shape"]) == 4:
                result = result.contiguous()
            index = node.meta["entry"]
            results[index] = results[index] + result if index in results else result
        return dict(sorted(results.items()))

    def _start(self, logits: Any, given: Any, weight: Any, predicted: Any) -> Any:
        shape = self.graph.logits.meta["shape"]
        winner = F.one_hot(logits.argmax(1), shape[1]).to(self.graph.dtype)
        if len(shape) > 2:
            winner = winner.movedim(-1, 1)
        seed = {
            "logit": lambda: logits,
            "one": lambda: torch.ones_like(logits),
            "softmax": lambda: logits.softmax(1),
        }
        return given + (weight + predicted * winner) * seed[self.seed]()

    # ------------------------------------------------------------ one operation

    def _output_nodes(self, node: fx.Node) -> list[Any]:
        """A node for each output of an operation, None for an unused one; several if its users are `getitem` nodes."""
        parts: dict[Any, fx.Node] = {u.args[1]: u for u in node.users if u.target is operator.getitem}
        return [parts.get(i) for i in range(len(node.meta["shapes"]))] if parts else [node]

    def _flow(
        self, operation: Operation, value: dict[fx.Node, Any], outputs: list[Any], speed: Plan | None
    ) -> Flow:
        """The flow through one operation: its algebra calls the rule's equation."""

        def read(argument: Any) -> Any:
            return value[argument] if isinstance(argument, fx.Node) else argument

        inputs, rule = [value[n] for n in operation.data], self.rules[operation.node]
        step = Step(rule, inputs, value[operation.node], outputs, read, self.site(operation, value, speed))
        return operation.algebra.hand_down(step)

    def site(self, operation: Operation, value: dict[fx.Node, Any], speed: Plan | None) -> Site:
        """The context of the operation."""
        rule: Any = self.rules[operation.node]

        def box(a: Any) -> tuple[Any, Any]:
            def make() -> tuple[Tensor, Tensor]:
                return bounds.carried_bounds(self.graph, operation, rule.low, rule.high)

            return bounds.bounds_of_each_image(
                self.versions.once((operation.node, "box"), make), operation, a
            )

        known: dict[str, Any] = {
            "name": str(operation),
            "dims": len(operation.shape),
            "versions": self.versions.of,
            "bounds": box,
        }
        return Site(**known) if speed is None else speed.site(operation, value, self.versions, known)


def _given(parts: Iterable[Any]) -> list[Any]:
    return [part for part in parts if part is not None]


def _sum(parts: Iterable[Any]) -> Any:
    return sum((total(part) for part in _given(parts)), start=0.0)


def _stacked(rows: list[tuple[Any, ...]], like: Any) -> Any:
    """The ledger as one tensor [rows, 7]."""
    zero = like.new_zeros((), dtype=torch.float64)
    return torch.stack([torch.stack([zero + term for term in row]) for row in rows])
