"""The command line: every command reads arguments, calls one function, prints one result.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage, 3 finished but
files were skipped, 130 interrupted.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import typer

from lrp.cli import (
    accuracy,
    compare,
    confidence,
    data,
    demo,
    errors,
    evaluate,
    explain,
    export,
    models,
    report,
    retrain,
    rules,
)
from lrp.cli.common import guarded_command

app = typer.Typer(
    name="lrp",
    help="See which pixels made an image classifier decide, with layer-wise relevance propagation (LRP).",
    epilog="Example: lrp explain input -o output",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    explain.explain, rules.rules, models.models, demo.demo, data.data, accuracy.accuracy, evaluate.evaluate,
    confidence.confidence, errors.errors, compare.compare, report.report, retrain.retrain,
    export.export,
)  # fmt: skip
for command in COMMANDS:
    kind = accuracy.OptionalFiles if command is accuracy.accuracy else None
    app.command(epilog=f"Example: {command.example}", cls=kind)(guarded_command(command))


def _print_version(show: bool) -> None:
    if show:
        import lrp

        print(f"lrp {lrp.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    show: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run() -> None:
    _keep_memory()
    sys.exit(main())


def _keep_memory() -> None:
    """Keep freed memory in the process: on a CPU this doubles a model's speed.

    By default glibc returns large blocks to the system at once; the next layer gets them again page by page, zeroed.
    Only in the command line program: a library must not change the memory settings of its user's process.
    """
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for parameter in (trim_threshold, mmap_threshold):
        mallopt(parameter, 1 << 30)
