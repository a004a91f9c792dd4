"""What a function of the user's returns -> a model of logits with its preprocessing and class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrp.errors import ModelError
from lrp.models.downloads import Progress
from lrp.models.logits import Logits, key_of_logits
from lrp.models.own_code.calling import call_own_code, say_once
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry

USUAL = Preprocessing(Geometry(256, (224, 224)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's usual preprocessing."""


def load_own_model(
    name: str,
    progress: Progress,
    size: int | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """The model that "package.module:function" returns, in eval mode, as one that returns logits.

    Args:
        progress: called with what is assumed because neither the function nor an argument says it; once for each name.
        size: side of the input in pixels; None: as the preprocessing says.
        preprocessing, class_names: in place of those that the function returns.

    Raises:
        ModelError: the code cannot be run; what it returns is no model of logits, or has another number of names than logits.
    """
    model, own_preprocessing, own_names = _returned(name, call_own_code(name, progress))
    preprocessing = preprocessing or own_preprocessing
    assumed = []
    if preprocessing is None:
        preprocessing = _usual(model)
        assumed.append("photos are prepared as is usual for ImageNet")
    if size is not None:
        preprocessing = preprocessing.with_size(size)
    model, classes = as_logits(name, model, preprocessing)
    names = class_names or own_names
    if names is None:
        names = tuple(f"class {index}" for index in range(classes))
        assumed.append("classes are called by their numbers")
    if len(names) != classes:
        raise ModelError(
            f"{name} gives {classes} logits, and there are {len(names)} class names: expected one for each."
        )
    if assumed:
        say_once(
            f"{name}: {' and '.join(assumed)}, because nothing else was said; return (model, preprocessing, class_names), or give "
            "--preprocess FILE.",
            progress,
        )
    return model, preprocessing, tuple(names)


def own_model_with_heads(
    name: str,
    classes: int,
    preprocessing: Preprocessing,
    heads: Sequence[str],
    progress: Progress,
) -> nn.Module:
    """The model with new last layers, for another number of classes."""
    model, *_ = _returned(name, call_own_code(name, progress))
    model, _ = as_logits(name, model, preprocessing)
    replace_heads(model, heads, classes)
    return model


def replace_heads(model: nn.Module, heads: Sequence[str], classes: int) -> None:
    """Replace layers, by their paths, by such with an output for each class; in place."""
    for path in heads:
        old: Any = model.get_submodule(path)
        where = {"device": old.weight.device, "dtype": old.weight.dtype}
        new: nn.Module
        if isinstance(old, nn.Conv2d):
            new = nn.Conv2d(
                old.in_channels, classes, old.kernel_size, old.stride, old.padding, old.dilation, old.groups,  # type: ignore[arg-type]
                old.bias is not None, old.padding_mode, **where,
            )  # fmt: skip
        else:
            new = nn.Linear(old.in_features, classes, old.bias is not None, **where)
        model.set_submodule(path, new)


def as_logits(name: str, model: nn.Module, preprocessing: Preprocessing) -> tuple[nn.Module, int]:
    """The model in eval mode, returning logits alone, and their number: found by running it on a black photo."""
    image = preprocessing.normalised(torch.zeros(preprocessing.zeros(1).shape, dtype=torch.uint8))
    held = next((p for p in model.parameters() if p.is_floating_point()), image)
    model.eval()
    try:
        with torch.no_grad():
            result = model(image.to(held))
    except Exception as error:  # whatever the model's code raises
        words = " ".join(str(error).split())
        raise ModelError(
            f"{name}: its model fails on an image {list(image.shape)} ({type(error).__name__}: {words}): the preprocessing that it "
            "returns, --preprocess or --size must say what it takes."
        ) from error
    key = key_of_logits(result, name)
    if key is not None:
        model = Logits(model, key).eval()
        result = result[key] if isinstance(result, dict) else getattr(result, key)
    shape = list(result.shape)
    if not isinstance(result, Tensor) or shape[:1] != [1]:
        raise ModelError(
            f"{name} returns a tensor {shape} for one image: expected logits [N, K] or [N, K, H, W]."
        )
    return model, shape[1] if len(shape) > 1 else 1


def _returned(name: str, result: Any) -> tuple[nn.Module, Preprocessing | None, tuple[str, ...] | None]:
    """The parts of what the function returned; None where it says nothing."""
    if isinstance(result, nn.Module):
        return result, None, None
    if not isinstance(result, tuple | list) or len(result) != 3:
        what = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
        raise ModelError(
            f"{name} returned {what}: expected a torch.nn.Module, or (model, preprocessing, class_names) as lrp.load_model returns "
            "them."
        )
    model, preprocessing, names = result
    wrong = (
        [] if isinstance(model, nn.Module) else [f"model is a {type(model).__name__}, not a torch.nn.Module"]
    )
    if not isinstance(preprocessing, Preprocessing | None):
        wrong.append(f"preprocessing is a {type(preprocessing).__name__}, not an lrp.Preprocessing")
    listed = names is None or (isinstance(names, tuple | list) and all(isinstance(n, str) for n in names))
    if not listed:
        wrong.append("class_names is no list of texts")
    if wrong:
        raise ModelError(f"{name} returned (model, preprocessing, class_names), and {'; '.join(wrong)}.")
    return model, preprocessing, None if names is None else tuple(names)


def _usual(model: nn.Module) -> Preprocessing:
    """ImageNet's usual preprocessing, in grey if the first convolution takes one channel."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return USUAL.in_grey() if first is not None and first.in_channels == 1 else USUAL
