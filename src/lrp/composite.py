"""graph -> {operation: rule}: ordered (predicate, rule) pairs, the last match wins; below them the presets.

A rule is only ever given to an operation that its equation is defined for; the rest keep the default
of their family, so `(everything, Gamma())` means every convolution, linear layer, norm and average.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from lrp.errors import CompositeError, RuleError
from lrp.graph.canonize import Graph
from lrp.graph.ops import Operation, one, size_of
from lrp.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Move,
    Pass,
    Proportional,
    Rule,
    WinnerTakesAll,
    WPlus,
    ZBox,
    ZPlus,
)

Predicate = Callable[[Operation], Any]

DEFAULTS: dict[str, Rule] = {
    "conv": Epsilon(),
    "linear": Epsilon(),
    "norm": Epsilon(),
    "pool": Epsilon(),
    "scale": Epsilon(),
    "sum": Epsilon(),
    "maxpool": WinnerTakesAll(),
    "activation": Pass(),
    "movement": Move(),
}


# ---------------------------------------------------------------- predicates


@dataclass(frozen=True)
class Where:
    """A named predicate; combine with &, | and ~."""

    text: str
    test: Predicate
    must_match: bool = False

    def __call__(self, operation: Operation) -> bool:
        return bool(self.test(operation))

    def __and__(self, other: Predicate) -> Where:
        return Where(f"{self} & {_text(other)}", lambda o: self(o) and other(o))

    def __or__(self, other: Predicate) -> Where:
        return Where(f"({self} | {_text(other)})", lambda o: self(o) or other(o))

    def __invert__(self) -> Where:
        return Where(f"~{self}", lambda o: not self(o))

    def __str__(self) -> str:
        return self.text


def _text(predicate: Predicate) -> str:
    return str(predicate) if isinstance(predicate, Where) else getattr(predicate, "__name__", repr(predicate))


everything = Where("everything", lambda o: True)
first = Where("first", lambda o: o.first)


def family(*names: str) -> Where:
    """Operations of a family: "conv", "linear", "norm", "pool", "scale", "sum", "maxpool", "activation"."""
    unknown = [n for n in names if n not in DEFAULTS]
    if unknown:
        raise CompositeError(f"no family {unknown[0]!r}: the families are {', '.join(DEFAULTS)}.")
    return Where(f"family({', '.join(names)})", lambda o: o.family in names)


def op(*names: str) -> Where:
    """Operations by their own name, as `lrp rules` prints it: "conv2d", "add", "avg_pool2d"."""
    return Where(f"op({', '.join(names)})", lambda o: o.name in names)


def path(*patterns: str) -> Where:
    """Operations called in modules whose dotted path fits a shell pattern: "features.*", "layer[34].*"."""
    return Where(
        f"path({', '.join(patterns)})",
        lambda o: any(fnmatch.fnmatchcase(o.path, p) for p in patterns),
        must_match=True,
    )


def module(*kinds: type[nn.Module] | str) -> Where:
    """Operations called in a module of a class: `nn.Conv2d`, or the class's name."""
    names = {k if isinstance(k, str) else f"{k.__module__}.{k.__qualname__}" for k in kinds}
    return Where(
        f"module({', '.join(sorted(n.rpartition('.')[2] for n in names))})",
        lambda o: o.module in names or o.module.rpartition(".")[2] in names,
    )


def depthwise(operation: Operation) -> bool:
    """Convolutions in which an output sees one channel."""
    return operation.family == "conv" and operation["weight"].shape[1] == 1 and operation["groups"] > 1


# ---------------------------------------------------------------- composites


