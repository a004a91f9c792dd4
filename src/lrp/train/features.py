"""The features that a frozen trunk computes for each photo, cached on disk.

The key of a photo is a hash of its content: a moved or renamed photo is found again, a changed one is computed again.
Each view of the photos has a table: an append-only file of rows, and an index of them. A row is valid when the index,
which is written after it, has its line; both have checksums. So a kill loses at most the batch in progress.
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
from lrp.errors import ImageError, TrainingError, os_errors
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.photos import Photo, PhotoError, open_photo
from lrp.storage.append import append, line_to_append, read_appended_line
from lrp.storage.locks import Lock

VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {"plain": lambda x: x, "mirrored": lambda x: x.flip(-1)}
_FORMAT = 1  # version of the tables' format
_GO_ON = ". What is finished is kept: put that right, and the same command goes on from there"

Shapes = tuple[tuple[int, ...], ...]


class StoredRows:
    """One feature of the photos of a store, memory-mapped: `rows[at]` reads only the requested rows, [n, ...]."""

    def __init__(self, table: Tensor, places: Tensor, columns: slice, shape: tuple[int, ...]) -> None:
        """`table` [rows, width]; `places`: row of each photo; `columns`: of this feature, which has shape `shape`."""
        self._table, self._places, self._columns, self.shape = table, places, columns, (len(places), *shape)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """`at`: a slice or an index tensor."""
        places = self._places[at]
        if len(places) and bool(
            (places.diff() == 1).all()
        ):  # consecutive, as after a first run: a view, no copy
            found = self._table[int(places[0]) : int(places[-1]) + 1]
        else:
            found = self._table[places]
        return found[:, self._columns].reshape(len(places), *self.shape[1:])


@dataclass(frozen=True)
class Store:
    """The features of the readable photos, in the samples' order.

    Attributes:
        views: view -> its features, one for each output of the trunk; float32.
        kept: the index among the samples of each row.
        broken: (path, reason) of the samples that have no row.
        cached, computed: numbers of photos whose features were cached, and were computed now.
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
    """The outputs of `trunk` for each photo, from the cache in `folder`, or computed and stored there.

    The batches of `samples` have the same boundaries whatever is cached, and each is stored as a whole: a resumed run
    gives the same result bit for bit as an uninterrupted one.

    Args:
        trunk: x [N, 3, h, w] on `device` -> features, each [N, ...]; in eval mode.
        folder: created if it does not exist. It can hold the features of any number of keys.
        key: everything that the features depend on besides preprocessing, view, device and photo: weights, trunk.
        views: names in `VIEWS`.
        workers: decoding threads; None: one per core, at most eight.
        digests: SHA-256 of each sample's file, if known; None: computed from the files.
        read: a sample -> its photo; raises ImageError if it cannot be read.
        advance: called with the number of photos done since the last call, and the number of all photos.

    Raises:
        TrainingError: no photo can be read, the trunk's outputs have other shapes than those in the cache, or the
            cache cannot be read or written.
        BusyError: another run is writing the cache.
    """
    if unknown := [view for view in views if view not in VIEWS] or ([] if views else ["none"]):
        raise TrainingError(f"expected views out of {', '.join(VIEWS)}, got {', '.join(unknown)}.")
    device = torch.device(device)
    workers = workers or min(8, os.cpu_count() or 1)
    identity = json.dumps([_FORMAT, key, preprocessing.to_dict(), device.type], sort_keys=True)
    table_folder = Path(folder, hashlib.sha256(identity.encode()).hexdigest()[:16])
    with os_errors(table_folder, "made", TrainingError):
        table_folder.mkdir(parents=True, exist_ok=True)
    with Lock(table_folder, "choose another cache folder", TrainingError):
        tables = {view: _Table(table_folder / view, identity) for view in views}
        known: list[str | None] = list(digests) if digests is not None else _digests(samples, workers)
        for table in tables.values():
            table.drop_damaged({digest for digest in known if digest})
        reasons: dict[int, str] = {}
        new: set[str] = set()

        def load(index: int) -> tuple[str, Tensor] | str:
            try:
                photo = read(samples[index])
                return photo.digest, preprocessing(photo.pixels)
            except PhotoError as error:
                return error.reason
            except ImageError as error:
                return str(error)

        todo = _missing(known, tables, batch_size)
        advance(len(samples) - sum(map(len, todo.values())), len(samples))
        for _, batch, seen in read_ahead(todo.items(), load, workers):
            fresh: dict[str, Tensor] = {}
            for index, found in zip(batch, seen, strict=True):
                if isinstance(found, str):
                    reasons[index] = found
                    continue
                known[index] = found[0]  # the digest of the decoded bytes
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
    """Batch -> the indices of its photos that must be computed; of identical photos only the first."""
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
        reason = reasons.get(index) or by_content.get(digest)  # copies of a broken file are broken too
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
    """SHA-256 of each file; None if it cannot be read: opening it as a photo will raise with the reason."""

    def digest_of(sample: Sample) -> str | None:
        try:
            if not sample.file.is_file():  # reading a pipe would block
                return None
            with sample.file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    with ThreadPoolExecutor(workers, "lrp-digest") as pool:
        return list(pool.map(digest_of, samples))


