"""File -> pixels, safely.

Depends on numpy and Pillow, not on torch. A photo is opened as a person sees it: upright and in RGB.
"""

import hashlib
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lrp.errors import ImageError
from lrp.pictures.levels import NoRange, Range, check_range, eight_bits, is_deep, shallow_colours

FORMATS = "JPEG, PNG, WebP, BMP, GIF or TIFF"

# The first bytes of a file determine its format, whatever its name. Pillow may use that decoder only, so that an
# untrusted file never reaches one of its dozens of rarely tested decoders.
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(ImageError):
    """One file is not a readable photo. `str()` is "path: reason" on one line; `reason` is for a table."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # the arguments themselves, so that a worker process can pickle it
        self.path, self.reason = path, _one_line(reason)

    def __str__(self) -> str:
        return f"{_one_line(str(self.path))}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Photo:
    path: Path
    pixels: np.ndarray
    """uint8 [H, W, 3]: RGB, upright, transparency on white. A new array: writable and contiguous."""
    digest: str
    """SHA-256 of the file's bytes, in hex."""
    notes: tuple[str, ...] = ()
    """What was assumed about the file, or left out: "page 1 of 5", "12 of 16 bits: levels 0 to 4095 are ..."."""


@dataclass(frozen=True)
class Found:
    path: Path
    """The given path joined with `relative`: valid from the working directory."""
    relative: PurePosixPath
    """Relative to the given folder; for a file that was given itself, its name."""


def open_photo(
    path: Path | str, *, max_megapixels: float = 100.0, range: tuple[float, float] | None = None
) -> Photo:
    """Read one photo: orientation applied, any colour mode to RGB, the first page or frame of several.

    One channel of more than 8 bits is scaled to 8: `range` (LOW, HIGH) says which level is black and which white. Without
    it, that is what the file states (TIFF's BitsPerSample, SMinSampleValue and SMaxSampleValue); else 0 to the
    largest level of the smallest of 8, 10, 12, 14 and 16 bits that hold the file's levels; floats must then lie in 0 to 1,
    and integers above 16 bits or below 0 go from the file's lowest level to its highest. What was assumed is one of the
    photo's `notes`. Each file decides alone: for files that are to be compared, give a range.
    Colour profiles are not applied, as in the pipelines models train with.

    Thread-safe, and threads decode in parallel: Pillow releases the GIL.

    Raises:
        PhotoError: an ImageError, and the only error, whatever the file holds. The size is checked in the
            header, before any pixel is decoded.
        ImageError: `range` is not two numbers, LOW below HIGH.
    """
    path, range = Path(path), check_range(range)
    try:
        _expect_regular(path)
        with path.open("rb") as file:
            kind = _kind(path, file.read(16))
            file.seek(0)
            with _pillow(max_megapixels):
                pixels, notes = _decode(path, file, kind, max_megapixels, range)
            file.seek(0)
            return Photo(path, pixels, hashlib.file_digest(file, "sha256").hexdigest(), notes)
    except OSError as error:
        raise PhotoError(path, f"cannot be opened: {error.strerror or error}") from error


def kinds_of(notes: Sequence[str]) -> list[str]:
    """The notes of a photo, without what differs from file to file: "page 1 of several"."""
    return [re.sub(r"^(page|frame) 1 of \d+$", r"\1 1 of several", note) for note in notes]


def find_photos(paths: Sequence[Path | str]) -> list[Found]:
    """Every file given, and every regular file below each folder given, whatever its extension, sorted.

    Below a folder, names that begin with a dot and links to folders are skipped, and so is what is not a
    regular file (FIFOs, devices, broken links). A subfolder that cannot be listed is returned itself, so that
    `open_photo` raises the reason. A file that is found twice is returned once, at its first position.

    Raises:
        ImageError: some of the given paths do not exist (all are named), or a given folder cannot be listed.
    """
    given = [Path(path) for path in paths]
    if missing := [_one_line(str(path)) for path in given if not os.path.lexists(path)]:
        raise ImageError(f"expected a photo or a folder of photos, found nothing at: {', '.join(missing)}")
    found: dict[Path, Found] = {}
    for path in given:
        if path.is_dir():
            try:
                below = sorted(_below(path), key=lambda file: file.parts)
            except OSError as error:
                raise PhotoError(path, f"folder cannot be listed: {error.strerror or error}") from error
            files = [Found(path / file, file) for file in below]
        else:
            files = [Found(path, PurePosixPath(path.name))]
        resolved: dict[Path, Path] = {}  # folder -> its real path, resolved once per folder, not per file
        for file in files:
            folder = file.path.parent
            if folder not in resolved:
                resolved[folder] = folder.resolve()
            # Not the real path of the file: two links to one photo are two files with two names.
            found.setdefault(resolved[folder] / file.path.name, file)
    return list(found.values())


