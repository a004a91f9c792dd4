"""An image processor of transformers as a function of a photo's pixels, and what it does with their levels."""

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SIZE = (201, 254)  # (height, width) of the photos of one colour


class Levels(NamedTuple):
    """What a processor makes of a photo's levels: (level / 255 - mean) / std of each channel, perhaps in another order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool


def settings_of(processor: Any) -> str:
    """A processor's configuration as JSON, from which `processor_of` makes it again."""
    return json.dumps(processor.to_dict(), sort_keys=True)


@cache
def processor_of(settings: str) -> tuple[Any, Levels]:
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory(prefix="lrp-") as folder:
        Path(folder, "preprocessor_config.json").write_text(settings, encoding="utf-8")
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return processor, levels_of(processor)


def processed(processor: Any, photo: np.ndarray) -> Tensor:
    """What the processor makes of a photo, uint8 [H, W, 3] -> float32 [C, h, w]."""
    made = processor(images=photo, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    if len(made) != 1 or made.ndim != 4:
        raise ValueError(f"it makes {list(made.shape)} of one photo")
    return torch.as_tensor(made[0], dtype=torch.float32)


def seen_by_processor(settings: str, photo: np.ndarray) -> np.ndarray:
    """The pixels that the processor gives to the model, uint8 [H, W, 3] -> uint8 [h, w, C], in its order of channels."""
    processor, levels = processor_of(settings)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in levels[:2])
    values = (processed(processor, photo).double() * std + mean) * 255
    return np.ascontiguousarray(values.round().clamp(0, 255).byte().numpy().transpose(1, 2, 0))


def levels_of(processor: Any) -> Levels:
    """Measured on photos of one colour. Numbers that the processor states are taken where they agree.

    Raises:
        ValueError: it gives another number of channels than one or three, or does not depend on the levels.
    """

    def centre(*colour: int) -> Tensor:
        made = processed(processor, np.full((*SIZE, 3), colour, np.uint8)).double()
        return made[:, made.shape[1] // 2, made.shape[2] // 2]

    black, white = centre(0, 0, 0), centre(255, 255, 255)
    if len(black) not in (1, 3) or not bool((white > black).all()):
        raise ValueError(
            f"it gives {len(black)} channels, {black.tolist()} for black and {white.tolist()} for white"
        )
    found = 1 / (white - black)
    mean, std = _stated(processor, "image_mean", -black * found), _stated(processor, "image_std", found)
    return Levels(mean, std, len(mean) == 3 and int((centre(255, 0, 0) - black).argmax()) == 2)


def _stated(processor: Any, entry: str, found: Tensor) -> tuple[float, ...]:
    given = getattr(processor, entry, None)
    if isinstance(given, Sequence) and len(given) == len(found) and np.allclose(given, found, 1e-5, 1e-6):
        return tuple(float(v) for v in given)
    return tuple(float(f"{float(v):.6g}") + 0.0 for v in found)
