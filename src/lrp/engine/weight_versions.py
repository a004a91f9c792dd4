"""Versions of weights, of which the branches of rules are made: w itself, w⁺, w⁻, |w|, w², 1, c w, w + γ w⁺."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrp.engine.structured_weights import Structured

Version = Callable[[Any], Any]
"""A function of the weights, element by element: `unchanged`, `positive`, ..., or your own."""


def unchanged(w: Any) -> Any:
    """w itself."""
    return w


def positive(w: Any) -> Any:
    """w⁺ = max(w, 0)."""
    return w.positive() if isinstance(w, Structured) else w.clamp(min=0)


def negative(w: Any) -> Any:
    """w⁻ = min(w, 0)."""
    return w.negative() if isinstance(w, Structured) else w.clamp(max=0)


def magnitude(w: Any) -> Any:
    """|w|."""
    return w.positive() + -1.0 * w.negative() if isinstance(w, Structured) else w.abs()


def square(w: Any) -> Any:
    """w²."""
    return w.square() if isinstance(w, Structured) else w * w


def ones(w: Any) -> Any:
    """1 for every weight; an expanded scalar, which operations recognise by `all_weights_alike`."""
    return w.ones() if isinstance(w, Structured) else w.new_ones(()).expand(w.shape)


@dataclass(frozen=True)
class Times:
    """A version of the weights times a factor: cheaper than multiplying activations by it."""

    factor: float
    version: Version

    def __call__(self, w: Any) -> Any:
        return self.factor * self.version(w)

    def __str__(self) -> str:
        return f"{getattr(self.version, '__name__', self.version)}_times_{self.factor:g}"


@dataclass(frozen=True)
class Amplified:
    """w + γ v(w): the weights of LRP-γ."""

    gamma: float
    version: Version

    def __call__(self, w: Any) -> Any:
        return w + self.gamma * self.version(w)

    def __str__(self) -> str:
        return f"amplified_{getattr(self.version, '__name__', self.version)}_{self.gamma:g}"
