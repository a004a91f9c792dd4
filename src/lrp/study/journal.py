"""The journal beside a table that is being made: what is finished survives a kill, a full disk, Ctrl-C.

JSON Lines, each under a checksum of its own: first who is running (the identity), then one line per finished
unit of work, in any order. Knows the standard library alone.

Not sqlite3, which was weighed: it has no checksums, so that a damaged byte would come back as another prediction
instead of being refused with the number of its line; it takes an empty file of anybody's for a database of its own;
and its connections must not live through the forks that workers are made by.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from lrp.errors import PredictionsError
from lrp.storage.append import append, seal, unseal
from lrp.storage.atomic import os_errors, remove_drafts, write_whole
from lrp.storage.locks import START_OVER, Lock, beside, differing
from lrp.study.predictions import Prediction, fault

_FORMAT = 1  # of a line's rows: the columns of `Prediction`, in their order
_GO_ON = ". What is finished is kept: put that right, and the same command goes on from there"


class Journal:
    """The finished units of one run, on disk; in memory only where each begins, eight bytes a unit.

    One process at a time may hold it, and in it one thread at a time may add. The hold ends with the process
    however that ends, and a forked worker has no share in it. (Windows: nothing is held.)
    """

    def __init__(self, output: Path, identity: dict[str, str], overwrite: bool, lock: Lock) -> None:
        """For `Journal.open`."""
        self.path = journal_of(output)
        self._lock = lock
        with os_errors(self.path, "read", PredictionsError):
            if overwrite or not self.path.exists():
                self._begin(identity)
            before, self._units, self._end = _scan(self.path)
            if before != identity:
                if self._units:
                    raise PredictionsError(differing(output, before, identity))
                self._begin(identity)  # nothing was finished yet: nothing is lost
                _, self._units, self._end = _scan(self.path)
        with os_errors(self.path, "written", PredictionsError):
            self._file = self.path.open("r+b", buffering=0)
            self._file.truncate(self._end)  # the torn line of a killed run

    @classmethod
    def open(cls, output: Path | str, identity: Mapping[str, str], *, overwrite: bool = False) -> Journal:
        """Go on with the journal beside `output`, or begin one.

        Args:
            identity: all that the rows depend on (model, weights, data, ...); units are only those of one run
                if all of it is the same.
            overwrite: whether to drop what an earlier run has finished.

        Raises:
            BusyError: another run, here or in another process, holds it.
            PredictionsError: it belongs to a run of another identity (and something is finished), is damaged
                elsewhere than in its last line, or cannot be read or written.
        """
        output = Path(output)
        with os_errors(output, "written", PredictionsError):
            if output.is_dir():  # said now, not when the last image is done
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
        """The numbers of the finished units: a view, which grows with them."""
        return self._units

    def add(self, unit: int, rows: Sequence[Prediction]) -> None:
        """Note a unit as finished. When this returns, its rows survive a power cut.

        Args:
            unit: 0 or more; every number up to the highest takes eight bytes of memory.

        Raises:
            PredictionsError: it is there already, a row contradicts itself, or the disk refuses. The journal is
                then as before.
        """
        if unit in self._units:
            raise PredictionsError(f"{self.path}: unit {unit} is finished already")
        for row in rows:
            if wrong := fault(row):
                raise PredictionsError(f"{self.path}: {row.path!r}, column {wrong[0]}: {wrong[1]}")
        line = seal({"unit": unit, "rows": [_values(row) for row in rows]})
        with os_errors(self.path, "written", PredictionsError, _GO_ON):
            append(self._file, self._end, line)
        # In this order: interrupted in between, the unit is on the disk but not known, and may come again.
        begin, self._end = self._end, self._end + len(line)
        self._units.remember(unit, begin)

    def rows(self) -> Iterator[Prediction]:
        """The rows of all finished units, in order of unit, one unit at a time in memory.

        Raises:
            PredictionsError: the file cannot be read, or was changed since.
        """
        with os_errors(self.path, "read", PredictionsError), self.path.open("rb") as file:
            for unit in self._units:
                file.seek(self._units.offset(unit))
                entry = unseal(file.readline())
                if entry is None or entry["unit"] != unit:
                    raise PredictionsError(f"{self.path}: unit {unit} was changed meanwhile; {START_OVER}")
                for values in entry["rows"]:
                    yield Prediction(*values)

    def remove(self) -> None:
        """Delete it, its table being written, and close it."""
        with os_errors(self.path, "removed", PredictionsError):
            self._file.close()
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of it; what is finished stays for the next run. Closing twice is fine."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, identity: dict[str, str]) -> None:
        # Whole or not at all, so that a file with a broken first line is a stranger's and not a torn one of ours.
        header = seal({"journal": _FORMAT, "identity": identity})
        write_whole(self.path, [header.decode("ascii")], PredictionsError)


class _Units(Set[int]):
    """Which units are there, and where in the file each begins."""

    def __init__(self) -> None:
        self._offsets = array("q")  # by unit; -1: not there
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
    def _from_iterable(cls, units: Any) -> Any:  # what `done & {...}` gives
        return frozenset(units)


def _scan(path: Path) -> tuple[dict[str, str], _Units, int]:
    """(identity, units, where the last whole line ends)."""
    units = _Units()
    with path.open("rb") as file:
        header = unseal(file.readline())
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
            entry = unseal(line)
            if entry is None:
                broken = broken or number
            elif broken:  # each line was on the disk before the next began, so it was not torn by a kill
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
    """Where the journal of a table stands while the table is being made."""
    return beside(output, "journal")
