"""geometry.py: torchvision is the oracle for the way in; labels, ramps and a pencil for the way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from lrp.errors import ImageError
from lrp.pictures.geometry import Geometry


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchvision(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    image = Image.fromarray(pixels)
    if geometry.resize is not None:
        size = list(geometry.resize) if isinstance(geometry.resize, tuple) else geometry.resize
        image = tv.resize(image, size, InterpolationMode(geometry.interpolation), antialias=True)
    return np.asarray(tv.center_crop(image, list(geometry.crop)))


sides = st.integers(1, 60)


@settings(max_examples=150, deadline=None)
@given(
    height=sides,
    width=sides,
    resize=st.one_of(st.none(), sides, st.tuples(sides, sides)),
    crop=st.tuples(sides, sides),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_apply_is_torchvision_bit_for_bit(height, width, resize, crop, interpolation):
    geometry, pixels = Geometry(resize, crop, interpolation), noise(width, height)
    seen = geometry.apply(pixels)
    assert seen.shape == (*crop, 3) and seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, torchvision(pixels, geometry))


@pytest.mark.parametrize("size", [(480, 640), (427, 333), (224, 224), (225, 1001), (100, 90)])
@pytest.mark.parametrize("geometry", [Geometry(256, (224, 224)), Geometry(235, (224, 224), "bicubic")])
def test_apply_at_usual_sizes(size, geometry):
    pixels = noise(size[1], size[0])
    np.testing.assert_array_equal(geometry.apply(pixels), torchvision(pixels, geometry))


def test_box():
    assert Geometry(50, (40, 40)).box(100, 200) == (60.0, 10.0, 140.0, 90.0)
    assert Geometry(None, (40, 60)).box(30, 100) == (20, -5, 80, 35)
    assert Geometry((50, 50), (50, 50)).box(100, 200) == (0, 0, 200, 100)


@settings(max_examples=100, deadline=None)
@given(height=sides, width=sides, crop=st.tuples(sides, sides))
def test_without_resizing_the_way_back_is_exact(height, width, crop):
    """Label every photo pixel, crop, go back: each label is where it came from, and the rest is unseen."""
    labels = np.arange(1, height * width + 1).reshape(height, width)
    pixels = np.stack([labels % 256, labels // 256, labels * 0], axis=-1).astype(np.uint8)
    geometry = Geometry(None, crop)
    seen = geometry.apply(pixels).astype(np.float32)
    back = geometry.to_photo(seen[..., 0] + 256 * seen[..., 1], height, width)
    assert back.dtype == np.float32 and back.shape == (height, width)
    there = np.isfinite(back)
    np.testing.assert_array_equal(back[there], labels[there])
    assert there.sum() == min(height, crop[0]) * min(width, crop[1])
    left, top, right, bottom = geometry.box(height, width)
    rows, columns = np.mgrid[:height, :width] + 0.5
    np.testing.assert_array_equal(
        there, (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    )


@pytest.mark.parametrize("hot", [(0, 0), (3, 17), (19, 10)])
@pytest.mark.parametrize(("height", "width"), [(100, 160), (160, 100), (400, 400), (10, 15)])
@pytest.mark.parametrize("resize", [20, 25, (20, 24), (40, 20)])
def test_a_hot_pixel_comes_back_to_where_the_model_saw_it(hot, height, width, resize):
    """Oracle: the centre of that pixel's own rectangle, from the definition of resize and crop."""
    geometry = Geometry(resize, (20, 20))
    values = np.zeros((20, 20))
    values[hot] = 1.0
    back = np.nan_to_num(geometry.to_photo(values, height, width))
    left, top, right, bottom = geometry.box(height, width)
    y, x = top + (hot[0] + 0.5) * (bottom - top) / 20, left + (hot[1] + 0.5) * (right - left) / 20
    assert 0 < back.max() <= 1
    at = np.unravel_index(back.argmax(), back.shape)
    reach = max(1, (bottom - top) / 20, (right - left) / 20) / 2 + 0.51
    assert abs(at[0] + 0.5 - y) <= reach and abs(at[1] + 0.5 - x) <= reach


def test_a_ramp_comes_back_as_a_ramp():
    """Linear in, linear out, at pixel centres: half a pixel of shift would show as 0.5."""
    geometry = Geometry(50, (40, 40))
    columns = (np.arange(40) + 0.5)[None].repeat(40, 0)  # in the model's pixels
    back = geometry.to_photo(columns, 100, 200)  # 2 photo pixels a model pixel, crop from 60 to 140
    x = np.arange(200) + 0.5
    inner = slice(62, 138)
    np.testing.assert_allclose(back[50, inner], ((x - 60) / 2)[inner], rtol=1e-6)
    assert np.isnan(back[50, :60]).all() and np.isnan(back[50, 140:]).all() and np.isnan(back[9]).all()
    assert np.isfinite(back[10:90, 60:140]).all()


