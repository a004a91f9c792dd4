"""`lrp errors`: the mistakes of a model, its confused classes, and its calibration."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp.cli import common, tables
from lrp.cli.confidence import OUTPUT, RESULTS, ROOT
from lrp.cli.evaluate import JSON, QUIET

if TYPE_CHECKING:
    from lrp.study.folder import Mistakes

PAIRS, CLASSES = 10, 30
MODEL = typer.Option(
    "--model", "-m", help="With --explain: the table's model, if it is not where its rows say."
)


@common.command_example("lrp errors vgg19_results.csv --explain")
def errors(
    results: Annotated[Path, RESULTS],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="How many of the most confident mistakes to show.")
    ] = 20,
    bins: Annotated[int, typer.Option(min=1, help="Bins of the reliability plot.")] = 15,
    output: Annotated[Path | None, OUTPUT] = None,
    root: Annotated[Path | None, ROOT] = None,
    explain: Annotated[bool, common.EXPLAIN] = False,
    model: Annotated[str | None, MODEL] = None,
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    size: Annotated[int | None, common.SIZE] = None,
    device: Annotated[str, common.DEVICE] = "auto",
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Show what is taken for what, the most confident mistakes, calibration, precision and recall."""
    from lrp.study.folder import mistakes

    options = common.explain_options(
        explain, composite, size, device, arch=arch, labels=labels, preprocess=preprocess
    )
    with common.progress("explaining", quiet) as advance:
        found = mistakes(
            results, output, count=count, bins=bins, root=root, explain=explain, model=model, options=options,
            advance=advance,
        )  # fmt: skip
    common.print_result_warnings(found.explained)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    elif not quiet:
        _show(found, count)
    if not (as_json or quiet):
        named = f" --model {shlex.quote(model)}" if model else ""
        print(f"A page to look through: lrp report {shlex.quote(str(results))}{named}")
    common.print_written_files(found.written, as_json or quiet, found.explained)


def _show(found: Mistakes, count: int) -> None:
    from lrp.values import percent

    accuracy, confusion, calibration = found.accuracy, found.confusion, found.calibration
    print(
        f"{accuracy.counted:,} images, {len(confusion.mistakes):,} mistakes: top-1 {accuracy.top1 or '-'}, "
        f"top-5 {accuracy.top5 or '-'}"
    )
    for name, value in (
        ("could not be read", accuracy.unreadable),
        ("of no class of the model", accuracy.unmatched),
    ):
        if value:
            print(f"{value:,} more files {name}: left out")
    if calibration.ece is not None:
        tendency = "" if calibration.tendency in ("", "neither") else f": {calibration.tendency}"
        print(
            f"mean confidence {tables.percent_cell(calibration.confidence)}{tendency}; expected calibration error (ECE) "
            f"{tables.percent_cell(calibration.ece)}, of equally filled bins {tables.percent_cell(calibration.adaptive_ece)}"
        )
    print()
    if confusion.pairs:
        tables.print_table(
            "Most often taken for another",
            ("true", "predicted", ">images", ">of the class"),
            [
                [p.true, p.predicted, f"{p.count:,}", tables.percent_cell(p.share)]
                for p in confusion.pairs[:PAIRS]
            ],
        )
        tables.print_table(
            "Most confident mistakes",
            (">", "predicted", ">confidence", "true", ">its confidence", "photo"),
            [
                [
                    str(rank), row.predicted_label, percent(row.predicted_confidence or 0), row.true_label,
                    "" if row.true_confidence is None else percent(row.true_confidence), row.path,
                ]
                for rank, row in enumerate(confusion.mistakes[:count], 1)
            ],
        )  # fmt: skip
    worst = sorted(accuracy.classes, key=lambda c: c.f1 or 0)[:CLASSES]
    shown = worst if len(worst) < len(accuracy.classes) else accuracy.classes
    title = "Precision and recall per class"
    if len(shown) < len(accuracy.classes):
        title += f": the {len(shown)} of {len(accuracy.classes)} with the lowest F1; classes.csv has all"
    tables.print_table(
        title,
        ("class", ">images", ">predicted", ">precision", ">recall", ">F1"),
        [
            [
                c.label, f"{c.support:,}", f"{c.predicted:,}", tables.percent_cell(c.precision), tables.percent_cell(c.recall),
                tables.number_cell(c.f1),
            ]
            for c in shown
        ],
    )  # fmt: skip
