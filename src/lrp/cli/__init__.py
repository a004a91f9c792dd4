"""The command line: every command reads arguments, calls one function, prints one result.

Data goes to stdout, progress and words to stderr. Exit codes: 0 fine, 1 failed, 2 usage, 3 finished with
files skipped, 130 interrupted.
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
from lrp.cli.common import guarded

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
    app.command(epilog=f"Example: {command.example}", cls=kind)(guarded(command))


def version(show: bool) -> None:
    if show:
        import lrp

        print(f"lrp {lrp.__version__}")
        raise typer.Exit


@app.callback()
def root(
    show: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version."),
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
    """Let freed memory stay with the process: on a CPU that doubles a model's speed.

    glibc gives large blocks back to the system at once, and takes them again page by page, zeroed, for the next layer.
    Only for this program: what a library's user does with memory is not the library's to decide.
    """
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    for parameter in (trim_threshold, mmap_threshold):
        mallopt(parameter, 1 << 30)
