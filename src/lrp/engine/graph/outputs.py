"""Which of a model's outputs holds the logits, and which function may be applied to them at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lrp.errors import DETECTOR, CaptureError

Output = int | str | tuple[int | str, ...] | Callable[[Any], Tensor] | None

# Functions that a classifier may end in: the input of such a function is explained.
HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(1),
    "log_softmax": lambda z: z.log_softmax(1),
    "sigmoid": lambda z: z.sigmoid(),
    "log_sigmoid": lambda z: torch.nn.functional.logsigmoid(z),
}


def logits_among(result: Any, wanted: Output) -> Tensor:
    """The tensor of logits in what a model returned.

    Args:
        result: a tensor, or tensors in tuples, lists, dicts, dataclasses or objects.
        wanted: an index, a key or an attribute, or several to follow one after the other; a function of the result; None: the
            tensor itself, the output named "logits", or the only tensor there is.

    Raises:
        CaptureError: there is no such output, or several are possible; lists them. Or the model is a detector.
    """
    if wanted is None:
        if isinstance(result, Tensor):
            return result
        parts = _parts(result)
        tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        of_first = (
            _parts(result[0]) if isinstance(result, list) and result else {}
        )  # torchvision's: one for each image
        if any("boxes" in str(name) for name in (*parts, *of_first)):
            raise CaptureError(f"the model {DETECTOR}")
        if isinstance(parts.get("logits"), Tensor):
            return parts["logits"]
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        raise CaptureError(
            f"the model returns {_listed(result)}: say which holds the logits, "
            f"for example Explainer(model, output={next(iter(parts), 0)!r})."
        )
    if callable(wanted):
        made = wanted(result)
        if not isinstance(made, Tensor):
            raise CaptureError(
                f"the function output= returns {_listed(made)}, not one tensor of logits [N, K]."
            )
        return made
    found = result
    for step in wanted if isinstance(wanted, tuple) else (wanted,):
        parts = _parts(found)
        if isinstance(found, (tuple, list)) and isinstance(step, int) and -len(found) <= step < len(found):
            found = found[step]
        elif step in parts:
            found = parts[step]
        else:
            raise CaptureError(f"output={wanted!r}: the model returns {_listed(result)}.")
    if not isinstance(found, Tensor):
        raise CaptureError(f"output={wanted!r} is {_listed(found)}, not one tensor of logits [N, K].")
    return found


def _parts(result: Any) -> dict[Any, Any]:
    """What a result holds, by index, key or attribute; empty entries (None) left out."""
    if isinstance(result, Tensor):
        return {}
    if isinstance(result, Mapping):
        parts = dict(result)
    elif hasattr(result, "_asdict"):
        parts = result._asdict()
    elif isinstance(result, (tuple, list)):
        parts = dict(enumerate(result))
    elif dataclasses.is_dataclass(result):
        parts = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    else:
        parts = dict(getattr(result, "__dict__", {}))
    return {name: part for name, part in parts.items() if part is not None}


def _listed(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"one tensor {list(result.shape)}"
    parts = _parts(result)
    if not parts:
        return f"a {type(result).__name__} without tensors"
    return "several outputs, " + ", ".join(
        f"{name!r} {list(part.shape) if isinstance(part, Tensor) else type(part).__name__}"
        for name, part in parts.items()
    )
