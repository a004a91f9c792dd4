"""Recurrent layers and cells written out step by step: LSTM, also with projections, GRU, RNN; over packed sequences as well.

    LSTM  i, f, g, o = W x + b + U h + c;  c' = σ(f) c + σ(i) tanh(g);  h' = σ(o) tanh(c'), or P of it
    GRU   r, z, n = W x + b;  r', z', n' = U h + c;  m = tanh(n + σ(r + r') n');  h' = (1 − σ(z + z')) m + σ(z + z') h
    RNN   h' = tanh(W x + b + U h + c), or relu

What comes from a sigmoid is a gate, so that relevance goes to g, m and the states. In the first step a product with the state that
the model begins with has one operand of data alone: the gate, which then passes relevance on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.rewriting.decompositions import decomposes
from lrp.engine.graph.shapes import Batch, Shape
from lrp.errors import UnsupportedError

aten = torch.ops.aten
State = tuple[Node, ...]  # h, of an LSTM (h, c); each [N, H]


class Weights(NamedTuple):
    """One direction's of one layer: W [k H, C], U [k H, H], b and c [k H] or None, P [P, H] or None; k gates."""

    w: Node
    u: Node
    b: Node | None
    c: Node | None
    p: Node | None = None


@dataclass(frozen=True)
class _Before:
    """Writes operations in front of the one that they replace."""

    graph: Graph
    node: Node

    def add(self, target: Any, *args: Any, shape: Shape | None = None) -> Node:
        """One operation; None: of its first argument's shape."""
        return self.graph.insert(self.node, target, args, args[0].meta["shape"] if shape is None else shape)

    def linear(self, x: Node, w: Node, b: Node | None) -> Node:
        shape = (*x.meta["shape"][:-1], w.meta["shape"][0])
        return self.add(aten.linear.default, x, w, b, shape=shape)

    def sum(self, x: Node, y: Node) -> Node:
        return self.add(aten.add.Tensor, x, y)

    def product(self, x: Node, y: Node) -> Node:
        return self.add(aten.mul.Tensor, x, y)

    def split(self, x: Node, parts: int) -> list[Node]:
        """[N, parts · H] -> parts of [N, H]."""
        images, width = x.meta["shape"]
        whole = self.add(aten.split.Tensor, x, width // parts, 1)
        return self._outputs(whole, parts, (images, width // parts))

    def steps(self, x: Node) -> list[Node]:
        """[N, L, C] -> L of [N, C]."""
        images, length, width = x.meta["shape"]
        return self._outputs(self.add(aten.unbind.int, x, 1), length, (images, width))

    def _outputs(self, whole: Node, number: int, shape: Shape) -> list[Node]:
        whole.meta["shapes"] = [shape] * number
        return [self.add(operator.getitem, whole, i, shape=shape) for i in range(number)]

    def turned(self, x: Node) -> Node:
        """[L, N, C] <-> [N, L, C]."""
        first, second, *rest = x.meta["shape"]
        return self.add(aten.transpose.int, x, 0, 1, shape=(second, first, *rest))


# ---------------------------------------------------------------- one step


def _lstm(op: _Before, reads: Node, state: State, weights: Weights) -> State:
    h, c = state
    i, f, g, o = op.split(op.sum(reads, op.linear(h, weights.u, weights.c)), 4)
    i, f, o = (op.add(aten.sigmoid.default, gate) for gate in (i, f, o))
    kept = op.product(f, c)
    c = op.sum(kept, op.product(i, op.add(aten.tanh.default, g)))
    h = op.product(o, op.add(aten.tanh.default, c))
    return h if weights.p is None else op.linear(h, weights.p, None), c


def _gru(op: _Before, reads: Node, state: State, weights: Weights) -> State:
    (h,) = state
    r, z, n = op.split(reads, 3)
    r2, z2, n2 = op.split(op.linear(h, weights.u, weights.c), 3)
    r, z = (op.add(aten.sigmoid.default, op.sum(*gate)) for gate in ((r, r2), (z, z2)))
    n = op.add(aten.tanh.default, op.sum(n, op.product(r, n2)))
    new = op.product(op.add(aten.rsub.Scalar, z, 1), n)
    return (op.sum(new, op.product(z, h)),)


def _rnn(activation: Any) -> Callable[[_Before, Node, State, Weights], State]:
    def step(op: _Before, reads: Node, state: State, weights: Weights) -> State:
        remembered = op.linear(state[0], weights.u, weights.c)
        return (op.add(activation, op.sum(reads, remembered)),)

    return step


STEPS = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(aten.tanh.default),
    "rnn_relu": _rnn(aten.relu.default),
}


@decomposes(*(f"{kind}_cell" for kind in STEPS))
def _cell(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    op, kind = _Before(graph, node), ops.operation_name(node).removesuffix("_cell")
    weights = Weights(a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"])
    state = tuple(a["hx"]) if kind == "lstm" else (a["hx"],)
    state = STEPS[kind](op, op.linear(a["input"], weights.w, weights.b), state, weights)
    return list(state) if kind == "lstm" else state[0]


# ---------------------------------------------------------------- all steps


@decomposes(*STEPS)
def _layers(graph: Graph, node: Node, a: dict[str, Any]) -> Any:
    """ATen's operation, or that of a trace (`tracing.recurrent_layers`), which takes lengths as well."""
    if a.get("train") and a["dropout"]:
        return None  # random
    op, kind = _Before(graph, node), ops.operation_name(node)
    x = a["input"] if a["batch_first"] else op.turned(a["input"])
    start = list(a["hx"]) if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    layers = _weights(a["params"], a["has_biases"], a["num_layers"], 1 + a["bidirectional"])
    x, last = _written_out(op, kind, x, start, layers, a.get("lengths"))
    return [x if a["batch_first"] else op.turned(x), *last]


def _weights(given: list[Node], has_biases: bool, layers: int, directions: int) -> list[list[Weights]]:
    """torch's list as layers of directions."""
    each = len(given) // (layers * directions)

    def of(index: int) -> Weights:
        w, u, *rest = given[each * index : each * (index + 1)]
        return Weights(w, u, *rest) if has_biases else Weights(w, u, None, None, *rest)

    return [[of(layer * directions + way) for way in range(directions)] for layer in range(layers)]


def _written_out(
    op: _Before,
    kind: str,
    x: Node,
    start: list[Node],
    layers: list[list[Weights]],
    lengths: Node | None = None,
) -> tuple[Node, list[Node]]:
    """All layers and directions.

    Args:
        x: [N, L, C].
        start: h, or h and c, each [layers · directions, N, H].
        lengths: [N], the number of steps of each sequence; None: L.

    Returns:
        h of every step, [N, L, directions · H], of which behind a sequence's end nothing is said; and the last states, as in
        `start`.
    """
    images, length, _ = x.meta["shape"]
    if isinstance(length, Batch):
        raise UnsupportedError(
            f"{op.node.meta['path'] or 'the model'} ({kind}) takes the images of the batch for its steps: give it "
            "[steps, images, features], or make it with batch_first=True."
        )
    going = None if lengths is None else _going(op, lengths, length)
    last: list[State] = []
    for directions in layers:
        outputs: list[Node] = []
        for weights in directions:
            state = tuple(op.add(aten.select.int, s, 0, len(last), shape=s.meta["shape"][1:]) for s in start)
            states = _direction(op, kind, x, state, weights, len(outputs) == 1, going)
            last.append(states[0 if outputs else -1])
            h = [state[0] for state in states]
            shape = (images, length, h[0].meta["shape"][1])
            outputs.append(op.add(aten.stack.default, h, 1, shape=shape))
        x = outputs[0]
        if len(outputs) == 2:
            x = op.add(aten.cat.default, outputs, 2, shape=(*shape[:2], 2 * shape[2]))
    together = [
        op.add(aten.stack.default, list(states), 0, shape=(len(last), *states[0].meta["shape"]))
        for states in zip(*last, strict=True)
    ]
    return x, together


def _direction(
    op: _Before,
    kind: str,
    x: Node,
    start: State,
    weights: Weights,
    backwards: bool,
    going: list[Node] | None,
) -> list[State]:
    """The state after each step, in the order of the steps."""
    reads = op.steps(op.linear(x, weights.w, weights.b))
    steps = range(len(reads))
    states: list[State] = [start] * len(reads)
    state = start
    for t in reversed(steps) if backwards else steps:
        new = STEPS[kind](op, reads[t], state, weights)
        if going is not None and state is not start:
            # Backwards a sequence begins at its own last step; forwards it keeps the state that it has there.
            other = STEPS[kind](op, reads[t], start, weights) if backwards else state
            before = going[t + 1 if backwards else t]
            new = tuple(
                op.add(aten.where.self, before, *either, shape=either[0].meta["shape"])
                for either in zip(new, other, strict=True)
            )
        state = states[t] = new
    return states


def _going(op: _Before, lengths: Node, steps: int) -> list[Node]:
    """For each step, which sequences have it, [N, 1]."""
    shape: Shape = (*lengths.meta["shape"], 1)
    column = op.add(aten.unsqueeze.default, lengths, 1, shape=shape)
    column.meta["dtype"] = lengths.meta["dtype"]
    found = [op.add(aten.gt.Scalar, column, t) for t in range(steps)]
    for node in found:
        node.meta["dtype"] = torch.bool
    return found
