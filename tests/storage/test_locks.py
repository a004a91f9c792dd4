"""locks.py: one at a time, in this process or another, however each of them ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.disks import small_disk
from lrp.errors import BusyError, DataError
from lrp.storage.locks import Lock

HOLDER = """if True:
    import os, sys, time
    from pathlib import Path
    from lrp.storage.locks import Lock
    lock = Lock(Path(sys.argv[1]))
    worker = os.fork() if "fork" in sys.argv else 0
    os.write(1, f"{worker}\\n".encode())  # at once: two processes write here
    time.sleep(60)"""


@contextmanager
def holder(output: Path, *how: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """Another process that holds the output; with "fork", and its worker."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, output, *how], stdout=subprocess.PIPE) as child:
        # The worker says 0, which shows that it runs: a moment earlier it is still a copy of its parent, lock and all.
        worker = max(int(child.stdout.readline()) for _ in range(1 + len(how)))
        try:
            yield child, worker
        finally:
            child.kill()
            if worker:
                os.kill(worker, signal.SIGKILL)


def test_it_is_gone_when_it_is_released(tmp_path: Path) -> None:
    output = tmp_path / "r.csv"
    with Lock(output) as lock:
        assert os.listdir(tmp_path) == ["r.csv.lock"]
        assert (tmp_path / "r.csv.lock").read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == []
    with Lock(output):
        lock.release()  # the first one's, again: it is not its any more
        assert os.listdir(tmp_path) == ["r.csv.lock"]
        with pytest.raises(BusyError):
            Lock(output)


def test_another_process_is_named_and_killed_it_holds_no_more(tmp_path: Path) -> None:
    output = tmp_path / "r.csv"
    with holder(output) as (child, _):
        with pytest.raises(BusyError) as caught:
            Lock(output, "take another folder")
        assert str(caught.value) == (
            f"{output} is being written by another run (process {child.pid}); wait for it or take another folder"
        )
        Lock(tmp_path / "other.csv").release()
    assert os.listdir(tmp_path) == ["r.csv.lock"]  # it was killed
    Lock(output).release()
    assert os.listdir(tmp_path) == []


def test_a_killed_runs_worker_does_not_hold_it(tmp_path: Path) -> None:
    output = tmp_path / "r.csv"
    with holder(output, "fork") as (child, worker):
        with pytest.raises(BusyError):
            Lock(output)
        child.kill()
        child.wait()
        os.kill(worker, 0)  # it lives on
        Lock(output).release()


def test_the_second_in_one_process_is_refused_and_the_first_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with Lock(tmp_path / "r.csv"):
        for output in (tmp_path / "r.csv", tmp_path / "link" / "r.csv"):
            with pytest.raises(BusyError, match=rf"\(process {os.getpid()}\)"):
                Lock(output)
        # Nor did the attempts let go of it.
        other = subprocess.run(
            [sys.executable, "-c", HOLDER, tmp_path / "r.csv"], capture_output=True, text=True
        )
        assert other.stderr.splitlines()[-1].endswith(
            f"is being written by another run (process {os.getpid()}); wait for it or choose another -o"
        )


def test_a_worker_that_ends_leaves_it_to_its_parent(tmp_path: Path) -> None:
    """A forked child tries to take it itself, then unwinds its parent's `with`."""
    code = """if True:
        import os, sys
        from pathlib import Path
        from lrp.errors import BusyError
        from lrp.storage.locks import Lock
        with Lock(Path(sys.argv[1])):
            if not os.fork():
                try:
                    Lock(Path(sys.argv[1]))
                except BusyError as error:
                    print(f"(process {os.getppid()})" in str(error), flush=True)
                raise SystemExit
            os.wait()
            print("ended", flush=True)
            sys.stdin.readline()"""
    output = tmp_path / "r.csv"
    command = [sys.executable, "-c", code, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert [parent.stdout.readline() for _ in range(2)] == ["True\n", "ended\n"]
        assert os.listdir(tmp_path) == ["r.csv.lock"]
        with pytest.raises(BusyError):
            Lock(output)
        parent.communicate("go on\n")
    assert os.listdir(tmp_path) == []


def test_never_two_at_once(tmp_path: Path) -> None:
    """Four processes take and release in a hurry: the lock file comes and goes, and still only one is inside."""
    code = """if True:
        import os, sys, time
        from pathlib import Path
        from lrp.errors import BusyError
        from lrp.storage.locks import Lock
        inside, times = sys.argv[1] + ".inside", 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                with Lock(Path(sys.argv[1])):
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    os.unlink(inside)
                    times += 1
            except BusyError:
                pass
        print(times)"""
    command = [sys.executable, "-c", code, str(tmp_path / "r.csv")]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    ends = [run.communicate() for run in runs]
    assert [error for _, error in ends] == [""] * 4
    assert sum(int(times) for times, _ in ends) > 20
    assert os.listdir(tmp_path) == []


def test_on_a_full_disk_it_holds_without_the_number() -> None:
    with small_disk() as disk:
        with pytest.raises(OSError, match="No space left"):
            (disk / "ballast").write_bytes(bytes(100_000))
        with Lock(disk / "r.csv"):
            assert (disk / "r.csv.lock").read_text() == ""
            with pytest.raises(BusyError) as caught:
                Lock(disk / "r.csv")
            assert str(caught.value) == (
                f"{disk}/r.csv is being written by another run; wait for it or choose another -o"
            )


@pytest.mark.parametrize(
    ("name", "reason"), [("none/r", "No such file or directory"), ("file/r", "Not a directory")]
)
def test_places_where_no_lock_can_be(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError) as caught:
        Lock(tmp_path / name, error=DataError)
    assert str(caught.value) == f"{tmp_path}/{name}.lock: cannot be locked: {reason}"
    assert os.listdir(tmp_path) == ["file"]
