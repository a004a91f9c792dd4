"""`--model module:function`: the user's own code, what it may return, what it says, and that a change of it is noticed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models as tv
from PIL import Image
from torch import nn

import lrp
from helpers.own_code import SOURCE
from lrp.errors import ModelError
from lrp.models.checkpoints import save_checkpoint
from lrp.models.loading import load_model
from lrp.models.own_code.calling import is_own_code
from lrp.models.resolve import hash_of_resolved_model
from lrp.models.weights import hash_of_model_weights
from lrp.pictures.geometry import Geometry

HALF = (0.5, 0.5, 0.5)
OWN = lrp.Preprocessing(Geometry(20, (16, 16)), HALF, HALF)


def message(name: str, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(name, progress=lambda line: None, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(name: str, **options) -> list[str]:
    lines: list[str] = []
    load_model(name, progress=lines.append, **options)
    return lines


@pytest.mark.parametrize(
    "name", ["nets:build", "my.package.nets:build", "größe:bauen", "torchvision.models:resnet18"]
)
def test_module_and_function(name):
    assert is_own_code(name)


@pytest.mark.parametrize(
    "name",
    [
        "vgg19",
        "timm:resnet18",
        "timm:hf_hub:a/b",
        "hf:google/vit",
        "hf:./folder",
        "./nets:build",
        "nets/build",
        "a:",
        ":b",
        "C:/x",
    ],
)
def test_other_names_are_no_code(name):
    assert not is_own_code(name)


def test_what_the_function_returns_is_the_model(directory):
    name = directory.write(SOURCE)
    lines: list[str] = []
    loaded = load_model(f"{name}:build", progress=lines.append)
    assert lines == [f"{name}:build: running your code, {directory.path / name}.py."]
    assert type(loaded.model).__name__ == "Net" and not loaded.model.training
    assert loaded[1:] == (OWN, ("cat", "dog", "owl"))
    load_model(f"{name}:build", progress=lines.append)
    assert len(lines) == 1  # said once


def test_a_module_alone_gets_the_usual_preprocessing_and_numbers(directory):
    name = directory.write(SOURCE)
    lines: list[str] = []
    loaded = load_model(f"{name}:alone", progress=lines.append)
    theirs = tv.ResNet50_Weights.IMAGENET1K_V1.transforms()
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert torch.equal(loaded.preprocessing(photo), theirs(Image.fromarray(photo)))
    assert loaded.class_names == ("class 0", "class 1", "class 2")
    assert lines[1:] == [
        f"{name}:alone: photos are prepared as is usual for ImageNet and classes are called by their numbers, because nothing else "
        "was said; return (model, preprocessing, class_names), or give --preprocess FILE."
    ]
    assert load_model(f"{name}:alone", size=64).preprocessing.geometry == Geometry(73, (64, 64))


def test_a_module_of_one_channel_sees_grey(directory):
    name = directory.write(
        """
        from torch import nn
        def build():
            return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        """
    )
    assert len(load_model(f"{name}:build", progress=[].append).preprocessing.mean) == 1


def test_sidecar_and_labels_take_precedence(directory):
    name = directory.write(SOURCE)
    Path("side.json").write_text(
        json.dumps({"preprocessing": OWN.with_size(32).to_dict(), "class_names": ["a", "b", "c"]})
    )
    loaded = load_model(f"{name}:build", preprocess="side.json")
    assert loaded[1:] == (OWN.with_size(32), ("a", "b", "c"))
    assert load_model(f"{name}:alone", preprocess=OWN, labels=["x", "y", "z"])[1:] == (OWN, ("x", "y", "z"))
    assert said(f"{name}:alone", preprocess=OWN, labels=["x", "y", "z"]) == []
    Path("side.json").write_text(json.dumps({"preprocessing": OWN.to_dict()}))
    assert load_model(f"{name}:build", preprocess="side.json").class_names == ("cat", "dog", "owl")
    Path("side.json").write_text(json.dumps({"class_names": [], "preprocessing": {"crop": 3}}))
    assert message(f"{name}:build", preprocess="side.json") == (
        "side.json holds no preprocessing as a sidecar of `lrp retrain` does: class_names is no list of texts; preprocessing: resize is "
        "missing, crop cannot be 3, interpolation is missing, mean is missing, std is missing."
    )


@pytest.mark.parametrize(
    "body",
    [
        "return {'logits': logits, 'features': x}",
        "return {'out': logits, 'aux': logits}",
        "from types import SimpleNamespace; return SimpleNamespace(logits=logits, hidden=x)",
        "return {'scores': logits}",
    ],
)
def test_logits_are_found_in_what_a_model_returns(directory, body):
    name = directory.write(
        f"""
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(3, 5)
            def forward(self, x):
                logits = self.head(x.mean((2, 3)))
                {body}
        """
    )
    x = torch.rand(2, 3, 8, 8)
    loaded = load_model(f"{name}:Net", progress=[].append)
    inner = sys.modules[name].Net().eval()
    inner.load_state_dict(loaded.model.model.state_dict())
    assert torch.equal(loaded.model(x), inner.head(x.mean((2, 3)))) and len(loaded.class_names) == 5
    assert lrp.Explainer(loaded.model)(x).health.ok


ERRORS = {
    "nowhere:build": (
        "nowhere:build: no module 'nowhere' in {cwd}, and none is installed: expected MODULE:FUNCTION, which Python can import from the "
        "working directory."
    ),
    "nowhere.nets:build": (
        "nowhere.nets:build: no module 'nowhere.nets' in {cwd}, and none is installed: expected MODULE:FUNCTION, which Python can import "
        "from the working directory."
    ),
    "{m}:biuld": "{m}:biuld: {cwd}/{m}.py has no function 'biuld': did you mean build, builds?",
    "{m}:qqq": "{m}:qqq: {cwd}/{m}.py has no function 'qqq': its functions are build, builds, count, dictionary, ends, fails, long, needs, "
    "parts, raises, three.",
    "{m}:net": "{m}:net: net is a Linear, not a function: expected one that needs no arguments and returns the model.",
    "{m}:needs": "{m}:needs needs arguments (a, b): expected a function that needs none and returns the model.",
    "{m}:raises": "{m}:raises raised KeyError: 'weights' ({m}.py:9).",
    "{m}:ends": "{m}:ends raised SystemExit: 2 ({m}.py:10).",
    "{m}:dictionary": "{m}:dictionary returned a dict: expected a torch.nn.Module, or (model, preprocessing, class_names) as lrp.load_model "
    "returns them.",
    "{m}:parts": "{m}:parts returned 2 values: expected a torch.nn.Module, or (model, preprocessing, class_names) as lrp.load_model returns "
    "them.",
    "{m}:three": "{m}:three returned (model, preprocessing, class_names), and model is a str, not a torch.nn.Module; preprocessing is a dict, "
    "not an lrp.Preprocessing; class_names is no list of texts.",
    "{m}:count": "{m}:count gives 2 logits, and there are 3 class names: expected one for each.",
    "{m}:fails": "{m}:fails: its model fails on an image [1, 3, 224, 224] (RuntimeError: mat1 and mat2 shapes cannot be multiplied (672x224 "
    "and 3x2)): the preprocessing that it returns, --preprocess or --size must say what it takes.",
    "{m}:long": "{m}:long returns a tuple: expected a tensor of logits, [N, K] or [N, K, H, W], or an entry 'logits' or 'out' that is one.",
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_every_mistake_is_one_sentence(directory, name):
    module = directory.write(
        """\
        from torch import nn
        from torch.nn import Sequential as _Sequential
        net = nn.Linear(3, 2)
        class Pair(nn.Module):
            def forward(self, x): return x.mean((2, 3)), x
        def build(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        def builds(): return build()
        def needs(a, b, c=1): pass
        def raises(): return {}["weights"]
        def ends(): raise SystemExit(2)
        def dictionary(): return {"model": net}
        def parts(): return net, None
        def three(): return "net", {}, "abc"
        def count(): return build(), None, ["a", "b", "c"]
        def fails(): return net
        def long(): return Pair()
        """
    )
    assert message(name.format(m=module)) == ERRORS[name].format(m=module, cwd=directory.path)


@pytest.mark.parametrize(
    "source, text",
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it' ({m}.py:1)."),
        ("\ndef build(:", "SyntaxError: invalid syntax ({m}.py, line 2) ({m}.py:2)."),
        ("raise ValueError", "ValueError ({m}.py:1)."),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])", "SystemExit: 2 ({m}.py:2)."),
    ],
)
def test_a_module_that_cannot_be_imported(directory, source, text, capsys):
    name = directory.write(source)
    assert message(f"{name}:build") == f"{name}:build: importing {name} raised {text.format(m=name)}"


def test_a_detector_is_refused_with_what_to_do(directory):
    name = directory.write(
        """
        from torchvision.models.detection import retinanet_resnet50_fpn
        def build():
            return retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64)
        """
    )
    assert message(f"{name}:build", size=64) == (
        f"{name}:build is a detector: it returns boxes, and a map needs logits [N, K]: take a module that returns, of its backbone and its "
        "classification head, each class's largest logit over the anchors; the page docs/detectors.md has it for RetinaNet and FCOS."
    )


# --- what identifies it -----------------------------------------------------------------------------------


def identity(name: str) -> str:
    return hash_of_resolved_model(name, load_model(name, progress=lambda line: None))


def test_a_change_of_weights_structure_or_code_is_noticed(directory):
    directory.write("import torch\ndef act(x):\n    return x.relu()\n", "acts_of_test")
    source = SOURCE.replace("import lrp\n", "import lrp\nfrom acts_of_test import act\n").replace(
        "self.stem(x).relu()", "act(self.stem(x))"
    )
    name = directory.write(source)
    known = {identity(f"{name}:build")}
    assert {identity(f"{name}:build"), identity(f"{name}:alone")} == known

    def changed(old: str, new: str, file: str) -> str:
        path = directory.path / f"{file}.py"
        path.write_text(path.read_text().replace(old, new))
        for module in (name, "acts_of_test"):
            directory.forget(module)
        return identity(f"{name}:build")

    for change in (
        ("manual_seed(0)", "manual_seed(1)", name),  # weights
        ("scale = 2.0", "scale = 3.0", name),  # a plain attribute
        (".mean((2, 3))", ".amax((2, 3))", name),  # code of a class
        ("x.relu()", "x.tanh()", "acts_of_test"),  # code that it imports
    ):
        found = changed(*change)
        assert found not in known, change
        known.add(found)
    directory.forget(name)
    assert identity(f"{name}:build") in known


def test_other_activations_of_torchs_own_layers_are_noticed(directory):
    source = "from torch import nn\nimport torch\ndef build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.{}(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    first, second = (directory.write(source.format(kind)) for kind in ("ReLU", "GELU"))
    loaded = [load_model(f"{name}:build", progress=[].append) for name in (first, second)]
    assert hash_of_model_weights(loaded[0].model) == hash_of_model_weights(loaded[1].model)
    assert identity(f"{first}:build") != identity(f"{second}:build")


def test_a_model_with_a_name_here_is_told_by_its_weights(tmp_path):
    loaded = load_model("squeezenet1_1", pretrained=False)
    weights = hash_of_model_weights(loaded.model)
    assert (
        hash_of_resolved_model("squeezenet1_1", loaded) == weights == hash_of_resolved_model(loaded, loaded)
    )
    save_checkpoint(
        tmp_path / "a.pth", loaded.model, "squeezenet1_1", loaded.class_names, loaded.preprocessing
    )
    assert hash_of_resolved_model(tmp_path / "a.pth", loaded) == weights


# --- files of weights -------------------------------------------------------------------------------------


def test_a_file_whose_sidecar_names_code_runs_it_only_if_it_is_named(directory):
    name = directory.write(SOURCE + "\n\nopen('run.txt', 'a').write('x')\n")
    model = load_model(f"{name}:build", progress=[].append).model
    Path("run.txt").unlink()
    directory.forget(name)
    model.head = nn.Linear(8, 2)
    save_checkpoint("a.pth", model, f"{name}:build", ["yes", "no"], OWN, heads=["head"])
    assert message("a.pth") == (
        f"a.pth is of your own code {name}:build, says a.pth.json: --arch {name}:build allows that code to be run."
    )
    assert not Path("run.txt").exists()
    loaded = load_model("a.pth", arch=f"{name}:build", progress=[].append)
    assert loaded[1:] == (OWN, ("yes", "no")) and Path("run.txt").exists()
    assert hash_of_model_weights(loaded.model) == hash_of_model_weights(model)
    assert identity_of_file(name) != hash_of_model_weights(model)


def identity_of_file(name: str) -> str:
    arch = f"{name}:build"
    return hash_of_resolved_model("a.pth", load_model("a.pth", arch=arch, progress=[].append), arch)


def test_a_file_without_sidecar_can_be_of_own_code(directory):
    name = directory.write(SOURCE)
    state = {n: t + 1 for n, t in load_model(f"{name}:build", progress=[].append).model.state_dict().items()}
    torch.save(state, "b.pth")
    loaded = load_model("b.pth", arch=f"{name}:build")
    assert all(torch.equal(t, state[n]) for n, t in loaded.model.state_dict().items())
    assert loaded.class_names == ("cat", "dog", "owl")
    torch.save({"head.weight": torch.zeros(2, 8)}, "b.pth")
    assert message("b.pth", arch=f"{name}:build") == (
        f"b.pth does not fit {name}:build: 3 missing (stem.weight; stem.bias; head.bias), 1 of another shape (head.weight is [2, 8], "
        "expected [3, 8])."
    )


def test_arguments_that_belong_elsewhere(directory, tmp_path):
    name = directory.write(SOURCE)
    assert message(f"{name}:build", arch="vgg19") == (
        f"{name}:build is no file of weights: only a file takes an architecture (--arch)."
    )
    assert message("vgg19", preprocess=OWN) == (
        "vgg19 has its own preprocessing: leave that of a file (--preprocess) out."
    )
    save_checkpoint("c.pth", tv.squeezenet1_1(num_classes=2), "squeezenet1_1", ["a", "b"], OWN)
    assert message("c.pth", preprocess=OWN) == (
        "c.pth.json has the preprocessing of c.pth: leave that of a file (--preprocess) out."
    )
