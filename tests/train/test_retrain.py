"""`lrp retrain` end to end: what is learned, saved, loaded, resumed and refused."""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import lrp
from helpers.disks import small_disk
from helpers.training import HEAD, NET, TINY, photos, points
from lrp.cli import main
from lrp.data.data_set import DataSet
from lrp.errors import LrpError, ModelError, TrainingError
from lrp.models.checkpoints import save_checkpoint
from lrp.study.evaluate import evaluate
from lrp.study.predictions import read_predictions
from lrp.train import retrain as module
from lrp.train.fit_all import NetSettings
from lrp.train.fit_head import HeadSettings
from lrp.train.retrain import retrain
from lrp.train.watch import Watch


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return photos(Path("data"))


@pytest.fixture(autouse=True)
def plain_curves(request, monkeypatch):
    """Drawing takes longer than all the rest: one test looks at the curves."""
    if request.node.name != "test_the_command":
        monkeypatch.setattr("lrp.study.plots.save_figure", lambda figure, path: Path(path).touch())


QUICK = {"size": 32, "pretrained": False, "model": TINY, "workers": 0}


def same(a: str | Path, b: str | Path) -> bool:
    one, two = (torch.load(path, weights_only=True) for path in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("train", ["head", "all"])
def test_learned_saved_loaded_and_evaluated_to_the_same_number(data, train, suffix):
    model = "timm:test_resnet" if (train, suffix) == ("head", ".pth") else TINY
    found = retrain(data, f"out{suffix}", train=train, net=NET, **QUICK | {"model": model})
    assert (
        Path(f"out{suffix}.json").exists()
        and not list(Path().glob("*.resume"))
        and not list(Path().glob("*.lock"))
    )
    loaded = lrp.load_model(str(Path(f"out{suffix}").absolute()))
    assert loaded.class_names == ("blue", "green", "red") and loaded.preprocessing.geometry.crop == (32, 32)
    # The same split as in the training, judged by the other commands' own code.
    val = {e.sample.path for e in module.split(data).val}
    evaluate(DataSet.open(data), loaded, "r.csv")
    rows = [row for row in read_predictions("r.csv") if row.path in val]
    accuracy = sum(bool(row.correct) for row in rows) / len(rows)
    assert accuracy == pytest.approx(found.metrics["val_accuracy"]) and len(rows) == 6
    assert found.metrics["val_accuracy"] == max(f["val_accuracy"] for f in found.history[1:])
    sidecar = json.loads(Path(f"out{suffix}.json").read_text())["training"]
    assert sidecar["finished"] and sidecar["seed"] == 0 and sidecar["metrics"] == found.metrics
    assert json.loads(Path("out.history.json").read_text()) == list(found.history)
    if model != TINY:  # with nothing of ours
        import timm

        plain = timm.create_model("test_resnet", num_classes=3)
        plain.load_state_dict(torch.load("out.pth", weights_only=True))
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():  # in another memory layout sums round otherwise
            torch.testing.assert_close(plain.eval()(x), loaded.model(x), rtol=1e-5, atol=1e-4)
    assert lrp.load_model(str(Path(f"out.last{suffix}").absolute())).class_names == loaded.class_names


def test_the_colours_are_learned(data):
    found = retrain(data, "out.pth", **QUICK)
    assert found.metrics["val_accuracy"] == 1.0
    assert [(c["label"], c["train"], c["val"]) for c in found.classes] == [
        ("blue", 8, 2), ("green", 8, 2), ("red", 8, 2),
    ]  # fmt: skip


def test_the_same_bits_again_and_nothing_done_twice(data, tmp_path):
    first = retrain(data, "a.pth", **QUICK)
    torch.manual_seed(99)  # the global generator is nobody's business here
    before = torch.random.get_rng_state()
    second = retrain(data, "b.pth", cache="another", **QUICK)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same("a.pth", "b.pth") and same("a.last.pth", "b.last.pth")
    losses = [[f["val_loss"] for f in found.history] for found in (first, second)]
    assert losses[0] == losses[1]
    inode = os.stat("a.pth").st_ino
    again = retrain(data, "a.pth", **QUICK)
    assert again.kept and os.stat("a.pth").st_ino == inode and again.metrics == first.metrics
    with pytest.raises(TrainingError) as caught:
        retrain(data, "a.pth", seed=1, **QUICK)
    assert str(caught.value) == (
        "a.pth: is there already, and is not what this would make; start over with --overwrite, or choose another -o."
    )
    other = retrain(data, "a.pth", seed=1, overwrite=True, **QUICK)
    assert not other.kept and not same("a.pth", "b.pth")


def test_only_the_head_changes_in_head_mode(data):
    start = module.model_with_new_head(TINY, 3, pretrained=False, seed=0).model.state_dict()
    retrain(data, "out.pth", **QUICK)
    trained = torch.load("out.pth", weights_only=True)
    assert [name for name in start if not torch.equal(start[name], trained[name])] == ["fc.weight", "fc.bias"]
    retrain(data, "all.pth", train="all", net=NET, **QUICK)
    everything = torch.load("all.pth", weights_only=True)
    assert not torch.equal(everything["stem.weight"], start["stem.weight"])


class Narrow(torchvision.models.VGG):
    """VGG with 16 instead of 4096 hidden features: a whole training of those takes a minute and 3 GB."""

    def __init__(self, features, num_classes=1000, **options):
        with torch.device("meta"):
            super().__init__(features, num_classes, **options)
        layers = [
            nn.Linear(512 * 49, 16),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Dropout(),
        ]
        self.classifier = nn.Sequential(*layers, nn.Linear(16, num_classes))


@pytest.mark.slow
@pytest.mark.parametrize("train", ["head", "all"])
def test_vgg19(data, train, monkeypatch):
    if train == "all":
        monkeypatch.setattr(torchvision.models.vgg, "VGG", Narrow)
    found = retrain(
        data, "out.pth", "vgg19", train=train, pretrained=False, size=32, workers=0,
        head=HeadSettings(epochs=2, weight_decay=1.0), net=NetSettings(epochs=1, batch_size=12),
    )  # fmt: skip
    loaded = lrp.load_model("./out.pth")
    plain = torchvision.models.vgg19(weights=None, num_classes=3, init_weights=False)
    plain.load_state_dict(torch.load("out.pth", weights_only=True))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), loaded.model(x), rtol=1e-5, atol=1e-4)
    assert len(found.history) == (3 if train == "head" else 2)
    for file in Path().glob("out*.pth"):  # half a gigabyte each
        file.unlink()


