"""A volume or a clip with its relevance: some of its slices as pictures and heatmaps, and a bar of all slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from lrp.pictures.axis import Axis
from lrp.pictures.heatmap import (
    FAINT,
    FRAME,
    INK,
    Panel,
    heatmap_colours,
    heatmap_scale,
    resized_photo,
    resized_relevance,
    shown_size,
)
from lrp.pictures.page import BLUE, EM, LINE, RED, SCALE, Drawing, finite_maps, largest, page, part, signed
from lrp.pictures.text import font

SLICES = 6  # are drawn at most
SIDE, NARROW = 200, 9 * EM  # pixels: a slice's longer side, about; room for the texts above it
LEFT, BETWEEN, ROOM = 11 * EM, 10, 480  # pixels: labels on the left; between slices; the bar, at least about
BAR = 70  # pixels, the height of the bar of all slices


def draw_volume(
    volume: np.ndarray, panels: Sequence[Panel], *, heading: str = "", unit: str = "logits"
) -> Image.Image:
    """Slices along D as pictures with their heatmaps, and a bar of all slices; one panel below the other.

    Three channels are taken for the colours of a clip, where D is time: it is cut into `SLICES` equal times, and of
    each the frame with the largest sum of |relevance| is shown. Of any other volume these are the `SLICES` slices
    with the largest sums, in the order of D. A volume of more than one channel that is no clip has no pictures. The
    bar shows what supports in a slice above the line, and what opposes below it; marks say which slices are shown.

    Args:
        volume: [C, D, H, W].
        panels: their relevance is [C, D, H, W], summed over C here; all share one colour scale, and show the same slices.
        heading: a line at the top, such as the predicted class.
        unit: the unit of relevance.

    Raises:
        ImageError: no panel, no values, or relevance of another shape.
    """
    maps, notes = finite_maps(volume, panels, "a volume [C, D, H, W]")
    maps = [each.sum(axis=0) for each in maps]
    name = "frame" if is_clip(volume.shape) else "slice"
    sizes = np.sum([_sizes(each) for each in maps], axis=0)
    shown = _one_of_each_part(sizes) if name == "frame" else _most_relevant(sizes)
    height, width = shown_size(volume.shape[2], volume.shape[3], SIDE)
    cell = max(width, NARROW) + BETWEEN
    axis = Axis(len(sizes), max(ROOM, len(shown) * cell - BETWEEN))
    limit = heatmap_scale(each[shown] for each in maps)
    tallest = max(float(np.ptp(_above_and_below(each, axis))) for each in maps) or 1.0
    look = _Look(name, shown, (height, width), cell, axis, limit, tallest)
    pictures = stretched(volume[:, shown], volume)
    drawings = [
        Drawing(_slices(None if number else pictures, each, look), panel.title, panel.subtitle)
        for number, (panel, each) in enumerate(zip(panels, maps, strict=True))
    ]
    which = f"{len(shown)} of {len(sizes):,} {name}s are shown"
    if len(shown) == len(sizes):
        which = f"all {name}s are shown"
    elif share := part(sizes, shown):
        how = (
            f"the most relevant of each of {SLICES} equal times"
            if name == "frame"
            else "the most relevant ones"
        )
        which += f", {how}, with {share} of |relevance|"
    about = [
        f"relevance in {unit} per input {'pixel' if name == 'frame' else 'voxel'}, {SCALE} in the {name}s shown",
        f"{which}; the percentages are a {name}'s part of |relevance|",
        f"below them all {name}s: what supports above the line, what opposes below it; the marks are the {name}s shown",
    ]
    if pictures is not None:
        about.append("the input's brightness is stretched")
    return page(drawings, heading, [*about, *(f"{note}: grey" for note in notes)], limit)


def is_clip(shape: Sequence[int]) -> bool:
    """Whether a volume of this shape, [C, D, H, W], is taken for a clip: its three channels for colours, D for time."""
    return len(shape) == 4 and shape[0] == 3


def stretched(values: np.ndarray, whole: np.ndarray | None = None) -> np.ndarray | None:
    """An input [C, ...] as pixels, uint8 [..., 3], from its least to its greatest value: its normalisation is not known.

    None unless C is 1 or 3. whole: of which these values are a part.
    """
    if len(values) not in (1, 3):
        return None
    whole = values if whole is None else whole
    finite = whole[np.isfinite(whole)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    share = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    return np.moveaxis((share * 255).round().astype(np.uint8), 0, -1).repeat(3 // len(values), axis=-1)


# --- which slices -----------------------------------------------------------------------------------------


def _most_relevant(sizes: np.ndarray) -> list[int]:
    """Without slices that have no relevance, unless none has any."""
    count = min(SLICES, int((sizes > 0).sum()))
    return largest(sizes, count) if count else _one_of_each_part(sizes)


def _one_of_each_part(sizes: np.ndarray) -> list[int]:
    """The largest of each of `SLICES` equal parts, or the middle one where all are zero."""
    parts = np.array_split(np.arange(len(sizes)), min(SLICES, len(sizes)))
    return [int(each[sizes[each].argmax()] if sizes[each].any() else each[len(each) // 2]) for each in parts]


# --- the drawing ------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """What all panels share: name of a slice, indices shown, their (height, width) and distance in pixels, the axis of
    all slices, the colour scale's limit, and what the bar's height stands for."""

    name: str
    shown: list[int]
    size: tuple[int, int]
    cell: int
    axis: Axis
    limit: float
    tallest: float


def _slices(pictures: np.ndarray | None, relevance: np.ndarray, look: _Look) -> Image.Image:
    """The heatmaps of relevance [D, H, W], below the pictures of the slices shown, and the bar."""
    height, width = look.size
    tiles = [
        heatmap_colours(resized_relevance(relevance[index], look.size), look.limit) for index in look.shown
    ]
    rows = [("relevance", tiles)]
    if pictures is not None:
        rows.insert(0, ("input", [resized_photo(picture, look.size) for picture in pictures]))
    pitch = max(height, LINE) + BETWEEN
    bar_top = LINE + len(rows) * pitch + BETWEEN
    across = LEFT + max(look.axis.width, len(tiles) * look.cell)
    sheet = Image.new("RGB", (across, bar_top + BAR + 3 * LINE), "white")
    pen, letters = ImageDraw.Draw(sheet), font(None, EM)
    sizes = _sizes(relevance)
    for number, index in enumerate(look.shown):
        x = LEFT + number * look.cell
        share = part(sizes, [index]) or "0 %"
        pen.text((x, EM), f"{look.name} {index:,}", font=letters, fill=INK, anchor="ls")
        pen.text((x + look.cell - BETWEEN - 1, EM), share, font=letters, fill=FAINT, anchor="rs")
    for row, (label, tiles) in enumerate(rows):
        y = LINE + row * pitch
        pen.text((0, y + height // 2), label, font=letters, fill=INK, anchor="lm")
        for number, tile in enumerate(tiles):
            x = LEFT + number * look.cell
            sheet.paste(Image.fromarray(tile), (x, y))
            pen.rectangle((x - 1, y - 1, x + width, y + height), outline=FRAME)
    _draw_bar(sheet, bar_top, relevance, look)
    return sheet


def _sizes(relevance: np.ndarray) -> np.ndarray:
    """[D, H, W] -> [D]: the sum of |relevance|."""
    return np.nansum(np.abs(relevance), axis=(1, 2))


def _above_and_below(relevance: np.ndarray, axis: Axis) -> np.ndarray:
    """[D, H, W] -> [2, columns]: the sums of what supports, and of what opposes; together they are all relevance."""
    parts = [relevance.clip(min=0), relevance.clip(max=0)]
    return axis.sums(np.stack([np.nansum(each, axis=(1, 2)) for each in parts]))


def _draw_bar(sheet: Image.Image, top: int, relevance: np.ndarray, look: _Look) -> None:
    """All slices along D: what supports upwards, what opposes downwards; and marks at the slices shown."""
    pen, letters, axis = ImageDraw.Draw(sheet), font(None, EM), look.axis
    both = _above_and_below(relevance, axis)
    line = top + round(BAR * float(both.max()) / look.tallest)  # where zero is
    gap = 1 if axis.pixels > 3 else 0
    for sums, colour in zip(both, (RED, BLUE), strict=True):
        for column in np.flatnonzero(sums):
            x = LEFT + int(column) * axis.pixels
            end = line - round(BAR * float(sums[column]) / look.tallest)
            pen.rectangle((x, min(line, end), x + axis.pixels - 1 - gap, max(line, end)), fill=colour)
    pen.line([(LEFT, line), (LEFT + axis.width - 1, line)], fill=FAINT)
    per = look.name if axis.indices == 1 else f"{axis.indices:,} {look.name}s"
    pen.text((0, line), f"per {per}", font=letters, fill=INK, anchor="lm")
    for value, y in ((both.max(), line - 4), (both.min(), line + EM)):
        if value:
            pen.text((LEFT - 8, y), signed(float(value)), font=letters, fill=FAINT, anchor="rs")
    for index in look.shown:
        middle, y = LEFT + axis.place(index), top + BAR + 4
        pen.polygon([(middle, y), (middle - 6, y + 10), (middle + 6, y + 10)], fill=INK)
    axis.draw_ticks(pen, LEFT, top + BAR + 18, letters, look.name)
