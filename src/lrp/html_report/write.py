"""Writes the report from tables and from galleries that explain their models."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrp.errors import ImageError, ReportError
from lrp.html_report import encode, select, summary
from lrp.html_report.render import render, render_json
from lrp.pictures.photos import open_photo
from lrp.storage.atomic import write_whole
from lrp.study.comparison import Comparison, compare_predictions, compared_path
from lrp.study.locate import locate_photos
from lrp.study.predictions import read_predictions

if TYPE_CHECKING:
    from lrp.gallery.gallery import Gallery

MEGABYTE = 1_000_000
ROWS = 4_000

Progress = Callable[..., None]


@dataclass(frozen=True)
class Report:
    """The report written.

    Attributes:
        path: the file.
        bytes: its size.
        rows, explained: number of photos listed, and of those with heatmaps.
        missing: number of listed photos that do not exist.
        notes: differences from what was requested, a sentence each; they are in the report too.
    """

    path: Path
    bytes: int
    rows: int
    explained: int
    missing: int
    notes: tuple[str, ...]


def write_report(
    results: str | os.PathLike[str],
    output: str | os.PathLike[str] = "report.html",
    *,
    retrained: str | os.PathLike[str] | None = None,
    galleries: Sequence[Gallery] = (),
    explain: int = 200,
    rows: int = ROWS,
    max_mb: float = 25.0,
    root: str | Path | None = None,
    command: str = "",
    progress: Progress = lambda done, total, what="": None,
) -> Report:
    """Write a report of one table of predictions, or of two models on the same photos.

    Args:
        results: a CSV of `lrp evaluate`.
        output: the HTML file; written atomically.
        retrained: a second table, of the same photos.
        galleries: for each table, in order, the gallery of the model that made it; empty: no heatmaps.
        explain: how many photos get heatmaps, mistakes first.
        rows: how many photos are listed; the statistics are always of all photos.
        max_mb: the largest size of the file, in million bytes. To fit, thumbnails are reduced first, then the
            resolution of the maps, last the number of explained photos.
        root: where the photos are now, if they were moved.
        command: the user's command, shown in the report.
        progress: called with (number done since the last call, total, name of the step).

    Raises:
        PredictionsError: a table cannot be read, or the tables are not of the same photos.
        ModelError: a table's classes are not its model's.
        CompositeError: the maps are the same for every class.
        ReportError: jinja2 is not installed, the file cannot be written, or even without pictures exceeds `max_mb`.
    """
    output = Path(output)
    tables, comparison = _tables(results, retrained)
    if galleries and len(galleries) != len(tables):
        raise ReportError(f"{len(galleries)} galleries for {len(tables)} tables: give one for each, or none.")
    notes: list[str] = []
    every = list(dict.fromkeys(path for table in tables for path in table.rows))
    first = tables[0].rows
    wanted = (
        select.select_changes_for_maps(comparison.twins, explain)
        if comparison
        else select.select_for_maps(first, explain)
    )
    wrong = {path for table in tables for path, row in table.rows.items() if row.correct is False}
    shown = select.select_to_show(every, wrong, wanted, rows)
    if len(shown) < len(every):
        notes.append(
            f"{len(shown):,} of {len(every):,} photos are listed, mistakes first; all numbers are of all photos."
        )
    names = summary.summary_labels(tables)
    position = {label: i for i, label in enumerate(names)}
    document: dict[str, Any] = {
        "format": 1,
        "title": " and ".join(table.file for table in tables),
        "classes": names,
        "models": [summary.summary_of_model(table, position) for table in tables],
        "rows": summary.summary_of_rows(shown, tables, position),
        "thumb_type": encode.THUMB_TYPE,
        "palette": encode.encoded_palette(),
        "comparison": summary.summary_of_comparison(comparison, shown, position) if comparison else None,
        "images": [],
        "made": [],
        "notes": notes,
    }
    files = locate_photos(shown, root)
    if missing := [path for path in shown if path not in files and _readable(tables, path)]:
        moved_ = "" if root else "; --root says where the data is now"
        notes.append(
            f"{len(missing):,} of {len(shown):,} photos are not where the table says, the first is {missing[0]}{moved_}."
        )
    smalls = _smalls(shown, files, progress)
    explained = _explained(tables, wanted, shown, files, galleries, position, notes, progress)
    document["made"] = _made(tables, galleries, command)
    text = _within(document, smalls, explained, int(max_mb * MEGABYTE), notes)
    write_whole(output, [text], ReportError, parents=True)
    return Report(
        output, output.stat().st_size, len(shown), len(document["images"]), len(missing), tuple(notes)
    )


def _tables(
    results: str | os.PathLike[str], retrained: str | os.PathLike[str] | None
) -> tuple[list[summary.Table], Comparison | None]:
    """The tables, the second one's rows keyed by the first one's paths; and their comparison, if there are two."""
    paths = [Path(results)] + ([] if retrained is None else [Path(retrained)])
    read = [read_predictions(path) for path in paths]
    for path, rows in zip(paths, read, strict=True):
        if not rows:
            raise ReportError(f"{path}: no rows: there is nothing to report.")
    names = (
        [path.stem for path in paths]
        if len({path.stem for path in paths}) == len(paths)
        else [str(p) for p in paths]
    )
    keyed = [{row.path: row for row in rows} for rows in read]
    found = None
    if len(read) == 2:
        found = compare_predictions(read[0], read[1], names=(names[0], names[1]))
        if found.folders:
            back = found.folders[::-1]
            known = {compared_path(path, back): row for path, row in keyed[1].items()}
            keyed[1] = {
                (known_path if known_path in keyed[0] else row.path): row for known_path, row in known.items()
            }
    return [summary.Table(n, p.name, rows) for n, p, rows in zip(names, paths, keyed, strict=True)], found


def _readable(tables: Sequence[summary.Table], path: str) -> bool:
    return any(path in table.rows and table.rows[path].status != "unreadable" for table in tables)


def _smalls(paths: Sequence[str], files: Mapping[str, Path], progress: Progress) -> list[Any]:
    """The thumbnail of each photo; None if it cannot be read."""
    made: list[Any] = []
    for path in paths:
        try:
            made.append(
                encode.shrink_to_encode(open_photo(files[path]).pixels, encode.THUMBS[0])
                if path in files
                else None
            )
        except ImageError:
            made.append(None)  # the report shows it as unreadable if its row does
        progress(1, len(paths), "reading photos")
    return made


def _explained(
    tables: Sequence[summary.Table],
    wanted: Sequence[str],
    shown: Sequence[str],
    files: Mapping[str, Path],
    galleries: Sequence[Gallery],
    position: Mapping[str, int],
    notes: list[str],
    progress: Progress,
) -> list[encode.Explained]:
    existing = [path for path in wanted if path in files]
    if not galleries or not existing:
        return []
    from lrp.html_report.maps import Explainable, explain_maps  # torch, only where it is needed

    row = {path: i for i, path in enumerate(shown)}
    asked = [
        Explainable(row[path], files[path], tuple(table.rows.get(path) for table in tables))
        for path in existing
    ]
    made = []
    for one in explain_maps(asked, galleries, position, notes):
        made.append(one)
        progress(1, len(asked), "explaining")
    return made


def _within(
    document: dict[str, Any],
    smalls: Sequence[Any],
    explained: Sequence[encode.Explained],
    space: int,
    notes: list[str],
) -> str:
    """The page with as many pictures as fit; adds notes about the others."""
    reserve = 400 + 2 * sum(map(len, notes))  # bytes for notes that are added below
    left = space - len(render(document).encode("utf-8", "backslashreplace")) - reserve
    if left < 0:
        raise ReportError(
            f"the report is {(space - left) / MEGABYTE:.1f} MB without any picture, and --max-mb allows {space / MEGABYTE:g}: "
            "list fewer photos (--rows), or allow more."
        )
    share = encode.THUMB_SHARE if explained else 1.0
    document["rows"]["thumb"], note = encode.encode_thumbnails(smalls, int(left * share))
    left -= sum(map(len, document["rows"]["thumb"]))
    document["images"], also = encode.encode_to_fit(
        explained, left, lambda entry: len(render_json(entry).encode()) + 1
    )
    notes += [sentence for sentence in (note, also) if sentence]
    return render(document)


def _made(tables: Sequence[summary.Table], galleries: Sequence[Gallery], command: str) -> list[list[str]]:
    """How the report was made: [name, value] pairs."""
    import torch
    import torchvision

    import lrp

    facts: list[list[str]] = []
    for i, table in enumerate(tables):
        letter = f" {'AB'[i]}" if len(tables) > 1 else ""
        some = next(iter(table.rows.values()))
        facts.append([f"Predictions{letter}", table.file])
        facts.append(
            [f"Model{letter}", f"{some.model or 'not named'}, weights {some.weights or 'not named'}"]
        )
    for i, gallery in enumerate(galleries):
        letter = f" {'AB'[i]}" if len(galleries) > 1 else ""
        preset = gallery.options.composite_name or "the default for the architecture"
        size = gallery.loaded.preprocessing.geometry.input_words
        facts.append([f"Preset{letter}", f"{preset}, on {size}"])
    facts += [
        ["lrp", lrp.__version__], ["torch", str(torch.__version__)], ["torchvision", str(torchvision.__version__)],
        ["Python", platform.python_version()],
    ]  # fmt: skip
    if command:
        facts.append(["Command", command])
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = (
        datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
        if epoch.isdigit()
        else datetime.datetime.now(datetime.UTC)
    )
    facts.append(["Made on", f"{now:%Y-%m-%d %H:%M} UTC"])
    return facts
