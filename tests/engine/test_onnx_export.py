"""`lrp export`: the file against the explainer, what the command says, and what it refuses."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import lrp
from helpers.nets import BOX, IMAGE, Residual, made, plain
from lrp.cli import main
from lrp.cli.demo import write_demo_photos
from lrp.engine.onnx import onnx_file as module
from lrp.engine.onnx.onnx_file import write_onnx
from lrp.models.weights import hash_of_model_weights

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_explain.py"
MODEL = "efficientnet_lite0"


class Pooled(nn.Module):
    """With an average pool, whose way back ONNX has no operator for, and several activations."""

    def __init__(self):
        super().__init__()
        self.conv, self.deep = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x):
        x = nn.functional.avg_pool2d(nn.functional.silu(self.conv(x)), 3, 2, 1, ceil_mode=True)
        return self.head(nn.functional.avg_pool2d(self.deep(x).relu(), 2, 2).flatten(1))


def run(path, images, target=None):
    inputs = {"image": images.numpy()} | ({} if target is None else {"target": np.array(target)})
    return onnxruntime.InferenceSession(path).run(["logits", "relevance"], inputs)


def near(found, expected):
    return abs(found - expected.numpy()).max() <= 1e-4 * expected.abs().max()


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("net", [plain, Residual, Pooled])
@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
def test_any_number_of_images_and_the_class_of_each(net, preset, tmp_path):
    model, x = made(net)
    explainer = lrp.Explainer(model, lrp.preset(preset, **BOX), class_names=list("abcde"))
    file = write_onnx(explainer, x, tmp_path / "e.onnx", target_input=True)
    assert max(file.logits, file.relevance, file.pixel) < 1e-5
    assert file.bytes == file.path.stat().st_size and file.composite.startswith(preset)
    for target in ([4], [3, -1, 0, 2], [1] * 7):
        images = torch.randn(len(target), *IMAGE)
        logits, relevance = run(file.path, images, target)
        expected = explainer(images, ["predicted" if t < 0 else t for t in target])
        assert near(logits, expected.logits) and near(relevance, expected.relevance)
    assert expected.relevance.abs().max() > 0


@pytest.mark.parametrize("target", ["predicted", 2, "c", lrp.Contrast(3, "predicted")])
def test_one_target_for_all(target, tmp_path):
    model, x = made(plain)
    explainer = lrp.Explainer(model, "epsilon_plus_flat", class_names=list("abcde"))
    file = write_onnx(explainer, x, tmp_path / "new" / "e.onnx", target)
    assert near(run(file.path, x)[1], explainer(x, target).relevance)


def test_a_seed_other_than_the_logit(tmp_path):
    model, x = made(plain)
    explainer = lrp.Explainer(model, "epsilon_plus_flat", seed="one")
    file = write_onnx(explainer, x, tmp_path / "e.onnx")
    assert near(run(file.path, x)[1], explainer(x).relevance)


def test_the_explainer_stays_as_it_was(tmp_path):
    model, x = made(plain)
    explainer = lrp.Explainer(model, "epsilon_alpha2_beta1")
    before = explainer(x, 0).relevance
    write_onnx(explainer, x, tmp_path / "e.onnx")
    assert torch.equal(explainer(x, 0).relevance, before)
    assert "rest" in str(explainer.program)  # the explainer's own program still subtracts


def test_a_mixed_explainer_gives_the_exact_file(tmp_path):
    model, x = made(plain)
    mixed = lrp.Explainer(model, "epsilon_plus_flat", precision="mixed")
    file = write_onnx(mixed, x, tmp_path / "e.onnx", 0)
    assert near(run(file.path, x)[1], lrp.explain(model, x, 0, "epsilon_plus_flat").relevance)
    assert not torch.equal(mixed(x, 0).relevance, lrp.explain(model, x, 0, "epsilon_plus_flat").relevance)


# ---------------------------------------------------------------- what is refused


def test_a_file_that_exists(tmp_path):
    model, x = made(plain)
    path = tmp_path / "e.onnx"
    path.write_text("mine")
    explainer = lrp.Explainer(model, "epsilon")
    sentence = f"{path} exists already: name another file, or say --overwrite (overwrite=True)."
    with pytest.raises(lrp.LrpError, match=re.escape(sentence)):
        write_onnx(explainer, x, path)
    assert path.read_text() == "mine"
    assert write_onnx(explainer, x, path, overwrite=True).bytes > 1000


def refused(tmp_path, sentence, explainer=None, x=None):
    """Word for word; # stands for a number, PATH for the file. Nothing is left behind."""
    if explainer is None:
        model, x = made(plain)
        explainer = lrp.Explainer(model, "epsilon")
    path = tmp_path / "e.onnx"
    with pytest.raises(lrp.LrpError) as caught:
        write_onnx(explainer, x, path)
    assert re.sub(r"\d\.\d(e.\d+)?", "#", str(caught.value).replace(str(path), "PATH")) == sentence
    assert not list(tmp_path.iterdir())


def without(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))


