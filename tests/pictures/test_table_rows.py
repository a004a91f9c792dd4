"""Rows of a table: the bars' order, sides and lengths, and the numbers beside them."""

import numpy as np
import pytest

from helpers.pictures import expect_readable, record_texts
from lrp.errors import ImageError
from lrp.pictures.heatmap import Panel
from lrp.pictures.page import BLUE, LINE, RED
from lrp.pictures.table_rows import BARS, LEFT, draw_row


@pytest.fixture
def written(monkeypatch):
    return record_texts(monkeypatch)


def test_the_largest_come_first_and_the_rest_is_one_sum(written):
    rng = np.random.default_rng(0)
    row, relevance = rng.normal(size=(2, 50))
    picture = np.asarray(draw_row(row, [Panel(relevance, "")]))
    order = sorted(range(50), key=lambda f: -abs(relevance[f]))
    labels = [f"feature {f} = {row[f]:.4g}" for f in order[:20]] + ["sum of 30 others"]
    words = [w.text for w in written]
    assert [w for w in words if w.startswith(("feature", "sum"))] == labels
    others = relevance[order[20:]].sum()
    told = [float(w) for w in words if w[0] in "+-"]
    np.testing.assert_allclose(told, [*relevance[order[:20]], others], rtol=6e-3)
    assert sum(told) == pytest.approx(relevance.sum(), abs=0.05)
    assert words[-1] == "relevance in logits per feature"
    # The bars: from the middle to the right in red, or to the left in blue.
    zero = 24 + LEFT + BARS // 2
    top = 24 + 8
    for number, value in enumerate([*relevance[order[:20]], others]):
        strip = picture[top + number * LINE + LINE // 2]
        red, blue = (np.flatnonzero((strip == colour).all(-1)) for colour in (RED, BLUE))
        length = round(BARS / 2 * abs(value) / np.abs(relevance).max())
        own, other = (red, blue) if value > 0 else (blue, red)
        assert not other.size and abs(len(own) - length) <= 1
        if length:
            assert abs((own[0] if value > 0 else own[-1]) - zero) <= 1


def test_panels_share_features_and_lengths(written):
    first, second = np.array([0.0, 4.0, 1.0]), np.array([0.0, -2.0, 0.5])
    picture = np.asarray(
        draw_row(np.arange(3.0), [Panel(first, "cat"), Panel(second, "dog")], names=["age", "mass", "größe"])
    )
    labels = ["mass = 1", "größe = 2", "age = 0"]
    assert [w.text for w in written if "=" in w.text] == labels * 2
    lengths = [(picture == colour).all(-1).sum(1).max() for colour in (RED, BLUE)]
    assert abs(lengths[0] - BARS / 2) <= 1 and abs(lengths[1] - BARS / 4) <= 1


@pytest.mark.parametrize("count", [1, 20, 21, 100_000])
def test_it_is_readable_and_small(count, written):
    row, relevance = np.random.default_rng(1).normal(size=(2, count)) * 1e-6
    names = ["W" * 100, *(f"{'name ' * 20}{i}" for i in range(1, count))]
    picture = draw_row(row, [Panel(relevance, "cat", "x" * 200)] * 2, heading="predicted: cat", names=names)
    assert picture.width < 1000 and picture.height < 1400
    expect_readable(written)


def test_zero_and_what_is_not_finite(written):
    picture = np.asarray(draw_row(np.zeros(3), [Panel(np.zeros(3), "")]))
    assert not (picture == RED).all(-1).any() and [w.text for w in written].count("+0") == 3
    written.clear()
    draw_row(np.array([1.0, np.nan]), [Panel(np.array([np.nan, 1.0]), "")])
    words = [w.text for w in written]
    assert words[:4] == ["feature 1 = nan", "+1", "feature 0 = 1", "not finite"]
    assert words[-1] == "1 of 2 relevance values are not finite"


def test_wrong_arguments_are_told():
    for row, relevance, names, words in (
        (np.zeros((1, 3)), np.zeros((1, 3)), None, "expected a row [F] with at least one value, and relevance of its shape, got [1, 3] and [1, 3]"),
        (np.zeros(3), np.zeros(3), ["a"], "expected a name for each of 3 features, got 1"),
    ):  # fmt: skip
        with pytest.raises(ImageError) as error:
            draw_row(row, [Panel(relevance, "")], names=names)
        assert str(error.value) == words
