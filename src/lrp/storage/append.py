"""Append-only files: appended data survives a power cut, a failed append is undone; lines have checksums."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from typing import Any


def append(file: FileIO, end: int, data: bytes | memoryview) -> None:
    """Write `data` at offset `end` and flush it to the disk; what the file held from `end` on is removed first.

    Args:
        file: open for writing and unbuffered, so that a process forked later inherits no half-written line.

    Raises:
        OSError: it could not be written. The file then ends at `end`.
    """
    try:
        file.truncate(end)
        file.seek(end)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            file.truncate(end)
        raise


def line_to_append(entry: Mapping[str, Any]) -> bytes:
    """One line of JSON that begins with the checksum of the rest of the line."""
    body = json.dumps(entry)[1:].encode("ascii")
    return b'{"crc": "%08x", %s\n' % (zlib.crc32(body), body)


def read_appended_line(line: bytes) -> dict[str, Any] | None:
    """The entry of a line that `line_to_append` made; None for a damaged one."""
    head, body, end = line[:20], line[20:-1], line[-1:]
    if end != b"\n" or head != b'{"crc": "%08x", ' % zlib.crc32(body):
        return None
    return json.loads(b"{" + body)
