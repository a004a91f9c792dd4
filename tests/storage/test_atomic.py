"""atomic.py: whole or not at all, whoever writes and whatever stops it."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.disks import small_disk
from lrp.errors import LrpError, ReportError
from lrp.pictures.photos import find_photos
from lrp.storage.atomic import move_into_place, remove_drafts, replacing, replacing_all, write_whole

SOURCE = Path(__file__).parents[2] / "src/lrp"


def through_a_draft(path: Path, pieces: Iterator[str]) -> None:
    with replacing(path, ReportError) as draft, draft.open("w") as file:
        for piece in pieces:
            file.write(piece)


def as_text(path: Path, pieces: Iterator[str]) -> None:
    write_whole(path, pieces, ReportError)


WRITERS = pytest.mark.parametrize("write", [through_a_draft, as_text])
Write = Callable[[Path, Iterator[str]], None]


def stopped(error: BaseException) -> Iterator[str]:
    yield "new" * 10_000
    raise error


@WRITERS
@pytest.mark.parametrize("older", [True, False])
def test_a_new_file_takes_the_place_of_an_older_one(tmp_path: Path, write: Write, older: bool) -> None:
    path = tmp_path / ("n" * 251 + ".txt")  # as long as names can be
    if older:
        path.write_text("old")
    umask = os.umask(0o022)
    try:
        write(path, iter(["ne", "w\n"]))
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"new\n" and os.listdir(tmp_path) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@WRITERS
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("bug"), LrpError("a row is wrong")])
def test_an_error_in_the_middle_is_passed_on_and_leaves_the_older_file(
    tmp_path: Path, write: Write, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught:
        write(path, stopped(error))
    assert caught.value is error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_whose_os_error_it_is(tmp_path: Path) -> None:
    """In a block of `replacing` the file's; of `write_whole` only what the writing itself meets."""
    other = OSError(errno.EIO, "Input/output error")
    with pytest.raises(ReportError) as caught:
        through_a_draft(tmp_path / "a.txt", stopped(other))
    assert str(caught.value) == f"{tmp_path}/a.txt: cannot be written: Input/output error"
    with pytest.raises(OSError) as passed:
        as_text(tmp_path / "a.txt", stopped(other))
    assert passed.value is other
    with pytest.raises(OSError) as passed, replacing(tmp_path / "a.txt"):
        raise other
    assert passed.value is other and os.listdir(tmp_path) == []


@WRITERS
def test_a_full_disk(write: Write) -> None:
    with small_disk() as disk:
        path = disk / "a.txt"
        path.write_text("old")
        with pytest.raises(ReportError) as caught:
            write(path, iter(["x" * 1000] * 100))
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
        assert path.read_text() == "old" and os.listdir(disk) == ["a.txt"]
        write(path, iter(["x" * 1000] * 40))
        assert path.stat().st_size == 40_000


