"""Compare composites for each kind of architecture, on a task whose relevant pixels are known.

    python benchmarks/architectures.py [--kinds vit,mixer] [--steps N] [--brief]

Small nets are trained, on one thread, to classify an object among distractors: its hue (3) and the direction of its
stripes (2) define the class. Its shape, position, size and tint, the four plain distractors, the coloured background
and the noise are independent of it. All columns are means over correctly classified images outside the training set:

    area    squares of 6 x 6 pixels are blurred, once the least relevant first, once the most relevant first; the
            area between the two curves of the logit: larger means that the logit depends on the relevant pixels
    mass    share of the positive relevance inside the object; above the table: that of a uniform map
    point   how often the largest relevance is inside the object
    class   rank correlation of the squares' relevance for the predicted and the second class, absolute value
            (the sign is that of the second logit): 1 is a map that does not depend on the explained class
    share   share of the logit that reached the pixels
    health  whether the explanation's ledger closes (`Explanation.health.ok`)

Rows are sorted by area. --brief compares only the named presets, as published, with the other methods, all nets in one
table of area and mass. The nets are tiny and the images simple: differences of a few hundredths are noise, and effects
that only large nets have (dozens of layers of biases, massive activations) do not occur.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import lrp
from faithfulness import rank_correlation

SIDE, CLASSES, SQUARE = 48, 6, 6
SQUARES = SIDE // SQUARE
LOW, HIGH = -2.0, 2.0  # values of a black and of a white pixel


@dataclass(frozen=True)
class Scenes:
    """Images [N, 3, SIDE, SIDE] with labels [N] and the object's mask [N, SIDE, SIDE]; lengths in units of SIDE."""

    off_centre: float = 0.22
    radius: tuple[float, float] = (0.17, 0.27)
    frequency: tuple[float, float] = (66.0, 80.0)
    phase: float = 2 * np.pi
    turn: float = 0.3

    def draw(self, n: int, seed: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        def some(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape or (1, 1), generator=seed)

        def placed(off: float) -> tuple[Tensor, Tensor]:
            u, v, angle = right - some(-off, off), down - some(-off, off), some(-self.turn, self.turn)
            return angle.cos() * u + angle.sin() * v, angle.cos() * v - angle.sin() * u

        axis, each = (torch.arange(SIDE) + 0.5) / SIDE - 0.5, torch.arange(n)
        down, right = torch.meshgrid(axis, axis, indexing="ij")
        x = F.interpolate(some(0, 1, 3, 4, 4), (SIDE, SIDE), mode="bilinear")
        x = x + some(0, 0.1, 1, 1, 1) * torch.randn(n, 3, SIDE, SIDE, generator=seed)
        for _ in range(4):
            (u, v), a, b = placed(0.5), some(0.03, 0.16), some(0.03, 0.16)
            bar, blob = (u.abs() < a) & (v.abs() < b), (u / a) ** 2 + (v / b) ** 2 < 1
            x = torch.where(torch.where(some(0, 1) < 0.5, bar, blob)[:, None], some(0, 1, 3, 1, 1), x)

        label = torch.randint(CLASSES, (n,), generator=seed)
        (u, v), r = placed(self.off_centre), some(*self.radius)
        near, far = torch.minimum(u.abs(), v.abs()), torch.maximum(u.abs(), v.abs())
        disc, square = u**2 + v**2 < r**2, far < 0.85 * r
        triangle, cross = (v < 0.7 * r) & (v > 2 * u.abs() - 1.2 * r), (near < 0.45 * r) & (far < 1.1 * r)
        mask = torch.stack([disc, square, triangle, cross], 1)[each, torch.randint(4, (n,), generator=seed)]
        across = torch.stack([u, v], 1)[each, label % 2]
        stripes = (some(*self.frequency) * across + some(0, self.phase)).sin() > 0
        hue = F.one_hot(label // 2, 3)[:, :, None, None] > 0
        light = torch.where(hue, some(0.8, 1, 3, 1, 1), some(0.1, 0.55, 3, 1, 1))
        painted = torch.where(stripes[:, None], light, some(0, 0.25, 3, 1, 1))
        x = torch.where(mask[:, None], painted, x) + 0.03 * torch.randn(n, 3, SIDE, SIDE, generator=seed)
        return LOW + (HIGH - LOW) * x.clamp(0, 1), label, mask


# ---------------------------------------------------------------- the nets


def conv(i: int, o: int, side: int, act: type[nn.Module] = nn.ReLU, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(i, o, side, stride, side // 2, bias=False), nn.BatchNorm2d(o), act()]


def vgg() -> nn.Module:
    blocks = [[*conv(i, o, 3), *conv(o, o, 3), nn.MaxPool2d(2)] for i, o in ((3, 16), (16, 32), (32, 48))]
    head = [nn.Flatten(), nn.Linear(48 * 36, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
    return nn.Sequential(*itertools.chain(*blocks), *head)


def mobile() -> nn.Module:
    block = partial(InvertedResidual, act_layer=nn.SiLU, se_layer=SqueezeExcite)
    sizes = [(16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 48, 2, 4), (48, 48, 1, 4)]
    blocks = [block(i, o, stride=stride, exp_ratio=expand) for i, o, stride, expand in sizes]
    head = [*conv(48, 96, 1, nn.SiLU), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, CLASSES)]
    return nn.Sequential(*conv(3, 16, 3, nn.SiLU, stride=2), *blocks, *head)


def mlp() -> nn.Module:
    sizes = itertools.pairwise((3 * SIDE * SIDE, 256, 128, 64))
    hidden = [layer for i, o in sizes for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, CLASSES))


resnet = partial(ResNet, BasicBlock, (1, 1, 1, 1), CLASSES, stem_width=16, channels=(16, 32, 64, 96))
vit = partial(VisionTransformer, SIDE, 6, num_classes=CLASSES, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0)  # fmt: skip
mixer = partial(MlpMixer, CLASSES, SIDE, patch_size=6, num_blocks=4, embed_dim=64)
swin = partial(SwinTransformer, SIDE, 4, num_classes=CLASSES, embed_dim=48, depths=(2, 2), num_heads=(2, 4),
               window_size=6, drop_path_rate=0.0)  # fmt: skip
convnext = partial(ConvNeXt, num_classes=CLASSES, depths=(2, 2, 1, 1), dims=(32, 48, 64, 64), patch_size=2,
                   kernel_sizes=(7, 5, 3, 3), ls_init_value=1.0)  # fmt: skip

WHERE: dict[str, Any] = {name: lrp.family(name) for name in ("conv", "linear", "layer_norm", "sum")}
WHERE |= {"depthwise": lrp.depthwise, "first": lrp.first}


def composite(words: dict[str, str]) -> lrp.Composite:
    """The composite for {kind of layer: rule}. Other layers get ε; flat, w² and zᴮ have no bias option."""
    bias = words["bias"]
    rules = {"flat": lrp.Flat(), "w²": lrp.WSquare(), "zᴮ": lrp.ZBox(LOW, HIGH), "pass": lrp.Pass(), "|·|": lrp.Magnitude()}  # fmt: skip
    rules |= {"ε": lrp.Epsilon(bias=bias), "z⁺": lrp.ZPlus(bias=bias), "α2β1": lrp.AlphaBeta(bias=bias)}
    rules |= {w: lrp.Gamma(float(w[1:]), bias=bias) for w in words.values() if w.startswith("γ")}
    pairs = [(where, rules[words[word]]) for word, where in WHERE.items() if word in words]
    return lrp.Composite([(lrp.everything, rules["ε"]), *pairs], attention=words.get("attention", "cp"))


def around(text: str, **choices: str) -> list[dict[str, str]]:
    """A base such as "conv z⁺, linear ε, bias absorb", and all variants that differ from it in one choice."""
    base = dict(part.split() for part in text.split(", "))
    return [base] + [base | {word: c} for word, each in choices.items() for c in each.split()]


def tokens(base: str) -> list[dict[str, str]]:
    linear, first = "ε γ0.05 γ1 z⁺", "flat w² zᴮ ε γ1"
    return around(base, linear=linear, first=first, layer_norm="pass", sum="|·|", bias="ignore")


PLUS, GAMMA = "conv z⁺, linear ε, first flat, bias absorb", "conv γ0.25, linear ε, first γ0.25, bias absorb"
CONV = around(PLUS, conv="γ100 α2β1", linear="γ0.25 z⁺", first="w² zᴮ", bias="ignore")
CONV += around(GAMMA, conv="ε γ0.1 γ0.5 γ1", linear="γ0.25 z⁺", first="flat w² zᴮ ε", bias="ignore")
RESIDUAL = CONV + around(PLUS, sum="|·|") + around(GAMMA, sum="|·|")
DEPTHWISE = RESIDUAL + around(PLUS, depthwise="γ0.25 γ1") + around(GAMMA, depthwise="z⁺")
TRANSFORMER = tokens("attention cp, linear γ0.05, first γ0.25, bias absorb")
TRANSFORMER += tokens("attention attnlrp, linear γ0.05, first γ0.25, bias absorb")
DENSE = around("linear γ0.25, first γ0.25, bias absorb", linear="γ0.05 γ1", bias="ignore")
DENSE += around("linear ε, first ε, bias absorb", linear="γ0.25 z⁺ α2β1", first="flat w² zᴮ γ0.25")


@dataclass(frozen=True)
class Kind:
    """An architecture, its training steps and learning rate, and the composites to compare."""

    build: Callable[[], nn.Module]
    steps: int
    rate: float
    mixes: list[dict[str, str]]
    cam: str = ""  # Grad-CAM's layer
    scenes: Scenes = Scenes()


PRESETS = (
    "epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_gamma_wsquare", "gamma", "cp_lrp", "attnlrp",
)  # fmt: skip
KINDS = {
    "vgg": Kind(vgg, 150, 3e-3, CONV, cam="18"),
    "resnet": Kind(resnet, 150, 3e-3, RESIDUAL, cam="layer3"),
    "mobile": Kind(mobile, 150, 3e-3, DEPTHWISE, cam="7"),
    "convnext": Kind(convnext, 1300, 4e-3, DEPTHWISE + tokens(GAMMA.replace("ε", "γ0.25")), cam="stages.1"),
    "vit": Kind(vit, 300, 2e-3, TRANSFORMER),
    "swin": Kind(swin, 300, 2e-3, TRANSFORMER),
    "mixer": Kind(mixer, 400, 2e-3, tokens("linear γ0.05, first γ0.25, bias absorb")),
    "mlp": Kind(mlp, 500, 1e-3, DENSE, scenes=Scenes(0.1, (0.24, 0.34), (36.0, 40.0), np.pi / 2, 0.1)),
}  # fmt: skip


def trained(kind: Kind, steps: int) -> nn.Module:
    """The net after `steps` batches of 64 fresh images."""
    torch.manual_seed(0)
    model, seed = kind.build(), torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()  # timm's initialisation is for much wider nets
    optimizer = torch.optim.AdamW(model.parameters(), kind.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, kind.rate, steps, pct_start=0.15)
    for _ in range(steps):
        x, label, _ = kind.scenes.draw(64, seed)
        optimizer.zero_grad()
        F.cross_entropy(model(x), label).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


class Sample:
    """Correctly classified images, with masks, the two most probable classes, logit, and blurred versions."""

    def __init__(self, model: nn.Module, scenes: Scenes, count: int = 64) -> None:
        x, label, mask = scenes.draw(512, torch.Generator().manual_seed(2))
        with torch.no_grad():
            logits = model(x)
        right = logits.argmax(1) == label
        chosen = right.nonzero()[:count, 0]
        self.accuracy, self.model, self.x, self.mask = right.float().mean(), model, x[chosen], mask[chosen]
        self.logit, self.best = logits[chosen].max(1).values, logits[chosen].topk(2).indices
        kernel = torch.ones(3, 1, 13, 13) / 13**2
        self.blurred = F.conv2d(F.pad(self.x, [6] * 4, mode="reflect"), kernel, groups=3)

    def mean_logit(self, order: Tensor) -> Tensor:
        """The mean logit for a rising number of blurred squares, 0 in `order` first: [steps]."""
        logits = []
        for count in range(0, SQUARES**2 + 1, SQUARES):
            gone = (order < count).view(-1, 1, SQUARES, SQUARES)
            mixed = torch.where(F.interpolate(gone.float(), self.x.shape[-2:]) > 0, self.blurred, self.x)
            with torch.no_grad():
                logits.append(self.model(mixed).gather(1, self.best[:, :1])[:, 0])
        return torch.stack(logits).mean(0)

    def explained(self, method: Any, place: int = 0) -> Tensor:
        target = self.best[:, place]
        if isinstance(method, lrp.Explainer):
            return method(self.x, target.tolist()).relevance
        return method(self.x, target=target).detach()

    def measure(self, method: Any) -> tuple[float, ...]:
        relevance, other = (self.explained(method, place).sum(1) for place in (0, 1))
        score, second = (F.avg_pool2d(r[:, None], SQUARE).flatten(1) for r in (relevance, other))
        order = score.argsort(1).argsort(1)
        area = self.mean_logit(order) - self.mean_logit(SQUARES**2 - 1 - order)
        positive = relevance.clamp(min=0)
        mass = (positive * self.mask).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1e-12)
        top = relevance == relevance.amax((1, 2), keepdim=True)  # Flat in the first layer produces ties
        point = (top & self.mask).sum((1, 2)) / top.sum((1, 2))
        same, share = rank_correlation(score, second).abs(), relevance.sum((1, 2)) / self.logit
        return tuple(float(column.mean()) for column in (area, mass, point, same, share))


def methods(kind: Kind, model: nn.Module, brief: bool) -> dict[str, Any]:
    """The methods to compare: explainers, and functions of images and target."""
    mixes: dict[str, Any] = {"the default": None}
    if not brief:
        mixes |= {", ".join(f"{k} {v}" for k, v in words.items()): composite(words) for words in kind.mixes}
    for name, bias in itertools.product(PRESETS, ("absorb",) if brief else ("absorb", "ignore")):
        label = f"`{name}`" if brief else f"`{name}`, bias {bias}"
        mixes[label] = lrp.preset(name, bias=bias, low=LOW, high=HIGH)
    rows: dict[str, Any] = {name: lrp.Explainer(model, mix) for name, mix in mixes.items()}
    rows["*gradient × input*"] = InputXGradient(model).attribute
    rows["*integrated gradients, 20 steps*"] = partial(IntegratedGradients(model).attribute, n_steps=20)
    if kind.cam:
        coarse = LayerGradCam(model, model.get_submodule(kind.cam)).attribute
        rows["*Grad-CAM*"] = lambda x, target: F.interpolate(
            coarse(x, target, relu_attributions=True), (SIDE, SIDE), mode="bilinear"
        )
    rows["*random order*"] = lambda x, target: torch.rand(x.shape, generator=torch.Generator().manual_seed(3))
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--steps", type=int, help="of training; each kind has its own")
    parser.add_argument("--brief", action="store_true", help="the named presets alone, in one table")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names, brief = chosen.kinds.split(","), {}
    for name in names:
        kind, begin = KINDS[name], time.perf_counter()
        sample = Sample(trained(kind, chosen.steps or kind.steps), kind.scenes)
        results = {
            label: (*sample.measure(method), healthy(method, sample))
            for label, method in methods(kind, sample.model, chosen.brief).items()
        }
        brief[name] = results
        if chosen.brief:
            continue
        print(
            f"\n### {name}\n\n{sample.accuracy:.1%} of 512 new images right, {len(sample.x)} explained; "
            f"mean logit {sample.logit.mean():.1f}; the object covers {sample.mask.float().mean():.0%} of an image.\n"
        )
        print("| composite | area | mass | point | class | share | health |\n|---|---|---|---|---|---|---|")
        for label, found in sorted(results.items(), key=lambda item: item[1], reverse=True):
            area, mass, point, same, share, health = found
            print(
                f"| {label} | {area:.2f} | {mass:.0%} | {point:.0%} | {same:.2f} | {share:.0%} | {health} |"
            )
        print(f"\n{time.perf_counter() - begin:.0f} s", flush=True)
    if chosen.brief:
        print(f"| | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
        labels = dict.fromkeys(label for results in brief.values() for label in results)
        for label in labels:
            cells = [brief[name].get(label) for name in names]
            print(f"| {label} | {' | '.join(f'{c[0]:.2f} · {c[1]:.0%}' if c else '–' for c in cells)} |")


def healthy(method: Any, sample: Sample) -> str:
    if not isinstance(method, lrp.Explainer):
        return ""
    return ("**no**", "ok")[method(sample.x[:8], sample.best[:8, 0].tolist()).health.ok]


if __name__ == "__main__":
    main()
