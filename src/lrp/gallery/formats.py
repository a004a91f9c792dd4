"""What is written of an explained photo: a picture, arrays, a heatmap alone. A format is one function.

A format of your own: a function with `@output_format(name, suffix)`; `ExplainOptions(save=("png", name))` then writes it.
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
    """All that a format may want to write.

    Attributes:
        sheet: facts, fingerprint, words, maps on the model's input, arrays.
        pixels: the photo, uint8 [H, W, 3].
        panels: the maps on the photo's pixels.
        style, percentile: as `ExplainOptions` has them.
        limit: of the colour scale, where it is common to several photos.
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
        suffix: in place of the picture's ".png".
        write: writes the file, whole or not at all.
        fingerprint: of the result that such a file belongs to; None where it is damaged, missing or not ours.
        arrays: whether the sheet's arrays are wanted.
    """

    suffix: str
    write: Write
    fingerprint: Callable[[Path], str | None]
    arrays: bool


FORMATS: dict[str, Format] = {}
"""Name -> format. The picture is written last: where it is, all are."""


def png_fingerprint(path: Path) -> str | None:
    return heatmap.read_metadata(path).get("fingerprint")


def output_format(
    name: str,
    suffix: str,
    fingerprint: Callable[[Path], str | None] = png_fingerprint,
    arrays: bool = False,
) -> Callable[[Write], Write]:
    """Register a function (finished, path) that writes a file; `fingerprint` reads one back, as of our PNG files."""

    def register(write: Write) -> Write:
        FORMATS[name] = Format(suffix, write, fingerprint, arrays)
        return write

    return register


def _npz_fingerprint(path: Path) -> str | None:
    try:
        with np.load(path) as saved:
            return str(saved["fingerprint"])
    except Exception:  # missing, cut short, or not ours: np.load raises what it meets
        return None


@output_format("png", ".png")
def write_picture(made: Finished, path: Path) -> None:
    """The photo with its heatmaps beside it; its metadata holds fingerprint, facts and the photo's digest."""
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
def write_arrays(made: Finished, path: Path) -> None:
    """relevance [C, H, W] float32 (of K heatmaps [K, C, H, W]), logits, target, crop (left, top, right, bottom in photo
    pixels), fingerprint."""
    if made.sheet.arrays is not None:
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **made.sheet.arrays)


@output_format("heatmap", ".heatmap.png")
def write_heatmap(made: Finished, path: Path) -> None:
    """The heatmap alone, on the photo's pixels: transparent where relevance is 0 or the model never saw. Several stand
    side by side."""
    maps = [panel.relevance for panel in made.panels]
    limit = heatmap.scale(maps, made.percentile) if made.limit is None else made.limit
    heatmap.save_png(heatmap.transparent(maps, limit), path, {"fingerprint": made.sheet.fingerprint})
