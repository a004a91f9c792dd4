"""What the notebooks need besides `lrp`: photos and a model where there is no network, tables, small pictures.

With LRP_OFFLINE=1 nothing is downloaded: the packaged model takes the place of any other, and photos made of a few that
come with scikit-image and matplotlib take the place of a data set.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import lrp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGED = "efficientnet_lite0"
OFFLINE = "LRP_OFFLINE"
SOURCES = {
    "coffee.png": "espresso",  # by Rachel Michetti, CC0
    "chelsea.png": "tiger cat",  # by Stefan van der Walt, CC0
    "camera.png": "tripod",  # by Lav Varshney, CC0
    "rocket.jpg": "missile",  # by SpaceX, public domain
    "grace_hopper.jpg": "military uniform",  # by the U.S. Navy, public domain
}
"""File -> the ImageNet class of what is on it. Pictures made of these may be shown anywhere."""
COUNTS = {"train": 6, "val": 5}
"""How many photos of each class are made."""
SIDE = 256  # of those, in pixels
WIDTH = 820  # of a picture shown: what a notebook's page has room for


def offline() -> bool:
    """Whether LRP_OFFLINE is set, to anything but 0."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


def models(names: Iterable[str]) -> list[str]:
    """Those models; offline the packaged one instead, which is said."""
    names = list(names)
    if not offline():
        return names
    print(f"Offline ({OFFLINE}=1): {PACKAGED}, which comes in a package, instead of {', '.join(names)}.")
    return [PACKAGED]


def model(name: str) -> str:
    """That model; offline the packaged one instead, which is said."""
    return models([name])[0]


def photos(name: str, size: str, root: Path | str = "data") -> Path:
    """The folder of a data set, with train/ and val/ in it, downloaded if need be; offline one that is made.

    Args:
        name, size, root: as `lrp.download_data` takes them.
    """
    if not offline():
        return lrp.download_data(name, size, root, say=print)
    folder = made(Path(root, f"offline_{name}"), seed=zlib.crc32(name.encode()))
    total = len(SOURCES) * sum(COUNTS.values())
    print(
        f"Offline ({OFFLINE}=1): {total} photos made of {len(SOURCES)} that come in packages, instead of {name} ({size}).\n"
        "train/ and val/ are made of the same few, so that accuracies on them say nothing about other photos."
    )
    return folder


def made(folder: Path, seed: int = 0) -> Path:
    """A small data set to try things on: crops of a few photos, mirrored, darkened, blurred; the same for the same seed.

    Writes `folder`/{train,val}/<class>/<name>_<number>.jpg, all of it or nothing; what is there stays.

    Raises:
        ImageError: the package that a photo comes with is not there.
        DataError: the folder cannot be written.
    """
    if folder.is_dir():
        return folder
    random = np.random.default_rng(seed)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".lrp-", dir=folder.parent) as room:
            fresh = Path(room, folder.name)
            for file, category in SOURCES.items():
                photo = Image.fromarray(lrp.open_photo(source(file)).pixels)
                for split, count in COUNTS.items():
                    place = fresh / split / category
                    place.mkdir(parents=True)
                    for i in range(count):
                        _altered(photo, random).save(place / f"{Path(file).stem}_{i:02d}.jpg", quality=92)
            fresh.rename(folder)
    except OSError as error:
        raise lrp.DataError(f"{folder}: cannot be written: {error.strerror or error}.") from error
    return folder


def demo_photos(folder: Path | str) -> None:
    """Photos to try, as <folder>/<class>/<file>, where there is no such folder yet."""
    if Path(folder).is_dir():
        return
    for file, category in SOURCES.items():
        place = Path(folder, category, file)
        place.parent.mkdir(parents=True)
        place.write_bytes(source(file).read_bytes())
    print(f"Nothing is in {folder}/ yet: here are a few photos that come in packages.")


def results(output: Path | str, model: str, folder: Path | str) -> Path:
    """A table of predictions of a data set: the one that is there, or made now."""
    output = Path(output)
    if output.is_file():
        print(f"{output} is there.")
    else:
        lrp.evaluate(folder, model, output, advance=progress(model))
        print(f"{output} was not there: evaluated {folder} with {model}.")
    return output


def progress(what: str) -> Callable[..., None]:
    """An `advance` for what takes long, on one line that is written over; silent offline, so that outputs stay the same."""
    doing, finished, shown = what, 0, -1

    def advance(done: int, total: int, words: str = "") -> None:
        nonlocal doing, finished, shown
        step = words.partition(",")[0] or what  # what stands after a comma says how it goes
        if step != doing:
            doing, finished, shown = step, 0, -1
        finished += done
        percent = 100 * finished // max(total, 1)
        if percent != shown and not offline():
            line = f"{words or what}: {percent} %"  # with blanks that cover a longer one before it
            print(f"\r{line:<60}", end="\n" if percent >= 100 else "", flush=True)
        shown = percent

    return advance


def source(file: str) -> Path:
    """Where one of `SOURCES` is, in the package that it comes with.

    Raises:
        ImageError: that package is not there.
    """
    try:
        if file == "grace_hopper.jpg":
            import matplotlib

            return Path(matplotlib.get_data_path(), "sample_data", file)
        import skimage.data

        return Path(skimage.data.__file__).with_name(file)
    except ImportError as error:
        raise lrp.ImageError(
            f"{file} comes with {error.name}, which is not there: pip install 'lrp[demo,study]'."
        ) from error


def _altered(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """A part of the photo, mirrored or not, darker or brighter, sharp or blurred: some are hard to tell."""
    side = int(min(photo.size) * random.uniform(0.7, 1))
    left, top = (int(random.integers(0, room - side + 1)) for room in photo.size)
    part = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if random.random() < 0.5:
        part = ImageOps.mirror(part)
    part = ImageEnhance.Brightness(part).enhance(random.uniform(0.7, 1.3))
    return part.filter(ImageFilter.GaussianBlur(int(random.choice((0, 0, 0, 1, 2)))))


# --- tables -----------------------------------------------------------------------------------------------


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a column whose name begins with ">" is set to the right."""
    right = [name.startswith(">") for name in columns]
    lines = [[name.lstrip(">") for name in columns], *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(title)
    for line in lines:
        cells = zip(line, widths, right, strict=True)
        print("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip())
    print()


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# --- small pictures ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """What a notebook shows: its content as the notebook's format wants it, and of which kind it is."""

    content: bytes
    kind: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {self.kind: base64.b64encode(self.content).decode("ascii")}


def show(picture: Path | str | Image.Image | Figure, width: int = WIDTH) -> Picture:
    """A picture of at most `width` pixels: a notebook keeps its outputs, and should stay small.

    Args:
        picture: a figure of matplotlib's, shown as PNG; a file or a Pillow image with photos in it, shown as JPEG.

    Raises:
        ImageError: the file is no picture that can be read.
    """
    content = io.BytesIO()
    if isinstance(picture, Path | str):
        image = Image.fromarray(lrp.open_photo(picture).pixels)
    elif isinstance(picture, Image.Image):
        image = picture.convert("RGB")
    else:
        drawn = io.BytesIO()
        picture.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.12)
        image = Image.open(drawn).convert("RGB")
        _narrow(image, width).quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        return Picture(content.getvalue(), "image/png")
    # Full colour resolution: a heatmap's red and blue dots are single pixels.
    _narrow(image, width).save(content, "JPEG", quality=80, subsampling=0, optimize=True)
    return Picture(content.getvalue(), "image/jpeg")


def _narrow(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