def _below(root: Path, under: str = "") -> Iterator[PurePosixPath]:
    """Regular files below root / under, relative to root, in any order. OSError only for `root` itself."""
    try:
        entries = [entry for entry in os.scandir(root / under) if not entry.name.startswith(".")]
    except OSError:
        if not under:
            raise
        yield PurePosixPath(under)
        return
    for entry in entries:
        relative = PurePosixPath(under, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _below(root, str(relative))
        elif os.path.isfile(entry.path):  # unlike entry.is_file(), false for a link that leads to itself
            yield relative


def _expect_regular(path: Path) -> None:
    """Raise unless it is a regular file. Checked before opening, because opening a FIFO blocks until it has a writer."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        os.listdir(path)  # raises the reason for a folder that find_photos could not list
        raise PhotoError(path, "expected a photo, got a folder")
    if not stat.S_ISREG(mode):
        raise PhotoError(path, "expected a photo, got a pipe, socket or device")


def _kind(path: Path, head: bytes) -> str:
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    got = f"one that begins with {head[:12]!r}" if head else "an empty one"
    raise PhotoError(
        path, f"expected a {FORMATS} file (by content, not by name), got {got}; convert it to PNG"
    )


Notes = tuple[str, ...]


def _decode(
    path: Path, file: BinaryIO, kind: str, max_megapixels: float, range: Range | None
) -> tuple[np.ndarray, Notes]:
    """The only function in which Pillow reads the file: whatever it raises becomes a PhotoError."""
    try:
        with Image.open(file, formats=[kind]) as image:
            count = image.width * image.height
            if count <= max_megapixels * 1e6:
                return _pixels(image, range)
    except NoRange as error:
        raise PhotoError(path, str(error)) from error
    except Image.DecompressionBombError as error:
        # Far above the limit Pillow raises before it returns an image; the first number of its message is the pixel count.
        number = re.search(r"\d+", str(error))
        count = int(number[0]) if number else 0
    except MemoryError as error:
        raise PhotoError(path, "there is not enough memory to decode it; make it smaller") from error
    except (
        Exception
    ) as error:  # for damaged files decoders raise many kinds of exceptions: KeyError, struct.error
        # Pillow's message names the file object and its path, which PhotoError states already.
        detail = re.sub(r" <[^<>]*name=.*>", "", _one_line(str(error)))[:120] or type(error).__name__
        raise PhotoError(
            path,
            f"begins like {kind} but cannot be decoded ({detail}); it is damaged: copy or export it again",
        ) from error
    raise PhotoError(
        path,
        f"declares {count / 1e6:.6g} megapixels, the limit is {max_megapixels:g}; "
        "make it smaller or raise the limit (max_megapixels)",
    )


def _pixels(image: Image.Image, range: Range | None) -> tuple[np.ndarray, Notes]:
    """Decode and convert to uint8 [H, W, 3]. Decoding detects a truncated file; Image.verify does not."""
    rawmodes = [
        str(part)
        for tile in getattr(image, "tile", ())
        for part in (tile[3] if isinstance(tile[3], tuple) else tile[3:])
    ]
    image.load()
    note = ""
    if is_deep(image):
        grey, note = eight_bits(image, range)
        rgb = Image.fromarray(grey).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    try:
        turn = _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # a photo with a damaged EXIF block can still be read
        turn = None
    pixels = np.array(rgb if turn is None else rgb.transpose(turn))
    notes = _pages(image), note, shallow_colours(image, rawmodes, pixels)
    return pixels, tuple(filter(None, notes))


def _pages(image: Image.Image) -> str:
    """ "page 1 of 5", "frame 1 of 5"; "" for a single one. A JPEG's others are previews and depth maps of phones."""
    word = "page" if image.format == "TIFF" else "frame"
    try:
        count = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    except Exception:  # the later ones are damaged
        return f"{word} 1 of several"
    return f"{word} 1 of {count}" if count > 1 else ""


_pillow_lock = threading.Lock()
_limits: list[int] = []  # of the photos that are being decoded now
_before: list[Any] = []  # Pillow's limit and the warning filters before the first of them


@contextmanager
def _pillow(max_megapixels: float) -> Iterator[None]:
    """Raise Pillow's limit and disable its warnings. These settings belong to the whole process: the first of several
    photos that are decoded at once changes them, the last one restores them."""
    limit = int(max_megapixels * 1e6 / 2) + 1  # it refuses above twice this number
    with _pillow_lock:
        if not _limits:
            quiet = warnings.catch_warnings()
            quiet.__enter__()
            warnings.simplefilter("ignore")
            _before[:] = Image.MAX_IMAGE_PIXELS, quiet
        _limits.append(limit)
        if _before[0] is not None:  # never lowered: other code may open images too
            Image.MAX_IMAGE_PIXELS = max(_before[0], *_limits)
    try:
        yield
    finally:
        with _pillow_lock:
            _limits.remove(limit)
            if not _limits:
                Image.MAX_IMAGE_PIXELS = _before[0]
                _before[1].__exit__(None, None, None)


def _one_line(text: str) -> str:
    """File names and decoder texts may hold line breaks, escape codes or bytes that are not text."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
