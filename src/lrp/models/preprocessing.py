"""The preprocessing that a model was trained with: from a photo's pixels to its input."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp.errors import ModelError
from lrp.pictures.photos import Geometry


@dataclass(frozen=True)
class Preprocessing:
    """From a photo's pixels to the input that the model was trained on: resize, crop, then (x / 255 - mean) / std.

    mean, std: one number per channel.
    """

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H, W, 3], upright RGB -> float32 [3, h, w]."""
        cropped = torch.tensor(np.ascontiguousarray(self.geometry.apply(pixels).transpose(2, 0, 1)))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return cropped.float().div(255).sub(mean).div(std)

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        resize = self.geometry.resize
        return {
            "resize": list(resize) if isinstance(resize, tuple) else resize,
            "crop": list(self.geometry.crop),
            "interpolation": self.geometry.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
        """The inverse of `to_dict`. Raises ModelError naming every entry that is missing or malformed."""
        rules: dict[str, Callable[[Any], bool]] = {
            "resize": lambda v: v is None or _are_sizes([v]) or _are_sizes(v, 2),
            "crop": lambda v: _are_sizes(v, 2),
            "interpolation": lambda v: v in ("bilinear", "bicubic", "nearest", "lanczos"),
            "mean": _are_three_numbers,
            "std": lambda v: _are_three_numbers(v) and min(v) > 0,
        }
        values = values if isinstance(values, Mapping) else {}
        wrong = [
            f"{key} cannot be {json.dumps(values[key])}" if key in values else f"{key} is missing"
            for key, fits in rules.items()
            if key not in values or not fits(values[key])
        ]
        if wrong:
            raise ModelError(f"preprocessing: {', '.join(wrong)}")
        resize = tuple(values["resize"]) if isinstance(values["resize"], list) else values["resize"]
        geometry = Geometry(resize=resize, crop=tuple(values["crop"]), interpolation=values["interpolation"])
        return cls(geometry, tuple(map(float, values["mean"])), tuple(map(float, values["std"])))


def _are_sizes(values: Any, count: int = 1) -> bool:
    """Whether it is a list of `count` integers >= 1."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    )


def _are_three_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
