"""Where relevance is provably zero: programs then skip the half of their work whose result is zero.

ReLU outputs 0 wherever z <= 0, so rules that share in proportion to their input (ε, γ, αβ, z⁺) send no relevance there:
relevance at z is zero wherever z <= 0, and a rule that differs by the sign of z needs z > 0 only.
Flat, w² and zᴮ give relevance to inputs of 0: below these rules nothing can be proved.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from torch import fx

from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.rules import EQUATIONS, Rule


class ZeroRelevance(NamedTuple):
    """Whether the relevance of a value is zero wherever the value is 0, and wherever it is <= 0."""

    at_zero: bool = True
    below: bool = True

    def __and__(self, other: object) -> ZeroRelevance:
        assert isinstance(other, ZeroRelevance)
        return ZeroRelevance(self.at_zero and other.at_zero, self.below and other.below)


UNKNOWN = ZeroRelevance(False, False)


def zero_below(graph: Graph, rules: dict[fx.Node, Rule], starts: Sequence[fx.Node] = ()) -> set[fx.Node]:
    """The operations at whose output relevance is zero wherever the output is <= 0; found in one backward pass.

    starts: nodes at which any relevance may start, besides the logits.
    """
    found = dict.fromkeys((graph.logits, *starts), UNKNOWN)
    for node, operation in reversed(graph.operations.items()):
        parts = [user for user in node.users if user.target is operator.getitem]
        output = found.get(node, ZeroRelevance())
        for part in parts:
            output &= found.get(part, ZeroRelevance())
        found[node] = output
        rule = rules.get(node)
        if rule is None:  # no relevance arrives
            continue
        for index in operation.algebra.receivers(rule, len(operation.data)):
            source = operation.data[index]
            found[source] = found.get(source, ZeroRelevance()) & _at_input(operation, rule, output)
    return {node for node in graph.operations if found[node].below}


def _at_input(operation: Operation, rule: Rule, output: ZeroRelevance) -> ZeroRelevance:
    """What is known at the input of an operation."""
    if rule.moves:
        if EQUATIONS[operation.family] in ("through_movement", "through_maxpool"):  # the same elements
            return output
        if operation.facts.rectifies(operation.arguments):
            return ZeroRelevance(output.at_zero, output.at_zero)
        return UNKNOWN  # it may map an input of 0 to another value
    if not rule.in_proportion:
        return UNKNOWN
    if operation.family == "product":  # 0 · y = 0
        return ZeroRelevance(output.at_zero, False)
    return ZeroRelevance(True, False)
