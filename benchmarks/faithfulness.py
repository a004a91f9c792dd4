"""Measure whether maps find the pixels that the decision depends on: a table of presets and other methods.

    python benchmarks/faithfulness.py [--model efficientnet_lite0] [--photos FOLDER] [--count 48]

Each photo is cut into 14 x 14 squares, ordered by the relevance that falls on them. Squares are replaced
by the blurred photo, once the most relevant first, once the least relevant first, and the logit of the
predicted class is recorded. The score is the area between the two curves, in logits: larger means that
the logit depends more on the squares with much relevance. "class" is the rank correlation between the
maps of the predicted and of the second class: lower means that the map depends on the explained class.
"share" is the share of the logit that reached the pixels. Without --photos: scikit-image's photos.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import lrp

SQUARES = 14
STEPS = 7


def photos(folder: Path | None, count: int) -> list[np.ndarray]:
    if folder is None:
        import skimage.data

        folder = Path(skimage.data.__file__).parent
        names = [
            "chelsea.png",
            "coffee.png",
            "camera.png",
            "motorcycle_left.png",
            "rocket.jpg",
            "astronaut.png",
        ]
        return [lrp.open_photo(folder / name).pixels for name in names]
    found = lrp.find_photos([folder])
    return [lrp.open_photo(f.path).pixels for f in found[:: max(1, len(found) // count)][:count]]


def square_scores(relevance: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, squares²]."""
    side = relevance.shape[-1] // SQUARES
    return F.avg_pool2d(relevance.sum(1, keepdim=True), side).flatten(1)


def curve(model: torch.nn.Module, x: Tensor, blurred: Tensor, order: Tensor, target: Tensor) -> Tensor:
    """The target's logit after each step of replacing squares in `order`: [N, STEPS + 1]."""
    n, total = len(x), SQUARES * SQUARES
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(total).expand(n, -1))
    logits = []
    for step in range(STEPS + 1):
        gone = (rank < step * total // STEPS).view(n, 1, SQUARES, SQUARES).float()
        mask = F.interpolate(gone, size=x.shape[-2:], mode="nearest")
        with torch.no_grad():
            mixed = (x * (1 - mask) + blurred * mask).contiguous(memory_format=torch.channels_last)
            logits.append(model(mixed).gather(1, target[:, None])[:, 0])
    return torch.stack(logits, 1)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    ranks = [t.flatten(1).argsort(1).argsort(1).double() for t in (a, b)]
    ranks = [r - r.mean(1, keepdim=True) for r in ranks]
    return (ranks[0] * ranks[1]).sum(1) / (ranks[0].norm(dim=1) * ranks[1].norm(dim=1))


def methods(loaded: lrp.LoadedModel) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam

    model, pre = loaded.model, loaded.preprocessing
    rows: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}

    def add(name: str, composite: object) -> None:
        explainer = lrp.Explainer(model, composite)
        rows[name] = lambda x, target: explainer(x, target.tolist()).relevance

    presets = [
        "epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_gamma_wsquare", "gamma",
        "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat",
    ]  # fmt: skip
    for bias in ("absorb", "ignore"):
        for preset in presets:
            add(f"{preset}, {bias}", lrp.preset(preset, bias=bias, low=pre.low, high=pre.high))
    for gamma in (0.1, 0.5, 1.0):
        add(f"epsilon_gamma_wsquare γ={gamma:g}, absorb", lrp.preset("epsilon_gamma_wsquare", gamma=gamma))

    gradient_input, integrated = InputXGradient(model), IntegratedGradients(model)
    rows["gradient × input"] = lambda x, t: gradient_input.attribute(
        x.clone().requires_grad_(), target=t
    ).detach()
    rows["integrated gradients, 20 steps"] = lambda x, t: integrated.attribute(
        x, target=t, n_steps=20, internal_batch_size=len(x)
    ).detach()
    last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    cam = LayerGradCam(model, last)

    def grad_cam(x: Tensor, target: Tensor) -> Tensor:
        map = cam.attribute(x, target=target, relu_attributions=True).detach()
        return F.interpolate(map, size=x.shape[-2:], mode="bilinear")

    rows["Grad-CAM"] = grad_cam
    rows["random order"] = lambda x, t: torch.rand_like(x)
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--only", default="", help="only rows that contain this")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    loaded = lrp.load_model(chosen.model)
    x = torch.stack([loaded.preprocessing(p) for p in photos(chosen.photos, chosen.count)])
    kernel = torch.ones(3, 1, 31, 31) / 31**2
    blurred = F.conv2d(F.pad(x, [15] * 4, mode="reflect"), kernel, groups=3)
    with torch.no_grad():
        best = torch.cat([loaded.model(part).topk(2).indices for part in x.split(16)])
    print(f"{chosen.model}, {len(x)} photos, {SQUARES}² squares; area in logits between the removal curves\n")
    print(f"{'method':<42} {'area':>6} {'class':>6} {'share':>7}   {'s/photo':>7}")
    results = []
    for name, method in methods(loaded).items():
        if chosen.only not in name:
            continue
        areas, classes, shares, seconds = [], [], [], 0.0
        for part, soft, pair in zip(x.split(16), blurred.split(16), best.split(16), strict=True):
            begin = time.perf_counter()
            relevance = method(part, pair[:, 0])
            seconds += time.perf_counter() - begin
            score = square_scores(relevance)
            falls = partial(curve, loaded.model, part, soft, target=pair[:, 0])
            most, least = falls(score.argsort(1, descending=True)), falls(score.argsort(1))
            areas.append((least - most).mean(1))
            other = square_scores(method(part, pair[:, 1]))
            classes.append(rank_correlation(score, other))
            with torch.no_grad():
                logit = loaded.model(part).gather(1, pair[:, :1])[:, 0]
            shares.append(relevance.flatten(1).sum(1) / logit)
        area, same, share = (float(torch.cat(v).mean()) for v in (areas, classes, shares))
        results.append((area, name))
        print(
            f"{name:<42} {area:6.2f} {same:6.2f} {100 * share:6.1f} %   {seconds / len(x):7.3f}", flush=True
        )


if __name__ == "__main__":
    main()
