"""A row of a table with its relevance: a bar to the right or left for each of the most relevant features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lrp.errors import ImageError
from lrp.pictures.heatmap import FAINT, INK, Panel
from lrp.pictures.page import BLUE, EM, LINE, RED, Drawing, finite_maps, largest, page, signed
from lrp.pictures.text import font, text_in_font, typeface, wrapped

FEATURES = 20  # are drawn at most
LEFT, BARS, RIGHT = 18 * EM, 400, 6 * EM  # pixels, of names, bars and numbers


def draw_row(
    row: np.ndarray,
    panels: Sequence[Panel],
    *,
    heading: str = "",
    unit: str = "logits",
    names: Sequence[str] | None = None,
) -> Image.Image:
    """A bar for each feature, the most relevant first; one panel below the other.

    Of more than `FEATURES` features, those with the largest |relevance| are drawn, and a last line has the sum of the
    others.

    Args:
        row: [F].
        panels: their relevance is [F]; all share one length of bars, and show the same features.
        heading: a line at the top, such as the predicted class.
        unit: the unit of relevance.
        names: of the F features; None: their indices.

    Raises:
        ImageError: no panel, no values, relevance of another shape, or another number of names.
    """
    maps, notes = finite_maps(row, panels, "a row [F]")
    if names is not None and len(names) != len(row):
        raise ImageError(f"expected a name for each of {len(row):,} features, got {len(names):,}")
    sizes = np.sum([np.nan_to_num(np.abs(each)) for each in maps], axis=0)
    shown = sorted(largest(sizes, FEATURES), key=lambda feature: -sizes[feature])
    labels = [f"{f'feature {f:,}' if names is None else names[f]} = {float(row[f]):.4g}" for f in shown]
    longest = float(max(np.nan_to_num(np.abs(each)).max() for each in maps)) or 1.0
    drawings = [
        Drawing(_bars(each, shown, labels, longest), panel.title, panel.subtitle)
        for panel, each in zip(panels, maps, strict=True)
    ]
    return page(drawings, heading, [f"relevance in {unit} per feature", *notes])


def _bars(relevance: np.ndarray, shown: Sequence[int], labels: Sequence[str], longest: float) -> Image.Image:
    face = typeface(labels)
    letters = font(face, EM)
    lines = [*zip(labels, relevance[list(shown)], strict=True)]
    others = np.delete(relevance, shown)
    if others.size:
        lines.append((f"sum of {others.size:,} others", np.nansum(others)))
    sheet = Image.new("RGB", (LEFT + BARS + RIGHT, len(lines) * LINE + 2), "white")
    pen, zero = ImageDraw.Draw(sheet), LEFT + BARS // 2
    for number, (label, value) in enumerate(lines):
        y = number * LINE
        (text,) = wrapped(text_in_font(label, face), letters, LEFT - EM, 1)
        ink = INK if number < len(shown) else FAINT
        pen.text((LEFT - EM, y + EM), text, font=letters, fill=ink, anchor="rs")
        # The others' sum may be longer than every bar.
        length = round(BARS / 2 * float(np.nan_to_num(value / longest).clip(-1, 1)))
        if length:
            left, right = sorted((zero, zero + length))
            pen.rectangle((left, y + 3, right, y + LINE - 4), fill=RED if value > 0 else BLUE)
        pen.text((sheet.width - 1, y + EM), signed(float(value)), font=letters, fill=ink, anchor="rs")
    pen.line([(zero, 0), (zero, sheet.height)], fill=FAINT)
    return sheet
