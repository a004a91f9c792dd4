"""`lrp report`: one HTML file to look through."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp.cli import common, table_model
from lrp.cli.confidence import RESULTS, ROOT
from lrp.cli.evaluate import QUIET

if TYPE_CHECKING:
    from lrp.html_report.write import Report

OUTPUT = typer.Option("--output", "-o", help="The HTML file; none: RESULTS_report.html beside the table.")


@common.example("lrp report vgg19_results_original.csv --compare vgg19_results_retrained.csv -o report.html")
def report(
    results: Annotated[Path, RESULTS],
    output: Annotated[Path | None, OUTPUT] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="A second table of the same photos, as of the retrained model."),
    ] = None,
    explain: Annotated[
        int, typer.Option("--explain", min=0, help="How many photos get heatmaps, mistakes first; 0: none.")
    ] = 200,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The table's model, if it is not where its rows say.")
    ] = None,
    compare_model: Annotated[
        str | None, typer.Option("--compare-model", help="The same for --compare's model.")
    ] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    size: Annotated[int | None, common.SIZE] = None,
    device: Annotated[str, common.DEVICE] = "auto",
    rows: Annotated[
        int,
        typer.Option(
            "--rows", min=1, help="How many photos are listed, mistakes first; all numbers are of all."
        ),
    ] = 4000,
    max_mb: Annotated[
        float, typer.Option("--max-mb", min=0.1, help="The largest size of the file, in MB.")
    ] = 25.0,
    root: Annotated[Path | None, ROOT] = None,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Write one HTML file that shows the results, photo by photo, with heatmaps; it needs nothing else to be opened."""
    made = run(
        results, output or beside(results), compare, explain, (model, compare_model), composite, size, device, rows, max_mb,
        root, shlex.join(["lrp", *sys.argv[1:]]), quiet,
    )  # fmt: skip
    for note in made.notes:
        common.complain(note)
    if not quiet:
        print(
            f"{made.rows:,} photos, {made.explained:,} with heatmaps, {made.bytes / 1e6:.1f} MB: open {made.path} in a browser"
        )
    if made.missing:
        raise common.Skipped


def beside(results: Path) -> Path:
    return results.with_name(f"{results.stem}_report.html")


def run(
    results: Path,
    output: Path,
    compare: Path | None = None,
    explain: int = 200,
    models: tuple[str | None, str | None] = (None, None),
    composite: str | None = None,
    size: int | None = None,
    device: str = "auto",
    rows: int = 4000,
    max_mb: float = 25.0,
    root: Path | None = None,
    command: str = "",
    quiet: bool = False,
) -> Report:
    """Load the models that the tables name, and write."""
    from lrp.html_report.write import report as write
    from lrp.study.predictions import read_predictions

    galleries = []
    if explain:
        for table, named, option in zip(
            (results, compare), models, ("--model", "--compare-model"), strict=True
        ):
            if table is not None:
                galleries.append(
                    table_model.gallery(
                        table, read_predictions(table), named, composite, size, device, option
                    )
                )
    with common.progress("reading photos", quiet) as advance:
        return write(
            results, output, retrained=compare, galleries=galleries, explain=explain, rows=rows, max_mb=max_mb,
            root=root, command=command, progress=advance,
        )  # fmt: skip
