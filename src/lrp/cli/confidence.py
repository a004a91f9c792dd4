"""`lrp confidence`: the correct predictions with the highest and the lowest confidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp.cli import common, tables
from lrp.cli.evaluate import JSON, QUIET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lrp.study.analysis import Surest
    from lrp.study.predictions import Prediction

RESULTS = typer.Argument(
    help="A table that `lrp evaluate` wrote.", metavar="RESULTS.csv", exists=True, dir_okay=False
)
OUTPUT = typer.Option("--output", "-o", help="Folder for tables and pictures; none: one beside the CSV.")
CLASSES = 30
ROOT = typer.Option(help="Where the photos are now, if they have moved.", exists=True, file_okay=False)


@common.command_example("lrp confidence vgg19_results.csv --count 5 --copy-to input")
def confidence(
    results: Annotated[Path, RESULTS],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="How many, of each kind, over all and per class.")
    ] = 10,
    copy_to: Annotated[
        Path | None,
        typer.Option(help="Copy the photos there as <category>/<image>, for `lrp explain`.", file_okay=False),
    ] = None,
    output: Annotated[Path | None, OUTPUT] = None,
    root: Annotated[Path | None, ROOT] = None,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Pick the correct predictions with the highest and the lowest confidence, over all and per class."""
    from lrp.study.folder import confidence as picked

    found = picked(results, output, count=count, root=root, copy_to=copy_to)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    elif not quiet:
        overall = found.picks.overall
        _show("Correct and surest", overall.highest)
        _show("Correct and least sure", overall.lowest)
        if len(found.picks.classes) > 1:
            every = [one for one in found.picks.classes if one.correct]
            shown = sorted(every, key=lambda one: one.lowest[0].predicted_confidence or 0)[:CLASSES]
            title = "Correct, per class"
            if len(shown) < len(every):
                title += (
                    f": the {CLASSES} of {len(every)} classes with the least sure; confidence.csv has all"
                )
            columns = "class", ">images", ">surest", ">least sure", "the least sure"
            tables.print_table(
                title, columns, [_class(one) for one in (shown if len(shown) < len(every) else every)]
            )
        if copy_to is not None:
            print(f"{len(found.copied):,} photos copied to {copy_to}: `lrp explain {copy_to}` runs next")
    common.print_written_files(found.written, as_json or quiet)


def _show(title: str, rows: Sequence[Prediction]) -> None:
    from lrp.values import percent

    tables.print_table(
        title,
        (">", ">confidence", "class", "photo"),
        [
            [str(rank), percent(row.predicted_confidence or 0), row.true_label, row.path]
            for rank, row in enumerate(rows, 1)
        ],
    )


def _class(one: Surest) -> list[str]:
    from lrp.values import percent

    high, low = one.highest[0], one.lowest[0]
    return [
        one.label, f"{one.correct:,}", percent(high.predicted_confidence or 0), percent(low.predicted_confidence or 0),
        low.path,
    ]  # fmt: skip
