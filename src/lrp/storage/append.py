"""Files that only grow: what was appended survives a power cut, what could not be is taken back; lines under checksums."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from typing import Any


def append(file: FileIO, end: int, data: bytes | memoryview) -> None:
    """Write `data` at `end`, to the disk and not only to its cache; what stood there and after it goes.

    Args:
        file: open for writing and unbuffered, so that a process forked later takes no half-written line with it.

    Raises:
        OSError: it could not be written. The file then ends at `end`.
    """
    try:
        file.truncate(end)
        file.seek(end)
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            file.truncate(end)
        raise


def seal(entry: Mapping[str, Any]) -> bytes:
    """One line of JSON that begins with the checksum of its rest."""
    body = json.dumps(entry)[1:].encode("ascii")
    return b'{"crc": "%08x", %s\n' % (zlib.crc32(body), body)


def unseal(line: bytes) -> dict[str, Any] | None:
    """The entry; None for a line that is not as it was written."""
    head, body, end = line[:20], line[20:-1], line[-1:]
    if end != b"\n" or head != b'{"crc": "%08x", ' % zlib.crc32(body):
        return None
    return json.loads(b"{" + body)
