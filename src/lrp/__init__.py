"""See which pixels made an image classifier decide: layer-wise relevance propagation (LRP) for PyTorch.

explainer = lrp.Explainer(model)
e = explainer(x, target="predicted")    # x: [N, C, H, W]
e.relevance, e.health.ok                # [N, C, H, W] in logits; True
e.save("heatmap.png")

for result in lrp.explain_folder("photos", "pictures", model="vgg19"): ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp.data.data_set import DataSet as DataSet
    from lrp.data.imagenette import download_data as download_data
    from lrp.engine.affine import Affine as Affine
    from lrp.engine.affine import Branch as Branch
    from lrp.engine.affine import Flow as Flow
    from lrp.engine.affine import Site as Site
    from lrp.engine.composite import Composite as Composite
    from lrp.engine.explainer import Explainer as Explainer
    from lrp.engine.explainer import explain as explain
    from lrp.engine.graph.algebra import Activation as Activation
    from lrp.engine.graph.algebra import Bilinear as Bilinear
    from lrp.engine.graph.algebra import MaxPool as MaxPool
    from lrp.engine.graph.algebra import Movement as Movement
    from lrp.engine.graph.algebra import Product as Product
    from lrp.engine.graph.algebra import Softmax as Softmax
    from lrp.engine.graph.algebra import Sum as Sum
    from lrp.engine.graph.ops import Operation as Operation
    from lrp.engine.graph.registry import register as register
    from lrp.engine.onnx.onnx_file import Exported as Exported
    from lrp.engine.predicates import depthwise as depthwise
    from lrp.engine.predicates import everything as everything
    from lrp.engine.predicates import family as family
    from lrp.engine.predicates import first as first
    from lrp.engine.predicates import module as module
    from lrp.engine.predicates import op as op
    from lrp.engine.predicates import path as path
    from lrp.engine.presets import composites as composites
    from lrp.engine.presets import preset as preset
    from lrp.engine.results.explanation import Explanation as Explanation
    from lrp.engine.results.explanation import Explanations as Explanations
    from lrp.engine.results.health import Health as Health
    from lrp.engine.results.ledger import Ledger as Ledger
    from lrp.engine.rule_check import RuleCheck as RuleCheck
    from lrp.engine.rules import AffineRule as AffineRule
    from lrp.engine.rules import AlphaBeta as AlphaBeta
    from lrp.engine.rules import Epsilon as Epsilon
    from lrp.engine.rules import Flat as Flat
    from lrp.engine.rules import Gamma as Gamma
    from lrp.engine.rules import Rule as Rule
    from lrp.engine.rules import SumRule as SumRule
    from lrp.engine.rules import WPlus as WPlus
    from lrp.engine.rules import WSquare as WSquare
    from lrp.engine.rules import ZBox as ZBox
    from lrp.engine.rules import Zero as Zero
    from lrp.engine.rules import ZPlus as ZPlus
    from lrp.engine.rules_beyond_affine import Constant as Constant
    from lrp.engine.rules_beyond_affine import Halves as Halves
    from lrp.engine.rules_beyond_affine import Magnitude as Magnitude
    from lrp.engine.rules_beyond_affine import Pass as Pass
    from lrp.engine.rules_beyond_affine import Proportional as Proportional
    from lrp.engine.rules_beyond_affine import SignalTakesAll as SignalTakesAll
    from lrp.engine.rules_beyond_affine import SoftmaxTaylor as SoftmaxTaylor
    from lrp.engine.rules_beyond_affine import Values as Values
    from lrp.engine.rules_beyond_affine import WinnerTakesAll as WinnerTakesAll
    from lrp.engine.targets import Contrast as Contrast
    from lrp.engine.targets import Region as Region
    from lrp.engine.targets import Similarity as Similarity
    from lrp.engine.weight_versions import magnitude as magnitude
    from lrp.engine.weight_versions import negative as negative
    from lrp.engine.weight_versions import ones as ones
    from lrp.engine.weight_versions import positive as positive
    from lrp.engine.weight_versions import square as square
    from lrp.engine.weight_versions import unchanged as unchanged
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
    from lrp.errors import OptionError as OptionError
    from lrp.errors import PredictionsError as PredictionsError
    from lrp.errors import ReportError as ReportError
    from lrp.errors import RuleError as RuleError
    from lrp.errors import TargetError as TargetError
    from lrp.errors import TrainingError as TrainingError
    from lrp.errors import UnsupportedError as UnsupportedError
    from lrp.gallery.explain_folder import explain_folder as explain_folder
    from lrp.gallery.export import export as export
    from lrp.gallery.options import ExplainOptions as ExplainOptions
    from lrp.gallery.results import Result as Result
    from lrp.html_report.report import report as report
    from lrp.html_report.write import Report as Report
    from lrp.models.loading import LoadedModel as LoadedModel
    from lrp.models.loading import load_model as load_model
    from lrp.models.preprocessing import Preprocessing as Preprocessing
    from lrp.pictures.geometry import Geometry as Geometry
    from lrp.pictures.heatmap import Panel as Panel
    from lrp.pictures.heatmap import draw as draw
    from lrp.pictures.photos import Photo as Photo
    from lrp.pictures.photos import find_photos as find_photos
    from lrp.pictures.photos import open_photo as open_photo
    from lrp.study.accuracy import Measured as Measured
    from lrp.study.accuracy import accuracy as accuracy
    from lrp.study.evaluate import Evaluation as Evaluation
    from lrp.study.evaluate import evaluate as evaluate
    from lrp.study.folder import Compared as Compared
    from lrp.study.folder import Confidence as Confidence
    from lrp.study.folder import Mistakes as Mistakes
    from lrp.study.folder import compare as compare
    from lrp.study.folder import confidence as confidence
    from lrp.study.folder import mistakes as mistakes
    from lrp.study.plots import plot_accuracy as plot_accuracy
    from lrp.study.plots import plot_class_accuracy as plot_class_accuracy
    from lrp.study.plots import plot_comparison as plot_comparison
    from lrp.study.plots import plot_confusion as plot_confusion
    from lrp.study.plots import plot_reliability as plot_reliability
    from lrp.study.predictions import Prediction as Prediction
    from lrp.study.predictions import read_predictions as read_predictions
    from lrp.study.predictions import write_predictions as write_predictions
    from lrp.train.curves import plot_training as plot_training
    from lrp.train.fit_all import NetSettings as NetSettings
    from lrp.train.fit_head import HeadSettings as HeadSettings
    from lrp.train.retrain import retrain as retrain
    from lrp.train.training_run import Retrained as Retrained

__version__ = "0.1.0"

# Imported at first use: importing torch takes seconds, and `lrp --help` does not need it.
_PACKAGES = {
    "engine.explainer": ("Explainer", "explain"),
    "engine.results.explanation": ("Explanation", "Explanations"),
    "engine.targets": ("Contrast", "Region", "Similarity"),
    "engine.results.health": ("Health",),
    "engine.results.ledger": ("Ledger",),
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
    "engine.weight_versions": ("magnitude", "negative", "ones", "positive", "square", "unchanged"),
    "engine.affine": ("Affine", "Branch", "Flow", "Site"),
    "engine.graph.ops": ("Operation",),
    "engine.graph.registry": ("register",),
    "engine.graph.algebra": ("Activation", "Bilinear", "MaxPool", "Movement", "Product", "Softmax", "Sum"),
    "models.loading": ("LoadedModel", "load_model"),
    "models.preprocessing": ("Preprocessing",),
    "pictures.geometry": ("Geometry",),
    "pictures.photos": ("Photo", "find_photos", "open_photo"),
    "pictures.heatmap": ("Panel", "draw"),
    "data.data_set": ("DataSet",),
    "data.imagenette": ("download_data",),
    "gallery.explain_folder": ("explain_folder",),
    "gallery.export": ("export",),
    "gallery.options": ("ExplainOptions",),
    "gallery.results": ("Result",),
    "study.evaluate": ("Evaluation", "evaluate"),
    "study.accuracy": ("Measured", "accuracy"),
    "study.folder": ("Compared", "Confidence", "Mistakes", "compare", "confidence", "mistakes"),
    "study.plots": ("plot_accuracy", "plot_class_accuracy", "plot_comparison", "plot_confusion", "plot_reliability"),
    "study.predictions": ("Prediction", "read_predictions", "write_predictions"),
    "train.curves": ("plot_training",),
    "train.fit_all": ("NetSettings",),
    "train.fit_head": ("HeadSettings",),
    "train.retrain": ("retrain",),
    "train.training_run": ("Retrained",),
    "html_report.report": ("report",),
    "html_report.write": ("Report",),
    "engine.onnx.onnx_file": ("Exported",),
    "errors": (
        "BusyError", "CaptureError", "CompositeError", "DataError", "ExportError", "ImageError", "InputError",
        "LedgerError", "LrpError", "ModelError", "OptionError", "PredictionsError", "ReportError", "RuleError",
        "TargetError", "TrainingError", "UnsupportedError",
    ),
}  # fmt: skip
_PUBLIC = {name: module for module, names in _PACKAGES.items() for name in names}
__all__ = ["__version__", *_PUBLIC]


if not TYPE_CHECKING:  # so that mypy reports a name that is not listed above

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'lrp' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"lrp.{_PUBLIC[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
