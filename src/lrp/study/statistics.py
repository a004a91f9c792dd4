"""Shares and their confidence intervals: Wilson's for one share, Tango's for a paired difference; McNemar's test.

Standard library only: the tests compare with SciPy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrp.values import Plain

_Z = 1.959963984540054  # the normal distribution's 97.5 % point: all intervals here are 95 %


@dataclass(frozen=True)
class Share(Plain):
    """The share `successes` / `n` with its 95 % interval from `low` to `high`, all in [0, 1]."""

    value: float
    low: float
    high: float
    successes: int
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def share_interval(successes: int, n: int) -> Share | None:
    """The share with Wilson's score interval (Wilson 1927); None if n is 0."""
    if not n:
        return None
    value = successes / n
    centre = value + _Z**2 / (2 * n)
    half = _Z * math.sqrt(value * (1 - value) / n + (_Z / (2 * n)) ** 2)
    low, high = ((centre + sign * half) / (1 + _Z**2 / n) for sign in (-1, 1))
    # Exactly 0 and 1 at the ends, which rounding may miss.
    return Share(value, low if successes else 0.0, high if successes < n else 1.0, successes, n)


@dataclass(frozen=True)
class Paired(Plain):
    """Two models on the same `n` images. Without images all fields except the counts are None."""

    n: int
    both_right: int
    gained: int
    """Number of images with A wrong and B right."""
    lost: int
    """Number of images with A right and B wrong."""
    both_wrong: int
    a: Share | None
    b: Share | None
    difference: float | None
    """Accuracy of B minus accuracy of A, from -1 to 1."""
    low: float | None
    high: float | None
    """Tango's 95 % interval of the difference."""
    p: float | None
    """p-value of McNemar's exact test: the probability of a split into gained and lost at least as uneven by chance."""


def paired_interval(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """From two sequences in the same order of images: whether A was right, and whether B was right."""
    n, right_a, right_b = len(a), sum(a), sum(b)
    both = sum(x and y for x, y in zip(a, b, strict=True))
    gained, lost = right_b - both, right_a - both
    counts = (n, both, gained, lost, n - both - gained - lost)
    if not n:
        return Paired(*counts, None, None, None, None, None, None)
    low, high = tango_interval(gained, lost, n)
    difference = (gained - lost) / n
    return Paired(
        *counts,
        share_interval(right_a, n),
        share_interval(right_b, n),
        difference,
        low,
        high,
        mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """The exact conditional p-value, two-sided; 1 if no image was gained or lost.

    Under the null hypothesis gains and losses are equally probable: each count is binomial with probability 1/2.
    """
    n = gained + lost
    ways = tail = 1
    for k in range(min(gained, lost)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def tango_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of p_B - p_A from paired images.

    It contains all differences Δ that the score test does not reject:

        |gained - lost - nΔ| <= z sqrt(n (2q + Δ(1 - Δ)))

    where q is the maximum-likelihood estimate of P(lost) given the difference Δ: the larger root of

        2n q² + ((2n - gained + lost)Δ - gained - lost) q - lost Δ(1 - Δ) = 0.

    Unlike Wald's interval it stays within [-1, 1], and has a positive width even if nothing was gained or lost.
    Source: Tango 1998, Statistics in Medicine 17:891-908.
    """

    def rejected(delta: float) -> bool:
        slope = (2 * n - gained + lost) * delta - gained - lost
        spread = delta * (1 - delta)
        # Without rounding no value is below these bounds: probabilities and variances are not negative.
        root = math.sqrt(max(0.0, slope**2 + 8 * n * lost * spread))
        q = max(0.0, -delta, (root - slope) / (4 * n))
        variance = max(0.0, 2 * q + spread)
        return (gained - lost - n * delta) ** 2 > _Z**2 * n * variance

    estimate = (gained - lost) / n
    return _edge(rejected, estimate, -1.0), _edge(rejected, estimate, 1.0)


def _edge(rejected: Callable[[float], bool], inside: float, outside: float) -> float:
    """The boundary between the two, by bisection until they are adjacent floats or nearly so."""
    if not rejected(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return inside