def test_without_onnx(tmp_path, monkeypatch):
    without(monkeypatch, "onnxscript")
    refused(tmp_path, "exporting needs onnx and onnxscript: pip install 'lrp[export]'.")


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 1000)
    refused(tmp_path, "the program's weights take # GB, and an ONNX file holds 2 GB: export a smaller model.")


def test_what_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rewrite_for_onnx", spoiled)
    refused(
        tmp_path, "onnxruntime computes other relevance than torch, by # (limit 3e-02): PATH was not written."
    )
    monkeypatch.setattr(module, "WRONG", {"logits": -1.0, "relevance": 1.0})
    refused(
        tmp_path, "onnxruntime computes other logits than torch, by # (limit -1e+00): PATH was not written."
    )


def spoiled(program):
    """A program that computes something else whenever it is translated: torch's noise is not onnxruntime's."""
    found = next(node for node in program.graph.nodes if node.name == "R_image")
    with program.graph.inserting_after(found):
        noise = program.graph.call_function(torch.rand_like, (found,))
    found.replace_all_uses_with(noise)
    noise.args = (found,)
    program.recompile()
    return program


def test_a_model_for_a_fixed_number_of_images(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 16 * 16, 5)

        def forward(self, x):
            assert x.shape[0] == 2
            return self.head(x.reshape(2, 768))

    with pytest.warns(UserWarning, match="fixed number"):
        refused(
            tmp_path, "the model can be captured for a fixed number of images only; an ONNX file is to take any number.",
            lrp.Explainer(Fixed().eval(), "epsilon"), torch.randn(2, *IMAGE),
        )  # fmt: skip


