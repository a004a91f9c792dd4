"""`lrp accuracy`, `confidence`, `errors`, `compare`: what they print, write, copy and complain about."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import colours
from lrp.cli import main, tables
from lrp.errors import PredictionsError
from lrp.study import csv_lines, written
from lrp.study import folder as study
from lrp.study.accuracy import accuracy as measured
from lrp.study.locate import copy_located_photos, locate_class_folders, locate_photos
from lrp.study.predictions import (
    Prediction,
    prediction_table_paths,
    prediction_table_stem,
    read_predictions,
    write_predictions,
)
from lrp.values import percent

LABELS = ("cat", "dog", "fish")
RIGHT, WRONG = (0.99999996, 0.7, 0.55, 0.4), (0.95, 0.6)


def row(path: str, true: int, predicted: int, sure: float) -> Prediction:
    rest = (1 - sure) / 2
    others = {label: rest for i, label in enumerate(LABELS) if i != predicted}
    return Prediction(
        path, LABELS[true], LABELS[predicted], sure, sure if true == predicted else rest, true == predicted,
        true_index=true, predicted_index=predicted, top5={LABELS[predicted]: sure, **others}, model="m", weights="w",
    )  # fmt: skip


@pytest.fixture
def table(tmp_path, monkeypatch):
    """18 rows of three classes with their photos below data/, four right and two wrong of each class; and two more."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for true, label in enumerate(LABELS):
        Path("data", label).mkdir(parents=True)
        for i, sure in enumerate((*RIGHT, *WRONG)):
            path = f"data/{label}/{i}.png"
            Image.new("RGB", (30 + i, 20), (80 * true, 40 * i, 90)).save(path)
            rows.append(row(path, true, true if i < 4 else (true + 1) % 3, sure - true / 1000))
    rows.append(Prediction("data/cat/x.png", "cat", status="unreadable", error="empty", true_index=0))
    rows.append(Prediction("data/owl/y.png", "", "dog", 0.5, status="unmatched", error="no class"))
    write_predictions("results.csv", rows)
    return rows


