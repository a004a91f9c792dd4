"""Weights as files: fetched whole and verified or not at all, read as tensors alone, fitted to a model."""

import argparse
import hashlib
import json
import os
import pickle
import re
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lrp.errors import ModelError
from lrp.storage.download import MEGABYTE, TIMEOUT, DownloadError, fetch, reason

Progress = Callable[[str], None]

# Where training loops put the state dict (Lightning and timm, PyTorch's tutorials, torchvision and DeiT, others),
# and what DataParallel and torch.compile put before every name.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
LISTED = 20


def checkpoint(name: str, url: str, megabytes: float | None, progress: Progress) -> Path:
    """The file of `url` in torch.hub's folder (see TORCH_HOME), downloaded if need be, verified either way.

    Its name carries the first digits of its SHA-256, as in "vgg19-dcbb9e9d.pth".
    """
    path = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urllib.parse.urlsplit(url).path))
    sha256 = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not sha256:
        raise ModelError(f"{name}: its weights cannot be verified: {url} carries no SHA-256 in its name.")
    if not path.exists():
        size = f"{megabytes:.0f} MB" if megabytes else "size unknown"
        progress(f"{name}: {size} from {urllib.parse.urlsplit(url).hostname} to {path.parent}")
        try:
            download(url, path, sha256[1], progress)
        except ModelError as error:
            remedy = f"download that file elsewhere and put it at {path}"
            raise ModelError(_unfetched(name, size, url, error, remedy)) from error
    elif not (found := sha256_of(path)).startswith(sha256[1]):
        raise ModelError(
            f"{name}: {path} is not the published file (its SHA-256 starts with {found[: len(sha256[1])]}, "
            f"not {sha256[1]}); delete it and try again."
        )
    return path


def hub_file(name: str, repository: str, filename: str | None, progress: Progress) -> Path:
    """A timm model's file in huggingface_hub's cache, downloaded if need be; safetensors where there are."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    candidates = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    for candidate in candidates:
        cached = hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    url, size = hub.hf_hub_url(repository, candidates[0]), "size unknown"
    try:
        for candidate in candidates:
            url = hub.hf_hub_url(repository, candidate)
            try:  # one quick question first: the download itself retries for a minute when offline
                found = hub.get_hf_file_metadata(url, timeout=TIMEOUT)
            except EntryNotFoundError:
                continue
            size = f"{found.size / MEGABYTE:.0f} MB" if found.size else size
            host = urllib.parse.urlsplit(url).hostname
            progress(f"{name}: {size} from {host} to {hub.constants.HF_HUB_CACHE}")
            return Path(hub.hf_hub_download(repository, candidate))
        raise ModelError(f"the server has no {' or '.join(candidates)}")
    except Exception as error:  # its http library changes between versions, and with it the exceptions
        cache = hub.constants.HF_HUB_CACHE
        remedy = f"run `hf download {repository}` elsewhere and copy its cache to {cache}"
        raise ModelError(_unfetched(name, size, url, error, remedy)) from error


def download(url: str, destination: Path, sha256: str, progress: Progress) -> None:
    """Fetch `url` to `destination`, which appears only once its content is proven; see `lrp.storage.download.fetch`.

    Args:
        url: https; plain http only from this very machine.
        sha256: hexadecimal digest of the content, or its first digits.
        progress: is told about every tenth.

    Raises:
        ModelError: the reason alone, as a clause; the caller says what was wanted and where it belongs.
    """

    def proof(part: Path) -> None:
        found = sha256_of(part)
        if not found.startswith(sha256):
            raise DownloadError(
                f"what came has a SHA-256 starting with {found[: len(sha256)]}, not {sha256}, and was deleted"
            )

    try:
        fetch(url, destination, proof, _tenths(progress), timeout=TIMEOUT)
    except DownloadError as error:
        raise ModelError(str(error)) from error


def _tenths(progress: Progress) -> Callable[[int, int | None], None]:
    """A line for every tenth of a download, however small the pieces it comes in."""
    told = -1

    def tell(done: int, total: int | None) -> None:
        nonlocal told
        tenth = done * 10 // total if total else 0
        if told >= 0 and tenth > told:
            progress(f"  {done / MEGABYTE:.0f} of {(total or 0) / MEGABYTE:.0f} MB")
        told = tenth

    return tell


def _unfetched(name: str, size: str, url: str, error: Exception, remedy: str) -> str:
    return f"{name}: its weights ({size}) could not be fetched from {url} ({reason(error)}); {remedy}."


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {reason(error)}.") from error


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a state dict file; in a training checkpoint, those under the first of `CONTAINERS`.

    A prefix of `PREFIXES` that all names have is taken off. Code in the file is never run.

    Raises:
        ModelError: the file is damaged, holds other objects than tensors, or no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        # Training loops keep their options beside the weights; that class holds values and runs nothing.
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
    return content  # without prefix, as it is: with its attribute _metadata


def read_labels(labels: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Class names as they are, or from a file: one a line, or a JSON list of texts."""
    if not isinstance(labels, str | Path):
        return tuple(labels)
    try:
        text = Path(labels).read_text(encoding="utf-8-sig")
        listed = text.lstrip().startswith("[")
        names = json.loads(text) if listed else [line.strip() for line in text.rstrip().split("\n")]
    except (OSError, ValueError) as error:
        raise ModelError(f"the labels {labels} cannot be read: {reason(error)}.") from error
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ModelError(
            f"the labels {labels} hold an empty line, or what is no text: a name each is expected."
        )
    return tuple(names)


def write_weights(path: Path, model: nn.Module, suffix: str) -> None:
    """Write a state dict as safetensors or as PyTorch's own format, whichever `suffix` names."""
    state = model.state_dict()
    for name, tensor in state.items():  # on the CPU and plainly laid, wherever and however the model runs
        state[name] = tensor.detach().cpu().contiguous()
    if suffix != ".safetensors":
        try:
            with open(path, "wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # how torch says that the disk is full
            raise OSError(None, str(error).splitlines()[0]) from error
        return
    import safetensors.torch

    # Copies, because the format refuses tensors that share memory, as tied weights do.
    safetensors.torch.save_file({n: t.clone() for n, t in state.items()}, path)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], architecture: str, path: Path) -> None:
    """Load the tensors of `path` into `model`; all of them fit, or ModelError lists those that do not."""
    expected = model.state_dict()
    # Batch norm's step counter is missing in old files; only training would use it.
    given = OrderedDict((n, t) for n, t in expected.items() if n.endswith("num_batches_tracked"))
    given.update(tensors)
    # The modules' versions, which mnasnet insists on; safetensors cannot hold them, but is younger than they.
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
        listed = [f"{len(found)} {kind} ({_few(found)})" for kind, found in groups.items() if found]
        raise ModelError(
            f"{path} does not fit {architecture}: {', '.join(listed) or reason(error)}."
        ) from error


def _few(items: list[str], count: int = LISTED) -> str:
    return "; ".join(items[:count]) + (f"; and {len(items) - count} more" if len(items) > count else "")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of parameters and buffers: identifies a set of weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
