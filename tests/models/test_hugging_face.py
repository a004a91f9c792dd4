"""`hf:./folder` and `hf:NAME`: models of transformers, saved from configurations; the oracle is the model and its processor."""

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import lrp
from helpers.hugging_face import processor_class, real_photos, save_classifier
from lrp.classes import imagenet_names
from lrp.cli import main
from lrp.errors import ModelError
from lrp.models.geometries import ProcessorGeometry, TensorGeometry
from lrp.models.hugging_face.processor_calls import processed, settings_of
from lrp.models.hugging_face.processors import preprocessing_of_processor
from lrp.models.loading import load_model
from lrp.models.preprocessing import Preprocessing

pytest.importorskip("transformers", reason="hf: is transformers")

# Family -> where its processor's work goes. The last ones do what no other geometry says.
FAMILIES = {
    **dict.fromkeys(
        [
            "beit", "bit", "clip", "convnext", "cvt", "data2vec-vision", "deit", "dinov2", "efficientnet", "focalnet", "hgnet_v2",
            "hiera", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "poolformer", "pvt", "regnet", "resnet", "segformer",
            "siglip", "swiftformer", "swin", "swinv2", "vit",
        ],
        TensorGeometry,
    ),
    **dict.fromkeys(["donut-swin", "perceiver", "pp_lcnet", "textnet"], ProcessorGeometry),
}  # fmt: skip


def message(name: str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(name, progress=lambda line: None, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_is_a_model_with_its_processor_and_its_names(family, tmp_path):
    model, processor = save_classifier(tmp_path, family, id2label={i: f"thing {i}" for i in range(10)})
    lines: list[str] = []
    loaded = load_model(f"hf:{tmp_path}", progress=lines.append)
    assert type(loaded.preprocessing.geometry) is FAMILIES[family]
    assert len(lines) == (FAMILIES[family] is ProcessorGeometry)
    assert loaded.class_names == tuple(f"thing {i}" for i in range(10)) and not loaded.model.training
    for photo in real_photos(4):
        wanted = processed(processor, photo)
        x = loaded.preprocessing(photo)
        assert x.shape == wanted.shape and float((x - wanted).abs().max()) <= 1e-6
    with torch.no_grad():
        theirs = model(wanted[None])
        logits = theirs.last_hidden_state if family == "pp_lcnet" else theirs.logits
        assert torch.allclose(loaded.model(wanted[None]), logits, rtol=1e-4, atol=1e-5)
    assert (
        Preprocessing.from_dict(json.loads(json.dumps(loaded.preprocessing.to_dict())))
        == loaded.preprocessing
    )


@pytest.mark.parametrize(
    "family", ["vit", "levit", "mobilevit", "donut-swin", "perceiver", "pp_lcnet", "textnet"]
)
@pytest.mark.parametrize("size", [(240, 320), (321, 207)])
def test_what_the_model_sees_lies_where_it_is_in_the_photo(family, size, tmp_path):
    """A bright square: its centre in the input, led back, is its centre in the photo."""
    _, processor = save_classifier(tmp_path, family)
    geometry = load_model(f"hf:{tmp_path}", progress=[].append).preprocessing.geometry
    height, width = size
    for down, across in ((0.35, 0.6), (0.55, 0.4)):
        top, left = round(down * height), round(across * width)
        photo = np.zeros((height, width, 3), np.uint8)
        photo[top : top + 24, left : left + 24] = 255
        seen = processed(processor, photo).mean(0).double().numpy()
        back = np.nan_to_num(geometry.to_photo(seen - seen.min(), height, width))
        rows, columns = np.mgrid[:height, :width]
        centre = (rows * back).sum() / back.sum(), (columns * back).sum() / back.sum()
        of_input = max(height, width) / max(geometry.input_size(height, width))
        assert np.abs(np.subtract(centre, (top + 11.5, left + 11.5))).max() < 0.5 * of_input + 0.5


@pytest.mark.parametrize("family", ["deit", "levit", "mobilevit"])
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (1200, 900), (60, 45)])
def test_a_measured_geometry_is_right_to_half_a_pixel_of_the_input(family, size, tmp_path):
    """Where the formula is known: the processor itself, measured, against it."""
    processor = processor_class(family)()
    known = preprocessing_of_processor(processor, family).geometry
    measured = ProcessorGeometry(None, known.crop, settings=settings_of(processor))
    step = max(np.divide(size, known._placement(*size)[0]))
    assert np.abs(np.subtract(known.box(*size), measured.box(*size))).max() < 0.5 * step


def test_pillow_and_tensors_round_differently():
    """Why the backend that transformers chooses for a saved processor is followed, not Pillow: figures in docs/your_model.md."""
    photo = real_photos(1)[0]
    for interpolation, most in (("bilinear", 3), ("bicubic", 40)):
        ours, theirs = (
            kind((224, 224), (224, 224), interpolation).apply(photo).astype(int)
            for kind in (lrp.Geometry, TensorGeometry)
        )
        assert 0 < np.abs(ours - theirs).max() <= most and (ours != theirs).mean() < 0.2


