"""The arguments of a caller -> objects: a model by its name or as it is, a device by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrp.errors import ModelError, OptionError
from lrp.models import loading
from lrp.models.checkpoints import checkpoint_architecture
from lrp.models.hugging_face.repository import PREFIX, Repository
from lrp.models.loading import LoadedModel
from lrp.models.own_code.calling import is_own_code
from lrp.models.own_code.files import hash_of_own_model
from lrp.models.preprocessing import Preprocessing
from lrp.models.weights import hash_of_model_weights


def resolve_model(
    model: str | Path | LoadedModel,
    size: int | None = None,
    arch: str | None = None,
    labels: str | Path | Sequence[str] | None = None,
    range: tuple[float, float] | None = None,
    preprocess: str | Path | Preprocessing | None = None,
) -> LoadedModel:
    """The model of that name, or the one given, with an input of `size` pixels.

    Args:
        model: what `load_model` takes, or what it returns.
        size: side of the model's input; None: what it was trained with.
        arch, labels, preprocess: as `load_model` takes them.
        range: which levels of deep photos are black and white; None: as the preprocessing says.

    Raises:
        ModelError: neither a name nor a loaded model; or what `load_model` raises.
        ImageError: `range` is none.
    """
    if isinstance(model, str | Path):
        given: dict[str, Any] = {"arch": arch, "labels": labels, "preprocess": preprocess}
        if is_own_code(str(model)) or (arch and is_own_code(arch)):
            given["size"] = size  # it is run once, at that size
        loaded = loading.load_model(str(model), **{k: v for k, v in given.items() if v is not None})
    elif isinstance(model, tuple) and len(model) == 3 and isinstance(model[0], nn.Module):
        loaded = LoadedModel(*model)
    else:
        raise ModelError(
            f"model: expected a name, a file of weights, or what lrp.load_model returns, got {type(model).__name__}; "
            "of a module of yours, LoadedModel(module.eval(), preprocessing, class_names) makes one."
        )
    preprocessing = loaded.preprocessing if size is None else loaded.preprocessing.with_size(size)
    return loaded._replace(preprocessing=preprocessing if range is None else preprocessing.with_range(range))


def resolve_model_name(model: str | Path | LoadedModel) -> str:
    """The name by which the model was requested; "" for a loaded model."""
    return str(model) if isinstance(model, str | Path) else ""


def takes_texts(model: str | Path | LoadedModel) -> bool:
    """Whether this is the name of a model that compares photos with texts, so that texts are its classes."""
    name = resolve_model_name(model)
    return name.startswith(PREFIX) and Repository(name, weights=False).is_image_text


def hash_of_resolved_model(
    model: str | Path | LoadedModel, loaded: LoadedModel, arch: str | None = None
) -> str:
    """SHA-256 that identifies what a model computes: a hash of its weights; of the user's code, of its structure and files too.

    Args:
        model, arch: the arguments of `resolve_model` that gave `loaded`.
    """
    if isinstance(model, str | Path) and is_own_code(checkpoint_architecture(str(model), arch)):
        return hash_of_own_model(loaded.model)
    return hash_of_model_weights(loaded.model)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto": a GPU where there is one.

    Raises:
        OptionError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
        return chosen
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OptionError(f"device {device}: {reason} (auto, cpu and cuda are usual)") from error
