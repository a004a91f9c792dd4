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

    names: Any = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(family) or auto.IMAGE_PROCESSOR_MAPPING_NAMES["vit"]
    # Older versions have a pair: Pillow's and torchvision's.
    name = names.get("torchvision") or names["pil"] if isinstance(names, dict) else names[-1] or names[0]
    return auto.get_image_processor_class_from_name(name)


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


WORDS = [
    "<pad>",
    "<start>",
    "<end>",
    "<unknown>",
    *["a", "photo", "of", "cat", "dog", "red", "green", "thing", "ball", "no", "one"],
]

_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_image_text(folder: Path, family: str, side: int = 32) -> tuple[nn.Module, Any]:
    """Write a small model of images and texts ("clip", "siglip", ...), its image processor and a tokenizer of `WORDS`.

    Returns:
        The model and the processor, which takes images and texts.
    """
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    numbers = {word: number for number, word in enumerate(WORDS)}
    tokens = Tokenizer(models.WordLevel(numbers, "<unknown>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>",
        model_max_length=12,
    )  # fmt: skip
    text = {**_TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 12,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    image = {**_TOWER, "image_size": side, "patch_size": 8}
    joined = {"clip": hf.CLIPConfig, "siglip": hf.SiglipConfig, "metaclip_2": hf.MetaClip2Config}[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = joined(text_config=text, vision_config=image, projection_dim=16)
        model = getattr(hf, config.architectures[0] if config.architectures else _MODEL[family])(
            config
        ).eval()
        for parameter in model.parameters():  # biases and positions too, so that none is without effect
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    size = {"height": side, "width": side} if family == "siglip" else {"shortest_edge": side}
    images = processor_class(family)(size=size, crop_size={"height": side, "width": side})
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def processor(texts: list[str], photo: np.ndarray) -> Any:
        padding: Any = "max_length" if family == "siglip" else True
        made = tokenizer(texts, padding=padding, return_tensors="pt")
        return {n: made[n] for n in ("input_ids", "attention_mask")} | dict(
            images(images=photo, return_tensors="pt")
        )

    return model, processor


_MODEL = {"clip": "CLIPModel", "siglip": "SiglipModel", "metaclip_2": "MetaClip2Model"}
