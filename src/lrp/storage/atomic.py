"""Files that appear whole or not at all; and what the system refuses, as an error of our own.

The one place that renames files into place. Each is written to a draft in its own folder, synchronised, renamed, and
the folder synchronised; after any error or interruption the draft is deleted and the old file is untouched.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lrp.errors import LrpError


@contextmanager
def replacing(
    path: Path, error: type[LrpError] | None = None, *, parents: bool = False, advice: str = ""
) -> Iterator[Path]:
    """A path to write to, beside `path`, whose file takes the place of `path` where the block ends without an error.

    Args:
        error: what an OSError is raised as, in the block too: "PATH: cannot be written: REASON". None: it stays one.
        parents: make the folder that is missing.
        advice: what to do, the end of that message.
    """
    with replacing_all([path], error, parents=parents, advice=advice) as (draft,):
        yield draft


@contextmanager
def replacing_all(
    paths: Sequence[Path], error: type[LrpError] | None = None, *, parents: bool = False, advice: str = ""
) -> Iterator[list[Path]]:
    """`replacing` for files that belong together: all are on the disk before the first is renamed."""
    with os_errors(paths[0], "written", error, advice), _drafts(paths, error, parents, advice) as drafts:
        yield drafts


def write_whole(
    path: Path, chunks: Iterable[str], error: type[LrpError] | None = None, *, parents: bool = False
) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        error: the file cannot be written. What iterating `chunks` raises is passed on as it is.
    """
    with _drafts([path], error, parents) as (draft,):
        with os_errors(path, "written", error):
            file = draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
        try:
            for chunk in chunks:
                with os_errors(path, "written", error):
                    file.write(chunk)
        finally:
            with os_errors(path, "written", error):
                file.close()


def move_into_place(draft: Path, path: Path) -> None:
    """Rename a finished file of the same folder: its content reaches the disk first, then its name."""
    _synchronise(draft)
    _rename(draft, path)


def remove_drafts(*paths: Path) -> None:
    """Delete the drafts of these files that a killed run left: for whoever holds their lock, and begins."""
    for path in paths:
        for left in path.parent.glob(f"{_prefix(path)}*.part"):
            with suppress(OSError):
                left.unlink()


@contextmanager
def os_errors(path: Path, done: str, error: type[LrpError] | None, advice: str = "") -> Iterator[None]:
    """An OSError inside is raised as `error`: "PATH: cannot be DONE: REASON"; None: it stays one."""
    try:
        yield
    except OSError as refusal:
        if error is None:
            raise
        raise error(f"{path}: cannot be {done}: {refusal.strerror or refusal}{advice}") from refusal


@contextmanager
def _drafts(
    paths: Sequence[Path], error: type[LrpError] | None, parents: bool = False, advice: str = ""
) -> Iterator[list[Path]]:
    # In the same folder, as a rename is atomic only within one file system. Not by tempfile, whose files only their
    # owner may read. Each with a name of its own, for two runs may write one file; hidden, so that none is taken for
    # a photo; and short, whatever the length of the file's name.
    drafts = [path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.part") for path in paths]
    both = list(zip(paths, drafts, strict=True))
    try:
        for path, draft in both:
            with os_errors(path, "written", error, advice):
                if parents:
                    path.parent.mkdir(parents=True, exist_ok=True)
                draft.touch(
                    exist_ok=False
                )  # where nothing can be written, this fails now and not after long work
        yield drafts
        for path, draft in both:
            with os_errors(path, "written", error, advice):
                _synchronise(draft)
        for path, draft in both:
            with os_errors(path, "written", error, advice):
                _rename(draft, path)
    finally:
        for draft in drafts:
            with suppress(OSError):
                draft.unlink()


def _prefix(path: Path) -> str:
    return f".lrp-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"


def _rename(draft: Path, path: Path) -> None:
    os.replace(draft, path)
    # The file is in place. That its name lasts too is asked for, but not every file system can promise it.
    with suppress(OSError):
        _synchronise(path.parent, os.O_RDONLY)


def _synchronise(path: Path, flags: int = os.O_RDWR) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
