"""heatmap.py and lettering.py: what a person reads off the picture is what the numbers say."""

import ast
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFont, PngImagePlugin

from helpers.pictures import expect_readable, find, record_texts
from lrp.errors import ImageError
from lrp.pictures import geometry, heatmap, outline
from lrp.pictures import photos as images
from lrp.pictures import text as lettering
from lrp.pictures.heatmap import Panel, draw, heatmap_colours, heatmap_scale, read_heatmap_metadata, save_png
from lrp.pictures.text import font, text_in_font, typeface, wrapped

SENTENCE = "4.1 of 11.4 logits (36 %), the rest: bias 61 %, ε 3 %"
floats = st.floats(-1e6, 1e6, width=32)
maps = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=floats | st.just(np.nan)
)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def relevance(height: int, width: int, border: int = 0, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    if border:
        values[:border], values[-border:], values[:, :border], values[:, -border:] = [np.nan] * 4
    return values


@pytest.fixture
def written(monkeypatch):
    return record_texts(monkeypatch)


# --- scale and colours ------------------------------------------------------------------------------------


def test_scale_by_pencil():
    assert (
        heatmap_scale([np.array([[-4.0, 1.0], [2.0, np.nan]]), np.array([[3.0, np.inf]])], 50) == 2.5
    )  # of 1 2 3 4
    assert heatmap_scale([np.array([[-4.0, 1.0]])], 100) == 4.0
    assert heatmap_scale(iter([np.array([[-4.0, 1.0]])]), 100) == 4.0


@pytest.mark.parametrize(
    "empty",
    [[], [np.zeros((2, 2))], [np.full((2, 2), np.nan)], [np.full((2, 2), np.inf)], [np.zeros((0, 3))]],
)
def test_scale_of_nothing_is_one(empty):
    assert heatmap_scale(empty) == 1.0


def test_scale_of_a_single_hot_pixel_is_that_pixel():
    one = np.zeros((100, 100))
    one[3, 4] = -7.0
    assert heatmap_scale([one], 95) == 7.0


@given(some=st.lists(maps, max_size=3), percentile=st.floats(0.1, 100))
def test_scale_is_a_limit_one_can_divide_by(some, percentile):
    limit = heatmap_scale(some, percentile)
    largest = max((float(np.nanmax(np.abs(m), initial=0)) for m in some), default=0)
    assert 0 < limit <= (largest or 1.0) * (1 + 1e-9)
    assert limit == heatmap_scale(
        [-m for m in reversed(some)], percentile
    )  # symmetric, and no map comes first


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan")])
def test_scale_refuses_other_percentiles(percentile):
    with pytest.raises(ImageError) as caught:
        heatmap_scale([np.ones((2, 2))], percentile)
    assert str(caught.value) == f"expected a percentile above 0 and up to 100, got {percentile:g}"


def luminance(rgb: np.ndarray) -> np.ndarray:
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


STEPS = np.linspace(0, 1, 101)


def test_zero_is_neutral_and_the_signs_are_red_and_blue():
    zero, plus, minus = (heatmap_colours(np.array([[v]]), 2.0)[0, 0].astype(int) for v in (0.0, 1.0, -1.0))
    assert zero[0] == zero[1] == zero[2] > 225
    assert plus[0] > plus[1] + 50 and plus[0] > plus[2] + 50
    assert minus[2] > minus[0] + 50 and minus[2] > minus[1] + 25


def test_equal_size_looks_equally_strong():
    plus, minus = (
        luminance(heatmap_colours(STEPS[None], 1.0)[0]),
        luminance(heatmap_colours(-STEPS[None], 1.0)[0]),
    )
    assert np.abs(plus - minus).max() < 0.06
    assert (np.diff(plus) <= 0.004).all() and (np.diff(minus) <= 0.004).all()
    assert plus[-1] < 0.12 and minus[-1] < 0.12


# Viénot, Brettel & Mollon 1999 for red and green; Brettel's blue, by one plane: on linear RGB.
BLINDNESS = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "tritanopia": [[1, 0.14461, -0.14461], [0, 0.85924, 0.14076], [0, 0.85924, 0.14076]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_the_signs_stay_apart_for_the_colour_blind(kind):
    def seen(rgb: np.ndarray) -> np.ndarray:
        linear = (rgb / 255) ** 2.2 @ np.array(BLINDNESS[kind]).T
        return linear.clip(0, 1) ** (1 / 2.2) * 255

    plus, minus = seen(heatmap_colours(STEPS[None], 1.0)[0]), seen(heatmap_colours(-STEPS[None], 1.0)[0])
    apart = np.abs(plus - minus).max(axis=1)
    assert (apart[30:] > 60).all() and (np.diff(apart[:30]) > -8).all()


def test_beyond_the_limit_is_the_last_colour():
    for sign in (-1, 1):
        ends = heatmap_colours(sign * np.array([[1.0, 1.0001, 99.0, np.inf]]), 1.0)[0]
        assert (ends == ends[0]).all()


@given(values=maps, limit=st.floats(1e-300, 1e9))
def test_colours_of_anything(values, limit):
    picture, mirrored = heatmap_colours(values, limit), heatmap_colours(-values, limit)
    assert picture.dtype == np.uint8 and picture.shape == (*values.shape, 3)
    seen = np.isfinite(values)
    warm = picture[..., 0].astype(int) - picture[..., 2]
    assert (warm[seen & (values > 0)] >= 0).all() and (warm[seen & (values < 0)] <= 0).all()
    assert (picture[~seen] == 150).all() and (mirrored[~seen] == 150).all()


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_colours_refuse_a_scale_without_width(limit):
    with pytest.raises(ImageError) as caught:
        heatmap_colours(np.ones((1, 1)), limit)
    assert str(caught.value) == f"expected a scale's limit above 0, got {limit:g}"


# --- the picture ------------------------------------------------------------------------------------------


def test_photo_left_and_heatmap_right_at_the_photos_own_resolution():
    image, values = photo(400, 500), relevance(400, 500, border=60)
    sheet = draw(image, [Panel(values, "cat")], title="cat, 72 %")
    left, top = find(sheet, image)
    seen = np.isfinite(values)
    right, level = find(sheet, heatmap_colours(values, heatmap_scale([values])), seen)
    assert level == top and right >= left + 500
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("style", ["heatmap", "overlay"])
@pytest.mark.parametrize("brightness", [0, 60, 128, 200, 255])
def test_what_was_not_seen_cannot_be_taken_for_zero(style, brightness):
    image = np.full((400, 400, 3), brightness, np.uint8)
    values = np.zeros((400, 400), np.float32)
    values[:, 200:] = np.nan
    sheet = np.asarray(draw(image, [Panel(values, "")], style=style)).astype(int)
    width = sheet.shape[1]
    left = width - (width - 2 * 400) // 3 - 400  # three equal gaps
    rows = slice(100, 300)
    seen, unseen = sheet[rows, left + 20 : left + 180], sheet[rows, left + 220 : left + 380]
    assert seen.std() == 0
    assert seen.mean() - np.median(unseen) > 15 and unseen.std() > 5  # darker, and hatched
    if style == "heatmap":
        assert seen.min() > 225 and unseen.max() < 180


def test_overlay_shows_the_photo_where_nothing_is_and_colour_where_something_is():
    image = np.full((400, 400, 3), (200, 120, 40), np.uint8)
    values = np.zeros((400, 400), np.float32)
    values[:, 100:200], values[:, 200:300], values[:, 300:] = 0.25, 1.0, -1.0
    sheet = np.asarray(draw(image, [Panel(values, "")], style="overlay", limit=1.0)).astype(int)
    start = sheet.shape[1] - (sheet.shape[1] - 800) // 3 - 400
    nothing, little, plus, minus = (sheet[200, start + 50 + 100 * i] for i in range(4))
    assert nothing.max() == nothing.min()
    assert 0 < little[0] - little[2] < plus[0] - plus[2] and minus[2] - minus[0] > 80


def test_tiny_photos_are_enlarged_in_whole_squares(written):
    image, values = photo(32, 32), relevance(32, 32)
    sheet = draw(image, [Panel(values, "cat", SENTENCE)], title="cat")
    find(sheet, image.repeat(11, 0).repeat(11, 1))
    find(sheet, heatmap_colours(values, heatmap_scale([values])).repeat(11, 0).repeat(11, 1))
    assert min(w.box[3] - w.box[1] for w in written if w.text == "cat") >= 8


def test_huge_photos_are_reduced_and_nothing_hot_is_lost():
    image = np.full((1000, 3000, 3), 90, np.uint8)
    values = np.full((1000, 3000), np.nan, np.float32)
    values[:, 1002:1998] = 0  # of 5 x 5 pixels that become one, the rim's are seen to three fifths
    values[403, 1501] = 5.0 * 25
    sheet = draw(image, [Panel(values, "")], max_side=600, limit=5.0)
    pixels = np.asarray(sheet).astype(int)
    left_photo = (pixels == 90).all(-1)
    top = np.argwhere(left_photo).min(0)[0]
    assert left_photo.sum() == 200 * 600
    start = (sheet.width - 2 * 600) // 3 * 2 + 600  # three equal gaps
    shown = pixels[top : top + 200, start : start + 600]
    hot = np.argwhere(shown[..., 0] - shown[..., 2] > 60)
    np.testing.assert_array_equal(hot, [(80, 300)])
    neutral = (shown == heatmap_colours(np.zeros((1, 1)), 1.0)[0, 0]).all(-1)
    assert (
        neutral[:, 200:400].sum() == 200 * 200 - 1
        and not neutral[:, :200].any()
        and not neutral[:, 400:].any()
    )


@pytest.mark.parametrize(("style", "each"), [("heatmap", 1), ("overlay", 1), ("both", 2)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_k_panels_are_k_panels(style, each, count):
    """Each panel is all red or all blue at full strength: count the areas."""
    image = np.full((300, 400, 3), (0, 90, 0), np.uint8)
    panels = [Panel(np.full((300, 400), 1.0 if i % 2 else -1.0), f"panel {i}") for i in range(count)]
    pixels = np.asarray(draw(image, panels, style=style, limit=1.0)).astype(int)
    strong = np.abs(pixels[..., 0] - pixels[..., 2]) > 60
    area = strong.sum() / (300 * 400)
    assert count * each <= area < count * each + 0.2  # the rest is the legend's bar
    assert ((pixels == (0, 90, 0)).all(-1)).sum() == 300 * 400


def test_panels_share_one_scale_unless_they_have_their_own(written):
    image = photo(400, 400)
    weak, strong = relevance(400, 400), relevance(400, 400, seed=2) * 3
    sheet = draw(image, [Panel(weak, "weak"), Panel(strong, "strong")], percentile=99)
    limit = heatmap_scale([weak, strong], 99)
    find(sheet, heatmap_colours(weak, limit))
    find(sheet, heatmap_colours(strong, limit))
    assert [w.text for w in written if w.text[0] in "-0+"] == [f"-{limit:.3g}", "0", f"+{limit:.3g}"]
    written.clear()
    own = draw(image, [Panel(weak, "weak"), Panel(strong, "strong", limit=30.0)], percentile=99)
    find(own, heatmap_colours(weak, heatmap_scale([weak], 99)))
    find(own, heatmap_colours(strong, 30.0))
    marks = [w.text for w in written if w.text[0] in "-0+"]
    assert marks[1::3] == ["0", "0"] and marks[3:] == ["-30", "0", "+30"]
    note = "relevance per input pixel, each panel on its own scale, clipped at the 99th percentile of"
    assert f"{note} |relevance|" in " ".join(w.text for w in written)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, "relevance in logits per input pixel, clipped at the 99.5th percentile of |relevance|"),
        (
            {"percentile": 91, "unit": "x"},
            "relevance in x per input pixel, clipped at the 91st percentile of |relevance|",
        ),
        (
            {"percentile": 12, "unit": "x"},
            "relevance in x per input pixel, clipped at the 12th percentile of |relevance|",
        ),
        ({"percentile": 100}, "relevance in logits per input pixel, up to the largest |relevance|"),
        (
            {"limit": 0.5, "unit": "x"},
            "relevance in x per input pixel, clipped at the 99.5th percentile of |relevance| over all images",
        ),
    ],
)
def test_the_legend_says_what_the_colours_mean(written, options, note):
    draw(
        photo(400, 900), [Panel(relevance(400, 900, border=9), "cat", SENTENCE)], title="cat, 72 %", **options
    )
    words = [w.text for w in written]
    limit = options.get("limit") or heatmap_scale(
        [relevance(400, 900, border=9)], options.get("percentile", 99.5)
    )
    reached = "4.1 of 11.4 logits (36 %), the rest: bias 61 %, epsilon 3 %"
    expected = ["cat, 72 %", "cat", reached, f"-{limit:.3g}", "0", f"+{limit:.3g}"]
    assert words[:6] == expected
    assert " ".join(words[6:]) == note + " not seen by the model"


def test_nothing_is_said_of_unseen_pixels_where_there_are_none(written):
    draw(photo(40, 90), [Panel(relevance(40, 90), "cat")])
    assert "not seen by the model" not in [w.text for w in written]


names = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(["cat", "ab " * 99, "W" * 300])


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    size=st.tuples(st.integers(1, 450), st.integers(1, 450)),
    words=st.lists(st.tuples(names, names), min_size=2, max_size=5),
    style=st.sampled_from(heatmap.STYLES),
    own=st.booleans(),
)
@example(size=(500, 1), words=[("W" * 300, "ab " * 99)] * 3, style="both", own=True)
@example(size=(1, 500), words=[("W" * 300, "ab " * 99)] * 6, style="heatmap", own=False)
def test_no_text_is_cut_or_written_over_another(written, size, words, style, own):
    written.clear()
    values = np.full(size, 1234.5, np.float32)
    values[0, 0] = np.nan
    panels = [Panel(values, *pair, limit=1e-5 if own and not i else None) for i, pair in enumerate(words[1:])]
    sheet = draw(np.zeros((*size, 3), np.uint8), panels, title=words[0][0], subtitle=words[0][1], style=style)
    assert all(text.sheet is sheet for text in written)
    expect_readable(written)


