"""outline.py: the contour of a region, by a pencil and by scipy's morphology."""

import numpy as np
import pytest
from scipy import ndimage

from lrp.errors import ImageError
from lrp.pictures.heatmap import Panel, draw
from lrp.pictures.outline import DARK, LIGHT, outlined

GREY = np.full((5, 6, 3), 128, np.uint8)


def letters(picture: np.ndarray) -> list[str]:
    """d: dark, l: light, a dot: as it was."""
    names = {DARK: "d", LIGHT: "l"}
    return ["".join(names.get(tuple(map(int, pixel)), ".") for pixel in row) for row in picture]


def test_a_contour_by_pencil():
    region = np.zeros((5, 6), bool)
    region[1:4, 1:5] = True
    before = GREY.copy()
    assert letters(outlined(GREY, region, 1)) == [
        ".llll.",
        "lddddl",
        "ld..dl",
        "lddddl",
        ".llll.",
    ]
    assert (before == GREY).all()


def test_the_pictures_edge_is_no_contour():
    region = np.zeros((5, 6), bool)
    region[:, :3] = True
    assert letters(outlined(GREY, region, 1)) == ["..dl.."] * 5
    for nothing in (np.zeros((5, 6), bool), np.ones((5, 6), bool)):
        assert (outlined(GREY, nothing) == GREY).all()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_contours_of_any_region(width):
    random = np.random.default_rng(0)
    region = ndimage.gaussian_filter(random.normal(size=(60, 80)), 4) > 0
    picture = random.integers(40, 200, (60, 80, 3), dtype=np.uint8)
    drawn = outlined(picture, region, width)
    inside = region & ~ndimage.binary_erosion(region, iterations=width, border_value=1)
    outside = ndimage.binary_dilation(region, iterations=width) & ~region
    assert (drawn[inside] == DARK).all() and (drawn[outside] == LIGHT).all()
    rest = ~(inside | outside)
    assert (drawn[rest] == picture[rest]).all() and rest.any()


def test_it_is_thin_at_every_size():
    for side, width in ((100, 1), (900, 2), (1600, 4)):
        region = np.zeros((side, side), bool)
        region[:, : side // 2] = True
        drawn = outlined(np.full((side, side, 3), 128, np.uint8), region)
        assert letters(drawn[:1])[0].strip(".") == "d" * width + "l" * width


def test_a_region_of_another_size():
    with pytest.raises(ImageError) as caught:
        outlined(GREY, np.zeros((6, 5), bool))
    assert str(caught.value) == "expected a region on the picture's pixels [5, 6], got [6, 5]"


@pytest.mark.parametrize("side", [30, 700, 2000])
def test_a_panels_region_is_outlined_on_the_photo_and_on_the_map(side):
    photo = np.full((side, side, 3), 128, np.uint8)
    region = np.zeros((side, side), bool)
    region[side // 3 : 2 * side // 3, side // 3 : 2 * side // 3] = True
    relevance = np.zeros((side, side), np.float32)
    with_region, without = (
        np.asarray(draw(photo, [Panel(relevance, "a thing", region=part)])) for part in (region, None)
    )
    changed = (with_region != without).any(2)
    columns = np.flatnonzero(changed.any(0))
    gaps = np.flatnonzero(np.diff(columns) > 1)
    middle = with_region.shape[1] // 2
    assert changed[:, :middle].sum() > 0 and changed[:, middle:].sum() > 0 and len(gaps) >= 1
    shown = min(1600, side) if side > 180 else side * round(360 / side)
    assert changed[:, :middle].any(0).sum() == pytest.approx(shown / 3, abs=0.02 * shown + 4)
