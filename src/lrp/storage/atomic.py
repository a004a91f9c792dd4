"""Files written whole or not at all, and what the system refuses as an error of our own. Standard library alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrp.errors import LrpError


def write_whole(path: Path, chunks: Iterable[str], error: type[LrpError] = LrpError) -> None:
    """Write a text file in UTF-8, whole or not at all: beside it first, then synchronised and renamed.

    The temporary file is `.NAME.part`, so a killed run's is overwritten by the next: one writer at a time.

    Raises:
        error: the file cannot be written. What iterating `chunks` raises is passed on as it is.
    """
    temporary = path.parent / f".{path.name}.part"
    try:
        with os_errors(path, "written", error):
            file = temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
        try:
            for chunk in chunks:
                with os_errors(path, "written", error):
                    file.write(chunk)
            with os_errors(path, "written", error):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with os_errors(path, "written", error):
                file.close()
        with os_errors(path, "written", error):
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    # The file is in place. That its name lasts too is asked for, but not every file system can promise it.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def os_errors(path: Path, done: str, error: type[LrpError] = LrpError, advice: str = "") -> Iterator[None]:
    """An OSError inside is raised as `error`: "PATH: cannot be DONE: reason"."""
    try:
        yield
    except OSError as refusal:
        raise error(f"{path}: cannot be {done}: {refusal.strerror or refusal}{advice}") from refusal
