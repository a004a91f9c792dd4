"""Which operations relevance reaches, and the refusal of those that have no rule."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import Batch, shape_of_one_image, shape_text
from lrp.engine.rules import Rule
from lrp.errors import UnsupportedError


def reached(graph: Graph, rules: dict[fx.Node, Rule]) -> set[fx.Node]:
    """The operations that relevance reaches: not those that only compute a gate, a scale or attention."""
    holds, arrives = {graph.logits}, set()
    for node, operation in reversed(graph.operations.items()):
        if node in holds or any(user in holds for user in node.users if user.target is operator.getitem):
            arrives.add(node)
            rule, data = rules.get(node), operation.data
            indices = range(len(data)) if rule is None else operation.algebra.receivers(rule, len(data))
            holds.update(data[i] for i in indices)
    return arrives


def reaches_image(graph: Graph, rules: dict[fx.Node, Rule]) -> bool:
    """Whether any relevance reaches an input."""
    entries = set(graph.entries)
    if graph.logits in entries:
        return True
    for node in reached(graph, rules):
        operation = graph.operations[node]
        rule, data = rules.get(node), operation.data
        indices = range(len(data)) if rule is None else operation.algebra.receivers(rule, len(data))
        if any(data[i] in entries for i in indices):
            return True
    return False


def refuse_reached_unknowns(graph: Graph, rules: dict[fx.Node, Rule]) -> None:
    """Raise for operations that relevance would reach and that have no rule, all at once, before anything runs."""
    arrives = reached(graph, rules)
    without = [o for o in graph.operations.values() if o.node not in rules and o.node in arrives]
    if not without:
        return
    columns = [(o.path or "(model)", o.name, shape_text(o.shape), o.source) for o in without]
    widths = [max(len(row[i]) for row in columns) for i in range(4)]
    lines = [
        "  " + "   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in columns
    ]
    raise UnsupportedError(
        f"no rule for {len(without)} of {len(graph.operations)} operations:\n" + "\n".join(lines) + "\n"
        f"{_advice(without)}; `lrp rules --known` lists what has one."
    )


def _advice(without: list[Operation]) -> str:
    """How to give them rules: `Pass` only where it is one, as a trial shows."""
    passing = {o.name for o in without if _element_by_element(o)}
    passing -= {o.name for o in without if not _element_by_element(o)}
    if not passing:
        return "Give them one with `lrp.register`"
    names = ", ".join(f'"{name}"' for name in sorted(passing))
    others = ", the others one with `lrp.register`" if {o.name for o in without} - passing else ""
    return f"Give them one: Composite([(op({names}), Pass())]){others}"


def _element_by_element(operation: Operation) -> bool:
    """Whether each element of the output depends on that of the input in its place alone: run with some elements changed."""
    if len(operation.data) != 1 or operation.shape != operation.input_shape():
        return False
    (data,), node, random = operation.data, operation.node, torch.Generator().manual_seed(0)
    shape = [max(2 * s, 2) if isinstance(given, Batch) else s
             for s, given in zip(shape_of_one_image(operation.shape), operation.shape, strict=True)]  # fmt: skip
    before, other = (torch.rand(shape, generator=random, dtype=torch.float64) * 0.6 + 0.2 for _ in range(2))
    changed = torch.rand(shape, generator=random) < 0.5

    def run(x: Tensor) -> Any:
        def value(n: fx.Node) -> Any:
            return x.to(**operation.meta) if n is data else operation.constants[str(n.target)]

        return node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))  # type: ignore[operator]

    try:
        first, second = run(before), run(torch.where(changed, other, before))
        return bool((first == second).cpu()[~changed].all()) and first.shape == before.shape
    except Exception:
        return False
