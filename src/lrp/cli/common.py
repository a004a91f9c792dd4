"""Shared by the commands: options, error handling, messages, a progress bar."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lrp.errors import CompositeError, DataError, LrpError, OptionError, TargetError

if TYPE_CHECKING:
    from lrp.data.data_set import DataSet
    from lrp.gallery.options import ExplainOptions
    from lrp.gallery.results import Result
    from lrp.study.written import Written


class Skipped(Exception):
    """The command finished, but skipped files: exit code 3."""


def print_message(sentence: str) -> None:
    print(f"lrp: {sentence}", file=sys.stderr)


def guarded_command(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: an `LrpError` is printed as one line and sets the exit code; bugs keep their traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except OptionError as error:
            raise typer.BadParameter(f"--{error}") from error
        except LrpError as error:
            print_message(str(error))
            raise typer.Exit(1) from error
        except Skipped as skipped:
            raise typer.Exit(3) from skipped
        except KeyboardInterrupt as stop:
            print_message("interrupted; what is finished is whole, and the same command goes on from there.")
            raise typer.Exit(130) from stop
        except BrokenPipeError as gone:  # the reader of the pipe closed it, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from gone

    return run


@contextmanager
def as_wrong_arguments(*kinds: type[LrpError]) -> Iterator[None]:
    """Treat errors of these types, and always `CompositeError` and `TargetError`, as wrong arguments: exit code 2.
    Errors caused by an OSError keep exit code 1, except if a path does not exist, which is a wrong argument too.
    """
    try:
        yield
    except TargetError as error:
        raise typer.BadParameter(f"--target: {error}") from error
    except LrpError as error:
        if not isinstance(error, (CompositeError, *kinds)):
            raise
        refused = isinstance(error.__cause__, OSError)
        if refused and not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        raise typer.BadParameter(str(error)) from error


def command_example(text: str) -> Callable[[Any], Any]:
    """Set the example shown in a command's help."""

    def add(command: Any) -> Any:
        command.example = text
        return command

    return add


MODEL_HELP = (
    "A name that `lrp models` lists, timm:NAME, hf:NAME or hf:./folder (transformers), a file of weights, or MODULE:FUNCTION, "
    "your own code, which is run."
)
MODEL = typer.Option("--model", "-m", help=MODEL_HELP)
ARCH = typer.Option(
    "--arch",
    help="For a file of weights without sidecar: whose weights it holds, as `lrp models` lists, or MODULE:FUNCTION; for one whose "
    "sidecar names your own code: that code, which is then run.",
)
LABELS = typer.Option(
    "--labels",
    help="For a file without sidecar, your own code, or a model of images and texts: its class names in order, one a line, or a "
    "JSON list.",
)
PREPROCESS = typer.Option(
    "--preprocess",
    metavar="FILE",
    help="For your own code, hf: and a file without sidecar: a JSON file with the preprocessing, as `lrp retrain` writes it beside "
    "its output.",
)
COMPOSITE = typer.Option(
    "--composite", "-c", help="A preset such as epsilon_plus_flat; none: the one that fits the architecture."
)
BIAS = typer.Option(
    "--bias", help="absorb: biases keep their share of the relevance; ignore: they take none."
)
EPSILON = typer.Option("--epsilon", help="The stabiliser of every rule, in units of its denominator.")
TOP_K = typer.Option(
    "--top-k", help="Keep this fraction of the largest relevance at each layer; 0 keeps all."
)
DEVICE = typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")
RANGE = typer.Option(
    "--range",
    metavar="LOW HIGH",
    help="Of photos deeper than 8 bits: which level is black, which white; none: for each file what it states, else 0 to the "
    "largest level of the smallest of 8, 10, 12, 14, 16 bits that hold all of its levels; floats: 0 to 1.",
)
SIZE = typer.Option(
    "--size", min=1, help="Side of the model's input in pixels; none: what it was trained with."
)


EXPLAIN = typer.Option("--explain", help="Also draw the heatmaps.")


def explain_options(
    wanted: bool, composite: str | None, size: int | None, device: str, **of_the_model: Any
) -> ExplainOptions | None:
    """Options for commands that can explain the photos of a table; None without `wanted`."""
    if not wanted:
        return None
    from lrp.gallery.options import ExplainOptions

    with as_wrong_arguments():
        return ExplainOptions(composite=composite, size=size, device=device, **of_the_model)


RANGES = (
    "the range of grey levels is assumed, for each file by its own levels: where files are to be compared, give all of "
    "them one with --range LOW HIGH."
)


def checked_range(given: tuple[float, float] | None) -> tuple[float, float] | None:
    """The range if it is one; else the error of a wrong argument."""
    from lrp.errors import ImageError
    from lrp.pictures.levels import check_range

    try:
        return check_range(given)
    except ImageError as error:
        raise OptionError(str(error)) from error


def print_result_warnings(results: Iterable[Result]) -> None:
    """Warn about skipped photos, unhealthy explanations, and predictions that differ from the table's."""
    for result in results:
        if result.status == "skipped":
            print_message(f"skipped {result.path}: {result.error}")
        for facts in (result.facts, result.facts.get("a") or {}, result.facts.get("b") or {}):
            if "differs" in facts:
                print_message(facts["differs"])
            if facts.get("health") and not facts["health"]["ok"]:
                print_message(f"{result.path}: NOT TRUSTWORTHY: {facts['health']['problems'][0]}")


def data_set_from_arguments(data: Path, split: str | None, follow_links: bool) -> DataSet:
    """The data set that a command's arguments name; says which split is read if the user has chosen none."""
    from lrp.data.data_set import DataSet

    with as_wrong_arguments(DataError):
        found = DataSet.open(data, split, follow_links)
    if split is None and len(found.splits) > 1:
        others = ", ".join(s for s in found.splits if s != found.split)
        print_message(f"{data}: reading {found.split}/; --split takes {others} or all.")
    return found


def print_unmatched_folders(model: str, unmatched: Mapping[str, Sequence[str]]) -> None:
    """Say which class folders are no class of the model, and which class names are near."""
    for folder, similar in unmatched.items():
        hint = f"; near it: {', '.join(similar)}" if similar else ""
        print_message(f"the folder {folder!r} is no class of {model}{hint}.")


def print_written_files(written: Written, silent: bool, pictures: Sequence[Result] = ()) -> None:
    """Print the paths of all files and what is missing; exit code 3 if something is missing."""
    if not silent:
        print(f"-> {written.folder}: {', '.join(written.files)}")
        for folder, group in groupby(p.output.parent for p in pictures if p.output):
            print(f"-> {folder}: {len(list(group)):,} pictures")
    for note in written.notes:
        print_message(note)
    if written.notes or any(p.status == "skipped" for p in pictures):
        raise Skipped


class progress:
    """A progress bar on stderr if it is a terminal, otherwise nothing; entering returns advance(done, total, what)."""

    def __init__(self, what: str, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            *columns, console=console, transient=True, disable=quiet or not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip
        self.what = what

    def __enter__(self) -> Callable[..., None]:
        self.bar.start()
        task = self.bar.add_task(self.what, total=None)

        def advance(done: int, total: int, what: str = "") -> None:
            """Add `done` steps of `total`; a new `what` restarts the bar at 0."""
            if what and what != self.what:
                self.what = what
                self.bar.reset(task, description=what)
            self.bar.update(task, total=total, advance=done)

        return advance

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()