def test_to_photo_by_pencil():
    """Two model pixels over four of the photo, then the reverse."""
    enlarged = Geometry((1, 2), (1, 2)).to_photo(np.array([[0.0, 4.0]]), 1, 4)
    assert enlarged.tolist() == [[0, 1, 3, 4]]
    reduced = Geometry((1, 4), (1, 4)).to_photo(np.array([[8.0, 0, 0, 1]]), 1, 2)  # weights 3, 3, 1, 0 of 7
    np.testing.assert_allclose(reduced, [[24 / 7, 3 / 7]], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    height=sides,
    width=sides,
    resize=st.one_of(st.none(), sides, st.tuples(sides, sides)),
    level=st.floats(-9, 9),
)
def test_to_photo_keeps_constants_and_never_overshoots(height, width, resize, level):
    geometry = Geometry(resize, (12, 9))
    back = geometry.to_photo(np.full((12, 9), level), height, width)
    np.testing.assert_allclose(back[np.isfinite(back)], level, atol=1e-5)
    values = np.random.default_rng(0).normal(size=(12, 9))
    back = geometry.to_photo(values, height, width)
    seen = back[np.isfinite(back)]
    assert (seen >= values.min() - 1e-5).all() and (seen <= values.max() + 1e-5).all()


def test_to_photo_refuses_what_does_not_fit():
    with pytest.raises(ImageError) as caught:
        Geometry(256, (224, 224)).to_photo(np.zeros((7, 7)), 10, 10)
    assert str(caught.value) == "expected relevance of the model's input size (224, 224), got (7, 7)"
    with pytest.raises(ImageError) as caught:
        Geometry(None, (1, 3)).to_photo(np.array([[np.nan, 0, np.inf]]), 10, 10)
    assert str(caught.value) == "expected finite relevance, got 2 of 3 values NaN or infinite"


def test_geometry_refuses_what_makes_no_sense():
    with pytest.raises(ImageError) as caught:
        Geometry(256, (224, 224), "cubic")
    assert str(caught.value) == (
        "Geometry(interpolation='cubic'): expected one of nearest, bilinear, bicubic, lanczos"
    )
    for resize, crop in ((0, (224, 224)), ((0, 5), (224, 224)), (None, (0, 1)), ((1, 2, 3), (1, 1))):
        with pytest.raises(ImageError) as caught:
            Geometry(resize, crop)
        assert str(caught.value) == (
            f"Geometry(resize={resize}, crop={crop}): expected sides of at least 1, "
            "resize as one side or (height, width), crop as (height, width) or None"
        )


def test_too_narrow_a_photo_is_refused_before_it_grows():
    """The shorter side becomes 256: 0.1 megapixels would become 6,553.6."""
    geometry = Geometry(256, (224, 224))
    with pytest.raises(ImageError) as caught:
        geometry.apply(np.zeros((100_000, 1, 3), np.uint8))
    assert str(caught.value) == (
        "1 x 100000 pixels are too narrow: with the shorter side at 256 they become 6553.6 megapixels, "
        "the limit is 100; crop the photo"
    )
    assert geometry.apply(np.zeros((1000, 1, 3), np.uint8)).shape == (224, 224, 3)


# --- without a crop: the whole photo ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (30, 101), (20, 20)])
@pytest.mark.parametrize("resize", [None, 20, 40, (24, 24)])
def test_without_a_crop_the_model_sees_the_whole_photo(size, resize):
    height, width = size
    geometry, pixels = Geometry(resize, None, "bilinear"), noise(width, height)
    seen = geometry.apply(pixels)
    whole = Image.fromarray(pixels)
    if resize is not None:
        whole = tv.resize(whole, list(resize) if isinstance(resize, tuple) else resize)
    np.testing.assert_array_equal(seen, np.asarray(whole))
    assert geometry.input_size(height, width) == seen.shape[:2]
    assert geometry.box(height, width) == (0, 0, width, height)
    back = geometry.to_photo(np.full(seen.shape[:2], 3.0), height, width)
    assert back.shape == size and np.allclose(back, 3)


def test_a_map_of_the_whole_photo_has_its_size():
    with pytest.raises(ImageError) as caught:
        Geometry(20, None).to_photo(np.zeros((20, 20)), 40, 60)
    assert str(caught.value) == "expected relevance of the model's input size (20, 30), got (20, 20)"


def test_the_input_in_words():
    assert Geometry(256, (224, 192)).input_words == "192 x 224 pixels"
    assert Geometry((50, 60), None).input_words == "60 x 50 pixels"
    assert Geometry(520, None).input_words == "the whole photo, its shorter side of 520 pixels"
    assert Geometry(None, None).input_words == "the whole photo"
