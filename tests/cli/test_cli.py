"""The command line end to end, as a user runs it: files in, pictures, lines and exit codes out."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from lrp.cli import app, main
from lrp.cli.demo import PHOTOS, write_demo_photos
from lrp.models.loading import LoadedModel, load_model
from lrp.pictures import heatmap
from lrp.survey.build import set_check_weights

ORIGINAL = load_model
COMMANDS = (
    "explain", "rules", "models", "demo", "data", "accuracy", "evaluate", "confidence", "errors", "compare", "report",
    "retrain", "export",
)  # fmt: skip


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """`lrp demo` in a folder of its own, once, as a process."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run([sys.executable, "-m", "lrp", "demo"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Commands run in this process share the models they load."""
    from lrp.models import loading as models

    monkeypatch.setattr(models, "load_model", loaded)


@functools.cache
def loaded(name, pretrained=True):
    return ORIGINAL(name, pretrained=pretrained)


@functools.cache
def small():
    """A random net of 64 pixels with ImageNet's classes."""
    model, preprocessing, names = ORIGINAL("timm:test_efficientnet", pretrained=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        set_check_weights(model, torch.randn(8, 3, 64, 64))
    return LoadedModel(model, preprocessing.with_size(64), names)


@pytest.fixture
def any_model(monkeypatch):
    """Where what the net sees is not the point: every model is the small one."""
    monkeypatch.setattr("lrp.models.loading.load_model", lambda name, **options: small())


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A working directory with two demo photos under input/."""
    monkeypatch.chdir(tmp_path)
    write_demo_photos(tmp_path / "all")
    for category, name in (("espresso", "coffee.png"), ("tiger cat", "chelsea.png")):
        (tmp_path / "input" / category).mkdir(parents=True)
        with Image.open(tmp_path / "all" / category / name) as photo:
            photo.convert("RGB").resize((160, 120)).save(tmp_path / "input" / category / name)
    shutil.rmtree(tmp_path / "all")
    return tmp_path


def records(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---------------------------------------------------------------- the demo


def test_demo_writes_a_picture_for_each_photo_and_predicts_what_is_on_it(demo_run):
    folder, done = demo_run
    lines = [line for line in done.stdout.splitlines() if line.startswith("ok")]
    assert len(lines) == len(PHOTOS)
    for name, category in PHOTOS.items():
        picture = folder / "output" / category / Path(name).with_suffix(".png")
        with Image.open(picture) as image:
            image.load()
            assert image.width > image.height / 2
        facts = json.loads(heatmap.read_heatmap_metadata(picture)["facts"])
        assert facts["predicted"] == category
        assert facts["health"]["ok"] is True
    assert f"{len(PHOTOS)} found = {len(PHOTOS)} ok + 0 kept + 0 skipped" in done.stdout
    assert done.stderr == ""


# Boxes of the object, in fractions of the photo: left, top, right, bottom; read off the photos by eye.
OBJECTS = {"coffee.png": (0.27, 0.02, 0.75, 0.85), "camera.png": (0.42, 0.20, 0.85, 1.0)}


@pytest.mark.parametrize("name", OBJECTS)
def test_most_positive_relevance_falls_on_the_object(demo_run, name, tmp_path, monkeypatch):
    folder, _ = demo_run
    photo = folder / "input" / PHOTOS[name] / name
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(photo), "--save", "npz", "--quiet"]) == 0
    saved = np.load(tmp_path / "output" / Path(name).with_suffix(".npz"))
    relevance, (left, top, right, bottom) = saved["relevance"].sum(0).clip(min=0), saved["crop"]
    with Image.open(photo) as image:
        width, height = image.size
    rows = (np.arange(relevance.shape[0]) + 0.5) / relevance.shape[0] * (bottom - top) + top
    columns = (np.arange(relevance.shape[1]) + 0.5) / relevance.shape[1] * (right - left) + left
    box = OBJECTS[name]
    on = ((rows > box[1] * height) & (rows < box[3] * height))[:, None] & (
        (columns > box[0] * width) & (columns < box[2] * width)
    )
    share = relevance[on].sum() / relevance.sum()
    assert share > 0.7 and share > on.mean() + 0.1


# ---------------------------------------------------------------- results


def test_layout_json_and_npz(inside, capsys):
    assert main(["explain", "input", "-o", "out", "--json", "--save", "npz", "--target", "true"]) == 0
    found = records(capsys)
    assert [r["path"] for r in found] == ["input/espresso/coffee.png", "input/tiger cat/chelsea.png"]
    for record, target in zip(found, ("espresso", "tiger cat"), strict=True):
        assert record["status"] == "ok" and record["error"] is None
        assert record["target"] == target
        assert Path(record["output"]).is_file()
        assert record["output"] == record["path"].replace("input", "out")
        best = record["top5"][0]
        assert (best["name"], best["index"]) == (record["predicted"], record["predicted_index"])
        assert best["probability"] == pytest.approx(record["confidence"])
        assert record["health"]["ok"] is True
        with np.load(Path(record["output"]).with_suffix(".npz")) as saved:
            assert saved["relevance"].shape == (3, 224, 224) and saved["relevance"].dtype == np.float32
            assert saved["relevance"].sum() == pytest.approx(record["relevance_sum"], rel=1e-3, abs=1e-4)
            assert saved["logits"].shape == (1000,)
            assert int(saved["target"]) == record["target_index"]
            assert saved["logits"][record["target_index"]] == pytest.approx(record["logit"], rel=1e-5)
            assert saved["crop"] == pytest.approx([26.25, 7.5, 131.25, 112.5], abs=2)


def test_kept_only_while_everything_is_the_same(inside, any_model, capsys):
    photo = "input/espresso/coffee.png"
    run = ["explain", photo, "-o", "out", "--json"]

    def status(*more):
        assert main([*run, *more]) == 0
        return records(capsys)[0]["status"]

    assert status() == "ok"
    first = Path("out/coffee.png").read_bytes()
    assert status() == "kept"
    assert Path("out/coffee.png").read_bytes() == first
    assert status("--overwrite") == "ok"
    for change in (
        ["--target", "tripod"], ["--composite", "epsilon"], ["--bias", "absorb"], ["--epsilon", "0.01"],
        ["--top-k", "0.5"], ["--precision", "mixed"], ["--style", "overlay"], ["--size", "192"], ["--percentile", "98"],
    ):  # fmt: skip
        assert status(*change) == "ok", change
    assert status(*change) == "kept"
    assert status("--save", "npz", "--percentile", "98") == "ok"  # the picture is there, its arrays are not
    assert status("--save", "npz", "--percentile", "98") == "kept"
    with Image.open(photo) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
    assert status("--percentile", "98") == "ok"  # same name, other photo


def test_kept_results_report_the_same_facts(inside, any_model, capsys):
    run = ["explain", "input", "-o", "out", "--json"]
    assert main(run) == 0
    first = records(capsys)
    assert main(run) == 0
    second = records(capsys)
    assert [r.pop("status") for r in second] == ["kept", "kept"]
    assert [r.pop("status") for r in first] == ["ok", "ok"]
    assert first == second


def test_every_file_gives_one_line_and_a_bad_one_stops_nothing(inside, any_model, capsys):
    Path("input/espresso/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much more")
    Path("input/notes.txt").write_text("hello")
    Path("input/.hidden").write_text("passed over")
    assert main(["explain", "-o", "out"]) == 3
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["skipped", "ok", "skipped", "ok", "4", "A"]
    assert printed[-2:] == [
        "4 found = 2 ok + 0 kept + 2 skipped",
        "A page to look through: lrp evaluate input -o out/results.csv; lrp report out/results.csv",
    ]
    assert main(["explain", "-o", "out", "--json"]) == 3
    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    assert [r["status"] for r in found] == ["skipped", "kept", "skipped", "kept"]
    assert all((r["output"] is None) == (r["error"] is not None) for r in found)
    assert "4 found = 0 ok + 2 kept + 2 skipped" in captured.err


def test_names_that_are_taken(inside, any_model, capsys):
    folder = Path("same")
    folder.mkdir()
    for name in ("a.jpg", "a.png", "b.bmp"):
        Image.open("input/espresso/coffee.png").convert("RGB").save(folder / name)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert main(["explain", "same", "-o", "out", "--json"]) == 0
    assert [r["output"] for r in records(capsys)] == ["out/a.png", "out/a.png.png", "out/b.png"]
    # In the photos' own folder, none of them is written over.
    assert main(["explain", "same/a.jpg", "same/a.png", "-o", "same", "--json"]) == 0
    outputs = [r["output"] for r in records(capsys)]
    assert outputs == ["same/a.jpg.png", "same/a.png.png"]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_earlier_results_are_not_photos(inside, any_model, capsys):
    assert main(["explain", ".", "-o", "output", "--json"]) == 0
    assert len(records(capsys)) == 2
    assert main(["explain", ".", "-o", "output", "--json"]) == 0
    assert [r["status"] for r in records(capsys)] == ["kept", "kept"]


def test_all_orientations_give_the_same_map(inside, any_model, capsys):
    upright = Image.open("input/espresso/coffee.png").convert("RGB")
    Path("turned").mkdir()
    inverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for orientation, turn in inverse.items():
        stored = upright.transpose(turn) if turn is not None else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(f"turned/{orientation}.png", exif=exif)
    assert main(["explain", "turned", "-o", "out", "--save", "npz", "-q"]) == 0
    maps = [np.load(f"out/{o}.npz") for o in inverse]
    for other in maps[1:]:
        assert np.array_equal(other["relevance"], maps[0]["relevance"])
        assert np.array_equal(other["crop"], maps[0]["crop"])


def test_targets(inside, any_model, capsys):
    photo = "input/tiger cat/chelsea.png"

    def explained(target):
        assert main(["explain", photo, "-o", "out", "--json", "--target", target]) == 0
        return records(capsys)[0]

    assert explained("281")["target"] == "tabby"
    assert explained("Egyptian cat")["target_index"] == 285
    assert explained("n02124075")["target"] == "Egyptian cat"
    top = explained("top3")
    assert [p["target_index"] for p in top["panels"]] == [t["index"] for t in top["top5"][:3]]
    single = Image.open("out/chelsea.png").size
    contrast = explained("tabby-vs-espresso")
    assert Image.open("out/chelsea.png").size[0] <= single[0]
    logits = {name: explained(name)["logit"] for name in ("tabby", "espresso")}
    assert contrast["start"] == pytest.approx(logits["tabby"] - logits["espresso"], rel=1e-5)
    assert explained("true-vs-tabby")["target"] == "tiger cat"


def test_true_skips_where_the_folder_is_no_class(inside, any_model, capsys):
    Path("input/tiger cat").rename("input/tigercatt")
    assert main(["explain", "input", "--target", "true", "--json"]) == 3
    ok, skipped = records(capsys)
    assert ok["status"] == "ok"
    assert skipped["error"].startswith(
        "target 'true' takes the folder 'tigercatt' as the class: no class 'tigercatt'"
    )


def test_shared_scale_is_one_scale(inside, any_model, capsys):
    assert main(["explain", "input", "-o", "out", "--shared-scale", "--save", "npz", "--json"]) == 0
    first = records(capsys)
    limits = heatmap.heatmap_scale(
        [np.load(Path(r["output"]).with_suffix(".npz"))["relevance"].sum(0) for r in first]
    )
    assert limits > 0
    assert main(["explain", "input", "-o", "out", "--shared-scale", "--json"]) == 0
    assert [r["status"] for r in records(capsys)] == ["kept", "kept"]
    whole = {r["output"]: np.asarray(Image.open(r["output"])).astype(int) for r in first}
    for (
        output
    ) in whole:  # as after an interruption: what is missing is drawn on the scale of all, not its own
        Path(output).unlink()
        assert main(["explain", "input", "-o", "out", "--shared-scale", "-q"]) == 0
        assert np.abs(np.asarray(Image.open(output)) - whole[output]).max() <= 2  # batches round differently
        assert json.loads(heatmap.read_heatmap_metadata(output)["facts"])["scale"] == pytest.approx(limits)
    shutil.copy("input/espresso/coffee.png", "input/espresso/another.png")
    assert main(["explain", "input", "-o", "out", "--shared-scale", "--json"]) == 0
    assert [r["status"] for r in records(capsys)] == ["ok", "ok", "ok"]  # another photo moves the scale


# ---------------------------------------------------------------- exit codes and words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explain", "nosuch"], "expected a photo or a folder of photos, found nothing at: nosuch"),
        (["explain"], "`lrp demo` fills input/ with photos to try."),
        (["explain", "{photo}", "--target", "tigr"], "no class 'tigr': did you mean 'tiger' (292)"),
        (["explain", "{photo}", "--target", "top0"], "target 'top0': the model has 1000 classes, top1 to top1000."),
        (["explain", "{photo}", "--composite", "epsilon_pluss"], "no preset 'epsilon_pluss': did you mean 'epsilon_plus'?"),
        (["explain", "{photo}", "--epsilon", "-1"], "epsilon must be a finite number >= 0"),
        (["explain", "{photo}", "--bias", "maybe"], "bias must be 'absorb' or 'ignore'."),
        (["explain", "{photo}", "--device", "cuda:99"], "--device cuda:99:"),
        (["explain", "--nosuch"], "No such option"),
    ],
)  # fmt: skip
def test_usage_errors_exit_2(arguments, sentence, inside, capsys):
    photo = "input/espresso/coffee.png"
    if arguments == ["explain"]:
        shutil.rmtree("input")
    assert main([a.format(photo=photo) for a in arguments]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_unknown_model_is_one_line_and_exit_1(inside, capsys):
    assert main(["explain", "input", "--model", "vg19"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "lrp: no model 'vg19': did you mean vgg19, vgg19_bn, vgg16? `lrp models` lists them; timm's are named timm:NAME.\n"
    )


def test_interrupted_is_130_and_leaves_whole_files(inside, any_model, capsys, monkeypatch):
    from lrp.gallery.gallery import Gallery

    written = []

    def interrupted(self, sheet, limit, write=Gallery.write):
        if written:
            raise KeyboardInterrupt
        written.append(sheet.output)
        return write(self, sheet, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "write", interrupted)
        assert main(["explain", "input", "-o", "out"]) == 130
    assert "interrupted; what is finished is whole" in capsys.readouterr().err
    assert [p.name for p in Path("out").rglob("*") if p.is_file()] == [written[0].name]
    assert main(["explain", "input", "-o", "out", "--json"]) == 0
    assert [r["status"] for r in records(capsys)] == ["kept", "ok"]


def test_output_that_cannot_be_written_is_said(inside, any_model, capsys):
    Path("out").write_text("a file")
    assert main(["explain", "input", "-o", "out", "--json"]) == 3
    assert all("cannot be written" in r["error"] for r in records(capsys))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"Example: lrp {command}" in capsys.readouterr().out


def test_no_command_is_forgotten_here():
    assert set(typer.main.get_command(app).commands) == set(COMMANDS)


def test_help_needs_no_torch():
    code = "import sys; from lrp.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_console_script_is_the_module():
    script = Path(sys.executable).with_name("lrp")
    texts = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([str(script)], [sys.executable, "-m", "lrp"])
    ]
    assert texts == ["lrp 0.1.0\n"] * 2


def test_known_operations_are_listed_by_a_fresh_process():
    done = subprocess.run(
        [sys.executable, "-m", "lrp", "rules", "--known"], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) > 150 and re.search(
        r"^conv2d +conv, linear +2-d$", done.stdout, re.M
    )


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m lrp models | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("name")


def test_rules_and_models_print_tables(capsys):
    assert main(["rules", "alexnet", "--composite", "epsilon_plus_flat"]) == 0
    printed = capsys.readouterr().out
    assert "composite: epsilon_plus_flat" in printed
    assert [line.split()[0] for line in printed.splitlines() if " Flat" in line] == ["features.0"]
    assert main(["rules", "--known"]) == 0
    assert "conv2d" in capsys.readouterr().out
    assert main(["models", "vgg19"]) == 0
    assert "548 MB" in capsys.readouterr().out


def test_imagenet_sample_folders_are_wordnet_ids(tmp_path, monkeypatch, capsys):
    sample = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample"
    if not sample.is_dir():
        pytest.skip("needs ../shared/data/imagenet-sample")
    photos = [str(next(folder.iterdir())) for folder in sorted(sample.iterdir())[:3]]
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *photos, "--target", "true", "--json"]) == 0
    found = records(capsys)
    from lrp.classes import imagenet_wnids

    assert [imagenet_wnids()[r["target_index"]] for r in found] == [Path(p).parent.name for p in photos]
    assert os.listdir("output")
    assert torch.tensor([r["health"]["ok"] for r in found]).all()