def test_class_names(tmp_path):
    save_classifier(tmp_path / "a", "resnet")
    assert load_model(f"hf:{tmp_path / 'a'}").class_names[:2] == ("class 0", "class 1")
    known = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    config = json.loads((tmp_path / "a/config.json").read_text())
    config |= {"id2label": dict(enumerate(known)), "label2id": {}}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    assert load_model(f"hf:{tmp_path / 'a'}", pretrained=False).class_names == imagenet_names()


def test_a_preprocessing_of_a_file_takes_precedence(tmp_path):
    save_classifier(tmp_path, "resnet")
    (tmp_path / "preprocessor_config.json").unlink()
    own = Preprocessing(lrp.Geometry(40, (32, 32)), (0.5,) * 3, (0.5,) * 3)
    assert message(f"hf:{tmp_path}") == (
        f"hf:{tmp_path} has no image processor, a file preprocessor_config.json: give a preprocessing (--preprocess FILE)."
    )
    (tmp_path / "own.json").write_text(json.dumps({"preprocessing": own.to_dict()}))
    assert load_model(f"hf:{tmp_path}", preprocess=tmp_path / "own.json").preprocessing == own


def test_a_size_is_refused_only_where_the_processor_sets_it(tmp_path):
    save_classifier(tmp_path / "a", "resnet")
    assert load_model(f"hf:{tmp_path / 'a'}", size=48).preprocessing.geometry.crop == (48, 48)
    save_classifier(tmp_path / "b", "perceiver")
    assert message(f"hf:{tmp_path / 'b'}", size=48) == (
        "the size of the input is set by the model's own processor: leave the size (--size) out."
    )


def test_the_geometry_of_a_processor_is_said(tmp_path):
    save_classifier(tmp_path, "perceiver")
    lines: list[str] = []
    load_model(f"hf:{tmp_path}", progress=lines.append)
    assert lines == [
        f"hf:{tmp_path}: photos are prepared by its own PerceiverImageProcessor; of one of 640 x 480 pixels the model sees the part from "
        "(82, 2) to (558, 478)."
    ]


# --- refusals ---------------------------------------------------------------------------------------------


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert message("hf:./here") == "hf:./here is a model of transformers: pip install 'lrp[hf]'."


def test_folders_that_hold_no_classifier(tmp_path, monkeypatch):
    import transformers as hf

    monkeypatch.chdir(tmp_path)
    assert message("hf:./none") == "hf:./none: there is no folder none."
    Path("empty").mkdir()
    assert message("hf:empty") == (
        "hf:empty: empty has no config.json: expected a folder as save_pretrained writes it."
    )
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
    }
    hf.ViTModel(hf.ViTConfig(**small)).save_pretrained("body")
    assert message("hf:body", preprocess=USUAL) == (
        "hf:body is ViTModel: expected an image classifier (ViTForImageClassification), or a model of images and texts such as CLIPModel."
    )
    hf.YolosForObjectDetection(hf.YolosConfig(**small | {"image_size": [32, 32]})).save_pretrained("boxes")
    assert message("hf:boxes", preprocess=USUAL) == (
        "hf:boxes is a detector: it returns boxes, and a map needs logits [N, K]: take a module that returns, of its backbone and its "
        "classification head, each class's largest logit over the anchors; the page docs/detectors.md has it for RetinaNet and FCOS."
    )
    config = json.loads(Path("body/config.json").read_text()) | {"model_type": "nobodys"}
    Path("body/config.json").write_text(json.dumps(config))
    text = message("hf:body", preprocess=USUAL)
    assert text.startswith(
        f"hf:body is no model that transformers {hf.__version__} knows (The checkpoint you are trying to load"
    )
    assert text.endswith(
        "): code of the repository is never run; a function of yours can load it: --model MODULE:FUNCTION."
    )


USUAL = Preprocessing(lrp.Geometry(36, (32, 32)), (0.5,) * 3, (0.5,) * 3)


def test_weights_that_are_missing_or_damaged(tmp_path):
    save_classifier(tmp_path, "vit")
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file(
        {n: t for n, t in state.items() if "classifier" not in n}, file, {"format": "pt"}
    )
    assert message(f"hf:{tmp_path}") == (
        f"hf:{tmp_path} has no weights for classifier.bias, classifier.weight: it was not trained to classify; `lrp retrain` can, from a "
        "model that has these."
    )
    file.write_bytes(b"damaged")
    assert message(f"hf:{tmp_path}").startswith(
        f"hf:{tmp_path}: its weights in {tmp_path} cannot be loaded: "
    )


def test_arguments_that_belong_elsewhere(tmp_path):
    save_classifier(tmp_path, "vit")
    assert message(f"hf:{tmp_path}", arch="vgg19") == (
        f"hf:{tmp_path} is no file of weights: only a file takes an architecture (--arch)."
    )
    assert message(f"hf:{tmp_path}", labels=["a"]) == (
        f"hf:{tmp_path} names its own classes: leave the labels (--labels) out."
    )
    torch.save({}, tmp_path / "a.pth")
    assert message(str(tmp_path / "a.pth"), arch="hf:./here") == (
        f"{tmp_path / 'a.pth'} cannot be of hf:./here: a model of transformers is its whole folder, --model hf:FOLDER."
    )


