"""graph + rules -> the explanation program: forward pass, then relevance pass, as plain tensor operations.

The program is one torch.fx graph. It has no hooks and needs no autograd, and it frees every tensor after its last
use. Its relevance pass is written by running the rules on proxies: the operations that a rule performs become the nodes
of the program.

    (image, given, weight, predicted) -> (relevance, logits, start[, ledger])

The start relevance is `given + (weight + predicted · onehot(argmax)) · seed(logits)`, [N, K], so that
one program serves every kind of target.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

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

    def program(self, *, ledger: bool = False) -> Program:
        """Write the program.

        Args:
            ledger: add the ledger as an output.
        """
        writer = Writer(self.graph, self.versions.names)
        image, *seeds = writer.inputs
        value: dict[fx.Node, Any] = dict(writer.value)
        logits = value[self.graph.logits]
        start = self._start(logits, *seeds)
        rename_written_node(start, "R_start")
        relevance: dict[fx.Node, Any] = {self.graph.logits: start}
        book: dict[fx.Node, tuple[Any, ...]] = {}
        for node, operation in reversed(self.graph.operations.items()):
            arrived = self._outputs(node, relevance)
            if all(r is None for r in arrived):
                continue
            writer.step, before = node.name, writer.last
            kept, cut = keep_top_k(operation, arrived, self.top_k)
            flow = self._flow(operation, value, kept)
            for source, r in zip(operation.data, flow.relevance, strict=True):
                if r is not None:
                    relevance[source] = r if source not in relevance else relevance[source] + r
                    rename_written_node(relevance[source], f"R_{source.name}")
            writer.mark(before, f"R: {operation}, {self.rules[node]}")
            book[node] = (
                _sum(arrived), _sum(map(abs, _given(arrived))), _sum(flow.relevance), flow.bias, flow.epsilon,
                flow.dropped + cut, flow.wrong_sign,
            )  # fmt: skip
        result = relevance.get(self.graph.image)
        result = torch.zeros_like(image) if result is None else result  # type: ignore[arg-type]
        if self.graph.channels_last:
            result = result.contiguous()
        rows = [self.graph.operations[n] for n in self.graph.operations if n in book]
        account = [_stacked([book[o.node] for o in rows], logits)] if ledger else []
        return Program(writer.module([result, logits, start, *account]), rows)

    def _start(self, logits: Any, given: Any, weight: Any, predicted: Any) -> Any:
        classes = self.graph.logits.meta["shape"][1]
        winner = F.one_hot(logits.argmax(1), classes).to(self.graph.dtype)
        seed = {
            "logit": lambda: logits,
            "one": lambda: torch.ones_like(logits),
            "softmax": lambda: logits.softmax(1),
        }
        return given + (weight + predicted.unsqueeze(1) * winner) * seed[self.seed]()

    # ------------------------------------------------------------ one operation

    def _outputs(self, node: fx.Node, relevance: dict[fx.Node, Any]) -> list[Any]:
        """The relevance at each output of an operation; several if its users are `getitem` nodes."""
        parts = {u.args[1]: relevance.get(u) for u in node.users if u.target is operator.getitem}
        if not parts:
            return [relevance.get(node)]
        return [parts.get(i) for i in range(len(node.meta["shapes"]))]

    def _flow(self, operation: Operation, value: dict[fx.Node, Any], outputs: list[Any]) -> Flow:
        """The flow through one operation: its algebra calls the rule's equation."""

        def read(argument: Any) -> Any:
            return value[argument] if isinstance(argument, fx.Node) else argument

        inputs, rule = [value[n] for n in operation.data], self.rules[operation.node]
        step = Step(rule, inputs, value[operation.node], outputs, read, self.site(operation, value))
        return operation.algebra.hand_down(step)

    def site(self, operation: Operation, value: dict[fx.Node, Any]) -> Site:
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
        return (
            Site(**known) if self.speed is None else self.speed.site(operation, value, self.versions, known)
        )


def _given(parts: Iterable[Any]) -> list[Any]:
    return [part for part in parts if part is not None]


def _sum(parts: Iterable[Any]) -> Any:
    return sum((total(part) for part in _given(parts)), start=0.0)


def _stacked(rows: list[tuple[Any, ...]], like: Any) -> Any:
    """The ledger as one tensor [rows, 7]."""
    zero = like.new_zeros((), dtype=torch.float64)
    return torch.stack([torch.stack([zero + term for term in row]) for row in rows])
