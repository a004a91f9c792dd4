"""What to explain: every kind of target, converted to a start relevance.

A target becomes three arrays that the explanation program reads: `given` [N, K] is relevance that
is used as it is, `weight` [N, K] multiplies the seed (the logits), `predicted` [N] is the weight of the predicted class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrp.classes import class_index
from lrp.errors import TargetError


@dataclass(frozen=True)
class Contrast:
    """Why `a` and not `b`: start with +logit on a and −logit on b, so that a map sums to their difference.

    Args:
        a, b: class indices, names where the explainer knows `class_names`, or "predicted".
    """

    a: int | str
    b: int | str


class Start(NamedTuple):
    given: Tensor
    weight: Tensor
    predicted: Tensor


def resolve_target(
    target: Any, images: int, classes: int, class_names: Sequence[str] | None, like: Tensor
) -> Start:
    """Convert a target to a start.

    Args:
        target: "predicted", an index, a class name, a `Contrast`, N of these (a sequence, tensor, numpy array or
            pandas column), or a tensor or array [N, K] of relevance.
        images: N.
        classes: K.
        class_names: K names, or None.
        like: a tensor of the dtype and on the device to use.

    Raises:
        TargetError: out of range, unknown, or not one per image.
    """
    given, weight = like.new_zeros(images, classes), like.new_zeros(images, classes)
    predicted = like.new_zeros(images)
    target = plain_target(target)
    array = _as_matrix(target)
    if array is not None:
        if tuple(array.shape) != (images, classes):
            raise TargetError(
                f"a start relevance must have shape [{images}, {classes}] (images, classes), got {list(array.shape)}."
            )
        if not bool(torch.isfinite(array).all()):
            raise TargetError("the start relevance holds NaN or infinite values; every entry must be finite.")
        return Start(array.to(like), weight, predicted)
    entries = _per_image(target, images)
    for i, entry in enumerate(entries):
        if entry == "predicted":
            predicted[i] = 1
        elif isinstance(entry, Contrast):
            for side, sign in ((plain_target(entry.a), 1), (plain_target(entry.b), -1)):
                if side == "predicted":
                    predicted[i] += sign
                else:
                    weight[i, _index(side, classes, class_names)] += sign
        else:
            weight[i, _index(entry, classes, class_names)] = 1
    return Start(given, weight, predicted)


def plain_target(target: Any) -> Any:
    """A target without numpy and pandas: arrays, columns and their scalars as tensors, lists, numbers and text.

    The labels of a pandas column do not matter, only its order.

    Raises:
        TargetError: an array of neither numbers nor text, or a table of names.
    """
    if isinstance(target, str):
        return str(target)  # numpy's text is of a class of its own
    if isinstance(target, Tensor):
        return target if target.dim() else target.item()
    if not hasattr(target, "__array__"):
        return target
    array = np.asarray(target)
    if array.dtype.kind in "biufUOT" and not array.ndim:
        return array.item()
    if array.dtype.kind in "biuUOT" and array.ndim == 1:
        return array.tolist()
    if array.dtype.kind in "iuf":
        return torch.tensor(array.tolist(), dtype=torch.float64)
    raise TargetError(
        f"a target array of shape {list(array.shape)} holds {array.dtype}: expected N class indices or names, or a start "
        "relevance [N, K]."
    )


def _as_matrix(target: Any) -> Tensor | None:
    """The target as a tensor if it is relevance (a float tensor or array, or nested lists), else None."""
    if isinstance(target, Tensor):
        return target.detach() if target.dim() >= 2 or target.is_floating_point() else None
    if isinstance(target, (list, tuple)) and target and all(isinstance(row, (list, tuple)) for row in target):
        try:
            return torch.as_tensor(target, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TargetError(
                f"nested targets must be a start relevance, numbers [N, K] with rows of one length, got {_shown(target)}."
            ) from error
    return None


def _shown(target: Any) -> str:
    text = " ".join(repr(target).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _per_image(target: Any, images: int) -> list[Any]:
    if isinstance(target, Tensor):
        target = target.tolist()
    if isinstance(target, (str, int, Contrast)) or not isinstance(target, Sequence):
        return [target] * images
    if len(target) != images:
        raise TargetError(f"{len(target)} targets for {images} images: give one target, or one per image.")
    return [plain_target(entry) for entry in target]


def _index(entry: Any, classes: int, class_names: Sequence[str] | None) -> int:
    if isinstance(entry, str):
        if class_names is None:
            raise TargetError(
                f"target {entry!r} is a class name, and this explainer knows none: pass class_names=[...]."
            )
        return class_index(entry, class_names)
    if isinstance(entry, bool | Tensor) or not hasattr(entry, "__index__"):
        raise TargetError(
            f"target {entry!r} is a {type(entry).__name__}: expected 'predicted', a class index, a class name, "
            "lrp.Contrast(a, b), one of these per image, or a start relevance [N, K]."
        )
    index = entry.__index__()
    if not 0 <= index < classes:
        raise TargetError(
            f"target {index} is out of range: the model has {classes} classes, 0 to {classes - 1}."
        )
    return int(index)
