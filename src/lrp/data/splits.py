"""A folder of classes -> photos for training and for validation; files that cannot be read are listed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrp.classes import wnid_name
from lrp.data.data_set import SPLITS, DataSet, Sample
from lrp.errors import ImageError, TrainingError
from lrp.pictures.photos import Photo, PhotoError, kinds_of, open_photo
from lrp.values import Plain

FOR_VALIDATION = tuple(name for name in SPLITS if name != "train")


@dataclass(frozen=True)
class Example:
    """A readable photo and its class."""

    sample: Sample
    target: int
    digest: str
    """SHA-256 of the file."""


@dataclass(frozen=True)
class ClassCount(Plain):
    label: str
    folder: str
    train: int
    val: int


@dataclass(frozen=True)
class TrainingData:
    """What `split` made of a folder.

    Attributes:
        train, val: in the data set's order.
        classes: one for each class folder, in the order of the model's outputs: sorted by folder.
        broken: (path, reason) of the files that were left out.
        notes: warnings for the user: imbalance, duplicates, tiny classes. One sentence each.
        fingerprint: of every photo's content, class and side (train or val): identifies the data wherever it is stored.
    """

    train: tuple[Example, ...]
    val: tuple[Example, ...]
    classes: tuple[ClassCount, ...]
    broken: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.label for c in self.classes)


def split(
    root: Path | str,
    *,
    val_share: float = 0.2,
    seed: int = 0,
    max_skip_rate: float = 0.05,
    max_megapixels: float = 100.0,
    range: tuple[float, float] | None = None,
    follow_links: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingData:
    """Read every photo of a folder once and assign it to training or validation.

    `root`/train and `root`/val (or validation, valid, test) are used as they are. A tree without them is split by
    a hash of each file's content, class by class: the same files give the same split wherever they are
    stored and whatever their names, and copies of a photo are on the same side.

    A class folder named as a WordNet id of ImageNet-1k gets the name of that class; others keep their folder's name.

    Args:
        val_share: of each class, for validation, where there is no such folder; at least one photo of a class
            with two or more.
        seed: another seed gives another split.
        max_skip_rate: the fraction of all files that may be unreadable.
        range: which levels of photos deeper than 8 bits are black and white, as `open_photo` takes it.
        advance: called with the number of files read since the last call, and of all.

    Raises:
        DataError: no such folder, or no class folders in it.
        TrainingError: fewer than two classes, classes with the same name, a class without a photo to train on,
            classes of val that train does not have, no photo to validate on, or too many broken files.
    """
    found = DataSet.open(root, None, follow_links)
    validation = next((name for name in FOR_VALIDATION if name in found.splits), None)
    given = "train" in found.splits and validation is not None
    if given:
        parts = [DataSet.open(root, name, follow_links) for name in ("train", validation)]
    elif found.splits and "train" in found.splits:
        parts = [DataSet.open(root, "train", follow_links)]
    else:
        parts = [found]
    folders = parts[0].categories
    names = _names(root, folders)
    if given and (unknown := sorted(set(parts[1].categories) - set(folders))):
        raise TrainingError(
            f"{root}: class folders of {validation}/ that train/ has not: {', '.join(map(repr, unknown))}."
        )
    sides = [list(part) for part in parts]
    assumed: Counter[str] = Counter()
    read, broken = _read([s for side in sides for s in side], max_megapixels, range, assumed, advance)
    if len(broken) > max_skip_rate * sum(map(len, sides)):
        raise TrainingError(
            f"{root}: {len(broken)} of {sum(map(len, sides))} files cannot be read, more than {max_skip_rate:.0%} "
            f"(--max-skip-rate); the first is {broken[0][0]}: {broken[0][1]}."
        )
    index = {folder: i for i, folder in enumerate(folders)}
    examples = [
        [Example(s, index[s.category], read[s.path]) for s in side if s.path in read] for side in sides
    ]
    notes = [f"{count:,} photos: {note}." for note, count in assumed.most_common()]
    train, val = examples if given else _split_by_content(examples[0], val_share, seed, notes)
    counts = [Counter(e.target for e in side) for side in (train, val)]
    classes = tuple(
        ClassCount(name, folder, counts[0][i], counts[1][i])
        for i, (name, folder) in enumerate(zip(names, folders, strict=True))
    )
    _expect_trainable(root, classes, val)
    notes += _notes(train, val, classes)
    return TrainingData(
        tuple(train), tuple(val), classes, tuple(broken), tuple(notes), _fingerprint(classes, train, val)
    )


def _names(root: Path | str, folders: Sequence[str]) -> list[str]:
    if len(folders) < 2:
        only = f"one, {folders[0]!r}" if folders else "none"
        raise TrainingError(f"{root}: expected at least two class folders to tell apart, got {only}.")
    names = [wnid_name(folder) or folder for folder in folders]
    alike: dict[str, list[str]] = {}
    for folder, name in zip(folders, names, strict=True):
        alike.setdefault(" ".join(name.casefold().split()), []).append(folder)
    if same := [group for group in alike.values() if len(group) > 1]:
        which = "; ".join(", ".join(map(repr, group)) for group in same)
        raise TrainingError(
            f"{root}: class folders named alike cannot be told apart later: {which}. Merge or rename them."
        )
    return names


def _read(
    samples: Sequence[Sample],
    max_megapixels: float,
    range: tuple[float, float] | None,
    assumed: Counter[str],
    advance: Callable[[int, int], None],
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Digest of each readable file by path, and (path, reason) of the others; only decoding shows which is which.

    Photos' notes are counted in `assumed`.
    """

    def look(sample: Sample) -> Photo | ImageError:
        try:
            photo = open_photo(sample.file, max_megapixels=max_megapixels, range=range)
            return replace(photo, pixels=np.empty((0, 0, 3), np.uint8))
        except ImageError as error:
            return error

    read, broken = {}, []
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "lrp-decode")
    try:
        for sample, seen in zip(samples, pool.map(look, samples), strict=True):
            if isinstance(seen, Photo):
                read[sample.path] = seen.digest
                assumed.update(kinds_of(seen.notes))
            else:
                broken.append((sample.path, seen.reason if isinstance(seen, PhotoError) else str(seen)))
            advance(1, len(samples))
    finally:
        pool.shutdown(cancel_futures=True)
    return read, broken


