"""A file of weights, and a sidecar file next to it that states which model they belong to and how they were made."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lrp.errors import ModelError
from lrp.models.preprocessing import Preprocessing
from lrp.models.weights import weights_sha256, write_weights
from lrp.storage.atomic import replacing_all, write_whole

SUFFIXES = (".pth", ".pt", ".safetensors")


def is_checkpoint(name: str) -> bool:
    """Whether `load_model` takes this for a file of weights: by its name alone."""
    return not name.startswith(("timm:", "hf:")) and (
        name.endswith(SUFFIXES) or "/" in name or os.sep in name
    )


def checkpoint_architecture(name: str, arch: str | None = None) -> str:
    """The architecture's name, as `save_checkpoint` takes it; arguments and errors as of `load_model`."""
    if not is_checkpoint(name):
        return name
    sidecar = checkpoint_sidecar(Path(name))
    return read_checkpoint_sidecar(sidecar).architecture if arch is None or sidecar.is_file() else arch


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    architecture: str,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    facts: Mapping[str, Any] | None = None,
    heads: Sequence[str] = (),
) -> Path:
    """Write a model's weights and the sidecar that `load_model(path)` reads too: both files, or neither.

    Args:
        path: ends in .pth, .pt or .safetensors.
        architecture: the name by which `load_model` builds it: "vgg19", "timm:resnet18", ...
        facts: how the weights were made, for the sidecar's entry "training": values that JSON supports;
            `checkpoint_facts` reads them, `load_model` does not.
        heads: for an architecture of the user's code: the paths of the layers that were replaced for these classes.

    Returns:
        The sidecar's path: `path` + ".json".
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ModelError(f"cannot save weights as {path}: the name must end in {', '.join(SUFFIXES)}.")
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"cannot save weights as {path}: its facts are not for JSON: {error}.") from error
    sidecar = checkpoint_sidecar(path)
    with replacing_all((path, sidecar), ModelError, parents=True) as (weights, description):
        write_weights(weights, model, path.suffix)
        content = {
            "architecture": architecture,
            "class_names": list(class_names),
            "preprocessing": preprocessing.to_dict(),
            **({"heads": list(heads)} if heads else {}),
            "sha256": weights_sha256(weights),  # shows whether a sidecar belongs to the weights
            **({"training": dict(facts)} if facts is not None else {}),
        }
        description.write_text(_as_text(content), encoding="utf-8")
    return sidecar


def checkpoint_facts(path: str | Path) -> dict[str, Any] | None:
    """The facts that `save_checkpoint` stored about these weights; None if there are none, or of another file."""
    try:
        content = json.loads(checkpoint_sidecar(Path(path)).read_text(encoding="utf-8"))
        facts, sha256 = content["training"], content["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        facts
        if isinstance(facts, dict) and Path(path).is_file() and weights_sha256(Path(path)) == sha256
        else None
    )


def update_checkpoint_facts(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Replace the facts of how the weights at `path` were made; the weights are not changed.

    Raises:
        ModelError: the sidecar cannot be read or written.
    """
    sidecar = checkpoint_sidecar(Path(path))
    content = _content(sidecar) | {"training": dict(facts)}
    write_whole(sidecar, [_as_text(content)], ModelError)


class Sidecar(NamedTuple):
    """What belongs to a file of weights.

    Attributes:
        sha256: of the weights, or None.
        heads: see `save_checkpoint`.
    """

    architecture: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: Any
    heads: tuple[str, ...]


def read_checkpoint_sidecar(sidecar: Path) -> Sidecar:
    if not sidecar.is_file():
        path = sidecar.with_suffix("")
        raise ModelError(
            f"{path} has no sidecar {sidecar} that says what it holds: name the architecture, as `lrp models` lists "
            'them (--arch vgg19; in Python arch="vgg19"), and its classes in a file (--labels FILE).'
        )
    content = _content(sidecar)
    of: Any = content.get("architecture")
    heads: Any = content.get("heads", [])
    wrong = [] if isinstance(of, str) else ["architecture is no text"]
    class_names = _class_names(content, wrong)
    preprocessing = _preprocessing(content, wrong)
    if not _are_texts(heads):
        wrong.append("heads is no list of texts")
    if wrong or preprocessing is None:
        raise ModelError(f"{sidecar} is no sidecar yet: {'; '.join(wrong)}.")
    return Sidecar(of, class_names, preprocessing, content.get("sha256"), tuple(heads))


def read_preprocessing(path: Path) -> tuple[Preprocessing, tuple[str, ...] | None]:
    """The preprocessing, and the class names if there are some, of a sidecar or another JSON file with these entries.

    Raises:
        ModelError: it cannot be read, or an entry is malformed.
    """
    content, wrong = _content(path), list[str]()
    class_names = _class_names(content, wrong) if "class_names" in content else None
    preprocessing = _preprocessing(content, wrong)
    if wrong or preprocessing is None:
        raise ModelError(
            f"{path} holds no preprocessing as a sidecar of `lrp retrain` does: {'; '.join(wrong)}."
        )
    return preprocessing, class_names


def _class_names(content: Mapping[str, Any], wrong: list[str]) -> tuple[str, ...]:
    found: Any = content.get("class_names")
    if found and _are_texts(found):
        return tuple(found)
    wrong.append("class_names is no list of texts")
    return ()


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, str) for v in values)


def _preprocessing(content: Mapping[str, Any], wrong: list[str]) -> Preprocessing | None:
    try:
        return Preprocessing.from_dict(content.get("preprocessing"))
    except ModelError as error:
        wrong.append(str(error))
        return None


def _content(sidecar: Path) -> dict[str, Any]:
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{sidecar} cannot be read as JSON: {error}.") from error
    return content if isinstance(content, dict) else {}


def _as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def checkpoint_sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")