def test_drawing_changes_nothing_and_repeats_itself():
    image, values = photo(50, 70), relevance(50, 70, border=5)
    before = image.copy(), values.copy()
    first, second = (draw(image, [Panel(values, "cat", SENTENCE)], style="both") for _ in range(2))
    assert first.tobytes() == second.tobytes()
    np.testing.assert_array_equal(before[0], image)
    np.testing.assert_array_equal(before[1], values)


def test_a_map_of_nothing_is_drawn():
    for nothing in (np.zeros((40, 40)), np.full((40, 40), np.nan)):
        assert draw(photo(40, 40), [Panel(nothing, "cat")], style="both").width > 100


def test_draw_refuses_what_does_not_fit():
    image, panel = photo(40, 60), Panel(relevance(40, 60), "cat")
    for arguments, options, expected in (
        ((image, [panel]), {"style": "mask"}, "style='mask': expected one of heatmap, overlay, both"),
        ((image, []), {}, "expected at least one panel to draw, got none"),
        ((image / 255, [panel]), {}, "expected a photo as uint8 [H, W, 3], got float64 [40, 60, 3]"),
        ((image[..., 0], [panel]), {}, "expected a photo as uint8 [H, W, 3], got uint8 [40, 60]"),
        (
            (image, [panel, Panel(np.zeros((224, 224)), "dog")]),
            {},
            "panel 'dog': expected relevance on the photo's pixels [40, 60], got [224, 224]; "
            "Geometry.to_photo brings it there",
        ),
    ):
        with pytest.raises(ImageError) as caught:
            draw(*arguments, **options)
        assert str(caught.value) == expected


