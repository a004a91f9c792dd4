"""Folders -> samples, folders -> classes: a data set is a tree of class folders, read as a sorted stream."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lrp.classes import classes_meant, nearest_class_names
from lrp.errors import DataError

SPLITS = ("val", "validation", "valid", "train", "test")
"""Names of folders that contain the class folders of a split; if none is requested, the first that exists is used."""


@dataclass(frozen=True, slots=True)
class Sample:
    path: str
    """As it is written to the CSV: the data set's folder as given, then the relative path, joined with "/"; printable
    even where the file's name is not valid UTF-8."""
    file: Path
    """The path to open. A folder that cannot be listed is a sample itself, so that `open_photo` raises the reason."""
    category: str
    """The class folder's name."""


@dataclass(frozen=True)
class DataSet:
    """A tree DATA/<class>/<image>, or one with train/, val/, ... above the classes. Iterating gives its samples.

    Each iteration reads the tree again and yields samples sorted by category and then by relative path, both as bytes:
    the same order on every machine. Only one folder's list of names is in memory (and those of its parent folders).

    Every regular file below a class folder is a sample, whatever its name and at any depth. Skipped are names that
    begin with a dot, pipes, sockets and devices, files next to the class folders, and links unless `follow_links`
    is set. A link to one of its own parent folders is never followed.
    """

    root: str
    """The given path, without a slash at its end."""
    split: str
    """The split that is read, "all", or "" where the class folders lie directly in `root`."""
    splits: tuple[str, ...]
    """The splits that exist."""
    categories: tuple[str, ...]
    """The names of the class folders, sorted."""
    follow_links: bool
    _class_folders: tuple[tuple[str, str], ...]
    """(category, folder relative to root), in the order of reading."""

    @classmethod
    def open(cls, root: Path | str, split: str | None = None, follow_links: bool = False) -> "DataSet":
        """Find the class folders, and check that one of them contains a file.

        "train" may also be the name of a class. A folder with the name of a split is therefore a split only if it
        contains folders, and if there are two such folders, or none with another name, or `split` names it.

        Args:
            split: one of those that exist, or "all" for all of them together. None: the first of `SPLITS` that
                exists, or the tree itself.

        Raises:
            DataError: no such folder, no such split, no class folders, or no file in them.
        """
        given = os.fspath(root)
        given = given.rstrip("/") or given[:1]
        try:
            inside = _names(given, follow_links)
            below = {
                s: _folders(_names(os.path.join(given, s), follow_links)) for s in SPLITS if s + "/" in inside
            }
        except FileNotFoundError as error:
            raise DataError(
                f"expected a folder of class folders, found nothing at: {_one_line(given)}"
            ) from error
        except NotADirectoryError as error:
            raise DataError(
                f"expected a folder of class folders, got a file: {_one_line(given)}; "
                "give the folder above its class folder, the DATA of DATA/<class>/<image>."
            ) from error
        except OSError as error:
            raise DataError(
                f"{_one_line(str(error.filename))} cannot be listed: {error.strerror}."
            ) from error
        splits = tuple(s for s in SPLITS if below.get(s))
        others = set(_folders(inside)) - set(SPLITS)
        if len(splits) == 1 and others and split != splits[0]:
            splits = ()
        if split not in (None, "all", *splits):
            there = f"it has {_listed(splits)}" if splits else "its class folders lie directly in it"
            raise DataError(f"{_one_line(given)} has no split {split!r}: {there}.")
        chosen = splits if split == "all" else ((split,) if split else splits[:1])
        found = [(name, f"{above}/{name}") for above in chosen for name in below[above]]
        if not chosen:
            found = [(name, name) for name in _folders(inside)]
        found.sort(key=lambda pair: (_bytes(pair[0]), _bytes(pair[1])))
        data = cls(
            root=given,
            split="all" if split == "all" and splits else "".join(chosen),
            splits=splits,
            categories=tuple(dict.fromkeys(_text(name) for name, _ in found)),
            follow_links=follow_links,
            _class_folders=tuple(found),
        )
        if next(iter(data), None) is None:
            raise DataError(data._why_empty(beside=len(inside) - len(_folders(inside))))
        return data

    def __iter__(self) -> Iterator[Sample]:
        for category, folder in self._class_folders:
            category = _text(category)
            for relative in _files(self.root, folder, self.follow_links):
                file = os.path.join(self.root, relative)
                yield Sample(_text(file).replace(os.sep, "/"), Path(file), category)

    def _why_empty(self, beside: int) -> str:
        """Why there is no sample; `beside` is the number of files that lie directly in the folder."""
        where = _one_line(self.root)
        if not self.follow_links:
            with suppress(DataError):
                DataSet.open(self.root, self.split or None, follow_links=True)
                return f"{where} holds links only, which are not followed unless asked (follow_links)."
        if self.categories:
            names = _shortened([repr(name) for name in self.categories])
            return f"{where}: no file in any of its {len(self.categories)} class folders ({names})."
        hint = (
            f" The {beside} files directly in it belong into folders named as their class." if beside else ""
        )
        return f"{where} holds no class folders: expected {where}/<class>/<image>.{hint}"


