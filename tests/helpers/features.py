"""A trunk, photos for it, and its features: for tests of the cache and for the processes that these tests kill."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lrp.data.data_set import DataSet, Sample
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry
from lrp.train.features import Store, features

PREPROCESSING = Preprocessing(Geometry(10, (8, 8), "bilinear"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


class Trunk(nn.Module):
    """Two features, [N, 6, 2, 2] and [N, 5]; both change if the photo is mirrored."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("a", torch.randn(6, 3, 4, 4, generator=generator))
        self.register_buffer("b", torch.randn(5, 3 * 8 * 8, generator=generator))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen.append(len(x))
        return nn.functional.conv2d(x, self.a, stride=4).tanh(), nn.functional.linear(x.flatten(1), self.b)


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def folder_of(tmp_path: Path, count: int = 11) -> list[Sample]:
    for number in range(count):
        photo(tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png", number)
    return list(DataSet.open(tmp_path / "data"))


def run(
    samples: Sequence[Sample], cache: Path, trunk: Callable[[Tensor], Any] | None = None, **changes: Any
) -> Store:
    given: dict[str, Any] = {"key": "weights 1f", "batch_size": 4, "workers": 2} | changes
    return features(trunk or Trunk(), samples, PREPROCESSING, cache, **given)
