"""Where the measured tables go: between two comments of a page of docs/, each its own block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mark(value: float, must: float, aim: float) -> str:
    """Bold where the aim is reached; what is missed is said."""
    if value <= aim:
        return f"**{value:.2f}**"
    return f"{value:.2f}" if value <= must else f"{value:.2f} (missed)"


def write(block: str, text: str, file: Path = PAGE) -> None:
    """Put `text` into the page, in place of what the block held."""
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
