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
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.affine import Flow, Site, total
from lrp.engine.graph import bounds
from lrp.engine.graph.algebra import Step
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.reached import refuse_reached_unknowns
from lrp.engine.graph.top_k import keep_top_k
from lrp.engine.graph.writer import NOTHING_INSIDE, Inner, Program, Versions, Writer, rename_written_node
from lrp.engine.rules import Rule
from lrp.engine.speed.plan import Plan
from lrp.engine.targets import start_relevance


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
        writer = Writer(self.graph, self.versions.names, inner)
        value, mask = dict[fx.Node, Any](writer.value), writer.masks
        logits = value[self.graph.logits]
        known = self.graph.logits.meta
        start = (
            torch.zeros_like(logits)
            if inner.starts
            else start_relevance(self.seed, known, logits, *writer.starts)
        )
        rename_written_node(start, "R_start")
        relevance: dict[fx.Node, Any] = dict(zip(inner.starts, writer.starts, strict=False)) or {
            self.graph.logits: start
        }
        speed = self.speed and dataclasses.replace(self.speed, starts=inner.starts)
        book: dict[fx.Node, tuple[Any, ...]] = {}
        for node, operation in reversed(self.graph.operations.items()):
            parts = operation.outputs
            arrived = [relevance.get(part) for part in parts]
            if all(r is None for r in arrived):
                continue
            writer.step, before = node.name, writer.last
            relevance |= {n: relevance[n] * mask[n] for n in parts if n in mask and n in relevance}
            passed = [relevance.get(part) for part in parts]
            kept, cut = keep_top_k(operation, passed, self.top_k)
            if not mask.keys().isdisjoint(parts):
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
        results = writer.at_inputs(relevance)
        inside = [torch.zeros_like(value[n]) if relevance.get(n) is None else relevance[n] for n in inner.at]
        rows = [self.graph.operations[n] for n in self.graph.operations if n in book]
        account = [_stacked([book[o.node] for o in rows], logits)] if ledger else []
        outputs = [*results.values(), logits, start, *inside, *account]
        return Program(writer.module(outputs), rows, tuple(results))

    # ------------------------------------------------------------ one operation

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
