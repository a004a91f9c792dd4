"""Tables on stdout: with lines on a terminal, as plain text in columns for a pipe or a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a column whose name begins with ">" is right-aligned."""
    right = [name.startswith(">") for name in columns]
    heads, body = [name.lstrip(">") for name in columns], [list(map(_printable, row)) for row in rows]
    if sys.stdout.isatty():
        _drawn(title, heads, right, body)
    else:
        _plain(title, heads, right, body)


def _drawn(title: str, heads: list[str], right: list[bool], body: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head, to_right in zip(heads, right, strict=True):
        # On a narrow terminal cells are wrapped, never truncated.
        table.add_column(Text(head), justify="right" if to_right else "left", overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _plain(title: str, heads: list[str], right: list[bool], body: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    print(title)
    for row in [heads, *body]:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())
    print()


def _printable(text: str) -> str:
    """Escape control characters, which a file name may contain: they would move the terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def percent_cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def number_cell(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)
