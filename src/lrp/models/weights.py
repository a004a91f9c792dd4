"""Files of weights: read as tensors only, loaded into a model, written."""

import argparse
import hashlib
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrp.errors import ModelError, error_reason

# The keys under which training loops store the state dict (Lightning and timm, PyTorch's tutorials, torchvision and
# DeiT, others), and the prefixes that DataParallel and torch.compile add to every name.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
LISTED = 20


def weights_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error_reason(error)}.") from error


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a state dict file; in a training checkpoint, those under the first of `CONTAINERS`.

    A prefix of `PREFIXES` that all names have is removed. Code in the file is never run.

    Raises:
        ModelError: the file is damaged, holds other objects than tensors, or is not a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        # Training loops store their options with the weights; a Namespace holds values and runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and blocked:
            raise ModelError(
                f"{path} holds Python objects ({blocked[1]}), and reading them could run code from the file: "
                "have the tensors alone saved, with torch.save(model.state_dict(), PATH)."
            ) from error
        raise ModelError(f"{path} is damaged or no file of weights.") from error
    if isinstance(content, Mapping):
        inner = (content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping))
        content = next(inner, content)
    if not isinstance(content, Mapping) or not all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items()
    ):
        raise ModelError(f"{path} is no state dict: tensors by name were expected.")
    while content and (prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in content)), "")):
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content  # unchanged if there was no prefix, so that it keeps its attribute _metadata


def write_tensors(content: Any, path: Path) -> None:
    """`torch.save`; a failure of the disk raises OSError, as everywhere else."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch's writer raises this after an OSError
        if isinstance(os_error := error.__context__, OSError):
            raise OSError(os_error.errno, os_error.strerror) from error
        raise


def write_weights(path: Path, model: nn.Module, suffix: str) -> None:
    """Write a state dict as safetensors or as PyTorch's own format, whichever `suffix` names."""
    state = model.state_dict()
    for (
        name,
        tensor,
    ) in state.items():  # on the CPU and contiguous, whatever the model's device and memory format
        state[name] = tensor.detach().cpu().contiguous()
    if suffix != ".safetensors":
        write_tensors(state, path)
        return
    import safetensors.torch

    try:
        # Copies, because the format refuses tensors that share memory, as tied weights do.
        safetensors.torch.save_file({n: t.clone() for n, t in state.items()}, path)
    except safetensors.SafetensorError as error:
        if os_error := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(os_error[1]), os.strerror(int(os_error[1]))) from error
        raise


def load_weights_into(model: nn.Module, tensors: Mapping[str, Tensor], architecture: str, path: Path) -> None:
    """Load the tensors of `path` into `model`; all of them fit, or ModelError lists those that do not."""
    expected = model.state_dict()
    # Batch norm's step counter is missing in old files; only training would use it.
    given = OrderedDict((n, t) for n, t in expected.items() if n.endswith("num_batches_tracked"))
    given.update(tensors)
    # The modules' versions, which mnasnet needs. safetensors cannot store them, but is newer than these versions.
    versions = getattr(tensors, "_metadata", expected._metadata)  # type: ignore[attr-defined]
    given._metadata = versions  # type: ignore[attr-defined]
    try:
        model.load_state_dict(given)
    except (RuntimeError, ValueError) as error:
        groups = {
            "missing": [n for n in expected if n not in given],
            "unexpected": [n for n in given if n not in expected],
            "of another shape": [
                f"{n} is {list(given[n].shape)}, expected {list(expected[n].shape)}"
                for n in expected
                if n in given and given[n].shape != expected[n].shape
            ],
        }
        listed = [f"{len(found)} {kind} ({_shortened(found)})" for kind, found in groups.items() if found]
        raise ModelError(
            f"{path} does not fit {architecture}: {', '.join(listed) or error_reason(error)}."
        ) from error


def _shortened(items: list[str], count: int = LISTED) -> str:
    return "; ".join(items[:count]) + (f"; and {len(items) - count} more" if len(items) > count else "")


def hash_of_model_weights(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of parameters and persistent buffers: identifies a set of weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