def read(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def blocks(text: str) -> dict[str, list[list[str]]]:
    """Plain tables, as a script would take them apart: title -> cells of each line."""
    found = {}
    for block in text.split("\n\n"):
        title, *lines = block.strip("\n").split("\n")
        found[title] = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return found


# --- confidence -------------------------------------------------------------------------------------------


def test_the_surest_and_the_least_sure(table, capsys):
    assert main(["confidence", "results.csv", "-n", "2"]) == 0
    out = capsys.readouterr().out
    found = blocks(out)
    assert [line[0] for line in found["Correct and surest"][1:]] == ["1", "2"]
    # In six decimals all three were 1.000000, and the first by path would have won by its name.
    assert found["Correct and surest"][1] == ["1", "99.999996 %", "cat", "data/cat/0.png"]
    assert found["Correct and surest"][2] == ["2", "99.9 %", "dog", "data/dog/0.png"]
    assert found["Correct and least sure"][1][-1] == "data/fish/3.png"
    assert found["Correct, per class"][1] == ["cat", "4", "99.999996 %", "40.0 %", "data/cat/3.png"]
    assert out.endswith(
        "-> results_confidence: confidence.csv, confidence.png, classes/cat.png, classes/dog.png, classes/fish.png\n"
    )
    rows = read("results_confidence/confidence.csv")
    assert len(rows) == 4 * 2 * 2
    right = sorted((r for r in table if r.correct), key=lambda r: (r.predicted_confidence, r.path))
    assert [r["path"] for r in rows if (r["class"], r["kind"]) == ("(all)", "lowest")] == [
        r.path for r in right[:2]
    ]
    assert [r["rank"] for r in rows[:4]] == ["1", "2", "1", "2"]
    assert float(rows[0]["confidence"]) == 0.99999996
    with Image.open("results_confidence/confidence.png") as sheet:
        assert sheet.width > 600 and sheet.height > 400


def test_copies_are_what_explain_reads(table, capsys):
    assert main(["confidence", "results.csv", "-n", "1", "--copy-to", "input", "--quiet"]) == 0
    copies = sorted(str(p) for p in Path("input").rglob("*.png"))
    assert copies == [f"input/{label}/{i}.png" for label in LABELS for i in (0, 3)]
    for file in copies:
        assert Path(file).read_bytes() == Path(file.replace("input", "data")).read_bytes()
    # Again: nothing is doubled, and what is there under that name with other content stays.
    Path("input/cat/0.png").write_bytes(b"mine")
    assert main(["confidence", "results.csv", "-n", "1", "--copy-to", "input", "--json"]) == 0
    assert Path("input/cat/0.png").read_bytes() == b"mine"
    assert Path("input/cat/0.2.png").read_bytes() == Path("data/cat/0.png").read_bytes()
    assert len(list(Path("input").rglob("*.png"))) == 7
    facts = json.loads(capsys.readouterr().out)
    assert facts["copied"] == ["input/cat/0.2.png", *copies[5:4:-1], *facts["copied"][2:]]
    assert set(facts["picks"]["overall"]) == {"label", "correct", "highest", "lowest"}


def test_explain_runs_next(tmp_path, monkeypatch, capsys):
    """The folder of the copies means the class that the table says, wherever a photo lay below its class folder."""
    rows = [
        Prediction(f"data/{wnid}/{sub}/{i}.jpg", label, label, 0.5, 0.5, True)
        for wnid, label in (("n01440764", "tench"), ("n03445777", "golf ball"))
        for sub, i in (("a", 1), ("b", 1))
    ]
    assert set(locate_class_folders(rows).values()) == {"n01440764", "n03445777"}
    files = {}
    for r in rows:
        file = tmp_path / r.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(r.path)
        files[r.path] = file
    made = list(copy_located_photos(files, locate_class_folders(rows), tmp_path / "input"))
    assert [str(m.relative_to(tmp_path)) for m in made] == [
        "input/n01440764/1.jpg", "input/n01440764/1.2.jpg", "input/n03445777/1.jpg", "input/n03445777/1.2.jpg",
    ]  # fmt: skip
    assert [m.read_text() for m in made] == list(files)


def test_class_folders_by_pencil():
    def folders(*pairs: tuple[str, str]) -> list[str]:
        return list(locate_class_folders([Prediction(p, t, t, 1, 1, True) for p, t in pairs]).values())

    assert folders(("d/val/a/1.png", "A"), ("d/val/b/1.png", "B")) == ["a", "b"]
    assert folders(("d/train/a/1.png", "A"), ("d/val/a/1.png", "A"), ("d/val/b/1.png", "B")) == [
        "a",
        "a",
        "b",
    ]
    assert folders(("/d/a/1.png", "A")) == ["a"]
    assert folders(("d/a/1.png", "A"), ("d/a/2.png", "B")) == ["a", "a"]  # nothing tells them apart
    assert folders(("1.png", "A")) == [""]
    assert locate_class_folders([]) == {}


def test_photos_that_moved(table, tmp_path, capsys):
    shutil.move("data", "elsewhere")
    assert main(["confidence", "results.csv", "-n", "1", "--quiet"]) == 3
    assert capsys.readouterr().err == (
        "lrp: 6 of the 6 photos shown are not there, the first is data/cat/0.png; --root says where the data is now.\n"
    )
    assert Path("results_confidence/confidence.csv").exists()
    assert not Path("results_confidence/confidence.png").exists()
    assert main(["confidence", "results.csv", "-n", "1", "--root", "elsewhere", "--quiet"]) == 0
    assert Path("results_confidence/confidence.png").exists()
    # Gone again: the old sheet would be of no photo.
    assert main(["confidence", "results.csv", "-n", "1", "--quiet"]) == 3
    assert not Path("results_confidence/confidence.png").exists()
    assert main(["confidence", "results.csv", "--root", "nowhere"]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["confidence", "results.csv", "-n", "1", "--root", "empty", "-q"]) == 3
    assert "the first is data/cat/0.png below empty.\n" in capsys.readouterr().err


def test_where_photos_are(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "new" / "val" / name).parent.mkdir(parents=True)
        (tmp_path / "new" / "val" / name).touch()
    paths = ["/old/data/val/a/1.png", "/old/data/val/b/1.png", "/old/data/val/b/2.png"]
    new = tmp_path / "new"
    assert locate_photos(paths) == {}
    assert locate_photos(paths, new) == {paths[0]: new / "val/a/1.png", paths[1]: new / "val/b/1.png"}
    # Not by the names of files alone as long as more fit with their folders.
    (new / "1.png").touch()
    assert locate_photos(paths[:2], new) == {paths[0]: new / "val/a/1.png", paths[1]: new / "val/b/1.png"}
    assert locate_photos([], new) == {}


def test_nothing_correct(table, capsys):
    write_predictions("bad.csv", [r for r in table if not r.correct])
    assert main(["confidence", "bad.csv"]) == 0
    assert "-> bad_confidence: confidence.csv\n" in capsys.readouterr().out
    assert read("bad_confidence/confidence.csv") == []


# --- errors -----------------------------------------------------------------------------------------------


def test_mistakes(table, capsys):
    assert main(["errors", "results.csv", "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "18 images, 6 mistakes: top-1 66.7 % (43.7 to 83.7), top-5 100.0 % (82.4 to 100.0)\n"
    )
    assert (
        "1 more files could not be read: left out\n1 more files of no class of the model: left out\n" in out
    )
    found = blocks(out)
    assert found["Most often taken for another"][1:] == [
        ["cat", "dog", "2", "33.3 %"], ["dog", "fish", "2", "33.3 %"], ["fish", "cat", "2", "33.3 %"],
    ]  # fmt: skip
    worst = [line[-1] for line in found["Most confident mistakes"][1:]]
    assert worst == ["data/cat/4.png", "data/dog/4.png", "data/fish/4.png"]
    folder = Path("results_errors")
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "classes.csv", "confusion.csv", "pairs.csv", "mistakes.csv", "calibration.csv", "mistakes.png",
        "confusion.png", "confusion.svg", "reliability.png", "reliability.svg",
    }  # fmt: skip
    matrix = [line.split(",") for line in (folder / "confusion.csv").read_text().splitlines()]
    assert matrix == [
        ["true / predicted", "cat", "dog", "fish"],
        ["cat", "4", "2", "0"], ["dog", "0", "4", "2"], ["fish", "2", "0", "4"],
    ]  # fmt: skip
    (cat, *_), mistakes = read(folder / "classes.csv"), read(folder / "mistakes.csv")
    assert (cat["images"], cat["predicted"]) == ("6", "6")
    assert [float(cat[k]) for k in ("precision", "recall", "f1", "top5")] == pytest.approx(
        [2 / 3, 2 / 3, 2 / 3, 1]
    )
    assert len(mistakes) == 6 and mistakes[0]["path"] == "data/cat/4.png"
    bins = read(folder / "calibration.csv")
    assert len(bins) == 15 and sum(int(b["images"]) for b in bins) == 18
    # The expected calibration error from the file, by its definition.
    ece = sum(
        int(b["images"]) / 18 * abs(float(b["mean_confidence"]) - float(b["accuracy"]))
        for b in bins
        if b["accuracy"]
    )
    assert f"expected calibration error (ECE) {100 * ece:.1f} %" in out
    assert b"<svg" in (folder / "confusion.svg").read_bytes()[:600]


def test_errors_as_json(table, capsys):
    assert main(["errors", "results.csv", "--json", "-o", "deep/er"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["confusion"]["matrix"] == [[4, 2, 0], [0, 4, 2], [2, 0, 4]]
    assert facts["written"]["folder"] == "deep/er" and Path("deep/er/mistakes.png").exists()
    assert facts["accuracy"]["top1"]["successes"] == 12


def test_without_a_mistake(table, capsys):
    write_predictions("good.csv", [r for r in table if r.correct])
    assert main(["errors", "good.csv"]) == 0
    out = capsys.readouterr().out
    assert "12 images, 0 mistakes: top-1 100.0 %" in out and "Most confident mistakes" not in out
    assert not Path("good_errors/mistakes.png").exists()


def test_of_nothing(table, capsys):
    write_predictions("none.csv", [r for r in table if not r.counted])
    for command in ("errors", "confidence"):
        assert main([command, "none.csv"]) == 0
    assert "0 images, 0 mistakes: top-1 -, top-5 -" in capsys.readouterr().out
    assert main(["compare", "none.csv", "none.csv"]) == 0
    assert (
        "2 images in both files could not be read, or have no class of the model" in capsys.readouterr().out
    )


def test_six_columns_are_enough(table, capsys):
    with open("six.csv", "w") as file:
        file.write("path,true_label,predicted_label,predicted_confidence,true_confidence,correct\n")
        for r in table[:18]:
            file.write(f"{r.path},{r.true_label},{r.predicted_label},{r.predicted_confidence},,{r.correct}\n")
    for command in (["confidence", "six.csv"], ["errors", "six.csv"], ["compare", "six.csv", "results.csv"]):
        assert main(command) == 0, command
    assert "top-5 -" in capsys.readouterr().out


def test_without_matplotlib(table, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["errors", "results.csv"]) == 3
    printed, said = capsys.readouterr()
    assert "Most confident mistakes" in printed
    assert said == (
        "lrp: no plot of confusion: it needs matplotlib: pip install 'lrp[study]'.\n"
        "lrp: no plot of reliability: it needs matplotlib: pip install 'lrp[study]'.\n"
    )
    assert (Path("results_errors") / "mistakes.png").exists()


@pytest.mark.parametrize("command", [["confidence"], ["errors"], ["compare", "results.csv"]])
def test_a_table_that_is_none(table, command, capsys):
    Path("wrong.csv").write_text("a,b\n1,2\n")
    assert main([*command, "wrong.csv"]) == 1
    assert capsys.readouterr().err.startswith("lrp: wrong.csv: line 1")
    assert main([*command, "gone.csv"]) == 2
    assert "gone.csv" in capsys.readouterr().err
    Path("taken").touch()
    assert main([*command, "results.csv", "-o", "taken/deep"]) == 1
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_a_thousand_classes_have_no_thousand_sheets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9)).save("1.png")
    rows = [Prediction("1.png", "0", "0", 0.5, 0.5, True)]
    rows += [Prediction(f"{i}/1.png", f"{i}", f"{i}", 0.5, 0.5, True) for i in range(1, study.SHEETS + 1)]
    write_predictions("r.csv", rows)
    assert [f for f in study.confidence("r.csv").written.files if f.startswith("classes")] == []
    write_predictions("r.csv", rows[: study.SHEETS])
    assert study.confidence("r.csv").written.files == ("confidence.csv", "confidence.png", "classes/0.png")


def test_names_of_classes_become_names_of_files():
    assert written.written_file_names(["a/b", "a:b", "A_b", "..", "", "crane (bird)", "é", "x" * 300]) == [
        "a_b", "a_b.2", "A_b.3", "_", "_.2", "crane (bird)", "é", "x" * 80,
    ]  # fmt: skip


def test_a_table_runs_no_formula(tmp_path):
    csv_lines.write_csv_table(tmp_path / "t.csv", ("=a", "b"), [("=1+1", -0.5), ("@x", None), ("a,b", 3)])
    assert (tmp_path / "t.csv").read_text() == "'=a,b\n'=1+1,-0.5\n'@x,\n\"a,b\",3\n"


# --- compare ----------------------------------------------------------------------------------------------


@pytest.fixture
def twins(table):
    """B gains two cats and loses one fish."""
    after = list(table)
    after[4], after[5] = row("data/cat/4.png", 0, 0, 0.9), row("data/cat/5.png", 0, 0, 0.8)
    after[12] = row("data/fish/0.png", 2, 0, 0.7)
    write_predictions("after.csv", after)
    return table, after


def test_before_and_after(twins, capsys):
    assert main(["compare", "results.csv", "after.csv"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("A = results, B = after\n2 images in both files could not be read")
    found = blocks(out)
    shares = {line[0]: line[-1] for line in found["Accuracy (95 % interval)"][1:]}
    assert shares["A"] == "66.7 % (43.7 to 83.7)" and shares["B"] == "72.2 % (49.1 to 87.5)"
    assert shares["McNemar's test"] == "p 1.000" and (shares["gained"], shares["lost"]) == ("2", "1")
    assert shares["B - A"].startswith("+5.6 points (")
    assert [line[-1] for line in found["Gained: A wrong, B right"][1:]] == [
        "data/cat/4.png",
        "data/cat/5.png",
    ]
    assert [line[-1] for line in found["Lost: A right, B wrong"][1:]] == ["data/fish/0.png"]
    folder = Path("results_vs_after")
    images = read(folder / "images.csv")
    assert len(images) == 18
    assert {i["path"]: i["outcome"] for i in images if i["outcome"] in ("gained", "lost")} == {
        "data/cat/4.png": "gained", "data/cat/5.png": "gained", "data/fish/0.png": "lost",
    }  # fmt: skip
    for i, a, b in zip(images, *((r for r in t if r.counted) for t in twins), strict=True):
        assert float(i["true_confidence_change"] or 0) == pytest.approx(
            b.true_confidence - a.true_confidence, abs=1e-9
        )
    classes = {c["class"]: c for c in read(folder / "classes.csv")}
    assert (classes["cat"]["gained"], classes["fish"]["lost"]) == ("2", "1")
    assert {p.name for p in folder.glob("*.*g")} == {
        "gained.png", "lost.png", "moved.png", "comparison.png", "comparison.svg",
    }  # fmt: skip
    assert main(["compare", "results.csv", "after.csv", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["comparison"]["overall"]["gained"] == 2


def test_other_classes_are_said(twins, capsys):
    """A thousand classes against the data's own."""
    rows = [replace(r, predicted_label="tank", predicted_index=900, correct=False, top5={"tank": 0.4, "cat": 0.3})
            if r.path == "data/dog/5.png" else r for r in twins[0]]  # fmt: skip
    write_predictions("wide.csv", rows)
    assert main(["compare", "wide.csv", "after.csv"]) == 0
    out = capsys.readouterr().out
    assert "The class sets differ: wide shows 4 classes, after 3, 3 of them in both." in out
    assert "the 3 shared classes" in out


def test_nothing_in_common(table, capsys):
    write_predictions("other.csv", [row("else/1.jpg", 0, 0, 0.5)])
    assert main(["compare", "results.csv", "other.csv"]) == 1
    assert capsys.readouterr().err == (
        "lrp: expected images that are in both files, got other with 'else/1.jpg' and results with "
        "'data/cat/0.png', which are not the same below any folder; evaluate both models on the same data.\n"
    )


# --- accuracy ---------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    from lrp.models import loading as models

    monkeypatch.chdir(tmp_path)
    colours.photos(tmp_path / "data", 3)

    def load(name, **_):
        if name == "absent":
            raise models.ModelError("no model 'absent'.")
        loaded = colours.loaded()
        if name == "other":
            return loaded._replace(class_names=("a", "b", "c", "d"))
        if name == "poor":
            loaded.model.scale.data.fill_(-6.0)
        return loaded

    monkeypatch.setattr(models, "load_model", load)
    return load


def test_models_side_by_side(checkpoints, capsys):
    assert main(["accuracy", "data", "-m", "good", "-m", "poor", "--csv", "--plot", "p.svg"]) == 0
    out = capsys.readouterr().out
    found = blocks(out)
    lines = {line[0]: line for line in found["Accuracy"][1:]}
    right = sum(bool(r.correct) for r in read_predictions("good_results.csv"))
    assert lines["good"][2].startswith(f"{100 * right / 9:.1f} % (")
    assert lines["poor"][2].startswith("0.0 % (") and lines["good"][3].startswith("100.0 % (")
    loss = sum(-math.log(r.true_confidence) for r in read_predictions("good_results.csv")) / 9
    assert lines["good"][4] == f"{loss:.3f}"
    assert out.endswith("-> good_results.csv, poor_results.csv, accuracy.csv, p.svg, p_classes.svg\n")
    rows = read("accuracy.csv")
    assert [(r["model"], r["class"]) for r in rows] == [
        (m, c) for m in ("good", "poor") for c in ("(all)", "red", "green", "blue")
    ]
    assert float(rows[0]["top1"]) == pytest.approx(right / 9) and float(
        rows[0]["mean_loss"]
    ) == pytest.approx(loss)
    assert float(rows[0]["images_per_second"]) > 0 and rows[1]["images_per_second"] == ""
    # Again: the tables are there, and no time is known.
    assert main(["accuracy", "data", "-m", "good", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["models"][0]
    assert facts["images_per_second"] is None and facts["accuracy"]["counted"] == 9
    assert sorted(facts["accuracy"]) == sorted([
        "total", "counted", "unreadable", "unmatched", "top1", "top5", "loss", "confidence", "classes",
    ])  # fmt: skip


def test_one_model_stops_no_other(checkpoints, capsys):
    assert main(["accuracy", "data", "-m", "absent", "-m", "good"]) == 3
    printed, said = capsys.readouterr()
    assert said == "lrp: absent: no model 'absent'.\n" and "good" in printed and "absent" not in printed
    assert main(["accuracy", "data", "-m", "absent"]) == 1
    assert main(["accuracy", "data", "-m", "other"]) == 2
    assert "no class folder of 3 ('blue', 'green', 'red') is a class of the model" in capsys.readouterr().err
    Path("data/red/z.png").touch()
    assert main(["accuracy", "data", "-m", "poor"]) == 3
    assert capsys.readouterr().err == "lrp: poor: 1 files could not be read: see poor_results.csv.\n"


def test_csv_and_plot_with_and_without_a_name(checkpoints, capsys):
    assert main(["accuracy", "data", "-m", "good", "--csv", "a.csv", "--plot", "-q"]) == 0
    assert {p.name for p in Path().glob("a*.*")} == {
        "a.csv", "accuracy.png", "accuracy.svg", "accuracy_classes.png", "accuracy_classes.svg",
    }  # fmt: skip
    assert main(["accuracy", "--csv", "data", "-m", "good"]) == 2
    assert main(["accuracy", "data", "--csv", "data", "-m", "good"]) == 2
    assert (
        "data is a folder: --csv and --plot take a file's name, or none."
        in capsys.readouterr().err.replace("\n", " ").replace("│", "").replace("  ", " ")
    )


def test_models_share_no_table():
    assert prediction_table_stem("timm:resnet18.a1_in1k") == "timm_resnet18.a1_in1k"
    assert [str(p) for p in prediction_table_paths(["vgg19", "timm:vgg19", "a/m.pth", "b/m.pth"], "out")] == [
        "out/vgg19_results.csv", "out/timm_vgg19_results.csv", "out/a_m.pth_results.csv", "out/b_m.pth_results.csv",
    ]  # fmt: skip


def test_the_function(checkpoints):
    told = []
    found = list(
        measured(
            "data", {"good": checkpoints("good")}, "out/deep",
            advance=lambda *facts: told.append(facts), batch_size=4,
        )
    )  # fmt: skip
    assert [f.model for f in found] == ["good"] and Path("out/deep/good_results.csv").exists()
    assert sum(done for _, done, _ in told) == 9 and {t[2] for t in told} == {9}


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0 %"), (0.5, "50.0 %"), (0.9994, "99.9 %"), (0.9999, "99.99 %"), (0.999999, "99.9999 %"),
     (1, "100.0 %"), (1 - 1e-12, "100.00000000 %")],
)  # fmt: skip
def test_percent(value, text):
    assert percent(value) == text


def test_a_table_on_a_terminal_is_never_cut(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    tables.print_table(
        "T", ("name", ">number"), [["photos/n01440764/some_long_name.jpg", "87.8 % (84.6 to 90.4)"]]
    )
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 40, out
    letters = "".join(out.split())
    assert all(part in letters for part in ("87.8%", "(84.6", "90.4)"))
    assert all(c in letters for c in "photos/n01440764") and "…" not in out


def test_a_table_in_a_pipe_is_plain(capsys):
    tables.print_table("T", ("name", ">number"), [["a\x1b[31m", "1"], ["bb", "22"]])
    assert capsys.readouterr().out == "T\nname    number\na?[31m       1\nbb          22\n\n"


def test_study_needs_no_torch():
    code = "import sys, lrp.study.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_copying_into_what_is_no_folder(table):
    Path("input").touch()
    with pytest.raises(PredictionsError, match=r"cannot be copied to input/cat/0\.png: "):
        study.confidence("results.csv", copy_to="input")
    assert not list(Path().glob("**/.lrp-*")) and os.path.getsize("input") == 0
    assert np.asarray(Image.open("data/cat/0.png")).size
