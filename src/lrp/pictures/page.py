"""Drawings below each other under one heading, with one colour bar and notes: what signals, volumes and rows share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from lrp.errors import ImageError
from lrp.pictures.heatmap import FAINT, INK, Panel, draw_colour_bar, heatmap_colours
from lrp.pictures.text import Font, font, text_in_font, typeface, wrapped

EM, LINE, GAP = 16, 22, 24  # pixels: the height of letters, from line to line, around drawings
NARROWEST = 30 * EM
RED, BLUE = (tuple(int(v) for v in heatmap_colours(np.array([[sign]]), 1.2)[0, 0]) for sign in (1.0, -1.0))
SCALE = "clipped at the 99.5th percentile of |relevance|"


class Drawing(NamedTuple):
    """One explanation's picture under its title and subtitle."""

    picture: Image.Image
    title: str
    subtitle: str


def page(
    drawings: Sequence[Drawing], heading: str, notes: Sequence[str], limit: float | None = None
) -> Image.Image:
    """From top to bottom: the heading, the drawings, a colour bar from -limit to limit (None: without), the notes."""
    face = typeface([heading, *notes, *(text for drawing in drawings for text in drawing[1:])])
    small, large = font(face, EM), font(face, round(1.2 * EM))
    width = max(NARROWEST, *(drawing.picture.width for drawing in drawings))

    def text(words: str, letters: Font, ink: tuple[int, int, int], lines: int = 3) -> Image.Image:
        found = wrapped(text_in_font(words, face), letters, width - 1, lines)
        strip = Image.new("RGB", (width, len(found) * LINE), "white")
        for number, line in enumerate(found):
            ImageDraw.Draw(strip).text((1, number * LINE + EM), line, font=letters, fill=ink, anchor="ls")
        return strip

    pieces = [text(heading, small, FAINT)]
    for drawing in drawings:
        pieces += [_space(GAP if pieces[0].height else 0)]
        pieces += [text(drawing.title, large, INK), text(drawing.subtitle, small, FAINT)]
        pieces += [_space(EM // 2), drawing.picture]
    pieces += [_space(GAP)]
    if limit is not None:
        bar = Image.new("RGB", (width, 2 * LINE), "white")
        draw_colour_bar(bar, (1, 1), 20 * EM, limit, small)
        pieces += [bar]
    pieces += [text(note, small, FAINT) for note in notes]

    sheet = Image.new("RGB", (width + 2 * GAP, sum(p.height for p in pieces) + 2 * GAP), "white")
    y = GAP
    for piece in pieces:
        sheet.paste(piece, (GAP, y))
        y += piece.height
    return sheet


def below_each_other(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """The pictures of a model's inputs, each under the input's name."""
    face = typeface(pictures)
    letters = font(face, round(1.2 * EM))
    size = max(p.width for p in pictures.values()), sum(p.height + LINE for p in pictures.values()) + GAP
    sheet = Image.new("RGB", size, "white")
    y = GAP
    for name, picture in pictures.items():
        (text,) = wrapped(text_in_font(f"input {name}", face), letters, picture.width - 2 * GAP, 1)
        ImageDraw.Draw(sheet).text((GAP, y + EM), text, font=letters, fill=INK, anchor="ls")
        sheet.paste(picture, (0, y + LINE))
        y += picture.height + LINE
    return sheet


def _space(height: int) -> Image.Image:
    return Image.new("RGB", (1, height), "white")


def finite_maps(
    values: np.ndarray, panels: Sequence[Panel], expected: str
) -> tuple[list[np.ndarray], list[str]]:
    """The panels' relevance as float64, NaN where it is not finite; and a note of how much of it is not.

    Args:
        values: the input; each panel's relevance has its shape.
        expected: that shape in words, such as "a signal [C, L]".

    Raises:
        ImageError: no panel, nothing to draw, or other shapes.
    """
    if not panels:
        raise ImageError("expected at least one panel to draw, got none")
    dimensions = expected.count(",") + 1
    for panel in panels:
        if values.ndim != dimensions or not values.size or panel.relevance.shape != values.shape:
            raise ImageError(
                f"expected {expected} with at least one value, and relevance of its shape, got {list(values.shape)} and "
                f"{list(panel.relevance.shape)}"
            )
    maps = [np.asarray(panel.relevance, dtype=np.float64) for panel in panels]
    lost = sum(int((~np.isfinite(each)).sum()) for each in maps)
    note = f"{lost:,} of {sum(each.size for each in maps):,} relevance values are not finite"
    return [np.where(np.isfinite(each), each, np.nan) for each in maps], [note] if lost else []


def largest(sizes: np.ndarray, count: int) -> list[int]:
    """The indices of the `count` largest, in ascending order; of equal ones the first."""
    return sorted(int(i) for i in np.argsort(-sizes, kind="stable")[:count])


def part(sizes: np.ndarray, shown: Sequence[int]) -> str:
    """ "87.0 %": what is shown of the sum of all sizes; "" if that is zero."""
    total = float(sizes.sum())
    return f"{100 * float(sizes[list(shown)].sum()) / total:.3g} %" if total else ""


def signed(value: float) -> str:
    if np.isnan(value):
        return "not finite"
    return f"{value:+,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:+.3g}"
