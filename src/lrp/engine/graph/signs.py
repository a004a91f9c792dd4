"""Which values are provably >= 0: rules that split signs can then skip the a⁻ half of their products."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from lrp.engine.graph import ops


def nonnegative_nodes(graph: fx.Graph, constants: dict[str, Tensor]) -> set[fx.Node]:
    """The nodes whose every element is >= 0 whatever the image; by one pass in order of execution."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and _holds(node, found, constants):
            found.add(node)
    return found


def _holds(node: fx.Node, found: set[fx.Node], constants: dict[str, Tensor]) -> bool:
    facts = ops.facts(ops.operation_name(node))
    if facts.nonnegative == "always":
        return True
    kept = facts.nonnegative == "kept" or node.target is operator.getitem
    if not kept and facts.gate != "bounded":
        return False
    arguments = ops.arguments_of(node)
    low = arguments.get("min_val", arguments.get("min"))
    if not kept:
        return isinstance(low, (int, float)) and low >= 0
    numbers = [arguments.get(name) for name in facts.numbers]
    if any(isinstance(v, (int, float)) and v < 0 for v in numbers):
        return False
    return all(_input_holds(n, found, constants) for n in node.all_input_nodes)


def _input_holds(node: fx.Node, found: set[fx.Node], constants: dict[str, Tensor]) -> bool:
    if node.op == "get_attr":
        value = constants[str(node.target)]
        return not value.is_floating_point() or bool((value >= 0).all())
    return node in found or node.meta.get("shape") is None  # a batch size
