"""`lrp evaluate`: every file has its row, numbers are the model's, and a killed run ends as an undisturbed one."""

import csv
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.colours import HALF, NAMES, Colours, loaded, photos
from helpers.disks import small_disk
from lrp.cli import main
from lrp.data.data_set import DataSet
from lrp.errors import DataError, ModelError, PredictionsError
from lrp.models.checkpoints import save_checkpoint
from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import Geometry
from lrp.study.evaluate import Classifier, evaluate
from lrp.study.predictions import read_predictions


def rescored(root: Path, competing) -> dict[str, list[float]]:
    """Thirty lines that share nothing with the package: PIL, numpy, the formula."""
    found = {}
    for file in sorted(root.glob("*/*.png")):
        image = Image.open(file).convert("RGB")
        width, height = image.size
        size = (int(12 * width / height), 12) if width > height else (12, int(12 * height / width))
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 8) / 2), round((size[1] - 8) / 2)
        pixels = np.asarray(image.crop((left, top, left + 8, top + 8)), dtype=np.float64)
        logits = [*(6 * (pixels / 255 - 0.5) / 0.5).mean((0, 1)), 0.0]
        powers = [math.exp(v) if i in competing else 0.0 for i, v in enumerate(logits)]
        found[str(file)] = [p / sum(powers) for p in powers]
    return found


@pytest.mark.parametrize(("classes", "competing"), [("model", (0, 1, 2, 3)), ("data", (0, 1, 2))])
def test_the_csv_is_what_an_independent_script_finds(tmp_path, classes, competing):
    root = photos(tmp_path / "data")
    result = evaluate(
        DataSet.open(root), loaded(), tmp_path / "r.csv", name="colours", classes=classes, batch_size=4
    )
    expected = rescored(root, competing)
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(expected) and result.total == len(rows) == 15
    for row in rows:
        confidences = expected[row["path"]]
        true = NAMES.index(Path(row["path"]).parent.name)
        best = max(range(4), key=confidences.__getitem__)
        assert (row["true_label"], row["predicted_label"]) == (NAMES[true], NAMES[best])
        assert (row["true_index"], row["predicted_index"]) == (str(true), str(best))
        assert row["correct"] == str(true == best) and row["status"] == "ok" and row["error"] == ""
        assert abs(float(row["predicted_confidence"]) - confidences[best]) < 1e-5
        assert abs(float(row["true_confidence"]) - confidences[true]) < 1e-5
        top5 = json.loads(row["top5"])
        assert list(top5) == [NAMES[i] for i in sorted(competing, key=lambda i: -confidences[i])]
        assert all(abs(p - confidences[NAMES.index(name)]) < 1e-5 for name, p in top5.items())
        assert row["model"] == "colours" and row["restricted"] == str(classes == "data")
    assert result.correct == sum(row["correct"] == "True" for row in rows) and 0 < result.correct < 15


def test_a_row_depends_on_its_file_alone(tmp_path):
    """Any runner may call it: alone, in another order, in other company."""
    data = list(DataSet.open(photos(tmp_path / "data")))
    classifier = Classifier(loaded(), {"red": 0, "green": 1, "blue": 2})
    together = classifier(data)
    assert classifier(data[::-1]) == together[::-1]
    assert [row for sample in data for row in classifier([sample])] == together


def test_every_file_has_its_row_whatever_is_wrong_with_it(tmp_path):
    root = photos(tmp_path / "data", 3)
    (root / "red" / "cut.png").write_bytes((root / "red" / "0.png").read_bytes()[:60])
    (root / "red" / "words.jpg").write_text("no photo")
    (root / "red" / "empty.png").touch()
    Image.new("RGB", (1, 1_000_000)).save(root / "red" / "narrow.png")
    (root / "purple").mkdir()
    (root / "green" / "0.png").rename(root / "purple" / "0.png")
    result = evaluate(DataSet.open(root), loaded(), tmp_path / "r.csv")
    rows = {
        Path(row.path).name if "red" in row.path else row.path: row for row in read_predictions(result.output)
    }
    assert result.counts == {"ok": 8, "unreadable": 4, "unmatched": 1} and len(rows) == 13
    assert (
        rows["words.jpg"].error.startswith("expected a JPEG, PNG") and rows["words.jpg"].true_label == "red"
    )
    assert "an empty one" in rows["empty.png"].error and "damaged" in rows["cut.png"].error
    assert rows["narrow.png"].error.startswith("1 x 1000000 pixels are too narrow")
    purple = rows[f"{root}/purple/0.png"]
    assert purple.status == "unmatched" and purple.error == "the folder 'purple' is no class of the model"
    assert purple.predicted_label and purple.correct is None and list(result.unmatched) == ["purple"]


