"""Tables of predictions -> a folder with tables, plots and contact sheets of the results of `lrp.study.analysis`.

Each function reads a CSV of `lrp evaluate` and returns the numbers and the paths of the files it wrote. Without torch,
except for heatmaps. A photo that does not exist at its path in the table is reported and does not stop the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lrp.study import analysis, comparison, plots
from lrp.study.analysis import Accuracy, Calibration, Confusion, Picks, Surest
from lrp.study.comparison import Comparison, Twin
from lrp.study.locate import copy_located_photos, locate_class_folders
from lrp.study.predictions import Prediction, read_predictions
from lrp.study.written import StudyFolder, Written, written_file_names
from lrp.values import Plain, percent

if TYPE_CHECKING:
    from lrp.gallery.options import ExplainOptions
    from lrp.gallery.results import Result
    from lrp.models.loading import LoadedModel
    from lrp.pictures.contact_sheet import Entry

Advance = Callable[[int, int, str], None]

SHEETS = 50
"""With more classes than this, no contact sheets of single classes are written."""


@dataclass(frozen=True)
class Confidence(Plain):
    """The result of `confidence`.

    Attributes:
        picks: the correct predictions with the highest and the lowest confidence.
        written: the files written.
        copied: the paths of the copies, in the order of the picks.
    """

    picks: Picks
    written: Written
    copied: tuple[str, ...]


@dataclass(frozen=True)
class Mistakes(Plain):
    """The result of `mistakes`.

    Attributes:
        accuracy, confusion, calibration: the numbers; `confusion.mistakes` are the wrong rows, most confident first.
        written: the files written.
        explained: a result for each mistake with heatmaps, if requested.
    """

    accuracy: Accuracy
    confusion: Confusion
    calibration: Calibration
    written: Written
    explained: tuple[Result, ...] = ()


@dataclass(frozen=True)
class Compared(Plain):
    """The result of `compare`.

    Attributes:
        comparison: the numbers.
        written: the files written.
        explained: a result for each photo gained or lost with heatmaps, if requested.
    """

    comparison: Comparison
    written: Written
    explained: tuple[Result, ...] = ()


# --- confidence -------------------------------------------------------------------------------------------


def confidence(
    results: Path | str,
    output: Path | str | None = None,
    *,
    count: int = 10,
    root: Path | str | None = None,
    copy_to: Path | str | None = None,
) -> Confidence:
    """The correct predictions with the highest and the lowest confidence, over all and per class.

    Writes confidence.csv, a contact sheet confidence.png, and one for each class.

    Args:
        results: a CSV of `lrp evaluate`.
        output: a folder; None: one beside the CSV.
        count: how many predictions of the highest, and how many of the lowest confidence.
        root: where the photos are now, if they were moved.
        copy_to: copy the photos there as <class folder>/<name>, the layout that `lrp explain` reads.

    Raises:
        PredictionsError: the file is no table of predictions, or the output cannot be written.
    """
    rows = read_predictions(results)
    found = analysis.analyse_confidence(rows, count)
    every = [found.overall, *found.classes]
    picked = list({row.path: row for one in every for row in (*one.highest, *one.lowest)}.values())
    folder = StudyFolder(output or _beside(results, "confidence"), picked, root)
    folder.table(
        "confidence.csv",
        ("class", "kind", "rank", "path", "label", "confidence"),
        (
            (one.label or "(all)", kind, rank, row.path, row.true_label, row.predicted_confidence)
            for one in every
            for kind, group in (("highest", one.highest), ("lowest", one.lowest))
            for rank, row in enumerate(group, 1)
        ),
    )
    folder.sheet(
        "confidence.png", _surest(folder, found.overall), f"Correct predictions of {Path(results).name}"
    )
    if len(found.classes) <= SHEETS:
        for name, one in zip(
            written_file_names([c.label for c in found.classes]), found.classes, strict=True
        ):
            folder.sheet(f"classes/{name}.png", _surest(folder, one), one.label)
    copied: tuple[str, ...] = ()
    if copy_to is not None:
        copied = tuple(map(str, copy_located_photos(folder.photos, locate_class_folders(rows), copy_to)))
    return Confidence(found, folder.written(), copied)


def _surest(folder: StudyFolder, one: Surest) -> dict[str, list[Entry]]:
    kinds = {"Surest": one.highest, "Least sure": one.lowest}
    return {
        kind: [folder.entry(row, row.true_label, percent(row.predicted_confidence or 0)) for row in group]
        for kind, group in kinds.items()
    }


# --- mistakes ---------------------------------------------------------------------------------------------


def mistakes(
    results: Path | str,
    output: Path | str | None = None,
    *,
    count: int = 20,
    bins: int = 15,
    root: Path | str | None = None,
    explain: bool = False,
    model: str | Path | LoadedModel | None = None,
    options: ExplainOptions | None = None,
    advance: Advance = lambda done, total, what: None,
) -> Mistakes:
    """The mistakes of a model, the confusion of its classes, and the calibration of its confidences.

    Writes classes.csv, confusion.csv, pairs.csv, mistakes.csv, calibration.csv; a contact sheet mistakes.png
    of the `count` most confident mistakes; confusion and reliability as .png and .svg.

    Args:
        results, output, root: as in `confidence`.
        bins: number of bins of the reliability plot.
        explain: also draw, for each of these mistakes, mistakes/NN_<name>.png: heatmaps for the predicted class, for
            the true class, and for the contrast of the two.
        model: with `explain`, the table's model, if it is not where its rows say: a name, or a `LoadedModel`.
        options: with `explain`, how to explain and draw.
        advance: with `explain`, called with (1, number of photos, name of the step) after each photo.

    Raises:
        PredictionsError: the file is no table of predictions, or the output cannot be written.
        ModelError: with `explain`, the table's model cannot be loaded, or has changed.
        CompositeError: with `explain`, rules whose heatmap is the same for every class.
    """
    rows = read_predictions(results)
    accuracy, confusion = analysis.analyse_accuracy(rows), analysis.analyse_confusion(rows)
    calibration = analysis.analyse_calibration(rows, bins)
    shown = confusion.mistakes[:count]
    folder = StudyFolder(output or _beside(results, "errors"), shown, root)
    folder.table(
        "classes.csv",
        ("class", "images", "predicted", "precision", "recall", "f1", "top5", "mean_loss", "mean_confidence"),
        (
            (c.label, c.support, c.predicted, c.precision, c.recall, c.f1, c.top5 and c.top5.value, c.loss, c.confidence)
            for c in accuracy.classes
        ),
    )  # fmt: skip
    folder.table(
        "confusion.csv",
        ("true / predicted", *confusion.labels),
        ((label, *line) for label, line in zip(confusion.labels, confusion.matrix, strict=True)),
    )
    folder.table(
        "pairs.csv",
        ("true", "predicted", "images", "share_of_true"),
        ((p.true, p.predicted, p.count, p.share) for p in confusion.pairs),
    )
    folder.table(
        "mistakes.csv",
        ("path", "true", "predicted", "predicted_confidence", "true_confidence"),
        (
            (row.path, row.true_label, row.predicted_label, row.predicted_confidence, row.true_confidence)
            for row in confusion.mistakes
        ),
    )
    folder.table(
        "calibration.csv",
        ("above", "up_to", "images", "mean_confidence", "accuracy", "low", "high"),
        (
            (b.low, b.high, b.count, b.confidence, *((a.value, a.low, a.high) if (a := b.accuracy) else (None,) * 3))
            for b in calibration.bins
        ),
    )  # fmt: skip
    folder.sheet(
        "mistakes.png",
        [folder.entry(row, f"{_sure(row)}", f"truly {_true(row)}") for row in shown],
        f"The most confident mistakes of {Path(results).name}",
    )
    if accuracy.counted:
        folder.plot("confusion", lambda: plots.plot_confusion(confusion))
        folder.plot("reliability", lambda: plots.plot_reliability(calibration))
    written = folder.written()
    made: tuple[Result, ...] = ()
    if explain and shown:
        made = tuple(_explained_mistakes(results, shown, written, model, options, advance))
    return Mistakes(accuracy, confusion, calibration, written, made)


def _explained_mistakes(
    results: Path | str,
    rows: Sequence[Prediction],
    written: Written,
    model: str | Path | LoadedModel | None,
    options: ExplainOptions | None,
    advance: Advance,
) -> Iterator[Result]:
    from lrp.gallery.options import ExplainOptions  # torch, only where it is needed
    from lrp.study.explain_rows import explain_mistakes
    from lrp.study.table_model import table_model_gallery

    gallery = table_model_gallery(results, rows, model, options or ExplainOptions())
    for result in explain_mistakes(rows, written.files_of, gallery, Path(written.folder, "mistakes")):
        advance(1, len(written.photos), "explaining")
        yield result


def _sure(row: Prediction) -> str:
    return f"{row.predicted_label} {percent(row.predicted_confidence or 0)}"


def _true(row: Prediction) -> str:
    return row.true_label + ("" if row.true_confidence is None else f" {percent(row.true_confidence)}")


# --- compare ----------------------------------------------------------------------------------------------


def compare(
    a: Path | str,
    b: Path | str,
    output: Path | str | None = None,
    *,
    count: int = 10,
    root: Path | str | None = None,
    explain: bool = False,
    target: str = "true",
    models: tuple[str | Path | LoadedModel | None, str | Path | LoadedModel | None] = (None, None),
    options: ExplainOptions | tuple[ExplainOptions | None, ...] | None = None,
    advance: Advance = lambda done, total, what: None,
) -> Compared:
    """Compare two models on the same photos: what B gained and lost, and where its confidence changed most.

    Writes images.csv, classes.csv; contact sheets gained.png, lost.png and moved.png with `count` photos per group;
    comparison as .png and .svg.

    Args:
        a, b: CSVs of `lrp evaluate`, such as before and after retraining.
        output: a folder; None: one beside A.
        root: where the photos are now, if they were moved.
        explain: also draw both models' heatmaps of the photos gained and lost, on one scale: gained/NN_<name>.png and
            lost/NN_<name>.png.
        target: with `explain`, "true": the photo's true class; "predicted": the class that each model predicts.
        models: with `explain`, the models of A and B, if they are not where the rows say.
        options: with `explain`, how to explain and draw; a pair if the two models need different options (size, say).
        advance: with `explain`, called with (1, number of photos, name of the step) after each photo.

    Raises:
        PredictionsError: a file is no table of predictions, no photo is in both, or the output cannot be written.
        ModelError: with `explain`, a table's model cannot be loaded, or has changed.
        CompositeError: with `explain`, rules whose heatmap is the same for every class.
        TargetError: `target` is neither of the two.
    """
    names = _names(Path(a), Path(b))
    rows_a, rows_b = read_predictions(a), read_predictions(b)
    found = comparison.compare_predictions(rows_a, rows_b, count=count, names=names)
    groups = (found.gained[:count], found.lost[:count], found.rose, found.fell)
    shown = list({t.a.path: t.a for t in chain.from_iterable(groups)}.values())
    folder = StudyFolder(output or _beside(a, f"vs_{Path(b).stem}"), shown, root)
    folder.table(
        "images.csv",
        ("path", "true", "predicted_a", "confidence_a", "true_confidence_a", "predicted_b", "confidence_b",
         "true_confidence_b", "outcome", "true_confidence_change"),
        (
            (t.a.path, t.a.true_label, t.a.predicted_label, t.a.predicted_confidence, t.a.true_confidence,
             t.b.predicted_label, t.b.predicted_confidence, t.b.true_confidence, t.outcome, t.change)
            for t in found.twins
        ),
    )  # fmt: skip
    folder.table(
        "classes.csv",
        ("class", "images", "accuracy_a", "accuracy_b", "gained", "lost"),
        ((c.label, c.n, c.a and c.a.value, c.b and c.b.value, c.gained, c.lost) for c in found.classes),
    )
    for name, group in (("gained", found.gained), ("lost", found.lost)):
        title = f"{name.capitalize()}: the first {min(count, len(group))} of {len(group):,}"
        folder.sheet(f"{name}.png", [_change(folder, t) for t in group[:count]], title)
    folder.sheet(
        "moved.png",
        {
            "The true class's confidence rose most": [_change(folder, t) for t in found.rose],
            "It fell most": [_change(folder, t) for t in found.fell],
        },
        f"{names[0]} -> {names[1]}",
    )
    if found.twins:
        folder.plot("comparison", lambda: plots.plot_comparison(found))
    written = folder.written()
    made: tuple[Result, ...] = ()
    if explain:
        changed = {"gained": found.gained[:count], "lost": found.lost[:count]}
        made = tuple(_explained_changes((a, b), found, changed, written, target, models, options, advance))
    return Compared(found, written, made)


def _explained_changes(
    tables: tuple[Path | str, Path | str],
    found: Comparison,
    groups: Mapping[str, Sequence[Twin]],
    written: Written,
    target: str,
    models: tuple[str | Path | LoadedModel | None, str | Path | LoadedModel | None],
    options: ExplainOptions | tuple[ExplainOptions | None, ...] | None,
    advance: Advance,
) -> Iterator[Result]:
    if not any(groups.values()):
        return
    from lrp.gallery.options import ExplainOptions  # torch, only where it is needed
    from lrp.study.explain_rows import explain_changes
    from lrp.study.table_model import table_model_gallery

    each = [
        one or ExplainOptions() for one in (options if isinstance(options, tuple) else (options, options))
    ]
    rows = [t.a for t in found.twins], [t.b for t in found.twins]
    galleries = (
        table_model_gallery(tables[0], rows[0], models[0], each[0], "--model-a"),
        table_model_gallery(tables[1], rows[1], models[1], each[1], "--model-b"),
    )
    for name, group in groups.items():
        folder = Path(written.folder, name)
        for result in explain_changes(group, written.files_of, galleries, folder, target=target):
            advance(1, len(group), f"explaining {name}")
            yield result


def _change(folder: StudyFolder, twin: Twin) -> Entry:
    a, b = twin.a, twin.b
    subtitle = f"{_sure(a)} -> {_sure(b)}"
    if a.predicted_label == b.predicted_label:
        before, after = (percent(row.predicted_confidence or 0) for row in (a, b))
        subtitle = f"{a.predicted_label} {before} -> {after}" if not a.correct else f"{before} -> {after}"
    return folder.entry(a, a.true_label, subtitle)


def _names(a: Path, b: Path) -> tuple[str, str]:
    return (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))


# --- the folder -------------------------------------------------------------------------------------------


def _beside(results: Path | str, what: str) -> Path:
    results = Path(results)
    return results.with_name(f"{results.stem}_{what}")
