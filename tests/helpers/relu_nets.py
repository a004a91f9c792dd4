"""Piecewise linear nets: for them relevance must equal gradient × input, if all rules distribute proportionally."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

IMAGE = (3, 8, 8)


def lively(model):
    """In float64 and eval mode, with random norms as after training (some scales negative) and non-zero biases."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.randn_like(m.weight).sign() * (0.5 + torch.rand_like(m.weight)))
                m.bias.normal_(0.3, 0.3)
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.3, 1.3)
            elif isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and m.bias is not None:
                m.bias.normal_(0.1, 0.2)
    return model.double().eval()


def head(channels, pool=None):
    return [pool or nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class Residual(nn.Module):
    def __init__(self, body, join=torch.add):
        super().__init__()
        self.body, self.join = body, join

    def forward(self, x):
        return self.join(x, self.body(x))


def concatenate(x, y):
    return torch.cat([x, y], 1)


def conv(*arguments, **options):
    return [nn.Conv2d(*arguments, **options), nn.ReLU()]


def normed(channels_in, channels_out):
    return [nn.BatchNorm2d(channels_in), nn.ReLU(), nn.Conv2d(channels_in, channels_out, 3, padding=1)]


def stem():
    return conv(3, 6, 3, padding=1)


RELU_NETS = {
    "residual": lambda: [*stem(), Residual(nn.Sequential(*normed(6, 6), *normed(6, 6))), nn.ReLU(), *head(6)],
    "difference": lambda: [*stem(), Residual(nn.Sequential(*normed(6, 6)), torch.sub), nn.ReLU(), *head(6)],
    "dense": lambda: [
        *stem(), Residual(nn.Sequential(*normed(6, 4)), concatenate),
        Residual(nn.Sequential(*normed(10, 4)), concatenate), nn.BatchNorm2d(14), nn.ReLU(), *head(14),
    ],
    "grouped": lambda: [*stem(), *conv(6, 6, 3, groups=6), *conv(6, 8, 1), *conv(8, 8, 3, 2, groups=2), *head(8)],
    "folded": lambda: [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), *head(6)],
    "max_pools": lambda: [*stem(), nn.MaxPool2d(3, 2, 1), *conv(6, 4, 2), nn.MaxPool2d(2, 1), *head(4)],
    "avg_pools": lambda: [
        *stem(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), *conv(6, 4, 2), nn.AvgPool2d(2, 1),
        *head(16, nn.AdaptiveAvgPool2d(2)),
    ],
    "upsampled": lambda: [
        *stem(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), *conv(6, 4, 3), nn.Upsample((9, 7), mode="bilinear"),
        *conv(4, 4, 3), *head(4),
    ],
    "transposed": lambda: [*stem(), nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.ReLU(), *conv(4, 4, 3), *head(4)],
}  # fmt: skip


class ReluNet(nn.Module):
    """All piecewise linear operations: residuals, pools, upsampling, padding, a concatenation, a maximum."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
        )
        self.norm, self.up = nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 2, 2)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        y = F.max_pool2d(F.relu(self.stem(x)), 2)
        y = F.relu(y + self.norm(self.one(y)))
        y = y - 0.5 * F.leaky_relu(self.two(F.pad(y, (1, 0, 0, 1), mode="reflect")), 0.2)[:, :, 1:, :-1]
        wide = F.interpolate(y, scale_factor=2.0, mode="bilinear")
        z = torch.cat([wide, F.relu6(self.up(F.avg_pool2d(wide, 2)))], 1)
        return self.head(
            z.amax((2, 3)) + z.roll(1, 1).sum((2, 3)) / 7 - F.prelu(z, self.slopes(z)).mean((2, 3))
        )

    def slopes(self, z):
        return torch.full((1,), 0.3, dtype=z.dtype)


@cache
def relu_net(name):
    torch.manual_seed(2)
    return lively(nn.Sequential(*RELU_NETS[name]())), torch.randn(3, *IMAGE).double()