@dataclass(frozen=True)
class Matched:
    """Which class of a model each category is."""

    indices: dict[str, int]
    unmatched: dict[str, list[str]]
    """Categories that match no class, each with the nearest names and their indices: "'tabby' (281)"."""


def match_class_folders(categories: Sequence[str], class_names: Sequence[str]) -> Matched:
    """Find the class that each category means: by WordNet id, name or index, as `lrp.classes.class_index`.

    A category that could be several of the model's classes counts as unmatched, with those as the nearest names.

    Raises:
        DataError: no category is a class of the model, or two are the same class.
    """
    indices: dict[str, int] = {}
    unmatched: dict[str, list[str]] = {}
    for category in categories:
        meant = classes_meant(category, class_names)
        if len(meant) == 1:
            indices[category] = meant[0]
        elif meant:
            unmatched[category] = [f"{class_names[i]!r} ({i})" for i in meant]
        else:  # similar names take 10 ms to find: for the first 50 folders only
            unmatched[category] = nearest_class_names(category, class_names) if len(unmatched) < 50 else []
    if not indices:
        near = {c: names for c, names in unmatched.items() if names}
        hint = "; ".join(f"{c!r} is near {', '.join(names)}" for c, names in list(near.items())[:3])
        raise DataError(
            f"no class folder of {len(unmatched)} ({_shortened([repr(c) for c in unmatched])}) is a class of the model: "
            f"{hint or 'none has a similar name'}. A WordNet id of ImageNet, a class name or an index from 0 to "
            f"{len(class_names) - 1} is expected."
        )
    folders: dict[int, list[str]] = {}
    for category, index in indices.items():
        folders.setdefault(index, []).append(category)
    if twice := {index: same for index, same in folders.items() if len(same) > 1}:
        which = "; ".join(
            f"{_listed([repr(c) for c in same])} are both class {index} ({class_names[index]!r})"
            for index, same in twice.items()
        )
        raise DataError(f"class folders mean the same class: {which}. Merge or rename them.")
    return Matched(indices, unmatched)


def _files(root: str, folder: str, follow_links: bool) -> Iterator[str]:
    """Files below root / folder, relative to root, sorted as bytes. A folder that cannot be listed is yielded itself."""
    pending = [folder + "/"]  # a stack, because folders may be nested deeper than Python calls
    while pending:
        relative = pending.pop()
        if not relative.endswith("/"):
            yield relative
            continue
        try:
            if not (follow_links and _leads_back(root, relative)):
                names = _names(os.path.join(root, relative), follow_links)
                pending.extend(relative + name for name in reversed(names))
        except OSError:
            yield relative[:-1]


def _names(folder: str, follow_links: bool) -> list[str]:
    """The files, and with a slash at the end the folders, in a folder; sorted as bytes, slash included.

    A tree that is read in this order gives sorted paths: "a-b", "a.jpg", "a/b".
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with suppress(OSError):  # a link to itself, or deleted in the meantime
                if entry.is_symlink() and not follow_links:
                    continue
                if entry.is_dir():
                    names.append(entry.name + "/")
                elif entry.is_file():
                    names.append(entry.name)
    return sorted(names, key=_bytes)


def _leads_back(root: str, folder: str) -> bool:
    """Whether a folder, reached through links, is one of its own parent folders."""
    here = os.stat(os.path.join(root, folder))
    parts = folder.rstrip("/").split("/")[:-1]
    return any(os.path.samestat(here, os.stat(os.path.join(root, *parts[:n]))) for n in range(len(parts) + 1))


def _folders(names: Sequence[str]) -> list[str]:
    return [name[:-1] for name in names if name.endswith("/")]


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are escaped, as "\\xff"."""
    return _bytes(name).decode("utf-8", "backslashreplace")


def _one_line(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _text(name))


def _shortened(items: Sequence[str], count: int = 5) -> str:
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
