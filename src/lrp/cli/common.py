"""What the commands share: how they complain, load models and choose a device and a composite."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lrp.errors import CompositeError, LrpError

if TYPE_CHECKING:
    import torch

    from lrp.models.loading import LoadedModel
    from lrp.models.preprocessing import Preprocessing


class Skipped(Exception):
    """The command finished, and left files out: exit code 3."""


def complain(sentence: str) -> None:
    print(f"lrp: {sentence}", file=sys.stderr)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the exit codes: our own errors are one line; bugs keep their traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except LrpError as error:
            complain(str(error))
            raise typer.Exit(1) from error
        except Skipped as skipped:
            raise typer.Exit(3) from skipped
        except KeyboardInterrupt as stop:
            complain("interrupted; what is finished is whole, and the same command goes on from there.")
            raise typer.Exit(130) from stop
        except BrokenPipeError as gone:  # the reader of our output left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from gone

    return run


@contextmanager
def usage(*kinds: type[LrpError]) -> Iterator[None]:
    """Errors of these kinds are about the arguments: exit code 2. Not where the disk refused: that is exit code 1.

    A path that leads nowhere is a wrong argument, too.
    """
    try:
        yield
    except kinds as error:
        refused = isinstance(error.__cause__, OSError)
        if refused and not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        raise typer.BadParameter(str(error)) from error


def example(text: str) -> Callable[[Any], Any]:
    """The example that a command's help shows."""

    def add(command: Any) -> Any:
        command.example = text
        return command

    return add


MODEL = typer.Option("--model", "-m", help="A name that `lrp models` lists, timm:NAME, or a file of weights.")
ARCH = typer.Option(
    "--arch", help="For a file of weights without sidecar: whose weights it holds, as `lrp models` lists."
)
LABELS = typer.Option(
    "--labels", help="For a file without sidecar: its class names in order, one a line, or a JSON list."
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
SIZE = typer.Option(
    "--size", min=1, help="Side of the model's input in pixels; none: what it was trained with."
)


def load(
    name: str, size: int | None = None, arch: str | None = None, labels: Path | None = None
) -> LoadedModel:
    from lrp.models.loading import load_model

    said = {"arch": arch, "labels": labels}
    loaded = load_model(name, **{option: value for option, value in said.items() if value is not None})  # type: ignore[arg-type]
    return loaded if size is None else loaded._replace(preprocessing=loaded.preprocessing.with_size(size))


class progress:
    """A bar on stderr where a person is watching, nothing where not: gives advance(done, total, what)."""

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
            """`done` more of `total`; of a new `what`, from the beginning."""
            if what and what != self.what:
                self.what = what
                self.bar.reset(task, description=what)
            self.bar.update(task, total=total, advance=done)

        return advance

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()


def device(name: str) -> torch.device:
    """The device of that name; auto: a GPU where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen)
        return chosen
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise typer.BadParameter(f"--device {name}: {reason} (auto, cpu and cuda are usual)") from error


def composite(
    name: str | None, preprocessing: Preprocessing, bias: str | None, epsilon: float | None, top_k: float
) -> Any:
    """The preset of that name for inputs so preprocessed; None: chosen for the architecture."""
    from lrp.engine.default_preset import default
    from lrp.engine.presets import preset

    options: dict[str, Any] = {"low": preprocessing.low, "high": preprocessing.high}
    options |= {"epsilon": epsilon, "top_k": top_k}
    if bias is not None:
        options["bias"] = bias
    try:
        named = preset(
            name or "epsilon_gamma_box", **options
        )  # without a name, only to check the options now
        return named if name else partial(default, **options)
    except CompositeError as error:
        raise typer.BadParameter(str(error)) from error
