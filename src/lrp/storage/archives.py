"""Unpacks an untrusted tar archive: regular files and folders only, only below one folder, within size limits.

tarfile's `data_filter` checks each member too, but is not sufficient: it follows links that stay inside, makes absolute
paths relative instead of refusing them, does not check for names that occur twice (or differ in case only), control
characters or sizes, and is missing before Python 3.11.4.
"""

import gzip
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from lrp.errors import LrpError, error_reason
from lrp.storage.download import MEGABYTE

SLACK = MEGABYTE  # headers and padding between two members; some hundred bytes are usual


class UnpackError(LrpError):
    """Why an archive was not unpacked, as a clause: the caller adds which one, and what to do."""


@dataclass(frozen=True)
class Limits:
    count: int
    """Files and folders."""
    total: int
    """Bytes of all files together, unpacked."""
    largest: int
    """Bytes of one file."""


def unpack(packed: Path, into: Path, folder: str, limits: Limits, progress: Callable[[int], None]) -> None:
    """Unpack a .tar.gz, all of which must be in one folder, and write that folder into another.

    Hidden files, such as those of file managers, are skipped. Owners, times and permissions are not restored.
    If an error is raised, files that were written are kept: `into` should be a new, empty folder.

    Args:
        progress: called with the number of bytes of `packed` that are done.

    Raises:
        UnpackError: the archive is damaged, or holds anything but regular files and folders, an absolute path, one
            with "..", one that is too long, a name twice, or more than the limits allow, whatever its headers say.
        OSError: a file cannot be read or written.
    """
    try:
        with open(packed, "rb") as file, gzip.GzipFile(fileobj=file) as unzipped:
            bounded = _Bounded(unzipped)
            with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
                for member in _members(tar, folder, limits, bounded):
                    _write(member, tar, into)
                    progress(file.tell())
            while bounded.read(MEGABYTE):  # gzip's checksum is at the end, and verified there
                pass
    except UnpackError:
        raise
    except OSError as error:
        if not isinstance(error, gzip.BadGzipFile):
            raise
        raise UnpackError(f"it is damaged: {error_reason(error)}") from error
    except Exception as error:  # tarfile and zlib raise many kinds, depending on where the damage is
        raise UnpackError(f"it is damaged: {error_reason(error)}") from error


class _Bounded:
    """A stream that raises if more is read than the last `allow` permits.

    A header may claim any size for itself, and tarfile would read that much into memory.
    """

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.stream, self.remaining = stream, SLACK

    def allow(self, count: int) -> None:
        self.remaining = count + SLACK

    def read(self, count: int) -> bytes:
        block = self.stream.read(min(count, self.remaining + 1))
        self.remaining -= len(block)
        if self.remaining < 0:
            raise UnpackError(f"more than {SLACK / MEGABYTE:g} MB stand where its next member should begin")
        return block


_KINDS = {
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def _members(
    tar: tarfile.TarFile, folder: str, limits: Limits, bounded: _Bounded
) -> Iterator[tarfile.TarInfo]:
    """The members, each checked before its content is read; hidden ones are checked too, but skipped."""
    count = total = 0
    seen: set[str] = set()
    while (member := tar.next()) is not None:
        name, count, total = member.name, count + 1, total + member.size
        parts = _parts(name)
        key = unicodedata.normalize("NFC", "/".join(parts)).casefold()  # as some file systems compare
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
            kind = _KINDS.get(member.type, "of an unusual kind")
            raise UnpackError(f"{name!r} is {kind}, only regular files and folders were expected")
        if count > limits.count:
            raise UnpackError(f"it has more than {limits.count} members")
        if member.size < 0:
            raise UnpackError(f"{name!r} claims a negative size")
        if member.size > limits.largest:
            raise UnpackError(
                f"{name!r} has {member.size / MEGABYTE:.1f} MB, at most {limits.largest / MEGABYTE:.1f} MB were expected"
            )
        if total > limits.total:
            raise UnpackError(f"it unpacks to more than {limits.total / MEGABYTE:.1f} MB")
        if key in seen:
            raise UnpackError(f"{name!r} is there twice")
        seen.add(key)
        bounded.allow(member.size)
        if any(part.startswith(".") for part in parts) or not parts:
            continue  # hidden files, and "./" itself
        if parts[0] != folder:
            raise UnpackError(f"{name!r} lies outside {folder}/")
        yield member


def _parts(name: str) -> list[str]:
    """The parts of a member's path; raises unless it stays below the folder it is unpacked to."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not name.isprintable() or "\\" in name:
        raise UnpackError(f"{name!r} is no plain name")
    if name.startswith("/"):
        raise UnpackError(f"{name!r} is an absolute path")
    if ".." in parts:
        raise UnpackError(f"{name!r} leads out of its folder")
    if len(name.encode()) > 500 or any(len(part.encode()) > 255 for part in parts):
        raise UnpackError(f"{name[:40]!r}... is too long a path")
    return parts


def _write(member: tarfile.TarInfo, tar: tarfile.TarFile, into: Path) -> None:
    """Create one member; never follows a link, never overwrites a file."""
    # A second check, which should never fail.
    if hasattr(tarfile, "data_filter"):
        try:
            tarfile.data_filter(member, str(into))
        except tarfile.FilterError as error:
            raise UnpackError(str(error)) from error
    path = into.joinpath(*_parts(member.name))
    try:
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)  # it may exist already, made for a file in it
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        target = open(path, "xb")  # noqa: SIM115
    except (FileExistsError, NotADirectoryError) as error:
        raise UnpackError(f"{member.name!r} is there twice, as a file and as a folder") from error
    content = cast(IO[bytes], tar.extractfile(member))  # it is a regular file
    with target:
        shutil.copyfileobj(
            content, target, MEGABYTE
        )  # as many bytes as the header states: tarfile raises if there are fewer
