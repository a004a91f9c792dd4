"""A net that trains fast, photos for it, and a training that can be killed at any step."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from lrp.train.fit_all import NetSettings
from lrp.train.fit_head import HeadSettings
from lrp.train.retrain import retrain
from lrp.train.training_run import Run


class Tiny(nn.Module):
    """Has every kind of state that a training must store, also batch norm's statistics; fast to capture."""

    def __init__(self, num_classes=1000, in_chans=3):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)).relu().mean((2, 3)))


default_cfgs = generate_default_cfgs(
    {
        "tiny_of_the_tests": {
            "num_classes": 1000,
            "input_size": (3, 32, 32),
            "first_conv": "stem",
            "classifier": "fc",
        }
    }
)


@register_model
def tiny_of_the_tests(pretrained=False, **options):
    return build_model_with_cfg(Tiny, "tiny_of_the_tests", pretrained, **options)


TINY = "timm:tiny_of_the_tests"
COLOURS = {"red": 0, "green": 1, "blue": 2}


def photos(root: Path, count: int = 10, start: int = 0) -> Path:
    """Noise, tinted with the folder's colour."""
    for folder, channel in COLOURS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            random = np.random.default_rng(1000 * channel + start + i)
            pixels = random.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


NET = NetSettings(epochs=2, batch_size=8, learning_rate=2e-3)
HEAD = HeadSettings(epochs=4, weight_decay=0.1)
WRITING = ("add_epoch", "save_state", "after_epoch", "_save", "_write_history", "_draw", "end")


def points(output: str, train: str, kill: int = 0) -> list[str]:
    """Train, and return the names of the points passed: each step of a phase, and before and after each write.

    With `kill`, the process is killed (SIGKILL) at that point, counted from 1.
    """
    torch.set_num_threads(1)  # in a fork, before autograd's threads set it concurrently
    passed: list[str] = []

    def pass_point(point: str) -> None:
        passed.append(point)
        if len(passed) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(name: str, real):
        def call(self, *args, **options):
            pass_point(f"before {name}")
            result = real(self, *args, **options)
            pass_point(f"after {name}")
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITING:
            patch.setattr(Run, name, counted(name, getattr(Run, name)))
        retrain(
            "data", output, "start.pth", train=train, net=NET, head=HEAD, workers=0, cache="cache",
            advance=lambda done, total, what: pass_point(what.partition(",")[0]),
        )  # fmt: skip
    return passed