def test_nan_is_a_reason_and_not_a_number(tmp_path):
    model = Colours().eval()
    with torch.no_grad():
        model.scale.fill_(math.nan)
    result = evaluate(
        DataSet.open(photos(tmp_path / "d", 2)), LoadedModel(model, HALF, NAMES), tmp_path / "r.csv"
    )
    assert result.counts == {"unreadable": 6}
    assert read_predictions(result.output)[0].error == "the model returned NaN or infinite values for it"


def test_errors_word_for_word(tmp_path):
    data = DataSet.open(photos(tmp_path / "data", 2))
    with pytest.raises(ModelError) as wrong:
        evaluate(data, LoadedModel(Colours().eval(), HALF, NAMES[:3]), tmp_path / "a.csv", name="colours")
    assert str(wrong.value) == (
        "colours returns [6, 4] for 6 photos: expected logits [6, 3], one for each of its class names."
    )
    with pytest.raises(DataError) as wrong:
        evaluate(data, loaded(), tmp_path / "b.csv", classes="all")
    assert str(wrong.value) == "classes='all': expected 'model' or 'data'."
    (tmp_path / "c.csv").write_text("my own notes\n")
    with pytest.raises(PredictionsError) as wrong:
        evaluate(data, loaded(), tmp_path / "c.csv")
    assert str(wrong.value) == (
        f"{tmp_path}/c.csv: is there already, and is not what this would make; --overwrite makes it again, "
        "-o writes elsewhere"
    )
    assert (tmp_path / "c.csv").read_text() == "my own notes\n"


def test_up_to_date_is_kept_and_changed_is_not(tmp_path):
    root, output = photos(tmp_path / "data", 2), tmp_path / "r.csv"
    first = evaluate(DataSet.open(root), loaded(), output)
    inode = output.stat().st_ino
    again = evaluate(DataSet.open(root), loaded(), output)
    assert (first.resumed, again.resumed) == (0, 6) and output.stat().st_ino == inode
    assert (again.counts, again.correct) == (first.counts, first.correct)
    for change in (
        lambda: os.utime(root / "red" / "0.png"),
        lambda: (root / "red" / "0.png").rename(root / "red" / "new.png"),
    ):
        change()
        with pytest.raises(PredictionsError, match="is there already, and is not what this would make"):
            evaluate(DataSet.open(root), loaded(), output)
        assert evaluate(DataSet.open(root), loaded(), output, overwrite=True).resumed == 0


# ---------------------------------------------------------------------------------------------- nothing lost

DRIVER = """
import os, signal
import torch
torch.set_num_threads(1)
from pathlib import Path
from helpers import colours
from lrp.data.data_set import DataSet
from lrp.study.evaluate import Classifier, evaluate

folder = Path({folder!r})
data = DataSet.open(folder / "data")
loaded = colours.loaded()

def child(output, kill_at):
    pid = os.fork()
    if pid == 0:
        count = 0
        def counted(function):
            def call(*args, **kwargs):
                global count_
                for _ in range(2):
                    count_ += 1
                    if count_ == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if _ == 0:
                        result = function(*args, **kwargs)
                return result
            return call
        globals()["count_"] = 0
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        Classifier.rows = counted(Classifier.rows)
        evaluate(data, loaded, output, batch_size=3, workers=2)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

child(folder / "whole.csv", 0)
killed = 0
for point in range(1, 41):
    output = folder / f"{{point}}.csv"
    killed += os.WIFSIGNALED(child(output, point))
    assert child(output, 0) == 0, point
    assert output.read_bytes() == (folder / "whole.csv").read_bytes(), point
    left = sorted(p.name for p in folder.iterdir() if p.name.startswith((f"{{point}}.csv", f".{{point}}.csv")))
    assert left == [output.name], left
print(killed)
"""


