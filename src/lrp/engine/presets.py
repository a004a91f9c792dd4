"""The named composites, as data."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrp.engine.composite import Composite
from lrp.engine.predicates import Predicate, Where, family, first, max_pools
from lrp.engine.rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WPlus, WSquare, ZBox, ZPlus
from lrp.engine.rules_beyond_affine import Halves, Proportional, SoftmaxTaylor, Values
from lrp.errors import CompositeError, RuleError

conv, linear, norm = family("conv"), family("linear"), family("norm")
others = family("norm", "layer_norm", "pool", "scale", "sum")  # neither conv nor linear; they use Epsilon
attention = Where("attention × values", lambda o: o.family == "matmul" and o.signal is not None)
matmul, softmax = family("matmul"), family("softmax")
Pairs = list[tuple[Predicate, Rule]]


@dataclass(frozen=True)
class Settings:
    """The settings of a preset. None: the value that the preset's source uses."""

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


def _rest(o: Settings, published: str = "absorb") -> Pairs:
    return [
        (others, Epsilon(**o.common(published))),
        (matmul, Halves(o.eps())),
        (attention, Values(o.eps())),
    ]


def _epsilon(o: Settings) -> Pairs:
    return _rest(o) + [(family("conv", "linear"), Epsilon(**o.common()))]


def _plus(o: Settings) -> Pairs:
    return _epsilon(o) + [(family("conv", "norm"), ZPlus(**o.common()))]


def _flat_first(o: Settings) -> Pairs:
    return [(first, Flat(epsilon=o.eps()))]


def _epsilon_gamma(o: Settings) -> Pairs:
    gamma = Gamma(0.25 if o.gamma is None else o.gamma, **o.common())
    return _epsilon(o) + [(norm, ZPlus(**o.common())), (conv, gamma)]


def _gamma_box(o: Settings) -> Pairs:
    return _epsilon_gamma(o) + [(first & conv, o.box("epsilon_gamma_box"))]


def _gamma_wsquare(o: Settings) -> Pairs:
    return _epsilon_gamma(o) + [(first & conv, WSquare(epsilon=o.eps()))]


def _alpha2_beta1(o: Settings) -> Pairs:
    return _epsilon(o) + [(norm, ZPlus(**o.common())), (conv, AlphaBeta(2, 1, **o.common()))]


def _sequential(alpha: float) -> Callable[[Settings], Pairs]:
    def pairs(o: Settings) -> Pairs:
        bias = o.bias or "full"
        plain = "absorb" if bias == "full" else bias
        return [
            *_rest(o, plain),
            (norm, ZPlus(epsilon=o.eps(), bias=plain)),
            (linear, Epsilon(o.eps(0.1), bias=plain)),
            (conv, AlphaBeta(alpha, alpha - 1, epsilon=o.eps(), bias=bias)),
        ]

    return pairs


def _deep_taylor(o: Settings) -> Pairs:
    plus = ZPlus(**o.common("ignore"))
    return _rest(o, "ignore") + [(family("conv", "linear", "norm"), plus), (first, o.box("deep_taylor"))]


def _excitation_backprop(o: Settings) -> Pairs:
    return _rest(o) + [(family("conv", "linear", "norm"), ZPlus(**o.common()))]


def _gamma(o: Settings) -> Pairs:
    return _rest(o) + [
        (norm, ZPlus(**o.common())),
        (conv, Gamma(0.25 if o.gamma is None else o.gamma, **o.common())),
        (linear, Gamma(0.05, **o.common())),
    ]


def _kaifishr(o: Settings) -> Pairs:
    e, bias = o.eps(1e-5), o.bias or "ignore"
    return [
        (others, Epsilon(e, bias=bias)),
        (matmul, Halves(e)),
        (attention, Values(e)),
        (family("conv", "linear", "norm"), ZPlus(epsilon=e, bias=bias)),
        (max_pools, Proportional(window=(2, 2), epsilon=e)),
        (first, WPlus(epsilon=e)),
    ]


def _through_attention(o: Settings) -> Pairs:
    return _gamma(o) + [(matmul, Halves(o.eps())), (softmax, SoftmaxTaylor())]


def _with_flat_first(build: Callable[[Settings], Pairs]) -> Callable[[Settings], Pairs]:
    return lambda o: build(o) + _flat_first(o)


PRESETS: dict[str, tuple[Callable[[Settings], Pairs], str]] = {
    "epsilon": (_epsilon, "Epsilon everywhere: faithful to the function, noisy in deep convolutional nets."),
    "epsilon_plus": (_plus, "z⁺ in convolutions, ε in linear layers."),
    "epsilon_plus_flat": (_with_flat_first(_plus), "z⁺ in convolutions, ε in linear layers, flat first layer: smooth, class-focused."),
    "epsilon_gamma_box": (_gamma_box, "γ in convolutions, ε in linear layers, zᴮ first: sharp, with evidence against."),
    "epsilon_gamma_wsquare": (_gamma_wsquare, "γ in convolutions, ε in linear layers, w² first: sharp, with evidence against; needs no input range."),
    "epsilon_alpha2_beta1": (_alpha2_beta1, "α2β1 in convolutions, ε in linear layers: crisp, strongly two-signed."),
    "epsilon_alpha2_beta1_flat": (_with_flat_first(_alpha2_beta1), "α2β1 in convolutions, ε in linear layers, flat first layer."),
    "sequential_preset_a": (_sequential(1), "iNNvestigate's: α1β0 in convolutions, ε = 0.1 in linear layers."),
    "sequential_preset_a_flat": (_with_flat_first(_sequential(1)), "The same with a flat first layer."),
    "sequential_preset_b": (_sequential(2), "iNNvestigate's: α2β1 in convolutions, ε = 0.1 in linear layers."),
    "sequential_preset_b_flat": (_with_flat_first(_sequential(2)), "The same with a flat first layer."),
    "deep_taylor": (_deep_taylor, "z⁺ without bias everywhere, zᴮ first: positive evidence only."),
    "excitation_backprop": (_excitation_backprop, "z⁺ in convolutions and linear layers."),
    "gamma": (_gamma, "γ = 0.25 in convolutions, γ = 0.05 in linear layers: little noise, both signs."),
    "attnlrp": (_through_attention, "Transformers: relevance goes through attention's weights as well as its values."),
    "cp_lrp": (_gamma, "Transformers: attention's weights are constants, relevance goes through the values."),
    "kaifishr": (_kaifishr, "The VGG program this project follows: z⁺ from the softmax of all classes."),
}  # fmt: skip


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
    """A preset, with your own settings; a setting that is not given has the value that its source uses.

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
    options = Settings(bias, epsilon, low, high, gamma)
    try:
        pairs = build(options)
    except RuleError as error:
        raise CompositeError(f"{name}: {error}") from error
    boxed = any(isinstance(rule, ZBox) for _, rule in pairs)
    given = {"low": low, "high": high} if boxed else {}
    given |= {"bias": bias, "epsilon": epsilon, "top_k": top_k or None, "gamma": gamma}
    return Composite(
        pairs,
        name=name,
        seed="softmax" if name == "kaifishr" else None,
        top_k=top_k,
        reason=reason,
        attention="attnlrp" if name == "attnlrp" else "cp",
        settings={"preset": name} | {k: v for k, v in given.items() if v is not None},
    )
