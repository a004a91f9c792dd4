"""Geometries that need more than Pillow: by resized tensors, or by a processor of transformers; and all of them as JSON."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lrp.errors import ModelError
from lrp.models.hugging_face.processor_calls import seen_by_processor
from lrp.pictures.geometry import INTERPOLATIONS, Geometry


@dataclass(frozen=True)
class TensorGeometry(Geometry):
    """As transformers' processors do it: tensors are resized by torchvision, which rounds otherwise than Pillow, and the crop's
    offset is rounded down."""

    def _resize(self, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        mode = InterpolationMode(self.interpolation)
        resized = functional.resize(image, list(size), interpolation=mode, antialias=True)
        return np.ascontiguousarray(resized.numpy().transpose(1, 2, 0))

    @staticmethod
    def _offset(length: int, size: int) -> int:
        return -((size - length) // 2) if size > length else (length - size) // 2


@dataclass(frozen=True)
class ProcessorGeometry(Geometry):
    """What a processor of transformers does that no other geometry says: it is called itself, and where it looks is measured.

    settings: the processor's configuration as JSON.
    """

    settings: str = ""

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [*input_size, C], in the processor's order of channels."""
        return seen_by_processor(self.settings, pixels)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.crop or measured(self, height, width)[0]

    def _placement(self, height: int, width: int) -> Any:
        return measured(self, height, width)[1:]


@lru_cache(maxsize=256)
def measured(
    geometry: ProcessorGeometry, height: int, width: int
) -> tuple[tuple[int, int], tuple[float, float], tuple[float, float]]:
    """(the input's size, the whole photo's in the input's pixels, where in it the input begins): from where ramps of grey, one
    down and one across, come to lie in the input.
    """
    down = np.linspace(0, 255, height)[:, None, None].repeat(width, 1)
    across = np.linspace(0, 255, width)[None, :, None].repeat(height, 0)
    seen = [geometry.apply(np.rint(ramp).astype(np.uint8).repeat(3, 2))[..., 0] for ramp in (down, across)]
    lines = [np.median(values, axis=1 - axis) for axis, values in enumerate(seen)]
    (high, top), (wide, left) = map(_line, lines, (height, width))
    return (len(lines[0]), len(lines[1])), (high, wide), (top, left)


def _line(levels: np.ndarray, length: int) -> tuple[float, float]:
    """(the ramp's whole length in the input's pixels, where in it the input begins), of a line fitted to the middle of the
    input, where nothing is padded.

    levels: of the input's pixels along a ramp from 0 to 255 over the photo's `length` pixels.
    """
    centre = np.arange(len(levels)) + 0.5
    inside = (levels > 0) & (levels < 255) & (abs(centre / len(levels) - 0.5) < 0.3)
    if inside.sum() < 2:  # a photo of a few pixels
        return float(len(levels)), 0.0
    step, start = np.polyfit(centre[inside], levels[inside] / 255 * (length - 1) + 0.5, 1)
    return length / step, start / step


# --- as JSON ----------------------------------------------------------------------------------------------


def geometry_to_dict(geometry: Geometry) -> dict[str, Any]:
    """Plain values, for JSON."""
    crop = None if geometry.crop is None else list(geometry.crop)
    if isinstance(geometry, ProcessorGeometry):
        return {"crop": crop, "processor": json.loads(geometry.settings)}
    resize = list(geometry.resize) if isinstance(geometry.resize, tuple) else geometry.resize
    by = {"resized_as": "tensor"} if isinstance(geometry, TensorGeometry) else {}
    return {"resize": resize, "crop": crop, "interpolation": geometry.interpolation, **by}


def geometry_entries(values: Mapping[str, Any]) -> dict[str, Callable[[Any], bool]]:
    """The entries that these values must have, each with the test that it must pass."""
    crop = {"crop": lambda v: v is None or _are_sizes(v, 2)}
    if "processor" in values:
        return {**crop, "processor": lambda v: isinstance(v, dict)}
    by = {"resized_as": lambda v: v == "tensor"} if "resized_as" in values else {}
    return {
        "resize": lambda v: v is None or _are_sizes([v]) or _are_sizes(v, 2),
        **crop,
        "interpolation": lambda v: isinstance(v, str) and v in INTERPOLATIONS,
        **by,
    }


def geometry_from_dict(values: Mapping[str, Any]) -> Geometry:
    """The inverse of `geometry_to_dict`, of values that pass the tests of `geometry_entries`."""
    crop = None if values["crop"] is None else (values["crop"][0], values["crop"][1])
    if "processor" in values:
        return ProcessorGeometry(None, crop, settings=json.dumps(values["processor"], sort_keys=True))
    resize = tuple(values["resize"]) if isinstance(values["resize"], list) else values["resize"]
    kind = TensorGeometry if "resized_as" in values else Geometry
    return kind(resize, crop, values["interpolation"])


def geometry_with_side(geometry: Geometry, side: int) -> Geometry:
    """The same with a square input of `side` pixels, the resize before the crop in proportion; without a crop, with the
    shorter side resized to `side`.

    Raises:
        ModelError: a processor of transformers decides the size.
    """
    if isinstance(geometry, ProcessorGeometry):
        raise ModelError(
            "the size of the input is set by the model's own processor: leave the size (--size) out."
        )
    resize = geometry.resize
    if geometry.crop is None:
        return replace(geometry, resize=(side, side) if isinstance(resize, tuple) else side)
    height, width = geometry.crop
    if isinstance(resize, int):
        resize = round(resize * side / min(height, width))
    elif resize is not None:
        resize = (round(resize[0] * side / height), round(resize[1] * side / width))
    return replace(geometry, resize=resize, crop=(side, side))


def _are_sizes(values: Any, count: int = 1) -> bool:
    """Whether it is a list of `count` integers >= 1."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    )


def are_numbers(values: Any, *counts: int) -> bool:
    """Whether it is a list of finite numbers, as many as one of `counts`."""
    return (
        isinstance(values, list)
        and len(values) in counts
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
