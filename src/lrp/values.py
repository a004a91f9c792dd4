"""Results as plain values for JSON, and percentages as text. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


class Plain:
    """A dataclass that can be written as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields; nested dicts, lists, strings, numbers, booleans and None."""
        return _fields(self)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: plain(getattr(value, field.name)) for field in fields(value)}


def plain(value: Any) -> Any:
    """The same value in the types of JSON: dataclasses and mappings as dicts, sequences as lists."""
    if value is None or isinstance(value, (str, float, int)):
        return value
    if isinstance(value, Plain):
        return value.to_dict()
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value]


def percent(value: float) -> str:
    """A percentage with one decimal; near 100 with enough decimals to show that it is less: "87.8 %", "99.9998 %"."""
    for decimals in range(1, 9):
        text = f"{100 * value:.{decimals}f}"
        if value == 1 or not text.startswith("100"):
            break
    return f"{text} %"
