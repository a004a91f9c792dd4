"""The arguments of a caller -> objects: a model by its name or as it is, a device by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lrp.errors import ModelError, OptionError
from lrp.models import loading
from lrp.models.loading import LoadedModel


def resolve_model(
    model: str | Path | LoadedModel,
    size: int | None = None,
    arch: str | None = None,
    labels: str | Path | Sequence[str] | None = None,
    range: tuple[float, float] | None = None,
) -> LoadedModel:
    """The model of that name, or the one given, with an input of `size` pixels.

    Args:
        model: what `load_model` takes, or what it returns.
        size: side of the model's input; None: what it was trained with.
        arch, labels: as `load_model` takes them, for a file without sidecar.
        range: which levels of deep photos are black and white; None: as the preprocessing says.

    Raises:
        ModelError: neither a name nor a loaded model; or what `load_model` raises.
        ImageError: `range` is none.
    """
    if isinstance(model, str | Path):
        given = {"arch": arch, "labels": labels}
        loaded = loading.load_model(str(model), **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
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
