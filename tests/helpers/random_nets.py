"""Random small nets over the vocabulary, in 1, 2 and 3 dimensions, for tests and for `make fuzz`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SIDE = {1: 9, 2: 6, 3: 4}  # of the image, per number of dimensions


class Function(nn.Module):
    """A function as a layer, with a name for the report of a failure."""

    def __init__(self, name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class Sum(nn.Module):
    """x + body(x), x − body(x), both side by side, or the larger of both."""

    def __init__(self, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if self.how == "beside":
            return torch.cat([x, y], 1)
        if self.how == "maximum":
            return torch.maximum(x, y)
        return x + y if self.how == "plus" else x - y

    def extra_repr(self) -> str:
        return self.how


class Gated(nn.Module):
    """x · gate(x), as in squeeze and excitation."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv, self.over = layer("Conv", dims)(channels, channels, 1), list(range(2, dims + 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv(x.mean(self.over, keepdim=True)).sigmoid()


def layer(name: str, dims: int) -> Any:
    return getattr(nn, f"{name}{dims}d")


Pick = random.Random
Built = tuple[nn.Module, int]  # a layer, and how many channels it gives


def _conv(pick: Pick, c: int, d: int) -> Built:
    groups = pick.choice([1, 1, c])
    out = pick.choice([c, 2 * c]) if groups > 1 else pick.choice([2, 3, 4])
    kernel = pick.choice([1, 2, 3])
    padding = pick.choice([0, kernel // 2])
    if kernel == 3 and pick.random() < 0.2:
        return layer("Conv", d)(c, out, 3, padding="same", dilation=pick.choice([1, 2]), groups=groups), out
    mode = pick.choice(["zeros", "zeros", "circular", "replicate"])
    made = layer("Conv", d)(
        c,
        out,
        kernel,
        pick.choice([1, 1, 2]),
        padding,
        groups=groups,
        bias=pick.random() < 0.7,
        padding_mode=mode,
    )
    return made, out


def _transposed(pick: Pick, c: int, d: int) -> Built:
    return layer("ConvTranspose", d)(c, 3, 2, pick.choice([1, 2]), bias=pick.random() < 0.5), 3


def _norm(pick: Pick, c: int, d: int) -> Built:
    return layer("BatchNorm", d)(c, affine=pick.random() < 0.8), c


def _max_pool(pick: Pick, c: int, d: int) -> Built:
    kernel = pick.choice([2, 3])
    return layer("MaxPool", d)(kernel, pick.choice([1, 2]), kernel // 2, ceil_mode=pick.random() < 0.3), c


def _avg_pool(pick: Pick, c: int, d: int) -> Built:
    kernel = pick.choice([2, 3])
    return layer("AvgPool", d)(
        kernel,
        pick.choice([1, 2]),
        kernel // 2,
        ceil_mode=pick.random() < 0.3,
        count_include_pad=pick.random() < 0.5,
    ), c


def _adaptive(pick: Pick, c: int, d: int) -> Built:
    return layer(pick.choice(["AdaptiveAvgPool", "AdaptiveMaxPool"]), d)(pick.choice([2, 3])), c


def _upsampling(pick: Pick, c: int, d: int) -> Built:
    smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[d]
    return nn.Upsample(scale_factor=2, mode=pick.choice(["nearest", smooth])), c


def _pad(pick: Pick, c: int, d: int) -> Built:
    kind = pick.choice(["ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"])
    return (layer(kind, d)(1, 0.5) if kind == "ConstantPad" else layer(kind, d)(1)), c


PIECEWISE_LINEAR = {
    "relu": lambda z: F.relu(z),
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "where": lambda z: torch.where(z > 0, z, 0.0),
    "mask": lambda z: z * (z > 0),
    "scale": lambda z: z * 1.5,
    "flip": lambda z: z.flip(2),
    "permuted": lambda z: z.transpose(1, 2).contiguous().transpose(1, 2),
    "sliced": lambda z: z[:, :, : max(1, z.shape[2] - 1)],
    "sorted": lambda z: z.sort(1).values,
    "roll": lambda z: z.roll(1, 2),
    "reshaped": lambda z: z.flatten(2).unflatten(2, z.shape[2:]),
}
SMOOTH = {
    "gelu": lambda z: F.gelu(z),
    "silu": lambda z: F.silu(z),
    "tanh": lambda z: z.tanh(),
    "elu": lambda z: F.elu(z),
    "hardswish": lambda z: F.hardswish(z),
    "shift": lambda z: z * 0.5 + 0.25,
}


def _function(pick: Pick, c: int, d: int) -> Built:
    name = pick.choice(sorted(PIECEWISE_LINEAR))
    return Function(name, PIECEWISE_LINEAR[name]), c


def _smooth(pick: Pick, c: int, d: int) -> Built:
    name = pick.choice(sorted(SMOOTH))
    return Function(name, SMOOTH[name]), c


def _scaled_by_data(pick: Pick, c: int, d: int) -> Built:
    return pick.choice([nn.GroupNorm(1, c), Gated(c, d), layer("InstanceNorm", d)(c, affine=True)]), c


def _joined(pick: Pick, c: int, d: int) -> Built:
    inner = nn.Sequential(layer("Conv", d)(c, c, 3, padding=1), nn.ReLU(), layer("Conv", d)(c, c, 1))
    how = pick.choice(["plus", "minus", "beside", "maximum"])
    return Sum(inner, how), 2 * c if how == "beside" else c


LINEAR_PARTS = [
    _conv, _conv, _conv, _transposed, _norm, _norm, _max_pool, _avg_pool, _adaptive, _upsampling, _pad, _function, _function,
    _joined,
]  # fmt: skip
ALL_PARTS = [*LINEAR_PARTS, _smooth, _smooth, _scaled_by_data]


def random_net(seed: int, dims: int, piecewise_linear: bool) -> tuple[nn.Module, torch.Tensor]:
    """A net in float64 with random weights, biases and statistics, and an image batch [3, C, *space] for it."""
    pick = Pick(seed)
    torch.manual_seed(seed)
    x = torch.randn(3, 2, *[SIDE[dims]] * dims, dtype=torch.float64)
    first = layer("Conv", dims)(2, 3, 3, padding=1)  # scales in front of it would be no layers
    layers: list[nn.Module] = [first]
    c = 3
    for _ in range(pick.randint(2, 6)):
        part, c_next = pick.choice(LINEAR_PARTS if piecewise_linear else ALL_PARTS)(pick, c, dims)
        trial = nn.Sequential(*layers, part).double().eval()
        try:
            with torch.no_grad():
                out = trial(x)
        except (RuntimeError, ValueError):
            continue  # it does not fit here: too small, mostly
        if out[0].numel() > 2000 or min(out.shape[2:]) < 1:
            continue
        layers, c = [*trial], c_next
    with torch.no_grad():
        width = nn.Sequential(*layers)(x).flatten(1).shape[1]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 4)).double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    module.weight.normal_(0.3, 1.0)
                    module.bias.normal_(0, 0.3)
            elif getattr(module, "bias", None) is not None and isinstance(module.bias, torch.Tensor):
                module.bias.normal_(0, 0.3)
    return net, x
