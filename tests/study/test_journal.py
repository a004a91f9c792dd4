"""journal.py: killed, torn, full, shared; the oracle is the same work undisturbed."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.disks import small_disk
from lrp.errors import BusyError, PredictionsError
from lrp.study.journal import Journal
from lrp.study.predictions import Prediction, write_predictions

WHO = {"model": "vgg19", "weights": "1f", "batch_size": "8"}
START_OVER = "start over with --overwrite, or choose another -o"


def unit(number: int, rows: int = 2) -> list[Prediction]:
    return [
        Prediction(f"{number}/{n}.png", "tench", "fish", 1 / (n + 3), 0.1, False, top5={"fish": 1 / (n + 3)}, true_index=number)
        for n in range(rows)
    ]  # fmt: skip


def filled(folder: Path, units: Sequence[int] = (0, 1, 2), name: str = "r.csv") -> Path:
    """An output with its journal beside it, as an interrupted run leaves it."""
    with Journal.open(folder / name, WHO) as journal:
        for number in units:
            journal.add(number, unit(number))
    return folder / name


def refusal(output: Path, who: dict[str, str] = WHO) -> str:
    """What opening says, less the folder; and the journal is untouched, no lock left."""
    path = output.with_name(output.name + ".journal")
    before = path.read_bytes()
    with pytest.raises(PredictionsError) as caught:
        Journal.open(output, who)
    assert path.read_bytes() == before and not output.with_name(output.name + ".lock").exists()
    return str(caught.value).replace(f"{output.parent}/", "")


# In order -----------------------------------------------------------------------------------------------------


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    output = tmp_path / "r.csv"
    with Journal.open(output, WHO) as journal:
        assert not journal.done and list(journal.rows()) == []
        for number in (3, 0, 7):
            journal.add(number, unit(number))
        assert list(journal.rows()) == unit(0) + unit(3) + unit(7)
    assert sorted(os.listdir(tmp_path)) == ["r.csv.journal"]
    with Journal.open(str(output), dict(reversed(WHO.items()))) as journal:
        done = journal.done
        assert done == {0, 3, 7} and sorted(done) == list(done) and len(done) == 3
        assert 3 in done and 1 not in done and -1 not in done and 99 not in done and "3" not in done
        assert done & {0, 1} == {0}
        journal.add(1, [])
        assert done == {0, 1, 3, 7}
        write_predictions(output, journal.rows())
        journal.remove()
        journal.close()
    assert os.listdir(tmp_path) == ["r.csv"]
    write_predictions(tmp_path / "undisturbed.csv", unit(0) + unit(3) + unit(7))
    assert (tmp_path / "undisturbed.csv").read_bytes() == output.read_bytes()


@given(
    st.permutations(range(6)),
    st.integers(0, 6),
    st.text(st.characters(exclude_characters="\0"), min_size=1),
    st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_rows_come_back_exactly(order: list[int], stop: int, text: str, confidence: float) -> None:
    """Any order, any text (lone surrogates too: file names of stray bytes), every bit of a float."""
    rows = {
        n: [Prediction(text, text, text, confidence, None, True, top5={text: confidence}, model=str(n))]
        for n in order
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "r.csv"
        for part in (order[:stop], order[stop:]):
            with Journal.open(output, {text: text}) as journal:
                for n in part:
                    journal.add(n, rows[n])
        with Journal.open(output, {text: text}) as journal:
            assert list(journal.rows()) == [rows[n][0] for n in range(6)]


def test_the_file_is_json_lines(tmp_path: Path) -> None:
    path = Path(f"{filled(tmp_path, [5, 2])}.journal")
    header, five, two = (json.loads(line) for line in path.read_text().splitlines())
    assert header["identity"] == WHO
    assert (five["unit"], two["unit"]) == (5, 2)
    assert [values[0] for values in two["rows"]] == ["2/0.png", "2/1.png"]


def test_each_unit_is_on_the_disk_when_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, fsync = [], os.fsync
    with Journal.open(tmp_path / "r.csv", WHO) as journal:
        monkeypatch.setattr(os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), fsync(fd)))
        for number in range(3):
            journal.add(number, unit(number))
            assert sizes[number:] == [journal.path.stat().st_size]


def test_memory_is_a_few_bytes_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, count = tmp_path / "r.csv", 20_000
    monkeypatch.setattr(os, "fsync", lambda _: None)  # its time is the disk's
    tracemalloc.start()
    try:
        for part in (range(0, count, 2), range(1, count, 2)):
            with Journal.open(output, WHO) as journal:
                for number in part:
                    journal.add(number, unit(number, 1))
        with Journal.open(output, WHO) as journal:
            assert len(journal.done) == count and sum(1 for _ in journal.rows()) == count
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Torn and damaged ---------------------------------------------------------------------------------------------


def test_torn_at_every_byte_of_the_last_line(tmp_path: Path) -> None:
    output = filled(tmp_path)
    path = tmp_path / "r.csv.journal"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal.open(output, WHO) as journal:
            assert journal.done == {0, 1}
            assert path.read_bytes() == whole[:last]
            journal.add(2, unit(2))
            assert list(journal.rows()) == unit(0) + unit(1) + unit(2)
        assert path.read_bytes() == whole


def test_the_last_line_garbled_at_every_byte(tmp_path: Path) -> None:
    """What a power cut leaves: zeros, or another file's bytes with line ends of their own."""
    output = filled(tmp_path)
    path = tmp_path / "r.csv.journal"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for at in range(last, len(whole)):
        for garbage in (
            bytes([whole[at] ^ 1]),
            b"\n" if whole[at:] != b"\n" else b"",
            b"\0" * (len(whole) - at),
        ):
            path.write_bytes(whole[:at] + garbage + whole[at + len(garbage) :])
            if garbage == b"":
                path.write_bytes(whole[:at])
            with Journal.open(output, WHO) as journal:
                assert journal.done == {0, 1} and list(journal.rows()) == unit(0) + unit(1)
            assert path.read_bytes() == whole[:last]


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    output = filled(tmp_path, range(4))
    path = tmp_path / "r.csv.journal"
    whole = path.read_bytes()
    begins = [0]
    while len(begins) < 4:
        begins.append(whole.index(b"\n", begins[-1]) + 1)
    for at in range(begins[1], begins[3]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        line = 2 if at < begins[2] else 3
        assert refusal(output) == f"r.csv.journal: line {line} is damaged, and more follow it; {START_OVER}"
    for at in range(begins[1]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert refusal(output) == (
            f"r.csv.journal: is no journal of 'lrp evaluate', or its first line is damaged; move it away, or {START_OVER}"
        )


@pytest.mark.parametrize("content", ["", "my own notes", "my own notes\n", "{}\n"])
def test_a_strangers_file_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.csv.journal").write_text(content)
    assert refusal(tmp_path / "r.csv") == (
        f"r.csv.journal: is no journal of 'lrp evaluate', or its first line is damaged; move it away, or {START_OVER}"
    )
    with Journal.open(tmp_path / "r.csv", WHO, overwrite=True) as journal:
        assert not journal.done


def test_changed_while_it_is_held(tmp_path: Path) -> None:
    with Journal.open(filled(tmp_path), WHO) as journal:
        content = journal.path.read_bytes()
        journal.path.write_bytes(content.replace(b"fish", b"wolf"))
        with pytest.raises(PredictionsError) as caught:
            list(journal.rows())
        assert str(caught.value) == f"{journal.path}: unit 0 was changed meanwhile; {START_OVER}"
        journal.path.unlink()
        with pytest.raises(PredictionsError) as caught:
            list(journal.rows())
        assert str(caught.value) == f"{journal.path}: cannot be read: No such file or directory"


# Another run --------------------------------------------------------------------------------------------------


def test_another_identity_is_refused(tmp_path: Path) -> None:
    output = filled(tmp_path)
    assert refusal(output, {"model": "vgg16", "weights": "1f", "data": "val"}) == (
        "r.csv: was begun by another run: model was 'vgg19', now is 'vgg16'; data was not there, now is 'val'; "
        f"batch_size was '8', now is not there. Run that one again to go on, {START_OVER}"
    )
    with Journal.open(output, {"model": "vgg16"}, overwrite=True) as journal:
        assert not journal.done
        journal.add(0, unit(0))
    with Journal.open(output, {"model": "vgg16"}) as journal:
        assert journal.done == {0}


def test_another_identity_is_fine_while_nothing_is_finished(tmp_path: Path) -> None:
    output = filled(tmp_path, [])
    with Journal.open(output, {"model": "vgg16"}) as journal:
        journal.add(0, unit(0))
    assert "model was 'vgg16', now is 'vgg19'" in refusal(output)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrp.study.journal._FORMAT", 2)
    output = filled(tmp_path)
    monkeypatch.undo()
    assert refusal(output) == (
        "r.csv.journal: is of format 2, this version of lrp writes format 1; finish it with the version that began it, "
        f"or {START_OVER}"
    )


def test_what_cannot_be_added(tmp_path: Path) -> None:
    with Journal.open(filled(tmp_path, [0]), WHO) as journal:
        before = journal.path.read_bytes()
        for number, rows, message in (
            (0, unit(0), "unit 0 is finished already"),
            (1, [*unit(1), replace(unit(1)[0], correct=None)], "'1/0.png', column correct: must not be empty where status is ok"),
        ):  # fmt: skip
            with pytest.raises(PredictionsError) as caught:
                journal.add(number, rows)
            assert str(caught.value) == f"{journal.path}: {message}"
        assert journal.path.read_bytes() == before and journal.done == {0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/r.csv", "none/r.csv.lock: cannot be locked: No such file or directory"),
        ("file/r.csv", "file/r.csv.lock: cannot be locked: Not a directory"),
        ("folder", "folder: is a folder; name a file in it, as folder/results.csv"),
        ("x" * 300, "x" * 300 + ": cannot be written: File name too long"),
    ],
)
def test_places_where_no_journal_can_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictionsError) as caught:
        Journal.open(tmp_path / name, WHO)
    assert str(caught.value).replace(f"{tmp_path}/", "") == message
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# A full disk, an interrupt, a kill ----------------------------------------------------------------------------


