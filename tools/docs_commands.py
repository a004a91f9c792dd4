"""docs/commands.md from what `lrp COMMAND --help` prints.

    python tools/docs_commands.py            # writes the page
    python tools/docs_commands.py --check    # exit code 1 if the page is out of date

The text is formatted for 88 columns, independent of the terminal.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from lrp.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
WIDTH = 88
HEAD = """\
# Commands

<!-- Made by `python tools/docs_commands.py`; do not edit. -->

What `lrp COMMAND --help` prints. Data goes to stdout, progress and words to stderr. Exit codes: 0 fine, 1 failed, 2 usage,
3 finished with files skipped, 130 interrupted.
"""


def page() -> str:
    """The page as Markdown: `lrp` itself, then a section for each command, in the order of its help."""
    root = typer.main.get_command(app)
    top = _context(root, "lrp")
    sections = [HEAD, _listing(root, top)]
    for name in root.list_commands(top):  # type: ignore[attr-defined]
        command = root.get_command(top, name)  # type: ignore[attr-defined]
        sections.append(f"## lrp {name}\n\n{_listing(command, _context(command, name, top))}")
    return "\n".join(sections)


def _context(command: Any, name: str, parent: Any = None) -> Any:
    return command.context_class(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )


def _listing(command: Any, context: Any) -> str:
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    return "```text\n" + "\n".join(lines).strip() + "\n```\n"


def main(arguments: list[str]) -> int:
    if arguments != ["--check"]:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print("docs/commands.md is out of date: python tools/docs_commands.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