# --- words ------------------------------------------------------------------------------------------------


def test_the_reached_sentence_is_readable_in_the_font_every_machine_has():
    assert typeface([SENTENCE, "γ – “a” … 5 × 3 ≥ 2"]) is None
    assert text_in_font(SENTENCE, None) == "4.1 of 11.4 logits (36 %), the rest: bias 61 %, epsilon 3 %"
    assert text_in_font("γ – “a”\n… 5 × 3 ≥ 2", None) == 'gamma - "a" ... 5 x 3 >= 2'


def test_what_the_font_lacks_loses_its_accent_or_becomes_a_question_mark():
    assert text_in_font("Łódź, Äpfel, 猫", None) == "?odz, Apfel, ?"


def test_a_font_of_the_system_is_taken_only_if_it_helps(monkeypatch):
    monkeypatch.setattr(lettering, "_SYSTEM_FONTS", ("no-such-font.ttf",))
    assert typeface(["Łódź 猫"]) is None
    asked = []
    monkeypatch.setattr(lettering, "_SYSTEM_FONTS", ("poor", "rich", "never asked"))
    lacks = {None: "Łź", "poor": "Łźó", "rich": ""}
    monkeypatch.setattr(lettering, "_has", lambda face, c: asked.append(face) or c not in lacks[face])
    assert typeface(["Łódź"]) == "rich"
    assert set(asked) == {None, "poor", "rich"}


