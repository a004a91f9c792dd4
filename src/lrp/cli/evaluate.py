"""`lrp evaluate`: predict the photos of a data set, one CSV row per file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp.cli import common
from lrp.errors import DataError, PredictionsError

if TYPE_CHECKING:
    from lrp.study.evaluate import Evaluation


class Classes(StrEnum):
    model = "model"
    data = "data"


DATA = typer.Argument(
    help="Folder of photos: DATA/<class>/<image>, or with train/ and val/ above.", metavar="DATA"
)
CLASSES = typer.Option(help="Which classes compete: all the model's, or only those of the data set.")
SPLIT = typer.Option(help="val, train, ... or all; none: val where there is one.")
LINKS = typer.Option("--follow-links", help="Also read what links lead to.")
BATCH = typer.Option(min=1, help="Photos that go through the model together.")
MEGAPIXELS = typer.Option(min=0, help="Larger photos are not read.")
OVERWRITE = typer.Option("--overwrite", help="Start over, replacing what is there.")
JSON = typer.Option("--json", help="One JSON object on stdout.")
QUIET = typer.Option("--quiet", "-q", help="Print only what went wrong.")


@common.command_example("lrp evaluate data/imagenette2-320 --model vgg19 -o vgg19_results_original.csv")
def evaluate(
    data: Annotated[Path, DATA],
    model: Annotated[str, common.MODEL] = "efficientnet_lite0",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The CSV; none: MODEL_results.csv here.")
    ] = None,
    classes: Annotated[Classes, CLASSES] = Classes.model,
    split: Annotated[str | None, SPLIT] = None,
    follow_links: Annotated[bool, LINKS] = False,
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
    size: Annotated[int | None, common.SIZE] = None,
    device: Annotated[str, common.DEVICE] = "auto",
    batch_size: Annotated[int, BATCH] = 32,
    max_megapixels: Annotated[float, MEGAPIXELS] = 100.0,
    range: Annotated[tuple[float, float] | None, common.RANGE] = None,
    overwrite: Annotated[bool, OVERWRITE] = False,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Predict every photo of a data set: one CSV row per file. Stopped, the same command goes on."""
    from lrp.study.evaluate import evaluate
    from lrp.study.predictions import prediction_table_paths, prediction_table_stem

    read = common.data_set_from_arguments(data, split, follow_links)
    with (
        common.as_wrong_arguments(DataError, PredictionsError),
        common.progress(prediction_table_stem(model), quiet) as advance,
    ):
        found = evaluate(
            read, model, output or prediction_table_paths([model], ".")[0], classes=classes.value, size=size, arch=arch,
            labels=labels, preprocess=preprocess, batch_size=batch_size, device=device, max_megapixels=max_megapixels,
            range=common.checked_range(range), overwrite=overwrite, advance=advance,
        )  # fmt: skip
    common.print_unmatched_folders(model, found.unmatched)
    _print_notes(found.notes)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    elif not quiet:
        print(_summary(found))
    if found.counts.get("unreadable") or found.counts.get("unmatched"):
        raise common.Skipped


def _print_notes(notes: Sequence[str]) -> None:
    """What was assumed about files, each once."""
    for note in notes:
        common.print_message(f"some files: {note}.")
    if any("black to white" in note for note in notes):
        common.print_message(common.RANGES)


def _summary(found: Evaluation) -> str:
    """The summary of a run, in two lines."""
    counts = {name: found.counts.get(name, 0) for name in ("ok", "unreadable", "unmatched")}
    line = f"{found.total:,} files = " + " + ".join(f"{n:,} {name}" for name, n in counts.items())
    if counts["ok"]:
        line += f"; {found.correct:,} of {counts['ok']:,} correct ({found.correct / counts['ok']:.1%})"
    fresh = found.total - found.resumed
    speed = (
        f"{fresh:,} predicted in {found.seconds:.1f} s ({fresh / found.seconds:.1f}/s)"
        if fresh
        else "up to date"
    )
    if found.resumed and fresh:
        speed += f", {found.resumed:,} were there from a run that was stopped"
    return f"{line}\n-> {found.output}: {speed}"
