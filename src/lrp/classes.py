"""Class names and their indices: which output of the model does a word mean?"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from lrp.errors import TargetError


def class_index(text: str | int, class_names: Sequence[str]) -> int:
    """The index of the class that `text` means.

    A name counts before a number, so that "7" is a digit classifier's class 7 whatever its order. Case does
    not count, nor does the choice between space, hyphen and underscore. A WordNet id ("n02123045") is
    understood if the names are those of ImageNet-1k.

    Raises:
        TargetError: no class is meant, or several are.
    """
    last = len(class_names) - 1
    if isinstance(text, str):
        wanted = _plain(text)
        exact = [i for i, name in enumerate(class_names) if name == text]
        alike = exact or [i for i, name in enumerate(class_names) if _plain(name) == wanted]
        if len(alike) > 1:
            which = ", ".join(f"{i} ({class_names[i]!r})" for i in alike)
            raise TargetError(f"class {text!r} could be {which}: give the index.")
        if alike:
            return alike[0]
        if re.fullmatch(r"n\d{8}", wanted) and tuple(class_names) == imagenet_names():
            if wanted in imagenet_wnids():
                return imagenet_wnids().index(wanted)
            raise TargetError(f"no class {text!r}: ImageNet-1k has no such WordNet id.")
        if not re.fullmatch(r"[+-]?[0-9]+", wanted):
            near = _nearest(wanted, class_names)
            hint = f"did you mean {', '.join(near)}?" if near else "no class has a similar name."
            raise TargetError(f"no class {text!r}: {hint} A name or an index from 0 to {last} is expected.")
    index = int(text)
    if not 0 <= index <= last:
        raise TargetError(f"no class {index}: the model has {last + 1} classes, 0 to {last}.")
    return index


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 short names of ImageNet-1k ("tabby", "espresso"), in the order of a model's outputs."""
    import torchvision.models  # not above: it takes a second, and looking up a name needs no torch

    return tuple(torchvision.models.VGG19_Weights.IMAGENET1K_V1.meta["categories"])


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids of ImageNet-1k ("n02123045"), in the order of a model's outputs."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def timm_class_names(count: int, label_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The class names of a timm model: its own, or those of the part of ImageNet that has `count` classes."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if label_names and len(label_names) == count:
        return tuple(label_names)
    if count == 1000:
        return imagenet_names()
    if subset := infer_imagenet_subset({"num_classes": count}):
        return tuple(words.split(",")[0] for words in ImageNetInfo(subset).label_descriptions())
    return tuple(f"class {index}" for index in range(count))


def _plain(text: str) -> str:
    """What counts of a name when names are compared."""
    return " ".join(re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())


def _nearest(wanted: str, class_names: Sequence[str], count: int = 5) -> list[str]:
    """Names to suggest: those with `wanted` as whole words ("cat": "tiger cat"), then similar spellings."""
    by_name = {_plain(name): f"{name!r} ({i})" for i, name in reversed(list(enumerate(class_names)))}
    holding = [name for name in by_name if wanted and f" {wanted} " in f" {name} "]
    similar = difflib.get_close_matches(wanted, by_name, n=count)
    return [by_name[name] for name in dict.fromkeys(sorted(holding) + similar)][:count]
