"""Small models of transformers with their image processors, saved as `save_pretrained` does; random weights."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from lrp.survey.hugging_face import build_hugging_face

SAMPLE = Path(__file__).parents[3] / "shared/data/imagenet-sample"


def processor_class(family: str) -> Any:
    """The class of a family's image processor, as transformers chooses it where torchvision is installed."""
    from transformers.models.auto import image_processing_auto as auto

    names = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(family, {"torchvision": "ViTImageProcessor"})
    return auto.get_image_processor_class_from_name(names.get("torchvision") or names["pil"])


def save_classifier(folder: Path, family: str, **labels: Any) -> tuple[nn.Module, Any]:
    """Write the family's small model and a processor for its size; returns both.

    labels: names of the ten classes, or none.
    """
    model, side = build_hugging_face(family)
    model.config.update(labels)
    model.save_pretrained(folder)
    kind = processor_class(family)
    square = {"height": side, "width": side}
    size = square if "height" in dict(kind().size) else {"shortest_edge": side + 8}
    shorter = {"resize_short": side + 8} if hasattr(kind, "resize_short") else {}
    processor = kind(size=size, crop_size=square, **shorter)
    processor.save_pretrained(folder)
    return model, processor


def real_photos(count: int) -> list[np.ndarray]:
    """Photos of real things, where there are some beside the checkout; else noise of the same sizes."""
    files = sorted(SAMPLE.glob("*/*"))[:count]
    if files:
        return [np.array(Image.open(file).convert("RGB")) for file in files]
    random = np.random.default_rng(0)
    sizes = [(288, 288 + 37 * i) if i % 2 else (288 + 41 * i, 288) for i in range(count)]
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
