"""contact.py: every entry has its tile, its words, in order; what cannot be read says so."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lrp.errors import ImageError
from lrp.pictures.contact_sheet import contact_sheet

SIDE = 208


def photo(path, width, height, colour):
    Image.new("RGB", (width, height), colour).save(path)
    return path


@pytest.fixture
def written(monkeypatch):
    """Every text drawn, in order, with its ink's box."""
    seen = []
    real = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **options):
        seen.append((text, self.textbbox(xy, text, font=options["font"], anchor=options["anchor"])))
        return real(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


def box(sheet, colour):
    """left, top, right, bottom of the pixels of just this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


COLOURS = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 160, 30), (160, 30, 160)]


def test_photos_stand_in_order_fitted_into_equal_tiles(tmp_path):
    sizes = [(400, 400), (800, 400), (300, 900), (208, 104), (20, 10)]
    entries = [
        (photo(tmp_path / f"{i}.png", *size, colour), f"title {i}", f"subtitle {i}")
        for i, (size, colour) in enumerate(zip(sizes, COLOURS, strict=True))
    ]
    sheet = contact_sheet(entries, "Five")
    boxes = [box(sheet, colour) for colour in COLOURS]
    shown = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    # Reduced to the tile, or enlarged by a whole number.
    assert shown == [(208, 208), (208, 104), (69, 208), (208, 104), (200, 100)]
    # Row by row, those of a row on one lower edge, where the words begin.
    for one, following in pairwise(boxes):
        assert (one[3] == following[3] and one[0] < following[0]) or one[3] < following[1]


def test_words_stand_below_their_photo(tmp_path, written):
    entries = [
        (photo(tmp_path / f"{i}.png", 300, 200, c), f"title {i}", f"96.{i} %")
        for i, c in enumerate(COLOURS[:3])
    ]
    sheet = contact_sheet(entries, "The surest")
    assert [text for text, _ in written] == [
        "The surest",
        "title 0",
        "96.0 %",
        "title 1",
        "96.1 %",
        "title 2",
        "96.2 %",
    ]
    for number, colour in enumerate(COLOURS[:3]):
        left, _, right, bottom = box(sheet, colour)
        for _, ink in written[1 + 2 * number : 3 + 2 * number]:
            assert bottom < ink[1] < bottom + 60 and left - 2 <= ink[0] and ink[2] <= right
    assert written[0][1][3] < box(sheet, COLOURS[0])[1]  # the title above all


def test_no_word_leaves_the_sheet_or_meets_another(tmp_path, written):
    long = "a class name, of many synonyms, that is much too long for one line and even for two of them"
    entries = [(photo(tmp_path / f"{i}.png", 90, 200, c), long, long) for i, c in enumerate(COLOURS)]
    entries.append((tmp_path / ("x" * 100 + ".jpg"), long, long))
    sheet = contact_sheet(entries, long * 3)
    boxes = [ink for _, ink in written]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and top >= 0 and right <= sheet.width and bottom <= sheet.height
        for other in boxes[:i]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def test_what_cannot_be_read_has_a_grey_tile_that_says_so(tmp_path, written):
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    entries = [
        (tmp_path / "bad.jpg", "one", ""),
        (tmp_path / "gone.jpg", "two", ""),
        (photo(tmp_path / "good.png", 300, 300, COLOURS[0]), "three", ""),
    ]
    sheet = contact_sheet(entries)
    texts = [text for text, _ in written]
    assert texts.count("cannot be shown:") == 2
    said = " ".join(texts)
    assert "bad.jpg: expected a JPEG, PNG, WebP, BMP, GIF or TIFF file" in said
    assert "gone.jpg: cannot be opened: No such file or directory" in said
    assert {"one", "two", "three"} <= set(texts)
    left, top, right, bottom = box(sheet, (226, 226, 226))
    assert (
        bottom - top == SIDE - 2 and right - left == 2 * SIDE + 16
    )  # two tiles beside each other, less frames
    assert box(sheet, COLOURS[0])[3] - box(sheet, COLOURS[0])[1] == SIDE


def test_of_very_many_the_first_are_shown(tmp_path, written):
    path = photo(tmp_path / "a.png", 50, 50, COLOURS[0])
    sheet = contact_sheet([(path, str(i), "") for i in range(1234)], most=12)
    texts = [text for text, _ in written]
    assert texts[0] == "the first 12 of 1,234" and texts[1:] == [str(i) for i in range(12)]
    assert sheet.width < 2400 and sheet.height < 2000


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 10, 20, 37, 100])
def test_the_sheet_suits_a_screen(count, tmp_path):
    path = photo(tmp_path / "a.png", 50, 50, COLOURS[0])
    sheet = contact_sheet([(path, "t", "s")] * count, "title")
    assert sheet.mode == "RGB" and sheet.width <= 10 * 226 + 36
    if count > 4:
        assert 0.8 < sheet.width / sheet.height < 3.2


def test_none_is_refused():
    with pytest.raises(ImageError) as caught:
        contact_sheet([], "nothing")
    assert str(caught.value) == "expected at least one photo for a contact sheet, got none"


def test_twice_gives_the_same(tmp_path):
    entries = [(photo(tmp_path / "a.png", 500, 300, COLOURS[0]), "γ → é", "日本 96.1 %")]
    assert np.array_equal(contact_sheet(entries, "x"), contact_sheet(entries, "x"))
