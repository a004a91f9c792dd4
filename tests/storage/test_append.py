"""append.py: lines that are as they were written, or are not there."""

import os
from pathlib import Path

import pytest

from helpers.disks import small_disk
from lrp.storage.append import append, line_to_append, read_appended_line


def test_what_a_full_disk_refuses_is_taken_back() -> None:
    with small_disk() as disk:
        path = disk / "a"
        path.write_bytes(b"whole\ntorn li")
        with path.open("r+b", buffering=0) as file:
            append(file, 6, b"next\n")
            assert path.read_bytes() == b"whole\nnext\n"
            with pytest.raises(OSError, match="No space left on device"):
                append(file, 11, bytes(100_000))
            assert path.read_bytes() == b"whole\nnext\n"
            append(file, 11, memoryview(b"last\n"))
        assert path.read_bytes() == b"whole\nnext\nlast\n"


def test_it_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    with (tmp_path / "a").open("xb", buffering=0) as file:
        append(file, 0, b"12345")
    assert sizes == [5]


def test_a_line_with_one_bit_turned_is_none() -> None:
    entry = {"name": "caf\udce9 ü", "values": [0.1, None, {"a": True}]}
    line = line_to_append(entry)
    assert read_appended_line(line) == entry and line.endswith(b"}\n") and line.count(b"\n") == 1
    for at in range(len(line)):
        for bit in range(8):
            assert read_appended_line(line[:at] + bytes([line[at] ^ 1 << bit]) + line[at + 1 :]) is None
        assert read_appended_line(line[:at]) is None
