"""Tables of predictions -> a folder to look at: tables, plots and contact sheets of what `lrp.study.analysis` finds.

Each function reads what `lrp evaluate` wrote and gives the numbers back, with the files it wrote. Knows no torch.
A photo that is not where the table says is named, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lrp.errors import PredictionsError
from lrp.pictures import heatmap
from lrp.pictures.contact_sheet import Entry, contact_sheet
from lrp.storage.atomic import os_errors, write_whole
from lrp.study import analysis, comparison, plots
from lrp.study.analysis import Accuracy, Calibration, Confusion, Picks, Surest
from lrp.study.comparison import Comparison, Twin
from lrp.study.locate import class_folders, copy, locate
from lrp.study.predictions import Prediction, csv_line, neutral, read_predictions
from lrp.values import Plain, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEETS = 50
"""Of more classes than this, there is no contact sheet of each."""


@dataclass(frozen=True)
class Written(Plain):
    """What a study left.

    Attributes:
        folder: where.
        files: their names in it.
        photos: of the rows shown, path -> file.
        missing: paths of rows shown whose photo is not there.
        notes: what could not be made, and what helps; a sentence each.
    """

    folder: str
    files: tuple[str, ...]
    photos: Mapping[str, str]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Confidence(Plain):
    picks: Picks
    written: Written
    copied: tuple[str, ...]
    """Where the copies are, in the order of the picks."""


@dataclass(frozen=True)
class Errors(Plain):
    accuracy: Accuracy
    confusion: Confusion
    calibration: Calibration
    written: Written


@dataclass(frozen=True)
class Compared(Plain):
    comparison: Comparison
    written: Written


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
        count: how many of each kind.
        root: where the photos are now, if they have moved.
        copy_to: copy them there as <class folder>/<name>, as `lrp explain` reads them.

    Raises:
        PredictionsError: the table is none, or the output cannot be written.
    """
    rows = read_predictions(results)
    found = analysis.picks(rows, count)
    every = [found.overall, *found.classes]
    picked = list({row.path: row for one in every for row in (*one.highest, *one.lowest)}.values())
    folder = _Folder(output or _beside(results, "confidence"), picked, root)
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
        for name, one in zip(_file_names([c.label for c in found.classes]), found.classes, strict=True):
            folder.sheet(f"classes/{name}.png", _surest(folder, one), one.label)
    copied: tuple[str, ...] = ()
    if copy_to is not None:
        copied = tuple(map(str, copy(folder.photos, class_folders(rows), copy_to)))
    return Confidence(found, folder.written(), copied)


def _surest(folder: _Folder, one: Surest) -> dict[str, list[Entry]]:
    kinds = {"Surest": one.highest, "Least sure": one.lowest}
    return {
        kind: [folder.entry(row, row.true_label, percent(row.predicted_confidence or 0)) for row in group]
        for kind, group in kinds.items()
    }


# --- errors -----------------------------------------------------------------------------------------------


def errors(
    results: Path | str,
    output: Path | str | None = None,
    *,
    count: int = 20,
    bins: int = 15,
    root: Path | str | None = None,
) -> Errors:
    """Where a model is wrong, what it takes for what, and whether its confidences are worth their name.

    Writes classes.csv, confusion.csv, pairs.csv, mistakes.csv, calibration.csv, a contact sheet mistakes.png
    of the `count` most confident mistakes; and confusion and reliability as .png and .svg.

    Args:
        results, output, root: as in `confidence`.
        bins: of the reliability plot.

    Raises:
        PredictionsError: the table is none, or the output cannot be written.
    """
    rows = read_predictions(results)
    accuracy, confusion = analysis.accuracy(rows), analysis.confusion(rows)
    calibration = analysis.calibration(rows, bins)
    shown = confusion.mistakes[:count]
    folder = _Folder(output or _beside(results, "errors"), shown, root)
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
        folder.plot("confusion", lambda: plots.confusion_matrix(confusion))
        folder.plot("reliability", lambda: plots.reliability(calibration))
    return Errors(accuracy, confusion, calibration, folder.written())


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
) -> Compared:
    """Two models on the same photos: what B gained and lost, and where its confidence moved most.

    Writes images.csv, classes.csv; contact sheets gained.png, lost.png and moved.png of `count` photos a group;
    and comparison as .png and .svg.

    Args:
        a, b: CSVs of `lrp evaluate`, such as before and after retraining.
        output: a folder; None: one beside A.
        root: where the photos are now, if they have moved.

    Raises:
        PredictionsError: a table is none, they have no photo in common, or the output cannot be written.
    """
    names = _names(Path(a), Path(b))
    rows_a, rows_b = read_predictions(a), read_predictions(b)
    found = comparison.compare(rows_a, rows_b, count=count, names=names)
    groups = (found.gained[:count], found.lost[:count], found.rose, found.fell)
    shown = list({t.a.path: t.a for t in chain.from_iterable(groups)}.values())
    folder = _Folder(output or _beside(a, f"vs_{Path(b).stem}"), shown, root)
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
        folder.plot("comparison", lambda: plots.comparison(found))
    return Compared(found, folder.written())


