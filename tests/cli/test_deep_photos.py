"""Photos of 12 bits in 16, of floats, and of several pages, by the commands: what is assumed is said, --range settles it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.small_models import small_model
from helpers.training import TINY, Tiny
from lrp.cli import main
from lrp.gallery.explain_folder import explain_folder
from lrp.gallery.options import ExplainOptions
from lrp.models.checkpoints import save_checkpoint
from lrp.models.loading import load_model
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry
from lrp.pictures.photos import open_photo
from lrp.study.evaluate import evaluate

NAMES = ("dark", "light")
TWELVE = "12 of 16 bits: levels 0 to 4095 are black to white"
RANGES = (
    "lrp: the range of grey levels is assumed, for each file by its own levels: where files are to be compared, give all of them "
    "one with --range LOW HIGH.\n"
)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Six photos of 12 bits for each class, and a model file for them."""
    monkeypatch.chdir(tmp_path)
    for name, least in zip(NAMES, (0, 2000), strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            levels = np.random.default_rng(i).integers(least, least + 2096, (32, 32)).astype(np.uint16)
            levels[0, 0] = 4000
            Image.fromarray(levels).save(tmp_path / "data" / name / f"{i}.png")
    save_checkpoint(
        "m.pth", Tiny(2), TINY, NAMES, Preprocessing(Geometry(None, (32, 32)), (0.5,) * 3, (0.25,) * 3)
    )
    return Path("data")


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_is_assumed_is_said_of_each_file_and_once_in_words(data, capsys):
    assert main(["explain", "data", "--model", "m.pth"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(f"({TWELVE})\n") == 12
    assert printed.err.count(RANGES) == 1
    assert main(["explain", "data", "--model", "m.pth", "--json"]) == 0  # those that are kept say it too
    printed = capsys.readouterr()
    assert all(r["status"] == "kept" and r["notes"] == [TWELVE] for r in records(printed.out))
    assert printed.err.count(RANGES) == 1


def test_a_range_makes_other_pictures_and_says_nothing(data, capsys):
    assert main(["explain", "data/dark/0.png", "--model", "m.pth", "--json"]) == 0
    assert main(["explain", "data/dark/0.png", "--model", "m.pth", "--json", "--range", "0", "65535"]) == 0
    assert main(["explain", "data/dark/0.png", "--model", "m.pth", "--json", "--range", "0", "65535"]) == 0
    printed = capsys.readouterr()
    found = records(printed.out)
    assert [r["status"] for r in found] == ["ok", "ok", "kept"]
    assert [r["notes"] for r in found] == [[TWELVE], [], []]
    assert found[0]["logit"] != found[1]["logit"] == found[2]["logit"]
    assert main(["explain", "data/dark/0.png", "--model", "m.pth", "--range", "9", "9"]) == 2
    assert "--range=(9.0, 9.0): expected (LOW, HIGH), two finite numbers, LOW below HIGH" in " ".join(
        capsys.readouterr().err.replace("│", " ").split()
    )


def test_floats_need_a_range(data, capsys):
    levels = np.linspace(-1000, 3000, 1024, dtype=np.float32).reshape(32, 32)
    Image.fromarray(levels).save("ct.tiff")
    assert main(["explain", "ct.tiff", "--model", "m.pth"]) == 3
    assert capsys.readouterr().out.startswith(
        "skipped  ct.tiff: holds floats from -1000 to 3000, and nothing says which is black and which white: say it with "
        "--range LOW HIGH (range=(LOW, HIGH))\n"
    )
    assert main(["explain", "ct.tiff", "--model", "m.pth", "--range", "-1000", "3000"]) == 0
    (result,) = explain_folder("ct.tiff", "out", small_model(), options=ExplainOptions(range=(-1000, 3000)))
    assert result.status == "ok"


def test_evaluate_says_it_once_and_takes_a_range(data, capsys):
    assert main(["evaluate", "data", "--model", "m.pth", "-o", "a.csv", "--quiet"]) == 0
    assert capsys.readouterr().err == f"lrp: some files: {TWELVE}.\n{RANGES}"
    assert (
        main(["evaluate", "data", "--model", "m.pth", "-o", "b.csv", "--quiet", "--range", "0", "4095"]) == 0
    )
    assert capsys.readouterr().err == ""
    a, b = (Path(name).read_text(encoding="utf-8") for name in ("a.csv", "b.csv"))
    assert a == b  # 0 to 4095 it was
    found = evaluate(data, "m.pth", "c.csv", range=(0, 65535))
    assert found.notes == [] and Path("c.csv").read_text(encoding="utf-8") != a


@pytest.mark.parametrize("train", ["head", "all"])
def test_retrain_stores_the_range_that_it_was_given(data, capsys, monkeypatch, train):
    monkeypatch.setattr("lrp.study.plots.save_figure", lambda figure, path: Path(path).touch())
    command = ["retrain", "data", "--model", "m.pth", "--epochs", "1", "--workers", "0", "--train", train]
    assert main([*command, "-o", "a.pth"]) == 0
    assert f"lrp: 12 photos: {TWELVE}.\n" in capsys.readouterr().err
    assert load_model("a.pth").preprocessing.range is None
    assert main([*command, "-o", "b.pth", "--range", "500", "4095", "--watch", "data/dark/0.png"]) == 0
    assert TWELVE not in capsys.readouterr().err
    assert load_model("b.pth").preprocessing.range == (500.0, 4095.0)
    # A command that is given none reads photos as they were read in training.
    assert main(["explain", "data/dark/0.png", "--model", "b.pth", "--json"]) == 0
    assert (
        main(
            ["explain", "data/dark/0.png", "--model", "b.pth", "--json", "--range", "500", "4095", "-o", "c"]
        )
        == 0
    )
    one, two = records(capsys.readouterr().out)
    assert one["notes"] == [] and one["logit"] == two["logit"]


def test_the_page_of_several_is_said(data, capsys):
    pages = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (40, 90, 200)]
    pages[0].save("scan.tiff", save_all=True, append_images=pages[1:])
    pages[0].save("film.gif", save_all=True, append_images=pages[1:])
    assert main(["explain", "scan.tiff", "film.gif", "--model", "m.pth"]) == 0
    printed = capsys.readouterr()
    assert "  (page 1 of 3)\n" in printed.out and "  (frame 1 of 3)\n" in printed.out and printed.err == ""
    results = explain_folder(["scan.tiff", "film.gif"], "out", small_model())
    assert [r.facts["notes"] for r in results] == [["page 1 of 3"], ["frame 1 of 3"]]
    assert open_photo("scan.tiff").notes == ("page 1 of 3",)