def killed(output: str, train: str, kill: int) -> None:
    processes = multiprocessing.get_context("forkserver")  # a fork of this one could not use autograd
    processes.set_forkserver_preload(["helpers.warmed"])
    child = processes.Process(target=points, args=(output, train, kill))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture
def start(data):
    """A file of weights to begin with."""
    made = module.model_with_new_head(TINY, 5, pretrained=False, seed=3)
    save_checkpoint(
        "start.pth", made.model, made.architecture, list("abcde"), made.preprocessing.with_size(32)
    )


def timeless(file: str | Path) -> object:
    """A JSON file without what differs from run to run."""
    return json.loads(
        Path(file).read_text(),
        object_hook=lambda o: {
            k: v for k, v in o.items() if k not in ("seconds", "images_per_second", "sha256")
        },
    )


PHASES = {
    "head": ("reading photos", "computing features", "training the head"),
    "all": ("reading photos", "computing features", "training the head", "training"),
}


@pytest.mark.slow
@pytest.mark.parametrize("train", PHASES)
def test_killed_in_any_phase_and_resumed_it_ends_with_the_same_numbers(start, train):
    passed = points("whole.pth", train)
    shutil.rmtree("cache")
    each = {place: [i for i, p in enumerate(passed, 1) if p == place] for place in passed}
    assert {*PHASES[train], "after save_state", "after _save", "before end"} <= each.keys()
    chosen = {places[-1] for place, places in each.items() if place in PHASES[train]}
    # Between every two things that are written; of those that are written again and again, the second time.
    chosen |= {places[min(1, len(places) - 1)] for place, places in each.items() if place.startswith("after")}
    chosen |= {each["before end"][0] + 2}
    for kill in sorted(chosen):
        killed("k.pth", train, kill)
        points("k.pth", train)
        assert same("k.pth", "whole.pth") and same("k.last.pth", "whole.last.pth"), (kill, passed[kill - 1])
        for ending in ("pth.json", "last.pth.json", "history.json"):
            assert timeless(f"k.{ending}") == timeless(f"whole.{ending}"), (kill, passed[kill - 1], ending)
        left = {path.name.removeprefix("k.") for path in Path().glob("k*")}
        assert left == {
            "pth",
            "pth.json",
            "last.pth",
            "last.pth.json",
            "history.json",
            "curves.png",
            "curves.svg",
        }
        for file in Path().glob("k*"):
            file.unlink()
        shutil.rmtree("cache", ignore_errors=True)  # so that the next comes by the same places


