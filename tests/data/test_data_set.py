"""Folders -> samples, folders -> classes. The oracles are `os.walk` with `sorted`, and timm's table of ImageNet."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lrp.classes import class_index, imagenet_names, imagenet_wnids
from lrp.data.data_set import SPLITS, DataSet, Matched, match_class_folders
from lrp.errors import DataError, TargetError
from lrp.pictures.photos import PhotoError, open_photo

SAMPLE = Path(__file__).parents[3] / "shared/data/imagenet-sample"


def message(call, *args, kind=DataError, **options) -> str:
    """The text of the error that `call` raises; one line, as the command line prints it."""
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(root: Path, *files: str) -> Path:
    """Empty files below `root`; a name with a slash at its end is a folder."""
    for name in files:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return root


def paths(data: DataSet) -> list[str]:
    """What is found, relative to the data set's folder."""
    return [sample.path.removeprefix(f"{data.root}/") for sample in data]


# --- samples ------------------------------------------------------------------------------------------------


def test_a_sample_is_a_path_as_given_a_file_and_its_class_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tree(tmp_path, "photos/cat/deep/er/b.jpg", "photos/cat/a", "photos/dog/c.txt").parent)
    root = tmp_path.name + "/photos"
    for folder in (root, root + "/", Path(root)):
        data = DataSet.open(folder)
        assert [(s.path, s.file, s.category) for s in data] == [
            (f"{root}/cat/a", Path(f"{root}/cat/a"), "cat"),
            (f"{root}/cat/deep/er/b.jpg", Path(f"{root}/cat/deep/er/b.jpg"), "cat"),
            (f"{root}/dog/c.txt", Path(f"{root}/dog/c.txt"), "dog"),
        ]
        assert (data.categories, data.split, data.splits) == (("cat", "dog"), "", ())
        assert list(data) == list(data)
    monkeypatch.chdir(tmp_path / "photos")
    assert next(iter(DataSet.open("."))).path == "./cat/a"


LAYOUT = (
    "train/cat/t1.jpg", "train/dog/t2.jpg", "val/cat/v1.jpg", "val/fox/v2.jpg", "test/cat/x.jpg", "extra/cat/e.jpg",
    "labels.csv",
)  # fmt: skip


@pytest.mark.parametrize(
    "split, read, categories, expected",
    [
        (None, "val", ("cat", "fox"), ["val/cat/v1.jpg", "val/fox/v2.jpg"]),
        ("val", "val", ("cat", "fox"), ["val/cat/v1.jpg", "val/fox/v2.jpg"]),
        ("train", "train", ("cat", "dog"), ["train/cat/t1.jpg", "train/dog/t2.jpg"]),
        ("test", "test", ("cat",), ["test/cat/x.jpg"]),
        (
            "all",
            "all",
            ("cat", "dog", "fox"),
            ["test/cat/x.jpg", "train/cat/t1.jpg", "val/cat/v1.jpg", "train/dog/t2.jpg", "val/fox/v2.jpg"],
        ),
    ],
)
def test_splits(tmp_path, split, read, categories, expected):
    data = DataSet.open(tree(tmp_path, *LAYOUT), split)
    assert (data.split, data.categories, paths(data)) == (read, categories, expected)
    assert data.splits == ("val", "train", "test")


@pytest.mark.parametrize(
    "files, read",
    [
        (["train/cat/a.jpg", "test/cat/b.jpg"], "train"),
        (["validation/cat/a.jpg", "train/cat/b.jpg"], "validation"),
        (["valid/cat/a.jpg", "train/cat/b.jpg"], "valid"),
        (["test/cat/a.jpg"], "test"),
        (["train/a.jpg", "bus/b.jpg"], ""),  # here it is a class
        (["bus/b.jpg", "train/freight/a.jpg"], ""),
        (["val/", "train/cat/a.jpg"], "train"),
    ],
)
def test_which_split_is_read_where_none_is_named(tmp_path, files, read):
    data = DataSet.open(tree(tmp_path, *files))
    assert data.split == read
    assert len(paths(data)) == (1 if read else 2)


