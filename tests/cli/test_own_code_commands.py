"""`--model module:function` on the command line: every command takes it, says that it runs it, and notices its changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.own_code import SOURCE, Directory
from helpers.small_models import write_photos
from lrp.cli import main
from lrp.study.predictions import read_predictions

CPU = ["--device", "cpu"]


@pytest.fixture
def name(directory: Directory) -> str:
    """A module of the user's, and six photos in class folders."""
    write_photos(directory.path / "input", 3)
    return directory.write(SOURCE)


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[str], list[str]]:
    """(lines on stdout, lines on stderr) of a command that ends with this code."""
    assert main([*arguments]) == code
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def statuses(capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    out, _ = run(capsys, "explain", "input", "-m", f"{name}:build", "--json", *CPU)
    return [json.loads(line)["status"] for line in out]


def test_explain_says_once_that_it_runs_the_code_and_notices_its_changes(directory, name, capsys):
    out, err = run(capsys, "explain", "input", "-m", f"{name}:build", *CPU)
    assert err == [f"{name}:build: running your code, {directory.path / name}.py."]
    assert out[-1] == (
        f"A page to look through: lrp evaluate input --model {name}:build -o output/results.csv; "
        f"lrp report output/results.csv --model {name}:build"
    )
    assert len(list(Path("output").rglob("*.png"))) == 6
    assert statuses(capsys, name) == ["kept"] * 6
    (directory.path / f"{name}.py").write_text(SOURCE.replace(".relu()", ".sigmoid()"))
    directory.forget(name)
    assert statuses(capsys, name) == ["ok"] * 6


def test_preprocessing_and_names_from_a_file(name, capsys):
    sidecar = {
        "preprocessing": {
            "resize": None,
            "crop": [24, 32],
            "interpolation": "nearest",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "class_names": ["one", "two", "three"],
    }
    Path("side.json").write_text(json.dumps(sidecar))
    given = ["-m", f"{name}:alone", "--preprocess", "side.json", "--target", "two", *CPU]
    out, err = run(capsys, "explain", "input/cat/0.png", *given, "--json")
    assert json.loads(out[0])["target"] == "two" and len(err) == 2  # the code, and the totals


def test_a_table_is_made_and_its_model_runs_only_if_it_is_named(directory, name, capsys):
    model = ["-m", f"{name}:build"]
    run(capsys, "evaluate", "input", *model, *CPU)
    table = f"{name}_build_results.csv"
    assert {row.model for row in read_predictions(table)} == {f"{name}:build"}
    refusal = (
        f"lrp: {table}: its rows are of your own code {name}:build: --model {name}:build allows it to be run."
    )
    for command in (["errors", table, "--explain"], ["report", table]):
        _, err = run(capsys, *command, *CPU, code=1)
        assert err == [refusal]
    run(capsys, "errors", table, "--explain", *model, *CPU)
    assert list(Path(f"{name}_build_results_errors/mistakes").glob("*.png"))
    run(capsys, "report", table, *model, *CPU)
    assert Path(f"{name}_build_results_report.html").stat().st_size > 10_000
    (directory.path / f"{name}.py").write_text(SOURCE.replace("2.0", "4.0"))
    directory.forget(name)
    made = read_predictions(table)[0].weights
    _, err = run(capsys, "report", table, *model, *CPU, code=1)
    begin, _, end = err[1].partition(" than there are now (")
    assert begin == f"lrp: {table}: was made with other weights or code of {name}:build ({made})"
    assert end[:16] != made and end[16:] == "); evaluate again, or name the right file with --model."


def test_export_and_rules(name, capsys):
    pytest.importorskip("onnx")
    out, _ = run(capsys, "export", f"{name}:build", "-o", "own.onnx")
    assert out[0].startswith("own.onnx: 0 MB; image [N, 3, 16, 16] -> logits [N, 3]")
    out, _ = run(capsys, "rules", f"{name}:build")
    assert any(line.startswith("stem ") and "conv2d" in line for line in out)


def test_what_is_retrained_goes_on_as_a_file(name, capsys):
    _, err = run(capsys, "retrain", "input", "-m", f"{name}:build", "-o", "new.pth", "--epochs", "2", *CPU)
    assert err.count(f"{name}:build: running your code, {Path.cwd() / name}.py.") == 1
    sidecar = json.loads(Path("new.pth.json").read_text())
    assert sidecar["architecture"] == f"{name}:build" and sidecar["heads"] == ["head"]
    assert sidecar["class_names"] == ["cat", "dog"]
    refused = f"lrp: new.pth is of your own code {name}:build, says new.pth.json: --arch {name}:build allows that code to be run."
    assert run(capsys, "evaluate", "input", "-m", "new.pth", *CPU, code=1)[1] == [refused]
    arch = ["--arch", f"{name}:build"]
    run(capsys, "evaluate", "input", "-m", "new.pth", "-o", "new.csv", *arch, *CPU)
    wrong = any(row.correct is False for row in read_predictions("new.csv"))
    run(capsys, "errors", "new.csv", "--explain", *arch, *CPU)
    assert wrong == Path("new_errors/mistakes").is_dir()
    run(capsys, "evaluate", "input", "-m", f"{name}:build", "-o", "old.csv", *CPU)
    run(capsys, "compare", "old.csv", "new.csv", "--explain", "--model-a", f"{name}:build", *arch, *CPU)
    run(capsys, "report", "old.csv", "--compare", "new.csv", "-m", f"{name}:build", *arch, *CPU)
    _, err = run(
        capsys, "retrain", "input", "-m", f"{name}:build", "-o", "x.pth", "--from-scratch", *CPU, code=1
    )
    assert err[-1] == (
        f"lrp: {name}:build decides for itself which weights it has: leave --from-scratch out, and return random ones."
    )


def test_features_are_computed_again_for_other_code_with_the_same_weights(directory, name, capsys):
    def rows() -> int:
        return len(list(Path(".lrp_features").iterdir()))

    train = ["retrain", "input", "-m", f"{name}:build", "--epochs", "1", *CPU]
    run(capsys, *train, "-o", "a.pth")
    run(capsys, *train, "-o", "b.pth")
    assert rows() == 1
    (directory.path / f"{name}.py").write_text(SOURCE.replace(".relu()", ".sigmoid()"))
    directory.forget(name)
    run(capsys, *train, "-o", "c.pth")
    assert rows() == 2


@pytest.mark.slow
def test_processes_that_train_together_import_it_too(directory, name):
    pytest.importorskip("lightning_fabric")
    train = [
        "retrain", "input", "--model", f"{name}:build", "-o", "two.pth", "--train", "all", "--epochs", "1", "--devices", "2",
        "--workers", "2", "--batch-size", "2", *CPU,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lrp", *train], capture_output=True, text=True, cwd=directory.path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("running your code") == 1
    assert Path("two.pth").exists()
