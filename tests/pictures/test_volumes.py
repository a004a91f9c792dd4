"""Volumes and clips: which slices are shown, what they show, and where the bar and its marks lie."""

import numpy as np
import pytest

from helpers.pictures import expect_readable, find, record_texts
from lrp.errors import ImageError
from lrp.pictures.heatmap import Panel, heatmap_colours
from lrp.pictures.page import BLUE, RED
from lrp.pictures.volumes import BAR, LEFT, draw_volume, stretched


@pytest.fixture
def written(monkeypatch):
    return record_texts(monkeypatch)


def drawn(volume, *relevance, **words):
    return draw_volume(volume, [Panel(each, f"class {i}") for i, each in enumerate(relevance)], **words)


def shown(written, name="slice"):
    return [int(w.text.split()[1].replace(",", "")) for w in written if w.text.startswith(f"{name} ") and len(w.text.split()) == 2]  # fmt: skip


def tips(picture):
    """Where the tips of the marks are: dark triangles of ten rows."""
    dark = np.pad((np.asarray(picture) == 25).all(-1), 10)
    height, width = dark.shape

    def at(down, *right):
        return [dark[10 + down : height - 10 + down, 10 + x : width - 10 + x] for x in right]

    return np.all([*at(0, 0), *at(2, -1, 0, 1), *at(9, -4, 0, 4), *(~each for each in at(0, -1, 1))], axis=0)


def marks(picture):
    """The x of the first panel's marks."""
    found = tips(picture)
    return np.flatnonzero(found[found.sum(1).argmax()])


def bars(picture):
    """For each column of the page how many rows are of the bars' red, and of their blue."""
    end = np.flatnonzero(tips(picture).any(1))[-1]  # above the last marks, and so above the colour bar
    return [(np.asarray(picture)[:end] == colour).all(-1).sum(0) for colour in (RED, BLUE)]


def test_a_planted_slice_is_shown_and_marked_where_it_lies(written):
    volume = np.random.default_rng(0).normal(size=(1, 30, 12, 10))
    relevance = np.zeros_like(volume)
    relevance[0, 17, 3:5, 4] = 2.0
    picture = drawn(volume, relevance)
    assert shown(written) == [17]
    assert "100 %" in [w.text for w in written]
    reds, blues = bars(picture)
    assert not blues.any()
    left, width = 24 + LEFT, 480
    (at,) = marks(picture)
    assert abs(at - (left + (17 + 0.5) * width / 30)) <= 1
    columns = np.flatnonzero(reds)
    assert columns[0] == left + 17 * width // 30 and len(columns) == width // 30 - 1
    assert reds[columns[0]] >= BAR
    # The slice and its heatmap, enlarged in whole squares.
    find(picture, heatmap_colours(relevance[0, 17], 2.0).repeat(17, 0).repeat(17, 1))
    low, high = volume.min(), volume.max()
    grey = np.rint((volume[0, 17] - low) / (high - low) * 255).astype(np.uint8)
    find(picture, grey[..., None].repeat(3, -1).repeat(17, 0).repeat(17, 1))


def test_the_most_relevant_slices_are_shown_in_order(written):
    rng = np.random.default_rng(1)
    relevance = rng.normal(size=(2, 40, 6, 6)) * rng.uniform(size=(1, 40, 1, 1))
    picture = drawn(rng.normal(size=(2, 40, 6, 6)), relevance)
    sizes = np.abs(relevance.sum(0)).sum((1, 2))
    chosen = sorted(sorted(range(40), key=lambda d: -sizes[d])[:6])
    assert shown(written) == chosen
    words = [w.text for w in written]
    for d in chosen:
        assert f"{100 * sizes[d] / sizes.sum():.3g} %" in words
    part = f"{100 * sizes[chosen].sum() / sizes.sum():.3g} %"
    assert words[-2].startswith(
        f"6 of 40 slices are shown, the most relevant ones, with {part} of |relevance|;"
    )
    assert "input" not in words  # two channels are no picture
    limit = np.percentile(np.abs(relevance.sum(0)[chosen]), 99.5)
    for d in chosen[1::3]:
        find(picture, heatmap_colours(relevance[:, d].sum(0), limit).repeat(33, 0).repeat(33, 1))


def test_bars_are_what_supports_and_what_opposes(written):
    relevance = (
        np.random.default_rng(2).normal(size=(1, 12, 5, 5)) * np.linspace(1, 3, 12)[None, :, None, None]
    )
    picture = drawn(relevance, relevance, -relevance / 2)
    halves = [np.array([abs(part[part * sign > 0].sum()) for part in relevance[0]]) for sign in (1, -1)]
    whole = halves[0].max() + halves[1].max()
    reds, blues = bars(picture)
    left, each = 24 + LEFT, (6 * 210 - 10) // 12
    for d in range(12):
        x = left + d * each + each // 2
        # Both panels' bars lie in one column, on one scale: the second's are the first's, halved and turned over.
        for rows, own, other in ((reds, *halves), (blues, *halves[::-1])):
            assert abs(rows[x] - BAR * (own[d] + other[d] / 2) / whole) <= 6
    words = [w.text for w in written]
    assert {f"{halves[0].max():+.3g}", f"{-halves[1].max():+.3g}", f"{halves[1].max() / 2:+.3g}"} <= set(
        words
    )


