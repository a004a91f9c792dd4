"""graph + rules -> the explanation program: forward pass, then relevance pass, as plain tensor operations.

The program is one torch.fx graph. It has no hooks and needs no autograd, and it lets go of every
tensor after its last use. Its relevance pass is written by running the rules on proxies: what a rule
computes on tensors is what stands in the program.

    (image, given, weight, predicted) -> (relevance, logits, start[, ledger])

The start relevance is `given + (weight + predicted · onehot(argmax)) · seed(logits)`, [N, K], so that
every kind of target is data and one program serves them all.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer, Proxy

from lrp.engine.affine import Affine, Flow, total
from lrp.engine.graph import ops
from lrp.engine.graph.algebra import Step
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.capture import Batch
from lrp.engine.graph.ops import Operation
from lrp.engine.rules import AffineRule, Pass, Rule
from lrp.engine.speed.zero_relevance import silent_below
from lrp.errors import UnsupportedError

SEEDS = ("logit", "one", "softmax")
PLAIN = frozenset({"conv1d", "conv2d", "conv3d", "padded_conv"})  # convolutions, where they have one group
TERMS = ("relevance_in", "absolute", "relevance_out", "bias", "epsilon", "dropped")


class _Writer(GraphAppendingTracer):
    """Writes operations on proxies into a graph; tensors it meets become constants of the program."""

    def __init__(self, graph: fx.Graph, constants: dict[str, Tensor]) -> None:
        super().__init__(graph)
        self.constants = constants
        self.nodes: dict[int, fx.Node] = {}
        self.names: dict[int, str] = {}  # of tensors that may be met
        self.step = "program"  # what is being written

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            if id(a) not in self.nodes:
                wanted = name = self.names.get(id(a), f"{self.step}_constant")
                for number in itertools.count(2):
                    if name not in self.constants:
                        break
                    name = f"{wanted}_{number}"
                self.constants[name] = a  # keeps it alive, so that its id stays its own
                self.nodes[id(a)] = self._attribute(name)
            return self.nodes[id(a)]
        return super().create_arg(a)

    def _attribute(self, name: str) -> fx.Node:
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            return self.graph.create_node("get_attr", name, name=name)

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)


@dataclass
class Program:
    """The explanation of one architecture under one composite, ready to run.

    Attributes:
        module: (image, given, weight, predicted) -> (relevance, logits, start), or with `ledger` one more: a
            float64 tensor [rows, 6] of sums over the whole batch, columns as in `TERMS`.
        rows: the operation of each ledger row, in order of execution.
    """

    module: fx.GraphModule
    rows: list[Operation]

    def __call__(self, image: Tensor, given: Tensor, weight: Tensor, predicted: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.module(image, given, weight, predicted)

    def __str__(self) -> str:
        """The program's code; a comment above what belongs to one operation, constants as they are called."""
        steps = {node.name: node.meta.get("step", "") for node in self.module.graph.nodes}
        lines, last = [], ""
        for line in self.module.code.strip().splitlines():
            line = re.sub(r";  [\w = ]+ = None$", "", line)  # what is let go of after its last use
            name = line.split(" = ")[0].strip()
            if line.endswith(f" = self.{name}"):
                continue
            step = steps.get(name, "")
            if step and step != last:
                lines += ["", f"    # {step}"]
                last = step
            lines.append(line)
        return "\n".join(lines)

    @functools.cached_property
    def halves(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The program in two: what no target changes, and the rest.

        (image) -> kept, and (given, weight, predicted, *kept) -> (relevance, logits, start). The first holds
        the forward pass and every denominator, so that several targets share them.
        """
        late: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.name in ("given", "weight", "predicted") or any(n in late for n in node.all_input_nodes):
                late.add(node)
        kept = [
            node for node in self.module.graph.nodes
            if node not in late and node.op != "get_attr" and any(user in late for user in node.users)
        ]  # fmt: skip
        first, second = fx.Graph(), fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        for node in self.module.graph.nodes:
            if node not in late:
                made[node] = first.node_copy(node, lambda n: made[n])
        first.output(tuple(made[node] for node in kept))
        first.eliminate_dead_code()
        seeds = [n for n in self.module.graph.nodes if n.op == "placeholder" and n in late]
        rest = {node: second.placeholder(node.name) for node in [*seeds, *kept]}
        for node in self.module.graph.nodes:
            if node.op == "get_attr" or (node in late and node not in rest):
                rest[node] = second.node_copy(node, lambda n: rest[n])
        second.eliminate_dead_code()
        return fx.GraphModule(self.module, first), fx.GraphModule(self.module, second)


@dataclass
class Builder:
    """Writes programs for one graph and its rules; positive parts are computed once for all of them."""

    graph: Graph
    rules: dict[fx.Node, Rule]
    top_k: float = 0.0
    seed: str = "logit"
    coarse: bool = False
    branching: bool = False
    versions: dict[tuple[int, Any], Any] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_unknown(self.graph, self.rules)
        self.names.update({id(value): name for name, value in self.graph.constants.items()})
        self.silent = silent_below(self.graph, self.rules)

    def program(self, *, ledger: bool = False) -> Program:
        """Write the program.

        Args:
            ledger: with the book-keeping outputs.
        """
        graph, constants = fx.Graph(), dict(self.graph.constants)
        writer = _Writer(graph, constants)
        writer.names = self.names
        env: dict[fx.Node, fx.Node] = {}
        for node in self.graph.fx.nodes:
            if node.op != "output":
                env[node] = graph.node_copy(node, lambda n: env[n])
                env[node].meta = {}
                if node.op == "get_attr":
                    writer.nodes[id(constants[str(node.target)])] = env[node]
                if node is self.graph.image:
                    image = env[node]
                    places = [graph.placeholder(name) for name in ("given", "weight", "predicted")]
                    if self.graph.channels_last:
                        env[node] = graph.call_method(
                            "contiguous", (image,), {"memory_format": torch.channels_last}
                        )
        value = {node: writer.proxy(made) for node, made in env.items()}
        seeds = [writer.proxy(place) for place in places]
        logits = value[self.graph.logits]
        start = self._start(logits, *seeds)
        _name(start, "R_start")
        relevance: dict[fx.Node, Any] = {self.graph.logits: start}
        book: dict[fx.Node, tuple[Any, ...]] = {}
        for node, operation in reversed(self.graph.operations.items()):
            outputs = self._outputs(node, relevance)
            if all(r is None for r in outputs):
                continue
            arrived = [r for r in outputs if r is not None]
            writer.step, before = node.name, len(graph.nodes)
            kept, cut = self._largest(operation, outputs)
            flow = self._flow(operation, value, kept)
            sent = [r for r in flow.relevance if r is not None]
            for source, r in zip(operation.data, flow.relevance, strict=True):
                if r is not None:
                    relevance[source] = r if source not in relevance else relevance[source] + r
                    _name(relevance[source], f"R_{source.name}")
            for written in itertools.islice(reversed(graph.nodes), len(graph.nodes) - before):
                written.meta["step"] = f"R: {operation}, {self.rules[node]}"
            book[node] = (
                _sum(arrived), sum(total(abs(r)) for r in arrived), _sum(sent), flow.bias, flow.epsilon,
                flow.dropped + cut,
            )  # fmt: skip
        result: Any = relevance.get(self.graph.image)
        result = torch.zeros_like(writer.proxy(image)) if result is None else result  # type: ignore[arg-type]
        if self.graph.channels_last:
            result = result.contiguous()
        rows = [self.graph.operations[n] for n in self.graph.operations if n in book]
        outputs = [result, logits, start]
        if ledger:
            outputs.append(_stacked([book[o.node] for o in rows], logits))
        graph.output(tuple(o.node for o in outputs))
        graph.eliminate_dead_code()
        root = nn.Module()
        for node in graph.nodes:
            if node.op == "get_attr" and not hasattr(root, str(node.target)):
                root.register_buffer(str(node.target), constants[str(node.target)], persistent=False)
        return Program(fx.GraphModule(root, graph, "Explanation"), rows)

    # ------------------------------------------------------------ start

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
        """The relevance at each output of an operation; several where `getitem` takes them apart."""
        parts = {u.args[1]: relevance.get(u) for u in node.users if u.target is operator.getitem}
        if not parts:
            return [relevance.get(node)]
        return [parts.get(i) for i in range(len(node.meta["shapes"]))]

    def _largest(self, operation: Operation, outputs: list[Any]) -> tuple[list[Any], Any]:
        """`top_k`: the largest elements of each image go on, the rest is dropped."""
        if not self.top_k or operation.family not in ("conv", "linear", "pool", "maxpool"):
            return outputs, 0.0
        shape = operation.shape
        count = 1
        for size in ops.one(shape):
            count *= size
        r = outputs[0]
        flat = r.flatten(1)
        largest = flat.topk(max(1, int(self.top_k * count)), dim=1)
        kept = torch.zeros_like(flat).scatter(1, largest.indices, largest.values).reshape(ops.sizes(shape))
        return [kept] + outputs[1:], total(r - kept)

    def _flow(self, operation: Operation, value: dict[fx.Node, Any], outputs: list[Any]) -> Flow:
        rule = self.rules[operation.node]
        if isinstance(rule, Pass):
            return Flow((outputs[0],))
        algebra, inputs = operation.algebra, [value[n] for n in operation.data]
        if isinstance(algebra, Affine):
            assert isinstance(rule, AffineRule)
            equipped = self._equipped(algebra, operation)
            if equipped.silent:
                equipped.rectified = next((value[u] for u in operation.node.users if self._is_relu(u)), None)
            return rule.propagate(equipped, inputs[0], value[operation.node], outputs[0])

        def read(argument: Any) -> Any:
            return value[argument] if isinstance(argument, fx.Node) else argument

        def equip(affine: Affine, window: Any) -> Affine:
            return self._equipped(affine, operation, window)

        return algebra.hand_down(Step(rule, inputs, value[operation.node], outputs, read, equip))

    def _is_relu(self, node: fx.Node) -> bool:
        return node in self.graph.operations and self.graph.operations[node].name == "relu"

    def _equipped(self, affine: Affine, operation: Operation, window: Any = None) -> Affine:
        """An operation's algebra with what the rules may ask about it."""
        affine.nonneg, affine.silent = operation.nonneg, operation.node in self.silent
        plain = operation.name in PLAIN and operation.arguments.get("groups", 1) == 1
        affine.coarse, affine.branching = self.coarse and plain, self.branching and plain
        affine.transform = self._version
        affine.where, affine.dims = str(operation), len(operation.shape)
        shape = operation.input_shape()
        if shape[0] == Batch(1) and not any(isinstance(s, Batch) for s in shape[1:]):
            affine.blank = lambda: self._once(
                (operation.node, "blank"),
                lambda: torch.ones(ops.one(shape), dtype=self.graph.dtype, device=self.graph.device),
            )
        affine.bounds = lambda a: self._bounds(operation, a)
        return affine

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.versions:
            self.versions[key] = make()
        return self.versions[key]

    def _version(self, w: Any, version: Callable[[Any], Any]) -> Any:
        if not isinstance(w, Tensor):
            return version(w)
        self.kept.append(w)  # its id is the key: it must stay alive
        made = self._once((id(w), version), lambda: version(w))
        if id(w) in self.names and isinstance(made, Tensor):
            self.names.setdefault(id(made), f"{self.names[id(w)]}_{_called(version)}")
        return made

    # ------------------------------------------------------------ the box of a first layer

    def _bounds(self, operation: Operation, a: Any) -> tuple[Any, Any]:
        """The range of the input of a first layer: the model's, carried through what stands between."""

        def compute() -> tuple[Tensor, Tensor]:
            rule: Any = self.rules[operation.node]
            shape = ops.one(self.graph.image.meta["shape"])
            ends = []
            for bound in (rule.low, rule.high):
                b = torch.as_tensor(bound, dtype=self.graph.dtype, device=self.graph.device)
                b = b.reshape(1, -1, *[1] * (len(shape) - 2)) if b.dim() == 1 else b
                ends.append(self._carried(b.expand(1, *shape[1:]).contiguous(), operation.data[0]))
            return torch.minimum(*ends), torch.maximum(*ends)  # a negative factor on the way swaps them

        low, high = self._once((operation.node, "bounds"), compute)
        images = operation.input_shape()[0]
        if (
            isinstance(images, Batch) and images.times > 1
        ):  # windows joined the batch: the same for each image
            blank = torch.zeros_like(a).unflatten(0, (-1, images.times))
            return (blank + low).flatten(0, 1), (blank + high).flatten(0, 1)
        return low, high

    def _carried(self, image: Tensor, to: fx.Node) -> Tensor:
        values: dict[fx.Node, Any] = {self.graph.image: image}

        def run(node: fx.Node) -> Any:
            if node not in values:
                if node.op == "get_attr":
                    values[node] = self.graph.constants[str(node.target)]
                else:
                    target: Any = node.target
                    values[node] = target(*fx.map_arg(node.args, run), **fx.map_arg(dict(node.kwargs), run))
            return values[node]

        return run(to)


def _called(version: Any) -> str:
    return re.sub(r"\W", "_", getattr(version, "__name__", str(version)))


def _name(relevance: Any, name: str) -> None:
    """Relevance that was only handed on keeps the name it has."""
    if isinstance(relevance, Proxy) and not relevance.node.name.startswith("R_"):
        relevance.node._rename(name)


def _sum(parts: list[Any]) -> Any:
    return sum((total(p) for p in parts), start=0.0)


def _stacked(rows: list[tuple[Any, ...]], like: Any) -> Any:
    """The ledger as one tensor [rows, 6]."""
    zero = like.new_zeros((), dtype=torch.float64)
    return torch.stack([torch.stack([zero + term for term in row]) for row in rows])


def reached(graph: Graph, rules: dict[fx.Node, Rule]) -> set[fx.Node]:
    """The operations that relevance arrives at: not those that only make a gate, a scale or attention."""
    holds, arrives = {graph.logits}, set()
    for node, operation in reversed(graph.operations.items()):
        if node in holds or any(user in holds for user in node.users if user.target is operator.getitem):
            arrives.add(node)
            rule, data = rules.get(node), operation.data
            if rule is None or isinstance(rule, Pass) or isinstance(operation.algebra, Affine):
                holds.update(data)
            else:
                holds.update(data[i] for i in operation.algebra.receivers(rule, len(data)))
    return arrives


def refuse_unknown(graph: Graph, rules: dict[fx.Node, Rule]) -> None:
    """Raise for operations that relevance would reach and that have no rule, all at once, before anything runs."""
    arrives = reached(graph, rules)
    without = [o for o in graph.operations.values() if o.node not in rules and o.node in arrives]
    if not without:
        return
    columns = [(o.path or "(model)", o.name, ops.size_of(o.shape), o.source) for o in without]
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
