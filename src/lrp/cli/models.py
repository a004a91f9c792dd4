"""`lrp models`: the names that --model takes; with --check, how well each architecture is explained."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp.cli import common

if TYPE_CHECKING:
    from lrp.survey.check import Measurement


@common.command_example("lrp models vgg")
def models(
    part: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Measure torchvision's models, one of each timm family and one of each of Hugging Face's instead: "
            "hours; in parts: video:, segmentation:, quantizable:, hf:, timm:.",
        ),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="With --check: models measured at a time; none: 1.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="With --check: folder for models.md and models.json; none: docs/."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --check: also measure again what is up to date.")
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="With --check: keep results of other versions and of an older engine; measure what has none.",
        ),
    ] = False,
) -> None:
    """List the models that have a name here: source of the weights, download size, ImageNet top-1."""
    if check:
        if overwrite and keep:
            raise typer.BadParameter(
                "--overwrite measures everything again, --keep nothing: give one of them."
            )
        _measure(part, jobs or 1, output or Path("docs"), overwrite, keep)
        return
    if jobs or output or overwrite or keep:
        raise typer.BadParameter("--jobs, --output, --overwrite and --keep belong to --check.")
    from lrp.models.catalogue import model_names

    print(f"{'name':<28} {'top-1':>6} {'download':>9}  weights")
    for entry in model_names():
        if part in entry.name:
            top1 = f"{entry.top1:.1f} %" if entry.top1 else ""
            download = f"{entry.megabytes:.0f} MB" if entry.megabytes else ""
            print(f"{entry.name:<28} {top1:>6} {download:>9}  {entry.source}")


def _measure(part: str, jobs: int, output: Path, overwrite: bool, keep: bool) -> None:
    """Measure the models and print one line for each. Exit code 3 if the goals are not met."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from lrp.survey import architectures, page, run

    names, missing = architectures.installed_architectures(architectures.surveyed_architectures(part))
    if missing:
        common.print_message(missing)
    console = Console(stderr=True)
    bar = Progress(
        "measuring", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal, redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip
    results = []
    with bar:
        task = bar.add_task("", total=len(names))
        for result, kept in run.survey(names, output, jobs=jobs, overwrite=overwrite, keep=keep):
            results.append(result)
            print(_line(result, kept), flush=True)
            bar.advance(task)
    for package, unlisted in architectures.unlisted_families().items():
        if unlisted:
            common.print_message(
                f"{package} has families that lrp.survey does not list: {', '.join(unlisted)}."
            )
    print(page.survey_summary(results))
    for miss in (r for r in results if not r.ok):
        print(f"missed: {miss.name}: {textwrap.shorten(miss.reason, 200)}")
    print(f"-> {output / 'models.md'}, {output / 'models.json'}")
    if not run.run_meets_goal(results, everything=not part):
        raise common.Skipped


def _line(result: Measurement, kept: bool) -> str:
    """The result of one model as one line."""
    status = "miss" if not result.ok else "kept" if kept else "ok"
    if not result.ok:
        return f"{status:<4}  {result.name}: {textwrap.shorten(result.reason, 200)}"
    return (
        f"{status:<4}  {result.name}: {result.operations} operations, logits {result.logit_error:.0e}, "
        f"worst node {result.closing_error:.0e}, reached {result.reached:.3g} of the start"
        + (f", {result.times:.1f} × gradient" if result.times is not None else "")
    )
