"""features.py: the oracle is the trunk itself, photo by photo; and the same work undisturbed, to the bit."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.disks import small_disk
from helpers.features import PREPROCESSING, Trunk, folder_of, photo, run
from lrp.data.data_set import DataSet, Sample
from lrp.errors import BusyError, LrpError, TrainingError
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.photos import Photo, open_photo
from lrp.train.features import Store, features
from lrp.train.fit_head import fit_head


def everything(store: Store) -> list[Tensor]:
    return [rows[:] for view in store.views.values() for rows in view]


def same(one: Store, other: Store) -> bool:
    pairs = zip(everything(one), everything(other), strict=True)
    return list(one.views) == list(other.views) and all(torch.equal(a, b) for a, b in pairs)


def counts(store: Store) -> tuple[int, int]:
    return store.cached, store.computed


def only(cache: Path) -> Path:
    """The folder of the one key."""
    (inside,) = (path for path in cache.iterdir() if path.is_dir())
    return inside


# Right ----------------------------------------------------------------------------------------------------------


def test_equal_to_computing_them_directly(tmp_path: Path) -> None:
    samples = folder_of(tmp_path)
    store = run(samples, tmp_path / "cache")
    images = torch.stack([PREPROCESSING(open_photo(s.file).pixels) for s in samples])
    for view, x in (("plain", images), ("mirrored", images.flip(3))):
        for rows, expected in zip(store.views[view], Trunk()(x), strict=True):
            assert len(rows) == 11 and rows.shape == expected.shape and rows[:].dtype == torch.float32
            torch.testing.assert_close(rows[:], expected, rtol=1e-5, atol=1e-5)
    assert counts(store) == (0, 11) and store.kept == tuple(range(11)) and not store.broken


def test_from_the_cache_they_are_the_same_bits_and_nothing_is_computed(tmp_path: Path) -> None:
    samples, trunk = folder_of(tmp_path), Trunk()
    first = run(samples, tmp_path / "cache", trunk)
    assert trunk.seen == [4, 4, 4, 4, 3, 3]
    again = run(samples, tmp_path / "cache", trunk)
    assert same(first, again) and counts(again) == (11, 0) and len(trunk.seen) == 6


def test_any_part_can_be_asked_for(tmp_path: Path) -> None:
    samples = folder_of(tmp_path)
    run(
        samples[5:], tmp_path / "cache", views=("plain",)
    )  # so that rows do not lie in the order of the samples
    rows = run(samples, tmp_path / "cache").views["plain"][0]
    whole = rows[:]
    for at in (slice(2, 7), slice(0, 1), slice(4, 4), slice(8, 99), torch.tensor([9, 0, 3, 3])):
        assert torch.equal(rows[at], whole[at]) and rows[at].shape[1:] == (6, 2, 2)
    expected = Trunk()(torch.stack([PREPROCESSING(open_photo(s.file).pixels) for s in samples]))[0]
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


def test_a_head_is_trained_on_what_is_stored(tmp_path: Path) -> None:
    samples = folder_of(tmp_path)
    run(samples[7:], tmp_path / "cache")
    store = run(samples, tmp_path / "cache")
    labels = torch.tensor([s.category == "b" for s in samples]).long()
    found = []
    for views in (store.views, {view: [r[:].clone() for r in rows] for view, rows in store.views.items()}):
        tail = nn.Linear(5, 2)
        nn.init.zeros_(tail.weight), nn.init.zeros_(tail.bias)
        given: Any = {view: rows[1:] for view, rows in views.items()}
        wrapped = nn.Sequential(First(), tail)
        fitted = fit_head(wrapped, given, labels, given, labels)
        found.append((tail.weight.detach().clone(), fitted.best_epoch))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


class First(nn.Module):
    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return features[0]


def test_known_by_content(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"
    before = run(samples, cache)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/a/00.png").rename(tmp_path / "elsewhere/b/zz.png")
    photo(tmp_path / "elsewhere/a/02.png", 77)  # changed
    photo(tmp_path / "elsewhere/a/00.png", 4)  # a copy
    moved = list(DataSet.open(tmp_path / "elsewhere"))
    after = run(moved, cache)
    assert counts(after) == (11, 1) and len(moved) == 12
    names = [s.file.name for s in moved]
    first = [s.file.name for s in samples]
    for new, old in (("zz.png", "00.png"), ("00.png", "04.png"), ("07.png", "07.png")):
        for a, b in zip(everything(after), everything(before), strict=True):
            assert torch.equal(a[names.index(new)], b[first.index(old)])
    changed = after.views["plain"][1][:][names.index("02.png")]
    image = PREPROCESSING(open_photo(tmp_path / "elsewhere/a/02.png").pixels)
    torch.testing.assert_close(changed, Trunk()(image[None])[1][0], rtol=1e-5, atol=1e-5)


def test_copies_are_computed_once(tmp_path: Path) -> None:
    samples, trunk = folder_of(tmp_path, 6), Trunk()
    photo(tmp_path / "data/a/99.png", 0)
    samples = list(DataSet.open(tmp_path / "data"))
    decoded: list[str] = []

    def read(sample: Sample) -> Photo:
        decoded.append(sample.path)
        return open_photo(sample.file)

    store = run(samples, tmp_path / "cache", trunk, views=("plain",), batch_size=1, read=read)
    assert sum(trunk.seen) == len(decoded) == 6 and len(store.kept) == 7
    assert torch.equal(store.views["plain"][0][0:1], store.views["plain"][0][3:4])


def test_another_key_or_preprocessing_is_another_cache(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path, 3), tmp_path / "cache"
    run(samples, cache)
    assert counts(run(samples, cache, key="weights 2f")) == (0, 3)
    other = Preprocessing(PREPROCESSING.geometry, (0.0, 0.0, 0.0), PREPROCESSING.std)
    assert counts(features(Trunk(), samples, other, cache, "weights 1f")) == (0, 3)
    assert counts(run(samples, cache)) == (3, 0) and len(list(cache.iterdir())) == 3


def test_a_view_that_is_not_there_yet_is_added(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"
    plain = run(samples, cache, views=("plain",))
    both = run(samples, cache)
    assert list(plain.views) == ["plain"] and torch.equal(
        plain.views["plain"][0][:], both.views["plain"][0][:]
    )
    assert counts(run(samples, cache, views=("plain",))) == (11, 0)


def test_digests_that_are_known_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"
    digests = [open_photo(s.file).digest for s in samples]
    first = run(samples, cache, digests=digests)
    monkeypatch.setattr("lrp.train.features._digests", None)
    again = run(samples, cache, digests=digests, read=None)
    assert same(first, again) and counts(again) == (11, 0)


def test_progress_counts_every_photo(tmp_path: Path) -> None:
    samples, told = folder_of(tmp_path), list[tuple[int, int]]()
    run(samples[:6], tmp_path / "cache")
    run(samples, tmp_path / "cache", advance=lambda done, total: told.append((done, total)))
    assert told == [(6, 11), (2, 11), (3, 11)]


# Broken photos --------------------------------------------------------------------------------------------------


def test_broken_photos_are_reported_and_left_out(tmp_path: Path) -> None:
    samples = folder_of(tmp_path, 6)
    whole = run(samples, tmp_path / "other")
    samples[1].file.write_bytes(b"no photo")
    samples[4].file.write_bytes(b"no photo")
    samples[5].file.unlink()
    trunk = Trunk()
    for expected in ((0, 3), (3, 0)):
        store = run(samples, tmp_path / "cache", trunk, views=("plain",))
        assert store.kept == (0, 2, 3) and counts(store) == expected
        assert [path for path, _ in store.broken] == [samples[i].path for i in (1, 4, 5)]
        assert store.broken[0][1] == store.broken[1][1] and "no such file" in store.broken[2][1].lower()
        kept = torch.tensor(store.kept)
        torch.testing.assert_close(store.views["plain"][0][:], whole.views["plain"][0][kept])
    assert trunk.seen == [3]


def test_a_file_that_changes_meanwhile_is_kept_under_what_was_decoded(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path, 3), tmp_path / "cache"
    digests = [open_photo(s.file).digest for s in samples]
    photo(samples[0].file, 50)
    run(samples, cache, digests=digests)
    photo(samples[0].file, 0)
    assert counts(run(samples, cache)) == (2, 1)


def test_none_that_can_be_read(tmp_path: Path) -> None:
    samples = folder_of(tmp_path, 2)
    for sample in samples:
        sample.file.write_bytes(b"")
    with pytest.raises(TrainingError) as caught:
        run(samples, tmp_path / "cache")
    reason = run([*samples, *folder_of(tmp_path / "more", 1)], tmp_path / "cache").broken[0][1]
    assert str(caught.value) == (
        f"expected photos to compute features of, got 2 broken files; the first is {samples[0].path}: {reason}."
    )


# Killed, torn, damaged, full, shared ----------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers.features import Trunk, run
from lrp.data.data_set import DataSet

class Slow(Trunk):
    def forward(self, x):
        if len(self.seen) == int(sys.argv[3]):
            print("here", flush=True)
            sys.stdin.read()
        return super().forward(x)

run(list(DataSet.open(Path(sys.argv[1]))), Path(sys.argv[2]), Slow())
"""


