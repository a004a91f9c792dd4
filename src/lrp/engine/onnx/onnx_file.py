"""The explanation program as one ONNX file, to run where there is no torch: images in, logits and relevance out.

The file holds the whole program, forward pass and relevance pass, with every weight in the versions that the rules
need; its size is therefore two to three times that of the weights, more for αβ.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrp.engine.explainer import Explainer
from lrp.engine.onnx.rewrites import rewrite_for_onnx
from lrp.engine.results.ledger import LEAST
from lrp.engine.targets import resolve_target
from lrp.errors import ExportError
from lrp.storage.atomic import replacing

CHECKED = (1, 3)  # batch sizes with which a new file is tested
# Limits of the relative error of onnxruntime to torch. Rounding errors are far smaller: above these a file is wrong.
WRONG = {"logits": 1e-3, "relevance": 3e-2}
LIMIT = 2 * 2**30 - 2**24  # bytes that one ONNX file can hold


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where.
        bytes: its size.
        composite: the rules, as `lrp rules` names them.
        classes: K of the logits, and `size`: height and width of the images.
        logits, relevance: the relative error (L2) of what onnxruntime computes to what torch does, from the same random
            images; None where onnxruntime is not installed.
        pixel: the largest difference at one pixel, relative to the largest relevance. Where two inputs of a max
            pool differ by rounding only, either may be the maximum, and a few pixels differ more than the rest.
    """

    path: Path
    bytes: int
    composite: str
    classes: int
    size: tuple[int, ...]
    logits: float | None = None
    relevance: float | None = None
    pixel: float | None = None


