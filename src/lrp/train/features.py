"""What a frozen trunk makes of each photo, computed once and kept on disk.

A photo is known by its content: moved or renamed it is found again, changed it is computed anew. Each view of the
photos has a table: a file of rows that only grows, and an index that names them. A row counts once the index, written
after it, has its line, under checksums of both; so a kill at any moment costs at most the batch it was in.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrp.data.data_set import Sample
from lrp.data.prefetch import read_ahead
from lrp.errors import ImageError, TrainingError
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.photos import Photo, PhotoError, open_photo
from lrp.storage.append import append, seal, unseal
from lrp.storage.atomic import os_errors
from lrp.storage.locks import Lock

VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {"plain": lambda x: x, "mirrored": lambda x: x.flip(-1)}
_FORMAT = 1  # of the tables
_GO_ON = ". What is finished is kept: put that right, and the same command goes on from there"

Shapes = tuple[tuple[int, ...], ...]


class StoredRows:
    """One feature of the photos of a store, mapped from disk: `rows[at]` reads what it is asked for, [n, ...]."""

    def __init__(self, table: Tensor, places: Tensor, columns: slice, shape: tuple[int, ...]) -> None:
        """`table` [rows, width]; `places`: which row is each photo's; `columns`: this feature's, of that shape."""
        self._table, self._places, self._columns, self.shape = table, places, columns, (len(places), *shape)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """`at`: a slice or an index tensor."""
        places = self._places[at]
        if len(places) and bool((places.diff() == 1).all()):  # as a first run leaves them: nothing is copied
            found = self._table[int(places[0]) : int(places[-1]) + 1]
        else:
            found = self._table[places]
        return found[:, self._columns].reshape(len(places), *self.shape[1:])


@dataclass(frozen=True)
class Store:
    """The features of those photos that can be read, in the samples' order.

    Attributes:
        views: view -> its features, one for each of the trunk's outputs; float32.
        kept: the place among the samples of each row.
        broken: (path, reason) of the samples that have no row.
        cached, computed: rows, as photos, that were there and that were not.
    """

    views: Mapping[str, tuple[StoredRows, ...]]
    kept: tuple[int, ...]
    broken: tuple[tuple[str, str], ...]
    cached: int
    computed: int


def features(
    trunk: Callable[[Tensor], tuple[Tensor, ...]],
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    folder: Path | str,
    key: str,
    *,
    views: Sequence[str] = ("plain", "mirrored"),
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    digests: Sequence[str] | None = None,
    read: Callable[[Sample], Photo] = lambda sample: open_photo(sample.file),
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Store:
    """`trunk` of each photo, from the cache in `folder` or computed and put there.

    Batches are cut at the same places of `samples` whatever is cached, and kept whole: a run that was killed and goes
    on gives the same bits as an undisturbed one.

    Args:
        trunk: x [N, 3, h, w] on `device` -> features, each [N, ...]; in eval mode.
        folder: made if it is not there. Any number of keys share it.
        key: whatever else than preprocessing, view, device and photo the features depend on: weights, trunk.
        views: of `VIEWS`.
        workers: threads that decode; None: one per core, eight at most.
        digests: SHA-256 of each sample's file, where that is known; None: the files are read for it.
        read: a sample -> its photo; an ImageError says that there is none.
        advance: called with the number of photos done since the last call, and of all.

    Raises:
        TrainingError: no photo can be read, the trunk gives something else than what the cache holds of it, or the
            cache cannot be read or written.
        BusyError: another run is writing the cache.
    """
    if unknown := [view for view in views if view not in VIEWS] or ([] if views else ["none"]):
        raise TrainingError(f"expected views out of {', '.join(VIEWS)}, got {', '.join(unknown)}.")
    device = torch.device(device)
    workers = workers or min(8, os.cpu_count() or 1)
    identity = json.dumps([_FORMAT, key, preprocessing.to_dict(), device.type], sort_keys=True)
    place = Path(folder, hashlib.sha256(identity.encode()).hexdigest()[:16])
    with os_errors(place, "made", TrainingError):
        place.mkdir(parents=True, exist_ok=True)
    with Lock(place, "choose another cache folder", TrainingError):
        tables = {view: _Table(place / view, identity) for view in views}
        known: list[str | None] = list(digests) if digests is not None else _digests(samples, workers)
        for table in tables.values():
            table.drop_damaged({digest for digest in known if digest})
        reasons: dict[int, str] = {}
        new: set[str] = set()

        def see(index: int) -> tuple[str, Tensor] | str:
            try:
                photo = read(samples[index])
                return photo.digest, preprocessing(photo.pixels)
            except PhotoError as error:
                return error.reason
            except ImageError as error:
                return str(error)

        todo = _missing(known, tables, batch_size)
        advance(len(samples) - sum(map(len, todo.values())), len(samples))
        for _, batch, seen in read_ahead(todo.items(), see, workers):
            fresh: dict[str, Tensor] = {}
            for index, found in zip(batch, seen, strict=True):
                if isinstance(found, str):
                    reasons[index] = found
                    continue
                known[index] = found[0]  # that of the bytes which were decoded
                if any(found[0] not in table for table in tables.values()):
                    fresh[found[0]] = found[1]
            if fresh:
                images = torch.stack(list(fresh.values())).to(device)
                for view, table in tables.items():
                    table.add(list(fresh), _computed(trunk, VIEWS[view](images)))
                new.update(fresh)
            advance(len(batch), len(samples))
        return _store(samples, known, reasons, new, tables)


def _missing(
    digests: Sequence[str | None], tables: Mapping[str, _Table], batch_size: int
) -> dict[int, list[int]]:
    """Batch -> the places of its photos that have to be computed; of copies, the first."""
    todo: dict[int, list[int]] = {}
    claimed: set[str] = set()
    for index, digest in enumerate(digests):
        if digest is not None:
            if digest in claimed or all(digest in table for table in tables.values()):
                continue
            claimed.add(digest)
        todo.setdefault(index // batch_size, []).append(index)
    return todo


def _computed(trunk: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found: Any = trunk(images)
    fits = (
        isinstance(found, tuple)
        and found
        and all(isinstance(f, Tensor) and f.dim() > 1 and f[:1].numel() for f in found)
    )
    if not fits or any(len(f) != len(images) for f in found):
        parts = found if isinstance(found, (tuple, list)) else [found]
        got = [list(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in parts]
        raise TrainingError(
            f"the trunk gives {type(found).__name__} {got} for {len(images)} photos: expected a tuple of features "
            f"[{len(images)}, ...]."
        )
    return [f.detach().to("cpu", torch.float32) for f in found]


def _store(
    samples: Sequence[Sample],
    digests: Sequence[str | None],
    reasons: Mapping[int, str],
    new: set[str],
    tables: Mapping[str, _Table],
) -> Store:
    by_content = {digests[index]: reason for index, reason in reasons.items() if digests[index]}
    kept: list[int] = []
    broken: list[tuple[str, str]] = []
    for index, (sample, digest) in enumerate(zip(samples, digests, strict=True)):
        reason = reasons.get(index) or by_content.get(digest)  # a copy of a broken file is broken
        if reason is None:
            kept.append(index)
        else:
            broken.append((sample.path, reason))
    if not kept:
        first = f"; the first is {broken[0][0]}: {broken[0][1]}" if broken else ""
        raise TrainingError(f"expected photos to compute features of, got {len(broken)} broken files{first}.")
    rows = [str(digests[index]) for index in kept]
    computed = sum(digest in new for digest in rows)
    views = {view: table.rows(rows) for view, table in tables.items()}
    return Store(views, tuple(kept), tuple(broken), len(kept) - computed, computed)


def _digests(samples: Sequence[Sample], workers: int) -> list[str | None]:
    """SHA-256 of each file; None where it cannot be read: opening it as a photo will say why."""

    def look(sample: Sample) -> str | None:
        try:
            if not sample.file.is_file():  # a pipe would be waited for
                return None
            with sample.file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    with ThreadPoolExecutor(workers, "lrp-digest") as pool:
        return list(pool.map(look, samples))


# ---------------------------------------------------------------- on disk


class _Table:
    """Rows of float32 by digest: `NAME.rows`, and `NAME.index` with a line of JSON for each under a checksum.

    What is damaged is as if it had never been there: a cache loses time by that and nothing else.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._rows_path, self._index_path = path.with_suffix(".rows"), path.with_suffix(".index")
        self._identity = identity
        self._shapes: Shapes | None = None
        self._found: dict[str, tuple[int, int]] = {}  # digest -> (row, its checksum)
        self._end = self._count = 0
        with os_errors(path, "read", TrainingError):
            self._rows_path.touch()
            self._index_path.touch()
            self._scan()

    def __contains__(self, digest: str) -> bool:
        return digest in self._found

    @property
    def _width(self) -> int:
        return sum(map(prod, self._shapes or ()))

    def _scan(self) -> None:
        with self._index_path.open("rb") as file:
            header = unseal(file.readline())
            if header is None or header.get("identity") != self._identity:
                self._begin_anew()
                return
            self._shapes = tuple(tuple(shape) for shape in header["shapes"])
            self._end = file.tell()
            there = self._rows_path.stat().st_size // (4 * self._width)
            self._count = there  # no whole row is ever written over: another run may be reading it
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the torn line of a killed run
                self._end += len(line)
                entry = unseal(line)
                if entry is not None and entry["row"] < there:
                    self._found[entry["digest"]] = entry["row"], entry["sum"]

    def _begin_anew(self) -> None:
        """With new files: who has mapped the old ones keeps them."""
        for path in (self._index_path, self._rows_path):
            path.unlink(missing_ok=True)
            path.touch()

    def drop_damaged(self, digests: set[str]) -> None:
        """Forget those rows that are not as they were written."""
        wanted = [(digest, *self._found[digest]) for digest in digests if digest in self._found]
        if not wanted:
            return
        rows = self._mapped().numpy()
        for digest, row, checksum in sorted(wanted, key=lambda entry: entry[1]):
            if zlib.crc32(rows[row]) != checksum:
                del self._found[digest]

    def _mapped(self) -> Tensor:
        """The whole rows that the file has now, [rows, width]."""
        with os_errors(self._rows_path, "read", TrainingError):
            count = self._rows_path.stat().st_size // (4 * self._width)
            size = count * self._width
            flat = torch.from_file(str(self._rows_path), shared=False, size=size, dtype=torch.float32)
        return flat.view(count, self._width)

    def add(self, digests: Sequence[str], parts: Sequence[Tensor]) -> None:
        """Append rows; when this returns they survive a power cut. parts: the features, each [len(digests), ...]."""
        shapes: Shapes = tuple(tuple(part.shape[1:]) for part in parts)
        head = b""
        if self._shapes is None:
            head = seal({"identity": self._identity, "shapes": shapes})
            self._shapes, self._end, self._count = shapes, 0, 0
        elif shapes != self._shapes:
            raise TrainingError(
                f"{self._index_path}: holds features of the shapes {_listed(self._shapes)}, the trunk now gives "
                f"{_listed(shapes)}: it is another trunk under the same key; delete {self._index_path.parent}."
            )
        rows = torch.cat([part.flatten(1) for part in parts], 1).contiguous().numpy()
        entries = [
            (digest, self._count + number, zlib.crc32(row))
            for number, (digest, row) in enumerate(zip(digests, rows, strict=True))
        ]
        lines = [seal({"digest": digest, "row": row, "sum": crc}) for digest, row, crc in entries]
        _append(self._rows_path, self._count * rows.shape[1] * 4, rows.data.cast("B"))
        _append(self._index_path, self._end, head + b"".join(lines))
        self._end += len(head) + sum(map(len, lines))
        self._count += len(rows)
        self._found.update((digest, (row, crc)) for digest, row, crc in entries)

    def rows(self, digests: Sequence[str]) -> tuple[StoredRows, ...]:
        """The features of these photos, mapped: other runs may add to the files meanwhile."""
        table = self._mapped()
        places = torch.tensor([self._found[digest][0] for digest in digests])
        found, begin = [], 0
        for shape in self._shapes or ():
            columns = slice(begin, begin := begin + prod(shape))
            found.append(StoredRows(table, places, columns, shape))
        return tuple(found)


def _append(path: Path, end: int, data: bytes | memoryview) -> None:
    with os_errors(path, "written", TrainingError, _GO_ON), path.open("r+b", buffering=0) as file:
        append(file, end, data)


def _listed(shapes: Shapes) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)
