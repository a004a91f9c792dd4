"""An explanation draws itself: on its photo, into a file, on a screen; and its repr is one line."""

import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow
from torch import nn

import lrp
from helpers.small_models import NAMES, small_model
from lrp.engine.results import display
from lrp.engine.results.account import account_in_words, reached_words
from lrp.pictures import heatmap

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def explained(images=1, target=2, preprocessing=True, names=NAMES, **settings):
    loaded = small_model()
    pre = loaded.preprocessing
    x = torch.stack([pre(np.roll(PIXELS, 3 * i, axis=0)) for i in range(images)])
    explainer = lrp.Explainer(
        loaded.model, "epsilon", class_names=names, preprocessing=pre if preprocessing else None, **settings
    )
    return explainer(x, target) if not isinstance(target, list) else explainer.many(x, target)


@pytest.fixture
def drawn(monkeypatch):
    """What `heatmap.draw` is given."""
    calls = []
    monkeypatch.setattr(
        heatmap, "draw", lambda *a, draw=heatmap.draw, **k: calls.append((*a, k)) or draw(*a, **k)
    )
    return calls


def test_the_map_lies_on_the_photo_where_the_model_saw_it(drawn):
    e = explained()
    picture = e.heatmap(PIXELS)
    ((pixels, (panel,), words),) = drawn
    assert isinstance(picture, Image.Image) and (pixels == PIXELS).all()
    values = e.relevance[0].double().sum(0).numpy()
    expected = small_model().preprocessing.geometry.to_photo(values, 24, 32)
    np.testing.assert_array_equal(panel.relevance, expected)
    assert np.isnan(panel.relevance).any()
    p = e.logits[0].double().softmax(0)
    best = int(p.argmax())
    assert panel.title == f"owl  {100 * float(p[2]):.1f} %"
    assert (
        words["title"] == f"{NAMES[best]}  {100 * float(p[best]):.1f} %" and words["subtitle"] == "predicted"
    )
    start, share = float(e.start.sum()), float(e.health.shares["input"][0])
    assert panel.subtitle.startswith(
        f"{values.sum():.3g} of {start:.3g} logits ({100 * share:.0f} %) reached the pixels"
    )


