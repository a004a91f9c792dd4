"""Make the picture in docs/report.md: a photo's page in a report of the demo's photos, rendered by a browser.

    python tools/docs_report.py [FOLDER]    # docs/pictures without FOLDER; half a minute; needs Chromium

It runs the commands given on the page, and draws the rectangle with the browser's mouse.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from lrp.cli.demo import write_demo_photos

WIDTH, PHOTO = 1100, "coffee.png"
RECTANGLE = (0.40, 0.22, 0.66, 0.55)  # left, top, right, bottom of the coffee, as fractions of the photo


def make_report(folder: Path) -> Path:
    write_demo_photos(folder / "input")
    for line in ("evaluate input -o photos.csv --quiet", "report photos.csv -o report.html --quiet"):
        subprocess.run(
            [sys.executable, "-m", "lrp", *line.split()],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
        )
    return folder / "report.html"


def screenshot(report: Path) -> Image.Image:
    left, top, right, bottom = RECTANGLE
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
        page.goto(f"{report.as_uri()}#photos")
        page.locator("a.tile", has_text=PHOTO).click()
        canvas = page.locator("#stage-0 canvas")
        page.wait_for_function("document.querySelector('#stage-0 canvas').getAttribute('aria-label')")
        box = canvas.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=5)
        page.mouse.up()
        page.wait_for_function("document.querySelector('[name=right]').value")
        picture = page.screenshot(full_page=True)
        browser.close()
    return Image.open(io.BytesIO(picture)).convert("RGB")


def main(folder: Path = Path(__file__).parents[1] / "docs" / "pictures") -> None:
    with tempfile.TemporaryDirectory() as scratch:
        picture = screenshot(make_report(Path(scratch)))
    path = folder / "report_photo.png"
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}  {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