# ---------------------------------------------------------------- on disk


class _Table:
    """Rows of float32 by digest: `NAME.rows`, and `NAME.index` with a JSON line and a checksum for each row.

    Damaged rows are treated as missing: they are only computed again.
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
            header = read_appended_line(file.readline())
            if header is None or header.get("identity") != self._identity:
                self._begin_anew()
                return
            self._shapes = tuple(tuple(shape) for shape in header["shapes"])
            self._end = file.tell()
            complete = self._rows_path.stat().st_size // (4 * self._width)
            self._count = complete  # complete rows are never overwritten: another run may be reading them
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the incomplete last line of a killed run
                self._end += len(line)
                entry = read_appended_line(line)
                if entry is not None and entry["row"] < complete:
                    self._found[entry["digest"]] = entry["row"], entry["sum"]

    def _begin_anew(self) -> None:
        """Start with new files. A run that has mapped the old files can still read them."""
        for path in (self._index_path, self._rows_path):
            path.unlink(missing_ok=True)
            path.touch()

    def drop_damaged(self, digests: set[str]) -> None:
        """Remove the rows among `digests` whose checksum is wrong, so that they are computed again."""
        wanted = [(digest, *self._found[digest]) for digest in digests if digest in self._found]
        if not wanted:
            return
        rows = self._mapped().numpy()
        for digest, row, checksum in sorted(wanted, key=lambda entry: entry[1]):
            if zlib.crc32(rows[row]) != checksum:
                del self._found[digest]

    def _mapped(self) -> Tensor:
        """The complete rows that the file has now, memory-mapped, [rows, width]."""
        with os_errors(self._rows_path, "read", TrainingError):
            count = self._rows_path.stat().st_size // (4 * self._width)
            size = count * self._width
            flat = torch.from_file(str(self._rows_path), shared=False, size=size, dtype=torch.float32)
        return flat.view(count, self._width)

    def add(self, digests: Sequence[str], parts: Sequence[Tensor]) -> None:
        """Append rows; after it returns they survive a power cut. parts: the features, each [len(digests), ...]."""
        shapes: Shapes = tuple(tuple(part.shape[1:]) for part in parts)
        head = b""
        if self._shapes is None:
            head = line_to_append({"identity": self._identity, "shapes": shapes})
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
        lines = [line_to_append({"digest": digest, "row": row, "sum": crc}) for digest, row, crc in entries]
        _append(self._rows_path, self._count * rows.shape[1] * 4, rows.data.cast("B"))
        _append(self._index_path, self._end, head + b"".join(lines))
        self._end += len(head) + sum(map(len, lines))
        self._count += len(rows)
        self._found.update((digest, (row, crc)) for digest, row, crc in entries)

    def rows(self, digests: Sequence[str]) -> tuple[StoredRows, ...]:
        """The features of these photos, memory-mapped: other runs may append to the files meanwhile."""
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
