"""graph -> {operation: rule}: ordered (predicate, rule) pairs, the last match wins. The presets are in `presets`.

A rule is assigned only to operations that it has an equation for; the others keep the default rule
of their family, so `(everything, Gamma())` means every convolution, linear layer, norm and average.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from lrp.engine.graph.bounds import entries_behind
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.reached import reached, reaches_image
from lrp.engine.predicates import Predicate, Where, everything, first, predicate_text
from lrp.engine.rules import EQUATIONS, Epsilon, Rule, ZBox
from lrp.engine.rules_beyond_affine import (
    Constant,
    Halves,
    Move,
    Pass,
    SignalTakesAll,
    SoftmaxTaylor,
    Values,
    WinnerTakesAll,
)
from lrp.errors import CompositeError

DEFAULTS: dict[str, Rule] = {
    "conv": Epsilon(),
    "linear": Epsilon(),
    "norm": Epsilon(),
    "layer_norm": Epsilon(),
    "pool": Epsilon(),
    "scale": Epsilon(),
    "sum": Epsilon(),
    "product": SignalTakesAll(),
    "matmul": Values(),
    "softmax": Constant(),
    "maxpool": WinnerTakesAll(),
    "activation": Pass(),
    "movement": Move(),
}
ATTENTION = ("cp", "attnlrp")


def _default_rule(operation: Operation, attention: str) -> Rule:
    """The rule of an operation that no pair matches; `Halves` where the graph does not show which operand is the gate."""
    if operation.family in ("product", "matmul") and operation.signal is None:
        return Halves()
    if attention == "attnlrp" and operation.family == "matmul":
        return Halves()
    if attention == "attnlrp" and operation.family == "softmax":
        return SoftmaxTaylor()
    return DEFAULTS[operation.family]


@dataclass(frozen=True)
class Composite:
    """Which rule explains which operation.

    Args:
        pairs: (predicate, rule); the last pair that matches an operation, and whose rule is defined for
            it, wins. A predicate is `family(...)`, `op(...)`, `path(...)`, `module(...)`, `first`,
            `everything`, or any function of an `Operation`.
        name: for titles and fingerprints.
        seed: the start relevance that it needs ("softmax" for `kaifishr`); None leaves it to the explainer.
        top_k: at the output of each linear, conv and pool, keep only this fraction of an image's
            relevance elements, the largest; 0 keeps all.
        reason: one sentence that says why; `lrp rules` prints it.
        attention: "cp": softmax is a constant; "attnlrp": relevance goes through it.
    """

    pairs: tuple[tuple[Predicate, Rule], ...]
    name: str = "custom"
    seed: str | None = None
    top_k: float = 0.0
    reason: str = ""
    attention: str = "cp"
    settings: dict[str, Any] = field(default_factory=dict, compare=False)

    def __init__(
        self,
        pairs: Sequence[tuple[Predicate, Rule]],
        name: str = "custom",
        seed: str | None = None,
        top_k: float = 0.0,
        reason: str = "",
        attention: str = "cp",
        settings: dict[str, Any] | None = None,
    ) -> None:
        for pair in pairs:
            if not (
                isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0]) and isinstance(pair[1], Rule)
            ):
                raise CompositeError(
                    f"Composite takes (predicate, rule) pairs, got {pair}: "
                    "for example Composite([(family('conv'), Gamma(0.25)), (first, Flat())])."
                )
        if not 0 <= top_k <= 1:
            raise CompositeError(
                f"top_k={top_k}: expected a fraction from 0 (off) to 1 of an image's elements."
            )
        if attention not in ATTENTION:
            raise CompositeError(f"attention={attention!r}: expected {' or '.join(map(repr, ATTENTION))}.")
        values = (tuple(pairs), name, seed, float(top_k), reason, attention, settings or {})
        for key, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, key, value)

    def assign(self, graph: Graph) -> dict[fx.Node, Rule]:
        """The rule of every operation.

        Raises:
            CompositeError: a pair names a path that does not exist, or its rule has no equation for what it matches.
        """
        rules = {
            node: _default_rule(o, self.attention)
            for node, o in graph.operations.items()
            if o.family in DEFAULTS
        }
        chosen: set[fx.Node] = set()
        for predicate, rule in self.pairs:
            matched = [o for o in graph.operations.values() if predicate(o)]
            taken = [o for o in matched if o.family in rule.families]
            if not taken:
                self._refuse(predicate, rule, matched, graph)
            for o in taken:
                rules[o.node] = rule
                chosen.add(o.node)
        self._refuse_boxes(graph, rules)
        _open_softmaxes(graph, rules, chosen)
        for node, rule in rules.items():
            o = graph.operations[node]
            if (equation := EQUATIONS.get(o.family)) and not hasattr(rule, equation):
                raise CompositeError(
                    f"{rule} at {o}: {type(rule).__name__} has no equation for operations of family {o.family}: define "
                    f"{type(rule).__name__}.{equation}, or give it to another family."
                )
            if reason := rule.refusal(o):
                raise CompositeError(f"{rule} at {o}: {reason}")
        return rules

    def _refuse_boxes(self, graph: Graph, rules: dict[fx.Node, Rule]) -> None:
        """Raise for ZBox at the first layers of several inputs."""
        boxed = [o for o in graph.operations.values() if isinstance(rules.get(o.node), ZBox)]
        inputs = {n.meta["entry"] for o in boxed for n in entries_behind(graph, o)}
        if len(inputs) > 1:
            raise CompositeError(
                f"{self.name}: ZBox(low, high) holds for one image, and {len(inputs)} inputs have a first layer: choose another "
                "preset, or give ZBox to one layer by its path."
            )

    def _refuse(self, predicate: Predicate, rule: Rule, matched: list[Operation], graph: Graph) -> None:
        if matched and predicate is not everything:
            raise CompositeError(
                f"{rule} fits none of the {len(matched)} operations that {predicate_text(predicate)} matches, such as "
                f"{matched[0]}, family {matched[0].family}; it is defined for {', '.join(sorted(rule.families))}."
            )
        if isinstance(rule, ZBox) and predicate is first:
            raise CompositeError(
                f"{self.name}: {rule} needs a first conv or linear, and the image reaches none in this model."
            )
        if isinstance(predicate, Where) and predicate.must_match and not matched:
            paths = sorted({o.path for o in graph.operations.values()})
            wanted = predicate.text[len("path(") : -1]
            near = difflib.get_close_matches(wanted, paths, 3, 0.0)
            raise CompositeError(
                f"{predicate} matches no operation; the nearest paths are {', '.join(near)}."
            )

    def describe(self) -> str:
        """Name and settings on one line, the same for the same composite: part of a result's fingerprint."""
        if self.settings:
            chosen = ", ".join(f"{k}={v}" for k, v in sorted(self.settings.items()) if k != "preset")
            return f"{self.name}({chosen})" if chosen else self.name
        return f"{self.name}[{'; '.join(f'{predicate_text(p)}: {r}' for p, r in self.pairs)}]"


def _open_softmaxes(graph: Graph, rules: dict[fx.Node, Rule], chosen: set[fx.Node]) -> None:
    """Where a softmax that is treated as a constant keeps all relevance from the image, relevance goes through it.

    A softmax of the logits in front of the output (a mean of predictions, an expected age) is such a one. Those whose
    rule a pair of the composite has `chosen` keep it.
    """
    while not reaches_image(graph, rules):
        closed = [n for n in reached(graph, rules) if isinstance(rules.get(n), Constant) and n not in chosen]
        if not closed:
            return
        for node in closed:
            rules[node] = SoftmaxTaylor()
            graph.operations[node].note = "nothing else reaches the image: relevance goes through it"