def _change(folder: _Folder, twin: Twin) -> Entry:
    a, b = twin.a, twin.b
    said = f"{_sure(a)} -> {_sure(b)}"
    if a.predicted_label == b.predicted_label:
        before, after = (percent(row.predicted_confidence or 0) for row in (a, b))
        said = f"{a.predicted_label} {before} -> {after}" if not a.correct else f"{before} -> {after}"
    return folder.entry(a, a.true_label, said)


def _names(a: Path, b: Path) -> tuple[str, str]:
    return (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV, whole or not at all: numbers with ten digits, texts as no spreadsheet runs them.

    Raises:
        PredictionsError: it cannot be written.
    """
    write_whole(
        path, (csv_line([_cell(value) for value in row]) for row in chain([header], rows)), PredictionsError
    )


# --- the folder -------------------------------------------------------------------------------------------


def _beside(results: Path | str, what: str) -> Path:
    results = Path(results)
    return results.with_name(f"{results.stem}_{what}")


class _Folder:
    """Where a study writes; remembers what. Each file appears whole or not at all."""

    def __init__(self, folder: Path | str, shown: Sequence[Prediction], root: Path | str | None) -> None:
        self.folder = Path(folder)
        self.files: list[str] = []
        paths = [row.path for row in shown]
        self.photos = locate(paths, root)
        self.missing = tuple(path for path in paths if path not in self.photos)
        self.notes: list[str] = []
        if self.missing:
            moved = "" if root else "; --root says where the data is now"
            self.notes.append(
                f"{len(self.missing):,} of the {len(paths):,} photos shown are not there, the first is "
                f"{self.missing[0]}{f' below {root}' if root else ''}{moved}."
            )

    def written(self) -> Written:
        photos = {path: str(file) for path, file in self.photos.items()}
        return Written(str(self.folder), tuple(self.files), photos, self.missing, tuple(self.notes))

    def entry(self, row: Prediction, title: str, subtitle: str) -> Entry:
        return self.photos.get(row.path, Path(row.path)), title, subtitle

    def table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self._write(name, lambda place: write_table(place, header, rows))

    def sheet(self, name: str, entries: Sequence[Entry] | Mapping[str, Sequence[Entry]], title: str) -> None:
        """Nothing where there is no photo to show: an older one would not be true any more."""
        groups = entries.values() if isinstance(entries, Mapping) else [entries]
        there = set(self.photos.values())
        if not any(file in there for group in groups for file, *_ in group):
            self._remove(name)
            return
        picture = contact_sheet(entries, title)
        self._write(name, lambda place: heatmap.save_png(picture, place, {}, PredictionsError))

    def plot(self, name: str, make: Callable[[], Figure]) -> None:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            self.notes.append(f"no plot of {name}: it needs matplotlib: pip install 'lrp[study]'.")
            return
        figure = make()
        for suffix in (".png", ".svg"):
            self._write(name + suffix, lambda place: plots.save(figure, place, PredictionsError))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        place = self.folder / name
        with os_errors(place, "written", PredictionsError):
            place.parent.mkdir(parents=True, exist_ok=True)
        write(place)
        self.files.append(name)

    def _remove(self, name: str) -> None:
        with os_errors(self.folder / name, "removed", PredictionsError):
            (self.folder / name).unlink(missing_ok=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return neutral(value) if isinstance(value, str) else str(value)


def _file_names(labels: Sequence[str]) -> list[str]:
    """A file's name for each label; different ones, also where capitals do not tell files apart."""
    names: list[str] = []
    taken: set[str] = set()
    for label in labels:
        name = "".join(c if c.isalnum() or c in " ._-()," else "_" for c in label)[:80].strip(" .") or "_"
        number, chosen = 1, name
        while chosen.casefold() in taken:
            number += 1
            chosen = f"{name}.{number}"
        taken.add(chosen.casefold())
        names.append(chosen)
    return names