# --- the hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which cannot be reached."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    return tmp_path / "hub"


def snapshot(hub: Path, repository: str) -> Path:
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


def test_a_name_comes_from_the_hubs_cache_without_network(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)  # must not be asked
    model, _ = save_classifier(snapshot(hub, "somebody/resnet"), "resnet")
    loaded = load_model("hf:somebody/resnet", progress=pytest.fail)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model(x).logits)


def test_a_name_without_network(hub, capsys):
    assert message("hf:somebody/resnet") == (
        "hf:somebody/resnet: its weights (size unknown) could not be fetched from http://127.0.0.1:1/somebody/resnet (Connection refused); "
        f"run `hf download somebody/resnet` elsewhere and copy its cache to {hub}."
    )
    assert capsys.readouterr() == ("", "")


def test_what_is_fetched_is_said_and_is_no_more_than_needed(hub, monkeypatch):
    sizes = {
        "config.json": 10, "preprocessor_config.json": 10, "model.safetensors": 3 * 2**20, "pytorch_model.bin": 3 * 2**20,
        "tf_model.h5": 9, "onnx/model.onnx": 9, "README.md": 9, "onnx/config.json": 9,
    }  # fmt: skip
    siblings = [type("File", (), {"rfilename": name, "size": size}) for name, size in sizes.items()]
    asked: dict[str, Any] = {}

    def fetch(repository: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        save_classifier(snapshot(hub, repository), "resnet")
        return str(snapshot_of(hub, repository))

    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *args, **options: type("Info", (), {"siblings": siblings})
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    lines: list[str] = []
    load_model("hf:somebody/resnet", progress=lines.append)
    assert lines == [f"hf:somebody/resnet: 3 MB from 127.0.0.1 to {hub}"]
    assert asked == {
        "repository": "somebody/resnet",
        "patterns": ["config.json", "preprocessor_config.json", "model.safetensors"],
    }


def snapshot_of(hub: Path, repository: str) -> Path:
    return hub / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40)


def test_weights_in_parts_are_fetched_again_if_one_is_missing(hub):
    folder = snapshot(hub, "somebody/resnet")
    model, _ = save_classifier(folder, "resnet")
    model.save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    parts = sorted(folder.glob("model-*.safetensors"))
    assert len(parts) > 1 and load_model("hf:somebody/resnet", progress=pytest.fail)
    parts[0].unlink()
    assert "Connection refused" in message("hf:somebody/resnet")


def test_a_repository_of_timm_reaches_timm(monkeypatch, tmp_path):
    """As `timm.create_model` takes it; the hub is not asked."""
    config = timm.models.get_pretrained_cfg("resnet18").to_dict() | {
        "num_classes": 3, "label_names": ["a", "b", "c"], "hf_hub_id": "somebody/net", "source": "hf-hub",
    }  # fmt: skip
    given: list[Any] = []
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, file: given.append((repository, file)) or "x",
    )
    monkeypatch.setattr(
        timm.models,
        "load_model_config_from_hf",
        lambda name: given.append(name) or (dict(config), "resnet18", {}),
    )
    real = timm.create_model

    def create(name: str, **options: Any) -> Any:
        given.append((name, options))
        return real("resnet18", num_classes=3)

    monkeypatch.setattr(timm, "create_model", create)
    loaded = load_model("timm:hf_hub:somebody/net@v2", progress=pytest.fail)
    assert given[0] == ("somebody/net", "config.json") and given[1] == "somebody/net@v2"
    assert given[-1] == ("hf_hub:somebody/net@v2", {"pretrained": True, "pretrained_cfg_overlay": None})
    assert loaded.class_names == ("a", "b", "c")


# --- the commands -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_take_a_folder(tmp_path, monkeypatch, capsys):
    from helpers.small_models import write_photos

    monkeypatch.chdir(tmp_path)
    save_classifier(Path("vit"), "vit", id2label=dict(enumerate(["cat", "dog", *"abcdefgh"])))
    write_photos(Path("input"), 3)
    cpu = ["--device", "cpu"]
    assert main(["explain", "input", "-m", "hf:./vit", "--json", *cpu]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(r["status"] == "ok" and r["health"]["ok"] for r in found)
    assert main(["evaluate", "input", "-m", "hf:./vit", *cpu]) == 0
    assert main(["errors", "vit_results.csv", "--explain", *cpu]) == 0
    assert main(["retrain", "input", "-m", "hf:./vit", "-o", "new.pth", "--epochs", "1", *cpu]) == 0
    assert json.loads(Path("new.pth.json").read_text())["preprocessing"]["resized_as"] == "tensor"
    capsys.readouterr()
    assert main(["evaluate", "input", "-m", "new.pth", "-o", "new.csv", "--json", *cpu]) == 0
    accuracy = json.loads(Path("new.history.json").read_text())
    assert json.loads(capsys.readouterr().out)["correct"] >= 0 and len(accuracy) == 2
