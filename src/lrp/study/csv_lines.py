"""CSV lines and tables whose text no spreadsheet runs as a formula."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from lrp.errors import PredictionsError
from lrp.storage.atomic import write_whole

# Text that a spreadsheet would run as a formula, after any number of apostrophes: writing adds one, reading removes
# one, so that "'=1" survives a round trip as "=1" does.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_TO_QUOTE = re.compile('[",\r\n]')


def csv_line(cells: Iterable[str]) -> str:
    """One CSV line. Not by csv.writer: it does not quote a lone carriage return, for which csv.reader raises."""
    return ",".join(['"' + c.replace('"', '""') + '"' if _TO_QUOTE.search(c) else c for c in cells]) + "\n"


def spreadsheet_safe(text: str) -> str:
    """The text, prefixed with an apostrophe if a spreadsheet would run it as a formula."""
    return "'" + text if _FORMULA.match(text) else text


def spreadsheet_text(cell: str) -> str:
    """The inverse of `spreadsheet_safe`."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def write_csv_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV atomically: numbers with ten digits, text escaped so that a spreadsheet runs no formula.

    Raises:
        PredictionsError: it cannot be written.
    """
    write_whole(
        path, (csv_line([_cell(value) for value in row]) for row in chain([header], rows)), PredictionsError
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return spreadsheet_safe(value) if isinstance(value, str) else str(value)
