"""Which Python files are the user's own, and a hash of what a model of them computes: weights, structure, code."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lrp.models.weights import hash_of_model_weights

INSTALLED = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
OURS = Path(__file__).parents[2]
PLAIN = (bool, int, float, str, type(None))


def is_users_file(path: str | Path) -> bool:
    """Whether a file is neither Python's, nor an installed package's, nor of this package."""
    return (
        not any(Path(path).is_relative_to(folder) for folder in (*INSTALLED, OURS)) and Path(path).is_file()
    )


def hash_of_own_model(model: nn.Module) -> str:
    """SHA-256 that identifies what a model of the user's code computes: its weights, the classes and plain attributes of its
    modules, and the user's files that these classes are written in, or that those files import."""
    digest = hashlib.sha256(hash_of_model_weights(model).encode())
    for path, module in model.named_modules():
        digest.update(json.dumps([path, type(module).__qualname__, _attributes(module)]).encode())
    for name, file in sorted(_files(model).items()):
        digest.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """Attributes that a forward pass may compute with or branch on, and functions by their names."""
    found = []
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, PLAIN) or (
            isinstance(value, tuple) and all(isinstance(v, PLAIN) for v in value)
        ):
            found.append((name, value))
        elif inspect.isroutine(value):
            found.append((name, getattr(value, "__qualname__", "")))
    return found


def _files(model: nn.Module) -> dict[str, Path]:
    """Name of a module -> the user's file that it is in."""
    found: dict[str, Path] = {}
    waiting = {type(module).__module__ for module in model.modules()}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if module is None or name in found or not file or not is_users_file(file):
            continue
        found[name] = Path(file)
        waiting.update(_imports(module))
    return found


def _imports(module: ModuleType) -> Iterator[str]:
    """The names of the modules that a module has imported, or something out of them."""
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str):
            yield name