def test_pillows_font_is_told_apart_from_what_it_lacks():
    assert all(lettering._has(None, chr(c)) for c in range(32, 127))
    assert not any(lettering._has(None, c) for c in "ε–猫Ж\n\u200b\ufffe")


@settings(deadline=None)
@given(text=st.text(st.sampled_from("abcW i.,-")), width=st.integers(60, 400), lines=st.integers(1, 4))
def test_wrapped_lines_fit_and_lose_nothing_unsaid(text, width, lines):
    letters = font(None, 20)
    result = wrapped(" ".join(text.split()), letters, width, lines)
    assert len(result) <= lines and all(letters.getlength(line) <= width for line in result)
    assert all(line == line.strip() and line for line in result)
    kept = "".join(result).replace(" ", "")
    whole = "".join(text.split())
    assert kept == whole or (kept.endswith("...") and whole.startswith(kept[:-3]) and len(result) == lines)


def test_wrapping_prefers_spaces():
    letters = font(None, 20)
    assert wrapped("golden retriever puppy", letters, letters.getlength("golden retriever") + 1, 3) == [
        "golden retriever",
        "puppy",
    ]
    assert wrapped("a golden retriever", letters, letters.getlength("a golden") + 1, 1) == ["a gold..."]
    assert wrapped("", letters, 100, 2) == []


