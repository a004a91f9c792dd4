"""See which pixels made an image classifier decide: layer-wise relevance propagation (LRP) for PyTorch.

explainer = lrp.Explainer(model)
e = explainer(x, target="predicted")    # x: [N, C, H, W]
e.relevance, e.health.ok                # [N, C, H, W] in logits; True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp.data.data_set import DataSet as DataSet
    from lrp.engine.affine import Affine as Affine
    from lrp.engine.composite import Composite as Composite
    from lrp.engine.explainer import Explainer as Explainer
    from lrp.engine.explainer import explain as explain
    from lrp.engine.explanation import Explanation as Explanation
    from lrp.engine.explanation import Explanations as Explanations
    from lrp.engine.graph.algebra import Activation as Activation
    from lrp.engine.graph.algebra import Movement as Movement
    from lrp.engine.graph.algebra import Product as Product
    from lrp.engine.graph.algebra import Sum as Sum
    from lrp.engine.graph.ops import Operation as Operation
    from lrp.engine.graph.ops import register as register
    from lrp.engine.ledger import Health as Health
    from lrp.engine.ledger import Ledger as Ledger
    from lrp.engine.predicates import depthwise as depthwise
    from lrp.engine.predicates import everything as everything
    from lrp.engine.predicates import family as family
    from lrp.engine.predicates import first as first
    from lrp.engine.predicates import module as module
    from lrp.engine.predicates import op as op
    from lrp.engine.predicates import path as path
    from lrp.engine.presets import composites as composites
    from lrp.engine.presets import preset as preset
    from lrp.engine.rules import AlphaBeta as AlphaBeta
    from lrp.engine.rules import Constant as Constant
    from lrp.engine.rules import Epsilon as Epsilon
    from lrp.engine.rules import Flat as Flat
    from lrp.engine.rules import Gamma as Gamma
    from lrp.engine.rules import Halves as Halves
    from lrp.engine.rules import Magnitude as Magnitude
    from lrp.engine.rules import Pass as Pass
    from lrp.engine.rules import Proportional as Proportional
    from lrp.engine.rules import Rule as Rule
    from lrp.engine.rules import SignalTakesAll as SignalTakesAll
    from lrp.engine.rules import SoftmaxTaylor as SoftmaxTaylor
    from lrp.engine.rules import Values as Values
    from lrp.engine.rules import WinnerTakesAll as WinnerTakesAll
    from lrp.engine.rules import WPlus as WPlus
    from lrp.engine.rules import WSquare as WSquare
    from lrp.engine.rules import ZBox as ZBox
    from lrp.engine.rules import Zero as Zero
    from lrp.engine.rules import ZPlus as ZPlus
    from lrp.engine.targets import Contrast as Contrast
    from lrp.errors import BusyError as BusyError
    from lrp.errors import CaptureError as CaptureError
    from lrp.errors import CompositeError as CompositeError
    from lrp.errors import DataError as DataError
    from lrp.errors import ExportError as ExportError
    from lrp.errors import ImageError as ImageError
    from lrp.errors import InputError as InputError
    from lrp.errors import LedgerError as LedgerError
    from lrp.errors import LrpError as LrpError
    from lrp.errors import ModelError as ModelError
    from lrp.errors import PredictionsError as PredictionsError
    from lrp.errors import ReportError as ReportError
    from lrp.errors import RuleError as RuleError
    from lrp.errors import TargetError as TargetError
    from lrp.errors import TrainingError as TrainingError
    from lrp.errors import UnsupportedError as UnsupportedError
    from lrp.models.loading import LoadedModel as LoadedModel
    from lrp.models.loading import load_model as load_model
    from lrp.models.preprocessing import Preprocessing as Preprocessing
    from lrp.pictures.photos import find_photos as find_photos
    from lrp.pictures.photos import open_photo as open_photo
    from lrp.study.predictions import Prediction as Prediction
    from lrp.study.predictions import read_predictions as read_predictions
    from lrp.study.predictions import write_predictions as write_predictions

__version__ = "0.1.0"

# Imported at first use: torch takes seconds, and `lrp --help` needs none of it.
_ROOMS = {
    "engine.explainer": ("Explainer", "explain"),
    "engine.explanation": ("Explanation", "Explanations"),
    "engine.targets": ("Contrast",),
    "engine.ledger": ("Health", "Ledger"),
    "engine.composite": ("Composite",),
    "engine.presets": ("composites", "preset"),
    "engine.predicates": ("depthwise", "everything", "family", "first", "module", "op", "path"),
    "engine.rules": (
        "AlphaBeta", "Constant", "Epsilon", "Flat", "Gamma", "Halves", "Magnitude", "Pass", "Proportional", "Rule",
        "SignalTakesAll", "SoftmaxTaylor", "Values", "WPlus", "WSquare", "WinnerTakesAll", "ZBox", "ZPlus", "Zero",
    ),
    "engine.graph.ops": ("Operation", "register"),
    "engine.graph.algebra": ("Activation", "Movement", "Product", "Sum"),
    "engine.affine": ("Affine",),
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


if not TYPE_CHECKING:  # for mypy a name that is not above is an error

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'lrp' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"lrp.{_PUBLIC[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
