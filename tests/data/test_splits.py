"""What a folder is split into: everything accounted for, the same wherever it lies, copies never torn apart."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrp.data.splits import split
from lrp.errors import DataError, TrainingError


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def tree(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    for number, (folder, count) in enumerate(counts.items()):
        for i in range(count):
            photo(root / folder / f"{i}.png", start + 1000 * number + i)
    return root


def sides(found) -> dict[str, str]:
    """digest -> side."""
    return {e.digest: "train" for e in found.train} | {e.digest: "val" for e in found.val}


def test_a_flat_tree_is_split_class_by_class(tmp_path):
    root = tree(tmp_path / "data", {"cat": 20, "dog": 10, "one": 1, "two": 2})
    found = split(root)
    counts = {c.folder: (c.train, c.val) for c in found.classes}
    assert counts == {"cat": (16, 4), "dog": (8, 2), "one": (1, 0), "two": (1, 1)}
    assert {e.sample.path for e in found.train} | {e.sample.path for e in found.val} == {
        f"{root}/{f}/{i}.png" for f, n in (("cat", 20), ("dog", 10), ("one", 1), ("two", 2)) for i in range(n)
    }
    assert found.class_names == ("cat", "dog", "one", "two") and found.broken == ()
    assert all(found.classes[e.target].folder == e.sample.category for e in (*found.train, *found.val))
    assert found.notes == (
        "no photo validates the classes 'one': their accuracy stays unknown.",
        "imbalanced: 'cat' has 16 photos to train on, 'one' 1.",
    )


def test_the_content_decides_not_the_name(tmp_path):
    root = tree(tmp_path / "a", {"cat": 30, "dog": 30})
    first = split(root)
    moved = tmp_path / "b"
    shutil.copytree(root, moved)
    for i, file in enumerate(sorted(moved.rglob("*.png"))):
        file.rename(file.with_name(f"x{97 - i}.png"))
    again = split(moved)
    assert sides(again) == sides(first) and again.fingerprint == first.fingerprint
    other = split(root, seed=1)
    assert sides(other) != sides(first) and other.fingerprint != first.fingerprint
    # A photo more changes no other one's side by much: at most the one that makes room.
    photo(root / "cat" / "new.png", 9999)
    grown = split(root)
    assert sum(sides(grown)[d] != side for d, side in sides(first).items()) <= 1
    assert grown.fingerprint != first.fingerprint


def test_copies_stay_on_one_side(tmp_path):
    root = tree(tmp_path / "data", {"cat": 12, "dog": 12})
    for i in range(12):
        for copy in range(3):
            shutil.copy(root / "cat" / f"{i}.png", root / "cat" / f"{i}_copy{copy}.png")
    shutil.copy(root / "dog" / "0.png", root / "cat" / "torn.png")
    found = split(root, val_share=0.5)
    assert not {e.digest for e in found.train} & {e.digest for e in found.val}
    assert Counter(Counter(e.digest for e in found.val if e.target == 0).values()) == {4: 6}
    assert (
        found.notes[0]
        == "1 photos lie in more than one class folder; they are all trained on, none validates."
    )


def test_folders_of_train_and_val_are_taken_as_they_are(tmp_path):
    root = tmp_path / "data"
    tree(root / "train", {"n01440764": 3, "dog": 3})
    tree(root / "validation", {"dog": 2}, start=50_000)
    shutil.copy(root / "train" / "dog" / "0.png", root / "validation" / "dog" / "again.png")
    found = split(root)
    assert found.class_names == ("dog", "tench")
    assert [(c.train, c.val) for c in found.classes] == [(3, 3), (3, 0)]
    assert found.notes == (
        "no photo validates the classes 'n01440764': their accuracy stays unknown.",
        "1 photos of val are in train too: accuracy on val says too much about what it has seen.",
    )
    tree(root / "validation", {"owl": 1})
    with pytest.raises(TrainingError) as caught:
        split(root)
    assert str(caught.value) == f"{root}: class folders of validation/ that train/ has not: 'owl'."


def test_train_alone_is_split(tmp_path):
    tree(tmp_path / "train", {"cat": 10, "dog": 10})
    assert [(c.train, c.val) for c in split(tmp_path).classes] == [(8, 2), (8, 2)]


def test_broken_files_are_left_out_up_to_a_share(tmp_path):
    root = tree(tmp_path / "data", {"cat": 20, "dog": 20})
    (root / "cat" / "a.png").write_bytes(b"")
    told = []
    found = split(root, advance=lambda done, total: told.append((done, total)))
    ((path, reason),) = found.broken
    assert path == f"{root}/cat/a.png" and "empty" in reason
    assert len(found.train) + len(found.val) == 40 and told == [(1, 41)] * 41
    (root / "dog" / "b.png").write_bytes(b"no photo")
    (root / "dog" / "c.png").write_bytes(b"no photo")
    with pytest.raises(TrainingError) as caught:
        split(root)
    assert str(caught.value) == (
        f"{root}: 3 of 43 files cannot be read, more than 5% (--max-skip-rate); the first is {path}: {reason}."
    )
    assert len(split(root, max_skip_rate=0.1).broken) == 3


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 3}, "expected at least two class folders to tell apart, got one, 'cat'."),
        ({"cat": 1, "dog": 1}, "no photo is left to validate on: a class needs two different ones, or {root}/val some."),
        ({"Cat": 3, "cat": 3, "dog": 3}, "class folders named alike cannot be told apart later: 'Cat', 'cat'. Merge or rename them."),
        ({"n01440764": 3, "tench": 3}, "class folders named alike cannot be told apart later: 'n01440764', 'tench'. Merge or rename them."),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on(tmp_path, counts, message):
    root = tree(tmp_path / "data", counts)
    with pytest.raises(TrainingError) as caught:
        split(root)
    assert str(caught.value) == f"{root}: {message.format(root=root)}"


def test_an_empty_class(tmp_path):
    root = tree(tmp_path / "data", {"cat": 40, "dog": 40})
    (root / "empty").mkdir()
    (root / "spoilt").mkdir()
    (root / "spoilt" / "x.png").touch()
    with pytest.raises(TrainingError) as caught:
        split(root)
    assert str(caught.value) == (
        f"{root}: class folders without a readable photo to train on: 'empty', 'spoilt'. Add photos, or take the "
        "folders away."
    )
    with pytest.raises(DataError, match="found nothing at"):
        split(tmp_path / "nowhere")
    shutil.rmtree(root / "empty")
    shutil.rmtree(root / "spoilt")
    with pytest.raises(TrainingError, match=r"expected a share for validation between 0 and 1, got 1\."):
        split(root, val_share=1.0)
