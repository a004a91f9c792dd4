"""Where relevance is provably zero: rules can then save the half of their work that would hand down nothing.

After a ReLU, what argued for less than nothing is gone: where z <= 0 the activation is 0, and every rule that shares
in proportion to its input (ε, γ, αβ, z⁺) hands a zero nothing. So relevance at z is zero wherever z <= 0, and a rule that
treats outputs of both signs apart has one sign to treat. Flat, w² and zᴮ give zeros their share: below them nothing is silent.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from torch import fx

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Bilinear, MaxPool, Movement, Product, Scaled, Softmax, Sum
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.rules import AffineRule, Pass, Proportional, Rule


class Silence(NamedTuple):
    """Of a value: whether relevance is zero wherever it is 0, and wherever it is <= 0."""

    at_zero: bool = True
    below: bool = True

    def __and__(self, other: object) -> Silence:
        assert isinstance(other, Silence)
        return Silence(self.at_zero and other.at_zero, self.below and other.below)


SPOKEN = Silence(False, False)


def silent_below(graph: Graph, rules: dict[fx.Node, Rule]) -> set[fx.Node]:
    """The operations at whose output relevance is zero wherever the output is <= 0; by one pass back."""
    found: dict[fx.Node, Silence] = {graph.logits: SPOKEN}
    for node, operation in reversed(graph.operations.items()):
        parts = [user for user in node.users if user.target is operator.getitem]
        output = found.get(node, Silence())
        for part in parts:
            output &= found.get(part, Silence())
        found[node] = output
        rule = rules.get(node)
        if rule is None:  # no relevance arrives
            continue
        places: Sequence[int] = range(len(operation.data))
        if not isinstance(rule, Pass) and not isinstance(operation.algebra, Affine):
            places = operation.algebra.receivers(rule, len(places))
        for place in places:
            source = operation.data[place]
            found[source] = found.get(source, Silence()) & _handed(operation, rule, output)
    return {node for node in graph.operations if found[node].below}


def _handed(operation: Operation, rule: Rule, output: Silence) -> Silence:
    """What an operation hands to the zeros of its input."""
    if isinstance(rule, Pass):  # of affine operations, too: they may make something of nothing
        return Silence(output.at_zero, output.at_zero) if _cuts(operation) else SPOKEN
    algebra = operation.algebra
    if isinstance(rule, AffineRule) and isinstance(algebra, Affine | Scaled):
        return Silence(rule.in_proportion, False)
    if isinstance(algebra, MaxPool):
        return Silence(True, False) if isinstance(rule, Proportional) else output
    if isinstance(algebra, Movement):
        return output
    if isinstance(algebra, Product):  # 0 · y = 0
        return Silence(output.at_zero, False)
    if isinstance(algebra, Sum | Bilinear | Softmax):  # each share has its input as a factor
        return Silence(True, False)
    return SPOKEN


def _cuts(operation: Operation) -> bool:
    """Whether it gives exactly 0 for all that is <= 0."""
    name, arguments = operation.name, operation.arguments
    if name in ("relu", "relu6"):
        return True
    low = arguments.get("min_val", arguments.get("min"))
    if name in ("hardtanh", "clamp", "clamp_min"):
        return low == 0
    return name == "threshold" and arguments.get("threshold") == 0 and arguments.get("value") == 0
