"""Hugging Face's families of image classifiers, each as one small model: `lrp models --check hf:`.

transformers is optional: the list is written down, so that it is the same where transformers is missing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import nn

from lrp.errors import ModelError

INSTALL = "install it with `pip install 'transformers>=5'`"

_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_DINO = {name: value for name, value in _VIT.items() if name != "intermediate_size"}
_TEXT = {name: _VIT[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
_TWO = {"vision_config": _VIT, "text_config": {**_TEXT, "num_hidden_layers": 1, "vocab_size": 64}}
_SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4,
}  # fmt: skip
_STAGES = {"hidden_sizes": [16, 32], "depths": [1, 2]}
_PYRAMID = {
    "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "num_attention_heads": [1, 2],
    "strides": [4, 2], "mlp_ratios": [4, 4],
}  # fmt: skip

# Family (transformers' model type) -> (side of its image in pixels, what its configuration takes). Few layers and
# channels, so that each is measured in seconds; every kind of layer of the family is there.
HUGGING_FACE: dict[str, tuple[int, dict[str, Any]]] = {
    "beit": (32, {**_VIT, "use_relative_position_bias": True}),
    "bit": (64, {**_STAGES, "embedding_size": 16, "num_groups": 8}),
    "clip": (32, _TWO),
    "convnext": (64, {**_STAGES, "num_stages": 2}),
    "convnextv2": (64, {**_STAGES, "num_stages": 2}),
    "cvt": (64, {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}),
    "data2vec-vision": (32, {**_VIT, "use_relative_position_bias": True}),
    "deit": (32, _VIT),
    "dinov2": (32, _DINO),
    "dinov2_with_registers": (32, _DINO),
    "donut-swin": (32, _SWIN),
    "efficientnet": (64, {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320}),
    "focalnet": (
        32,
        {
            "image_size": 32, "embed_dim": 16, "depths": [1, 2], "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    "hgnet_v2": (
        64,
        {
            "embedding_size": 8, "depths": [1, 1], "hidden_sizes": [32, 64], "stem_channels": [3, 8, 16],
            "stage_in_channels": [16, 32], "stage_mid_channels": [8, 16], "stage_out_channels": [32, 64],
            "stage_num_blocks": [1, 2], "stage_downsample": [False, True], "stage_downsample_strides": [2, 2],
            "stage_light_block": [False, True], "stage_kernel_size": [3, 5], "stage_numb_of_layers": [2, 2],
        },
    ),
    "hiera": (64, {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}),
    "ijepa": (32, _VIT),
    "levit": (
        64,
        {
            "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    "metaclip_2": (32, _TWO),
    "mobilenet_v1": (64, {"depth_multiplier": 0.25}),
    "mobilenet_v2": (64, {"depth_multiplier": 0.25}),
    "mobilevit": (
        64,
        {
            "image_size": 64, "hidden_sizes": [24, 32, 48],
            "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 64],
        },
    ),
    "mobilevitv2": (64, {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]}),
    "perceiver": (
        32,
        {
            "image_size": 32, "num_latents": 8, "d_latents": 32, "d_model": 512, "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4, "num_cross_attention_heads": 1,
        },
    ),
    "poolformer": (
        64,
        {
            "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
            "strides": [4, 2], "padding": [2, 1],
        },
    ),
    "pp_lcnet": (64, {"scale": 0.25, "class_expand": 128}),
    "pvt": (32, {**_PYRAMID, "image_size": 32, "patch_sizes": [4, 2], "sequence_reduction_ratios": [4, 1]}),
    "pvt_v2": (64, {**_PYRAMID, "image_size": 64, "patch_sizes": [7, 3], "sr_ratios": [4, 1]}),
    "regnet": (64, {**_STAGES, "embedding_size": 16, "groups_width": 8}),
    "resnet": (64, {**_STAGES, "embedding_size": 16}),
    "segformer": (64, {**_PYRAMID, "patch_sizes": [7, 3], "sr_ratios": [4, 1]}),
    "siglip": (32, _TWO),
    "swiftformer": (64, {"depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 48]}),
    "swin": (32, _SWIN),
    "swinv2": (32, _SWIN),
    "textnet": (64, {"stem_out_channels": 16, "hidden_sizes": [16, 16, 24, 32, 48]}),
    "vit": (32, _VIT),
    "vit_msn": (32, _VIT),
}  # fmt: skip

# Families of image classifiers in transformers that are not measured -> the reason.
LEFT_OUT_HUGGING_FACE = {
    "dinat": "needs natten, a package of GPU kernels",
    "imagegpt": "takes numbers of colour clusters, not pixels",
    "shieldgemma2": "takes a photo and a text",
    "siglip2": "takes patches and the sizes of the photos they were cut from, not pixels",
    "timm_wrapper": "holds a model of timm, which is measured as such",
}


# Standard deviation of the weights. transformers' own, 0.02, is for hundreds of channels: with 32, biases would give all
# of the logits, and next to no relevance would reach the image.
DEVIATION = 0.2


def _with_deviation(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a configuration, and of those within it, with `DEVIATION`."""
    inner = {name: _with_deviation(value) for name, value in options.items() if isinstance(value, dict)}
    return {**options, **inner, "initializer_range": DEVIATION}


def has_transformers() -> bool:
    """Whether transformers is installed."""
    return find_spec("transformers") is not None


def build_hugging_face(family: str) -> tuple[nn.Module, int]:
    """The small model of a family, with random weights, in eval mode; and the side of its image in pixels.

    Raises:
        ModelError: transformers is not installed, too old for this family, or cannot build it.
    """
    if not has_transformers():
        raise ModelError(f"hf:{family} is built by transformers, which is not installed: {INSTALL}.")
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    side, options = HUGGING_FACE[family]
    try:
        config: Any = CONFIG_MAPPING[family]
        config = config(**_with_deviation(options), num_labels=10)
        found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    except KeyError:
        raise ModelError(
            f"hf:{family} is an image classifier of newer transformers than {transformers.__version__}, "
            "which is installed: update it."
        ) from None
    kind = (
        found[0] if isinstance(found, list | tuple) else found
    )  # the others have a teacher's head, or other inputs
    model: nn.Module = kind(config).eval()
    return model, side


def unlisted_hugging_face() -> list[str]:
    """The families of the installed transformers that are in neither of the two tables: new ones, to be added here."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return sorted(
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.keys()
        - HUGGING_FACE.keys()
        - LEFT_OUT_HUGGING_FACE.keys()
    )