def test_what_was_begun_by_another_command_is_refused(data):
    class Stop(Exception):
        pass

    def stop(facts, loaded):
        if facts["epoch"] == 1:
            raise Stop

    with pytest.raises(Stop):
        retrain("data", "k.pth", on_epoch=[stop], head=HEAD, **QUICK)
    assert Path("k.pth.resume").exists()
    with pytest.raises(TrainingError) as caught:
        retrain("data", "k.pth", head=HeadSettings(epochs=5), **QUICK)
    assert str(caught.value).startswith("k.pth: was begun by another run: settings was '")
    assert str(caught.value).endswith("start over with --overwrite, or choose another -o.")
    Path("k.pth.resume").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"k\.pth\.resume is damaged: start over with --overwrite"):
        retrain("data", "k.pth", **QUICK)
    assert retrain("data", "k.pth", overwrite=True, **QUICK).metrics["val_accuracy"] == 1.0


@pytest.mark.parametrize("train", ["head", "all"])
def test_a_full_disk_loses_nothing(data, train):
    """It fills up at one moment after the other, each time a little later; the same command goes on in the end."""
    options = {"train": train, "net": NET, "head": HEAD, **QUICK}
    retrain(data, "whole.pth", **options)
    said = set()
    with small_disk("8k") as disk:
        for kilobytes in range(8, 400, 4):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)
            try:
                found = retrain(data, disk / "out.pth", **options)
                break
            except LrpError as error:
                assert "\n" not in str(error)
                said.add(str(error).replace(f"{disk}/", ""))
                assert not list(disk.rglob("*.lock")) + list(disk.rglob("*.part"))
        assert same(disk / "out.pth", "whole.pth") and same(disk / "out.last.pth", "whole.last.pth")
        assert len(found.files) >= 4
    assert len(said) >= 3, said
    assert all(": cannot be " in sentence for sentence in said), said


def test_outputs_that_cannot_be(data):
    Path("taken").touch()
    for output, message in (
        ("out.bin", r"out\.bin: expected a name that ends in \.pth, \.pt, \.safetensors\."),
        ("taken/out.pth", r"taken/?.*: cannot be made: (Not a directory|File exists)"),
    ):
        with pytest.raises(LrpError, match=message):
            retrain(data, output, **QUICK)
    Path("dir.pth").mkdir()
    with pytest.raises(TrainingError, match=r"dir\.pth: is a folder; name a file in it\."):
        retrain(data, "dir.pth", **QUICK)
    with pytest.raises(TrainingError, match="train='body': expected 'head' or 'all'"):
        retrain(data, "out.pth", train="body", **QUICK)
    with pytest.raises(TrainingError) as caught:
        NetSettings(epochs=0, learning_rate=-1)
    assert str(caught.value) == (
        "settings of the training: epochs = 0, expected 1 or more; learning_rate = -1, expected a number above 0."
    )


