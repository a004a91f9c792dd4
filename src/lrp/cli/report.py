"""`lrp report`: an interactive report as one HTML file."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lrp.cli import common
from lrp.cli.confidence import RESULTS, ROOT
from lrp.cli.evaluate import QUIET

OUTPUT = typer.Option("--output", "-o", help="The HTML file; none: RESULTS_report.html beside the table.")


@common.command_example(
    "lrp report vgg19_results_original.csv --compare vgg19_results_retrained.csv -o report.html"
)
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
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
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
    from lrp.html_report.report import report as write

    options = common.explain_options(
        explain > 0, composite, size, device, arch=arch, labels=labels, preprocess=preprocess
    )
    with common.progress("reading photos", quiet) as advance:
        made = write(
            results, output, compare=compare, explain=explain, models=(model, compare_model), options=options, rows=rows,
            max_mb=max_mb, root=root, command=shlex.join(["lrp", *sys.argv[1:]]), advance=advance,
        )  # fmt: skip
    for note in made.notes:
        common.print_message(note)
    if not quiet:
        print(
            f"{made.rows:,} photos, {made.explained:,} with heatmaps, {made.bytes / 1e6:.1f} MB: open {made.path} in a browser"
        )
    if made.missing:
        raise common.Skipped