def test_a_full_disk_and_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk() as disk:
        output, ballast = disk / "r.csv", disk / "ballast"
        ballast.write_bytes(b"\0" * 40_000)
        with Journal.open(output, WHO) as journal:
            with pytest.raises(PredictionsError) as caught:
                for number in range(100):
                    journal.add(number, unit(number, 10))
            assert str(caught.value) == (
                f"{journal.path}: cannot be written: No space left on device. What is finished is kept: put that right, "
                "and the same command goes on from there"
            )
            finished = len(journal.done)
            assert 0 < finished < 20 and journal.done == set(range(finished))
            with pytest.raises(PredictionsError):
                write_predictions(output, (row for _ in range(100) for row in journal.rows()))
            assert sorted(os.listdir(disk)) == ["ballast", "r.csv.journal", "r.csv.lock"]
        ballast.unlink()
        with Journal.open(output, WHO) as journal:
            assert journal.done == set(range(finished))
            for number in range(finished, 20):
                journal.add(number, unit(number, 10))
            assert list(journal.rows()) == [row for number in range(20) for row in unit(number, 10)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_interrupted_while_adding(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise error

    with Journal.open(filled(tmp_path, [0]), WHO) as journal:
        before = journal.path.read_bytes()
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, PredictionsError)):
            patch.setattr(os, "fsync", refuse)
            journal.add(1, unit(1))
        assert journal.path.read_bytes() == before and journal.done == {0}
        journal.add(1, unit(1))
        assert list(journal.rows()) == unit(0) + unit(1)