def test_two_runs_on_one_output(data):
    code = textwrap.dedent("""
        from pathlib import Path
        from lrp.storage.locks import Lock
        lock = Lock(Path("out.pth")); print("held", flush=True); input()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LrpError, match=r"out\.pth is being written by another run \(process \d+\)"):
            retrain(data, "out.pth", **QUICK)
        other.communicate("\n")
    assert retrain(data, "out.pth", **QUICK).files


def test_accumulated_batches_are_one_large_one(data):
    """24 photos are steps of 16 and of 8, where batch norms take each photo by itself; the second is one batch alone.

    AdamW does not see how large all gradients are, but how much larger those of one step.
    """
    results = []
    for settings in (
        NetSettings(epochs=1, batch_size=16, crop=1, mirror=False, clip=1e6),
        NetSettings(epochs=1, batch_size=8, accumulate=2, crop=1, mirror=False, clip=1e6),
    ):
        retrain(data, f"{settings.batch_size}.pth", train="all", net=settings, **QUICK)
        results.append(torch.load(f"{settings.batch_size}.last.pth", weights_only=True))
    before = module.model_with_new_head(TINY, 3, pretrained=False).model.state_dict()
    moved = [r["stem.weight"] - before["stem.weight"] for r in results]
    assert float(moved[0].norm()) > 0
    # AdamW's first step is the gradient's sign, nearly: rounding shows where that is close to zero.
    torch.testing.assert_close(moved[0], moved[1], rtol=0.01, atol=0.01 * float(moved[0].abs().max()))


def test_two_processes_are_one_of_twice_the_batch(start, capsys, tmp_path):
    """With one seed the photos, their crops and the steps are the same; and only the first process speaks."""
    command = [
        "retrain",
        "data",
        "-m",
        "start.pth",
        "--train",
        "all",
        "--epochs",
        "2",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    shutil.rmtree("data")
    photos(Path("data/train"), 12)
    Path("data/val/blue").mkdir(
        parents=True
    )  # one photo validates: the second process has nothing to do then
    shutil.copy("data/train/red/0.png", "data/val/blue/0.png")
    Path("data/train/red/x.png").touch()
    command += ["--max-skip-rate", "0.1"]
    driver = Path("driver.py")  # so that the tests' model is known in each process
    driver.write_text(
        "import sys\nimport torch\ntorch.set_num_threads(1)\n"
        "import helpers.training\nfrom lrp.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    options = ["--devices", "2", "--batch-size", "1", "--accumulate", "6", "-o", "two.pth"]
    done = subprocess.run(
        [sys.executable, driver, *command, *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stderr
    assert main([*command, "--batch-size", "12", "-o", "one.pth"]) == 3
    printed, said = capsys.readouterr()
    assert done.stderr == said and said.count("lrp: left out data/train/red/x.png: ") == 1
    one, two = printed.splitlines(), done.stdout.splitlines()
    assert len(one) == len(two) and [line[:20] for line in one[:-2]] == [line[:20] for line in two[:-2]]
    histories = [json.loads(Path(f"{name}.history.json").read_text()) for name in ("one", "two")]
    assert len(histories[0]) == len(histories[1]) == 3
    assert histories[0][0]["val_loss"] == pytest.approx(histories[1][0]["val_loss"], rel=1e-6)
    weights = [torch.load(f"{name}.last.pth", weights_only=True) for name in ("one", "two")]
    before = torch.load("start.pth", weights_only=True)["stem.weight"]
    moved = [w["stem.weight"] - before for w in weights]
    assert float((moved[0] - moved[1]).norm()) < 0.02 * float(moved[0].norm())
    left = {path.name.removeprefix("two.") for path in Path().glob("two*")}
    assert left == {
        "pth",
        "pth.json",
        "last.pth",
        "last.pth.json",
        "history.json",
        "curves.png",
        "curves.svg",
    }


def test_watching(data):
    watch = Watch(["data/red/0.png", "data/blue/0.png"], "watched")
    found = retrain(data, "out.pth", train="all", net=NET, on_epoch=[watch], **QUICK)
    for facts in found.history:
        folder = Path(f"watched/epoch_{facts['epoch']:03d}")
        assert sorted(p.name for p in folder.iterdir()) == [
            "0.map.png",
            "0.png",
            "blue_0.map.png",
            "blue_0.png",
        ]
    with Image.open("watched/development.png") as sheet:
        assert sheet.width > 600
    # The map is the library's own, of the class that the folder names.
    loaded = lrp.load_model("./out.last.pth")
    photo = lrp.open_photo("data/blue/0.png")
    e = lrp.Explainer(loaded.model)(loaded.preprocessing(photo.pixels)[None], 0)
    entry = watch.shown(1)[-1]
    assert entry[2] == f"blue {100 * float(e.logits.softmax(1)[0, 0]):.1f} %"
    with pytest.raises(LrpError):
        Watch(["gone.png"], "watched")


def test_the_command(data, capsys, monkeypatch):
    command = [
        "retrain",
        "data",
        "-o",
        "out.pth",
        "--model",
        TINY,
        "--from-scratch",
        "--size",
        "32",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("24 photos to train on, 6 to validate, 3 classes\n")
    assert "epoch   1; loss " in printed and "100.00 % of val" in printed
    assert (
        "-> out.pth, out.pth.json, out.last.pth, out.history.json, out.curves.png, out.curves.svg" in printed
    )
    assert main(command) == 0
    assert "(up to date)" in capsys.readouterr().out
    assert main([*command, "--epochs", "3"]) == 2
    assert "is there already" in capsys.readouterr().err
    for i in range(2):
        Path(f"data/red/x{i}.png").touch()
    assert main([*command, "--overwrite", "--json", "--max-skip-rate", "0.1", "--tensorboard"]) == 3
    printed, said = capsys.readouterr()
    assert len(json.loads(printed)["broken"]) == 2 and "lrp: left out data/red/x0.png: " in said
    assert list(Path("out.tensorboard").iterdir())
    assert main([*command, "--overwrite"]) == 2
    assert "files cannot be read, more than 5% (--max-skip-rate)" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--learning-rate", "1"]) == 2
    # Every other command takes it.
    shutil.rmtree("data")
    photos(Path("data"))
    assert main(["evaluate", "data", "--model", "out.pth"]) == 0
    assert main(["explain", "data/red", "--model", "out.pth", "--target", "true"]) == 0


def test_a_disk_that_refuses_is_no_usage_error(data, capsys):
    with small_disk() as disk:
        command = [
            "retrain",
            "data",
            "-o",
            f"{disk}/out.pth",
            "--model",
            TINY,
            "--from-scratch",
            "--size",
            "32",
            "-q",
        ]
        with pytest.raises(OSError, match="No space left on device"):
            (disk / "ballast").write_bytes(bytes(100_000))
        assert main(command) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(
            rf"lrp: {disk}/\S+: cannot be (written|made): No space left on device(\. What .* goes on from there)?\n",
            said,
        ), said
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert main(command) == 1
        assert (
            capsys.readouterr().err == f"lrp: {disk}/out.pth.lock: cannot be locked: Read-only file system\n"
        )


def test_without_fabric(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(TrainingError, match=r"this needs Lightning Fabric: pip install 'lrp\[train\]'\."):
        retrain(data, "out.pth", train="all", net=NET, **QUICK)
    assert retrain(data, "out.pth", **QUICK).files


def test_watching_goes_on_where_it_was_killed(data):
    options = {"train": "all", "net": NET, **QUICK}

    class Stop(Exception):
        pass

    def stop(facts, loaded):
        if facts["epoch"] == 1:
            raise Stop

    whole = Watch(["data/red/0.png"], "whole")
    retrain(data, "whole.pth", on_epoch=[whole], **options)
    with pytest.raises(Stop):
        retrain(data, "out.pth", on_epoch=[Watch(["data/red/0.png"], "out"), stop], **options)
    retrain(data, "out.pth", on_epoch=[Watch(["data/red/0.png"], "out")], **options)
    assert Path("out/development.png").read_bytes() == Path("whole/development.png").read_bytes()
    # A new training shows nothing of an older, longer one.
    one = retrain(data, "out.pth", on_epoch=[again := Watch(["data/red/0.png"], "out")], overwrite=True,
                  **options | {"net": NetSettings(epochs=1)})  # fmt: skip
    assert [entry[1] for entry in again.shown(0)] == ["epoch 0", "epoch 1"] and len(one.history) == 2


def test_a_net_whose_head_cannot_be_cut_off_begins_with_a_random_one(start, monkeypatch):
    def cut(model, example):
        raise ModelError("Tiny: its logits come from no layers that could be replaced")

    monkeypatch.setattr(module, "split_head", cut)
    found = retrain("data", "out.pth", "start.pth", train="all", net=NET, workers=0)
    assert found.notes == (
        "the training began with a random head: Tiny: its logits come from no layers that could be replaced",
    )
    with pytest.raises(ModelError, match="no layers that could be replaced"):
        retrain("data", "head.pth", "start.pth")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_is_gone_while_training(data, workers):
    lost = module.split(data).train[-1].sample.file

    def take(facts, loaded):
        lost.rename("away.png")

    with pytest.raises(TrainingError) as caught:
        retrain(data, "out.pth", train="all", net=NET, on_epoch=[take], **QUICK | {"workers": workers})
    assert str(caught.value) == (
        f"{lost}: cannot be opened: No such file or directory: it could be read when the training began. Put it back, and the same command "
        "goes on."
    )
    Path("away.png").rename(lost)
    assert retrain(data, "out.pth", train="all", net=NET, **QUICK).files


def test_photos_larger_than_usual(data, monkeypatch):
    """What was let in is let in to the end: each photo counts as one of 120 megapixels here."""
    asked = []
    for name in ("lrp.data.splits", "lrp.train.retrain", "lrp.train.batches"):
        monkeypatch.setattr(
            f"{name}.open_photo",
            lambda file, max_megapixels=100.0, range=None: (
                asked.append(max_megapixels) or lrp.open_photo(file)
            ),
        )
    for train in ("head", "all"):
        retrain(data, f"{train}.pth", train=train, net=NET, max_megapixels=150, **QUICK)
    assert set(asked) == {150} and len(asked) > 100


def test_the_last_head_is_that_of_the_last_epoch(data):
    data.rename("train")
    Path("data").mkdir()
    Path("train").rename(
        "data/train"
    )  # what is learned there is wrong here, so that the first epoch is the best
    for folder, other in (("red", "blue"), ("blue", "green"), ("green", "red")):
        shutil.copytree(f"data/train/{folder}", f"data/val/{other}")
    found = retrain(data, "out.pth", head=HeadSettings(epochs=5, weight_decay=0.01), **QUICK)
    assert found.metrics["epoch"] < len(found.history) - 1
    for file, facts in (
        ("out.pth", found.history[found.metrics["epoch"]]),
        ("out.last.pth", found.history[-1]),
    ):
        loaded = lrp.load_model(f"./{file}")
        val = module.split(data).val
        x = torch.stack([loaded.preprocessing(lrp.open_photo(e.sample.file).pixels) for e in val])
        with torch.no_grad():
            loss = nn.functional.cross_entropy(loaded.model(x), torch.tensor([e.target for e in val]))
        assert float(loss) == pytest.approx(facts["val_loss"], rel=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_more_devices_than_there_are(monkeypatch, count):
    for place in ("cuda.num_cuda_devices", "cuda._get_all_visible_cuda_devices"):
        monkeypatch.setattr(
            f"lightning_fabric.accelerators.{place}",
            lambda all="all" in place: list(range(count)) if all else count,
        )
    with pytest.raises(TrainingError) as caught:
        module.launch_devices("cuda", 2)
    assert str(caught.value).startswith("--devices 2 of cuda: ") and "\n" not in str(caught.value)
    if count:
        assert str(caught.value).endswith("You requested gpu: [0, 1] But your machine only has: [0]")


def test_someone_elses_weights(start, capsys):
    model = module.model_with_new_head(TINY, 7, pretrained=False, seed=1).model
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}, "theirs.pth")
    command = ["retrain", "data", "-m", "theirs.pth", "-o", "out.pth", "--size", "32", "--device", "cpu"]
    assert main(command) == 1
    assert "--arch" in capsys.readouterr().err
    assert main([*command, "--arch", TINY]) == 0
    made = torch.load("out.pth", weights_only=True)
    assert torch.equal(made["stem.weight"], model.state_dict()["stem.weight"]) and len(made["fc.bias"]) == 3


def test_a_bar_tells_how_it_goes(monkeypatch, capsys):
    """What comes after a comma changes; the bar goes on."""
    import lrp.cli.retrain as command

    bar = command._Bar("reading photos", quiet=False)
    with bar as advance:
        advance(3, 10, "training, epoch 1 of 2, loss 0.7, 50.0%")
        advance(2, 10, "training, epoch 1 of 2, loss 0.6, 60.0%")
        (task,) = bar.bar.tasks
        assert (task.completed, task.description) == (5, "training, epoch 1 of 2, loss 0.6, 60.0%")
        task._reset()
        advance(4, 8, "reading photos")
        assert (task.completed, task.total) == (4, 8)
    assert not command._not_the_first()
    monkeypatch.setattr("lightning_fabric.utilities.rank_zero.rank_zero_only.rank", 1)
    assert command._not_the_first()
    lines = command._Lines(4)
    clock = iter([0.0, 30.0, 60.0, 120.0, 160.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for epoch in range(5):
        lines({"epoch": epoch, "val_loss": 1.0, "val_accuracy": 0.5}, None)
    ends = [line.partition("50.0 % of val")[2] for line in capsys.readouterr().out.splitlines()]
    assert ends == ["", "; 2 min left", "; 60 s left", "; 40 s left", ""]
