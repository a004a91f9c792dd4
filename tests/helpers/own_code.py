"""A working directory with a module of the user's, as `--model MODULE:FUNCTION` imports it."""

import itertools
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lrp.models.own_code import calling

NUMBERS = itertools.count()

SOURCE = """
import torch
from torch import nn
import lrp


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=4)
        self.head = nn.Linear(8, classes)
        self.scale = 2.0

    def forward(self, x):
        return self.head(self.scale * self.stem(x).relu().mean((2, 3)))


def build():
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    return Net(), lrp.Preprocessing(lrp.Geometry(20, (16, 16)), half, half), ("cat", "dog", "owl")


def alone():
    return build()[0]
"""


class Directory:
    """The working directory; modules written to it get names that no other test has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, source: str, name: str = "") -> str:
        """Write a module; returns its name."""
        name = name or f"nets_of_test_{next(NUMBERS)}"
        file = self.path / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return name

    def forget(self, name: str) -> None:
        """As if the process were new: the module is imported again, and said again."""
        sys.modules.pop(name, None)
        calling._SAID.clear()


@contextmanager
def user_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    """The folder as the working directory; its modules are forgotten at the end."""
    monkeypatch.chdir(path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within one tick of the clock
    monkeypatch.setattr(calling, "_SAID", set())
    before = set(sys.modules)
    yield Directory(path)
    for name in set(sys.modules) - before:
        if Path(str(getattr(sys.modules[name], "__file__", None))).is_relative_to(path):
            del sys.modules[name]
