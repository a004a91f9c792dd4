"""Where the relevance went, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PARTS = {"bias": "bias", "epsilon": "ε", "dropped": "dropped"}


def reached_words(
    relevance: float,
    start: float,
    unit: str,
    share: float | None,
    form: str = ".0f",
    places: str = "pixels",
) -> str:
    """ "4.1 of 11.4 logits (36 %) reached the pixels".

    Args:
        share: `relevance` as a part of `start`; None: undefined, as for a start of 0.
        form: the format of the percentage.
        places: what an input consists of.
    """
    percent = "" if share is None else f" ({100 * share:{form}} %)"
    return f"{_amount(relevance)} of {_amount(start)} {unit}{percent} reached the {places}"


def _amount(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def sign_in_words(value: float) -> str:
    """ "positive", "negative" or "zero"."""
    return "positive" if value > 0 else "negative" if value < 0 else "zero"


def account_in_words(
    relevance: float,
    start: float,
    unit: str,
    shares: Mapping[str, float],
    problems: Sequence[str],
    places: str = "pixels",
) -> str:
    """ "4.1 of 11.4 logits (36 %) reached the pixels; bias 61 %, ε 3 %"; the first problem of health comes first."""
    rest = [f"{words} {100 * shares[k]:.0f} %" for k, words in PARTS.items() if abs(shares[k]) >= 0.005]
    text = reached_words(relevance, start, unit, shares["input"], places=places)
    text += f"; {', '.join(rest)}" if rest else ""
    return f"NOT TRUSTWORTHY: {problems[0]}. {text}" if problems else text
