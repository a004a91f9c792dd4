"""Two small convolutional nets, and a batch of images for them."""

import torch
from torch import nn

IMAGE = (3, 16, 16)
BOX = {"low": -2.0, "high": 2.0}
DEPTH = 4  # convolutions of the plain net


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.norm(self.two(self.one(x).relu()))
        return self.head((x + y).relu().mean((2, 3)))


def plain():
    convs = [[nn.Conv2d(i, 6, 3, padding=1), nn.ReLU()] for i in (3, *[6] * (DEPTH - 1))]
    return nn.Sequential(
        *[part for pair in convs for part in pair], nn.MaxPool2d(4), nn.Flatten(), nn.Linear(96, 5)
    )


def made(model, seed=0):
    torch.manual_seed(seed)
    return model().eval(), torch.randn(2, *IMAGE)
