"""Shares and how sure they are: Wilson's interval of one, Tango's of a paired difference, McNemar's test.

Standard library alone: the tests compare with SciPy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrp.values import Plain

_Z = 1.959963984540054  # the normal distribution's 97.5 % point: all intervals here are 95 %


@dataclass(frozen=True)
class Share(Plain):
    """`successes` of `n`, with the 95 % interval from `low` to `high`; all from 0 to 1."""

    value: float
    low: float
    high: float
    successes: int
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def share(successes: int, n: int) -> Share | None:
    """With Wilson's score interval (Wilson 1927); None of nothing."""
    if not n:
        return None
    value = successes / n
    centre = value + _Z**2 / (2 * n)
    half = _Z * math.sqrt(value * (1 - value) / n + (_Z / (2 * n)) ** 2)
    low, high = ((centre + sign * half) / (1 + _Z**2 / n) for sign in (-1, 1))
    # Exactly 0 and 1 at the ends, where rounding may miss them.
    return Share(value, low if successes else 0.0, high if successes < n else 1.0, successes, n)


@dataclass(frozen=True)
class Paired(Plain):
    """Two models on the same `n` images. Without images all but the counts are None."""

    n: int
    both_right: int
    gained: int
    """A wrong, B right."""
    lost: int
    """A right, B wrong."""
    both_wrong: int
    a: Share | None
    b: Share | None
    difference: float | None
    """Accuracy of B less that of A, from -1 to 1."""
    low: float | None
    high: float | None
    """The difference's 95 % interval, by Tango."""
    p: float | None
    """McNemar's exact test: how probable a split of the gained and lost at least as uneven is by chance."""


def paired(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """From whether A, and whether B, was right on each image; both in the same order."""
    n, right_a, right_b = len(a), sum(a), sum(b)
    both = sum(x and y for x, y in zip(a, b, strict=True))
    gained, lost = right_b - both, right_a - both
    counts = (n, both, gained, lost, n - both - gained - lost)
    if not n:
        return Paired(*counts, None, None, None, None, None, None)
    low, high = tango(gained, lost, n)
    difference = (gained - lost) / n
    return Paired(*counts, share(right_a, n), share(right_b, n), difference, low, high, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """The exact conditional p-value, two-sided; 1 where no image was gained or lost.

    Were both equally probable, the smaller count would be binomial with probability 1/2.
    """
    n = gained + lost
    ways = tail = 1
    for k in range(min(gained, lost)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of p_B - p_A from paired images.

    All differences Δ that the score test does not reject:

        |gained - lost - nΔ| <= z sqrt(n (2q + Δ(1 - Δ)))

    where q is the likeliest P(lost) if the difference is Δ: the larger root of

        2n q² + ((2n - gained + lost)Δ - gained - lost) q - lost Δ(1 - Δ) = 0.

    Unlike Wald's it stays within [-1, 1], and has a width where nothing was gained or lost.
    Source: Tango 1998, Statistics in Medicine 17:891-908.
    """

    def rejected(delta: float) -> bool:
        slope = (2 * n - gained + lost) * delta - gained - lost
        spread = delta * (1 - delta)
        # The bounds are what rounding may cross: no probability below 0.
        root = math.sqrt(max(0.0, slope**2 + 8 * n * lost * spread))
        q = max(0.0, -delta, (root - slope) / (4 * n))
        variance = max(0.0, 2 * q + spread)
        return (gained - lost - n * delta) ** 2 > _Z**2 * n * variance

    estimate = (gained - lost) / n
    return _edge(rejected, estimate, -1.0), _edge(rejected, estimate, 1.0)


def _edge(rejected: Callable[[float], bool], inside: float, outside: float) -> float:
    """By bisection, until the two are neighbouring numbers or nearly so."""
    if not rejected(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return inside