@pytest.mark.slow
def test_killed_at_forty_points_the_same_command_goes_on(tmp_path):
    photos(tmp_path / "data", 12)
    driver = textwrap.dedent(DRIVER.format(folder=str(tmp_path)))
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 40


def test_another_run_is_refused_and_says_what_differs(tmp_path):
    root, output = photos(tmp_path / "data", 4), tmp_path / "r.csv"

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    def begin():
        with pytest.raises(KeyboardInterrupt):
            evaluate(DataSet.open(root), loaded(), output, name="one", batch_size=4, advance=stop)

    begin()
    other = loaded()
    with torch.no_grad():
        other.model.scale.fill_(5.0)
    os.utime(root / "red" / "0.png")
    with pytest.raises(PredictionsError) as wrong:
        evaluate(DataSet.open(root), other, output, name="two", batch_size=4, classes="data")
    message = str(wrong.value)
    assert message.startswith(
        f"{output}: was begun by another run: model was 'one', now is 'two'; weights was '"
    )
    assert "classes was 'model', now is 'data'" in message and "data was '12 files, " in message
    assert message.endswith("start over with --overwrite, or choose another -o")
    assert evaluate(DataSet.open(root), other, output, name="two", overwrite=True).resumed == 0


def test_a_full_disk_loses_nothing(tmp_path):
    root = photos(tmp_path / "data", 40)
    with small_disk("256k") as disk:
        filler = disk / "filler"
        filler.write_bytes(b"x" * 220 * 1024)
        with pytest.raises(PredictionsError, match=r"No space left on device"):
            evaluate(DataSet.open(root), loaded(), disk / "r.csv", batch_size=4)
        assert not (disk / "r.csv").exists()
        filler.unlink()
        went_on = evaluate(DataSet.open(root), loaded(), disk / "r.csv", batch_size=4)
        assert went_on.resumed > 0 and went_on.total == 120
        evaluate(DataSet.open(root), loaded(), tmp_path / "whole.csv", batch_size=4)
        assert (disk / "r.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def checkpoint(tmp_path):
    """A real architecture with few classes and random weights, as a user's file."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=3).eval()
    path = tmp_path / "model.pth"
    save_checkpoint(
        path, model, "squeezenet1_1", NAMES[:3], Preprocessing(Geometry(40, (32, 32)), (0.5,) * 3, (0.5,) * 3)
    )
    return path


def test_the_command(tmp_path, capsys, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "data" / "val", 2)
    photos(tmp_path / "data" / "train", 1)
    command = ["evaluate", "data", "--model", str(checkpoint)]
    assert main(command) == 0
    printed, said = capsys.readouterr()
    assert printed.startswith("6 files = 6 ok + 0 unreadable + 0 unmatched; ")
    assert "-> model.pth_results.csv: 6 predicted in " in printed
    assert "data: reading val/; --split takes train or all." in said
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"ok": 6} and facts["resumed"] == facts["total"] == 6
    (tmp_path / "data" / "train" / "red" / "bad.png").touch()
    assert main([*command, "--split", "train", "-o", "train.csv"]) == 3
    assert "3 ok + 1 unreadable" in capsys.readouterr().out
    assert main(["evaluate", "nowhere"]) == 2
    assert "expected a folder of class folders, found nothing at: nowhere" in capsys.readouterr().err
    assert main([*command, "--split", "train"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_disk_that_refuses_is_no_usage_error(tmp_path, capsys, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "data", 2)
    command = ["evaluate", "data", "--model", str(checkpoint), "--output"]
    with small_disk() as disk:
        with pytest.raises(OSError, match="No space left on device"):
            (disk / "ballast").write_bytes(bytes(100_000))
        assert main([*command, f"{disk}/r.csv"]) == 1
        assert capsys.readouterr().err == (
            f"lrp: {disk}/r.csv.journal: cannot be written: No space left on device\n"
        )
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert main([*command, f"{disk}/r.csv"]) == 1
        assert capsys.readouterr().err == f"lrp: {disk}/r.csv.lock: cannot be locked: Read-only file system\n"
        assert os.listdir(disk) == ["ballast"]
    assert main([*command, "nowhere/r.csv"]) == 2
    assert "nowhere/r.csv.lock: cannot be locked: No such file" in " ".join(capsys.readouterr().err.split())
