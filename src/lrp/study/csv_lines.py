"""Lines of a CSV file whose text no spreadsheet runs as a formula. Standard library only."""

import re
from collections.abc import Iterable

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
