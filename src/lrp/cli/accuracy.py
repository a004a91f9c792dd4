"""`lrp accuracy`: several models on one data set, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from lrp.cli import common, evaluate, tables

if TYPE_CHECKING:
    from lrp.study.accuracy import Measured

ALONE = {"--csv": "accuracy.csv", "--plot": "accuracy.png"}
SHOWN = 30


class OptionalFiles(TyperCommand):
    """Allows --csv and --plot without a file name; typer has no option with an optional value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spelled = []
        for arg, following in zip(args, [*args[1:], "--"], strict=True):
            spelled.append(arg)
            if arg in ALONE and following.startswith("-"):
                spelled.append(ALONE[arg])
        return super().parse_args(ctx, spelled)


@common.command_example("lrp accuracy data/imagenette2-320 --model vgg16 --model vgg19 --plot")
def accuracy(
    data: Annotated[Path, evaluate.DATA],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="As often as there are models; none: alexnet, vgg16, vgg19, resnet50."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for each model's table, MODEL_results.csv.")
    ] = Path("."),
    csv: Annotated[
        Path | None, typer.Option(help="Also write the numbers as CSV, per class too; alone: accuracy.csv.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw them, as .png and .svg, and per class; alone: accuracy.png."),
    ] = None,
    classes: Annotated[evaluate.Classes, evaluate.CLASSES] = evaluate.Classes.model,
    split: Annotated[str | None, evaluate.SPLIT] = None,
    follow_links: Annotated[bool, evaluate.LINKS] = False,
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    size: Annotated[int | None, common.SIZE] = None,
    device: Annotated[str, common.DEVICE] = "auto",
    batch_size: Annotated[int, evaluate.BATCH] = 32,
    max_megapixels: Annotated[float, evaluate.MEGAPIXELS] = 100.0,
    overwrite: Annotated[bool, evaluate.OVERWRITE] = False,
    as_json: Annotated[bool, evaluate.JSON] = False,
    quiet: Annotated[bool, evaluate.QUIET] = False,
) -> None:
    """How often models are right: top-1, top-5, loss, images/s; each with its table of predictions."""
    from lrp.models.checkpoints import is_checkpoint
    from lrp.study import accuracy as study

    for file in (csv, plot):
        if file and file.is_dir():
            raise typer.BadParameter(f"{file} is a folder: --csv and --plot take a file's name, or none.")
    names = list(dict.fromkeys(model or study.MODELS))
    files = [name for name in names if is_checkpoint(name)]
    if (arch or labels) and not files:
        raise typer.BadParameter("--arch and --labels are for files of weights, and no --model is a file.")
    opened = common.data_set_from_arguments(data, split, follow_links)
    found: list[Measured] = []
    with common.progress("loading", quiet) as advance:
        for one in study.accuracy(
            opened, names, output, arch=arch, labels=labels, advance=lambda name, done, total: advance(done, total, name),
            classes=classes.value, size=size, device=device, batch_size=batch_size, max_megapixels=max_megapixels,
            overwrite=overwrite,
        ):  # fmt: skip
            found.append(one)
            if one.error:
                common.print_message(f"{one.model}: {one.error}")
            common.print_unmatched_folders(one.model, one.unmatched or {})
            if one.accuracy and one.accuracy.unreadable:
                common.print_message(
                    f"{one.model}: {one.accuracy.unreadable:,} files could not be read: see {one.output}."
                )
    if as_json:
        print(json.dumps({"models": [one.to_dict() for one in found]}, ensure_ascii=False))
    elif not quiet:
        _show(found)
    written = [*(one.output for one in found if one.output), *_write(found, csv, plot)]
    if written and not (as_json or quiet):
        print(f"-> {', '.join(map(str, written))}")
    if all(one.error for one in found):
        raise typer.Exit(2 if all(one.no_class for one in found) else 1)
    if any(one.accuracy is None or one.accuracy.counted < one.accuracy.total for one in found):
        raise common.Skipped


def _show(found: list[Measured]) -> None:
    """Print the numbers of all models and, if there are few classes, of each class."""
    rows = []
    for one in found:
        if a := one.accuracy:
            speed = tables.number_cell(one.images_per_second, ".1f")
            top5 = str(a.top5) if a.top5 else ""
            rows.append(
                [one.model, f"{a.counted:,}", str(a.top1 or ""), top5, tables.number_cell(a.loss), speed]
            )
    columns = (
        "model",
        ">images",
        ">top-1 (95 % interval)",
        ">top-5 (95 % interval)",
        ">mean loss",
        ">images/s",
    )
    if rows:
        tables.print_table("Accuracy", columns, rows)
    measured = {one.model: one.accuracy for one in found if one.accuracy}
    labels = list(dict.fromkeys(c.label for a in measured.values() for c in a.classes))
    by_class = {model: {c.label: c for c in a.classes} for model, a in measured.items()}
    if not labels:
        return

    def right(label: str) -> float:
        shares = [c[label].top1 for c in by_class.values() if label in c]
        return sum(share.value for share in shares if share) / len(by_class)

    shown = sorted(labels, key=right)[:SHOWN]
    lines = []
    for label in shown if len(shown) < len(labels) else labels:
        group = [c[label] for c in by_class.values() if label in c]
        values = [str(c[label].top1 or "") if label in c else "" for c in by_class.values()]
        lines.append([label, f"{max(c.support for c in group):,}", *values])
    title = "Top-1 per class (95 % interval)"
    if len(shown) < len(labels):
        title += f": the {len(shown)} of {len(labels)} classes least often right; --csv has all"
    tables.print_table(title, ("class", ">images", *(f">{model}" for model in by_class)), lines)


def _write(found: list[Measured], csv: Path | None, plot: Path | None) -> list[Path]:
    from lrp.study import plots
    from lrp.study.accuracy import COLUMNS, accuracy_table
    from lrp.study.csv_lines import write_csv_table

    measured = {one.model: one.accuracy for one in found if one.accuracy and one.accuracy.counted}
    files: list[Path] = []
    if csv:
        write_csv_table(csv, COLUMNS, accuracy_table(found))
        files.append(csv)
    if plot and measured:
        per_class = plot.with_name(f"{plot.stem}_classes{plot.suffix}")
        for place, figure in (
            (plot, plots.plot_accuracy(measured)),
            (per_class, plots.plot_class_accuracy(measured)),
        ):
            for file in dict.fromkeys((place, place.with_suffix(".svg"))):
                plots.save_figure(figure, file)
                files.append(file)
    return files
