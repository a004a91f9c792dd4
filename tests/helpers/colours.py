"""A model that classifies photos by their mean colour, and photos for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry

NAMES = ("red", "green", "blue", "grey")
HALF = Preprocessing(Geometry(12, (8, 8)), (0.5,) * 3, (0.5,) * 3)


class Colours(nn.Module):
    """Four logits: the mean of each channel times six, and a constant."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(6.0))

    def forward(self, x):
        return torch.cat([self.scale * x.mean((2, 3)), torch.zeros(len(x), 1, dtype=x.dtype)], 1)


def loaded():
    return LoadedModel(Colours().eval(), HALF, NAMES)


def photos(root: Path, count: int = 5, folders=("red", "green", "blue")) -> Path:
    random = np.random.default_rng(0)
    for channel, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 200, (14, 20, 3), dtype=np.uint8)
            pixels[..., (channel + (i == 3)) % 3] += (
                40  # one photo of each folder has the next class's colour
            )
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root
