"""Models of images and texts as classifiers of texts; the oracle is the model itself, given the texts and the photo together."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lrp
from helpers.hugging_face import real_photos, save_image_text
from helpers.small_models import write_photos
from lrp.cli import main
from lrp.errors import ModelError
from lrp.gallery.request import Request
from lrp.models.loading import load_model
from lrp.models.weights import hash_of_model_weights
from lrp.train.heads import model_with_new_head

pytest.importorskip("transformers", reason="hf: is transformers")
TEXTS = ("a photo of a cat", "a red ball", "no one")
FAMILIES = ["clip", "siglip", "metaclip_2"]


def message(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family, tmp_path):
    model, processor = save_image_text(tmp_path, family)
    loaded = load_model(f"hf:{tmp_path}", labels=TEXTS)
    assert loaded.class_names == TEXTS and not loaded.model.training
    for photo in real_photos(3):
        with torch.no_grad():
            own = model(**processor(list(TEXTS), photo)).logits_per_image
            ours = loaded.model(loaded.preprocessing(photo)[None])
        assert torch.allclose(ours, own, rtol=1e-5, atol=1e-5)
        assert own.std() > 1e-3  # texts and photos matter


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_and_the_contrast_of_two_are_explained(family, tmp_path):
    model, processor = save_image_text(tmp_path, family)
    loaded = load_model(f"hf:{tmp_path}", labels=TEXTS)
    photo = real_photos(1)[0]
    x = loaded.preprocessing(photo)[None]
    explainer = lrp.Explainer(loaded.model, class_names=TEXTS)
    one, contrast = explainer(x, TEXTS[0]), explainer(x, lrp.Contrast(TEXTS[0], TEXTS[1]))
    with torch.no_grad():
        own = model(**processor(list(TEXTS), photo)).logits_per_image[0]
    assert float(one.start.sum()) == pytest.approx(float(own[0]), abs=1e-4)
    assert float(contrast.start.sum()) == pytest.approx(float(own[0] - own[1]), abs=1e-4)
    assert one.health.ok and contrast.health.ok and bool((contrast.relevance != 0).any())


def test_texts_are_part_of_what_identifies_it(tmp_path):
    save_image_text(tmp_path, "clip")
    first, same, other = (
        load_model(f"hf:{tmp_path}", labels=[text]).model for text in ("a cat", "a cat", "a dog")
    )
    assert hash_of_model_weights(first) == hash_of_model_weights(same) != hash_of_model_weights(other)


@pytest.mark.parametrize(
    "target, texts",
    [
        ("a photo of a cat", ("a photo of a cat",)),
        ("a cat, sitting, on a mat", ("a cat, sitting, on a mat",)),
        ("a photo of a cat-vs-a photo of a dog", ("a photo of a cat", "a photo of a dog")),
        (lrp.Contrast("a", "b"), ("a", "b")),
        (["a cat", lrp.Contrast("a dog", "a cat"), "predicted"], ("a cat", "a dog")),
        ("predicted", ()),
        ("top3", ()),
        (7, ()),
    ],
)
def test_the_texts_of_a_target(target, texts):
    assert Request.texts(target) == texts


def test_what_is_missing_is_one_sentence(tmp_path):
    save_image_text(tmp_path, "clip")
    name = f"hf:{tmp_path}"
    assert message(load_model, name) == (
        f"{name} compares photos with texts: expected these as the target (--target 'a photo of a cat') or as labels, a file with one a line "
        "(--labels FILE)."
    )
    assert message(model_with_new_head, name, 3) == (
        f"{name} compares photos with texts, and has no classes of its own to replace: expected an image classifier."
    )
    (tmp_path / "tokenizer.json").write_text("{")
    assert message(load_model, name, labels=TEXTS).startswith(f"{name} has no tokenizer for its texts: ")
    (tmp_path / "tokenizer.json").unlink()
    assert message(load_model, name, labels=TEXTS) == (
        f"{name} has no tokenizer for its texts: expected a file tokenizer.json."
    )


def test_other_models_of_images_and_texts_are_refused(tmp_path, monkeypatch):
    model, _ = save_image_text(tmp_path, "clip")
    real = type(model).get_image_features

    def other(self: Any, pixel_values: torch.Tensor, **options: Any) -> Any:
        """The model's own logits give options, and are then of another embedding than the one it tells of."""
        found = real(self, pixel_values, **options)
        if options:
            found.pooler_output = found.pooler_output.abs()
        return found

    monkeypatch.setattr(type(model), "get_image_features", other)
    assert message(load_model, f"hf:{tmp_path}", labels=TEXTS) == (
        f"hf:{tmp_path} is CLIPModel, whose logits are no cosine of an image's and a text's embedding."
    )
    monkeypatch.setattr(type(model), "get_image_features", None)
    assert message(load_model, f"hf:{tmp_path}", labels=TEXTS) == (
        f"hf:{tmp_path} is CLIPModel, whose logits of images and texts cannot be computed (TypeError: 'NoneType' object is not callable)."
    )


@pytest.mark.slow
def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_image_text(Path("clip"), "clip")
    write_photos(Path("input"), 1)
    given = ["explain", "input", "-m", "hf:./clip", "--device", "cpu", "--json", "--target"]

    def facts(*more: str) -> list[dict[str, Any]]:
        assert main([*given, *more]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (found, _) = facts("a photo of a cat-vs-a photo of a dog")
    assert found["status"] == "ok" and found["target"] == "a photo of a cat" and found["health"]["ok"]
    assert {entry["name"] for entry in found["top5"]} == {"a photo of a cat", "a photo of a dog"}
    (alone, _) = facts("a photo of a cat")
    assert alone["confidence"] is None and alone["status"] == "ok"  # one text has no share among others
    assert found["logit"] == pytest.approx(alone["logit"], rel=1e-4)
    assert main([*given[:-2], "--target", "a photo of a cat"]) == 0
    assert re.search(rf"a photo of a cat {alone['logit']:.3g}$", capsys.readouterr().out.splitlines()[0])
    Path("texts.txt").write_text("a photo of a cat\na photo of a dog\n")
    labelled = facts("predicted", "--labels", "texts.txt")
    assert [r["status"] for r in labelled] == ["ok", "ok"] and labelled[0]["confidence"] > 0.4
    assert main([*given, "predicted"]) == 1
    assert "compares photos with texts" in capsys.readouterr().err
