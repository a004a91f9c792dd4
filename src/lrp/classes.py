"""Class names and their indices: which output of the model a word means."""

import difflib
import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from lrp.errors import ModelError, TargetError, error_reason


def class_index(text: str | int, class_names: Sequence[str]) -> int:
    """The index of the class that `text` means.

    A name takes precedence over a number, so that "7" is a digit classifier's class 7 whatever its order. Case,
    parentheses, and the choice between space, hyphen and underscore are ignored. A WordNet id of
    ImageNet-1k ("n02123045") means the class with its name ("tabby").

    Raises:
        TargetError: no class is meant, or several are.
    """
    last = len(class_names) - 1
    meant = classes_meant(text, class_names)
    if len(meant) > 1:
        which = ", ".join(f"{i} ({class_names[i]!r})" for i in meant)
        raise TargetError(f"class {text!r} could be {which}: give the index.")
    if meant:
        return meant[0]
    if not isinstance(text, str) or re.fullmatch(_INTEGER, text):
        raise TargetError(f"no class {int(text)}: the model has {last + 1} classes, 0 to {last}.")
    if re.fullmatch(_WNID, _plain(text)) and _of_imagenet(class_names):
        raise TargetError(f"no class {text!r}: ImageNet-1k has no such WordNet id.")
    near = nearest_class_names(text, class_names)
    hint = f"did you mean {', '.join(near)}?" if near else "no class has a similar name."
    raise TargetError(f"no class {text!r}: {hint} A name or an index from 0 to {last} is expected.")


def classes_meant(text: str | int, class_names: Sequence[str]) -> list[int]:
    """The indices of the classes that `text` may mean, as `class_index` understands it: one, none or several."""
    if isinstance(text, str):
        wanted = _plain(text)
        exact = [i for i, name in enumerate(class_names) if name == text]
        if alike := exact or [i for i, name in enumerate(class_names) if _plain(name) == wanted]:
            return alike
        if named := wnid_name(wanted):
            if _of_imagenet(class_names):
                return [imagenet_wnids().index(wanted)]
            return [i for i, name in enumerate(class_names) if _plain(name) == _plain(named)]
        if not re.fullmatch(_INTEGER, text):
            return []
    index = int(text)
    return [index] if 0 <= index < len(class_names) else []


def wnid_name(text: str) -> str | None:
    """The short name of a WordNet id of ImageNet-1k ("n02123045": "tabby"); None of anything else."""
    if not re.fullmatch(_WNID, text) or text not in imagenet_wnids():
        return None
    return imagenet_names()[imagenet_wnids().index(text)]


def nearest_class_names(text: str, class_names: Sequence[str], count: int = 5) -> list[str]:
    """Names to suggest, as "'tabby' (281)": first those that contain the words ("cat": "tiger cat"), then similar ones."""
    wanted = _plain(text)
    by_name = {_plain(name): f"{name!r} ({i})" for i, name in reversed(list(enumerate(class_names)))}
    holding = [name for name in by_name if wanted and f" {wanted} " in f" {name} "]
    similar = difflib.get_close_matches(wanted, by_name, n=count)
    return [by_name[name] for name in dict.fromkeys(sorted(holding) + similar)][:count]


_INTEGER, _WNID = r"\s*[+-]?\d{1,18}\s*", r"n\d{8}"

# Names that are ambiguous. "crane" is both the bird's and the machine's in timm, the machine's alone in torchvision; the dog
# "Cardigan" and the garment "cardigan" differ in case only, which `class_index` and many file systems ignore.
# All of them are renamed, so that the bare word, which could mean either, is the name of neither.
_CLEARER = {
    134: "crane (bird)",
    264: "Cardigan (dog)",
    474: "cardigan (garment)",
    517: "crane (machine)",
}


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 short names of ImageNet-1k ("tabby", "espresso"), in the order of a model's outputs.

    torchvision's names except a few, and unique even if case and punctuation are ignored: one table for all models.
    """
    return tuple(_CLEARER.get(index, name) for index, name in enumerate(_torchvision_names()))


@cache
def _torchvision_names() -> tuple[str, ...]:
    import torchvision.models  # imported here: it takes a second, and looking up a name needs no torch

    return tuple(torchvision.models.VGG19_Weights.IMAGENET1K_V1.meta["categories"])


def clear_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The names unchanged; or `imagenet_names`, if they are torchvision's names of ImageNet-1k."""
    return imagenet_names() if _of_imagenet(class_names) else tuple(class_names)


def _of_imagenet(class_names: Sequence[str]) -> bool:
    return tuple(class_names) in (imagenet_names(), _torchvision_names())


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids of ImageNet-1k ("n02123045"), in the order of a model's outputs."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def read_class_names(labels: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Class names as they are, or from a file: one per line, or a JSON list of strings."""
    if not isinstance(labels, str | Path):
        return tuple(labels)
    try:
        text = Path(labels).read_text(encoding="utf-8-sig")
        listed = text.lstrip().startswith("[")
        names = json.loads(text) if listed else [line.strip() for line in text.rstrip().split("\n")]
    except (OSError, ValueError) as error:
        raise ModelError(f"the labels {labels} cannot be read: {error_reason(error)}.") from error
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ModelError(
            f"the labels {labels} hold an empty line, or what is no text: a name each is expected."
        )
    return tuple(names)


@lru_cache(2**15)  # every folder of a data set is compared with every class
def _plain(text: str) -> str:
    """A name in the normal form in which names are compared."""
    return " ".join(re.sub(r"[\s_()-]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())
