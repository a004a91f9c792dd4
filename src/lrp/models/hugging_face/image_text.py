"""Models of images and texts, such as CLIP, as classifiers whose classes are given texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrp.errors import ModelError, error_reason
from lrp.models.hugging_face.repository import Repository, quiet

TOLERANCE = 1e-4  # of the largest logit
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


class ImageText(nn.Module):
    """Logits of an image for each of some texts: scale * cosine(image, text) + bias, as the model itself computes them.

    Args:
        model: with a method get_image_features, and a parameter logit_scale or temperature.
        texts: [K, D], the texts' embeddings.
    """

    def __init__(self, model: nn.Module, texts: Tensor) -> None:
        super().__init__()
        self.model = model
        held: Any = model
        scale = held.logit_scale.exp() if hasattr(held, "logit_scale") else 1 / held.temperature
        bias = getattr(held, "logit_bias", torch.zeros(()))
        self.register_buffer("weight", (scale * _unit(texts)).detach())
        self.register_buffer("bias", bias.detach().reshape(-1).expand(len(texts)).clone())

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W]; returns [N, K]."""
        model: Any = self.model
        image = _unit(_embedding(model.get_image_features(pixel_values=x)))
        return nn.functional.linear(image, self.weight, self.bias)  # type: ignore[arg-type]


def image_text_classifier(repository: Repository, texts: Sequence[str]) -> nn.Module:
    """The model as a classifier of these texts, in eval mode; their embeddings are computed once.

    Raises:
        ModelError: there is no tokenizer, or the model's logits are not scale * cosine + bias.
    """
    model: Any = repository.image_text_model()
    tokens = _tokens(repository, texts)
    try:
        with torch.no_grad():
            found = ImageText(model, _embedding(model.get_text_features(**tokens))).eval()
            side = repository.config.vision_config.image_size
            image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
            own = model(pixel_values=image, **tokens).logits_per_image
            ours = found(image)
    except Exception as error:  # whatever a model of another kind raises
        raise ModelError(
            f"{repository.name} is {repository.architecture}, whose logits of images and texts cannot be computed "
            f"({type(error).__name__}: {error_reason(error)})."
        ) from error
    if ours.shape != own.shape or float((ours - own).abs().max()) > TOLERANCE * float(own.abs().max()):
        raise ModelError(
            f"{repository.name} is {repository.architecture}, whose logits are no cosine of an image's and a text's embedding."
        )
    return found


def _tokens(repository: Repository, texts: Sequence[str]) -> dict[str, Tensor]:
    # Without its files, transformers makes a tokenizer that knows no word.
    if not any(file for pattern in VOCABULARIES for file in repository.folder.glob(pattern)):
        raise ModelError(f"{repository.name} has no tokenizer for its texts: expected a file tokenizer.json.")
    # SigLIP was trained on texts of one length, and reads the last place; other models read where the text ends.
    padding: Any = "max_length" if repository.config.model_type.startswith("siglip") else True
    try:
        with quiet(repository.transformers):
            tokenizer = repository.transformers.AutoTokenizer.from_pretrained(
                repository.folder, local_files_only=True, trust_remote_code=False
            )
            longest = repository.config.text_config.max_position_embeddings
            made = tokenizer(
                list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt"
            )
    except Exception as error:  # by what the folder lacks
        raise ModelError(
            f"{repository.name} has no tokenizer for its texts: {error_reason(error)}."
        ) from error
    return {name: made[name] for name in ("input_ids", "attention_mask") if name in made}


def _embedding(features: Any) -> Tensor:
    """[N, D]; newer versions of transformers return it with the tower's other outputs."""
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)
