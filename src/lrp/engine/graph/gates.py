"""Which operand of a product is the gate: LRP treats it as a constant, so that the signal receives the relevance.

A product of two data tensors does not show which of them is the signal. The graph usually does: a gate comes
from a sigmoid, or has one value per channel. If it is unknown, the note in the rules table states this.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import fx

from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import shape_of_one_image, shape_text

# Families allowed between the source of a gate and the product: movement, elementwise operations with constants.
THROUGH = frozenset({"movement", "scale", "sum", "norm"})
LIMITS = frozenset({"clamp_min", "clamp_max"})

Operations = dict[fx.Node, Operation]
Found = tuple[int | None, str]


def signal_or_gate(operation: Operation, before: Operations) -> Found:
    """Which operand of a product is the signal, and why; (None, why) if it is unknown.

    Args:
        operation: of family "product".
        before: the operations that come before it.
    """
    first, second = operation.arguments["self"], operation.arguments["other"]
    if operation.name == "div":
        return 0, "the divisor is a constant"
    if not (operation.is_data(first) and operation.is_data(second)):
        return (0 if operation.is_data(first) else 1), "the other operand does not see the image"
    if first is second:
        return 0, "x · x"
    for kind in ("squashed", "signed", "bounded"):
        sources = [_source(node, kind, before) for node in (first, second)]
        if (sources[0] is None) != (sources[1] is None):
            gate = 0 if sources[0] else 1
            return 1 - gate, f"gate: {_ordinal(gate)} operand, from {sources[gate]}"
    shapes = [node.meta["shape"] for node in (first, second)]
    whole = math.prod(shape_of_one_image(operation.shape))
    broadcast = [math.prod(shape_of_one_image(s)) < whole for s in shapes]
    if broadcast[0] != broadcast[1]:
        gate = broadcast.index(True)
        return 1 - gate, f"gate: {_ordinal(gate)} operand, broadcast from {shape_text(shapes[gate])}"
    activated = [_activated(node, before) for node in (first, second)]
    if (activated[0] is None) != (activated[1] is None):
        gate = 0 if activated[0] else 1
        return 1 - gate, f"gate: {_ordinal(gate)} operand, activated by {activated[gate]}"
    return None, "half each: which operand is the gate cannot be told"


def _ordinal(index: int) -> str:
    return "1st" if index == 0 else "2nd"


def _single(node: fx.Node, before: Operations) -> Operation | None:
    """The operation that computed a value, if it has one data input; a `getitem` node counts as its source."""
    while node not in before and node.op == "call_function" and node.all_input_nodes:
        node = node.all_input_nodes[0]  # getitem
    found = before.get(node)
    return found if found is not None and len(found.data) == 1 else None


def _climb(
    node: fx.Node, before: Operations, found: Callable[[Operation], bool], through: frozenset[str]
) -> str | None:
    operation = _single(node, before)
    while operation is not None:
        if found(operation):
            return operation.name
        if (
            operation.family not in through
            and operation.facts.gate != "bounded"
            and operation.name not in LIMITS
        ):
            return None
        operation = _single(operation.data[0], before)
    return None


def _source(node: fx.Node, kind: str, before: Operations) -> str | None:
    def found(operation: Operation) -> bool:
        return operation.facts.gate == kind and operation.facts.bounded(operation.arguments)

    return _climb(node, before, found, THROUGH)


def _activated(node: fx.Node, before: Operations) -> str | None:
    return _climb(node, before, lambda o: o.family == "activation", frozenset({"movement"}))


# ---------------------------------------------------------------- attention


def values_or_attention_gate(operation: Operation, before: Operations) -> Found:
    """Which operand of a matrix product holds the values: the one that is not attention.

    Attention comes from a softmax, also if heads are mixed after it, or its rows are divided by their sum.
    """
    operands = _operands(operation)
    data = [operation.is_data(node) for node in operands]
    if not all(data):
        return data.index(True), "the other operand does not see the image"
    attention = [_from_softmax(node, before) for node in operands]
    if attention[0] != attention[1]:
        index = attention.index(True)
        return 1 - index, f"attention: {_ordinal(index)} operand"
    return None, "half each: neither operand is attention" if not attention[
        0
    ] else "half each: both are attention"


def _operands(operation: Operation) -> list[fx.Node]:
    arguments = operation.arguments
    return list(arguments["tensors"] if "tensors" in arguments else arguments.values())[:2]


def _from_softmax(node: fx.Node, before: Operations, depth: int = 0) -> bool:
    while node not in before and node.op == "call_function" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    operation = before.get(node)
    if operation is None or depth > 40:
        return False
    if operation.family == "softmax":
        return True
    if operation.name == "div":  # rows divided by their sum
        return _from_softmax(operation.data[0], before, depth + 1)
    if operation.family in ("sum", "product", "matmul", "movement") and len(operation.data) > 1:
        return all(_from_softmax(n, before, depth + 1) for n in operation.data)
    mixes = THROUGH | {"conv", "linear", "activation", "layer_norm", "product", "pool"}
    if operation.family in mixes and len(operation.data) == 1:
        return _from_softmax(operation.data[0], before, depth + 1)
    return False
