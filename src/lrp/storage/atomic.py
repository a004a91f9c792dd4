"""Files that appear whole or not at all.

The only module that renames files to their final names. Each is written to a draft in the same folder, flushed to the
disk, renamed, and the folder flushed; after any error or interruption the draft is deleted and the old file is untouched.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lrp.errors import LrpError, os_errors


@contextmanager
def replacing(
    path: Path, error: type[LrpError] | None = None, *, parents: bool = False, advice: str = ""
) -> Iterator[Path]:
    """A draft's path, next to `path`; the draft replaces `path` if the block ends without an error.

    Args:
        error: the class that an OSError is raised as, also in the block: "PATH: cannot be written: REASON". None: OSError.
        parents: create missing parent folders.
        advice: the end of that message: what to do.
    """
    with replacing_all([path], error, parents=parents, advice=advice) as (draft,):
        yield draft


@contextmanager
def replacing_all(
    paths: Sequence[Path], error: type[LrpError] | None = None, *, parents: bool = False, advice: str = ""
) -> Iterator[list[Path]]:
    """`replacing` for files that belong together: all are flushed to the disk before the first is renamed."""
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
    _flush(draft)
    _rename(draft, path)


def remove_drafts(*paths: Path) -> None:
    """Delete drafts of these files that a killed run left behind: only for the holder of their lock, before it writes."""
    for path in paths:
        for draft in path.parent.glob(f"{_prefix(path)}*.part"):
            with suppress(OSError):
                draft.unlink()


def path_beside(output: Path, ending: str) -> Path:
    """results.csv -> results.csv.ENDING: a file next to an output, which exists while the output is written."""
    return output.parent / f"{output.name}.{ending}"


@contextmanager
def _drafts(
    paths: Sequence[Path], error: type[LrpError] | None, parents: bool = False, advice: str = ""
) -> Iterator[list[Path]]:
    # In the same folder, because a rename is atomic only within one file system. Not by tempfile, whose files only
    # their owner may read. With random names, because two runs may write the same file; hidden, so that none is
    # taken for a photo; and short, whatever the length of the file's name.
    drafts = [path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.part") for path in paths]
    both = list(zip(paths, drafts, strict=True))
    try:
        for path, draft in both:
            with os_errors(path, "written", error, advice):
                if parents:
                    path.parent.mkdir(parents=True, exist_ok=True)
                # If the folder is not writable, this fails now and not after long work.
                draft.touch(exist_ok=False)
        yield drafts
        for path, draft in both:
            with os_errors(path, "written", error, advice):
                _flush(draft)
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
    # The file has its name. Flushing the folder makes the name durable, but not every file system supports this.
    with suppress(OSError):
        _flush(path.parent, os.O_RDONLY)


def _flush(path: Path, flags: int = os.O_RDWR) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