def test_a_pillow_without_freetype_is_named(monkeypatch):
    monkeypatch.setattr(ImageFont, "load_default", lambda size: ImageFont.ImageFont())
    font.cache_clear()
    with pytest.raises(ImageError) as caught:
        font(None, 20)
    assert str(caught.value) == (
        "expected a Pillow that draws text at any size, got one built without FreeType"
    )


# --- files ------------------------------------------------------------------------------------------------

PICTURE = Image.fromarray(photo(12, 17))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(), st.text(), max_size=5))
def test_metadata_comes_back(tmp_path, metadata):
    save_png(PICTURE, tmp_path / "a.png", metadata)
    assert read_heatmap_metadata(tmp_path / "a.png") == metadata
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))
        assert image.info["Software"] == "lrp"
    assert os.listdir(tmp_path) == ["a.png"]


def test_metadata_of_names_that_are_no_text(tmp_path):
    metadata = {"file": os.fsdecode(b"caf\xe9.jpg"), "target": "猫 ε", "k" * 99: "long"}
    save_png(PICTURE, tmp_path / "a.png", metadata)
    assert read_heatmap_metadata(str(tmp_path / "a.png")) == metadata


def test_a_picture_is_readable_by_whom_the_umask_lets(tmp_path):
    old = os.umask(0o022)
    try:
        save_png(PICTURE, tmp_path / "a.png", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
@pytest.mark.parametrize("older", [True, False])
def test_interrupted_writing_leaves_the_older_file_and_no_other(tmp_path, monkeypatch, stop, older):
    path = tmp_path / "a.png"
    if older:
        save_png(PICTURE, path, {"a": "older"})

    def half(self, file, *_, **__):
        file.write(b"\x89PNG\r\n\x1a\n half")
        raise stop

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(ImageError if isinstance(stop, OSError) else type(stop)) as caught:
        save_png(PICTURE, path, {"a": "newer"})
    if isinstance(stop, OSError):
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert os.listdir(tmp_path) == (["a.png"] if older else [])
    assert read_heatmap_metadata(path) == ({"a": "older"} if older else {})


def test_writing_into_no_folder_is_one_line(tmp_path):
    with pytest.raises(ImageError) as caught:
        save_png(PICTURE, tmp_path / "none/a.png", {})
    assert str(caught.value) == f"{tmp_path}/none/a.png: cannot be written: No such file or directory"


def test_truncated_anywhere_it_is_no_picture_of_ours(tmp_path):
    save_png(PICTURE, tmp_path / "a.png", {"a": "b"})
    data = (tmp_path / "a.png").read_bytes()
    for length in [*range(0, len(data), 5), *range(len(data) - 20, len(data))]:
        (tmp_path / "a.png").write_bytes(data[:length])
        assert read_heatmap_metadata(tmp_path / "a.png") == {}, length


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 900), byte=st.integers(1, 255))
def test_damaged_anywhere_it_is_no_picture_of_ours(tmp_path, at, byte):
    save_png(PICTURE, tmp_path / "a.png", {"a": "b"})
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[at % len(data)] ^= byte
    (tmp_path / "a.png").write_bytes(data)
    assert read_heatmap_metadata(tmp_path / "a.png") == {}


def test_whatever_else_has_no_metadata(tmp_path):
    for name, text in (("list", "[1]"), ("no json", "{"), ("not texts", '{"a": 1}'), ("none", None)):
        chunks = PngImagePlugin.PngInfo()
        if text is not None:
            chunks.add_text("lrp", text)
        PICTURE.save(tmp_path / name, "PNG", pnginfo=chunks)
    PICTURE.save(tmp_path / "jpeg.png", "JPEG")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert len(os.listdir(tmp_path)) == 9
    for path in [*tmp_path.iterdir(), tmp_path / "nowhere.png"]:
        assert read_heatmap_metadata(path) == {}, path


def test_rendering_knows_nothing_of_torch():
    allowed = {
        "lrp.errors", "lrp.pictures.levels", "lrp.pictures.outline", "lrp.pictures.text", "lrp.storage.atomic", "numpy", "PIL",
    }  # fmt: skip
    for module in (heatmap, images, lettering, outline, geometry):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name in allowed or name.split(".")[0] in os.sys.stdlib_module_names, name
