"""`lrp evaluate` on a thousand files, fifty of them broken in every way that data sets are.

The good photos are of one colour each, a shade of its own, in any format: what the model must say of it follows from
the shade with pencil and paper, so that a row that belongs to another file is noticed.
"""

import csv
import gzip
import io
import json
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lrp.cli import main
from lrp.data.data_set import DataSet
from lrp.models.checkpoints import save_checkpoint
from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry
from lrp.study import analysis
from lrp.study.evaluate import Evaluation, evaluate
from lrp.study.predictions import Prediction, read_predictions

NAMES = ("blue", "green", "grey", "red")  # in the order of their folders
CHANNEL = {"blue": 2, "green": 1, "red": 0}
HALF = Preprocessing(Geometry(36, (32, 32)), (0.5,) * 3, (0.5,) * 3)
COUNT, BATCH = 1000, 8


class Colours(nn.Module):
    """Logits of blue, green, grey and red: six times the channel's mean, from -6 to 6; and 0 for grey."""

    def forward(self, x):
        blue, green, red = (6 * x[:, channel].mean((1, 2)) for channel in (2, 1, 0))
        return torch.stack([blue, green, torch.zeros_like(red), red], 1)


def shade(number: int, colour: str) -> tuple[int, int, int]:
    """What photo `number` is painted with: a bright channel, or, if it is to be taken for grey, none."""
    if colour == "grey":
        return (10 + number % 100,) * 3
    return tuple(150 + number % 100 if channel == CHANNEL[colour] else 10 for channel in range(3))


def softmax(pixel: tuple[int, int, int]) -> dict[str, float]:
    """The model's confidences in a photo of that one colour, by pencil."""
    logits = {name: 6 * (pixel[channel] / 255 - 0.5) / 0.5 for name, channel in CHANNEL.items()} | {
        "grey": 0.0
    }
    total = sum(math.exp(v) for v in logits.values())
    return {name: math.exp(v) / total for name, v in logits.items()}


# ---------------------------------------------------------------------------------------------- good files


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def of(pixel: tuple[int, int, int], width: int = 48, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), pixel)


def jpeg(image: Image.Image, **options: object) -> bytes:
    return saved(image, "JPEG", quality=95, subsampling=0, **options)


def clear(pixel: tuple[int, int, int]) -> Image.Image:
    """A palette with a transparent entry, which no pixel has."""
    image = of(pixel).quantize(2)
    image.info["transparency"] = 255
    return image


def frames(kind: str, **options: object) -> Callable[[tuple[int, int, int]], bytes]:
    """An animation that begins with the colour and goes on with others."""
    others = [of((10, 10, 250)), of((10, 250, 10)), of((250, 10, 10))]
    return lambda pixel: saved(of(pixel), kind, save_all=True, append_images=others, duration=50, **options)


Good = Callable[[tuple[int, int, int]], bytes]

