"""A long axis (samples, slices, frames) -> columns of a picture: which index lies where, sums, round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from lrp.pictures.heatmap import FAINT
from lrp.pictures.text import Font

WIDTH = 960


@dataclass(frozen=True)
class Axis:
    """`length` indices in columns of equally many indices (the last may have fewer) and of equally many pixels.

    So that equal relevance per index has the same colour in every column, the picture is about `room` pixels wide, not
    exactly: between two thirds of it and one and a half times.
    """

    length: int
    room: int = WIDTH

    @property
    def indices(self) -> int:
        """Of one column."""
        return max(1, round(self.length / self.room))

    @property
    def pixels(self) -> int:
        """Of one column."""
        return max(1, round(self.room / self.length))

    @property
    def columns(self) -> int:
        return math.ceil(self.length / self.indices)

    @property
    def width(self) -> int:
        """Of all columns, in pixels."""
        return self.columns * self.pixels

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[..., length] -> [..., columns]: the sum over each column, so that together they are the sum of all values."""
        return np.add.reduceat(values, np.arange(0, self.length, self.indices), axis=-1)

    def place(self, index: int) -> float:
        """The middle of the column that holds the index, in pixels."""
        return (index // self.indices + 0.5) * self.pixels

    def ticks(self) -> list[int]:
        """At most eight indices: multiples of 1, 2 or 5 times a power of ten."""
        power = 10 ** max(0, math.floor(math.log10(self.length / 8)))
        step = next(s for s in (power, 2 * power, 5 * power, 10 * power) if self.length <= 8 * s)
        return list(range(0, self.length, step))

    def draw_ticks(self, pen: ImageDraw.ImageDraw, x: int, y: int, letters: Font, name: str) -> None:
        """A line with ticks and their indices; (x, y) is the line's left end, and the name is at the picture's edge."""
        size = letters.size
        pen.line([(x, y), (x + self.width - 1, y)], fill=FAINT)
        for index in self.ticks():
            at = x + self.place(index)
            pen.line([(at, y), (at, y + 0.3 * size)], fill=FAINT)
            pen.text((at, y + 1.4 * size), f"{index:,}", font=letters, fill=FAINT, anchor="ms")
        pen.text((0, y + 1.4 * size), name, font=letters, fill=FAINT, anchor="ls")
