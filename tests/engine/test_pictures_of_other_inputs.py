"""Explanations of signals, volumes, clips and rows draw themselves: which picture, of which numbers, with which words."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow
from torch import nn

import lrp
from helpers.pictures import expect_readable, find, record_texts
from lrp.engine.results.account import account_in_words
from lrp.engine.results.target_words import predicted_words
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
            "photo=, preprocessing=: expected neither for relevance of shape [1, 2, 40], because a photo belongs to one input "
            "of images [N, C, H, W]."
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
    assert "<img" not in e._repr_html_() and "reached the input" in e._repr_html_()


class TwoInputs(nn.Module):
    """Of an image and a row; a mask is held, as it is no floats."""

    def __init__(self):
        super().__init__()
        self.image, self.row = nn.Conv2d(3, 4, 3), nn.Linear(7, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, image, row, mask):
        image = self.image(image * mask).relu().mean((2, 3))
        return self.head(torch.cat([image, self.row(row).relu()], 1))


def test_of_several_inputs_each_has_its_picture(monkeypatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TwoInputs().eval()
    image, row = inputs((3, 8, 9), 2), inputs((7,), 2)
    mask = torch.ones(2, 1, 8, 9, dtype=torch.bool)
    explainer = lrp.Explainer(net, class_names=NAMES)
    e = explainer.many((image, row, mask), ["wide", "early"])
    assert e.relevance[2] is None
    written = record_texts(monkeypatch)
    picture = np.asarray(e.heatmap(index=1))
    words = [w.text for w in written]
    assert [w for w in words if w.startswith("input ")] == ["input image", "input row"]
    expect_readable(written)
    heading = f"predicted: {title(e[0], 1, int(e[0].logits[1].argmax()))}"
    panels = []
    for each in e:
        reached, start = float(each.relevance[1][1].sum()), float(each.start[1].sum())
        shares = {k: float(v[1]) for k, v in each.health.shares.items()} | {"input": reached / start}
        account = account_in_words(reached, start, "logits", shares, [], "features")
        panels.append(
            Panel(each.relevance[1][1].double().numpy(), title(each, 1, int(each.target[1])), account)
        )
    below = np.asarray(draw_row(row[1].double().numpy(), panels, heading=heading))
    assert (picture[-len(below) :, : below.shape[1]] == below).all()
    photo = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    above = np.asarray(e.heatmap(photo, index=1))
    assert above.shape == picture.shape and (above[-len(below) :] == picture[-len(below) :]).all()
    find(Image.fromarray(above), photo.repeat(40, 0).repeat(40, 1))
    html = e._repr_html_()
    assert html.count("<img") == 2 * (1 + 2 + 2)  # of two: the photo, two heatmaps, two rows
    assert "<small>image: red speaks" in html and "<div>row: </div>" in html
    assert Image.open(io.BytesIO(e._repr_png_())).size == e.heatmap().size
    with pytest.raises(lrp.InputError) as error:
        e.heatmap(index=2)
    assert str(error.value) == "index=2: expected one of 2 inputs, 0 to 1."


def test_a_class_at_each_place_is_not_one_class():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    e = lrp.explain(net, inputs((3, 8, 9), 1), class_names=NAMES)
    assert e.logits.shape == (1, 3, 8, 9)
    assert e.heatmap().size[0] > 100
    for output, words in ((e, "a class at each place"), (regression(), "the model's one output")):
        assert predicted_words(output, 0) == words


def regression():
    return lrp.explain(nn.Sequential(nn.Flatten(), nn.Linear(80, 1)).eval(), inputs((2, 40), 1))


def test_one_output_has_no_prediction(monkeypatch):
    written = record_texts(monkeypatch)
    regression().heatmap()
    assert [w.text for w in written if w.text.startswith("channel")] == ["channel 0", "channel 1"]
    assert "the model's one output" in [w.text for w in written]
    assert not any("predicted" in w.text for w in written)


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
