"""Why a model cannot be captured, in one line each."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lrp.engine.graph.tracing.graph_of_program import TORCH
from lrp.engine.graph.tracing.hooks import Hook
from lrp.engine.graph.tracing.inputs import Inputs
from lrp.errors import CaptureError

ENGINE = str(Path(__file__).parents[2]) + os.sep


def refuse_modules(model: nn.Module) -> None:
    """Raise for modules that cannot be captured, whatever their code is."""
    for path, module in model.named_modules():
        at, kind = path or "the model", type(module)
        of_torch = kind.__module__.startswith(("torch.ao.nn", "torch.nn"))
        to_be = kind.__name__.endswith("FloatFunctional")  # made to be quantised later
        if of_torch and ".quantized" in kind.__module__ and not to_be:
            raise CaptureError(
                f"{at} is a quantised {kind.__name__}, whose weights are integers: explain the model from which "
                "it was made."
            )
        if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
            raise CaptureError(
                f"{at} ({kind.__name__}) has no weights yet: call the model once, so that it makes them."
            )


def hooks_that_cannot_be_followed(model: nn.Module, hooks: set[Hook], reason: str) -> str:
    names = ", ".join(sorted(map(str, hooks)))
    verb = "changes" if len(hooks) == 1 else "change"
    return (
        f"{type(model).__name__} could not be captured: {names} {verb} values in a way that torch.export cannot follow: "
        f"{reason}. Remove it, or compute the same in forward()."
    )


def fails_itself(model: nn.Module, example: Inputs, error: Exception) -> str:
    return f"{type(model).__name__} itself fails on {example.shown()}: {type(error).__name__}: {first_line(error)}"


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def wrong_channels(model: nn.Module, example: Tensor) -> str:
    """The message if the images have another number of channels than the model's first convolution takes, else ""."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if example.dim() == 4 and example.shape[1] != module.in_channels:
                return (
                    f"the images have {example.shape[1]} channels, shape {list(example.shape)}, and the model's first "
                    f"convolution, {path}, takes {module.in_channels}: x must be [N, {module.in_channels}, H, W]."
                )
            return ""
    return ""


def frames_of_the_model(error: BaseException) -> list[str]:
    """Where an error passed through the model's own code: file:line, outermost first."""
    frames, tb = [], error.__traceback__
    while tb is not None:
        frames.append(f"{tb.tb_frame.f_code.co_filename}:{tb.tb_lineno}")
        tb = tb.tb_next
    return [frame for frame in frames if not frame.startswith((ENGINE, TORCH))]
