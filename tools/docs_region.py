"""Make the picture of docs/your_model.md, by running the page's own code.

    python tools/docs_region.py [FOLDER]    # docs/pictures without FOLDER; seconds

With 256 colours and `WIDTH` pixels wide, so that it is small.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lrp.cli.demo import write_demo_photos
from lrp.pictures import heatmap

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "your_model.md"
WIDTH = 800


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]).absolute() if arguments else DOCS / "pictures"
    torch.set_num_threads(1)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if "region.png" in block]
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        write_demo_photos(Path("input"))
        exec(compile(f"import lrp, torch\n{code}", str(PAGE), "exec"), {})
        with Image.open("region.png") as drawn:
            picture = drawn.convert("RGB").resize(
                (WIDTH, drawn.height * WIDTH // drawn.width), Image.Resampling.LANCZOS
            )
        small = picture.quantize(palette=_palette(picture), dither=Image.Dither.NONE)
        small.save(folder / "region.png", optimize=True)
        print(folder / "region.png")


def _palette(picture: Image.Image) -> Image.Image:
    """The heatmap's colours in equal steps, greys for text and frames, and the rest for the photo on the left."""
    shades = heatmap.heatmap_colours(np.linspace(-1, 1, 61)[None], 1).reshape(-1, 3)
    greys = np.linspace(25, 255, 16).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    photo = picture.crop((0, 0, picture.width // 2, picture.height)).quantize(256 - len(shades) - len(greys))
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([shades, greys]).tobytes() + bytes(photo.getpalette() or ()))
    return palette


if __name__ == "__main__":
    main(sys.argv[1:])
