"""A lock for one run at a time on an output; and the message if the output was begun by another run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lrp.errors import BusyError, LrpError, os_errors
from lrp.storage.atomic import path_beside

START_OVER = "start over with --overwrite, or choose another -o"


def begun_by_another_run(output: Path, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The message about what has changed in a run's identity since the output was begun, and what to do."""
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

    It is released by `release`, with the object, and when the process ends in any way; a forked process does not hold
    it. The file contains the process id, for the messages of other runs, and is removed at the end.
    """

    def __init__(
        self, output: Path, otherwise: str = "choose another -o", error: type[LrpError] = LrpError
    ) -> None:
        """Acquire the lock.

        Args:
            otherwise: the alternative to waiting, in the message if another run holds it.
            error: raised if the lock file cannot be created.

        Raises:
            BusyError: another run holds it.
        """
        self._path = path_beside(output, "lock")
        self._process = os.getpid()
        self._lock = FileLock(self._path, timeout=0, thread_local=False)
        with os_errors(self._path, "locked", error):
            os.stat(f"{self._path.parent}/")  # filelock would create a missing folder
            try:
                self._lock.acquire()
            except Timeout as held:
                raise BusyError(
                    f"{output} is being written by another run{self._holder()}; wait for it or {otherwise}"
                ) from held
        with suppress(OSError):  # on a full disk: the lock works without the process id
            self._path.write_text(f"{self._process}\n")

    def release(self) -> None:
        """Release the lock; a second call, or one in a forked process, does nothing."""
        if self._lock.is_locked and os.getpid() == self._process:
            with suppress(OSError):
                self._path.unlink()  # before the release: after it, the file may be that of the next run
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