def test_of_a_clip_one_frame_of_each_part_is_shown(written):
    rng = np.random.default_rng(3)
    relevance, clip = rng.normal(size=(2, 3, 18, 8, 8))
    relevance[:, 7] *= 100
    picture = drawn(clip, relevance)
    sizes = np.abs(relevance.sum(0)).sum((1, 2))
    chosen = [3 * part + int(np.argmax(sizes[3 * part : 3 * part + 3])) for part in range(6)]
    assert shown(written, "frame") == chosen and 7 in chosen
    assert [w.text for w in written][-3].startswith(
        "6 of 18 frames are shown, the most relevant of each of 6 equal times, with "
    )
    colours = np.rint((clip - clip.min()) / np.ptp(clip) * 255).astype(np.uint8).transpose(1, 2, 3, 0)
    limit = np.percentile(np.abs(relevance.sum(0)[chosen]), 99.5)
    maps = [heatmap_colours(relevance[:, d].sum(0), limit) for d in chosen]
    # Where the first frame lies, its heatmap is below it, and the other frames on its right.
    x, y = find(picture, colours[chosen[0]].repeat(25, 0).repeat(25, 1))
    page = np.asarray(picture)
    for number, (d, heat) in enumerate(zip(chosen, maps, strict=True)):
        for top, tile in ((y, colours[d]), (y + 210, heat)):
            seen = page[top : top + 200, x + 210 * number : x + 210 * number + 200]
            assert (seen == tile.repeat(25, 0).repeat(25, 1)).all()


def test_panels_show_the_same_slices_under_one_row_of_pictures(written):
    first, second = np.zeros((2, 1, 20, 4, 4))
    first[0, 3], second[0, 15] = 1.0, -0.5
    drawn(np.random.default_rng(4).normal(size=(1, 20, 4, 4)), first, second, heading="predicted: class 0")
    assert shown(written) == [3, 15] * 2
    words = [w.text for w in written]
    assert words.count("input") == 1 and words.count("relevance") == 2
    assert [w for w in words if w.endswith(" %")] == ["100 %", "0 %", "0 %", "100 %"]
    assert words[-1] == "the input's brightness is stretched"


def test_zero_and_what_is_not_finite(written):
    drawn(np.zeros((1, 20, 4, 4)), np.zeros((1, 20, 4, 4)))
    assert len(shown(written)) == 6 and max(np.diff(shown(written))) <= 4
    assert [w.text for w in written].count("0 %") == 6
    assert "6 of 20 slices are shown; the percentages are a slice's part of |relevance|" in [
        w.text for w in written
    ]
    written.clear()
    relevance = np.random.default_rng(5).normal(size=(1, 4, 5, 5))
    relevance[0, 2, 1, 1] = np.nan
    volume = np.random.default_rng(6).normal(size=(1, 4, 5, 5))
    volume[0, 0, 0, 0] = np.inf
    picture = np.asarray(drawn(volume, relevance))
    assert ((picture == 150).all(-1)).sum() >= 40 * 40
    assert [w.text for w in written][-1] == "1 of 100 relevance values are not finite: grey"
    assert "all slices are shown; the percentages are a slice's part of |relevance|" in [
        w.text for w in written
    ]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 5, 1, 1), (4, 2000, 3, 2), (3, 7, 130, 300), (1, 6, 2, 900), (1, 30, 700, 3)]
)
def test_every_size_gives_a_readable_picture_of_bounded_size(shape, written):
    volume, relevance = np.random.default_rng(7).normal(size=(2, *shape))
    panels = [Panel(relevance * 1e-4, "cat", "4.1 of 11.4 logits"), Panel(relevance * 1e4, "dog")]
    before = volume.copy(), relevance.copy()
    picture = draw_volume(volume, panels, heading="predicted: cat  93.1 %", unit="shares of the softmax")
    assert 500 < picture.width < 2000 and picture.height < 1600
    expect_readable(written)
    assert (volume == before[0]).all() and (relevance == before[1]).all()


def test_reduced_slices_keep_the_mean():
    relevance = np.zeros((1, 1, 400, 400))
    relevance[0, 0, :200] = 1.0
    picture = np.asarray(drawn(np.zeros((1, 1, 400, 400)), relevance))
    deep = (picture == heatmap_colours(np.ones((1, 1)), 1.0)[0, 0]).all(-1)
    assert deep[:, 300].sum() == 100


def test_an_input_as_pixels():
    values = np.array([[0.0, 1.0, np.nan, np.inf, -np.inf]])
    assert stretched(values).tolist() == [[0] * 3, [255] * 3, [0] * 3, [255] * 3, [0] * 3]
    assert (stretched(np.full((3, 2, 2), 7.0)) == 0).all() and stretched(np.zeros((2, 4))) is None
    assert stretched(np.array([[1.0]]), np.array([[0.0, 4.0]])).tolist() == [[64] * 3]


def test_wrong_shapes_are_told():
    words = "expected a volume [C, D, H, W] with at least one value, and relevance of its shape, got "
    for volume, relevance, got in (
        (np.zeros((1, 2, 3, 4)), np.zeros((2, 3, 4)), "[1, 2, 3, 4] and [2, 3, 4]"),
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), "[2, 3, 4] and [2, 3, 4]"),
        (np.zeros((1, 0, 3, 4)), np.zeros((1, 0, 3, 4)), "[1, 0, 3, 4] and [1, 0, 3, 4]"),
    ):
        with pytest.raises(ImageError) as error:
            drawn(volume, relevance)
        assert str(error.value) == words + got
