"""One run at a time on one output; and what to say where another run's is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lrp.errors import BusyError, LrpError
from lrp.storage.atomic import os_errors

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


class Lock:
    """A lock on `OUTPUT.lock`, held by one `Lock` at a time, in this process or another.

    It ends with `release`, with the object, and with the process however that ends; a fork has no share in it. The file
    holds the number of the process, so that the others can name it, and is removed in the end.
    """

    def __init__(
        self, output: Path, otherwise: str = "choose another -o", error: type[LrpError] = LrpError
    ) -> None:
        """Take it.

        Args:
            otherwise: what to do but wait, where it is held by another run.
            error: raised where there can be no lock.

        Raises:
            BusyError: it is held.
        """
        self._path = beside(output, "lock")
        self._process = os.getpid()
        self._lock = FileLock(self._path, timeout=0, thread_local=False)
        with os_errors(self._path, "locked", error):
            os.stat(f"{self._path.parent}/")  # filelock would make a folder that is missing
            try:
                self._lock.acquire()
            except Timeout as held:
                raise BusyError(
                    f"{output} is being written by another run{self._holder()}; wait for it or {otherwise}"
                ) from held
        with suppress(OSError):  # on a full disk: the lock holds without the number
            self._path.write_text(f"{self._process}\n")

    def release(self) -> None:
        """Give it back; a second time, or in a fork, nothing happens."""
        if self._lock.is_locked and os.getpid() == self._process:
            with suppress(OSError):
                self._path.unlink()  # before the lock ends: after that, the file may be the next run's
            self._lock.release()

    def _holder(self) -> str:
        try:
            process = self._path.read_text(errors="replace").strip()
        except OSError:
            process = ""
        return f" (process {process[:20]})" if process else ""

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