def test_a_split_that_is_named_is_one_whatever_lies_beside_it(tmp_path):
    tree(tmp_path, "annotations/a.xml", "train/cat/a.jpg")
    assert paths(DataSet.open(tmp_path)) == ["annotations/a.xml", "train/cat/a.jpg"]
    assert paths(DataSet.open(tmp_path, "train")) == ["train/cat/a.jpg"]


def test_all_of_a_tree_without_splits_is_the_tree(tmp_path):
    data = DataSet.open(tree(tmp_path, "cat/a.jpg"), "all")
    assert (data.split, paths(data)) == ("", ["cat/a.jpg"])


names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(
        st.lists(names.filter(lambda n: not n.startswith(".")), min_size=2, max_size=4).map(tuple),
        min_size=1,
        max_size=12,
    )
)
def test_the_order_is_that_of_the_bytes(tmp_path_factory, wanted):
    root = tmp_path_factory.mktemp("order")
    wanted = {parts for parts in wanted if parts[0] not in SPLITS}
    for parts in wanted:
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except (FileExistsError, NotADirectoryError):  # a file where a folder is wanted
            continue
    walked = [os.path.relpath(os.path.join(f, n), root) for f, _, found in os.walk(root) for n in found]
    expected = sorted((p for p in walked if "/" in p), key=lambda p: (p.split("/")[0].encode(), p.encode()))
    if expected:
        assert [s.path.removeprefix(f"{root}/") for s in DataSet.open(root, "all")] == expected


def test_order_by_category_first_then_by_path(tmp_path):
    tree(tmp_path, "a/x.jpg", "a/x/y.jpg", "a/x-1.jpg", "a/X.jpg", "a/ü.jpg", "a-b/z.jpg", "B/q.jpg")
    assert paths(DataSet.open(tmp_path)) == [
        "B/q.jpg", "a/X.jpg", "a/x-1.jpg", "a/x.jpg", "a/x/y.jpg", "a/ü.jpg", "a-b/z.jpg",
    ]  # fmt: skip


def test_what_is_passed_over(tmp_path):
    tree(
        tmp_path,
        "cat/a.jpg",
        "cat/.hidden",
        "cat/.deep/b.jpg",
        ".git/c",
        "notes.txt",
        "empty/",
        "cat/Thumbs.db",
    )
    os.mkfifo(tmp_path / "cat/pipe")
    os.symlink("a.jpg", tmp_path / "cat/link.jpg")
    os.symlink("cat", tmp_path / "kitty")
    os.symlink("nowhere", tmp_path / "cat/broken")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "cat/socket"))
        data = DataSet.open(tmp_path)
        assert paths(data) == ["cat/Thumbs.db", "cat/a.jpg"]
        assert data.categories == ("cat", "empty")


def test_devices_are_passed_over_even_through_links(tmp_path):
    tree(tmp_path, "cat/a.jpg")
    os.symlink("/dev/zero", tmp_path / "cat/zero")
    assert paths(DataSet.open(tmp_path, follow_links=True)) == ["cat/a.jpg"]


