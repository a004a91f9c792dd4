"""Output formats of an explained photo: a picture, arrays, a heatmap alone. A format is one function.

To add a format, decorate a function with `@output_format(name, suffix)`; `ExplainOptions(save=("png", name))` uses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrp.gallery.sheet import Sheet
from lrp.pictures import heatmap
from lrp.storage.atomic import replacing


@dataclass(frozen=True, eq=False)
class Finished:
    """Everything that a format can write.

    Attributes:
        sheet: facts, fingerprint, texts, maps at the model's input size, arrays.
        pixels: the photo, uint8 [H, W, 3].
        panels: the maps resized to the photo's pixels.
        style, percentile: see `ExplainOptions`.
        limit: where the colour scale ends, if several photos share it; else None.
    """

    sheet: Sheet
    pixels: np.ndarray
    panels: list[heatmap.Panel]
    style: str
    percentile: float
    limit: float | None


Write = Callable[[Finished, Path], None]


class Format(NamedTuple):
    """How one kind of file is written.

    Attributes:
        suffix: replaces the picture's ".png".
        write: writes the file atomically.
        fingerprint: reads the result's fingerprint from such a file; None if it is damaged, missing or not ours.
        arrays: whether the format needs the sheet's arrays.
    """

    suffix: str
    write: Write
    fingerprint: Callable[[Path], str | None]
    arrays: bool


FORMATS: dict[str, Format] = {}
"""Name -> format. The picture is written last: if it exists, all files of the result exist."""


def _png_fingerprint(path: Path) -> str | None:
    return heatmap.read_heatmap_metadata(path).get("fingerprint")


def output_format(
    name: str,
    suffix: str,
    fingerprint: Callable[[Path], str | None] = _png_fingerprint,
    arrays: bool = False,
) -> Callable[[Write], Write]:
    """Register a function (finished, path) that writes a file; `fingerprint` reads the fingerprint from such a file."""

    def register(write: Write) -> Write:
        FORMATS[name] = Format(suffix, write, fingerprint, arrays)
        return write

    return register


def _npz_fingerprint(path: Path) -> str | None:
    try:
        with np.load(path) as saved:
            return str(saved["fingerprint"])
    except Exception:  # missing, truncated, or not ours: np.load can raise any exception
        return None


@output_format("png", ".png")
def _write_picture(made: Finished, path: Path) -> None:
    """The photo with its heatmaps beside it; the metadata holds fingerprint, facts and the photo's digest."""
    sheet = made.sheet
    picture = heatmap.draw(
        made.pixels, made.panels, title=sheet.heading[0], subtitle=sheet.heading[1], style=made.style,
        percentile=made.percentile, limit=made.limit, unit=sheet.unit,
    )  # fmt: skip
    metadata = {
        "fingerprint": sheet.fingerprint,
        "facts": json.dumps(sheet.facts),
        "photo": sheet.photo.digest,
    }
    heatmap.save_png(picture, path, metadata)


@output_format("npz", ".npz", _npz_fingerprint, arrays=True)
def _write_arrays(made: Finished, path: Path) -> None:
    """relevance [C, H, W] float32 (of K heatmaps [K, C, H, W]; of inputs with other dimensions in the model's own order),
    logits, target, crop (left, top, right, bottom in photo pixels), fingerprint."""
    if made.sheet.arrays is not None:
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **made.sheet.arrays)


@output_format("heatmap", ".heatmap.png")
def _write_heatmap(made: Finished, path: Path) -> None:
    """The heatmap alone, at the photo's size: transparent where relevance is 0 or outside the model's crop. Several
    are placed side by side."""
    maps = [panel.relevance for panel in made.panels]
    limit = heatmap.heatmap_scale(maps, made.percentile) if made.limit is None else made.limit
    heatmap.save_png(heatmap.transparent_heatmap(maps, limit), path, {"fingerprint": made.sheet.fingerprint})