@dataclass(frozen=True)
class Composite:
    """Which rule explains which operation.

    Args:
        pairs: (predicate, rule); the last pair that matches an operation, and whose rule is defined for
            it, wins. A predicate is `family(...)`, `op(...)`, `path(...)`, `module(...)`, `first`,
            `everything`, or any function of an `Operation`.
        name: for titles and fingerprints.
        seed: the start it asks for ("softmax" for `kaifishr`); None leaves it to the explainer.
        top_k: the fraction of an image's relevance elements that go on at the output of each linear,
            conv and pool, the largest; 0 keeps all.
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
        values = (tuple(pairs), name, seed, float(top_k), reason, attention, settings or {})
        for key, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, key, value)

    def assign(self, graph: Graph) -> dict[fx.Node, Rule]:
        """The rule of every operation.

        Raises:
            CompositeError: a pair names a path that is not there, or a rule that fits nothing it names.
        """
        rules = {node: DEFAULTS[o.family] for node, o in graph.operations.items() if o.family in DEFAULTS}
        for predicate, rule in self.pairs:
            matched = [o for o in graph.operations.values() if predicate(o)]
            taken = [o for o in matched if o.family in rule.families]
            if not taken:
                self._refuse(predicate, rule, matched, graph)
            for o in taken:
                rules[o.node] = rule
        for node, rule in rules.items():
            o = graph.operations[node]
            if isinstance(rule, Proportional) and rule.window:
                side, stride = rule.window
                shape = tuple((n - side) // stride + 1 for n in one(o.input_shape())[-2:])
                if shape != tuple(o.shape[-2:]):
                    raise CompositeError(
                        f"{rule} at {o}: it turns {size_of(o.input_shape()[-2:])} into {size_of(o.shape[-2:])}, and an "
                        f"average pool over {side} x {side} would give {size_of(shape)}; use Proportional()."
                    )
            if isinstance(rule, Pass) and len(o.data) != 1:
                raise CompositeError(
                    f"Pass() at {o}: it has {len(o.data)} inputs, and Pass needs to know which."
                )
            if isinstance(rule, Pass) and o.input_shape() != o.shape:
                raise CompositeError(
                    f"Pass() at {o}: it changes the shape from {size_of(o.input_shape())} to {size_of(o.shape)}, "
                    "and Pass hands relevance on element by element; use Epsilon()."
                )
        return rules

    def _refuse(self, predicate: Predicate, rule: Rule, matched: list[Operation], graph: Graph) -> None:
        if matched and predicate is not everything:
            raise CompositeError(
                f"{rule} fits none of the {len(matched)} operations that {_text(predicate)} matches, such as "
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
        return f"{self.name}[{'; '.join(f'{_text(p)}: {r}' for p, r in self.pairs)}]"


# ---------------------------------------------------------------- the presets

conv, linear, norm, maxpool = family("conv"), family("linear"), family("norm"), family("maxpool")
others = family("norm", "pool", "scale", "sum")  # all that is neither conv nor linear: Epsilon
Pairs = list[tuple[Predicate, Rule]]


@dataclass(frozen=True)
class Options:
    """What a preset can be told. None: as the preset's source has it."""

    bias: str | None = None
    epsilon: float | None = None
    low: Any = None
    high: Any = None
    gamma: float | None = None

    def eps(self, published: float = 1e-6) -> float:
        return published if self.epsilon is None else self.epsilon

    def common(self, published: str = "absorb") -> dict[str, Any]:
        return {"epsilon": self.eps(), "bias": self.bias or published}

    def box(self, name: str) -> ZBox:
        if self.low is None or self.high is None:
            raise CompositeError(
                f"{name} needs the range of the model's input, which a bare module does not tell: "
                f'lrp.preset("{name}", low=..., high=...) with the normalised values of a black and a white pixel.'
            )
        return ZBox(self.low, self.high, epsilon=self.eps())


def _rest(o: Options, published: str = "absorb") -> Pairs:
    return [(others, Epsilon(**o.common(published)))]


def _epsilon(o: Options) -> Pairs:
    return _rest(o) + [(family("conv", "linear"), Epsilon(**o.common()))]


def _plus(o: Options) -> Pairs:
    return _epsilon(o) + [(family("conv", "norm"), ZPlus(**o.common()))]


def _flat_first(o: Options) -> Pairs:
    return [(first, Flat(epsilon=o.eps()))]


def _gamma_box(o: Options) -> Pairs:
    gamma = Gamma(0.25 if o.gamma is None else o.gamma, **o.common())
    return _epsilon(o) + [
        (norm, ZPlus(**o.common())),
        (conv, gamma),
        (first & conv, o.box("epsilon_gamma_box")),
    ]


def _alpha2_beta1(o: Options) -> Pairs:
    return _epsilon(o) + [(norm, ZPlus(**o.common())), (conv, AlphaBeta(2, 1, **o.common()))]


def _sequential(alpha: float) -> Callable[[Options], Pairs]:
    def pairs(o: Options) -> Pairs:
        bias = o.bias or "full"
        plain = "absorb" if bias == "full" else bias
        return [
            (others, Epsilon(o.eps(), bias=plain)),
            (norm, ZPlus(epsilon=o.eps(), bias=plain)),
            (linear, Epsilon(o.eps(0.1), bias=plain)),
            (conv, AlphaBeta(alpha, alpha - 1, epsilon=o.eps(), bias=bias)),
        ]

    return pairs


def _deep_taylor(o: Options) -> Pairs:
    plus = ZPlus(**o.common("ignore"))
    return _rest(o, "ignore") + [(family("conv", "linear", "norm"), plus), (first, o.box("deep_taylor"))]


def _excitation_backprop(o: Options) -> Pairs:
    return _rest(o) + [(family("conv", "linear", "norm"), ZPlus(**o.common()))]


def _transformer(o: Options) -> Pairs:
    return _rest(o) + [
        (norm, ZPlus(**o.common())),
        (conv, Gamma(0.25 if o.gamma is None else o.gamma, **o.common())),
        (linear, Gamma(0.05, **o.common())),
    ]