def test_links_are_followed_if_asked_and_loops_are_caught(tmp_path):
    tree(tmp_path, "data/cat/a.jpg", "data/cat/deep/b.jpg", "data/dog/c.jpg", "else/d.jpg")
    link = os.symlink
    link("a.jpg", tmp_path / "data/cat/again.jpg")
    link("itself", tmp_path / "data/cat/itself")
    link("nowhere", tmp_path / "data/cat/broken")
    link("../../else", tmp_path / "data/cat/else")
    link("..", tmp_path / "data/cat/deep/up")
    link("../../..", tmp_path / "data/cat/deep/top")
    link("../../../data", tmp_path / "data/cat/deep/root")
    link("../else", tmp_path / "data/owl")
    link("../data", tmp_path / "else/data")
    assert paths(DataSet.open(tmp_path / "data")) == ["cat/a.jpg", "cat/deep/b.jpg", "dog/c.jpg"]
    data = DataSet.open(tmp_path / "data", follow_links=True)
    top = ["cat/deep/top/else/d.jpg"]  # from above the data set down again, by no folder twice
    assert [p for p in paths(data) if p not in top] == [
        "cat/a.jpg", "cat/again.jpg", "cat/deep/b.jpg", "cat/else/d.jpg", "dog/c.jpg", "owl/d.jpg",
    ]  # fmt: skip
    assert set(top) <= set(paths(data))
    assert data.categories == ("cat", "dog", "owl")


def test_links_among_splits(tmp_path):
    tree(tmp_path, "val/cat/a.jpg", "val/dog/b.jpg", "train/cat/c.jpg")
    os.symlink("../../train", tmp_path / "val/cat/other")
    os.symlink("../../val", tmp_path / "val/dog/loop")
    assert paths(DataSet.open(tmp_path, follow_links=True)) == [
        "val/cat/a.jpg", "val/cat/other/cat/c.jpg", "val/dog/b.jpg",
    ]  # fmt: skip


def test_names_that_are_no_utf8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"cat\xe9")
    os.mkdir(folder)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "photo.png")
    os.rename(tmp_path / "photo.png", os.path.join(folder, b"\xff.png"))
    tree(tmp_path, "cat\udce9/é\n.png")
    broken, fine = list(DataSet.open(tmp_path))[::-1]
    assert (broken.category, broken.path) == ("cat\\xe9", f"{tmp_path}/cat\\xe9/\\xff.png")
    assert open_photo(broken.file).pixels.shape == (2, 2, 3)
    assert fine.path == f"{tmp_path}/cat\\xe9/é\n.png"  # text as it is: the CSV can hold it
    broken.path.encode(), fine.path.encode()


def test_a_folder_that_cannot_be_listed_is_found_itself(tmp_path, monkeypatch):
    tree(tmp_path, "cat/a.jpg", "cat/shut/b.jpg", "cat/z.jpg", "dog/c.jpg", "shut/d.jpg")
    scan, listing = os.scandir, os.listdir

    def refusing(original):
        def call(path):
            if os.fspath(path).rstrip("/").endswith("shut"):
                raise PermissionError(13, "Permission denied", path)
            return original(path)

        return call

    monkeypatch.setattr(os, "scandir", refusing(scan))
    monkeypatch.setattr(os, "listdir", refusing(listing))
    found = list(DataSet.open(tmp_path))
    assert [s.path.removeprefix(f"{tmp_path}/") for s in found] == [
        "cat/a.jpg", "cat/shut", "cat/z.jpg", "dog/c.jpg", "shut",
    ]  # fmt: skip
    assert message(open_photo, found[1].file, kind=PhotoError) == (
        f"{tmp_path}/cat/shut: cannot be opened: Permission denied"
    )


def test_a_folder_without_permission():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # not pytest's, which is shut to all but its owner
        root = tree(Path(name), "cat/a.jpg", "cat/shut/b.jpg", "dog/c.jpg")
        root.chmod(0o755)
        (root / "cat/shut").chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)  # nothing is shut to root
            assert paths(DataSet.open(root)) == ["cat/a.jpg", "cat/shut", "dog/c.jpg"]
            assert message(open_photo, root / "cat/shut", kind=PhotoError).endswith("Permission denied")
        finally:
            os.seteuid(user)
            (root / "cat/shut").chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere paths may not be as long")
