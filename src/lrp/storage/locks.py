"""One run at a time on one output; and what to say where another run's is there. Standard library alone."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lrp.errors import BusyError
from lrp.storage.atomic import os_errors

if sys.platform != "win32":
    import fcntl

START_OVER = "start over with --overwrite, or choose another -o"


def beside(output: Path, ending: str) -> Path:
    """results.csv -> results.csv.ENDING: what stands beside an output while it is being made."""
    return output.parent / f"{output.name}.{ending}"


def differing(output: Path, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What of a run's identity is not as it was when the output was begun; and what to do."""
    names = [*now, *(name for name in before if name not in now)]
    changes = (
        f"{name} was {repr(before[name]) if name in before else 'not there'}, "
        f"now is {repr(now[name]) if name in now else 'not there'}"
        for name in names
        if before.get(name) != now.get(name)
    )
    what = "; ".join(changes)
    return f"{output}: was begun by another run: {what}. Run that one again to go on, {START_OVER}"


_HELD: dict[str, int] = {}  # lock file -> process: a lock of the system's does not keep its own process out


class Lock:
    """A POSIX record lock on `OUTPUT.lock`: the process's own, so that it ends with it and no fork inherits it.

    Such a lock is lost when its process closes any descriptor of the file, hence a file that nobody else opens.
    """

    def __init__(self, output: Path, otherwise: str = "choose another -o") -> None:
        """`otherwise`: what to do but wait, where it is held by another run."""
        self._otherwise = otherwise
        self._path = beside(output, "lock")
        self._key = os.path.realpath(self._path)
        self._descriptor = -1
        if _HELD.get(self._key) == os.getpid():
            raise self._busy(output, str(os.getpid()))
        if sys.platform != "win32":
            with os_errors(self._path, "locked"):
                while not self._take(output):
                    pass
            _HELD[self._key] = os.getpid()

    def _take(self, output: Path) -> bool:
        """Whether it is held; False if its file was removed by the run before, between opening and locking."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                there = os.path.samestat(os.fstat(descriptor), os.stat(self._path))
            except FileNotFoundError:
                there = False
            if there:
                with suppress(OSError):  # on a full disk: the lock holds without the number
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                self._descriptor, descriptor = descriptor, -1
            return there
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                process = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                raise self._busy(output, process) from error
            raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            if _HELD.get(self._key) == os.getpid():  # in a fork it is still the parent's
                with suppress(OSError):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1
            _HELD.pop(self._key, None)

    def _busy(self, output: Path, process: str) -> BusyError:
        who = f" (process {process})" if process else ""
        return BusyError(f"{output} is being written by another run{who}; wait for it or {self._otherwise}")

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
