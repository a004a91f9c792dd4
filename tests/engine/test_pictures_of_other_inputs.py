"""Explanations of signals, volumes, clips and rows draw themselves: which picture, of which numbers, with which words."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow
from torch import nn

import lrp
from lrp.engine.results.account import account_in_words
from lrp.pictures.heatmap import Panel
from lrp.pictures.signals import draw_signal
from lrp.pictures.table_rows import draw_row
from lrp.pictures.volumes import draw_volume

NAMES = ("normal", "wide", "early")
INPUTS = {
    "row": ((7,), draw_row, "features"),
    "signal": ((2, 40), draw_signal, "samples"),
    "volume": ((1, 9, 6, 5), draw_volume, "voxels"),
    "clip": ((3, 8, 6, 5), draw_volume, "pixels"),
}


def model(shape):
    layers = {
        1: lambda: [nn.Linear(shape[0], 6)],
        2: lambda: [nn.Conv1d(shape[0], 6, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()],
        4: lambda: [nn.Conv3d(shape[0], 6, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()],
    }[len(shape)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*layers(), nn.ReLU(), nn.Linear(6, 3)).eval()


def inputs(shape, count=3):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def panel(e, i, places):
    """With the words of the i-th input's explanation, from its numbers."""
    reached, start = float(e.relevance[i].double().sum()), float(e.start[i].double().sum())
    shares = {name: float(values[i]) for name, values in e.health.shares.items()}
    words = account_in_words(reached, start, "logits", shares, [], places)
    assert f"reached the {places}" in words
    return Panel(e.relevance[i].double().numpy(), title(e, i, int(e.target[i])), words)


def title(e, i, index):
    return f"{NAMES[index]}  {100 * float(e.logits[i].double().softmax(0)[index]):.1f} %"


@pytest.mark.parametrize("kind", INPUTS)
def test_the_picture_is_that_of_its_kind(kind, tmp_path, monkeypatch):
    shape, draw, places = INPUTS[kind]
    x = inputs(shape)
    several = lrp.Explainer(model(shape), class_names=NAMES).many(x, ["wide", "normal"])
    for entry in several:
        assert entry.relevance.shape == x.shape  # as the model takes it
    predicted = f"predicted: {title(several[0], 2, int(several[0].logits[2].argmax()))}"
    for made, entries in ((several, list(several)), (several[1], [several[1]])):
        panels = [panel(e, 2, places) for e in entries]
        expected = np.asarray(draw(x[2].double().numpy(), panels, heading=predicted, unit="logits"))
        picture = made.heatmap(index=2)
        assert (np.asarray(picture) == expected).all()
        assert made.save(tmp_path / "a.png", index=-1) == tmp_path / "a.png"
        assert (np.asarray(Image.open(tmp_path / "a.png")) == expected).all()
    shown = []
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image) or True)
    several[1].show(index=2)
    assert (np.asarray(shown[0]) == expected).all()
    small = Image.open(io.BytesIO(several._repr_png_()))
    full = several.heatmap()
    assert small.size == full.size
    assert np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(full, float)).mean() < 1
    several[0].relevance[0].view(-1)[0] = torch.nan
    assert several._repr_png_() is None


def test_a_photo_is_for_images_alone(tmp_path):
    shape = INPUTS["signal"][0]
    e = lrp.explain(model(shape), inputs(shape, 1))
    photo = np.zeros((4, 4, 3), np.uint8)
    for call in (
        lambda: e.heatmap(photo),
        lambda: e.save(tmp_path / "a.png", photo=photo),
        lambda: e.show(photo),
    ):
        with pytest.raises(lrp.InputError) as error:
            call()
        assert str(error.value) == (
            "photo=, preprocessing=: expected neither for relevance of shape [1, 2, 40], because only images [N, C, H, W] lie "
            "on a photo."
        )
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(lrp.InputError) as error:
        e.heatmap(index=1)
    assert str(error.value) == "index=1: expected one of 1 signals, 0 to 0."


def test_other_numbers_of_dimensions_are_told():
    class Folded(nn.Module):
        def forward(self, x):
            return x.mean((2, 3, 4, 5))

    e = lrp.explain(Folded().eval(), inputs((3, 2, 2, 2, 2), 1))
    with pytest.raises(lrp.InputError) as error:
        e.heatmap()
    assert str(error.value) == (
        "relevance of an input of shape [3, 2, 2, 2, 2] is no picture: expected rows [F], signals [C, L], images [C, H, W], or "
        "volumes [C, D, H, W]."
    )
    assert e._repr_png_() is None
    assert "<img" not in e._repr_html_() and "reached the values" in e._repr_html_()


def test_a_video_classifier_of_torchvision():
    video = pytest.importorskip("torchvision.models.video", reason="torchvision has video classifiers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = video.r3d_18(weights=None, num_classes=3).eval()
    clip = torch.rand(1, 3, 4, 24, 24, generator=torch.Generator().manual_seed(2))
    e = lrp.explain(net, clip, composite="epsilon", class_names=NAMES)
    assert e.relevance.shape == clip.shape and e.health.ok
    heading = f"predicted: {title(e, 0, int(e.logits[0].argmax()))}"
    expected = draw_volume(clip[0].double().numpy(), [panel(e, 0, "pixels")], heading=heading)
    assert (np.asarray(e.heatmap()) == np.asarray(expected)).all()
