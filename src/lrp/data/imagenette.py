"""Imagenette and Imagewoof: downloaded, verified by what is published about them, unpacked completely or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lrp.data.data_set import DataSet
from lrp.errors import DataError, error_reason
from lrp.storage.archives import Limits, UnpackError, unpack
from lrp.storage.atomic import remove_drafts, write_whole
from lrp.storage.download import MEGABYTE, DownloadError, download_begun, fetch
from lrp.storage.locks import Lock

PUBLISHER = "https://s3.amazonaws.com/fast-ai-imageclas/"

Progress = Callable[[str, int, int | None], None]
"""Called with the step, "downloading" or "unpacking", and the archive's bytes that are done and in total."""


@dataclass(frozen=True)
class Archive:
    """A published archive, FOLDER/train/<class>/<image> and FOLDER/val/<class>/<image>, and the facts that verify it."""

    title: str
    file: str
    """Its name at the publisher's; the folder in it has the same, without ".tgz"."""
    size: int
    """Its approximate size in bytes. A file more than a fifth larger is refused."""
    train: int
    val: int
    """How many images there are."""
    classes: tuple[str, ...]
    """The names of the class folders."""
    md5: str | None = None
    """None: not known for certain; then only its structure is verified."""
    largest: int = 64 * MEGABYTE
    """The limit for the bytes of one file in it."""
    publisher: str = PUBLISHER

    @property
    def folder(self) -> str:
        return self.file.removesuffix(".tgz")

    @property
    def limit(self) -> int:
        return self.size * 6 // 5

    @property
    def limits(self) -> Limits:
        """Photos hardly compress, hence 2 x size. macOS adds a hidden file for each file, hence 2 x count."""
        return Limits(
            count=2 * (self.train + self.val + len(self.classes)) + 1000,
            total=2 * self.size,
            largest=self.largest,
        )


_IMAGENETTE = (
    "n01440764",  # tench
    "n02102040",  # English springer
    "n02979186",  # cassette player
    "n03000684",  # chain saw
    "n03028079",  # church
    "n03394916",  # French horn
    "n03417042",  # garbage truck
    "n03425413",  # gas pump
    "n03445777",  # golf ball
    "n03888257",  # parachute
)
_IMAGEWOOF = (
    "n02086240",  # Shih-Tzu
    "n02087394",  # Rhodesian ridgeback
    "n02088364",  # beagle
    "n02089973",  # English foxhound
    "n02093754",  # Border terrier
    "n02096294",  # Australian terrier
    "n02099601",  # golden retriever
    "n02105641",  # Old English sheepdog
    "n02111889",  # Samoyed
    "n02115641",  # dingo
)
_SUFFIXES = {"full": "", "320px": "-320", "160px": "-160"}
_MD5 = {
    "full": "fe2fc210e6bb7c5664d602c3cd71e612",
    "320px": "3df6f0d01a2c9592104656642f5e78a3",
    "160px": "e793b78cc4c9e9a4ccc0c1155377a412",
}
_SIZES = {
    "imagenette": {"full": 1_557_000_000, "320px": 342_000_000, "160px": 99_000_000},
    "imagewoof": {"full": 1_344_000_000, "320px": 329_000_000, "160px": 93_000_000},
}

ARCHIVES = {
    (name, size): Archive(
        f"{name} ({size})", f"{name}2{suffix}.tgz", _SIZES[name][size], train, val, classes, md5
    )
    for name, train, val, classes, sums in (
        ("imagenette", 9469, 3925, _IMAGENETTE, _MD5),
        # The published checksums disagree: the archives were replaced in 2021, when noisy labels were added.
        ("imagewoof", 9025, 3929, _IMAGEWOOF, {}),
    )
    for size, suffix in _SUFFIXES.items()
    for md5 in (sums.get(size),)
}
"""By name and size, as `lrp data` takes them."""


@dataclass(frozen=True)
class Obtained:
    folder: Path
    fresh: bool
    """False: the complete folder existed already."""
    train: int
    val: int
    sha256: str
    """Of the archive that was unpacked; "" if that is not recorded."""


