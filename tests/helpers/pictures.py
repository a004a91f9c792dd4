"""What a picture shows: its texts, and where a tile lies in it."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageDraw


@dataclass
class Written:
    text: str
    box: tuple[float, float, float, float]
    sheet: Image.Image
    """On which it was drawn, which may be a part of the whole picture."""


def record_texts(monkeypatch: pytest.MonkeyPatch) -> list[Written]:
    """A list that will hold every text drawn, in order, with the ink's box."""
    seen: list[Written] = []
    real = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **options):
        box = self.textbbox(xy, text, font=options["font"], anchor=options["anchor"])
        seen.append(Written(text, box, self._image))
        return real(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


def expect_readable(seen: list[Written]) -> None:
    """No text is cut off or lies over another."""
    for i, a in enumerate(seen):
        left, top, right, bottom = a.box
        assert min(left, top) >= 0 and right <= a.sheet.width and bottom <= a.sheet.height, a
        for b in seen[:i]:
            beside = left >= b.box[2] or b.box[0] >= right
            apart = top >= b.box[3] - 2 or b.box[1] >= bottom - 2  # descenders may touch a high accent
            assert beside or apart or a.sheet is not b.sheet, (a, b)


def find(sheet: Image.Image, tile: np.ndarray, where: np.ndarray | None = None) -> tuple[int, int]:
    """(left, top) of the one place in the sheet that shows this tile, pixel for pixel (those in `where`)."""
    pixels = np.asarray(sheet)
    height, width = tile.shape[:2]
    where = np.argwhere(np.ones((height, width), bool) if where is None else where)
    down, right = pixels.shape[0] - height + 1, pixels.shape[1] - width + 1
    here = np.ones((down, right), bool)
    for row, column in where[:: max(1, len(where) // 40)]:
        here &= (pixels[row : row + down, column : column + right] == tile[row, column]).all(-1)
    rows, columns = where.T
    places = [
        (int(x), int(y))
        for y, x in np.argwhere(here)
        if (pixels[y + rows, x + columns] == tile[rows, columns]).all()
    ]
    assert len(places) == 1, places
    return places[0]
