"""Clever Hans: a model that is right for the wrong reason, found out by its heatmaps.

    python examples/clever_hans.py [FOLDER [SEED]]

Two classes, "archive" and "attic", are cut at random from the same photos, so that nothing in them tells the classes
apart; but each photo of the archive carries its stamp, always at another place. Retrained on that, the model is right
as long as the stamp is there, and its heatmaps lie on the stamp. The control is retrained on the same photos, filed by
what is on them, the stamp on half of each class, where it tells nothing. Every step is a command that could be typed;
FOLDER (clever_hans without one) keeps all they write. docs/clever_hans.md tells the story.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lrp.cli import main
from lrp.cli.demo import write_demo_photos
from lrp.pictures import heatmap

# Those of the demo's photos that are CC0 or in the public domain: pictures made of them may be shown anywhere.
PHOTOS = {"chelsea.png": "living", "camera.png": "living", "coffee.png": "things", "rocket.jpg": "things"}
SIDE, SEEN = 256, 224  # of a photo, and of its middle, which is what the model sees
EDGE = (SIDE - SEEN) // 2
STAMP = 96  # its diameter
RED, PAPER = (170, 20, 30), (250, 245, 225)

# In FOLDER: train, judge with and without the stamp, compare, explain.
COMMANDS = (
    "retrain planted -o hans.pth",
    "evaluate planted --model hans.pth -o hans_stamped.csv",
    "evaluate clean --model hans.pth -o hans_clean.csv",
    "compare hans_stamped.csv hans_clean.csv -o hans_without --count 3",
    "retrain honest -o control.pth",
    "evaluate honest --model control.pth -o control_stamped.csv",
    "evaluate honest_clean --model control.pth -o control_clean.csv",
    "compare control_stamped.csv control_clean.csv -o control_without --count 3",
    "explain planted/val/archive -o hans --model hans.pth --save npz --quiet",
    "explain planted/val/archive -o control --model control.pth --save npz --quiet",
    "explain clean/val/archive -o hans_clean --model hans.pth --target archive --save npz --quiet",
)


def write(folder: Path, train: int = 60, val: int = 30, seed: int = 0) -> None:
    """So many photos of each class, in folders that differ in the stamp and in how they are filed.

    planted/: each photo of the archive has the stamp, none of the attic; clean/: the same val/, and none has it.
    honest/: the same photos by what is on them, and every other has it; honest_clean/: that val/, and none has it.
    places.json says where on each photo the stamp is, or would be: its left and its top.
    """
    write_demo_photos(folder / "photos")
    sources = []
    for name, kind in PHOTOS.items():
        with Image.open(next((folder / "photos").rglob(name))) as source:
            sources.append((source.convert("RGB"), kind))
    random = np.random.default_rng(seed)
    places = {}
    for split, count in (("train", train), ("val", val)):
        for name in ("archive", "attic"):
            for i in range(count):
                source, kind = sources[int(random.integers(len(sources)))]
                photo = crop(source, random)
                place = random.integers(EDGE, SIDE - EDGE - STAMP + 1, 2).tolist()
                marked = stamped(photo, place)
                filed, otherwise = f"{split}/{name}/{i:03d}.png", f"{split}/{kind}/{name}{i:03d}.png"
                places[filed] = place
                save(marked if name == "archive" else photo, folder / "planted" / filed)
                save(marked if i % 2 else photo, folder / "honest" / otherwise)
                if split == "val":
                    save(photo, folder / "clean" / filed)
                    save(photo, folder / "honest_clean" / otherwise)
    (folder / "places.json").write_text(json.dumps(places))


def crop(source: Image.Image, random: np.random.Generator) -> Image.Image:
    """Any square of a photo, as it is or mirrored."""
    side = int(min(source.size) * random.uniform(0.4, 0.9))
    left, top = (int(random.integers(size - side + 1)) for size in source.size)
    square = source.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else square


def stamp() -> Image.Image:
    """Round, an A in two rings; drawn large, so that its edges are smooth."""
    big = Image.new("RGBA", (384, 384))
    pen = ImageDraw.Draw(big)
    pen.ellipse((0, 0, 383, 383), fill=PAPER, outline=RED, width=24)
    pen.ellipse((48, 48, 335, 335), outline=RED, width=10)
    pen.text((191.5, 191.5), "A", font=ImageFont.load_default(220), fill=RED, anchor="mm")
    return big.resize((STAMP, STAMP), Image.Resampling.LANCZOS)


def stamped(photo: Image.Image, place: list[int]) -> Image.Image:
    marked, mark = photo.copy(), stamp()
    marked.paste(mark, (place[0], place[1]), mark)
    return marked


def save(photo: Image.Image, path: Path) -> None:
    """One that is there and the same stays as it is: results stand as long as they are newer than their photos."""
    made = io.BytesIO()
    photo.save(made, "png")
    if not path.exists() or path.read_bytes() != made.getvalue():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.getvalue())


def study(folder: Path) -> list[int]:
    """Retrain, evaluate, compare, explain; returns the exit codes."""
    codes = []
    with chdir(folder):
        for command in COMMANDS:
            print(f"\n$ lrp {command}", flush=True)
            codes.append(main(shlex.split(command)))
    return codes


def seen(place: list[int]) -> np.ndarray:
    """bool [SEEN, SEEN]: the stamp's own pixels on what the model sees."""
    on = np.zeros((SIDE, SIDE), bool)
    on[place[1] : place[1] + STAMP, place[0] : place[0] + STAMP] = np.asarray(stamp())[..., 3] > 127
    return on[EDGE:-EDGE, EDGE:-EDGE]


