"""See which pixels made an image classifier decide: layer-wise relevance propagation (LRP) for PyTorch.

explainer = lrp.Explainer(model)
e = explainer(x, target="predicted")    # x: [N, C, H, W]
e.relevance, e.health.ok                # [N, C, H, W] in logits; True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp.composite import Composite as Composite
    from lrp.explainer import Explainer as Explainer
    from lrp.explainer import explain as explain
    from lrp.explanation import Explanation as Explanation
    from lrp.models import load_model as load_model
    from lrp.presets import composites as composites
    from lrp.presets import preset as preset

__version__ = "0.1.0"

# Imported at first use: torch takes seconds, and `lrp --help` needs none of it.
_ROOMS = {
    "explainer": ("Explainer", "explain"),
    "explanation": ("Explanation", "Explanations"),
    "targets": ("Contrast",),
    "ledger": ("Health", "Ledger"),
    "composite": ("Composite",),
    "presets": ("composites", "preset"),
    "predicates": ("depthwise", "everything", "family", "first", "module", "op", "path"),
    "rules": (
        "AlphaBeta", "Constant", "Epsilon", "Flat", "Gamma", "Halves", "Magnitude", "Pass", "Proportional", "Rule",
        "SignalTakesAll", "SoftmaxTaylor", "Values", "WPlus", "WSquare", "WinnerTakesAll", "ZBox", "ZPlus", "Zero",
    ),
    "graph.ops": ("Operation", "register"),
    "graph.algebra": ("Activation", "Movement", "Product", "Sum"),
    "affine": ("Affine",),
    "models": ("LoadedModel", "load_model"),
    "preprocessing": ("Preprocessing",),
    "images": ("find_photos", "open_photo"),
    "data": ("DataSet",),
    "predictions": ("Prediction", "read_predictions", "write_predictions"),
    "errors": (
        "CaptureError", "CompositeError", "DataError", "ImageError", "InputError", "LedgerError", "LrpError", "ModelError",
        "PredictionsError", "RuleError", "TargetError", "UnsupportedError",
    ),
}  # fmt: skip
_PUBLIC = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lrp' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"lrp.{_PUBLIC[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
