"""Which operations relevance reaches, and the refusal of those that have no rule."""

from __future__ import annotations

import operator

from torch import fx

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
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
    """Whether any relevance reaches the image."""
    if graph.logits is graph.image:
        return True
    for node in reached(graph, rules):
        operation = graph.operations[node]
        rule, data = rules.get(node), operation.data
        indices = range(len(data)) if rule is None else operation.algebra.receivers(rule, len(data))
        if any(data[i] is graph.image for i in indices):
            return True
    return False


def refuse_unknown(graph: Graph, rules: dict[fx.Node, Rule]) -> None:
    """Raise for operations that relevance would reach and that have no rule, all at once, before anything runs."""
    arrives = reached(graph, rules)
    without = [o for o in graph.operations.values() if o.node not in rules and o.node in arrives]
    if not without:
        return
    columns = [(o.path or "(model)", o.name, ops.shape_text(o.shape), o.source) for o in without]
    widths = [max(len(row[i]) for row in columns) for i in range(4)]
    lines = [
        "  " + "   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in columns
    ]
    names = ", ".join(f'"{name}"' for name in sorted({o.name for o in without}))
    raise UnsupportedError(
        f"no rule for {len(without)} of {len(graph.operations)} operations:\n" + "\n".join(lines) + "\n"
        f"Give them one: Composite([(op({names}), Pass())]) where they act element by element, "
        "`lrp.register` otherwise; `lrp rules --known` lists what has one."
    )
