"""The table operation -> rule: what `Explainer.rules()` returns and `lrp rules` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from lrp.engine.composite import Composite
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.reached import reached
from lrp.engine.graph.shapes import shape_text
from lrp.engine.rules import Rule

NOTHING = "–"  # no relevance arrives: it only computes a gate, a scale or attention


class Line(NamedTuple):
    """One operation: its path, name, output shape and rule, and notes: which operand is the gate, whether its
    input is >= 0."""

    path: str
    op: str
    shape: str
    rule: str
    note: str


@dataclass(frozen=True)
class RulesTable:
    """Which rule explains which operation, in order of execution."""

    composite: str
    reason: str
    lines: list[Line]

    @staticmethod
    def of(graph: Graph, rules: dict[fx.Node, Rule], composite: Composite) -> RulesTable:
        arrives = reached(graph, rules)
        lines = []
        for node, o in graph.operations.items():
            notes = [o.note] if o.note and node in arrives else []
            notes += ["input >= 0"] if o.nonneg else []
            rule = str(rules[node]) if node in arrives else NOTHING
            lines.append(Line(o.path or "(model)", o.name, shape_text(o.shape), rule, "; ".join(notes)))
        return RulesTable(composite.describe(), composite.reason, lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __str__(self) -> str:
        head = Line("module", "operation", "output", "rule", "note")
        widths = [max(len(line[i]) for line in [head, *self.lines]) for i in range(5)]
        text = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in [head, *self.lines]
        ]
        return "\n".join([f"composite: {self.composite}", *([self.reason] if self.reason else []), "", *text])

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from lrp.engine.results import display

        return display.display_rules_html(self)
