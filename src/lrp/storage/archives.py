"""A tar archive from a stranger, unpacked: regular files and folders only, nowhere but where they belong, bounded.

tarfile's `data_filter` judges each member too, but cannot be the only judge: it follows links that stay inside, makes
absolute paths relative instead of refusing them, knows nothing of names that come twice (or differ in case alone), of
control characters or of sizes, and is missing before Python 3.11.4.
"""

import gzip
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from lrp.errors import LrpError
from lrp.storage.download import MEGABYTE, reason

SLACK = MEGABYTE  # headers and padding between two members; some hundred bytes are usual


class UnpackError(LrpError):
    """Why an archive was not unpacked, as a clause: the caller says which it was, and what to do."""


@dataclass(frozen=True)
class Limits:
    count: int
    """Files and folders."""
    total: int
    """Bytes of all files together, unpacked."""
    largest: int
    """Bytes of one file."""


def unpack(packed: Path, into: Path, folder: str, limits: Limits, progress: Callable[[int], None]) -> None:
    """Unpack a .tar.gz, all of which has to lie in one folder, and write that folder into another.

    Hidden files, such as file managers leave behind, are left out. Owners, times and permissions are not restored.
    What has been written when an error is raised is left: `into` should be the caller's own, and empty.

    Args:
        progress: is told how many bytes of `packed` are done.

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
            while bounded.read(MEGABYTE):  # gzip's own checksum stands at the end
                pass
    except UnpackError:
        raise
    except OSError as error:
        if not isinstance(error, gzip.BadGzipFile):
            raise
        raise UnpackError(f"it is damaged: {reason(error)}") from error
    except Exception as error:  # tarfile and zlib raise many kinds, depending on where the damage is
        raise UnpackError(f"it is damaged: {reason(error)}") from error


class _Bounded:
    """A stream that gives no more than was allowed since the last time, whatever is asked of it.

    A header may claim any size for itself, and tarfile would read that into memory.
    """

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.stream, self.left = stream, SLACK

    def allow(self, count: int) -> None:
        self.left = count + SLACK

    def read(self, count: int) -> bytes:
        block = self.stream.read(min(count, self.left + 1))
        self.left -= len(block)
        if self.left < 0:
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
    """The members, each judged before anything of it is read; the hidden ones, judged too, are left out."""
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
            continue  # what file managers leave behind, and "./" itself
        if parts[0] != folder:
            raise UnpackError(f"{name!r} lies outside {folder}/")
        yield member


def _parts(name: str) -> list[str]:
    """A member's path in its parts, if it leads nowhere but below the folder it is unpacked to."""
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
    """Write one member: newly made, never through or over what is there."""
    # A second line, which nothing should reach.
    if hasattr(tarfile, "data_filter"):
        try:
            tarfile.data_filter(member, str(into))
        except tarfile.FilterError as error:
            raise UnpackError(str(error)) from error
    path = into.joinpath(*_parts(member.name))
    try:
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)  # it may be there for what lies in it
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        target = open(path, "xb")  # noqa: SIM115
    except (FileExistsError, NotADirectoryError) as error:
        raise UnpackError(f"{member.name!r} is there twice, as a file and as a folder") from error
    content = cast(IO[bytes], tar.extractfile(member))  # it is a regular file
    with target:
        shutil.copyfileobj(content, target, MEGABYTE)  # as much as announced: tarfile notices if less comes
