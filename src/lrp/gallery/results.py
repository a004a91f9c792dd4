"""The result of a file, and the paths of its output files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrp.pictures.photos import Found, find_photos
from lrp.values import Plain

FACTS = (
    "predicted", "predicted_index", "confidence", "target", "target_index", "target_confidence", "top5", "logit",
    "start", "relevance_sum", "health", "panels", "scale", "notes", "area",
)  # fmt: skip


@dataclass
class Result(Plain):
    """The result of one file.

    Attributes:
        path: the file.
        status: "ok" (explained now), "kept" (an earlier result with the same fingerprint is valid) or "skipped".
        output: the first of the files written for it; None if it was skipped.
        error: why it was skipped.
        facts: what was predicted and explained; the keys are `FACTS`. "area": of a model that decides at each place, the
            predicted class's share of the places; "confidence" is then its mean probability there. Of a single logit
            "confidence" is None.
    """

    path: Path
    status: str
    output: Path | None = None
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One JSON object; the keys are the same for every status."""
        empty = dict.fromkeys(FACTS)
        return {
            "path": str(self.path),
            "output": str(self.output) if self.output else None,
            "status": self.status,
            "error": self.error,
        } | {**empty, **self.facts}


def result_picture_paths(
    found: Sequence[Found], output: Path, suffixes: Sequence[str] = (".png",)
) -> list[Path]:
    """A picture path for each file: its relative path with the suffix `.png`; if that is taken, `.png` is appended.

    A photo is never overwritten, even if `output` is the folder of the photos.

    Args:
        suffixes: of all files written for a photo, in place of `.png`: a name is free if all of these files are free.
    """
    taken = {_real(f.path) for f in found}
    places = []
    for file in found:
        relative = Path(*file.relative.parts)
        place = output / relative.with_suffix(".png")
        number = 1
        while not taken.isdisjoint(files := [_real(place.with_suffix(suffix)) for suffix in suffixes]):
            extra = "" if number == 1 else f".{number}"
            place = output / relative.with_name(f"{relative.name}{extra}.png")
            number += 1
        taken.update(files)
        places.append(place)
    return places


def _real(path: Path) -> str:
    return os.path.join(os.path.realpath(path.parent), path.name)


def find_all_but_results(paths: Sequence[Path], output: Path) -> list[Found]:
    """The files below `paths`, without the results of an earlier run: files inside `output` are included only if
    they are named in `paths`."""
    root = os.path.realpath(output)
    meant = [os.path.realpath(p) for p in paths if _inside(os.path.realpath(p), root)]
    found = []
    for file in find_photos(paths):
        real = _real(file.path)
        if not _inside(real, root) or any(_inside(real, m) for m in meant):
            found.append(file)
    return found


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)