def child(data: Path, cache: Path, at: int) -> subprocess.Popen[str]:
    """A run of another process, which waits at that call of the trunk."""
    command = [sys.executable, "-c", CHILD, str(data), str(cache), str(at)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("at", [0, 3, 4])
def test_killed_it_goes_on_and_ends_with_the_same_bits(tmp_path: Path, at: int) -> None:
    samples = folder_of(tmp_path)
    samples[0].file.write_bytes(
        b"broken"
    )  # it comes again in each run, and must not move the others' batches
    whole = run(samples, tmp_path / "whole")
    kill(child(tmp_path / "data", tmp_path / "cache", at))
    trunk = Trunk()
    store = run(samples, tmp_path / "cache", trunk)
    assert same(store, whole)
    assert sum(trunk.seen) == 2 * (10 - {0: 0, 3: 3, 4: 7}[at])


def test_cut_off_anywhere_nothing_wrong_is_read(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path, 5), tmp_path / "cache"
    whole = run(samples, cache, batch_size=1, views=("plain",))
    files = [only(cache) / "plain.index", only(cache) / "plain.rows"]
    contents = [file.read_bytes() for file in files]
    for which, content in enumerate(contents):
        for end in range(0, len(content), 37):
            for file, data in zip(files, contents, strict=True):
                file.unlink()
                file.write_bytes(data)
            os.truncate(files[which], end)
            store = run(samples, cache, batch_size=1, views=("plain",))
            assert same(store, whole), (files[which], end)
            assert store.computed > 0 and counts(run(samples, cache, views=("plain",))) == (5, 0)


@pytest.mark.parametrize("name", ["plain.rows", "plain.index"])
def test_a_flipped_bit_is_noticed_and_costs_one_row_at_most(tmp_path: Path, name: str) -> None:
    samples, cache = folder_of(tmp_path, 5), tmp_path / "cache"
    whole = run(samples, cache, batch_size=1, views=("plain",))
    file = only(cache) / name
    content = file.read_bytes()
    header = content.index(b"\n") + 1 if name.endswith("index") else 0
    for at in range(header, len(content), 53):
        file.unlink()  # as `whole` has mapped it
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        store = run(samples, cache, batch_size=1, views=("plain",))
        assert same(store, whole) and store.computed <= 2 and store.computed > 0, at


def test_a_damaged_beginning_of_the_index_costs_all_rows_but_not_those_in_use(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"
    in_use = run(samples, cache)
    before = [part.clone() for part in everything(in_use)]
    for name in ("plain.index", "mirrored.index"):
        file = only(cache) / name
        file.write_bytes(b"x" + file.read_bytes()[1:])
    store = run(samples[::-1], cache, batch_size=11)
    assert counts(store) == (0, 11)
    torch.testing.assert_close(store.views["plain"][0][:], before[0].flip(0))
    assert all(map(torch.equal, before, everything(in_use)))


def test_what_is_in_use_stays_while_other_runs_add(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"
    in_use = run(samples[:5], cache)
    before = [part.clone() for part in everything(in_use)]
    run(samples, cache)
    assert all(map(torch.equal, before, everything(in_use)))


def test_a_full_disk(tmp_path: Path) -> None:
    samples = folder_of(tmp_path, 40)
    whole = run(samples, tmp_path / "whole")
    with small_disk("24k") as disk:
        with pytest.raises(TrainingError) as caught:
            run(samples, disk / "cache")
        path = str(caught.value).partition(":")[0]
        assert path.startswith(str(only(disk / "cache")))
        assert str(caught.value) == (
            f"{path}: cannot be written: No space left on device. What is finished is kept: put that right, and the "
            "same command goes on from there"
        )
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        store = run(samples, disk / "cache")
        assert 0 < store.computed < 40 and same(store, whole)
        del store


def test_what_could_not_be_written_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert refusal(samples, cache) == (
            f"{only(cache)}/plain.rows: cannot be written: No space left on device. What is finished is kept: put "
            "that right, and the same command goes on from there"
        )
    assert (only(cache) / "plain.rows").stat().st_size == 0
    assert same(run(samples, cache), run(samples, tmp_path / "other"))


def test_two_runs_at_once(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"
    process = child(tmp_path / "data", cache, 2)
    try:
        with pytest.raises(BusyError) as caught:
            run(samples, cache)
        assert str(caught.value) == (
            f"{only(cache)} is being written by another run (process {process.pid}); wait for it or choose another "
            "cache folder"
        )
        assert counts(run(samples, cache, key="another")) == (0, 11)
    finally:
        kill(process)
    assert counts(run(samples, cache)) == (4, 7)


def test_an_interruption_leaves_no_lock_and_what_is_finished(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"

    class Stopped(Trunk):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            if len(self.seen) == 4:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        run(samples, cache, Stopped())
    assert counts(run(samples, cache)) == (8, 3)


# Refused --------------------------------------------------------------------------------------------------------


def refusal(*given: Any, **changes: Any) -> str:
    with pytest.raises(LrpError) as caught:
        run(*given, **changes)
    return str(caught.value)


def test_another_trunk_under_the_same_key(tmp_path: Path) -> None:
    samples, cache = folder_of(tmp_path), tmp_path / "cache"
    run(samples[:4], cache)
    assert refusal(samples, cache, lambda x: (x.mean((2, 3)),)) == (
        f"{only(cache)}/plain.index: holds features of the shapes [6, 2, 2] and [5], the trunk now gives [3]: it is "
        f"another trunk under the same key; delete {only(cache)}."
    )
    assert counts(run(samples[:4], cache)) == (4, 0)


@pytest.mark.parametrize(
    ("trunk", "got"),
    [
        (lambda x: x, "Tensor [[2, 3, 8, 8]]"),
        (lambda x: (), "tuple []"),
        (lambda x: (x.mean(),), "tuple [[]]"),
        (lambda x: (x[:, :0],), "tuple [[2, 0, 8, 8]]"),
        (lambda x: (x[:1], "x"), "tuple [[1, 3, 8, 8], 'str']"),
        (lambda x: (x, x[:1]), "tuple [[2, 3, 8, 8], [1, 3, 8, 8]]"),
    ],
)
def test_a_trunk_that_gives_something_else(tmp_path: Path, trunk: Any, got: str) -> None:
    assert refusal(folder_of(tmp_path, 2), tmp_path / "cache", trunk) == (
        f"the trunk gives {got} for 2 photos: expected a tuple of features [2, ...]."
    )


def test_unknown_views(tmp_path: Path) -> None:
    assert refusal([], tmp_path, views=("plain", "upside down")) == (
        "expected views out of plain, mirrored, got upside down."
    )
    assert refusal([], tmp_path, views=()) == "expected views out of plain, mirrored, got none."


def test_no_samples(tmp_path: Path) -> None:
    assert refusal([], tmp_path) == "expected photos to compute features of, got 0 broken files."


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    samples = folder_of(tmp_path, 1)
    (tmp_path / "file").write_text("")
    message = refusal(samples, tmp_path / "file")
    assert message.startswith(f"{tmp_path / 'file'}/") and message.endswith(
        ": cannot be made: Not a directory"
    )