def _kaifishr(o: Options) -> Pairs:
    e, bias = o.eps(1e-5), o.bias or "ignore"
    return [
        (others, Epsilon(e, bias=bias)),
        (family("conv", "linear", "norm"), ZPlus(epsilon=e, bias=bias)),
        (maxpool, Proportional(window=(2, 2), epsilon=e)),
        (first, WPlus(epsilon=e)),
    ]


PRESETS: dict[str, tuple[Callable[[Options], Pairs], str]] = {
    "epsilon": (_epsilon, "Epsilon everywhere: faithful to the function, noisy in deep convolutional nets."),
    "epsilon_plus": (_plus, "z⁺ in convolutions, ε in linear layers."),
    "epsilon_plus_flat": (
        lambda o: _plus(o) + _flat_first(o),
        "z⁺ in convolutions, ε in linear layers, flat first layer: smooth, class-focused.",
    ),
    "epsilon_gamma_box": (
        _gamma_box,
        "γ in convolutions, ε in linear layers, zᴮ first: shows evidence against, too.",
    ),
    "epsilon_alpha2_beta1": (
        _alpha2_beta1,
        "α2β1 in convolutions, ε in linear layers: crisp, strongly two-signed.",
    ),
    "epsilon_alpha2_beta1_flat": (
        lambda o: _alpha2_beta1(o) + _flat_first(o),
        "α2β1 in convolutions, ε in linear layers, flat first layer.",
    ),
    "sequential_preset_a": (
        _sequential(1),
        "iNNvestigate's: α1β0 in convolutions, ε = 0.1 in linear layers.",
    ),
    "sequential_preset_a_flat": (
        lambda o: _sequential(1)(o) + _flat_first(o),
        "The same with a flat first layer.",
    ),
    "sequential_preset_b": (
        _sequential(2),
        "iNNvestigate's: α2β1 in convolutions, ε = 0.1 in linear layers.",
    ),
    "sequential_preset_b_flat": (
        lambda o: _sequential(2)(o) + _flat_first(o),
        "The same with a flat first layer.",
    ),
    "deep_taylor": (_deep_taylor, "z⁺ without bias everywhere, zᴮ first: positive evidence only."),
    "excitation_backprop": (_excitation_backprop, "z⁺ in convolutions and linear layers."),
    "attnlrp": (
        _transformer,
        "Transformers: relevance goes through attention's weights as well as its values.",
    ),
    "cp_lrp": (
        _transformer,
        "Transformers: attention's weights are constants, relevance goes through the values.",
    ),
    "kaifishr": (_kaifishr, "The VGG program this project follows: z⁺ from the softmax of all classes."),
}


def composites() -> list[str]:
    """The names of the presets."""
    return list(PRESETS)


def preset(
    name: str,
    *,
    low: Any = None,
    high: Any = None,
    bias: str | None = None,
    epsilon: float | None = None,
    top_k: float = 0.0,
    gamma: float | None = None,
) -> Composite:
    """A preset with settings of your own; what is left out is as its source has it.

    Args:
        name: one of `composites()`.
        low, high: normalised values of a black and a white pixel, a number or one per channel; needed
            by the presets whose first layer is zᴮ, ignored by the others.
        bias: "absorb" (the bias keeps its share) or "ignore"; "full" for the αβ of `sequential_preset_*`.
        epsilon: stabiliser of every rule; 0 divides by the denominator as it is.
        top_k: keep only this fraction of the largest relevance elements at each layer's output; 0 = all.
        gamma: γ of the presets that have one.

    Raises:
        CompositeError: no such preset, or one that needs `low` and `high`.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1, 0.0)[0]
        raise CompositeError(
            f"no preset {name!r}: did you mean {near!r}? The presets are {', '.join(PRESETS)}."
        )
    build, reason = PRESETS[name]
    options = Options(bias, epsilon, low, high, gamma)
    try:
        pairs = build(options)
    except RuleError as error:
        raise CompositeError(f"{name}: {error}") from error
    given = {
        "low": low,
        "high": high,
        "bias": bias,
        "epsilon": epsilon,
        "top_k": top_k or None,
        "gamma": gamma,
    }
    return Composite(
        pairs,
        name=name,
        seed="softmax" if name == "kaifishr" else None,
        top_k=top_k,
        reason=reason,
        attention="attnlrp" if name == "attnlrp" else "cp",
        settings={"preset": name} | {k: v for k, v in given.items() if v is not None},
    )


def default(graph: Graph, **options: Any) -> Composite:
    """The preset that fits the architecture, for callers who name none; `options` as `preset` takes them.

    z⁺ with a flat first layer is as faithful as γ on the packaged model and gives clearer maps at a third of
    the time (`make faithfulness`; the table is in the README). Biases are left out, because those of folded
    batch norms would take nearly all of the relevance.
    """
    return preset("epsilon_plus_flat", **{"bias": "ignore", **options})
