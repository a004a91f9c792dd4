"""The node of the canonical graph that holds a module's or an operation's output, by name."""

from __future__ import annotations

import difflib
import operator
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import fx

from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.shapes import Shape
from lrp.errors import InputError

NEAREST = 3  # names in a message


def mark_module_outputs(graph: fx.Graph) -> None:
    """Note at each node of a captured graph the modules whose output it is, as (path, shape): others than the module read it.

    Uses and removes `meta["inside"]`: the paths of the modules around a node, with "@1" behind that of a second call.
    """
    inside: dict[fx.Node, tuple[str, ...]] = {n: n.meta.pop("inside", ()) for n in graph.nodes}
    for node in graph.nodes:
        if node.op == "call_function" and not node.meta.get("size"):
            left = [p for p in inside[node] if any(p not in inside[user] for user in node.users)]
            node.meta["outputs"] = tuple((path, node.meta["shape"]) for path in left)


def inner_node(graph: Graph, name: str) -> fx.Node:
    """The node of that name: a module's path ("layer3", "relu#2" for its second call) or an operation, as tables print it.

    Raises:
        InputError: there is none, or it is not unique; names the nearest.
    """
    known = dict(_named(graph))
    if name in known:
        return known[name]
    calls = [k for k in known if k.startswith((f"{name}#", f"{name}["))]
    if calls:
        raise InputError(f"{name!r} has {len(calls)} outputs: say {_listed(calls)}.")
    if name in graph.merged:
        raise InputError(f"{name!r} has no relevance of its own: {graph.merged[name]}.")
    near = difflib.get_close_matches(name, known, NEAREST, 0.0)
    raise InputError(
        f"{name!r} is no module or operation that relevance passes; the nearest are {_listed(near)}."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _named(graph: Graph) -> Iterator[tuple[str, fx.Node]]:
    """All names, and what they stand for."""
    outputs: dict[str, dict[str, list[fx.Node]]] = defaultdict(
        lambda: defaultdict(list)
    )  # path -> call -> nodes
    data = {*graph.operations, *graph.entries}
    for node in graph.fx.nodes:
        part = node.target is operator.getitem and node.args[0] in data
        if node not in data and not part:
            continue
        for path, shape in node.meta.get("outputs", ()):
            if _same(shape, node.meta["shape"]):
                outputs[path.partition("@")[0]][path].append(node)
            else:
                graph.merged[path] = "it is computed in another shape"
    for path, calls in outputs.items():
        for number, nodes in enumerate(calls.values(), 1):
            call = path if len(calls) == 1 else f"{path}#{number}"
            for index, node in enumerate(nodes):
                yield (call if len(nodes) == 1 else f"{call}[{index}]"), node
    same: dict[str, list[fx.Node]] = defaultdict(list)
    for node, operation in graph.operations.items():
        if node.meta.get("shape") is not None and not any(u.target is operator.getitem for u in node.users):
            same[str(operation)].append(node)
    for text, nodes in same.items():
        for number, node in enumerate(nodes, 1):
            yield (text if len(nodes) == 1 else f"{text}#{number}"), node


def _same(a: Shape, b: Any) -> bool:
    return tuple(a) == tuple(b or ())