class _FixedTarget(nn.Module):
    """A program with a fixed target: (image) -> (logits, relevance)."""

    def __init__(self, program: nn.Module, given: Tensor, weight: Tensor, predicted: Tensor) -> None:
        super().__init__()
        self.program = program
        for name, value in (("given", given), ("weight", weight), ("predicted", predicted)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        relevance, logits, _ = self.program(image, self.given, self.weight, self.predicted)
        return logits, relevance


class _TargetInput(_FixedTarget):
    """A program with the class of each image as an input, -1 for the predicted one: (image, target) -> (logits, relevance)."""

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        classes = torch.arange(self.get_buffer("weight").shape[1], device=target.device)
        weight = (target.unsqueeze(1) == classes).to(image.dtype)
        predicted = (target < 0).to(image.dtype).unsqueeze(1)
        relevance, logits, _ = self.program(image, self.given, weight, predicted)
        return logits, relevance


def write_onnx(
    explainer: Explainer,
    x: Tensor,
    path: str | os.PathLike[str],
    target: Any = "predicted",
    target_input: bool = False,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write an explainer's program as an ONNX file.

    Inputs are `image` [N, C, H, W], preprocessed, for any N, and with `target_input` also `target`, int64 [N];
    outputs are `logits` [N, K] and `relevance` [N, C, H, W], in units of the logits.

    Args:
        explainer: in float32; with precision "mixed" the file computes as with "exact".
        x: images [N, C, H, W] of the shape that the file accepts; only the shape is used.
        path: the file; written whole or not at all.
        target: one target for every image: "predicted", an index, a class name or a `Contrast`.
        target_input: the class of each image is an input of the file instead, -1 for the predicted one.
        facts: entries of the file's metadata, such as the class names; as JSON unless it is a string.
        overwrite: replace an existing file.

    Raises:
        ExportError: onnx is not installed; the explainer is in float64; the file exists, or would be too large; the
            program cannot be exported, or computes something else in onnxruntime.
        CaptureError, UnsupportedError, CompositeError: the model cannot be explained, or not by this composite.
    """
    path = Path(path)
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None:
        raise ExportError("exporting needs onnx and onnxscript: pip install 'lrp[export]'.")
    if path.exists() and not overwrite:
        raise ExportError(f"{path} exists already: name another file, or say --overwrite (overwrite=True).")
    if explainer.dtype != torch.float32:
        raise ExportError(
            "the explainer computes in float64, which onnxruntime has no convolution for: Explainer(..., dtype=torch.float32)."
        )
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ExportError(
            "an ONNX file takes one tensor of images: models of several inputs, or of ids, cannot be exported."
        )
    prepared = explainer.prepare(torch.cat([x[:1], x[:1]]))
    if len(prepared.graph.logits.meta["shape"]) > 2:
        raise ExportError(
            "the model gives logits for each place, and a file explains one logit for each class: "
            "Explainer(model, output=lambda out: out.mean((2, 3))) gives these."
        )
    if not prepared.captured.free_batch:
        raise ExportError(
            "the model can be captured for a fixed number of images only; an ONNX file is to take any number."
        )
    if prepared.captured.packs:
        raise ExportError(
            "the model packs sequences, and each explanation of it is compared with what the model returns, which a file cannot do."
        )
    # The exported graph cannot branch on values of tensors, and onnxruntime has no convolution in bfloat16.
    builder = prepared.builder
    if builder.speed is not None:
        plan = dataclasses.replace(builder.speed, data_dependent=False, low_precision=False)
        builder = dataclasses.replace(builder, speed=plan)
    program = rewrite_for_onnx(builder.program().module)
    size = sum(b.numel() * b.element_size() for b in program.buffers())
    if size > LIMIT:
        raise ExportError(
            f"the program's weights take {size / 1e9:.1f} GB, and an ONNX file holds 2 GB: export a smaller model."
        )
    classes = prepared.graph.logits.meta["shape"][1]
    like = torch.zeros((), dtype=explainer.dtype, device=x.device)
    start = resolve_target(target, (1, classes), explainer.class_names, like)
    module = (_TargetInput if target_input else _FixedTarget)(program, *start).eval()
    inputs = _inputs(x, explainer.dtype, 2, target_input)
    batch = torch.export.Dim("batch")
    composite = prepared.composite.describe()
    with replacing(path, ExportError, parents=True) as draft:
        made = _converted(module, inputs, {name: {0: batch} for name in inputs})
        for name, fact in {"composite": composite, **(facts or {})}.items():
            text = fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)
            made.model.metadata_props[name] = text
        made.save(draft, external_data=False)
        errors = _errors(draft, module, x, explainer.dtype, target_input)
        for (what, limit), error in zip(WRONG.items(), errors, strict=False):
            if error is not None and not error <= limit:
                raise ExportError(
                    f"onnxruntime computes other {what} than torch, by {error:.1e} (limit {limit:.0e}): {path} was not written."
                )
    return Exported(path, path.stat().st_size, composite, classes, tuple(x.shape[2:]), *errors)


def _inputs(x: Tensor, dtype: torch.dtype, images: int, target_input: bool) -> dict[str, Tensor]:
    seed = torch.Generator().manual_seed(images)
    made = {"image": torch.randn(images, *x.shape[1:], generator=seed).to(x.device, dtype)}
    if target_input:
        made["target"] = (torch.arange(images) - 1).to(x.device)  # the predicted class, class 0, class 1
    return made


def _converted(module: nn.Module, inputs: dict[str, Tensor], dynamic: dict[str, Any]) -> Any:
    # torch.onnx logs every opset that it considers.
    log = logging.getLogger("torch.onnx")
    level, log.level = log.level, logging.ERROR
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                module, tuple(inputs.values()), dynamo=True, dynamic_shapes=dynamic, verbose=False,
                input_names=list(inputs), output_names=["logits", "relevance"],
            )  # fmt: skip
    except Exception as error:  # torch.onnx has no base class for what it raises
        reason = next((line for line in str(error).splitlines() if line.startswith("<class")), str(error))
        raise ExportError(
            f"torch.onnx cannot write this program: {' '.join(reason.split())[:300]}"
        ) from error
    finally:
        log.level = level


def _errors(
    path: Path, module: nn.Module, x: Tensor, dtype: torch.dtype, target_input: bool
) -> tuple[float | None, ...]:
    """The relative errors of the file to torch: logits, relevance, relevance at one pixel."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None, None, None
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise ExportError(
            f"onnxruntime cannot run this program: {' '.join(str(error).split())[:300]}"
        ) from error
    worst = [0.0, 0.0, 0.0]
    for images in CHECKED:
        inputs = _inputs(x, dtype, images, target_input)
        with torch.no_grad():
            logits, relevance = (v.cpu() for v in module(*inputs.values()))
        found = session.run(["logits", "relevance"], {name: v.cpu().numpy() for name, v in inputs.items()})
        its_logits, its_relevance = (torch.from_numpy(v) for v in found)
        errors = (
            _relative_error(its_logits, logits, torch.linalg.vector_norm),
            _relative_error(its_relevance, relevance, torch.linalg.vector_norm),
            _relative_error(its_relevance, relevance, lambda t: t.abs().amax()),
        )
        worst = [_worse(old, new) for old, new in zip(worst, errors, strict=True)]
    return tuple(worst)


def _worse(a: float, b: float) -> float:
    """The larger error; NaN is larger than all others."""
    return a if math.isnan(a) or b <= a else b


def _relative_error(found: Tensor, expected: Tensor, size: Callable[[Tensor], Tensor]) -> float:
    """In float64, because squares of tiny numbers are 0 in float32. `LEAST` is the smallest size to divide by."""
    found, expected = found.double(), expected.double()
    return float(size(found - expected) / size(expected).clamp(min=LEAST))
