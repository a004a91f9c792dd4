"""`lrp demo`: example photos and their explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrp.cli import common, explain
from lrp.errors import ImageError

PACKAGED = "efficientnet_lite0"
# scikit-image's photos: file -> the ImageNet class of the object shown.
PHOTOS = {
    "chelsea.png": "tiger cat",
    "coffee.png": "espresso",
    "camera.png": "tripod",
    "motorcycle_left.png": "moped",
    "rocket.jpg": "missile",
}


@common.command_example("lrp demo")
def demo(
    photos: Annotated[Path, typer.Option("--input", help="Folder for the photos.")] = Path("input"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("output"),
) -> None:
    """Write a few photos to input/<class>/ and explain them with the packaged model; nothing is downloaded."""
    import lrp

    places = write_demo_photos(photos)
    with common.progress("explaining") as advance:
        counts = explain.print_explained_files(lrp.explain_folder(places, output, advance=advance))
    print(f"Look at {output}/: each photo with the pixels that made the model decide, red for, blue against.")
    table, page = output / "results.csv", output / "report.html"
    lrp.evaluate(photos, PACKAGED, table, overwrite=True)
    made = lrp.report(table, page, command=f"lrp report {table} -o {page}")
    for note in made.notes:
        common.print_message(note)
    print(f"The same and more as one page, to be opened in a browser: {made.path}")
    if counts["skipped"]:
        raise common.Skipped


def write_demo_photos(folder: Path) -> list[Path]:
    """Copy scikit-image's photos to `folder`/<class>/; existing files are not replaced."""
    try:
        import skimage.data
    except ImportError as error:
        raise ImageError("the demo's photos come with scikit-image: pip install 'lrp[demo]'.") from error
    source = Path(skimage.data.__file__).parent
    for name, category in PHOTOS.items():
        place = folder / category / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((source / name).read_bytes())
    return [folder]