PLAIN: dict[str, Good] = {
    "{}.png": lambda pixel: saved(of(pixel), "PNG"),
    "{}.JPEG": lambda pixel: jpeg(of(pixel)),
    "{}.jpg": lambda pixel: jpeg(of(pixel, 32, 64)),
    "{}.bmp": lambda pixel: saved(of(pixel, 64, 33), "BMP"),
}
ODD: dict[str, Good] = {  # readable, although many a program stumbles over them
    "{} is a PNG.jpg": lambda pixel: saved(of(pixel), "PNG"),
    "{} is a JPEG.png": lambda pixel: jpeg(of(pixel)),
    "{} is a photo.txt": lambda pixel: saved(of(pixel), "WEBP", lossless=True),
    "{} without suffix": lambda pixel: jpeg(of(pixel)),
    '{} "quoted", and\nbroken.png': lambda pixel: saved(of(pixel), "PNG"),
    "{} für 写真.png": lambda pixel: saved(of(pixel), "PNG"),
    "{} album.jpg/inside.png": lambda pixel: saved(of(pixel), "PNG"),  # a folder with the name of a photo
    "{} cmyk.jpg": lambda pixel: jpeg(of(pixel).convert("CMYK")),
    "{} palette.png": lambda pixel: saved(of(pixel).quantize(2), "PNG"),
    "{} clear.png": lambda pixel: saved(clear(pixel), "PNG"),
    "{} alpha.png": lambda pixel: saved(of(pixel).convert("RGBA"), "PNG"),
    "{} animated.gif": frames("GIF"),
    "{} animated.webp": frames("WEBP", lossless=True),
    "{} animated.png": frames("PNG"),
    "{} lzw.tif": lambda pixel: saved(of(pixel), "TIFF", compression="tiff_lzw"),
    "{} progressive.jpg": lambda pixel: jpeg(of(pixel), progressive=True),
    "{} with more behind it.jpg": lambda pixel: jpeg(of(pixel)) + b"\0\1\2" * 1000,
    "{} one pixel.png": lambda pixel: saved(of(pixel, 1, 1), "PNG"),
}
GREY: dict[str, Good] = {  # of one channel: for the folder that is grey
    "{} sixteen bits.png": lambda pixel: saved(
        Image.fromarray(np.full((40, 48), pixel[0] * 257, np.uint16)), "PNG"
    ),
    "{} levels.jpg": lambda pixel: jpeg(of(pixel).convert("L")),
    "{} levels and alpha.png": lambda pixel: saved(of(pixel).convert("LA"), "PNG"),
}


# ---------------------------------------------------------------------------------------------- broken files

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
OTHER = r"expected a JPEG, PNG, WebP, BMP, GIF or TIFF file \(by content, not by name\), got "
BEGINS = OTHER + r"one that begins with b{}; convert it to PNG"
DAMAGED = r"begins like {} but cannot be decoded \(.+\); it is damaged: copy or export it again"


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def declaring(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


PNG = saved(NOISE, "PNG")
BROKEN: dict[str, tuple[bytes, str]] = {  # name -> content, and the reason that fits
    "empty.jpg": (b"", OTHER + "an empty one; convert it to PNG"),
    "text.jpg": (b"no photo\n", BEGINS.format(r"'no photo\\n'")),
    "not found.jpg": (b"<!DOCTYPE html><title>404</title>", BEGINS.format("'<!DOCTYPE ht'")),
    "lfs pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", BEGINS.format("'version http'")),
    "wide text.jpg": ("text".encode("utf-16"), BEGINS.format(r"'\\xff\\xfet\\x00e\\x00x\\x00t\\x00'")),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', BEGINS.format("'<svg xmlns=\"'")),
    "document.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", BEGINS.format(r"'%PDF-1.7\\n%\\xe2\\xe3'")),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(99), BEGINS.format(r"'\\x00\\x00\\x00\\x18ftypheic'")),
    "packed.jpg": (half(gzip.compress(PNG, mtime=0)), BEGINS.format(r"'\\x1f\\x8b.*'")),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), BEGINS.format(r"'\\xd0\\xcf\\x11.*'")),
    "zeros.jpg": (bytes(4096), BEGINS.format(r"'(\\x00){12}'")),
    "random.jpg": (np.random.default_rng(1).bytes(4096), BEGINS.format(r"['\"].*['\"]")),
    "cut.jpg": (half(jpeg(NOISE)), DAMAGED.format("JPEG")),
    "begun.jpg": (b"\xff\xd8\xff\xe0", DAMAGED.format("JPEG")),
    "cut.png": (half(PNG), DAMAGED.format("PNG")),
    "bad checksum.png": (flipped(PNG, 30), DAMAGED.format("PNG")),
    "bad pixels.png": (flipped(PNG, 43), DAMAGED.format("PNG")),
    "no width.png": (declaring(0, 40), DAMAGED.format("PNG")),
    "bomb.png": (declaring(50_000, 50_000), r"declares 2500 megapixels, the limit is 100; make it smaller or .+"),
    "large.png": (declaring(12_000, 9_000), r"declares 108 megapixels, the limit is 100; make it smaller or .+"),
    "strip.png": (saved(of((9, 9, 9), 1, 100_000), "PNG"), r"1 x 100000 pixels are too narrow: .+; crop the photo"),
    "header.webp": (b"RIFF\x24\0\0\0WEBPVP8 ", DAMAGED.format("WEBP")),
    "header.bmp": (saved(NOISE, "BMP")[:54], DAMAGED.format("BMP")),
    "header.tif": (b"II*\0\x08\0\0\0", DAMAGED.format("TIFF")),
    "cut.gif": (half(saved(NOISE, "GIF")), DAMAGED.format("GIF")),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- the data set


