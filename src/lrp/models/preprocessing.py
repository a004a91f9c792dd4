"""The preprocessing that a model was trained with: from a photo's pixels to its input."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lrp.errors import ModelError
from lrp.pictures.levels import check_range
from lrp.pictures.photos import Geometry


@dataclass(frozen=True)
class Preprocessing:
    """From a photo's pixels to the input that the model was trained on: resize, crop, then (x / 255 - mean) / std.

    mean, std: one number per channel: three of RGB, or one of grey.
    range: which levels of photos deeper than 8 bits are black and white; None: as `open_photo` finds.
    """

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, float] | None = None

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H, W, 3], upright RGB -> float32 [C, h, w], C as many as there are means."""
        seen = self.channels(self.geometry.apply(pixels))
        return self.normalised(torch.tensor(np.ascontiguousarray(seen.transpose(2, 0, 1))))

    def channels(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> [H, W, C]: as it is, or one channel of grey (ITU-R 601, as Pillow's and torchvision's)."""
        if len(self.mean) == 3:
            return pixels
        return np.array(Image.fromarray(pixels).convert("L"))[..., None]

    def normalised(self, levels: Tensor) -> Tensor:
        """uint8 [..., C, h, w] -> float32, (x / 255 - mean) / std."""
        mean, std = (
            torch.tensor(values, device=levels.device).view(-1, 1, 1) for values in (self.mean, self.std)
        )
        return levels.float().div(255).sub(mean).div(std)

    def zeros(self, images: int) -> Tensor:
        """[images, C, h, w] of the shape that the model takes."""
        return torch.zeros(images, len(self.mean), *self.geometry.crop)

    @property
    def low(self) -> tuple[float, ...]:
        """The least value an input can take, per channel: black."""
        return tuple((0 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        """The greatest value an input can take, per channel: white."""
        return tuple((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    def with_size(self, side: int) -> "Preprocessing":
        """The same with a square input of `side` pixels; the resize before the crop keeps its proportion."""
        if side < 1:
            raise ModelError(f"no input can be {side} pixels wide: a whole number from 1 on is expected.")
        height, width = self.geometry.crop
        resize = self.geometry.resize
        if isinstance(resize, int):
            resize = round(resize * side / min(height, width))
        elif resize is not None:
            resize = (round(resize[0] * side / height), round(resize[1] * side / width))
        return replace(self, geometry=replace(self.geometry, resize=resize, crop=(side, side)))

    def with_range(self, range: tuple[float, float] | None) -> "Preprocessing":
        """The same for photos in which these levels are black and white."""
        return replace(self, range=check_range(range))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        resize = self.geometry.resize
        return {
            "resize": list(resize) if isinstance(resize, tuple) else resize,
            "crop": list(self.geometry.crop),
            "interpolation": self.geometry.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if self.range is None else {"range": list(self.range)}),
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
        """The inverse of `to_dict`. Raises ModelError naming every entry that is missing or malformed."""
        rules: dict[str, Callable[[Any], bool]] = {
            "resize": lambda v: v is None or _are_sizes([v]) or _are_sizes(v, 2),
            "crop": lambda v: _are_sizes(v, 2),
            "interpolation": lambda v: v in ("bilinear", "bicubic", "nearest", "lanczos"),
            "mean": lambda v: _are_numbers(v, 1, 3),
            "std": lambda v: _are_numbers(v, 1, 3) and min(v) > 0 and len(v) == len(values.get("mean") or v),
        }
        values = values if isinstance(values, Mapping) else {}
        if "range" in values:
            rules["range"] = lambda v: _are_numbers(v, 2) and v[0] < v[1]
        wrong = [
            f"{key} cannot be {json.dumps(values[key])}" if key in values else f"{key} is missing"
            for key, fits in rules.items()
            if key not in values or not fits(values[key])
        ]
        if wrong:
            raise ModelError(f"preprocessing: {', '.join(wrong)}")
        resize = tuple(values["resize"]) if isinstance(values["resize"], list) else values["resize"]
        geometry = Geometry(resize=resize, crop=tuple(values["crop"]), interpolation=values["interpolation"])
        low_high = values.get("range")
        return cls(
            geometry, tuple(map(float, values["mean"])), tuple(map(float, values["std"])),
            None if low_high is None else (float(low_high[0]), float(low_high[1])),
        )  # fmt: skip


def _are_sizes(values: Any, count: int = 1) -> bool:
    """Whether it is a list of `count` integers >= 1."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    )


def _are_numbers(values: Any, *counts: int) -> bool:
    """Whether it is a list of finite numbers, as many as one of `counts`."""
    return (
        isinstance(values, list)
        and len(values) in counts
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
