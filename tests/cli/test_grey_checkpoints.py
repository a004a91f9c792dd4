"""A checkpoint whose first convolution takes one channel, by the commands: explain, evaluate, retrain, rules, export."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import lrp
from helpers.training import TINY, Tiny
from lrp.cli import main
from lrp.models.checkpoints import save_checkpoint
from lrp.models.loading import load_model
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry

NAMES = ("coarse", "fine")
GREY = Preprocessing(Geometry(None, (32, 32)), (0.4,), (0.25,))


def stripes(folder: Path, count: int = 6) -> Path:
    """Grey stripes, wide ones and narrow ones; the last of each class as a colour photo."""
    for name, width in zip(NAMES, (8, 2), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 60, (32, 32))
            levels = (noise + 150 * ((np.arange(32) + i) // width % 2)).astype(np.uint8)
            photo = Image.fromarray(levels)
            (photo if i < count - 1 else photo.convert("RGB")).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def grey(tmp_path, monkeypatch):
    """A model of one channel, saved as grey.pth with its sidecar; and photos in data/."""
    monkeypatch.chdir(tmp_path)
    stripes(Path("data"))
    torch.manual_seed(0)
    model = Tiny(2, in_chans=1).eval()
    save_checkpoint("grey.pth", model, TINY, NAMES, GREY)
    return model


def seen(file: Path) -> torch.Tensor:
    """What the model is to see, without the package: one channel, normalised."""
    levels = np.asarray(Image.open(file).convert("L"), np.float32)
    return torch.from_numpy((levels / 255 - 0.4) / 0.25)[None, None]


def test_explain(grey, capsys):
    assert (
        main(["explain", "data", "--model", "grey.pth", "-c", "epsilon_gamma_box", "--json", "--save", "npz"])
        == 0
    )
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 12
    for record in records:
        x = seen(record["path"])
        logits = grey(x).detach()[0]
        assert record["predicted_index"] == int(logits.argmax()) and record["health"]["ok"]
        assert record["logit"] == pytest.approx(float(logits.max()), abs=1e-5)
        box = lrp.preset("epsilon_gamma_box", low=[-0.4 / 0.25], high=[0.6 / 0.25])
        expected = lrp.explain(grey, x, composite=box).relevance[0].numpy()
        saved = np.load(Path(record["output"]).with_suffix(".npz"))["relevance"]
        assert saved.shape == (1, 32, 32)
        np.testing.assert_allclose(saved, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_evaluate(grey, capsys):
    assert main(["evaluate", "data", "--model", "grey.pth", "-o", "grey.csv", "--quiet"]) == 0
    with open("grey.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        confidence = grey(seen(row["path"])).detach().softmax(1)[0]
        assert row["predicted_label"] == NAMES[int(confidence.argmax())]
        assert float(row["predicted_confidence"]) == pytest.approx(float(confidence.max()), abs=1e-6)


@pytest.mark.parametrize("train", ["head", "all"])
def test_retrain(grey, capsys, train, monkeypatch):
    monkeypatch.setattr("lrp.study.plots.save_figure", lambda figure, path: Path(path).touch())
    command = [
        "retrain",
        "data",
        "-o",
        "new.pth",
        "--model",
        "grey.pth",
        "--train",
        train,
        "--epochs",
        "2",
        "--workers",
        "0",
    ]
    assert main([*command, "--quiet"]) == 0
    loaded = load_model("new.pth")
    assert loaded.model.stem.weight.shape == (8, 1, 3, 3) and loaded.preprocessing == GREY
    if train == "head":
        assert torch.equal(loaded.model.stem.weight, grey.stem.weight)
    assert main(["explain", "data/fine/0.png", "--model", "new.pth", "--quiet"]) == 0
    assert main(["rules", "new.pth"]) == 0
    assert "stem" in capsys.readouterr().out


def test_without_a_sidecar_one_channel_is_seen_from_the_file(tmp_path, monkeypatch, capsys):
    """Mean and deviation are the averages of the published ones."""
    monkeypatch.chdir(tmp_path)
    stripes(Path("data"), 1)
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=2)
    model.features[0] = torch.nn.Conv2d(1, 64, 3, 2)
    torch.save(model.eval().state_dict(), "bare.pt")
    loaded = load_model("bare.pt", arch="squeezenet1_1", labels=NAMES)
    assert loaded.preprocessing.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert loaded.preprocessing.std == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(loaded.model(x), model(x))
    Path("names.txt").write_text("\n".join(NAMES))
    command = [
        "explain",
        "data",
        "--model",
        "bare.pt",
        "--arch",
        "squeezenet1_1",
        "--labels",
        "names.txt",
        "--size",
        "64",
    ]
    assert main([*command, "--quiet"]) == 0


@pytest.mark.parametrize(
    ("channels", "preprocessing", "text"),
    [
        (3, GREY, "bad.pth does not fit timm:tiny_of_the_tests: 1 of another shape (stem.weight is [8, 3, 3, 3], expected [8, 1, 3, 3])."),
        (
            1, Preprocessing(Geometry(None, (32, 32)), (0.4,) * 3, (0.25,) * 3),
            "bad.pth does not fit timm:tiny_of_the_tests: 1 of another shape (stem.weight is [8, 1, 3, 3], expected [8, 3, 3, 3]).",
        ),
    ],
)  # fmt: skip
def test_weights_and_sidecar_that_disagree(grey, capsys, channels, preprocessing, text):
    save_checkpoint("bad.pth", Tiny(2, in_chans=channels), TINY, NAMES, preprocessing)
    assert main(["explain", "data", "--model", "bad.pth"]) == 1
    assert capsys.readouterr().err == f"lrp: {text}\n"
