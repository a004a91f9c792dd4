"""photos.py: every file is made by the test that reads it."""

import hashlib
import io
import os
import pickle
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lrp.errors import ImageError
from lrp.pictures.geometry import Geometry
from lrp.pictures.photos import Found, PhotoError, find_photos, open_photo

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(width: int = 24, height: int = 16) -> Image.Image:
    """Four coloured quarters: red, green / blue, white. No turn or mirroring leaves it as it is."""
    image = Image.new("RGB", (width, height), WHITE)
    for colour, at in ((RED, (0, 0)), (GREEN, (width // 2, 0)), (BLUE, (0, height // 2))):
        image.paste(colour, (*at, at[0] + width // 2, at[1] + height // 2))
    return image


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"", *extra: tuple) -> bytes:
    """A PNG written by hand: what Pillow would not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = b"".join(chunk(name, body) for name, body in extra)
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def refusal(path: Path, **options: float) -> str:
    """The text of the refusal, less the folder; and nothing else was raised, warned or left behind."""
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PhotoError) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        open_photo(path, **options)
    assert before == Image.MAX_IMAGE_PIXELS
    text = str(caught.value)
    assert isinstance(caught.value, ImageError) and "\n" not in text
    assert text == f"{path}: {caught.value.reason}"
    return caught.value.reason


# --- what is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO"])
@pytest.mark.parametrize("name", ["photo", "photo.jpg", "photo.txt"])
def test_every_format_is_known_by_content_whatever_its_name(tmp_path, kind, name):
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "MPO": {"quality": 100},
        "WEBP": {"lossless": True},
    }
    data = saved(corners(), kind, **options.get(kind, {}))
    (tmp_path / name).write_bytes(data)
    photo = open_photo(tmp_path / name)
    assert photo.path == tmp_path / name
    assert photo.digest == hashlib.sha256(data).hexdigest()
    assert photo.pixels.dtype == np.uint8 and photo.pixels.flags.writeable and photo.pixels.flags.c_contiguous
    difference = np.abs(photo.pixels.astype(int) - np.asarray(corners()))[2:-2, 2:-2]
    assert photo.pixels.shape == (16, 24, 3)
    assert difference.max() <= (0 if kind not in ("JPEG", "MPO") else 130)
    assert (
        np.abs(photo.pixels[[3, 3, -4, -4], [3, -4, 3, -4]] - np.array([RED, GREEN, BLUE, WHITE])).max() <= 6
    )


def oriented(orientation: int, kind: str) -> bytes:
    """The file a camera writes when held that way: stored turned, with the tag that turns it upright."""
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    image = corners()
    for step in undo:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    return saved(image, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_give_the_same_pixels(tmp_path, kind, orientation):
    path = tmp_path / "photo"
    path.write_bytes(oriented(orientation, kind))
    pixels = open_photo(path).pixels
    assert pixels.shape == (16, 24, 3)
    assert np.abs(pixels.astype(int) - np.asarray(corners())).max() <= (3 if kind == "JPEG" else 0)


def test_all_eight_orientations_give_the_same_map(tmp_path):
    geometry, maps = Geometry(12, (8, 8)), []
    for orientation in range(1, 9):
        (tmp_path / "photo").write_bytes(oriented(orientation, "PNG"))
        pixels = open_photo(tmp_path / "photo").pixels
        seen = geometry.apply(pixels)[..., 0].astype(
            np.float32
        )  # a "relevance" that depends on what was seen
        maps.append(geometry.to_photo(seen, *pixels.shape[:2]))
    for other in maps[1:]:
        np.testing.assert_array_equal(maps[0], other)
    assert np.nanmin(maps[0]) < np.nanmax(maps[0])


@pytest.mark.parametrize(
    "block", [b"", b"\xff" * 40, b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 30, b"II*\0\x08"]
)
def test_damaged_exif_is_no_reason_to_refuse(tmp_path, block):
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(corners(), "JPEG", exif=b"Exif\0\0" + block))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_photo(path).pixels.shape == (16, 24, 3)


def test_nonsense_orientation_means_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 99
    (tmp_path / "photo").write_bytes(saved(corners(), "PNG", exif=exif))
    np.testing.assert_array_equal(open_photo(tmp_path / "photo").pixels, np.asarray(corners()))


RAMP = np.array([[0, 1000, 32768, 65535]])
OWN = "levels {} to {}, the file's own, are black to white"


def of_bits(bits: int, stored: int = 16) -> str:
    return f"{bits} of {stored} bits: levels 0 to {2**bits - 1} are black to white"


@pytest.mark.parametrize(
    ("image", "kind", "expected", "note"),
    [
        (Image.fromarray(RAMP.astype(np.uint16)), "PNG", [0, 4, 128, 255], ""),
        (Image.fromarray(RAMP.astype(np.uint16)), "TIFF", [0, 4, 128, 255], ""),
        (Image.fromarray(RAMP.astype(np.uint16) // 256), "PNG", [0, 3, 128, 255], of_bits(8)),
        (Image.fromarray(RAMP.astype(np.uint16) // 128), "PNG", [0, 2, 64, 127], of_bits(10)),
        (Image.fromarray(RAMP.astype(np.uint16) // 16), "PNG", [0, 4, 128, 255], of_bits(12)),
        (Image.fromarray(RAMP.astype(np.uint16) // 16), "TIFF", [0, 4, 128, 255], of_bits(12)),
        (Image.fromarray(RAMP.astype(np.uint16) // 16 + 1), "TIFF", [0, 1, 32, 64], of_bits(14)),
        (Image.fromarray(RAMP.astype(np.uint16) // 4), "TIFF", [0, 4, 128, 255], of_bits(14)),
        (Image.fromarray(RAMP.astype(np.uint16) // 2), "TIFF", [0, 2, 64, 127], ""),
        (Image.fromarray(RAMP.astype(np.int32)), "TIFF", [0, 4, 128, 255], of_bits(16, 32)),
        (Image.fromarray((RAMP // 16).astype(np.int32)), "TIFF", [0, 4, 128, 255], of_bits(12, 32)),
        (Image.fromarray((RAMP // 257).astype(np.int32)), "TIFF", [0, 3, 127, 255], of_bits(8, 32)),
        (
            Image.fromarray((RAMP * 30000).astype(np.int32)), "TIFF", [0, 4, 128, 255], OWN.format(0, "1.96605e+09"),
        ),
        (Image.fromarray((RAMP - 30000).astype(np.int32)), "TIFF", [0, 4, 128, 255], OWN.format(-30000, 35535)),
        (Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF", [0, 4, 128, 255], ""),
        (Image.fromarray(np.array([[0, np.nan, np.inf, 0.5]], np.float32)), "TIFF", [0, 0, 255, 128], ""),
    ],
)  # fmt: skip
def test_deep_grey_is_scaled_by_its_significant_bits_and_not_clipped(tmp_path, image, kind, expected, note):
    (tmp_path / "photo").write_bytes(saved(image, kind))
    photo = open_photo(tmp_path / "photo")
    assert photo.pixels.shape == (1, 4, 3)
    assert photo.pixels[0].tolist() == [[value] * 3 for value in expected]
    assert photo.notes == ((note,) if note else ())


@pytest.mark.parametrize(
    ("levels", "given", "expected"),
    [
        ((RAMP // 16).astype(np.uint16), (0, 4095), [0, 4, 128, 255]),
        ((RAMP // 16).astype(np.uint16), (0, 65535), [0, 0, 8, 16]),
        ((RAMP // 16).astype(np.uint16), (1000, 3000), [0, 0, 134, 255]),
        ((RAMP / 655.35 - 50).astype(np.float32), (-50, 50), [0, 4, 128, 255]),
        ((RAMP / 655.35 - 50).astype(np.float32), [0.0, 25.0], [0, 0, 0, 255]),
        ((RAMP - 30000).astype(np.int32), (-30000, 35535), [0, 4, 128, 255]),
    ],
)
def test_a_range_that_is_given_holds(tmp_path, levels, given, expected):
    (tmp_path / "photo").write_bytes(saved(Image.fromarray(levels), "TIFF"))
    photo = open_photo(tmp_path / "photo", range=given)
    assert photo.pixels[0, :, 0].tolist() == expected and photo.notes == ()
    (tmp_path / "colours").write_bytes(saved(corners(), "PNG"))  # of eight bits: there is nothing to scale
    np.testing.assert_array_equal(open_photo(tmp_path / "colours", range=given).pixels, np.asarray(corners()))


@pytest.mark.parametrize(
    "given", [(5, 5), (1, 0), (0, np.nan), "0-4095", (0,), (0, True), 4095, (0, np.inf)], ids=repr
)
def test_what_is_no_range(given):
    with pytest.raises(ImageError) as error:
        open_photo("photo", range=given)
    assert str(error.value) == f"range={given!r}: expected (LOW, HIGH), two finite numbers, LOW below HIGH"


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        (RAMP / 257, "0 to 255"),
        (RAMP / 655.35 - 50, "-50 to 50"),
        (np.full((1, 4), -3.0), "-3 to -3"),
        (np.array([[0, np.nan, 812.4, 1]]), "0 to 812.4"),
    ],
)
def test_floats_outside_zero_to_one_need_a_range(tmp_path, levels, shown):
    (tmp_path / "photo").write_bytes(saved(Image.fromarray(levels.astype(np.float32)), "TIFF"))
    assert refusal(tmp_path / "photo") == (
        f"holds floats from {shown}, and nothing says which is black and which white: say it with --range LOW HIGH "
        "(range=(LOW, HIGH))"
    )


@pytest.mark.parametrize(
    ("kind", "tags", "expected"),
    [
        (np.uint16, {341: 8191}, [0, 2, 64, 127]),
        (np.uint16, {340: 62, 341: 4095}, [0, 0, 126, 255]),
        (np.uint16, {341: 100}, [0, 4, 128, 255]),  # not true: 12 bits are assumed
        (np.float32, {340: 0.0, 341: 4095.0}, [0, 4, 128, 255]),
    ],
)
def test_the_range_that_a_tiff_states(tmp_path, kind, tags, expected):
    levels = (RAMP // 16).clip(tags.get(340, 0)).astype(kind)
    image = Image.fromarray(levels)
    image.save(tmp_path / "photo", "TIFF", tiffinfo=tags)
    photo = open_photo(tmp_path / "photo")
    assert photo.pixels[0, :, 0].tolist() == expected
    assert photo.notes == ((of_bits(12),) if tags == {341: 100} else ())


def test_colours_of_sixteen_bits_that_use_twelve(tmp_path):
    """Pillow reads the upper 8 of each; that little of them is left is said."""
    levels = np.array([[0, 4095, 1000], [300, 2048, 257]], ">u2")
    (tmp_path / "photo").write_bytes(png(2, 1, 16, 2, b"\0" + levels.tobytes()))
    assert open_photo(tmp_path / "photo").notes == (
        "colours of 16 bits are read by their upper 8, and these reach 15 of 255",
    )


def test_big_endian_deep_colour_and_alpha(tmp_path):
    levels = np.array([[0, 0, 0], [65535, 32768, 257]], ">u2")
    (tmp_path / "rgb16").write_bytes(png(2, 1, 16, 2, b"\0" + levels.tobytes()))
    assert open_photo(tmp_path / "rgb16").pixels.tolist() == [[[0, 0, 0], [255, 128, 1]]]
    grey_alpha = np.array([[0, 65535], [0, 0]], ">u2")
    (tmp_path / "la16").write_bytes(png(2, 1, 16, 4, b"\0" + grey_alpha.tobytes()))
    assert open_photo(tmp_path / "la16").pixels[0, :, 0].tolist() == [0, 255]
    keyed = np.array([0, 700], ">u2")
    (tmp_path / "i16").write_bytes(png(2, 1, 16, 0, b"\0" + keyed.tobytes(), (b"tRNS", b"\x02\xbc")))
    assert open_photo(tmp_path / "i16").pixels[0, :, 0].tolist() == [0, 255]


def tiff(pixels: bytes, bits: int, photometric: int) -> bytes:
    """Two pixels of grey in a TIFF written by hand."""
    values = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    after = struct.pack("<I", 12) + pixels.ljust(4, b"\0") + struct.pack("<H", len(values))
    return b"II*\0" + after + entries + b"\0" * 4


def test_twelve_bits_are_scaled_by_twelve_bits(tmp_path):
    (tmp_path / "photo").write_bytes(tiff(bytes([0xFF, 0xF8, 0x00]), 12, 1))  # 4095, 2048
    assert open_photo(tmp_path / "photo").pixels[0, :, 0].tolist() == [255, 128]


def test_white_is_zero(tmp_path):
    (tmp_path / "photo").write_bytes(tiff(bytes([0x00, 0x00, 0xFF, 0xFF]), 16, 0))
    assert open_photo(tmp_path / "photo").pixels[0, :, 0].tolist() == [255, 0]


def test_cmyk(tmp_path):
    (tmp_path / "photo").write_bytes(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(open_photo(tmp_path / "photo").pixels[4, 4].astype(int) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_one_bit(tmp_path, kind):
    image = Image.new("1", (3, 1))
    image.putpixel((1, 0), 1)
    (tmp_path / "photo").write_bytes(saved(image, kind))
    assert open_photo(tmp_path / "photo").pixels[0, :, 2].tolist() == [0, 255, 0]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(tmp_path, mode, kind):
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (0, alpha) if mode == "LA" else (0, 0, 0, alpha))
    (tmp_path / "photo").write_bytes(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert open_photo(tmp_path / "photo").pixels[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80", None])
def test_palette_with_transparency(tmp_path, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    (tmp_path / "photo").write_bytes(saved(image, "PNG", transparency=transparency))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = open_photo(tmp_path / "photo").pixels[0].tolist()
    expected = {1: [RED, WHITE, BLUE], None: [RED, GREEN, BLUE]}.get(
        transparency, [RED, WHITE, (127, 127, 255)]
    )
    assert pixels == [list(colour) for colour in expected]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(tmp_path, kind):
    later = [Image.new("RGB", (24, 16), colour) for colour in (GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "photo").write_bytes(saved(corners(), kind, save_all=True, append_images=later, **options))
    photo = open_photo(tmp_path / "photo")
    np.testing.assert_array_equal(photo.pixels, np.asarray(corners()))
    assert photo.notes == ("page 1 of 3" if kind == "TIFF" else "frame 1 of 3",)


def test_a_file_with_damaged_later_pages(tmp_path):
    data = saved(corners(), "TIFF", save_all=True, append_images=[Image.new("RGB", (24, 16), GREEN)])
    (start,) = struct.unpack_from(
        "<I", data, 4
    )  # the first directory, which ends with the place of the second
    place = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    (tmp_path / "photo").write_bytes(data[:place] + struct.pack("<I", len(data) + 99) + data[place + 4 :])
    photo = open_photo(tmp_path / "photo")
    np.testing.assert_array_equal(photo.pixels, np.asarray(corners()))
    assert photo.notes == ("page 1 of several",)


# --- what is refused --------------------------------------------------------------------------------------

FORMATS = "expected a JPEG, PNG, WebP, BMP, GIF or TIFF file (by content, not by name), got "


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "an empty one"),
        (b"hello, I am text", r"one that begins with b'hello, I am '"),
        (b"%PDF-1.7\n%abc", r"one that begins with b'%PDF-1.7\n%ab'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", r"one that begins with b'%!PS-Adobe-3'"),
        (b"8BPS\0\1\0\0\0\0\0\0\0\0", r"one that begins with b'8BPS\x00\x01\x00\x00\x00\x00\x00\x00'"),
        (saved(corners(), "PPM"), r"one that begins with b'P6\n24 16\n255'"),
        (
            saved(corners(), "ICO"),
            r"one that begins with b'\x00\x00\x01\x00\x01\x00\x10\x0b\x00\x00\x00\x00'",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0", r"one that begins with b'\x00\x00\x00\x18ftypheic'"),
    ],
)
def test_other_formats_are_refused_by_content(tmp_path, data, got):
    (tmp_path / "photo.jpg").write_bytes(data)
    assert refusal(tmp_path / "photo.jpg") == FORMATS + got + "; convert it to PNG"


def test_truncated_jpeg(tmp_path):
    data = saved(Image.fromarray(noise(64, 64)), "JPEG", quality=95)
    (tmp_path / "photo.jpg").write_bytes(data[: len(data) // 2])
    left = refusal(tmp_path / "photo.jpg")
    assert left.startswith("begins like JPEG but cannot be decoded (image file is truncated (")
    assert left.endswith(" bytes not processed)); it is damaged: copy or export it again")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "tiff_lzw", "tiff_jpeg"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_every_truncated_format_is_one_silent_refusal(tmp_path, capfd, kind, share):
    compression = {"compression": kind} if kind.startswith("tiff_") else {}
    data = saved(Image.fromarray(noise(64, 64)), kind.split("_")[0].upper(), **compression)
    (tmp_path / "photo").write_bytes(data[: int(len(data) * share)])
    name = "TIFF" if kind.startswith("tiff") else kind
    assert refusal(tmp_path / "photo").startswith(f"begins like {name} but cannot be decoded (")
    assert capfd.readouterr() == ("", "")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "tiff_lzw"]),
    where=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    what=st.binary(min_size=1, max_size=8),
)
def test_whatever_is_damaged_it_is_a_photo_or_one_refusal(tmp_path, kind, where, what):
    options = {"compression": kind} if kind == "tiff_lzw" else {}
    data = bytearray(saved(corners(), kind.split("_")[0].upper(), **options))
    for share in where:
        at = int(share * len(data))
        data[at : at + len(what)] = what
    (tmp_path / "photo").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            photo = open_photo(tmp_path / "photo", max_megapixels=1)
        except PhotoError as error:
            assert "\n" not in str(error) and len(error.reason) < 300
        else:
            assert photo.pixels.ndim == 3 and photo.pixels.shape[2] == 3 and photo.pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "raised", [MemoryError(), EOFError(), KeyError("a\nb"), struct.error("x"), RecursionError("deep")]
)
def test_whatever_pillow_raises_becomes_one_line(tmp_path, monkeypatch, raised):
    def broken(*_: object, **__: object) -> None:
        raise raised

    (tmp_path / "photo").write_bytes(saved(corners(), "PNG"))
    monkeypatch.setattr(Image, "open", broken)
    detail = str(raised).replace("\n", r"\n") or type(raised).__name__
    expected = f"begins like PNG but cannot be decoded ({detail}); it is damaged: copy or export it again"
    if isinstance(raised, MemoryError):
        expected = "there is not enough memory to decode it; make it smaller"
    assert refusal(tmp_path / "photo") == expected


BOMBS = {
    "PNG": png(60000, 60000),
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF": b"GIF89a"
    + struct.pack("<HHBBB", 60000, 60000, 0x80, 0, 0)
    + bytes(6)
    + b",\0\0\0\0`\xea`\xea\0\x08\0;",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_from_its_header(tmp_path, kind):
    (tmp_path / "photo").write_bytes(BOMBS[kind])
    start = time.perf_counter()
    assert refusal(tmp_path / "photo") == (
        "declares 3600 megapixels, the limit is 100; make it smaller or raise the limit (max_megapixels)"
    )
    assert time.perf_counter() - start < 1


def test_the_limit_is_ours_below_and_above_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 50
    )  # Pillow alone would warn above 50 and refuse above 100
    (tmp_path / "photo").write_bytes(saved(corners(), "PNG"))  # 384 pixels
    assert open_photo(tmp_path / "photo").pixels.shape == (16, 24, 3)
    assert open_photo(tmp_path / "photo", max_megapixels=384e-6).pixels.shape == (16, 24, 3)
    for limit in (383e-6, 20e-6):
        assert refusal(tmp_path / "photo", max_megapixels=limit) == (
            f"declares 0.000384 megapixels, the limit is {limit:g}; "
            "make it smaller or raise the limit (max_megapixels)"
        )
    assert Image.MAX_IMAGE_PIXELS == 50
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert refusal(tmp_path / "photo", max_megapixels=1e-6).startswith(
        "declares 0.000384 megapixels, the limit"
    )


def test_a_hundred_and_one_megapixels(tmp_path):
    (tmp_path / "photo").write_bytes(png(10100, 10000))
    assert refusal(tmp_path / "photo").startswith("declares 101 megapixels, the limit is 100; ")
    raised = refusal(tmp_path / "photo", max_megapixels=102)  # past the header, where its missing pixels show
    assert raised.startswith("begins like PNG but cannot be decoded (")


def test_what_is_no_regular_file(tmp_path):
    assert refusal(tmp_path) == "expected a photo, got a folder"
    assert refusal(tmp_path / "nowhere.jpg") == "cannot be opened: No such file or directory"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "pipe.jpg") == "expected a photo, got a pipe, socket or device"
    assert refusal(Path("/dev/null")) == "expected a photo, got a pipe, socket or device"


def test_unreadable(tmp_path, monkeypatch):
    (tmp_path / "photo").write_bytes(saved(corners(), "PNG"))

    def denied(*_: object, **__: object) -> None:  # root, as whom the tests may run, may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(tmp_path / "photo") == "cannot be opened: Permission denied"


def test_the_error_is_one_line_even_for_a_wicked_name_and_survives_pickling(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\nb\x1b\xff.jpg"))
    path.write_bytes(b"x")
    with pytest.raises(PhotoError) as caught:
        open_photo(path)
    again = pickle.loads(pickle.dumps(caught.value))
    expected = rf"{tmp_path}/a\nb\x1b\udcff.jpg: {FORMATS}one that begins with b'x'; convert it to PNG"
    assert str(again) == str(caught.value) == expected
    expected.encode()


def test_many_threads_leave_pillow_as_it_was(tmp_path):
    (tmp_path / "photo").write_bytes(saved(corners(), "TIFF"))
    before, filters, wrong = Image.MAX_IMAGE_PIXELS, list(warnings.filters), []

    def read() -> None:
        for _ in range(20):
            if open_photo(tmp_path / "photo", max_megapixels=300).pixels.shape != (16, 24, 3):
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and before == Image.MAX_IMAGE_PIXELS and filters == list(warnings.filters)


# --- what is found ----------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files, dotfiles, a pipe, and links: to a file, to a folder, to nothing, to itself."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a/2.txt", "a/10", ".hidden", ".git/x", "a/.DS_Store", "a.d/c"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_text(name)
    os.mkfifo(tmp_path / "photos/pipe")
    for name, target in (("link", "b.jpg"), ("folder", "a"), ("dead", "nowhere"), ("loop", "loop")):
        (tmp_path / "photos" / name).symlink_to(target)
    return tmp_path


def test_find_photos(tree):
    found = find_photos([Path("photos")])
    assert [str(f.relative) for f in found] == ["a/10", "a/2.txt", "a.d/c", "b.jpg", "link"]
    assert found[0] == Found(Path("photos/a/10"), PurePosixPath("a/10"))
    assert find_photos([Path(".")])[0].path == Path("photos/a/10")
    assert all(f.path.read_text() for f in found)  # valid from the working directory
    assert find_photos([tree / "photos"])[0].path == tree / "photos/a/10"


def test_a_given_file_is_itself_and_counts_once(tree):
    assert find_photos([Path("photos/.hidden")]) == [Found(Path("photos/.hidden"), PurePosixPath(".hidden"))]
    assert find_photos([Path("photos/pipe")]) == [Found(Path("photos/pipe"), PurePosixPath("pipe"))]
    twice = find_photos(
        [Path("photos/b.jpg"), tree / "photos", Path("photos/../photos/a"), "photos/folder/10"]
    )
    assert [str(f.relative) for f in twice] == ["b.jpg", "a/10", "a/2.txt", "a.d/c", "link"]
    assert find_photos([]) == []


def test_what_does_not_exist_is_named(tree):
    with pytest.raises(ImageError) as caught:
        find_photos([Path("nowhere"), Path("photos"), Path("gone.jpg")])
    expected = "expected a photo or a folder of photos, found nothing at: nowhere, gone.jpg"
    assert str(caught.value) == expected


def test_a_folder_that_cannot_be_listed_is_reported_not_skipped(tree, monkeypatch):
    scandir, listdir = os.scandir, os.listdir

    def denied(real):
        def deny(path):
            if Path(path).name == "a":
                raise PermissionError(13, "Permission denied")
            return real(path)

        return deny

    monkeypatch.setattr(os, "scandir", denied(scandir))
    monkeypatch.setattr(os, "listdir", denied(listdir))
    found = find_photos([Path("photos")])
    assert [str(f.relative) for f in found] == ["a", "a.d/c", "b.jpg", "link"]
    assert refusal(found[0].path) == "cannot be opened: Permission denied"
    with pytest.raises(ImageError) as caught:
        find_photos([Path("photos/a")])
    assert str(caught.value) == "photos/a: folder cannot be listed: Permission denied"


def test_every_file_found_gives_exactly_one_result(tree):
    (tree / "photos/a/ok").write_bytes(saved(corners(), "GIF"))
    lines = []
    for found in find_photos([Path("photos")]):
        try:
            open_photo(found.path)
            lines.append((str(found.relative), "ok"))
        except PhotoError as error:
            lines.append((str(found.relative), error.reason))
    assert len(lines) == 6 and dict(lines)["a/ok"] == "ok"