def _split_by_content(
    examples: Sequence[Example], val_share: float, seed: int, notes: list[str]
) -> tuple[list[Example], list[Example]]:
    """(train, val), class by class in the order of a hash of the content; copies stay together."""
    if not 0 < val_share < 1:
        raise TrainingError(f"expected a share for validation between 0 and 1, got {val_share:g}.")
    classes_of: dict[str, set[int]] = {}
    for e in examples:
        classes_of.setdefault(e.digest, set()).add(e.target)
    ambiguous = {digest for digest, targets in classes_of.items() if len(targets) > 1}
    if ambiguous:
        notes.append(
            f"{len(ambiguous):,} photos lie in more than one class folder; they are all trained on, none validates."
        )
    chosen: set[str] = set()
    for target in sorted({e.target for e in examples}):
        # Copies of a photo count as one, and are selected together.
        digests = {e.digest for e in examples if e.target == target} - ambiguous
        ranked = sorted(digests, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).digest())
        count = round(val_share * len(ranked))
        chosen.update(ranked[: min(max(count, 1), len(ranked) - 1)] if len(ranked) > 1 else ())
    return [e for e in examples if e.digest not in chosen], [e for e in examples if e.digest in chosen]


def _expect_trainable(root: Path | str, classes: Sequence[ClassCount], val: Sequence[Example]) -> None:
    if empty := [c.folder for c in classes if not c.train]:
        raise TrainingError(
            f"{root}: class folders without a readable photo to train on: {', '.join(map(repr, empty))}. "
            "Add photos, or take the folders away."
        )
    if not val:
        raise TrainingError(
            f"{root}: no photo is left to validate on: a class needs two different ones, or {root}/val some."
        )


def _notes(train: Sequence[Example], val: Sequence[Example], classes: Sequence[ClassCount]) -> Iterable[str]:
    if without := [c.folder for c in classes if not c.val]:
        yield f"no photo validates the classes {', '.join(map(repr, without))}: their accuracy stays unknown."
    most, least = max(classes, key=lambda c: c.train), min(classes, key=lambda c: c.train)
    if most.train > 3 * least.train:
        yield (
            f"imbalanced: {most.folder!r} has {most.train:,} photos to train on, {least.folder!r} {least.train:,}."
        )
    if common := {e.digest for e in train} & {e.digest for e in val}:
        yield (
            f"{len(common):,} photos of val are in train too: accuracy on val says too much about what it has seen."
        )


def _fingerprint(classes: Sequence[ClassCount], train: Sequence[Example], val: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for side, examples in (("train", train), ("val", val)):
        for e in sorted(f"{side} {classes[e.target].label} {e.digest}\n" for e in examples):
            digest.update(e.encode())
    return digest.hexdigest()
