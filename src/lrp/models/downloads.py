"""Downloads of weights: complete and verified, or not at all."""

import fnmatch
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lrp.errors import ModelError, error_reason
from lrp.models.weights import weights_sha256
from lrp.storage.download import MEGABYTE, TIMEOUT, DownloadError, fetch

Progress = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Where notices go unless a caller takes them: what is downloaded, what is assumed."""
    print(line, file=sys.stderr, flush=True)


def download_checkpoint(name: str, url: str, megabytes: float | None, progress: Progress) -> Path:
    """The file of `url` in torch.hub's folder (see TORCH_HOME), downloaded if it is missing, and always verified.

    Its name contains the first digits of its SHA-256, as in "vgg19-dcbb9e9d.pth".
    """
    path = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urllib.parse.urlsplit(url).path))
    sha256 = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not sha256:
        raise ModelError(f"{name}: its weights cannot be verified: {url} carries no SHA-256 in its name.")
    if not path.exists():
        size = f"{megabytes:.0f} MB" if megabytes else "size unknown"
        progress(f"{name}: {size} from {urllib.parse.urlsplit(url).hostname} to {path.parent}")
        try:
            download_weights(url, path, sha256[1], progress)
        except ModelError as error:
            remedy = f"download that file elsewhere and put it at {path}"
            raise ModelError(_failure(name, size, url, error, remedy)) from error
    elif not (found := weights_sha256(path)).startswith(sha256[1]):
        raise ModelError(
            f"{name}: {path} is not the published file (its SHA-256 starts with {found[: len(sha256[1])]}, "
            f"not {sha256[1]}); delete it and try again."
        )
    return path


def download_from_hub(name: str, repository: str, filename: str | None, progress: Progress) -> Path:
    """A timm model's file in huggingface_hub's cache, downloaded if it is missing; safetensors if available."""
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
    except Exception as error:  # its HTTP library, and so its exceptions, depend on the version
        cache = hub.constants.HF_HUB_CACHE
        remedy = f"run `hf download {repository}` elsewhere and copy its cache to {cache}"
        raise ModelError(_failure(name, size, url, error, remedy)) from error


def download_repository(name: str, repository: str, weights: bool, progress: Progress) -> Path:
    """The folder of a model of transformers in huggingface_hub's cache, downloaded if it is missing.

    Args:
        weights: whether they are needed; safetensors if available.
    """
    import huggingface_hub as hub

    config = hub.try_to_load_from_cache(repository, "config.json")
    if isinstance(config, str):
        names = [path.name for path in Path(config).parent.iterdir()]
        if not weights or _weight_files(names, Path(config).parent):
            return Path(config).parent
    url, size = f"{hub.constants.ENDPOINT}/{repository}", "size unknown"
    try:  # one quick question first: the download itself retries for a minute when offline
        files = hub.HfApi().model_info(repository, timeout=TIMEOUT, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in files}
        wanted = [file for file in sizes if file.endswith((".json", ".txt", ".model")) and "/" not in file]
        if weights:
            held = _weight_files(list(sizes))
            if not held:
                raise ModelError("it holds neither model.safetensors nor pytorch_model.bin")
            wanted += held
        size = f"{sum(sizes[file] for file in wanted) / MEGABYTE:.0f} MB"
        host = urllib.parse.urlsplit(url).hostname
        progress(f"{name}: {size} from {host} to {hub.constants.HF_HUB_CACHE}")
        return Path(hub.snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # its HTTP library, and so its exceptions, depend on the version
        cache = hub.constants.HF_HUB_CACHE
        remedy = f"run `hf download {repository}` elsewhere and copy its cache to {cache}"
        raise ModelError(_failure(name, size, url, error, remedy)) from error


def _weight_files(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """The files of a repository that hold its weights, one or several parts; none of them if in `folder` one is missing."""
    for whole, parts in (
        ("model.safetensors", "model-*.safetensors"),
        ("pytorch_model.bin", "pytorch_model-*.bin"),
    ):
        if whole in names:
            return [whole]
        index = f"{whole}.index.json"
        if index in names:
            if folder is None:
                return [index, *fnmatch.filter(names, parts)]
            listed = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
            return sorted(listed) if listed <= set(names) else []
    return []


def download_weights(url: str, destination: Path, sha256: str, progress: Progress) -> None:
    """Fetch `url` to `destination`, which appears only when its content is verified; see `lrp.storage.download.fetch`.

    Args:
        url: https; plain http only from 127.0.0.1.
        sha256: hexadecimal digest of the content, or its first digits.
        progress: called with a line for every tenth.

    Raises:
        ModelError: the reason alone, as a clause; the caller adds what was wanted and where it belongs.
    """

    def proof(part: Path) -> None:
        found = weights_sha256(part)
        if not found.startswith(sha256):
            raise DownloadError(
                f"what came has a SHA-256 starting with {found[: len(sha256)]}, not {sha256}, and was deleted"
            )

    try:
        fetch(url, destination, proof, _tenths(progress), timeout=TIMEOUT)
    except DownloadError as error:
        raise ModelError(str(error)) from error


def _tenths(progress: Progress) -> Callable[[int, int | None], None]:
    """A callback that reports a line for every tenth of a download, however small its chunks."""
    reported = -1

    def report(done: int, total: int | None) -> None:
        nonlocal reported
        tenth = done * 10 // total if total else 0
        if reported >= 0 and tenth > reported:
            progress(f"  {done / MEGABYTE:.0f} of {(total or 0) / MEGABYTE:.0f} MB")
        reported = tenth

    return report


def _failure(name: str, size: str, url: str, error: Exception, remedy: str) -> str:
    return f"{name}: its weights ({size}) could not be fetched from {url} ({error_reason(error)}); {remedy}."