def download_data(
    name: str,
    size: str = "320px",
    root: str | Path = "data",
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """The folder of a data set, with train/ and val/ in it, downloaded, verified and unpacked if it is missing.

    Args:
        name: "imagenette" or "imagewoof".
        size: the photos' shorter side: "full" (1.5 GB), "320px" (0.3 GB) or "160px" (0.1 GB).
        root: folder for the data set's folder and its archive.
        say: called with one sentence for each step, for example `print`.

    Raises:
        DataError: there is no such data set; or what `obtain_imagenette` raises.
    """
    if (name, size) not in ARCHIVES:
        known = ", ".join(f"{n} {s}" for n, s in ARCHIVES)
        raise DataError(f"no data set {name!r} of size {size!r}: expected one of {known}.")
    return obtain_imagenette(ARCHIVES[name, size], Path(root), say=say).folder


def obtain_imagenette(
    archive: Archive,
    root: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda step, done, total: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Obtained:
    """The data set in `root`, downloaded and unpacked if it is missing.

    The archive is kept next to the folder, and used if it was put there by hand. A JSON file next to it holds the
    archive's checksums. The folder gets its name only when it is complete. What an interrupted run has unpacked is
    deleted, by that run or the next one; its download is resumed.

    Args:
        overwrite: unpack again even if the folder exists, and replace it.
        say: called with one sentence for each step.

    Raises:
        DataError: the archive cannot be downloaded, or is not the published one; the disk has too little space; or
            the folder exists but is incomplete.
        BusyError: another run is writing it.
    """
    target = root / archive.folder
    if os.path.lexists(target) and not overwrite:
        if lacking := _lacking(archive, target):
            raise DataError(
                f"{archive.title}: {target} is there but not complete: {lacking}. "
                "Move it away, or have it unpacked anew with --overwrite."
            )
        return Obtained(target, False, archive.train, archive.val, _recorded(root, archive).get("sha256", ""))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with Lock(target, "choose another --root", DataError), _work_folder(root, archive) as work:
            packed, sums = _archive(archive, root, progress, say)
            fresh = work / "new"
            fresh.mkdir()
            _unpack(archive, packed, fresh, progress)
            if lacking := _lacking(archive, fresh / archive.folder):
                raise DataError(
                    f"{archive.title}: {packed} does not hold the data set: {lacking}. Delete it and try again."
                )
            _record(root, archive, sums, say)
            if hasattr(os, "sync"):
                os.sync()  # after a power cut, the name must not exist without the files below it
            if os.path.lexists(target):
                os.rename(target, work / "old")
            os.rename(fresh / archive.folder, target)
    except OSError as error:
        where = error.filename or root
        raise DataError(
            f"{archive.title}: {where} cannot be read or written: {error_reason(error)}."
        ) from error
    return Obtained(target, True, archive.train, archive.val, sums["sha256"])


def _unpack(archive: Archive, packed: Path, into: Path, progress: Progress) -> None:
    size = packed.stat().st_size
    try:
        unpack(packed, into, archive.folder, archive.limits, lambda done: progress("unpacking", done, size))
    except UnpackError as error:
        raise DataError(
            f"{archive.title}: {packed} was not unpacked, nothing of it was kept: {error}. Delete it and try again."
        ) from error


def _lacking(archive: Archive, folder: Path) -> str:
    """What is missing or wrong in a folder, as a clause; "" if it is the complete data set."""
    faults = []
    for split, expected in (("train", archive.train), ("val", archive.val)):
        try:
            data = DataSet.open(folder / split)
        except DataError:
            faults.append(f"{split}/ has no class folders" if (folder / split).is_dir() else f"no {split}/")
            continue
        if set(data.categories) != set(archive.classes):
            missing = sorted(set(archive.classes) - set(data.categories))
            extra = sorted(set(data.categories) - set(archive.classes))
            lists = ((f"no {', '.join(missing)}", missing), (f"{', '.join(extra)} besides", extra))
            faults.append(f"{split}/ has " + " and ".join(text for text, names in lists if names))
        elif (found := sum(1 for _ in data)) != expected:
            faults.append(f"{split}/ has {found:,} files instead of {expected:,}")
    return ", ".join(faults)


# --- the archive --------------------------------------------------------------------------------------------


def _archive(
    archive: Archive, root: Path, progress: Progress, say: Callable[[str], None]
) -> tuple[Path, dict[str, str]]:
    """The archive's file, downloaded if it is missing, and its checksums."""
    path, url = root / archive.file, archive.publisher + archive.file
    if path.exists():
        _expect_disk_space(archive, root, 0)
        say(f"{archive.title}: from {path}, which is there already")
        sums = _sums(path)
        if fault := _fault(archive, path, sums):
            raise DataError(f"{archive.title}: {path} {fault}. Delete it and try again.")
        return path, sums
    _expect_disk_space(archive, root, max(archive.size - download_begun(path), 0))
    size = f"about {archive.size / MEGABYTE:.0f} MB"
    say(f"{archive.title}: {size} from {url} to {root}")
    sums = {}

    def proof(part: Path) -> None:
        sums.update(_sums(part))
        if fault := _fault(archive, part, sums):
            raise DownloadError(f"what came {fault}, and was deleted")

    try:
        fetch(
            url,
            path,
            proof,
            lambda done, total: progress("downloading", done, total),
            decisive=archive.md5 is not None,
            limit=archive.limit,
        )
    except DownloadError as error:
        raise DataError(
            f"{archive.title}: {archive.file} ({size}) could not be fetched from {url} ({error}); try again, or "
            f"download that file elsewhere, put it at {path} and run the same command."
        ) from error
    return path, sums


def _fault(archive: Archive, path: Path, sums: dict[str, str]) -> str:
    """Why a file is not the published one, as far as is known before it is unpacked; "" if it may be."""
    with open(path, "rb") as file:
        head = file.read(12)
    if not head.startswith(b"\x1f\x8b"):
        return f"is no archive: it begins with {head!r}"
    if archive.md5 not in (None, sums["md5"]):
        return f"is not the published file: its MD5 is {sums['md5']}, not {archive.md5}"
    if (size := path.stat().st_size) > archive.limit:
        return f"has {size / MEGABYTE:.0f} MB, at most {archive.limit / MEGABYTE:.0f} MB were expected"
    return ""


def _sums(path: Path) -> dict[str, str]:
    digests = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with open(path, "rb") as file:
        while block := file.read(MEGABYTE):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _expect_disk_space(archive: Archive, root: Path, missing: int) -> None:
    """Raise if the disk has too little space, before a long download begins. `missing`: bytes to download."""
    needed, free = missing + archive.size * 11 // 10, shutil.disk_usage(root).free
    if free < needed:
        raise DataError(
            f"{archive.title} needs about {needed / MEGABYTE:.0f} MB in {root}, {free / MEGABYTE:.0f} MB are free: "
            "free some, choose a smaller --size, or give a --root on another disk."
        )


def _record(root: Path, archive: Archive, sums: dict[str, str], say: Callable[[str], None]) -> None:
    """Record the archive's checksums: for one without a published checksum, a change is at least noticed."""
    before = _recorded(root, archive).get("sha256", sums["sha256"])
    if before != sums["sha256"]:
        say(
            f"{archive.title}: this archive is not the one unpacked here before: "
            f"its SHA-256 is {sums['sha256']}, it was {before}."
        )
    content = {
        "archive": archive.file,
        "bytes": (root / archive.file).stat().st_size,
        **sums,
        "train": archive.train,
        "val": archive.val,
    }
    write_whole(_record_of(root, archive), [json.dumps(content, indent=2) + "\n"])


def _record_of(root: Path, archive: Archive) -> Path:
    return root / f"{archive.folder}.json"


def _recorded(root: Path, archive: Archive) -> dict[str, str]:
    try:
        content = json.loads(_record_of(root, archive).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _work_folder(root: Path, archive: Archive) -> Iterator[Path]:
    """A hidden folder next to the data set, empty at first and deleted at the end; only the lock's holder may use it."""
    work = root / f".{archive.folder}.unpacking"
    work.mkdir(exist_ok=True)
    remove_drafts(_record_of(root, archive))
    try:
        _restore(work / "old", root / archive.folder)
        for left in list(work.iterdir()):
            _delete(left)
        yield work
    finally:
        with suppress(OSError):
            _restore(work / "old", root / archive.folder)
            _delete(work)


def _restore(old: Path, target: Path) -> None:
    """Restore the old folder if a run ended between the two renames that replace it by the new one."""
    if os.path.lexists(old) and not os.path.lexists(target):
        os.rename(old, target)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
