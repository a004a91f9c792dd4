"""An architecture by its name, with random weights: of the catalogue, of transformers, or of the user's code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lrp.models.catalogue import build_from_catalogue
from lrp.models.downloads import Progress, to_stderr
from lrp.models.hugging_face.repository import PREFIX, Repository
from lrp.models.own_code.calling import is_own_code
from lrp.models.own_code.model import own_model_with_heads
from lrp.models.preprocessing import Preprocessing


def build_architecture(
    architecture: str,
    classes: int,
    preprocessing: Preprocessing,
    filled_later: bool = True,
    heads: Sequence[str] = (),
    progress: Progress = to_stderr,
) -> nn.Module:
    """The architecture for a number of classes; weights are random, of the user's code those that it gives but for `heads`.

    Args:
        architecture: the name by which `load_model` knows it, and no file.
        filled_later: see `build_from_catalogue`.
        heads: of the user's code, the paths of the layers that are replaced because they depend on the number of classes.
        progress: called with lines about the user's code and downloads.
    """
    if is_own_code(architecture):
        return own_model_with_heads(architecture, classes, preprocessing, heads, progress)
    if architecture.startswith(PREFIX):
        return Repository(architecture, progress, weights=False).classifier(classes)
    return build_from_catalogue(architecture, classes, preprocessing, filled_later)


def class_axes_of_weights(architecture: str, preprocessing: Preprocessing) -> dict[str, int]:
    """The parameters whose shape depends on the number of classes -> the axis of the classes: usually 0.

    {"classifier.6.weight": 0, "classifier.6.bias": 0} for "vgg19".
    """

    two, three = (
        {name: tensor.shape for name, tensor in _outline(architecture, n, preprocessing).state_dict().items()}
        for n in (2, 3)
    )
    return {
        name: axis
        for name, shape in two.items()
        for axis, sizes in enumerate(zip(shape, three[name], strict=True))
        if sizes == (2, 3)
    }


def first_convolution_weight(architecture: str, preprocessing: Preprocessing) -> tuple[str, torch.Size]:
    """The weight of the first convolution, ("features.0.weight", [64, 3, 3, 3]) for "vgg19"; ("", []) if there is none."""
    modules = _outline(architecture, 2, preprocessing).named_modules()
    found = ((f"{path}.weight", m.weight.shape) for path, m in modules if isinstance(m, nn.Conv2d))
    return next(found, ("", torch.Size()))


def _outline(architecture: str, classes: int, preprocessing: Preprocessing) -> nn.Module:
    """The architecture with weights of no memory, or random ones; for the shapes."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # allocates no memory, which is fast
                return build_architecture(architecture, classes, preprocessing)
        except RuntimeError:  # its constructor computes with values, as in torchvision's regnets
            return build_architecture(architecture, classes, preprocessing)
