"""See which pixels made an image classifier decide: layer-wise relevance propagation (LRP) for PyTorch.

explainer = lrp.Explainer(model)
e = explainer(x, target="predicted")    # x: [N, C, H, W]
e.relevance, e.health.ok                # [N, C, H, W] in logits; True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp.engine.composite import Composite as Composite
    from lrp.engine.explainer import Explainer as Explainer
    from lrp.engine.explainer import explain as explain
    from lrp.engine.explanation import Explanation as Explanation
    from lrp.engine.presets import composites as composites
    from lrp.engine.presets import preset as preset
    from lrp.models.loading import load_model as load_model

__version__ = "0.1.0"

# Imported at first use: torch takes seconds, and `lrp --help` needs none of it.
_ROOMS = {
    "engine.explainer": ("Explainer", "explain"),
    "engine.explanation": ("Explanation", "Explanations"),
    "engine.targets": ("Contrast",),
    "engine.ledger": ("Health", "Ledger"),
    "engine.rule_check": ("RuleCheck",),
    "engine.composite": ("Composite",),
    "engine.presets": ("composites", "preset"),
    "engine.predicates": ("depthwise", "everything", "family", "first", "module", "op", "path"),
    "engine.rules": (
        "AffineRule", "AlphaBeta", "Epsilon", "Flat", "Gamma", "Rule", "SumRule", "WPlus", "WSquare", "ZBox", "ZPlus", "Zero",
    ),
    "engine.rules_beyond_affine": (
        "Constant", "Halves", "Magnitude", "Pass", "Proportional", "SignalTakesAll", "SoftmaxTaylor", "Values",
        "WinnerTakesAll",
    ),
    "engine.structured_weights": ("magnitude", "negative", "ones", "positive", "square", "unchanged"),
    "engine.affine": ("Affine", "Branch", "Flow", "Site"),
    "engine.graph.ops": ("Operation", "register"),
    "engine.graph.algebra": ("Activation", "Bilinear", "MaxPool", "Movement", "Product", "Softmax", "Sum"),
    "models.loading": ("LoadedModel", "load_model"),
    "models.preprocessing": ("Preprocessing",),
    "pictures.photos": ("find_photos", "open_photo"),
    "data.data_set": ("DataSet",),
    "study.predictions": ("Prediction", "read_predictions", "write_predictions"),
    "errors": (
        "BusyError", "CaptureError", "CompositeError", "DataError", "ExportError", "ImageError", "InputError", "LedgerError",
        "LrpError", "ModelError", "PredictionsError", "ReportError", "RuleError", "TargetError", "TrainingError",
        "UnsupportedError",
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
