"""Signals: what a person reads off the trace, the band and the numbers is what the arrays hold."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pictures import expect_readable, record_texts
from lrp.errors import ImageError
from lrp.pictures.axis import Axis
from lrp.pictures.heatmap import PALETTE, Panel, heatmap_colours
from lrp.pictures.signals import STROKE, draw_signal

ZERO, RED, BLUE = PALETTE[255], PALETTE[-1], PALETTE[0]


@pytest.fixture
def written(monkeypatch):
    return record_texts(monkeypatch)


def pixels(signal, relevance, **words):
    return np.asarray(draw_signal(signal, [Panel(relevance, "")], **words)).astype(int)


def bands(picture):
    """(top, left, right) of each band: the wide strips in colours of the heatmap's palette, which have a grey frame."""
    frame = (picture == 200).all(-1)
    found = []
    for y in np.flatnonzero(frame.sum(1) > 500):
        columns = np.flatnonzero(frame[y])
        if not frame[y - 1, columns[0]]:  # the upper edge of a frame
            found.append((y + 1, columns[0] + 1, columns[-1] - 1))
    return found


def band_colours(picture, number=0):
    """uint8 [width, 3]"""
    top, left, right = bands(picture)[number]
    rows = picture[top : top + 8, left : right + 1]
    assert (rows == rows[:1]).all()
    return rows[0]


def traces(picture, count=1):
    """For each channel the pixels above its band, up to the band before it."""
    found, start = [], 0
    for top, left, right in bands(picture)[:count]:
        found.append(picture[start : top - 1, left : right + 1])
        start = top + 11
    return found


# --- the axis ---------------------------------------------------------------------------------------------


