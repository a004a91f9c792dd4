"""Rows of a table -> their photos: where the data is now, which class folder each lies in, and copies of them.

Standard library alone.
"""

import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from lrp.errors import PredictionsError
from lrp.storage.atomic import replacing
from lrp.study.predictions import Prediction


def locate(paths: Sequence[str], root: Path | str | None = None) -> dict[str, Path]:
    """The file of each path that is there; in the paths' order.

    Args:
        root: where the data is now, if it has moved: takes the place of as many leading folders of the paths as
            find the most files; of equally good ones, the fewest.
    """
    if root is None:
        return {path: Path(path) for path in paths if os.path.isfile(path)}
    best: dict[str, Path] = {}
    for dropped in range(max((len(_parts(path)) for path in paths), default=0)):
        below = {path: Path(root, *_parts(path)[dropped:]) for path in paths if dropped < len(_parts(path))}
        found = {path: file for path, file in below.items() if file.is_file()}
        if len(found) > len(best):
            best = found
        if len(best) == len(paths):
            break
    return best


def _parts(path: str) -> tuple[str, ...]:
    parts = PurePosixPath(path).parts
    return parts[1:] if parts[:1] == ("/",) else parts


def class_folders(rows: Iterable[Prediction]) -> dict[str, str]:
    """The name of the class folder that each path with a true class lies in.

    The table does not say which of a path's folders it is, so: the deepest ones that tell the rows apart as their
    true labels do; the photo's own folder where none does.
    """
    labels = {row.path: row.true_label for row in rows if row.true_label}
    folders = {path: _parts(path)[:-1] for path in labels}
    for depth in range(min(map(len, folders.values()), default=0) - 1, -1, -1):
        pairs = {(labels[path], parts[depth]) for path, parts in folders.items()}
        if len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs}):
            return {path: parts[depth] for path, parts in folders.items()}
    return {path: parts[-1] if parts else "" for path, parts in folders.items()}


def copy(files: Mapping[str, Path], folders: Mapping[str, str], to: Path | str) -> Iterator[Path]:
    """Copy the files to `to`/<class folder>/<name>, each whole or not at all; gives where each one is.

    What is there is never replaced: the same content is left as it is, another one gets a number in its name.

    Raises:
        PredictionsError: a file cannot be copied.
    """
    for path, file in files.items():
        place = Path(to, folders[path], file.name)
        number = 1
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            while os.path.lexists(place) and not filecmp.cmp(file, place, shallow=False):
                number += 1
                place = place.with_name(f"{file.stem}.{number}{file.suffix}")
            if not os.path.lexists(place):
                with replacing(place) as draft:
                    shutil.copyfile(file, draft)
        except OSError as error:
            raise PredictionsError(
                f"{file}: cannot be copied to {place}: {error.strerror or error}"
            ) from error
        yield place
