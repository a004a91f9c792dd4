"""The journal of a table in progress: finished units of work survive a kill, a full disk, Ctrl-C.

The format is JSON Lines, each line with its own checksum: first the identity of the run, then one line per finished
unit of work, in any order. Standard library only.

sqlite3 was considered and rejected: it has no checksums, so a damaged byte would be read as a different prediction
instead of raising an error with the line's number; it accepts any empty file as its own database; and its connections
must not be carried across a fork, which creates worker processes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from lrp.errors import PredictionsError, os_errors
from lrp.storage.append import append, line_to_append, read_appended_line
from lrp.storage.atomic import path_beside, remove_drafts, write_whole
from lrp.storage.locks import START_OVER, Lock, begun_by_another_run
from lrp.study.predictions import Prediction, prediction_fault

_FORMAT = 1  # version of the line format: a row is the columns of `Prediction`, in their order
_GO_ON = ". What is finished is kept: put that right, and the same command goes on from there"


class Journal:
    """The finished units of one run, on disk; in memory only the offset of each, eight bytes per unit.

    Only one process at a time can lock it, and in it only one thread at a time may call `add`. The lock is released
    when the process ends, for any reason; a forked worker does not inherit it. (Windows: there is no lock.)
    """

    def __init__(self, output: Path, identity: dict[str, str], overwrite: bool, lock: Lock) -> None:
        """Internal: use `Journal.open`."""
        self.path = journal_of(output)
        self._lock = lock
        with os_errors(self.path, "read", PredictionsError):
            if overwrite or not self.path.exists():
                self._begin(identity)
            before, self._units, self._end = _scan(self.path)
            if before != identity:
                if self._units:
                    raise PredictionsError(begun_by_another_run(output, before, identity))
                self._begin(identity)  # no unit is finished, so nothing is lost
                _, self._units, self._end = _scan(self.path)
        with os_errors(self.path, "written", PredictionsError):
            self._file = self.path.open("r+b", buffering=0)
            self._file.truncate(self._end)  # removes the incomplete last line of a killed run

    @classmethod
    def open(cls, output: Path | str, identity: Mapping[str, str], *, overwrite: bool = False) -> Journal:
        """Continue the journal beside `output`, or create one.

        Args:
            identity: everything that the rows depend on (model, weights, data, ...); a journal is continued only if
                all of it is equal.
            overwrite: whether to discard the units of an earlier run.

        Raises:
            BusyError: another run, in this or another process, has locked it.
            PredictionsError: it belongs to a run with another identity and has finished units, is damaged before
                its last line, or cannot be read or written.
        """
        output = Path(output)
        with os_errors(output, "written", PredictionsError):
            if output.is_dir():  # fail now, not after the last image
                raise PredictionsError(
                    f"{output}: is a folder; name a file in it, as {output / 'results.csv'}"
                )
        lock = Lock(output, error=PredictionsError)
        try:
            remove_drafts(output, journal_of(output))
            return cls(output, dict(identity), overwrite, lock)
        except BaseException:
            lock.release()
            raise

    @property
    def done(self) -> Set[int]:
        """The numbers of the finished units, as a live view."""
        return self._units

    def add(self, unit: int, rows: Sequence[Prediction]) -> None:
        """Store the rows of a finished unit. After it returns, they survive a power cut.

        Args:
            unit: its number, 0 or more; memory is eight bytes times the highest number.

        Raises:
            PredictionsError: the unit is already stored, a row is inconsistent, or writing fails. The journal is
                then unchanged.
        """
        if unit in self._units:
            raise PredictionsError(f"{self.path}: unit {unit} is finished already")
        for row in rows:
            if wrong := prediction_fault(row):
                raise PredictionsError(f"{self.path}: {row.path!r}, column {wrong[0]}: {wrong[1]}")
        line = line_to_append({"unit": unit, "rows": [_values(row) for row in rows]})
        with os_errors(self.path, "written", PredictionsError, _GO_ON):
            append(self._file, self._end, line)
        # In this order: if interrupted in between, the unit is on the disk but not in `done`, so it can be added again.
        begin, self._end = self._end, self._end + len(line)
        self._units.remember(unit, begin)

    def rows(self) -> Iterator[Prediction]:
        """The rows of all finished units, sorted by unit, with one unit at a time in memory.

        Raises:
            PredictionsError: the file cannot be read, or was changed by another program.
        """
        with os_errors(self.path, "read", PredictionsError), self.path.open("rb") as file:
            for unit in self._units:
                file.seek(self._units.offset(unit))
                entry = read_appended_line(file.readline())
                if entry is None or entry["unit"] != unit:
                    raise PredictionsError(f"{self.path}: unit {unit} was changed meanwhile; {START_OVER}")
                for values in entry["rows"]:
                    yield Prediction(*values)

    def remove(self) -> None:
        """Delete and close it, after its table is written."""
        with os_errors(self.path, "removed", PredictionsError):
            self._file.close()
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file and release the lock; finished units stay for the next run. May be called twice."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, identity: dict[str, str]) -> None:
        # Atomically: a file with an invalid first line is then never an incomplete journal of ours.
        header = line_to_append({"journal": _FORMAT, "identity": identity})
        write_whole(self.path, [header.decode("ascii")], PredictionsError)


class _Units(Set[int]):
    """The finished units, with the offset of each in the file."""

    def __init__(self) -> None:
        self._offsets = array("q")  # by unit; -1: not finished
        self._count = 0

    def remember(self, unit: int, offset: int) -> None:
        self._offsets.extend([-1] * (unit + 1 - len(self._offsets)))
        self._count += self._offsets[unit] < 0
        self._offsets[unit] = offset

    def offset(self, unit: int) -> int:
        return self._offsets[unit]

    def __contains__(self, unit: object) -> bool:
        return isinstance(unit, int) and 0 <= unit < len(self._offsets) and self._offsets[unit] >= 0

    def __iter__(self) -> Iterator[int]:
        return (unit for unit, offset in enumerate(self._offsets) if offset >= 0)

    def __len__(self) -> int:
        return self._count

    @classmethod
    def _from_iterable(cls, units: Any) -> Any:  # the result type of `done & {...}`
        return frozenset(units)


def _scan(path: Path) -> tuple[dict[str, str], _Units, int]:
    """(identity, units, end of the last complete line)."""
    units = _Units()
    with path.open("rb") as file:
        header = read_appended_line(file.readline())
        if header is None or "journal" not in header:
            raise PredictionsError(
                f"{path}: is no journal of 'lrp evaluate', or its first line is damaged; move it away, or {START_OVER}"
            )
        if header["journal"] != _FORMAT:
            raise PredictionsError(
                f"{path}: is of format {header['journal']}, this version of lrp writes format {_FORMAT}; "
                f"finish it with the version that began it, or {START_OVER}"
            )
        end, broken = file.tell(), 0
        for number, line in enumerate(file, 2):
            entry = read_appended_line(line)
            if entry is None:
                broken = broken or number
            elif broken:  # a line is synced before the next begins, so a kill cannot have damaged it
                raise PredictionsError(f"{path}: line {broken} is damaged, and more follow it; {START_OVER}")
            else:
                units.remember(entry["unit"], end)
                end += len(line)
    return header["identity"], units, end


def _values(row: Prediction) -> list[Any]:
    return [
        row.path, row.true_label, row.predicted_label, row.predicted_confidence, row.true_confidence, row.correct,
        row.status, row.error, row.true_index, row.predicted_index, dict(row.top5), row.model, row.weights,
        row.restricted,
    ]  # fmt: skip


def journal_of(output: Path) -> Path:
    """The path of the journal of a table in progress."""
    return path_beside(output, "journal")
