"""Build a model to measure: with random weights that vary like trained ones, and an image of noise for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrp.errors import ModelError
from lrp.models.loading import load_model
from lrp.survey.architectures import group_of
from lrp.survey.hugging_face import build_hugging_face

LARGE = 100_000_000  # parameters: larger torchvision models get inputs of 224 x 224 pixels
NOISE = 8  # images from which batch norms compute their statistics

# Frames, and side in pixels. Small, since a video has many pixels. S3D ends in a pool of 7 x 7 and takes no less than
# 224; the position embeddings of the MViTs have one size.
VIDEO = (8, 64)
VIDEO_OF = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}
SEGMENTATION = 128  # pixels, of which the nets keep one in eight: room for their dilated convolutions
QUANTIZABLE = 96  # pixels: they are torchvision's classifiers, with operations that can be quantised


class PooledSegmentation(nn.Module):
    """A segmentation net as a classifier: its scores per pixel, averaged over the pixels: [N, C, H, W] -> [N, K]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)["out"]
        return scores.mean((2, 3))


def model_to_check(name: str, size: int | None = None) -> tuple[nn.Module, Tensor]:
    """The model, with random weights under which signal and relevance do not vanish, and noise for it.

    Args:
        name: from `surveyed_architectures`.
        size: side of the image in pixels; None: the one that the survey takes.

    Returns:
        (model in eval mode, noise [1, 3, H, W], or [1, 3, frames, H, W] for a video).

    Raises:
        ModelError: there is no such model, or a package that it needs is missing.
    """
    group = group_of(name)
    inner = name.removeprefix(group.prefix)
    if group.prefix and group.prefix != "timm:" and inner not in group.list_names():
        raise ModelError(f"no model {name!r}: `lrp models --check` knows {', '.join(group.names)}.")
    if group.prefix == "hf:":
        model, side = build_hugging_face(inner)
        shape: tuple[int, ...] = (side, side)
    elif group.prefix == "video:":
        model, shape = _video(inner)
    elif group.prefix == "segmentation:":
        model, shape = _segmentation(inner), (SEGMENTATION, SEGMENTATION)
    elif group.prefix == "quantizable:":
        model, shape = _quantizable(inner), (QUANTIZABLE, QUANTIZABLE)
    else:
        model, shape = _classifier(name, size)
    if size is not None:
        shape = (*shape[:-2], size, size)
    return set_check_weights(model, torch.randn(NOISE, 3, *shape)), torch.randn(1, 3, *shape)


def _classifier(name: str, size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """A classifier of torchvision or timm, and (height, width) of its image."""
    if not name.startswith("timm:") and size is None:
        size = 224 if _published(name) > LARGE else None
    loaded = load_model(name, pretrained=False)
    model, shape = loaded.model, tuple(loaded.preprocessing.zeros(1).shape[2:])
    if size is not None and shape != (size, size):
        shape = (size, size)
        if name.startswith("vit_"):  # the size of position embeddings depends on the input size
            import torchvision.models

            model = torchvision.models.get_model(name, weights=None, image_size=size).eval()
    return model, shape


def _published(name: str) -> int:
    """Number of parameters of a torchvision classifier, from its metadata; 0 for others."""
    import torchvision.models

    if name not in torchvision.models.list_models(module=torchvision.models):
        return 0
    return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])


def _video(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A video classifier of torchvision, and (frames, height, width) of its input."""
    import torchvision.models

    frames, side = VIDEO_OF.get(name, VIDEO)
    return torchvision.models.get_model(name, weights=None).eval(), (frames, side, side)


def _segmentation(name: str) -> nn.Module:
    import torchvision.models

    return PooledSegmentation(torchvision.models.get_model(name, weights=None, weights_backbone=None)).eval()


def _quantizable(name: str) -> nn.Module:
    """A model made to be quantised, in float32: additions and products are modules there."""
    import torchvision.models

    return torchvision.models.get_model(f"quantized_{name}", weights=None, quantize=False).eval()


def set_check_weights(model: nn.Module, x: Tensor) -> nn.Module:
    """Set random weights that vary like trained ones, so that each of them is tested; in place, in eval mode.

    Batch norms get scales of both signs, and their statistics from one pass over `x` [N, C, H, W], noise; without
    that, activations of deep nets explode or vanish. Parameters that are initialised to one small value (zero heads
    and biases, layer scales of 1e-6) are drawn at random, because otherwise whole blocks would have no effect.
    """
    generator = torch.Generator().manual_seed(1)

    def normal(like: Tensor, deviation: float) -> Tensor:
        return deviation * torch.randn(like.shape, generator=generator).to(like)

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    model.eval()
    with torch.no_grad():
        for norm in norms:
            if norm.affine:
                sign = torch.where(torch.rand(norm.num_features, generator=generator) < 0.2, -1.0, 1.0)
                norm.weight.copy_((torch.rand(len(sign), generator=generator) + 0.5) * sign)
                norm.bias.copy_(normal(norm.bias, 0.2))
        for p in model.parameters():
            first = p.flatten()[:1]
            if p.is_floating_point() and p.numel() and abs(float(first)) < 0.1 and bool((p == first).all()):
                matrix = p.dim() > 1 and p.numel() > max(p.shape)
                p.copy_(normal(p, (p.numel() / len(p)) ** -0.5 if matrix else 0.1))
        measuring = [n for n in norms if n.track_running_stats]
        kept = [n.momentum for n in measuring]
        for norm in measuring:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()  # only batch norms are in training mode, so dropout stays off
        if measuring:
            model(x)
        for norm, momentum in zip(measuring, kept, strict=True):
            norm.momentum = momentum
    return model.eval()
