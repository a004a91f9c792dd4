"""The output folder of a study: tables, plots, contact sheets, and the paths of the photos of the rows shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lrp.errors import PredictionsError, os_errors
from lrp.pictures import heatmap
from lrp.pictures.contact_sheet import Entry, contact_sheet
from lrp.study import plots
from lrp.study.csv_lines import write_csv_table
from lrp.study.locate import locate_photos
from lrp.study.predictions import Prediction
from lrp.values import Plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Written(Plain):
    """The output of a study.

    Attributes:
        folder: the output folder.
        files: names of the files in it.
        photos: path -> file, for the rows shown.
        missing: paths of rows shown whose photo does not exist.
        notes: outputs that could not be made, and how to fix it; a sentence each.
    """

    folder: str
    files: tuple[str, ...]
    photos: Mapping[str, str]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def files_of(self) -> dict[str, Path]:
        """The photos, path -> file."""
        return {path: Path(file) for path, file in self.photos.items()}


class StudyFolder:
    """The output folder of a study, with a record of the files written. Each file is written atomically."""

    def __init__(self, folder: Path | str, shown: Sequence[Prediction], root: Path | str | None) -> None:
        self.folder = Path(folder)
        self.files: list[str] = []
        paths = [row.path for row in shown]
        self.photos = locate_photos(paths, root)
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
        self._write(name, lambda place: write_csv_table(place, header, rows))

    def sheet(self, name: str, entries: Sequence[Entry] | Mapping[str, Sequence[Entry]], title: str) -> None:
        """Write a contact sheet. Without any photo, no sheet is written and an older one is removed, as outdated."""
        groups = entries.values() if isinstance(entries, Mapping) else [entries]
        existing = set(self.photos.values())
        if not any(file in existing for group in groups for file, *_ in group):
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
            self._write(name + suffix, lambda place: plots.save_figure(figure, place, PredictionsError))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        place = self.folder / name
        with os_errors(place, "written", PredictionsError):
            place.parent.mkdir(parents=True, exist_ok=True)
        write(place)
        self.files.append(name)

    def _remove(self, name: str) -> None:
        with os_errors(self.folder / name, "removed", PredictionsError):
            (self.folder / name).unlink(missing_ok=True)


def written_file_names(labels: Sequence[str]) -> list[str]:
    """A file name for each label; all different, also on file systems that ignore case."""
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