@dataclass(frozen=True)
class Many:
    """A folder with what must be found in it."""

    root: Path
    painted: dict[int, tuple[str, tuple[int, int, int]]]
    """Number of a good file -> the class that its colour is of, and the colour."""
    reasons: dict[int, str]
    """Number of a broken file -> the pattern of its reason."""


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Many:
    """Files 0000 to 0999, a quarter of them in each class folder; every broken content twice.

    Half of the broken ones stand scattered, the others in a row, where they fill whole batches.
    """
    data = Many(tmp_path_factory.mktemp("many") / "data", {}, {})
    places = [*range(7, COUNT, 41), *range(384, 409)]  # 7, 48, ..., 991
    broken = dict(zip(places, [*BROKEN.items()] * 2, strict=True))
    plain, odd, grey = (cycle(kinds.items()) for kinds in (PLAIN, ODD, GREY))
    for number in range(COUNT):
        folder = NAMES[number * len(NAMES) // COUNT]
        if number in broken:
            name, (content, reason) = broken[number]
            name, data.reasons[number] = f"{number:04} {name}", reason
        else:
            colour = NAMES[(NAMES.index(folder) + 1) % 4] if number % 10 == 3 else folder
            data.painted[number] = colour, shade(number, colour)
            kinds = odd if number % 12 == 5 else grey if colour == "grey" and number % 12 == 0 else plain
            pattern, paint = next(kinds)
            name, content = pattern.format(f"{number:04}"), paint(shade(number, colour))
        file = data.root / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    # None of these is a file of the data set.
    (data.root / "blue" / "0000 empty.jpg").mkdir()
    (data.root / "blue" / ".0000.jpg").touch()
    (data.root / "beside.jpg").touch()
    (data.root / "blue" / "0000 nowhere.jpg").symlink_to("nowhere.jpg")
    return data


def predict(many: Many, output: Path, workers: int) -> Evaluation:
    loaded = LoadedModel(Colours().eval(), HALF, NAMES)
    return evaluate(
        DataSet.open(many.root), loaded, output, name="colours", batch_size=BATCH, workers=workers,
        range=(0, 65535),  # the painted levels of 16 bits are what they are
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(many, tmp_path_factory) -> Evaluation:
    return predict(many, tmp_path_factory.mktemp("result") / "r.csv", workers=2)


@pytest.fixture(scope="module")
def rows(result) -> list[Prediction]:
    return read_predictions(result.output)


def number_of(row: Prediction, root: Path) -> int:
    return int(Path(row.path).relative_to(root).parts[1][:4])


# ---------------------------------------------------------------------------------------------- what must hold


def test_what_the_data_set_is_made_of(many):
    """The others would prove nothing, were this not so."""
    assert len(BROKEN) >= 15 and len(many.reasons) == 50 and len(many.painted) == COUNT - 50
    names = {file.name[4:] for file in many.root.rglob("[0-9]*")}
    assert names >= {pattern[2:].split("/")[0] for pattern in (*PLAIN, *ODD, *GREY)}
    whole = [
        first for first in range(0, COUNT, BATCH) if all(first + i in many.reasons for i in range(BATCH))
    ]
    assert len(whole) >= 3, "batches with nothing to predict"


def test_every_file_has_one_row_in_order(many, rows, result):
    assert [number_of(row, many.root) for row in rows] == list(range(COUNT))
    assert all(row.path.startswith(f"{many.root}/{row.true_label}/") for row in rows)
    assert all(Path(row.path).is_file() for row in rows)
    assert result.total == COUNT and result.counts == {"ok": COUNT - 50, "unreadable": 50}


def test_the_broken_ones_are_unreadable_and_say_why(many, rows):
    unreadable = {number_of(row, many.root): row for row in rows if row.status == "unreadable"}
    assert set(unreadable) == set(many.reasons)
    for number, row in unreadable.items():
        assert re.fullmatch(many.reasons[number], row.error), f"{row.path}: {row.error}"
        assert row.error.isprintable() and len(row.error) < 300
        assert "Traceback" not in row.error
        assert (row.predicted_label, row.predicted_confidence, row.correct) == ("", None, None)


def test_no_reason_repeats_the_path(many, rows):
    """It stands in its own column; and a table is to be the same wherever the data set lies."""
    assert [row.error for row in rows if str(many.root) in row.error] == []


def test_the_others_are_predicted_as_they_are_painted(many, rows):
    for row in rows:
        if (number := number_of(row, many.root)) in many.painted:
            colour, pixel = many.painted[number]
            expected = softmax(pixel)
            near = (
                0.03 if Path(row.path).read_bytes().startswith(b"\xff\xd8") else 1e-5
            )  # JPEG loses a little
            assert (row.status, row.error, row.predicted_label) == ("ok", "", colour), row.path
            assert row.predicted_confidence == pytest.approx(expected[colour], abs=near), row.path
            assert row.true_confidence == pytest.approx(expected[row.true_label], abs=near), row.path
            assert row.correct == (colour == row.true_label)
            assert row.top5 == pytest.approx(expected, abs=near)


def test_the_broken_ones_count_in_no_average(many, rows, result):
    right = sum(row.true_label == many.painted[i][0] for i, row in enumerate(rows) if i in many.painted)
    assert 0 < right < COUNT - 50 and result.correct == right
    found = analysis.analyse_accuracy(rows)
    assert (found.total, found.counted, found.unreadable, found.unmatched) == (COUNT, COUNT - 50, 50, 0)
    assert (found.top1.successes, found.top1.n) == (right, COUNT - 50)
    with open(result.output, newline="", encoding="utf-8") as file:
        read = [float(r["predicted_confidence"]) for r in csv.DictReader(file) if r["predicted_confidence"]]
    assert len(read) == COUNT - 50 and found.confidence == pytest.approx(math.fsum(read) / len(read))
    good = Counter(row.true_label for i, row in enumerate(rows) if i in many.painted)
    assert {c.label: c.support for c in found.classes} == dict(good)


@pytest.mark.parametrize("workers", [1, 7])
def test_the_number_of_workers_changes_no_byte(many, result, tmp_path, workers):
    other = predict(many, tmp_path / "r.csv", workers)
    assert other.output.read_bytes() == result.output.read_bytes()
    assert (other.counts, other.correct, other.resumed) == (result.counts, result.correct, 0)
    assert list(tmp_path.iterdir()) == [other.output]


def test_the_command_ends_with_3(many, tmp_path, capfd):
    """A real architecture, with random weights: it takes part in no number, only in what is told."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=len(NAMES)).eval()
    save_checkpoint(tmp_path / "m.pth", model, "squeezenet1_1", NAMES, HALF)
    command = ["evaluate", str(many.root), "-m", str(tmp_path / "m.pth"), "-o", str(tmp_path / "r.csv")]
    command += ["--range", "0", "65535"]  # the painted levels of 16 bits are what they are
    assert main(command) == 3
    printed, said = capfd.readouterr()
    assert said == "lrp: some files: frame 1 of several.\n", "no decoder has more to say than the table"
    assert re.fullmatch(
        r"1,000 files = 950 ok \+ 50 unreadable \+ 0 unmatched; \d+ of 950 correct \(\d+\.\d%\)\n"
        rf"-> {re.escape(str(tmp_path))}/r.csv: 1,000 predicted in [\d.]+ s \([\d.]+/s\)\n",
        printed,
    )
    assert main([*command, "--json"]) == 3
    facts = json.loads(capfd.readouterr().out)
    assert facts["counts"] == {"ok": 950, "unreadable": 50} and facts["resumed"] == facts["total"] == COUNT
