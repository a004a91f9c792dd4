"""`lrp.export`: a model's explanations as one ONNX file that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

import lrp
from lrp.engine.explainer import Explainer
from lrp.engine.onnx.onnx_file import Exported, write_onnx
from lrp.errors import InputError, TargetError
from lrp.gallery.gallery import Gallery
from lrp.gallery.options import ExplainOptions
from lrp.models.loading import LoadedModel


def export(
    model: str | Path | LoadedModel | Explainer,
    path: str | Path,
    *,
    target: Any = "predicted",
    target_input: bool = False,
    x: Tensor | None = None,
    options: ExplainOptions | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write one ONNX file that computes logits and relevance from images, for any batch size.

    Inputs are `image` [N, C, H, W], preprocessed, and with `target_input` also `target`, int64 [N]; outputs are `logits`
    [N, K] and `relevance` [N, C, H, W], in units of the logits. The file's metadata records how it was made.

    Args:
        model: a name that `load_model` accepts, a `LoadedModel`, or an `Explainer` of any model.
        path: the file; written atomically.
        target: one target for every image: "predicted", a class, its index, "A-vs-B", or a `Contrast`.
        target_input: the class of each image is the file's second input instead, -1 for the predicted one.
        x: with an `Explainer`, images [N, C, H, W] of the shape that the file shall accept; only the shape is used.
        options: how to explain: composite, bias, epsilon, top_k, size, device. An `Explainer` has its own.
        overwrite: replace an existing file.

    Raises:
        TargetError: no such class, or not one target for every image.
        InputError: `x` without an `Explainer`, or an `Explainer` without `x` or with options.
        ExportError: onnx is not installed; the file exists, or would be too large; the program cannot be exported, or
            computes something else in onnxruntime.
        ModelError: the model cannot be loaded.
        CaptureError, UnsupportedError, CompositeError: the model cannot be explained, or not with these options.
    """
    if target_input and target != "predicted":
        raise TargetError(f"{target!r} settles the class, target_input leaves it open: give one of them.")
    words = "input" if target_input else str(target)
    if isinstance(model, Explainer):
        if x is None or options is not None:
            raise InputError(
                "export of an Explainer: expected images x of the shape to export for, and no options: it has its own."
            )
        names = model.class_names
        facts: dict[str, Any] = {"producer": f"lrp {lrp.__version__}", "target": words}
        facts |= {} if names is None else {"classes": list(names)}
        return write_onnx(model, x, path, target, target_input, facts, overwrite)
    if x is not None:
        raise InputError(
            "x: expected None beside a name or a loaded model, whose input is known; options.size changes it."
        )
    gallery = Gallery.of(model, options or ExplainOptions(), target)
    request, loaded = gallery.request, gallery.loaded
    if callable(request) or len(request.parts) != 1 or request.needs_folder:
        raise TargetError(f"{target}: one target for every image: predicted, a class, or A-vs-B.")
    facts = {
        "producer": f"lrp {lrp.__version__}", "model": gallery.identity["model"], "weights": gallery.identity["weights"],
        "target": words, "classes": list(loaded.class_names), "preprocessing": loaded.preprocessing.to_dict(),
    }  # fmt: skip
    image = loaded.preprocessing.zeros(1).to(gallery.device)
    return write_onnx(gallery.explainer, image, path, request.parts[0], target_input, facts, overwrite)