def test_it_is_the_picture_of_the_command_line(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    loaded = small_model()
    options = lrp.ExplainOptions("epsilon")
    (result,) = lrp.explain_folder(tmp_path / "photo.png", tmp_path / "out", loaded, "owl", options)
    e = explained()
    place = e.save(tmp_path / "own.png", photo=tmp_path / "photo.png")
    assert place == tmp_path / "own.png"
    ours, theirs = (np.asarray(Image.open(path)).astype(int) for path in (place, result.output))
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1


def test_photos_of_every_kind(tmp_path, drawn):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    path = tmp_path / "photo.png"
    e = explained()
    for photo, name in (
        (path, "predicted for photo.png"), (str(path), "predicted for photo.png"),
        (lrp.open_photo(path), "predicted for photo.png"), (Image.fromarray(PIXELS), "predicted"),
        (Image.fromarray(PIXELS).convert("RGBA"), "predicted"), (PIXELS, "predicted"),
    ):  # fmt: skip
        e.heatmap(photo)
        assert (drawn[-1][0] == PIXELS).all() and drawn[-1][2]["subtitle"] == name
    with pytest.raises(lrp.InputError) as error:
        e.heatmap(3)
    assert str(error.value) == (
        "photo: expected a path, a Photo, a PIL image or an array uint8 [H, W, 3], got int."
    )
    with pytest.raises(lrp.ImageError, match="expected a photo as uint8"):
        e.heatmap(PIXELS / 255)


def test_without_a_photo_the_input_is_shown_stretched(drawn):
    e = explained(2, preprocessing=False)
    e.heatmap(index=1)
    pixels, (panel,), words = drawn[0]
    x = e._images[1].double().numpy().transpose(1, 2, 0)
    assert np.abs(pixels - (x - x.min()) / (x.max() - x.min()) * 255).max() <= 0.5
    np.testing.assert_array_equal(panel.relevance, e.relevance[1].double().sum(0).numpy())
    assert words["subtitle"] == "what the model saw; its brightness is stretched"


def test_each_image_of_a_batch_has_its_own_picture(drawn):
    e = explained(3)
    for index, i in ((0, 0), (2, 2), (-1, 2)):
        e.heatmap(PIXELS, index)
        expected = small_model().preprocessing.geometry.to_photo(
            e.relevance[i].double().sum(0).numpy(), 24, 32
        )
        np.testing.assert_array_equal(drawn[-1][1][0].relevance, expected)
    for index in (3, -4):
        with pytest.raises(lrp.InputError) as error:
            e.heatmap(index=index)
        assert str(error.value) == f"index={index}: expected one of 3 images, 0 to 2."


def test_of_many_images_health_waits(drawn):
    e = explained(6)
    e.heatmap()
    assert "ledger" not in e.__dict__ and "bias" not in drawn[-1][1][0].subtitle
    assert e.health.ok
    e.heatmap()
    assert "bias" in drawn[-1][1][0].subtitle


def test_several_targets_are_panels_of_one_picture(drawn):
    several = explained(2, ["owl", lrp.Contrast("owl", "cat"), "dog"])
    several.heatmap(PIXELS, 1)
    titles = [panel.title.partition("  ")[0] for panel in drawn[0][1]]
    assert titles == ["owl", "owl, not cat", "dog"]
    for panel, e in zip(drawn[0][1], several, strict=True):
        expected = small_model().preprocessing.geometry.to_photo(
            e.relevance[1].double().sum(0).numpy(), 24, 32
        )
        np.testing.assert_array_equal(panel.relevance, expected)


def test_where_the_photo_was_seen_must_be_known(drawn):
    e = explained(preprocessing=False)
    with pytest.raises(lrp.InputError) as error:
        e.heatmap(PIXELS)
    assert str(error.value) == (
        "the photo is 32 x 24 pixels and the model's input 16 x 16: which part of it the model saw is not known; give "
        "preprocessing=, here or to Explainer(...)."
    )
    e.heatmap(PIXELS, preprocessing=small_model().preprocessing)
    assert np.isnan(drawn[-1][1][0].relevance).any()
    e.heatmap(np.ascontiguousarray(PIXELS[:16, :16]))  # of the input's size: there is nothing to know
    assert not np.isnan(drawn[-1][1][0].relevance).any()


def test_what_is_no_picture_says_so():
    net = nn.Sequential(nn.Conv2d(5, 2, 3), nn.Flatten(), nn.Linear(32, 3)).eval()
    deep = lrp.explain(net, torch.randn(1, 5, 6, 6))
    with pytest.raises(lrp.InputError) as error:
        deep.heatmap()
    assert str(error.value) == "an input of 5 channels cannot be shown as a photo: give one, heatmap(photo)."
    assert deep.heatmap(np.zeros((6, 6, 3), np.uint8)) and deep._repr_png_() is None


def test_a_file(tmp_path):
    e = explained()
    assert e.save(str(tmp_path / "a.PNG")) == tmp_path / "a.PNG"
    assert (
        heatmap.read_heatmap_metadata(tmp_path / "a.PNG") == {}
        and Image.open(tmp_path / "a.PNG").format == "PNG"
    )
    with pytest.raises(lrp.ImageError) as error:
        e.save("x/a.jpg", PIXELS)
    assert str(error.value) == (
        "x/a.jpg: expected a name that ends in .png; for another format: e.heatmap(photo).save('a.jpg')."
    )
    with pytest.raises(lrp.ImageError, match="cannot be written: No such file or directory"):
        e.save(tmp_path / "nowhere" / "a.png")


def test_on_a_screen(monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image) or True)
    e = explained()
    assert e.show(PIXELS) is None
    assert (np.asarray(shown[0]) == np.asarray(e.heatmap(PIXELS))).all()
    monkeypatch.setattr(ImageShow, "show", lambda image: False)
    with pytest.raises(lrp.ImageError) as error:
        e.show()
    assert str(error.value) == "there is no image viewer here: e.save('heatmap.png') writes a file."