def test_very_deep_trees(tmp_path):
    deep = tmp_path / "cat"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1300):  # deeper than Python calls, by steps because the whole path would be refused
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("x.jpg", os.O_CREAT, dir_fd=here))
    os.close(here)
    (found,) = DataSet.open(tmp_path)
    assert found.path == f"{tmp_path}/cat/{'d/' * 1300}x.jpg"
    subprocess.run(
        ["rm", "-r", str(deep)], check=True
    )  # what pytest has to clean up with would be too deep for Python


def test_files_of_one_folder_are_given_while_the_next_is_unread(tmp_path):
    data = DataSet.open(tree(tmp_path, "cat/a.jpg", "dog/b.jpg"))
    stream = iter(data)
    next(stream)
    tree(tmp_path, "dog/c.jpg")
    assert [s.file.name for s in stream] == ["b.jpg", "c.jpg"]


MEASURED = """
import sys, time
from lrp.data.data_set import DataSet
def peak(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024
assert "torch" not in sys.modules and "numpy" not in sys.modules
before, start = peak(), time.perf_counter()
count = sum(1 for sample in DataSet.open(sys.argv[1]))
print(count, time.perf_counter() - start, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak of memory")
def test_a_hundred_thousand_files_in_one_folder(tmp_path):
    (tmp_path / "cat").mkdir()
    folder = os.open(tmp_path / "cat", os.O_RDONLY)
    for index in range(100_000):
        os.close(os.open(f"ILSVRC2012_val_{index:08d}.JPEG", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    run = [sys.executable, "-c", MEASURED, str(tmp_path)]
    count, seconds, megabytes = map(float, subprocess.check_output(run, text=True).split())
    assert count == 100_000
    assert seconds < 60 and megabytes < 100  # 300 MB are allowed


# --- what is no data set ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, split, expected",
    [
        (["cat/a.jpg"], "train", "{0} has no split 'train': its class folders lie directly in it."),
        (LAYOUT, "valid", "{0} has no split 'valid': it has val, train and test."),
        (["val/cat/a.jpg"], "train", "{0} has no split 'train': it has val."),
        (["train/", "val/cat/a.jpg"], "train", "{0} has no split 'train': it has val."),
        (
            ["a.jpg", "b.jpg", ".c"],
            None,
            "{0} holds no class folders: expected {0}/<class>/<image>. "
            "The 2 files directly in it belong into folders named as their class.",
        ),
        ([".cat/a.jpg"], None, "{0} holds no class folders: expected {0}/<class>/<image>."),
        (["cat/", "dog/deep/"], None, "{0}: no file in any of its 2 class folders ('cat', 'dog')."),
        (
            [f"{i}/.hidden" for i in range(7)],
            None,
            "{0}: no file in any of its 7 class folders ('0', '1', '2', '3', '4', ...).",
        ),
        (["train/cat/a.jpg", "val/cat/"], None, "{0}: no file in any of its 1 class folders ('cat')."),
    ],
)
def test_trees_that_are_no_data_set(tmp_path, files, split, expected):
    assert message(DataSet.open, tree(tmp_path, *files), split) == expected.format(tmp_path)


def test_folders_that_are_not_there(tmp_path):
    tree(tmp_path, "cat/a.jpg")
    assert message(DataSet.open, tmp_path / "x\ny") == (
        f"expected a folder of class folders, found nothing at: {tmp_path}/x\\ny"
    )
    assert message(DataSet.open, tmp_path / "cat/a.jpg") == (
        f"expected a folder of class folders, got a file: {tmp_path}/cat/a.jpg; "
        "give the folder above its class folder, the DATA of DATA/<class>/<image>."
    )


def test_a_data_set_of_links_says_so(tmp_path):
    tree(tmp_path, "real/a.jpg", "data/cat/", "other/")
    os.symlink("../../real/a.jpg", tmp_path / "data/cat/a.jpg")
    os.symlink("../real", tmp_path / "other/cat")
    for name in ("data", "other"):
        assert message(DataSet.open, tmp_path / name) == (
            f"{tmp_path}/{name} holds links only, which are not followed unless asked (follow_links)."
        )
        assert len(paths(DataSet.open(tmp_path / name, follow_links=True))) == 1


@pytest.mark.parametrize("shut", ["", "val"])
def test_a_data_set_that_cannot_be_listed(tmp_path, monkeypatch, shut):
    tree(tmp_path, "val/cat/a.jpg", "train/cat/a.jpg")
    scan = os.scandir

    def refusing(path):
        if Path(path) == tmp_path / shut:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert message(DataSet.open, tmp_path) == f"{tmp_path / shut} cannot be listed: Permission denied."


# --- classes ------------------------------------------------------------------------------------------------


def test_folders_are_wordnet_ids_names_or_indices():
    assert match_class_folders(
        ["n02123045", "espresso", "283", "English_springer"], imagenet_names()
    ) == Matched({"n02123045": 281, "espresso": 967, "283": 283, "English_springer": 217}, {})
    assert match_class_folders(["7", "8"], ["8", "7", "other"]).indices == {"7": 1, "8": 0}
    assert match_class_folders(["2", "zero"], ["zero", "one", "two"]).indices == {"2": 2, "zero": 0}


def test_folders_that_are_no_class_come_with_the_nearest():
    matched = match_class_folders(["tabby", "siamese", "qqqq", "1000", "n00000000"], imagenet_names())
    assert matched.indices == {"tabby": 281}
    assert matched.unmatched == {
        "siamese": ["'Siamese cat' (284)"], "qqqq": [], "1000": [], "n00000000": [],
    }  # fmt: skip


def test_names_that_a_model_has_twice_are_not_guessed():
    twice = ["crane", "heron", "crane"]
    assert match_class_folders(["heron", "crane"], twice) == Matched(
        {"heron": 1}, {"crane": ["'crane' (0)", "'crane' (2)"]}
    )
    assert match_class_folders(["0", "2", "heron"], twice).indices == {"0": 0, "2": 2, "heron": 1}


@pytest.mark.parametrize(
    "categories, names, expected",
    [
        (
            ["tabby", "n02123045", "281", "espresso"],
            None,
            "class folders mean the same class: 'tabby', 'n02123045' and '281' are both class 281 ('tabby'). "
            "Merge or rename them.",
        ),
        (
            ["a", "A", "b", "1"],
            ["a", "b"],
            "class folders mean the same class: 'a' and 'A' are both class 0 ('a'); 'b' and '1' are both class 1 "
            "('b'). Merge or rename them.",
        ),
        (
            ["catt", "siamese", "c", "d", "e", "f"],
            ["Siamese cat", "dog"],
            "no class folder of 6 ('catt', 'siamese', 'c', 'd', 'e', ...) is a class of the model: 'siamese' is near "
            "'Siamese cat' (0). A WordNet id of ImageNet, a class name or an index from 0 to 1 is expected.",
        ),
        (
            ["x\n"],
            ["dog"],
            "no class folder of 1 ('x\\n') is a class of the model: none has a similar name. A WordNet id of "
            "ImageNet, a class name or an index from 0 to 0 is expected.",
        ),
    ],
)
def test_folders_that_fit_no_model(categories, names, expected):
    assert message(match_class_folders, categories, names or imagenet_names()) == expected


def test_a_thousand_strange_folders_are_matched_in_time():
    matched = match_class_folders(["tabby", *(f"tabby {i}" for i in range(1000))], imagenet_names())
    assert len(matched.unmatched) == 1000
    assert [bool(near) for near in matched.unmatched.values()] == [True] * 50 + [False] * 950


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the imagenet-sample photos beside the checkout")
def test_real_photos_in_wordnet_folders():
    data = DataSet.open(SAMPLE)
    matched = match_class_folders(data.categories, imagenet_names())
    assert len(list(data)) == len(data.categories) == 500 and not matched.unmatched
    for sample in data:  # files are named n01440764_tench.jpg, after another table than ours
        words = set(re.findall("[a-z]+", sample.file.stem.partition("_")[2].lower()))
        ours = set(re.findall("[a-z]+", imagenet_names()[matched.indices[sample.category]].lower()))
        assert words & ours, sample.path


# --- the names of ImageNet-1k -------------------------------------------------------------------------------


def test_imagenet_has_a_thousand_names_that_nobody_confuses():
    names = imagenet_names()
    assert len(set(names)) == 1000
    assert len({re.sub("[^a-z]+", " ", name.lower()).strip() for name in names}) == 1000
    assert all(class_index(name, names) == index for index, name in enumerate(names))
    assert all(class_index(wnid, names) == index for index, wnid in enumerate(imagenet_wnids()))


def test_imagenet_names_are_those_of_timms_table():
    """Each name is one of the words that WordNet has for the id at that index; the exceptions say which of two."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    assert tuple(info.label_names()) == imagenet_wnids()
    exceptions = {}
    for index, (name, words) in enumerate(zip(imagenet_names(), info.label_descriptions(), strict=True)):
        plain = [word.strip().lower().replace("-", " ") for word in words.split(",")]
        if name.lower().replace("-", " ").replace("_", " ") not in plain:
            exceptions[imagenet_wnids()[index], words] = name
    assert exceptions == {
        ("n02012849", "crane"): "crane (bird)",
        ("n03126707", "crane"): "crane (machine)",
        ("n02113186", "Cardigan, Cardigan Welsh corgi"): "Cardigan (dog)",
        ("n02963159", "cardigan"): "cardigan (garment)",
        ("n03710721", "maillot, tank suit"): "maillot tank suit",
    }
    glosses = info.label_descriptions(detailed=True)
    for index, word in {134: "bird", 517: "heavy", 264: "corgi", 474: "jacket", 639: "bathing suit"}.items():
        assert word in glosses[index]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("crane", "no class 'crane': did you mean 'crane (bird)' (134), 'crane (machine)' (517)"),
        ("Cardigan", "no class 'Cardigan': did you mean 'Cardigan (dog)' (264), 'cardigan (garment)' (474)"),
    ],
)
def test_a_bare_word_that_could_mean_two_classes_means_none(text, expected):
    assert message(class_index, text, imagenet_names(), kind=TargetError).startswith(expected)


