"""Many photos on one sheet, each with its words below. Knows numpy and Pillow, no models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lrp.errors import ImageError
from lrp.images import PhotoError, open_photo
from lrp.lettering import Font, font, spelled, typeface, wrapped

_SIDE = 208  # pixels: what a photo is fitted into, however many there are
_EM, _LINE, _GAP = 14, 19, 18
_INK, _FAINT, _FRAME, _EMPTY = (25, 25, 25), (95, 95, 95), (200, 200, 200), (226, 226, 226)


@dataclass(frozen=True, eq=False)
class _Tile:
    photo: Image.Image | None
    """Fitted into the tile; None if the file cannot be read, `reason` says why."""
    reason: str
    title: str
    subtitle: str


def contact_sheet(
    entries: Sequence[tuple[Path | str, str, str]], title: str = "", *, most: int = 200
) -> Image.Image:
    """The photos row by row, in their order, as tiles of one size.

    A file that cannot be read has a grey tile that says so. Words are wrapped to two lines below a photo.

    Args:
        entries: file, title and subtitle of each, such as the classes and their confidences.
        title: above all of them.
        most: of more entries than this the first are shown, and the sheet says of how many.

    Raises:
        ImageError: no entry.
    """
    if not entries:
        raise ImageError("expected at least one photo for a contact sheet, got none")
    tiles = [_tile(*entry) for entry in entries[:most]]
    note = f"the first {len(tiles):,} of {len(entries):,}" if len(tiles) < len(entries) else ""
    face = typeface([title, note, *(text for t in tiles for text in (t.title, t.subtitle, t.reason))])
    small, middle, large = font(face, _EM), font(face, _EM + 1), font(face, 20)

    columns = _columns(len(tiles))
    across = max(3, columns) * (_SIDE + _GAP) - _GAP  # so that few photos leave room for the title
    heading = [(text, large, _INK, 26) for text in wrapped(spelled(title, face), large, across, 2)]
    heading += [(text, small, _FAINT, 20) for text in wrapped(note, small, across, 1)]
    top = _GAP + sum(deep for *_, deep in heading) + (_GAP // 2 if heading else 0)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    words = [[_words(tile, face, small, middle) for tile in row] for row in rows]
    heights = [_SIDE + 8 + max(map(len, row)) * _LINE + _GAP for row in words]

    sheet = Image.new("RGB", (across + 2 * _GAP, top + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    y = _GAP
    for text, letters, ink, deep in heading:
        pen.text((_GAP, y + letters.size), text, font=letters, fill=ink, anchor="ls")
        y += deep
    y = top
    for row, row_words, height in zip(rows, words, heights, strict=True):
        for column, (tile, lines) in enumerate(zip(row, row_words, strict=True)):
            x = _GAP + column * (_SIDE + _GAP)
            _place(sheet, pen, tile, (x, y), face, small)
            for number, (text, letters, ink) in enumerate(lines):
                at = (x, y + _SIDE + 8 + number * _LINE + _EM)
                pen.text(at, text, font=letters, fill=ink, anchor="ls")
        y += height
    return sheet


def _tile(path: Path | str, title: str, subtitle: str) -> _Tile:
    try:
        return _Tile(_fitted(open_photo(path).pixels), "", title, subtitle)
    except PhotoError as error:
        return _Tile(None, f"{Path(path).name}: {error.reason}", title, subtitle)


def _fitted(pixels: np.ndarray) -> Image.Image:
    """Reduced, or enlarged by a whole number, so that a tiny photo's pixels stay squares."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    photo = Image.fromarray(pixels)
    if longer <= _SIDE:
        factor = _SIDE // longer
        return photo.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(width * _SIDE / longer)), max(1, round(height * _SIDE / longer)))
    return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _columns(count: int) -> int:
    """Whichever comes nearest to a wide screen's shape and leaves little of the last row empty."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns / (1.25 * rows) / 1.6)) + 1.3 * (rows * columns - count) / columns

    # Never so many that the sheet is wider than screens are.
    return min(range(1, min(count, 10) + 1), key=cost)


def _words(
    tile: _Tile, face: str | None, small: Font, middle: Font
) -> list[tuple[str, Font, tuple[int, int, int]]]:
    lines = [(text, middle, _INK) for text in wrapped(spelled(tile.title, face), middle, _SIDE, 2)]
    return lines + [(text, small, _FAINT) for text in wrapped(spelled(tile.subtitle, face), small, _SIDE, 2)]


def _place(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    tile: _Tile,
    at: tuple[int, int],
    face: str | None,
    small: Font,
) -> None:
    x, y = at
    if tile.photo is None:
        pen.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), fill=_EMPTY, outline=_FRAME)
        reason = wrapped(spelled(tile.reason, face), small, _SIDE - 24, 7)
        for number, text in enumerate(["cannot be shown:", *reason]):
            pen.text((x + 12, y + 28 + number * _LINE), text, font=small, fill=_FAINT, anchor="ls")
        return
    width, height = tile.photo.size
    upper = y + _SIDE - height  # on the tile's lower edge, where the words begin
    sheet.paste(tile.photo, (x, upper))
    pen.rectangle((x - 1, upper - 1, x + width, upper + height), outline=_FRAME)
