"""What to explain: every kind of target, converted to a start relevance.

A target becomes three arrays that the explanation program reads, of the logits' shape [N, K, *space] or with sizes of 1 that
broadcast to it: `given` is relevance that is used as it is, `weight` multiplies the seed (the logits), `predicted` is the
weight of the class with the largest logit, at each place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
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


@dataclass(frozen=True, eq=False)
class Region:
    """Part of the places of a model that gives logits for each place [N, K, *space]: the sum of a class's logits over it.

    Args:
        class_: a class index, a name where the explainer knows `class_names`, or "predicted": at each place its own.
        where: "predicted": the places at which the class has the largest logit; or weights of the places (a mask),
            [*space] for every image or [N, *space].
    """

    class_: int | str
    where: Any = "predicted"


@dataclass(frozen=True, eq=False)
class Similarity:
    """The cosine of the model's output, an embedding [N, K], and another one: a map sums to it, whatever the biases take.

    The lengths of both embeddings are constants. For the other side, explain `to` with the target `Similarity(x)`.

    Args:
        to: other inputs of the model, one for all images or one for each; or embeddings [K] or [N, K].
    """

    to: Any


class Start(NamedTuple):
    given: Tensor
    weight: Tensor
    predicted: Tensor


SEEDS = ("logit", "one", "softmax")


def start_relevance(
    seed: str, known: Mapping[str, Any], logits: Any, given: Any, weight: Any, predicted: Any
) -> Any:
    """`given + (weight + predicted · onehot(argmax)) · seed(logits)`, of the logits' shape; written into programs.

    Args:
        seed: one of `SEEDS`.
        known: "shape" of the logits, [N, K, *space], and "dtype".
    """
    winner = F.one_hot(logits.argmax(1), known["shape"][1]).to(known["dtype"])
    if len(known["shape"]) > 2:
        winner = winner.movedim(-1, 1)
    seeds = {
        "logit": lambda: logits,
        "one": lambda: torch.ones_like(logits),
        "softmax": lambda: logits.softmax(1),
    }
    return given + (weight + predicted * winner) * seeds[seed]()


def resolve_target(
    target: Any, shape: Sequence[int], class_names: Sequence[str] | None, like: Tensor
) -> Start:
    """Convert a target to a start.

    Args:
        target: "predicted", an index, a class name, a `Contrast`, a `Region`, N of these (a sequence, tensor, numpy array or
            pandas column), or a tensor or array of relevance, of the logits' shape. Where there is a space: also one place,
            (class, *position), or a mask [N, *space] of the places, each with its predicted class.
        shape: of the logits, (N, K, *space).
        class_names: K names, or None.
        like: a tensor of the dtype and on the device to use.

    Raises:
        TargetError: out of range, unknown, of another shape, or not one per image.
    """
    images, classes, *space = shape
    ones = [1] * len(space)
    given, weight, predicted = (like.new_zeros(images, k, *ones) for k in (classes, classes, 1))
    target = plain_target(target)
    array = _as_matrix(target)
    if array is not None and space and list(array.shape) == [images, *space]:
        array, target = None, Region("predicted", array)
    if array is not None:
        if list(array.shape) != list(shape):
            names = f"(images, classes{', *space' if space else ''})"
            or_mask = f", and a mask of places {[images, *space]}" if space else ""
            raise TargetError(
                f"a start relevance must have shape {list(shape)} {names}{or_mask}, got {list(array.shape)}."
            )
        _refuse_not_finite(array, "start relevance")
        return Start(array.to(like), weight, predicted)
    for i, entry in enumerate(entries_of_images(target, images, len(space))):
        if isinstance(entry, Contrast):
            for side, sign in ((plain_target(entry.a), 1), (plain_target(entry.b), -1)):
                if side == "predicted":
                    predicted[i] += sign
                else:
                    weight[i, _index(side, classes, class_names)] += sign
        elif isinstance(entry, (Region, tuple)):
            if weight.shape != torch.Size(shape):
                weight, predicted = (t.expand(images, classes, *space).clone() for t in (weight, predicted))
            named, mask = _region(entry, i, images, space, like)
            if mask is None:  # where its class is predicted
                predicted[i, slice(None) if named == "predicted" else _index(named, classes, class_names)] = 1
            elif named == "predicted":
                predicted[i] = mask
            else:
                weight[i, _index(named, classes, class_names)] = mask
        elif entry == "predicted":
            predicted[i] = 1
        else:
            weight[i, _index(entry, classes, class_names)] = 1
    return Start(given, weight, predicted)


def _refuse_not_finite(array: Tensor, name: str) -> None:
    if not bool(torch.isfinite(array).all()):
        raise TargetError(f"the {name} holds NaN or infinite values; every entry must be finite.")


def _region(entry: Any, image: int, images: int, space: list[int], like: Tensor) -> tuple[Any, Tensor | None]:
    """(class, weights of the places [*space], or None for those where it is predicted)."""
    if not space:
        raise TargetError(
            f"target {_shown(entry)} names places, and this model gives one logit per class, [N, K], without places."
        )
    mask = like.new_zeros(space)
    if isinstance(entry, tuple):
        chosen, *position = entry
        for index, size in zip(position, space, strict=True):
            if (
                isinstance(index, bool)
                or not hasattr(index, "__index__")
                or not 0 <= index.__index__() < size
            ):
                raise TargetError(
                    f"target {entry!r}: expected (class, *position) with a position within {space}."
                )
        mask[tuple(position)] = 1
        return plain_target(chosen), mask
    if isinstance(entry.where, str) and entry.where == "predicted":
        return plain_target(entry.class_), None
    try:
        weights = torch.as_tensor(entry.where)
    except (TypeError, ValueError, RuntimeError):
        weights = None
    if weights is None or list(weights.shape) not in ([*space], [images, *space]):
        got = _shown(entry.where) if weights is None else list(weights.shape)
        raise TargetError(
            f"Region(where=...): expected 'predicted' or a mask {space} or {[images, *space]}, got {got}."
        )
    _refuse_not_finite(weights, "mask")
    own = weights[image] if weights.dim() > len(space) else weights
    return plain_target(entry.class_), own.detach().to(like)


def similarity_start(z: Tensor, other: Tensor) -> Tensor:
    """The start relevance [N, K] of which the sum is the cosine of z [N, K] and of `other` [K], [1, K] or [N, K]."""
    other = other.detach().to(z)
    if (
        z.dim() != 2
        or other.shape[-1:] != z.shape[-1:]
        or other.dim() > 2
        or (other.dim() == 2 and len(other) not in (1, len(z)))
    ):
        raise TargetError(
            f"Similarity(to=...): an embedding of shape {list(other.shape)} for embeddings {list(z.shape)}: expected "
            f"[{z.shape[1]}], [1, {z.shape[1]}] or {list(z.shape)}."
        )
    lengths = z.norm(dim=1, keepdim=True) * other.norm(dim=-1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise TargetError("Similarity(to=...): an embedding of length 0 has no direction.")
    return z * other / lengths


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


def entries_of_images(target: Any, images: int, space: int = 0) -> list[Any]:
    """What each image is explained for. space: the number of dimensions of the logits' places."""
    target = plain_target(target)
    if isinstance(target, Tensor):
        target = target.tolist()
    place = isinstance(target, tuple) and space > 0 and len(target) == 1 + space
    if place or isinstance(target, (str, int)) or not isinstance(target, Sequence):
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
            f"target {_shown(entry)} is a {type(entry).__name__}: expected 'predicted', a class index, a class name, "
            "lrp.Contrast(a, b), one of these per image, or a start relevance [N, K]."
        )
    index = entry.__index__()
    if not 0 <= index < classes:
        raise TargetError(
            f"target {index} is out of range: the model has {classes} classes, 0 to {classes - 1}."
        )
    return int(index)
