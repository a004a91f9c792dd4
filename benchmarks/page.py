"""Writes measured tables into a page of docs/, each between its two comments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mark(value: float, must: float, aim: float) -> str:
    """Bold if the aim is reached; marked if the required value is missed."""
    if value <= aim:
        return f"**{value:.2f}**"
    return f"{value:.2f}" if value <= must else f"{value:.2f} (missed)"


def write(block: str, text: str, file: Path = PAGE) -> None:
    """Replace the content of a block of the page by `text`."""
    begin, end = f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
    page = file.read_text(encoding="utf-8")
    if begin not in page:
        raise SystemExit(f"{file}: no block {begin!r} to write into")
    found = re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}\n{text.strip()}\n{end}",
        page,
        flags=re.S,
    )
    file.write_text(found, encoding="utf-8")
