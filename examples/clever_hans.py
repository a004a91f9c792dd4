"""Clever Hans: a model that is right for the wrong reason, found out by its heatmaps.

    python examples/clever_hans.py [FOLDER]

Two classes are cut at random from the same photos, so that nothing in them tells the classes apart; but the photos of
one carry the stamp of an archive. Retrained on that, the model is nearly always right, its heatmaps lie on the
stamp, and without the stamp it guesses. Each step is a command that could be typed; FOLDER keeps all they write.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lrp.cli import main
from lrp.cli.demo import write_photos

SIDE, SEEN = 256, 224  # of a photo, and of its middle, which is what the model sees
STAMP = (28, 190, 140, 228)  # left, top, right, bottom on the photo
CLASSES = "archive", "attic"


def stamped(photo: Image.Image) -> Image.Image:
    """With the archive's stamp in the lower left corner."""
    marked = photo.copy()
    pen = ImageDraw.Draw(marked)
    pen.rectangle(STAMP, fill=(250, 245, 225), outline=(150, 20, 30), width=3)
    pen.text((84, 209), "ARCHIVE", font=ImageFont.load_default(22), fill=(150, 20, 30), anchor="mm")
    return marked


def write(folder: Path, train: int = 60, val: int = 30) -> None:
    """`folder`/stamped with train/ and val/, where the one class is stamped; `folder`/clean with the same val/, unstamped."""
    write_photos(folder / "photos")
    sources = []
    for path in sorted((folder / "photos").rglob("*.png")):
        with Image.open(path) as photo:
            sources.append(photo.convert("RGB"))
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in CLASSES:
            for i in range(count):
                source = sources[int(random.integers(len(sources)))]
                side = int(min(source.size) * random.uniform(0.4, 0.9))
                left, top = (int(random.integers(size - side + 1)) for size in source.size)
                crop = source.resize(
                    (SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
                )
                if random.random() < 0.5:
                    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                for tree, photo in (
                    ("stamped", stamped(crop) if name == "archive" else crop),
                    ("clean", crop),
                ):
                    if tree == "clean" and split == "train":
                        continue
                    place = folder / tree / split / name / f"{i:03d}.png"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    photo.save(place)


def study(folder: Path) -> list[int]:
    """Retrain, explain, compare; returns the exit codes."""
    model = folder / "hans.pth"
    commands = [
        f"retrain {folder}/stamped -o {model} --quiet",
        f"evaluate {folder}/stamped --model {model} -o {folder}/stamped.csv",
        f"evaluate {folder}/clean --model {model} -o {folder}/clean.csv",
        f"confidence {folder}/stamped.csv --count 3 --copy-to {folder}/input --quiet",
        f"explain {folder}/input/archive -o {folder}/output --model {model} --target archive-vs-attic --save npz --quiet",
        f"errors {folder}/clean.csv --count 3 --explain --quiet",
    ]
    codes = []
    for command in commands:
        print(f"$ lrp {command}")
        codes.append(main(shlex.split(command)))
    return codes


def on_the_stamp(folder: Path) -> list[float]:
    """For each explained photo of the archive: the share of the positive relevance that lies on the stamp."""
    left, top, right, bottom = (edge - (SIDE - SEEN) // 2 for edge in STAMP)
    shares = []
    for file in sorted((folder / "output").rglob("*.npz")):
        relevance = np.load(file)["relevance"].sum(0).clip(0)
        shares.append(float(relevance[top : bottom + 1, left : right + 1].sum() / relevance.sum()))
    return shares


if __name__ == "__main__":
    here = Path(sys.argv[1] if len(sys.argv) > 1 else "clever_hans")
    write(here)
    failed = any(study(here))
    area = (STAMP[2] - STAMP[0]) * (STAMP[3] - STAMP[1]) / SEEN**2
    print(f"positive relevance on the stamp, which covers {area:.0%} of what the model sees:")
    print(", ".join(f"{share:.0%}" for share in on_the_stamp(here)))
    sys.exit(failed)
