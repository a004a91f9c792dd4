"""Make the pictures of docs/signals_and_volumes.md, by running the page's own code.

    python tools/docs_signals.py [FOLDER]    # docs/pictures without FOLDER; seconds

With 256 colours, so that they are small.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "signals_and_volumes.md"


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]).absolute() if arguments else DOCS / "pictures"
    torch.set_num_threads(1)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        exec(compile(code, str(PAGE), "exec"), {})
        for path in sorted(Path(made).glob("*.png")):
            with Image.open(path) as picture:
                small = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            small.save(folder / path.name, optimize=True)
            print(folder / path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
