"""torchvision's segmentation nets by name: weights, preprocessing and names are those that torchvision publishes."""

import hashlib
import io

import numpy as np
import pytest
import torch
import torchvision.models as tv
from PIL import Image

import lrp
from lrp.errors import ModelError
from lrp.models.catalogue import segmentation_names
from lrp.models.loading import load_model
from lrp.train.heads import model_with_new_head

PHOTO = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
NAMES = tv.list_models(module=tv.segmentation)


def message(call, *args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_their_names():
    assert segmentation_names() == NAMES and "lraspp_mobilenet_v3_large" in NAMES and len(NAMES) >= 6
    assert message(load_model, "lraspp_mobilenet_v3_larg").startswith(
        "no model 'lraspp_mobilenet_v3_larg': did you mean lraspp_mobilenet_v3_large, "
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_photo_is_prepared_as_the_weights_say(name, monkeypatch):
    monkeypatch.setattr("lrp.models.loading.build_from_catalogue", lambda *args: torch.nn.Identity())
    loaded = load_model(name, pretrained=False)
    weights = tv.get_model_weights(name).DEFAULT
    assert torch.equal(loaded.preprocessing(PHOTO), weights.transforms()(Image.fromarray(PHOTO)))
    assert loaded.preprocessing.geometry.box(61, 97) == (0, 0, 97, 61)
    assert loaded.class_names == tuple(weights.meta["categories"]) and "person" in loaded.class_names


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_published_weights_give_what_torchvisions_own_builder_gives(name, server, tmp_path, monkeypatch):
    """Published with a head for training only, where there is one."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    torch.manual_seed(0)
    published = tv.get_model(name, weights=None, weights_backbone=None, num_classes=21, **auxiliary)
    buffer = io.BytesIO()
    torch.save(published.state_dict(), buffer)
    server.body = buffer.getvalue()
    url = f"{server.url}{name}-{hashlib.sha256(server.body).hexdigest()[:8]}.pth"
    monkeypatch.setattr(tv.get_model_weights(name).DEFAULT.value, "url", url)
    ours = load_model(name, progress=lambda line: None)
    theirs = tv.get_model(name, weights="DEFAULT").eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.allclose(ours.model(x), theirs(x)["out"], rtol=1e-5, atol=1e-6)
    assert not ours.model.training and len(server.asked) == 1


@pytest.mark.slow
def test_a_region_is_explained():
    """The sum of a class's logits over the places where it is the largest, as the net itself gives it."""
    loaded = load_model("lraspp_mobilenet_v3_large", pretrained=False)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = loaded.model(x)[0]
    best = int(logits.argmax(0).flatten().mode().values)
    e = lrp.Explainer(loaded.model, class_names=loaded.class_names)(x, lrp.Region(loaded.class_names[best]))
    assert float(e.start.sum()) == pytest.approx(
        float(logits[best][logits.argmax(0) == best].sum()), rel=1e-3
    )
    assert e.health.ok and e.relevance.shape == x.shape


def test_what_they_are_not_for():
    assert message(model_with_new_head, "lraspp_mobilenet_v3_large", 3) == (
        "lraspp_mobilenet_v3_large decides at each pixel: expected a classifier of whole photos to retrain."
    )
    for name in ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"):
        assert message(load_model, name) == (
            f"{name} is a detector: it returns boxes, and a map needs logits [N, K]: take a module that returns, of its backbone and its "
            "classification head, each class's largest logit over the anchors; the page docs/detectors.md has it for RetinaNet and FCOS."
        )
