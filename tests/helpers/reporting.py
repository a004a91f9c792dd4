"""A small study with hostile names, for the tests of the report: photos, two tables, two tiny models."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import lrp
from lrp.gallery.gallery import Gallery
from lrp.gallery.options import ExplainOptions
from lrp.gallery.request import Request
from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry
from lrp.study.predictions import Prediction, write_predictions

CLASSES = (
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "שלום \u202eevil",
    '🦩 it\'s "quoted" & co',
)
SIDE = 32


@dataclass
class Study:
    folder: Path
    tables: tuple[Path, Path]
    rows: tuple[list[Prediction], list[Prediction]]
    galleries: tuple[Gallery, Gallery]

    def cells(self, which: int = 0) -> list[dict[str, str]]:
        """The table, read by the standard library."""
        with open(self.tables[which], encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def tiny(weights: int, **settings: object) -> Gallery:
    torch.manual_seed(weights)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 4),
    ).eval()
    preprocessing = Preprocessing(Geometry(36, (SIDE, SIDE)), (0.5,) * 3, (0.25,) * 3)
    explainer = lrp.Explainer(
        model, lrp.preset("epsilon_gamma_box", low=-2.0, high=2.0), class_names=CLASSES, **settings
    )
    loaded = LoadedModel(model, preprocessing, CLASSES)
    return Gallery(
        loaded, explainer, Request("predicted", ("predicted",)), {}, ExplainOptions("epsilon_gamma_box")
    )


def study(folder: Path, count: int = 12) -> Study:
    """`count` photos of 4 classes, one broken, one without a class; the predictions are computed by the models."""
    galleries = tiny(0), tiny(1)
    random = np.random.default_rng(0)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    tables: tuple[list[Prediction], list[Prediction]] = ([], [])
    for i in range(count):
        name = f"{i:02d} <b onclick='x'>&amp;\u202e.png" if i % 5 == 0 else f"{i:02d}.png"
        path = photos / name
        shape = (40, 60, 3) if i % 2 else (60, 44, 3)
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).resize(
            (shape[1] * 3, shape[0] * 3)
        ).save(path)
        if i == 3:
            path.write_bytes(b"not a picture")
        for rows, gallery in zip(tables, galleries, strict=True):
            rows.append(_predict(path, gallery, i))
    places = folder / "a <i>.csv", folder / "b.csv"
    for place, rows in zip(places, tables, strict=True):
        write_predictions(place, rows)
    return Study(folder, places, tables, galleries)


def _predict(path: Path, gallery: Gallery, i: int) -> Prediction:
    true = i % len(CLASSES)
    if i == 3:
        return Prediction(
            str(path),
            CLASSES[true],
            status="unreadable",
            error="not a <b>picture</b>",
            true_index=true,
            model="tiny",
        )
    with torch.no_grad():
        p = gallery.loaded.model(gallery.loaded.preprocessing(lrp.open_photo(path).pixels)[None])[0].softmax(
            0
        )
    order = p.argsort(descending=True).tolist()
    known = i != 4
    return Prediction(
        str(path), CLASSES[true] if known else "", CLASSES[order[0]], float(p[order[0]]), float(p[true]) if known else None,
        order[0] == true if known else None, "ok" if known else "unmatched", true_index=true if known else None,
        predicted_index=order[0], top5={CLASSES[k]: float(p[k]) for k in order}, model="tiny", weights="00ff",
    )  # fmt: skip


def document(path: Path) -> dict:
    """The JSON document of a report, read without our code."""
    text = path.read_text(encoding="utf-8")
    start = text.index('<script type="application/json" id="data">') + len(
        '<script type="application/json" id="data">'
    )
    return json.loads(text[start : text.index("</script>", start)])
