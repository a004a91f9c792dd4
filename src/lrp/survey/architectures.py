"""The models that `lrp models --check` measures: torchvision's, one of each timm family, one of each of Hugging Face's."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from lrp.errors import ModelError
from lrp.survey.hugging_face import HUGGING_FACE, INSTALL, has_transformers, unlisted_hugging_face

LIMIT = 120_000_000  # parameters; timm families without a smaller model are left out

# Family (a module of timm.models) -> its smallest classifier, found by `smallest_of_family`. Stored, not computed, because
# finding them builds a thousand models.
TIMM = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_336",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "hieradet_small",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}

# The timm families without a model to measure -> the reason.
LEFT_OUT = {
    "deepseek_vit": "no classifiers, only encoders",
    "gemma4_vit": "no classifiers, only encoders",
    "qwen3_vit": "no classifiers, only encoders",
    "vgg": "the smallest, vgg11, has 132.9 M parameters; torchvision's eight are measured",
}


@dataclass(frozen=True)
class Group:
    """Models of one source. Each group has a table of its own.

    Attributes:
        prefix: with which the names of its models begin; "" for torchvision's classifiers.
        title: of its table.
        noun: of what the summary counts.
        list_names: its models' names without the prefix, in the order of the table.
        may_miss: number of its models that may miss the requirements.
    """

    prefix: str
    title: str
    noun: str
    list_names: Callable[[], list[str]]
    may_miss: int = 0

    @property
    def names(self) -> list[str]:
        return [self.prefix + name for name in self.list_names()]


def _of_torchvision(package: str = "") -> list[str]:
    """The names of the models in a package of `torchvision.models`, without those of its own packages."""
    import torchvision.models

    module = getattr(torchvision.models, package) if package else torchvision.models
    return [name.removeprefix("quantized_") for name in torchvision.models.list_models(module=module)]


GROUPS = (
    Group("", "torchvision", "torchvision classifiers", _of_torchvision),
    Group("timm:", "timm, one model per family", "timm families", lambda: [*TIMM.values()], may_miss=4),
    Group("video:", "torchvision, video", "video classifiers", lambda: _of_torchvision("video")),
    Group(
        "segmentation:", "torchvision, segmentation", "segmentation nets",
        lambda: _of_torchvision("segmentation"),
    ),
    Group(
        "quantizable:", "torchvision, quantisable", "quantisable nets",
        lambda: _of_torchvision("quantization"),
    ),
    Group(
        "hf:", "Hugging Face, one small model per family", "Hugging Face families",
        lambda: [*HUGGING_FACE], may_miss=len(HUGGING_FACE) - 30,
    ),
)  # fmt: skip


def group_of(name: str) -> Group:
    """The group of a model."""
    return next((group for group in GROUPS[1:] if name.startswith(group.prefix)), GROUPS[0])


def surveyed_architectures(part: str = "") -> list[str]:
    """The names of the measured models whose name contains `part`, group by group.

    Raises:
        ModelError: there are none.
    """
    everything = [name for group in GROUPS for name in group.names]
    found = [name for name in everything if part in name]
    if not found:
        near = difflib.get_close_matches(part, everything, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "no name is similar."
        raise ModelError(
            f"--check measures {len(everything)} models, and none of their names contains {part!r}: {hint} "
            "Without a name, all are measured."
        )
    return found


def installed_architectures(names: list[str]) -> tuple[list[str], str]:
    """Those that can be built with what is installed; and what is missing for the others, one line, or "".

    Raises:
        ModelError: none can be built.
    """
    if has_transformers():
        return names, ""
    able = [name for name in names if not name.startswith("hf:")]
    missing = f"{len(names) - len(able)} models are built by transformers, which is not installed: {INSTALL}."
    if not able:
        raise ModelError(missing)
    return able, missing if len(able) < len(names) else ""


def family_of(name: str) -> str:
    """The timm or Hugging Face family that a model represents; "torchvision" for torchvision's models."""
    group = group_of(name)
    inner = name.removeprefix(group.prefix)
    if group.prefix == "timm:":
        return next((f for f, n in TIMM.items() if n == inner), "timm")
    return inner if group.prefix == "hf:" else "torchvision"


def unlisted_families() -> dict[str, list[str]]:
    """Package -> the families of its installed version that no table lists: new ones, to be added."""
    return {
        "timm": _unlisted_timm(),
        **({"transformers": unlisted_hugging_face()} if has_transformers() else {}),
    }


def _unlisted_timm() -> list[str]:
    import timm

    # Models registered by a user (`@register_model`) are in timm's list too, with the user's module as family.
    own = {module.name for module in pkgutil.iter_modules(timm.models.__path__)}
    return sorted(own.intersection(timm.list_modules()) - TIMM.keys() - LEFT_OUT.keys())


def smallest_of_family(family: str) -> str | None:
    """The classifier of a timm family with the fewest parameters, the first of equal ones; None: it has none.

    timm's models for its own tests (test_*) are ignored. Models are built without allocating memory; it still takes
    minutes for a large family.
    """
    import timm
    import torch

    sizes: dict[str, int] = {}
    for name in timm.list_models(module=family, exclude_filters="test_*"):
        with torch.device("meta"):
            model = timm.create_model(name)
        if getattr(model, "num_classes", 0):
            sizes[name] = sum(p.numel() for p in model.parameters())
    return min(sizes, key=lambda name: sizes[name], default=None)
