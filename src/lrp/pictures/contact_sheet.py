"""Many photos on one sheet, each with text below. Depends on numpy and Pillow, not on models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lrp.errors import ImageError
from lrp.pictures.photos import PhotoError, open_photo
from lrp.pictures.text import Font, font, text_in_font, typeface, wrapped

_SIDE = 208  # pixels: the side of the square that each photo is fitted into
_EM, _LINE, _GAP = 14, 19, 18
_INK, _FAINT, _FRAME, _EMPTY = (25, 25, 25), (95, 95, 95), (200, 200, 200), (226, 226, 226)


@dataclass(frozen=True, eq=False)
class _Tile:
    photo: Image.Image | None
    """Fitted into the tile; None if the file cannot be read, for the `reason`."""
    reason: str
    title: str
    subtitle: str


Entry = tuple[Path | str, str, str]
"""File, title and subtitle of a photo, such as the classes and their confidences."""


def contact_sheet(
    entries: Sequence[Entry] | Mapping[str, Sequence[Entry]], title: str = "", *, most: int = 200
) -> Image.Image:
    """The photos row by row, in their order, as tiles of one size.

    A file that cannot be read has a grey tile with the reason. The texts below a photo are wrapped to two lines.

    Args:
        entries: the photos; or several groups of them, each under its heading.
        title: above all of them.
        most: at most this many entries of a group are shown, the first ones, with a note of how many there are.

    Raises:
        ImageError: no entry.
    """
    groups = entries if isinstance(entries, Mapping) else {"": entries}
    groups = {heading: group for heading, group in groups.items() if group}
    if not groups:
        raise ImageError("expected at least one photo for a contact sheet, got none")
    tiles = {heading: [_tile(*entry) for entry in group[:most]] for heading, group in groups.items()}
    columns = _columns(max(map(len, tiles.values())))
    across = max(3, columns) * (_SIDE + _GAP) - _GAP  # at least three columns wide, for the title
    face = typeface(
        [
            title,
            *groups,
            *(text for g in tiles.values() for t in g for text in (t.title, t.subtitle, t.reason)),
        ]
    )
    small, middle, large = font(face, _EM), font(face, _EM + 1), font(face, 20)

    def line(text: str, letters: Font, ink: tuple[int, int, int], lines: int) -> list[_Line]:
        height = round(1.35 * letters.size)
        return [
            _Line(part, letters, ink, height)
            for part in wrapped(text_in_font(text, face), letters, across, lines)
        ]

    strips: list[list[_Line] | _Strip] = [line(title, large, _INK, 2)]
    for heading, group in groups.items():
        shown = tiles[heading]
        note = f"the first {len(shown):,} of {len(group):,}" if len(shown) < len(group) else ""
        strips.append(line(heading, font(face, 17), _INK, 1) + line(note, small, _FAINT, 1))
        for start in range(0, len(shown), columns):
            row = shown[start : start + columns]
            strips.append(_Strip(row, [_text_lines(tile, face, small, middle) for tile in row]))

    sheet = Image.new("RGB", (across + 2 * _GAP, _GAP + sum(map(_height, strips))), "white")
    pen = ImageDraw.Draw(sheet)
    y = _GAP
    for strip in strips:
        if isinstance(strip, _Strip):
            for column, (tile, lines) in enumerate(zip(strip.tiles, strip.lines, strict=True)):
                x = _GAP + column * (_SIDE + _GAP)
                _paste_tile(sheet, pen, tile, (x, y + strip.height - _SIDE), face, small)
                for number, (text, letters, ink) in enumerate(lines):
                    at = (x, y + strip.height + 8 + number * _LINE + _EM)
                    pen.text(at, text, font=letters, fill=ink, anchor="ls")
        else:
            at_line = y
            for one in strip:
                pen.text(
                    (_GAP, at_line + one.letters.size), one.text, font=one.letters, fill=one.ink, anchor="ls"
                )
                at_line += one.height
        y += _height(strip)
    return sheet


@dataclass(frozen=True, eq=False)
class _Line:
    text: str
    letters: Font
    ink: tuple[int, int, int]
    height: int


@dataclass(frozen=True, eq=False)
class _Strip:
    """A row of tiles."""

    tiles: list[_Tile]
    lines: list[list[tuple[str, Font, tuple[int, int, int]]]]

    @property
    def height(self) -> int:
        """That of its tallest photo."""
        return max(tile.photo.height if tile.photo else _SIDE for tile in self.tiles)


def _height(strip: list[_Line] | _Strip) -> int:
    if isinstance(strip, _Strip):
        return strip.height + 8 + max(map(len, strip.lines)) * _LINE + _GAP
    return sum(one.height for one in strip) + (_GAP // 2 if strip else 0)


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
    """The number of columns that comes nearest to a wide screen's shape and leaves few cells empty."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns / (1.25 * rows) / 1.6)) + 1.3 * (rows * columns - count) / columns

    # At most 10, so that the sheet is not wider than a screen.
    return min(range(1, min(count, 10) + 1), key=cost)


def _text_lines(
    tile: _Tile, face: str | None, small: Font, middle: Font
) -> list[tuple[str, Font, tuple[int, int, int]]]:
    lines = [(text, middle, _INK) for text in wrapped(text_in_font(tile.title, face), middle, _SIDE, 2)]
    return lines + [
        (text, small, _FAINT) for text in wrapped(text_in_font(tile.subtitle, face), small, _SIDE, 2)
    ]


def _paste_tile(
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
        reason = wrapped(text_in_font(tile.reason, face), small, _SIDE - 24, 7)
        for number, text in enumerate(["cannot be shown:", *reason]):
            pen.text((x + 12, y + 28 + number * _LINE), text, font=small, fill=_FAINT, anchor="ls")
        return
    width, height = tile.photo.size
    upper = y + _SIDE - height  # at the lower edge of the tile, above the text
    sheet.paste(tile.photo, (x, upper))
    pen.rectangle((x - 1, upper - 1, x + width, upper + height), outline=_FRAME)
