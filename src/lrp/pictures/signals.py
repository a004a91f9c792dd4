"""A signal with its relevance: each channel's trace, coloured along its length, over a band of the same colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lrp.pictures.axis import Axis
from lrp.pictures.heatmap import FAINT, FRAME, INK, Panel, heatmap_colours, heatmap_scale
from lrp.pictures.page import EM, LINE, SCALE, Drawing, finite_maps, largest, page, part, signed
from lrp.pictures.text import font

CHANNELS = 16  # are drawn at most
LEFT, RIGHT = 9 * EM, 6 * EM  # pixels, of labels
TRACE, BAND, APART = 480, 10, 10  # pixels: height of all traces, of a band; to the next channel's trace
FINE, STROKE = 4, 2.4  # the trace is drawn so many times finer and then reduced; its width in pixels
NEUTRAL = (176, 176, 176)  # of a trace: zero's colour in a heatmap could not be seen on white


def draw_signal(
    signal: np.ndarray, panels: Sequence[Panel], *, heading: str = "", unit: str = "logits"
) -> Image.Image:
    """Each channel as a trace coloured by relevance, over a band of the heatmap's colours; one panel below the other.

    A long signal is drawn in columns of several samples: the band shows the sum of their relevance, so that nothing
    disappears, and the trace reaches from their least to their largest value. Of more than `CHANNELS` channels, those
    with the largest sum of |relevance| are drawn, which the picture says. Each channel's trace fills its own height.

    Args:
        signal: [C, L].
        panels: their relevance is [C, L]; all share one colour scale, and show the same channels.
        heading: a line at the top, such as the predicted class.
        unit: the unit of relevance.

    Raises:
        ImageError: no panel, no values, or relevance of another shape.
    """
    maps, notes = finite_maps(signal, panels, "a signal [C, L]")
    axis = Axis(signal.shape[1])
    sizes = np.sum([np.nansum(np.abs(each), axis=1) for each in maps], axis=0)
    shown = largest(sizes, CHANNELS)
    sums = [axis.sums(each) for each in maps]
    limit = heatmap_scale(each[shown] for each in sums)
    drawings = [
        Drawing(_channels(signal, each, shown, columns, axis, limit), panel.title, panel.subtitle)
        for panel, each, columns in zip(panels, maps, sums, strict=True)
    ]
    per = "sample" if axis.indices == 1 else f"{axis.indices:,} samples (summed)"
    about = [f"relevance in {unit} per {per}, {SCALE}; on the right its sum over each channel"]
    if len(shown) < len(sizes):
        share = part(sizes, shown)
        rest = f", {share} of it" if share else ""
        about.append(
            f"{len(shown)} of {len(sizes):,} channels are shown: those with the largest sum of |relevance|{rest}"
        )
    return page(drawings, heading, [*about, *(f"{note}: grey" for note in notes)], limit)


def _channels(
    signal: np.ndarray,
    relevance: np.ndarray,
    shown: Sequence[int],
    sums: np.ndarray,
    axis: Axis,
    limit: float,
) -> Image.Image:
    high = min(180, max(44, TRACE // len(shown)))
    step = high + BAND + APART
    sheet = Image.new("RGB", (LEFT + axis.width + RIGHT, len(shown) * step + 2 * LINE), "white")
    pen, small, tiny = ImageDraw.Draw(sheet), font(None, EM), font(None, EM - 3)
    for row, channel in enumerate(shown):
        y = row * step
        values = signal[channel].astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        share = sums[channel].clip(-limit, limit) / limit
        sheet.paste(Image.fromarray(_trace(values, share, axis, high)), (LEFT, y))
        band = heatmap_colours(sums[channel][None], limit).repeat(axis.pixels, axis=1).repeat(BAND, axis=0)
        sheet.paste(Image.fromarray(band), (LEFT, y + high))
        pen.rectangle((LEFT - 1, y + high - 1, LEFT + axis.width, y + high + BAND), outline=FRAME)
        middle = y + high // 2
        pen.text((0, middle - 2), f"channel {channel}", font=small, fill=INK, anchor="ls")
        pen.text((0, middle + LINE - 6), _span(values), font=tiny, fill=FAINT, anchor="ls")
        total = signed(float(relevance[channel].sum()))
        pen.text((sheet.width - 1, middle + EM // 3), total, font=small, fill=INK, anchor="rs")
    axis.draw_ticks(pen, LEFT, len(shown) * step, small, "sample")
    return sheet


def _span(values: np.ndarray) -> str:
    if np.isnan(values).all():
        return "not finite"
    low, high = np.nanmin(values), np.nanmax(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _trace(values: np.ndarray, share: np.ndarray, axis: Axis, height: int) -> np.ndarray:
    """uint8 [height, axis.width, 3]: the line through the samples, each in the middle of its part of the width."""
    known = values[~np.isnan(values)]
    bottom, top = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if top == bottom:  # a constant signal lies in the middle
        values, bottom, top = values - bottom, -1.0, 1.0
    low, high = _extent(values, axis)
    radius = FINE * STROKE / 2
    margin = radius + 2 * FINE
    # In fine rows from the top.
    upper = margin + (height * FINE - 2 * margin) * (top - high) / (top - bottom)
    lower = margin + (height * FINE - 2 * margin) * (top - low) / (top - bottom)
    rows = np.arange(height * FINE)[:, None] + 0.5
    drawn = np.zeros((height * FINE, len(upper)), np.bool_)
    # The line is what a disc covers that moves along it.
    for shift in range(-round(radius), round(radius) + 1):
        half = max(radius**2 - shift**2, 0.25) ** 0.5
        first, last = max(0, shift), len(upper) + min(0, shift)
        here, there = slice(first, last), slice(first - shift, last - shift)
        drawn[:, here] |= np.asarray(rows >= upper[there] - half) & np.asarray(rows <= lower[there] + half)
    cover = drawn.reshape(height, FINE, axis.width, FINE).mean(axis=(1, 3))[..., None]
    ink = _ink(share).repeat(axis.pixels, axis=0)
    return (255 * (1 - cover) + ink * cover).round().astype(np.uint8)


def _extent(values: np.ndarray, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The line's least and largest value in each fine column; NaN beside samples that are."""
    # Samples lie at fine columns; between them the line is straight.
    at = (np.arange(len(values)) + 0.5) * (axis.pixels * FINE / axis.indices)
    edges = np.interp(np.arange(axis.width * FINE + 1), at, values)
    low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
    with np.errstate(invalid="ignore"):
        np.minimum.at(low, at.astype(np.intp), values)
        np.maximum.at(high, at.astype(np.intp), values)
    return low, high


def _ink(share: np.ndarray) -> np.ndarray:
    """Colours [n, 3] of a line: grey at 0, the palette's ends at -1 and 1."""
    strength = np.nan_to_num(np.abs(share))[:, None] ** 0.7
    ends = heatmap_colours(np.sign(share)[None], 1.0)[0].astype(np.float64)
    return np.asarray(NEUTRAL) * (1 - strength) + ends * strength
