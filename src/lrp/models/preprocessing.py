"""The preprocessing that a model was trained with: from a photo's pixels to its input."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lrp.errors import ModelError
from lrp.models.geometries import (
    are_numbers,
    geometry_entries,
    geometry_from_dict,
    geometry_to_dict,
    geometry_with_side,
)
from lrp.pictures.geometry import Geometry
from lrp.pictures.levels import check_range


@dataclass(frozen=True)
class Preprocessing:
    """From a photo's pixels to the input that the model was trained on: resize, crop, then (x / 255 - mean) / std.

    mean, std: one number per channel of the input: three of RGB, or one of grey.
    range: which levels of photos deeper than 8 bits are black and white; None: as `open_photo` finds.
    bgr: the input's channels are blue, green, red.
    """

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, float] | None = None
    bgr: bool = False

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H, W, 3], upright RGB -> float32 [C, h, w], C as many as there are means."""
        seen = self.channels(self.geometry.apply(pixels))
        return self.normalised(torch.tensor(np.ascontiguousarray(seen.transpose(2, 0, 1))))

    def channels(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3] -> [H, W, C] in the input's order, or one channel of grey (ITU-R 601, as Pillow's and
        torchvision's)."""
        if len(self.mean) == 3:
            return pixels[..., ::-1] if self.bgr else pixels
        return np.array(Image.fromarray(pixels).convert("L"))[..., None]

    def normalised(self, levels: Tensor) -> Tensor:
        """uint8 [..., C, h, w] -> float32, (x / 255 - mean) / std."""
        mean, std = (
            torch.tensor(values, device=levels.device).view(-1, 1, 1) for values in (self.mean, self.std)
        )
        return levels.float().div(255).sub(mean).div(std)

    def zeros(self, images: int) -> Tensor:
        """[images, C, h, w] of the shape that the model takes: of square photos, if the shape depends on the photo."""
        side = self.geometry.resize if isinstance(self.geometry.resize, int) else 224
        return torch.zeros(images, len(self.mean), *self.geometry.input_size(side, side))

    @property
    def low(self) -> tuple[float, ...]:
        """The least value an input can take, per channel: black."""
        return tuple((0 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        """The greatest value an input can take, per channel: white."""
        return tuple((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    def with_size(self, side: int) -> "Preprocessing":
        """The same with a square input of `side` pixels; the resize before the crop keeps its proportion. Where the input is the
        whole photo, its shorter side becomes `side`.
        """
        if side < 1:
            raise ModelError(f"no input can be {side} pixels wide: a whole number from 1 on is expected.")
        return replace(self, geometry=geometry_with_side(self.geometry, side))

    def in_grey(self) -> "Preprocessing":
        """The same for one channel of grey, with the averages of mean and std."""
        mean, std = ((sum(values) / len(values),) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std, bgr=False)

    def with_range(self, range: tuple[float, float] | None) -> "Preprocessing":
        """The same for photos in which these levels are black and white."""
        return replace(self, range=check_range(range))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **geometry_to_dict(self.geometry),
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if self.range is None else {"range": list(self.range)}),
            **({"bgr": True} if self.bgr else {}),
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
        """The inverse of `to_dict`. Raises ModelError naming every entry that is missing or malformed."""
        values = values if isinstance(values, Mapping) else {}
        rules: dict[str, Callable[[Any], bool]] = {
            **geometry_entries(values),
            "mean": lambda v: are_numbers(v, 1, 3),
            "std": lambda v: are_numbers(v, 1, 3) and min(v) > 0 and len(v) == len(values.get("mean") or v),
        }
        if "range" in values:
            rules["range"] = lambda v: are_numbers(v, 2) and v[0] < v[1]
        if "bgr" in values:
            rules["bgr"] = lambda v: isinstance(v, bool) and (not v or len(values.get("mean") or ()) == 3)
        wrong = [
            f"{key} cannot be {json.dumps(values[key])}" if key in values else f"{key} is missing"
            for key, fits in rules.items()
            if key not in values or not fits(values[key])
        ]
        if wrong:
            raise ModelError(f"preprocessing: {', '.join(wrong)}")
        low_high = values.get("range")
        return cls(
            geometry_from_dict(values), tuple(map(float, values["mean"])), tuple(map(float, values["std"])),
            None if low_high is None else (float(low_high[0]), float(low_high[1])), values.get("bgr", False),
        )  # fmt: skip