def test_logits_for_each_place(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(lrp.ExportError) as caught:
        write_onnx(lrp.Explainer(model), torch.randn(1, 3, 8, 8), tmp_path / "x.onnx")
    assert str(caught.value) == (
        "the model gives logits for each place, and a file explains one logit for each class: "
        "Explainer(model, output=lambda out: out.mean((2, 3))) gives these."
    )
    pooled = lrp.Explainer(model, output=lambda out: out.mean((2, 3)))
    assert write_onnx(pooled, torch.randn(1, 3, 8, 8), tmp_path / "x.onnx").classes == 4


def test_several_inputs(tmp_path):
    with pytest.raises(lrp.ExportError) as caught:
        write_onnx(
            lrp.Explainer(nn.Bilinear(3, 3, 2)), (torch.randn(1, 3), torch.randn(1, 3)), tmp_path / "x.onnx"
        )
    assert str(caught.value) == (
        "an ONNX file takes one tensor of images: models of several inputs, or of ids, cannot be exported."
    )


def test_float64(tmp_path):
    refused(
        tmp_path,
        "the explainer computes in float64, which onnxruntime has no convolution for: Explainer(..., dtype=torch.float32).",
        lrp.Explainer(made(plain)[0], "epsilon", dtype=torch.float64), made(plain)[1],
    )  # fmt: skip


def test_what_onnxruntime_cannot_run(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no such\n operator")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    refused(tmp_path, "onnxruntime cannot run this program: no such operator")


def test_what_torch_cannot_translate(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("long tale\n<class 'X'>: no  operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    refused(tmp_path, "torch.onnx cannot write this program: <class 'X'>: no operator")


@pytest.mark.parametrize(("folder", "reason"), [("file", "File exists"), ("file/below", "Not a directory")])
def test_no_folder_to_write_to_is_said_before_the_long_work(folder, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_converted", lambda *_: pytest.fail("translated for nothing"))
    model, x = made(plain)
    (tmp_path / "file").touch()
    path = tmp_path / folder / "e.onnx"
    with pytest.raises(lrp.LrpError) as caught:
        write_onnx(lrp.Explainer(model, "epsilon"), x, path)
    assert str(caught.value) == f"{path}: cannot be written: {reason}"


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file of the packaged model, made by the command, and the photos of the demo."""
    folder = tmp_path_factory.mktemp("export")
    write_demo_photos(folder / "input")
    command = [sys.executable, "-m", "lrp", "export", "-o", "explain.onnx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return folder, done


def test_what_the_command_says_and_keeps(exported):
    folder, done = exported
    assert done.returncode == 0 and done.stderr == "", done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(
        r"explain\.onnx: \d+ MB; image \[N, 3, 224, 224\] -> logits \[N, 1000\] and relevance \[N, 3, 224, 224\], "
        r"by epsilon_gamma_wsquare",
        first,
    )
    assert re.fullmatch(
        r"checked in onnxruntime against torch, with 1 and 3 images: logits differ by \de-\d+, relevance by \de-\d+ "
        r"\(at one pixel by \de-\d+ of the largest\)",
        second,
    )
    facts = onnxruntime.InferenceSession(folder / "explain.onnx").get_modelmeta().custom_metadata_map
    model, preprocessing, names = lrp.load_model(MODEL)
    assert json.loads(facts["classes"]) == list(names)
    assert json.loads(facts["preprocessing"]) == preprocessing.to_dict()
    assert facts["weights"] == hash_of_model_weights(model)
    assert facts["target"] == "predicted" and facts["model"] == MODEL
    assert facts["producer"] == f"lrp {lrp.__version__}" and facts["composite"] == "epsilon_gamma_wsquare"


@pytest.mark.parametrize("photo", ["espresso/coffee.png", "missile/rocket.jpg"])
def test_the_example_needs_neither_torch_nor_lrp(exported, photo, tmp_path):
    folder, _ = exported
    for name in ("torch", "lrp", "torchvision"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    command = [sys.executable, EXAMPLE, folder / "explain.onnx", folder / "input" / photo, tmp_path / "p.png"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    model, preprocessing, names = lrp.load_model(MODEL)
    x = preprocessing(lrp.open_photo(folder / "input" / photo).pixels)[None]
    expected = lrp.Explainer(model)(x)
    best = expected.logits[0].topk(3)
    lines = [(names[i], logit) for i, logit in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    for line, (name, logit) in zip(done.stdout.splitlines(), lines, strict=True):
        assert line.startswith(f"{name}: logit ")
        assert float(line.rpartition(" ")[2]) == pytest.approx(logit, abs=0.011)
    picture = np.asarray(Image.open(tmp_path / "p.png")).astype(float)
    assert picture.shape == (224, 448, 3)
    shown = expected.relevance[0].sum(0).numpy()
    limit = np.percentile(abs(shown), 99.5)
    redness = picture[:, 224:, 0] - picture[:, 224:, 2]  # 178 - 43 of the reddest, 33 - 172 of the bluest
    strong = abs(shown) > 0.2 * limit
    assert strong.sum() > 500 and (np.sign(redness) == np.sign(shown))[strong].all()
    assert np.corrcoef(redness.ravel(), np.clip(shown / limit, -1, 1).ravel())[0, 1] > 0.999


def test_the_page_shows_the_example():
    page = (ROOT / "docs" / "export.md").read_text()
    shown = re.search(r'```python title="examples/onnx_explain.py"\n(.*?)```', page, re.S)
    assert shown and shown[1] == EXAMPLE.read_text()
    assert len([line for line in EXAMPLE.read_text().splitlines() if line and line[0] != "#"]) < 35


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The command with a model that is quick to export."""
    monkeypatch.chdir(tmp_path)
    model, _ = made(plain)
    preprocessing = lrp.Preprocessing(lrp.Geometry(16, (16, 16)), (0.5,) * 3, (0.5,) * 3)
    loaded = lrp.LoadedModel(model, preprocessing, tuple("abcde"))
    monkeypatch.setattr("lrp.models.loading.load_model", lambda name, **_: loaded)


def test_options(tiny, capsys):
    assert (
        main(["export", "timm:x", "--target-input", "--composite", "epsilon_plus", "--bias", "ignore"]) == 0
    )
    said = capsys.readouterr().out
    assert said.startswith("timm_x_explain.onnx: ") and "image [N, 3, 16, 16] and target [N] ->" in said
    assert "by epsilon_plus(bias=ignore" in said
    session = onnxruntime.InferenceSession("timm_x_explain.onnx")
    assert [i.name for i in session.get_inputs()] == ["image", "target"]
    assert session.get_modelmeta().custom_metadata_map["target"] == "input"
    assert main(["export", "timm:x"]) == 1
    assert capsys.readouterr().err == (
        "lrp: timm_x_explain.onnx exists already: name another file, or say --overwrite (overwrite=True).\n"
    )
    assert main(["export", "timm:x", "--overwrite", "--target", "b-vs-a"]) == 0


def test_without_onnxruntime_the_file_is_not_checked_and_that_is_said(tiny, monkeypatch, capsys):
    without(monkeypatch, "onnxruntime")
    assert main(["export", "-o", "e.onnx"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("not checked: onnxruntime is not installed (pip install 'lrp[export]')\n")
    assert Path("e.onnx").exists()


@pytest.mark.parametrize("target", ["top3", "a,b", "true"])
def test_one_target_is_asked_for(tiny, target, capsys):
    assert main(["export", "--target", target]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"--target {target}: one target for every image: predicted, a class, or A-vs-B." in said
    assert not list(Path().iterdir())


def test_a_class_and_an_open_class_exclude_each_other(tiny, capsys):
    assert main(["export", "--target", "a", "--target-input"]) == 2
    said = " ".join(re.sub("[│╭╮╰╯─]", "", capsys.readouterr().err).split())
    assert "--target a settles the class, --target-input leaves it open: give one of them." in said
    assert not list(Path().iterdir())


def test_size(tiny, capsys):
    assert main(["export", "--size", "24", "-o", "e.onnx"]) == 1  # this net takes one size only
    assert "shape [2, 3, 24, 24]" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_an_unknown_class(tiny, capsys):
    assert main(["export", "--target", "aa"]) == 2
    assert "--target: no class 'aa'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("errors", "worst"), [((0.1, 0.3), 0.3), ((0.3, 0.1), 0.3)])
def test_the_worst_of_all_batches_counts(errors, worst):
    assert module._worse(*errors) == worst
    nan = float("nan")
    assert all(np.isnan(module._worse(*pair)) for pair in ((nan, 0.1), (0.1, nan), (nan, nan)))