@given(length=st.integers(1, 300_000), room=st.integers(100, 1500))
def test_an_axis_has_equal_columns_that_nearly_fill_the_room(length, room):
    axis = Axis(length, room)
    assert (axis.columns - 1) * axis.indices < length <= axis.columns * axis.indices
    assert axis.pixels == 1 or axis.indices == 1
    assert room * 0.66 - 1 <= axis.width <= room * 1.51 + 1
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 8 and ticks[0] == 0 and ticks[-1] < length
    if len(ticks) > 1:
        assert re.fullmatch("[125]0*", str(ticks[1]))
        assert (np.diff(ticks) == ticks[1]).all() and len(ticks) >= min(3, length)
    for index in (0, length // 2, length - 1):
        column = int(axis.place(index) / axis.pixels)
        assert column * axis.indices <= index < (column + 1) * axis.indices


@given(length=st.integers(1, 5000), room=st.integers(100, 1500), seed=st.integers(0, 99))
def test_sums_of_columns_lose_nothing(length, room, seed):
    values = np.random.default_rng(seed).normal(size=(2, length))
    axis = Axis(length, room)
    sums = axis.sums(values)
    for row, expected in zip(sums, values, strict=True):
        alone = np.bincount(np.arange(length) // axis.indices, weights=expected)
        np.testing.assert_allclose(row, alone, atol=1e-12)
    np.testing.assert_allclose(sums.sum(1), values.sum(1), atol=1e-10)


# --- colours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 100, 960, 1400])
@pytest.mark.parametrize("sign", [1, -1])
def test_relevance_of_one_sample_colours_its_columns_alone(length, sign):
    at = length * 2 // 3
    relevance = np.zeros((2, length))
    relevance[1, at] = sign * 0.25
    picture = pixels(np.random.default_rng(0).normal(size=(2, length)), relevance)
    assert (band_colours(picture, 0) == ZERO).all()
    band = band_colours(picture, 1)
    each = len(band) / length
    assert each == round(each)
    spike = np.zeros(len(band), bool)
    spike[round(at * each) : round((at + 1) * each)] = True
    assert (band[spike] == (RED if sign > 0 else BLUE)).all() and (band[~spike] == ZERO).all()
    for number, trace in enumerate(traces(picture, 2)):
        grey = (np.ptp(trace, axis=-1) == 0).all(0)  # on white, a grey line's colours are greys
        assert (grey == ~spike).all() if number else grey.all()
    difference = traces(picture, 2)[1][:, spike].astype(int) @ [1, 0, -1]
    assert (difference * sign >= 0).all() and (difference * sign).max() > 60


def test_a_long_signal_shows_sums_and_says_so(written):
    rng = np.random.default_rng(1)
    relevance = rng.normal(size=(2, 100_000))
    picture = pixels(rng.normal(size=(2, 100_000)), relevance)
    sums = np.stack([np.bincount(np.arange(100_000) // 104, weights=row) for row in relevance])
    limit = np.percentile(np.abs(sums), 99.5)
    for number, row in enumerate(sums):
        assert (band_colours(picture, number) == heatmap_colours(row[None], limit)[0]).all()
    words = [w.text for w in written]
    assert words[-1] == (
        "relevance in logits per 104 samples (summed), clipped at the 99.5th percentile of |relevance|; on the right its "
        "sum over each channel"
    )
    assert {"0", "20,000", "40,000", "80,000", f"+{limit:.3g}", f"-{limit:.3g}"} <= set(words)
    totals = [f"{total:+.3g}" for total in relevance.sum(1)]
    assert [text for text in words if text in totals] == totals


def test_channels_and_panels_share_one_scale(written):
    relevance = np.zeros((2, 50))
    relevance[0, 10], relevance[1, 20] = 1.0, -0.5
    signal = np.random.default_rng(2).normal(size=(2, 50))
    panels = [Panel(relevance, "cat", "reached"), Panel(-0.4 * relevance, "dog")]
    picture = np.asarray(draw_signal(signal, panels, heading="predicted: cat", unit="apples")).astype(int)
    limit = np.percentile(np.abs([relevance, -0.4 * relevance]), 99.5)
    expected = [heatmap_colours(np.array([[value]]), limit)[0, 0] for value in (1.0, -0.5, -0.4, 0.2)]
    assert 0.4 < limit < 0.6
    each = len(band_colours(picture)) // 50
    for number, (at, colour) in enumerate(zip((10, 20, 10, 20), expected, strict=True)):
        assert (band_colours(picture, number)[at * each] == colour).all()
    words = [w.text for w in written]
    assert words.index("predicted: cat") < words.index("cat") < words.index("reached") < words.index("dog")
    assert words[-1].startswith("relevance in apples per sample, clipped")


def test_zero_and_what_is_not_finite(written):
    picture = pixels(np.ones((1, 30)), np.zeros((1, 30)))
    assert (band_colours(picture) == ZERO).all()
    assert not any("finite" in w.text for w in written)
    relevance = np.random.default_rng(3).normal(size=(2, 30))
    relevance[0, 4], relevance[0, 9] = np.nan, -np.inf
    signal = np.random.default_rng(4).normal(size=(2, 30))
    signal[1, 10:20] = np.nan
    picture = pixels(signal, relevance)
    band = band_colours(picture)
    each = len(band) // 30
    grey = (band == 150).all(-1)
    assert (np.flatnonzero(grey.reshape(30, each).any(1)) == [4, 9]).all()
    words = [w.text for w in written]
    assert words[-1] == "2 of 60 relevance values are not finite: grey"
    assert words.count("not finite") == 1  # the sum of channel 0
    gap = traces(picture, 2)[1][:, 10 * each : 20 * each]
    assert (gap == 255).all()
    written.clear()
    pixels(np.full((1, 30), np.nan), np.zeros((1, 30)))
    assert "not finite" in [w.text for w in written]  # the signal's span


# --- the trace --------------------------------------------------------------------------------------------


def ink(trace):
    """How much of each pixel the line covers, for a grey line on white."""
    return (255 - trace[..., 1]) / (255 - 176)


def middles(trace):
    return (ink(trace) * (np.arange(len(trace))[:, None] + 0.5)).sum(0) / ink(trace).sum(0)


def test_the_line_goes_through_the_samples():
    signal = np.sin(np.arange(960) / 70)[None] * 3 + 5
    (trace,) = traces(pixels(signal, np.zeros((1, 960))))
    at = middles(trace)
    # One straight scale from values to rows fits all columns.
    slope, start = np.polyfit(signal[0], at, 1)
    assert slope < 0 and np.abs(start + slope * signal[0] - at)[1:-1].max() < 0.3
    few = np.array([[0.0, 2.0, 1.0, 1.5]])
    (trace,) = traces(pixels(few, np.zeros((1, 4))))
    each = trace.shape[1] // 4
    at = middles(trace)[each // 2 :: each]
    slope, start = np.polyfit(few[0, [0, 2, 3]], at[[0, 2, 3]], 1)
    assert np.abs(start + slope * few[0, [0, 2, 3]] - at[[0, 2, 3]]).max() < 1.5
    assert at[1] == min(at)


@pytest.mark.parametrize(("length", "value"), [(1, -7.25), (40, 0), (960, 1e30), (20_000, 1e-30)])
def test_a_constant_signal_is_one_line_in_the_middle(length, value):
    (trace,) = traces(pixels(np.full((1, length), value), np.zeros((1, length))))
    assert np.abs(ink(trace).sum(0) - STROKE).max() < 0.45  # drawn four times finer
    assert np.ptp(middles(trace)) < 1e-9
    rows = np.flatnonzero(ink(trace).sum(1))
    assert len(rows) <= 4


def test_no_peak_of_a_long_signal_is_lost():
    signal = np.zeros((1, 96_000))
    signal[0, 54_321] = 1.0
    (trace,) = traces(pixels(signal, np.zeros((1, 96_000))))
    height = ink(trace).sum(0)
    assert trace.shape[1] == 960
    peak = 54_321 // 100
    assert height[peak] > 160 and (np.delete(height, range(peak - 2, peak + 3)) < 3).all()


# --- which channels ---------------------------------------------------------------------------------------


def test_of_many_channels_the_most_relevant_are_shown(written):
    rng = np.random.default_rng(5)
    relevance = rng.normal(size=(40, 200)) * rng.uniform(0, 1, size=(40, 1))
    picture = pixels(rng.normal(size=(40, 200)), relevance)
    sizes = np.abs(relevance).sum(1)
    chosen = sorted(sorted(range(40), key=lambda c: -sizes[c])[:16])
    words = [w.text for w in written]
    assert [w for w in words if w.startswith("channel ")] == [f"channel {c}" for c in chosen]
    share = 100 * sizes[chosen].sum() / sizes.sum()
    assert words[-1] == (
        f"16 of 40 channels are shown: those with the largest sum of |relevance|, {share:.3g} % of it"
    )
    assert len(bands(picture)) == 16
    written.clear()
    pixels(rng.normal(size=(17, 20)), np.zeros((17, 20)))
    words = [w.text for w in written]
    assert words[-1] == "16 of 17 channels are shown: those with the largest sum of |relevance|"
    assert "channel 15" in words and "channel 16" not in words


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 640), (12, 1440), (12, 1441), (16, 100_000), (500, 5)])
def test_every_size_gives_a_readable_picture_of_bounded_size(shape, written):
    rng = np.random.default_rng(6)
    signal, relevance = rng.normal(size=shape) * 1e-7, rng.normal(size=shape) * 1e-7
    panels = [
        Panel(relevance, "cat", "4.1 of 11.4 logits (36 %) reached the samples"),
        Panel(relevance, "W" * 300),
    ]
    before = signal.copy(), relevance.copy()
    picture = draw_signal(signal, panels, heading="predicted: cat  93.1 %")
    assert 800 < picture.width < 1800 and picture.height < 3200
    expect_readable(written)
    assert (signal == before[0]).all() and (relevance == before[1]).all()


def test_wrong_shapes_are_told():
    good = np.zeros((2, 5))
    for signal, panels, words in (
        (good, [], "expected at least one panel to draw, got none"),
        (good, [good, good.T], "expected a signal [C, L] with at least one value, and relevance of its shape, got [2, 5] and [5, 2]"),
        (good[0], [good[0]], "expected a signal [C, L] with at least one value, and relevance of its shape, got [5] and [5]"),
        (good[:, :0], [good[:, :0]], "expected a signal [C, L] with at least one value, and relevance of its shape, got [2, 0] and [2, 0]"),
    ):  # fmt: skip
        with pytest.raises(ImageError) as error:
            draw_signal(signal, [Panel(each, "") for each in panels])
        assert str(error.value) == words
