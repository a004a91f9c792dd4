"""`lrp retrain` end to end: what is learned, saved, loaded, resumed and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lrp
from disks import small_disk
from lrp import retrain as module
from lrp.cli import main
from lrp.data import DataSet
from lrp.errors import LrpError, TrainingError
from lrp.evaluate import evaluate
from lrp.fit_all import NetSettings
from lrp.fit_head import HeadSettings
from lrp.predictions import read_predictions
from lrp.retrain import retrain
from lrp.watch import Watch

TINY = "timm:test_resnet"
COLOURS = {"red": 0, "green": 1, "blue": 2}


def photos(root: Path, count: int = 10, start: int = 0) -> Path:
    """Noise, tinted as the folder says."""
    for folder, channel in COLOURS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            random = np.random.default_rng(1000 * channel + start + i)
            pixels = random.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return photos(Path("data"))


QUICK = {"size": 32, "pretrained": False, "model": TINY}
NET = NetSettings(epochs=2, batch_size=8, learning_rate=2e-3)


def same(a: str | Path, b: str | Path) -> bool:
    one, two = (torch.load(path, weights_only=True) for path in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("train", ["head", "all"])
def test_learned_saved_loaded_and_evaluated_to_the_same_number(data, train, suffix):
    found = retrain(data, f"out{suffix}", train=train, net=NET, **QUICK)
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
    if suffix == ".pth":  # with nothing of ours
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
    start = module.adapted(TINY, 3, pretrained=False, seed=0).model.state_dict()
    retrain(data, "out.pth", **QUICK)
    trained = torch.load("out.pth", weights_only=True)
    assert [name for name in start if not torch.equal(start[name], trained[name])] == ["fc.weight", "fc.bias"]
    retrain(data, "all.pth", train="all", net=NET, **QUICK)
    everything = torch.load("all.pth", weights_only=True)
    assert not torch.equal(everything["conv1.0.weight"], start["conv1.0.weight"])


def test_vgg19_both_modes(data):
    for train in ("head", "all"):
        found = retrain(
            data, f"{train}.pth", "vgg19", train=train, pretrained=False, size=32,
            head=HeadSettings(epochs=2, weight_decay=1.0), net=NetSettings(epochs=1, batch_size=16),
        )  # fmt: skip
        loaded = lrp.load_model(f"./{train}.pth")
        import torchvision

        plain = torchvision.models.vgg19(weights=None, num_classes=3)
        plain.load_state_dict(torch.load(f"{train}.pth", weights_only=True))
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(plain.eval()(x), loaded.model(x), rtol=1e-5, atol=1e-4)
            assert len(found.history) in (2, 3)
        os.unlink(f"{train}.pth")
        os.unlink(f"{train}.last.pth")


DRIVER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_retrain as t
from lrp import retrain as module
count = 0
def stop(name):
    real = getattr(module._Run, name)
    def call(self, *args, **kwargs):
        global count
        for after in (False, True):
            count += 1
            if count == {kill}:
                os.kill(os.getpid(), signal.SIGKILL)
            if not after:
                result = real(self, *args, **kwargs)
        return result
    setattr(module._Run, name, call)
for name in ("tell", "keep", "_save", "_write_history", "after_epoch", "_draw"):
    stop(name)
t.retrain({data!r}, {output!r}, train={train!r}, net=t.NET, head=t.HeadSettings(epochs=4), **t.QUICK)
print(count)
"""


def run(data: str, output: str, train: str, kill: int) -> subprocess.CompletedProcess[str]:
    code = DRIVER.format(tests=str(Path(__file__).parent), data=data, output=output, train=train, kill=kill)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("train", ["head", "all"])
def test_killed_and_resumed_it_ends_with_the_same_numbers(data, train):
    done = run("data", "whole.pth", train, 0)
    assert done.returncode == 0, done.stderr
    points = int(done.stdout)
    assert points > 12
    whole = json.loads(Path("whole.history.json").read_text())
    for kill in sorted({points // 3, points // 2, points - 5}):
        killed = run("data", "k.pth", train, kill)
        assert killed.returncode == -signal.SIGKILL
        resumed = run("data", "k.pth", train, 0)
        assert resumed.returncode == 0, resumed.stderr
        assert same("k.pth", "whole.pth") and same("k.last.pth", "whole.last.pth"), kill
        timeless = [
            [{k: v for k, v in f.items() if k not in ("seconds", "images_per_second")} for f in history]
            for history in (whole, json.loads(Path("k.history.json").read_text()))
        ]
        assert timeless[0] == timeless[1]
        assert not list(Path().glob("k*.resume")) and not list(Path().glob(".*.part")) + list(
            Path().glob("*.part")
        )
        for file in Path().glob("k*"):
            file.unlink()


def test_what_was_begun_by_another_command_is_refused(data):
    killed = run("data", "k.pth", "head", 9)
    assert killed.returncode == -signal.SIGKILL and Path("k.pth.resume").exists()
    with pytest.raises(TrainingError) as caught:
        retrain("data", "k.pth", head=HeadSettings(epochs=5), **QUICK)
    assert str(caught.value).startswith("k.pth: was begun by another run: settings was '")
    assert str(caught.value).endswith("start over with --overwrite, or choose another -o.")
    Path("k.pth.resume").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"k\.pth\.resume is damaged: start over with --overwrite"):
        retrain("data", "k.pth", **QUICK)
    assert retrain("data", "k.pth", overwrite=True, **QUICK).metrics["val_accuracy"] == 1.0


def test_a_full_disk_loses_nothing(data, tmp_path):
    with small_disk("1m") as disk:  # a MiB; the weights have 1.9
        with pytest.raises(LrpError, match=r"No space left|cannot be|unexpected pos"):
            retrain(data, disk / "out.pth", cache=tmp_path / "cache", **QUICK)
        assert not (disk / "out.pth").exists() and not list(disk.glob("*.lock")) + list(disk.glob("*.part"))
    assert retrain(data, "out.pth", cache=tmp_path / "cache", **QUICK).metrics["val_accuracy"] == 1.0


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
        from lrp.lock import Lock
        Lock(Path("out.pth")); print("held", flush=True); input()
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
    """Two halves of 12 photos, without batch norm's own view of each half, are one step of 24."""
    results = []
    for settings in (
        NetSettings(epochs=1, batch_size=24, crop=1, mirror=False, patience=9),
        NetSettings(epochs=1, batch_size=12, accumulate=2, crop=1, mirror=False, patience=9),
    ):
        name = f"{settings.batch_size}.pth"
        retrain(data, name, "alexnet", train="all", net=settings, pretrained=False, size=64)
        results.append(torch.load(f"{settings.batch_size}.last.pth", weights_only=True))
    # AlexNet drops out at random; its convolutions before see the same gradients only on average. So compare shapes
    # of change, not bits: the steps were as large.
    start = module.adapted("alexnet", 3, pretrained=False).model.state_dict()
    moved = [float((r["features.0.weight"] - start["features.0.weight"]).norm()) for r in results]
    assert moved[0] > 0 and moved[1] == pytest.approx(moved[0], rel=0.2)


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
    entry = watch.shown[1][-1]
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


def test_without_fabric(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(TrainingError, match=r"this needs Lightning Fabric: pip install 'lrp\[train\]'\."):
        retrain(data, "out.pth", train="all", net=NET, **QUICK)
    assert retrain(data, "out.pth", **QUICK).files
