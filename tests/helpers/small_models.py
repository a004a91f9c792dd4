"""A tiny classifier with its preprocessing, and photos for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry

NAMES = ("cat", "dog", "owl")
SIDE = 16


def small_model(seed: int = 0, names: tuple[str, ...] = NAMES) -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, len(names))
        )
    return LoadedModel(
        net.eval(), Preprocessing(Geometry(SIDE + 4, (SIDE, SIDE)), (0.5,) * 3, (0.25,) * 3), names
    )


def write_photos(folder: Path, count: int = 2, classes: tuple[str, ...] = NAMES[:2]) -> list[Path]:
    """`count` photos of noise for each class, 32 pixels wide and 24 high: folder/<class>/<i>.png."""
    random = np.random.default_rng(0)
    places = []
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            places.append(folder / name / f"{i}.png")
            Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(places[-1])
    return places