CHILD = """if True:
    import os, sys, time
    from pathlib import Path
    from lrp.study.journal import Journal
    from lrp.study.predictions import Prediction, write_predictions
    output, pause = Path(sys.argv[1]), float(sys.argv[2])

    def unit(number):
        return [Prediction(f"{number}/{n}.png", "x", "y", 1 / (n + 3), 0.1, False) for n in range(number % 40)]

    with Journal.open(output, {"model": "vgg19"}) as journal:
        print(len(journal.done), flush=True)
        for number in range(300):
            if number not in journal.done:
                journal.add(number, unit(number))
                time.sleep(pause)
        write_predictions(output, journal.rows())
        journal.remove()"""


def test_killed_again_and_again(tmp_path: Path) -> None:
    """The same command after each kill -9 ends with the bytes of an undisturbed run."""

    def command(output: Path, pause: float) -> list[str]:
        return [sys.executable, "-c", CHILD, str(output), str(pause)]

    subprocess.run(command(tmp_path / "undisturbed.csv", 0), check=True, capture_output=True)
    output, chance, finished = tmp_path / "killed.csv", random.Random(4), [-1]
    for _ in range(8):
        with subprocess.Popen(command(output, 0.002), stdout=subprocess.PIPE) as child:
            finished.append(int(child.stdout.readline()))
            time.sleep(chance.uniform(0, 0.1))
            child.send_signal(signal.SIGKILL)
        if output.exists():
            break
    assert finished == sorted(finished) and finished[-1] > 0
    if not output.exists():
        assert (tmp_path / "killed.csv.journal").exists()
        subprocess.run(command(output, 0), check=True, capture_output=True)
    assert output.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["killed.csv", "undisturbed.csv"]


# Two runs on one output ---------------------------------------------------------------------------------------

HOLDER = """if True:
    import os, sys, time
    from lrp.study.journal import Journal
    journal = Journal.open(sys.argv[1], {"model": "vgg19", "weights": "1f", "batch_size": "8"})
    journal.add(0, [])
    print("held", flush=True)
    time.sleep(60)"""


def test_the_second_run_is_refused(tmp_path: Path) -> None:
    """How the lock itself holds is in tests/storage/test_locks.py."""
    output = tmp_path / "r.csv"
    with subprocess.Popen([sys.executable, "-c", HOLDER, output], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        for overwrite in (False, True):
            with pytest.raises(BusyError) as caught:
                Journal.open(output, WHO, overwrite=overwrite)
            assert str(caught.value) == (
                f"{output} is being written by another run (process {child.pid}); wait for it or choose another -o"
            )
        Journal.open(tmp_path / "other.csv", WHO).close()
        child.kill()
    assert sorted(os.listdir(tmp_path)) == [
        "other.csv.journal",
        "r.csv.journal",
        "r.csv.lock",
    ]  # it was killed
    with Journal.open(output, WHO) as journal:
        assert journal.done == {0}
    assert sorted(os.listdir(tmp_path)) == ["other.csv.journal", "r.csv.journal"]