@pytest.mark.parametrize(
    "text", ["crane (bird)", "crane bird", "Crane_(bird)", "crane-bird", "n02012849", "134"]
)
def test_parentheses_do_not_count(text):
    assert class_index(text, imagenet_names()) == 134


def test_models_that_have_torchvisions_own_names_know_wordnet_ids_too():
    import torchvision.models

    names = torchvision.models.VGG19_Weights.IMAGENET1K_V1.meta["categories"]
    assert class_index("n02012849", names) == class_index("crane bird", names) == 134
    assert (class_index("Cardigan", names), class_index("cardigan", names)) == (264, 474)


@pytest.mark.parametrize("text", ["(7)", "7_", "1_0", "7-"])
def test_odd_numbers_are_names(text):
    assert message(class_index, text, list("abc"), kind=TargetError).startswith(f"no class '{text}': ")


def test_wordnet_ids_also_mean_the_classes_of_a_retrained_model():
    """Which are named as ImageNet's, though they are ten and in another order."""
    names = ["tench", "golf ball", "crane (bird)", "n01443537"]
    assert [class_index(wnid, names) for wnid in ("n01440764", "n03445777", "n02012849")] == [0, 1, 2]
    assert class_index("n01443537", names) == 3  # a name counts first
    assert class_index("n03126707", imagenet_names()) == 517
    with pytest.raises(TargetError, match=r"no class 'n02123045': no class has a similar name"):
        class_index("n02123045", names[:2])