@WRITERS
@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_system_that_refuses(
    tmp_path: Path, write: Write, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "a.txt"
    path.write_text("old")
    with monkeypatch.context() as patched, pytest.raises(ReportError) as caught:
        patched.setattr(call, refuse)
        write(path, iter(["new"]))
    assert str(caught.value) == f"{path}: cannot be written: Input/output error"
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_place_that_cannot_be_is_refused_before_the_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, parents, reason in (
        ("none/a", False, "No such file or directory"),
        ("file/a", False, "Not a directory"),
        ("file/a", True, "File exists"),
    ):
        with pytest.raises(ReportError) as caught, replacing(tmp_path / place, ReportError, parents=parents):
            pytest.fail("worked for nothing")
        assert str(caught.value) == f"{tmp_path}/{place}: cannot be written: {reason}"
    with replacing(tmp_path / "new/er/a", parents=True) as draft:
        draft.write_text("new")
    write_whole(tmp_path / "new/est/a", ["new"], parents=True)
    assert [(tmp_path / name).read_text() for name in ("new/er/a", "new/est/a")] == ["new", "new"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that belong together, all contents before the first name."""
    order: list[str] = []
    fsync, rename = os.fsync, os.replace

    def name(path: str) -> str:
        return re.sub(r"\.lrp-.*\.part", "draft", path.replace(str(tmp_path), ""))

    monkeypatch.setattr(
        os, "fsync", lambda fd: (order.append(name(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"-> {b.name}"), rename(a, b)))
    with replacing_all([tmp_path / "a", tmp_path / "b"]) as drafts:
        for draft in drafts:
            draft.write_text("new")
    assert order == ["/draft", "/draft", "-> a", "", "-> b", ""]
    order.clear()
    (tmp_path / "b").rename(tmp_path / "c")
    move_into_place(tmp_path / "c", tmp_path / "d")
    assert order == ["/c", "-> d", ""]


def test_files_that_belong_together_appear_together_or_not_at_all() -> None:
    with small_disk() as disk:
        for name in "ab":
            (disk / name).write_text("old")
        with (
            pytest.raises(ReportError) as caught,
            replacing_all([disk / "a", disk / "b"], ReportError) as drafts,
        ):
            drafts[0].write_bytes(bytes(30_000))
            drafts[1].write_bytes(bytes(60_000))
        assert str(caught.value) == f"{disk}/a: cannot be written: No space left on device"
        assert sorted(os.listdir(disk)) == ["a", "b"]
        assert [(disk / name).read_text() for name in "ab"] == ["old", "old"]


KILLED = """if True:
    import os, signal, sys
    from pathlib import Path
    from lrp.storage import atomic
    def die(*_): os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "between writing and renaming":
        os.replace = die
    def pieces():
        yield "x" * 100_000
        if sys.argv[2] == "while writing":
            die()
    atomic.write_whole(Path(sys.argv[1]), pieces())"""


@pytest.mark.parametrize("moment", ["while writing", "between writing and renaming"])
def test_killed(tmp_path: Path, moment: str) -> None:
    """The older file is untouched, and what is left is found neither as a photo nor by its name."""
    path = tmp_path / "a.png"
    path.write_text("old")
    child = subprocess.run([sys.executable, "-c", KILLED, path, moment])
    assert child.returncode == -signal.SIGKILL and path.read_text() == "old"
    (left,) = set(os.listdir(tmp_path)) - {"a.png"}
    assert left.startswith(".lrp-") and left.endswith(".part")
    assert [file.path.name for file in find_photos([tmp_path])] == ["a.png"]
    remove_drafts(tmp_path / "another.png")
    assert left in os.listdir(tmp_path)
    remove_drafts(tmp_path / "another.png", path)
    assert os.listdir(tmp_path) == ["a.png"]


def test_two_processes_that_write_one_file(tmp_path: Path) -> None:
    """At any time it is one of theirs, whole."""
    code = """if True:
        import sys
        from pathlib import Path
        from lrp.storage.atomic import write_whole
        for _ in range(200):
            write_whole(Path(sys.argv[1]), [sys.argv[2]] * 1000)"""
    path = tmp_path / "a"
    runs = [subprocess.Popen([sys.executable, "-c", code, path, letter]) for letter in "ab"]
    seen = set()
    while any(run.poll() is None for run in runs):
        if path.exists():
            seen.add(path.read_text())
    assert [run.returncode for run in runs] == [0, 0] and os.listdir(tmp_path) == ["a"]
    assert seen and seen <= {"a" * 1000, "b" * 1000}


def test_nobody_else_renames_or_synchronises() -> None:
    places = {
        path.relative_to(SOURCE).parts[0]
        for path in SOURCE.rglob("*.py")
        if re.search(
            r"os\.(replace|fsync)|\.part[\"\']|mkstemp|NamedTemporary", path.read_text(encoding="utf-8")
        )
    }
    assert places == {"storage"}