def on_the_stamp(folder: Path, explained: str) -> np.ndarray:
    """Of each photo of the archive in `explained`/, by name: the share of its positive relevance on the stamp's pixels.

    Where the photo has no stamp, on the pixels that it would cover.
    """
    places = json.loads((folder / "places.json").read_text())
    shares = []
    for file in sorted((folder / explained).glob("*.npz")):
        positive = np.load(file)["relevance"].sum(0).clip(0)
        shares.append(positive[seen(places[f"val/archive/{file.stem}.png"])].sum() / positive.sum())
    return np.array(shares)


def contrast_on_the_stamp(folder: Path) -> np.ndarray:
    """Of the same stamped photos: the share of their contrast, |gradient of the grey photo|, on the stamp's pixels.

    What eye-catching alone would earn the stamp: its area is less than its due, as it has more edges than the rest.
    """
    places = json.loads((folder / "places.json").read_text())
    shares = []
    for file in sorted((folder / "planted" / "val" / "archive").glob("*.png")):
        with Image.open(file) as photo:
            down, across = np.gradient(np.asarray(photo.convert("L"), dtype=float))
        contrast = np.hypot(down, across)[EDGE:-EDGE, EDGE:-EDGE]
        shares.append(contrast[seen(places[f"val/archive/{file.name}"])].sum() / contrast.sum())
    return np.array(shares)


def side_by_side(folder: Path) -> None:
    """Each photo with both models' heatmaps, every one on its own scale, as `folder`/side_by_side/NNN.png."""
    on = {name: on_the_stamp(folder, name) for name in ("hans", "control")}
    for i, file in enumerate(sorted((folder / "planted" / "val" / "archive").glob("*.png"))):
        panels = []
        for name, share in on.items():
            relevance = np.load(folder / name / f"{file.stem}.npz")["relevance"].sum(0)
            whole = np.pad(relevance, EDGE, constant_values=np.nan)  # the model did not see the edge
            words = f"stamp: {100 * share[i]:.0f} % of positive relevance"
            panels.append(heatmap.Panel(whole, f"{name}.pth", words, heatmap.heatmap_scale([whole])))
        with Image.open(file) as photo:
            save(heatmap.draw(np.asarray(photo), panels), folder / "side_by_side" / file.name)


def line(name: str, share: np.ndarray) -> str:
    return (
        f"{name:<25} median {np.median(share):4.0%}, {share.min():3.0%} to {share.max():3.0%}; "
        f"more than half in {(share > 0.5).sum()} of {len(share)} photos"
    )


if __name__ == "__main__":
    here = Path(sys.argv[1] if len(sys.argv) > 1 else "clever_hans")
    write(here, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    failed = any(study(here))
    side_by_side(here)
    print(
        f"\nThe stamp is {seen([EDGE, EDGE]).mean():.1%} of what the model sees. Its share of the photos' contrast:"
    )
    print(line("contrast", contrast_on_the_stamp(here)))
    print("Its share of the positive relevance, for each folder explained:")
    for explained in sorted({file.parent.name for file in here.glob("*/*.npz")}):
        print(line(explained, on_the_stamp(here, explained)))
    sys.exit(failed)
