"""Rows of a table -> their photos: the current paths, the class folder of each, and copies of them.

Standard library only.
"""

import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from lrp.errors import PredictionsError
from lrp.storage.atomic import replacing
from lrp.study.predictions import Prediction


def locate_photos(paths: Sequence[str], root: Path | str | None = None) -> dict[str, Path]:
    """Path -> file, for each path whose file exists; in the paths' order.

    Args:
        root: where the data is now, if it was moved. It replaces leading folders of the paths: the number of folders
            with which the most files are found, and the smallest such number.
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


def locate_class_folders(rows: Iterable[Prediction]) -> dict[str, str]:
    """Path -> name of its class folder, for each path with a true class.

    The table does not store which folder of a path names the class. It is the deepest level at which folders and
    true labels correspond one to one; if there is none, the photo's parent folder.
    """
    labels = {row.path: row.true_label for row in rows if row.true_label}
    folders = {path: _parts(path)[:-1] for path in labels}
    for depth in range(min(map(len, folders.values()), default=0) - 1, -1, -1):
        pairs = {(labels[path], parts[depth]) for path, parts in folders.items()}
        if len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs}):
            return {path: parts[depth] for path, parts in folders.items()}
    return {path: parts[-1] if parts else "" for path, parts in folders.items()}


def copy_located_photos(
    files: Mapping[str, Path], folders: Mapping[str, str], to: Path | str
) -> Iterator[Path]:
    """Copy each file atomically to `to`/<class folder>/<name>; yields the path of each copy.

    Existing files are never replaced: one with the same content is used, otherwise the copy gets a number in its name.

    Raises:
        PredictionsError: a file cannot be copied.
    """
    for path, file in files.items():
        target = Path(to, folders[path], file.name)
        number = 1
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            while os.path.lexists(target) and not filecmp.cmp(file, target, shallow=False):
                number += 1
                target = target.with_name(f"{file.stem}.{number}{file.suffix}")
            if not os.path.lexists(target):
                with replacing(target) as draft:
                    shutil.copyfile(file, draft)
        except OSError as error:
            raise PredictionsError(
                f"{file}: cannot be copied to {target}: {error.strerror or error}"
            ) from error
        yield target
