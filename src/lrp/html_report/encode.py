"""Encode pictures and maps as text, within a size limit.

A map is relevance summed over the channels, one signed byte per pixel: q = round(sign(r) · 127 · sqrt(|r| / s)),
s = max |r|, row by row, deflated, base64. The square root keeps small values: a thousandth of the largest
value becomes 4, not 0. The exact sums of the positive and of the negative part are stored too.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from lrp.pictures import heatmap

PHOTO = 512  # longest side of an explained photo, in pixels
THUMBS = (96, 64, 48, 32)  # longest sides of the thumbnails, in pixels
THUMB_SHARE = 0.4  # largest share of the file for thumbnails
BLOCKS = (1, 2, 4)  # side of the blocks of a map's pixels that may be summed to one pixel
THUMB_TYPE = "image/webp"


@dataclass
class Explained:
    """One photo and its maps, before the space available for them is known.

    Attributes:
        entry: the photo's entry in the document, without the data that `packed` adds.
        maps: the relevance [h, w] of each map in `entry["maps"]`.
    """

    entry: dict[str, Any]
    maps: list[np.ndarray] = field(default_factory=list)

    def packed(self, block: int) -> dict[str, Any]:
        """The entry with its maps, block x block pixels summed to one."""
        maps = [
            facts | _encode_map(relevance, block)
            for facts, relevance in zip(self.entry["maps"], self.maps, strict=True)
        ]
        return self.entry | {"maps": maps}


def _encode_map(relevance: np.ndarray, block: int = 1) -> dict[str, Any]:
    """Relevance [h, w] in the format of the page; blocks are used only if they divide both sides."""
    exact = relevance.astype(np.float64)
    positive, negative = float(exact.clip(min=0).sum()), float(exact.clip(max=0).sum())
    height, width = exact.shape
    if height % block or width % block:
        block = 1
    summed = exact.reshape(height // block, block, width // block, block).sum((1, 3))
    largest = float(np.abs(summed).max())
    q = np.sign(summed) * 127 * np.sqrt(np.abs(summed) / (largest or 1.0))
    data = zlib.compress(np.rint(q).astype(np.int8).tobytes(), 9)
    return {
        "height": height // block, "width": width // block, "block": block, "scale": largest,
        "positive": positive, "negative": negative, "sum": positive + negative,
        "data": base64.b64encode(data).decode("ascii"),
    }  # fmt: skip


def shrink_to_encode(pixels: np.ndarray, side: int) -> Image.Image:
    """A photo [H, W, 3], reduced so that its longest side is at most `side` pixels."""
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _encoded_image(image: Image.Image, kind: str, quality: int) -> str:
    """A picture as base64, without metadata."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return base64.b64encode(file.getvalue()).decode("ascii")


def data_uri(image: Image.Image) -> str:
    return "data:image/jpeg;base64," + _encoded_image(image, "JPEG", 82)


def encode_thumbnails(smalls: Sequence[Image.Image | None], space: int) -> tuple[list[str], str]:
    """The thumbnails as base64, as large as the space allows; and a note if some are left out.

    Args:
        smalls: photos with sides up to `THUMBS[0]`; None: no photo.
        space: available bytes.
    """
    made: list[str] = []
    for side in THUMBS:
        made = ["" if one is None else _encoded_image(_within(one, side), "WEBP", 55) for one in smalls]
        if sum(map(len, made)) <= space:
            return made, ""
    used, kept = 0, 0
    for i, one in enumerate(made):
        used += len(one)
        if used > space:
            made[i] = ""
        kept += bool(made[i])
    photos = sum(one is not None for one in smalls)
    return made, f"Of {photos:,} photos, {kept:,} are shown small: there was no room for more (--max-mb)."


def _within(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) <= side:
        return image
    copy = image.copy()
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy


def encode_to_fit(
    explained: Sequence[Explained], space: int, size: Callable[[dict[str, Any]], int]
) -> tuple[list[dict[str, Any]], str]:
    """As many of the first explained photos as fit; and a note if maps were summed or photos left out.

    Args:
        space: available bytes.
        size: returns the bytes of an entry in the file.
    """
    entries: list[dict[str, Any]] = []
    block = 1
    for block in BLOCKS:
        entries = [one.packed(block) for one in explained]
        if sum(map(size, entries)) <= space:
            break
    kept, used = [], 0
    for entry in entries:
        used += size(entry)
        if used > space:
            break
        kept.append(entry)
    notes = []
    if block > 1 and kept:
        notes.append(
            f"The maps are summed over squares of {block} x {block} pixels of the model's input to save room (--max-mb)."
        )
    if len(kept) < len(entries):
        notes.append(
            f"Of {len(entries):,} explained photos, {len(kept):,} are here: there was no room for more (--max-mb)."
        )
    return kept, " ".join(notes)


def encoded_palette() -> str:
    """The heatmaps' 511 colours, three bytes each, as base64."""
    return base64.b64encode(heatmap.PALETTE.tobytes()).decode("ascii")