@pytest.mark.parametrize("kernel", [True, False])
def test_in_a_notebook_it_is_shown_below_the_cell(monkeypatch, kernel):
    below, viewed = [], []
    shell = (
        types.SimpleNamespace(kernel=object()) if kernel else types.SimpleNamespace()
    )  # a terminal's has none
    package = types.ModuleType("IPython")
    package.get_ipython = lambda: shell
    inner = types.ModuleType("IPython.display")
    inner.display = below.append
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    monkeypatch.setattr(ImageShow, "show", lambda image: viewed.append(image) or True)
    explained(1, ["cat", "dog"]).show(PIXELS)
    assert (len(below), len(viewed)) == ((1, 0) if kernel else (0, 1))


def test_a_png_for_what_shows_no_html():
    e = explained(2)
    picture = Image.open(io.BytesIO(e._repr_png_()))
    assert picture.format == "PNG" and picture.size == e.heatmap().size
    assert np.abs(np.asarray(picture.convert("RGB"), float) - np.asarray(e.heatmap(), float)).mean() < 4
    many = explained(1, [0, 1, 2, 0, 1, 2])
    few = explained(1, [0, 1, 2, 0])
    assert Image.open(io.BytesIO(many._repr_png_())).size == few.heatmap().size  # of more, the first
    e.relevance[0, 0, 0, 0] = torch.nan
    assert e._repr_png_() is None


def test_a_repr_is_one_line():
    e = explained()
    reach = f"{float(e.relevance.double().sum()):.3g} of {float(e.start.sum()):.3g} logits"
    share = 100 * float(e.relevance.double().sum()) / float(e.start.double().sum())
    line = f"class 2, logit {float(e.logits[0, 2]):.4g}, {reach} ({share:.0f} %) reached the pixels"
    assert repr(e) == f"Explanation(1 image [3, 16, 16], {line})"
    assert str(e) == f"image 0: {line}"
    assert repr(explained(2)) == "Explanation(2 images [3, 16, 16], classes 2, 2)"
    assert repr(explained(6)) == "Explanation(6 images [3, 16, 16], classes 2, 2, 2, 2, ...)"
    assert repr(explained(2, [0, 1, 2])) == "Explanations(3 of 2 images [3, 16, 16])"
    assert repr(explained(1, [0])) == "Explanations(1 of 1 image [3, 16, 16])"
    assert str(explained(1, [0, 1])).splitlines()[1].startswith("explanation 1: image 0: class 1, logit ")


def test_the_words_of_an_account():
    shares = {"input": 0.36, "bias": 0.61, "epsilon": 0.03, "dropped": 0.004}
    words = "4.1 of 11.4 logits (36 %) reached the pixels"
    assert reached_words(4.1, 11.4, "logits", 0.36) == words
    assert reached_words(4.1, 11.4, "logits", 0.3612, ".2g") == words
    assert reached_words(0.0, 0.0, "logits", None) == "0 of 0 logits reached the pixels"
    assert account_in_words(4.1, 11.4, "logits", shares, []) == f"{words}; bias 61 %, ε 3 %"
    assert account_in_words(4.1, 11.4, "logits", shares, ["not finite", "b"]).startswith(
        f"NOT TRUSTWORTHY: not finite. {words}"
    )
    assert explained(seed="softmax").unit == "shares of the softmax" and explained().unit == "logits"


def test_a_changed_model_leaves_the_picture_and_says_so(drawn):
    e = explained()
    with torch.no_grad():
        next(e._explainer.model.parameters()).mul_(2)
    e.heatmap(PIXELS)
    assert "; health unknown: the model's weights changed after the explanation" in drawn[0][1][0].subtitle


def test_one_logit_has_no_probability(drawn):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 1)).eval()
    lrp.explain(net, torch.randn(1, 3, 6, 6)).heatmap()
    assert drawn[0][1][0].title == drawn[0][2]["title"] == "the model's one output"
    assert display.IMAGES == 4
