"""Photos explained by nets that decide at each pixel: the region of a class, by the maps' own identities, and its outline."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lrp
from lrp.cli import main
from lrp.gallery.results import Result
from lrp.models.loading import LoadedModel
from lrp.pictures import heatmap

NAMES = ("__background__", "red", "green", "blue")
WHOLE = lrp.Preprocessing(lrp.Geometry(24, None), (0.0,) * 3, (1.0,) * 3)


class Colours(nn.Module):
    """Decides for the colour that is brightest around each pixel, at every second pixel; for the background where it is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.decide = nn.Conv2d(3, 4, 1, stride=2)
        nn.init.constant_(self.blur.weight, 1 / 9)
        with torch.no_grad():
            self.decide.weight.copy_(torch.eye(4, 3, dtype=torch.float).roll(1, 0)[:, :, None, None])
            self.decide.weight[0] = 0
            self.decide.bias.copy_(torch.tensor([0.3, 0.0, 0.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decide(self.blur(x).relu())


@pytest.fixture
def loaded() -> LoadedModel:
    return LoadedModel(Colours().eval(), WHOLE, NAMES)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A lying photo with a red left third and a small blue square, and a standing one without red."""
    pixels = np.zeros((48, 72, 3), np.uint8)
    pixels[:, :24, 0] = 255
    pixels[8:24, 48:64, 2] = 200
    paths = [tmp_path / "input" / "red" / name for name in ("lying.png", "standing.png")]
    paths[0].parent.mkdir(parents=True)
    Image.fromarray(pixels).save(paths[0])
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels)[:, ::-1, ::-1] // 2 * 2)).resize((30, 60)).save(
        paths[1]
    )
    return paths


def explained(
    loaded: LoadedModel, paths: list[Path], target: object = "predicted", **options: object
) -> list[Result]:
    given = lrp.ExplainOptions(device="cpu", **options)
    return list(lrp.explain_folder(paths, paths[0].parents[2] / "out", loaded, target, given))


def test_the_largest_region_but_the_background_is_explained(loaded, photos):
    lying, standing = explained(loaded, photos, save=("png", "npz"), composite="epsilon")
    assert [r.status for r in (lying, standing)] == ["ok", "ok"]
    for result, path in ((lying, photos[0]), (standing, photos[1])):
        x = WHOLE(lrp.open_photo(path).pixels)[None]
        logits = loaded.model(x)[0].detach()
        found = logits.argmax(0)
        areas = [int((found == k).sum()) for k in range(4)]
        best = max(range(1, 4), key=lambda k: areas[k])
        facts = result.facts
        assert (facts["predicted"], facts["predicted_index"], facts["target_index"]) == (
            NAMES[best],
            best,
            best,
        )
        assert facts["area"] == areas[best] / found.numel()
        assert facts["confidence"] == pytest.approx(
            float(logits.softmax(0)[best][found == best].mean()), rel=1e-5
        )
        assert facts["logit"] == pytest.approx(float(logits[best][found == best].mean()), rel=1e-5)
        assert facts["start"] == pytest.approx(float(logits[best][found == best].sum()), rel=1e-5)
        assert [entry["index"] for entry in facts["top5"]] == sorted(
            (k for k in range(4) if areas[k]), key=lambda k: -areas[k]
        )
        with np.load(
            result.output.with_suffix(".npz")
        ) as saved:  # gradient x input: the net is linear where nothing is negative
            x.requires_grad_()
            loaded.model(x)[0, best][found == best].sum().backward()
            assert saved["relevance"] == pytest.approx((x * x.grad)[0].detach().numpy(), abs=1e-4)
            assert saved["relevance"].shape == (
                3,
                *WHOLE.geometry.input_size(*lrp.open_photo(path).pixels.shape[:2]),
            )


def test_classes_by_name_each_with_its_own_region(loaded, photos):
    result = explained(loaded, photos[:1], "red,blue,green")[0]
    panels = result.facts["panels"]
    assert [p["target"] for p in panels] == ["red", "blue", "green"]
    assert panels[0]["area"] > panels[1]["area"] > 0 == panels[2]["area"] == panels[2]["start"]
    assert panels[2]["title"] == "green  0.0 % of the pixels"
    assert explained(loaded, photos[:1], "true")[0].facts["target"] == "red"


def test_the_region_is_outlined_where_it_is_in_the_photo(loaded, photos, monkeypatch):
    drawn = []
    real = heatmap.draw
    monkeypatch.setattr(
        heatmap,
        "draw",
        lambda pixels, panels, **options: drawn.append(panels) or real(pixels, panels, **options),
    )
    explained(loaded, photos[:1], "blue,red")
    blue, red = (panel.region for panel in drawn[0])
    for region, box in ((blue, np.s_[8:24, 48:64]), (red, np.s_[:, :24])):
        expected = np.zeros((48, 72), bool)
        expected[box] = True
        assert region.shape == (48, 72) and region.dtype == bool
        assert (region & expected).sum() > 0.75 * (region | expected).sum()


def test_an_explanation_outlines_its_region_too(loaded, photos, monkeypatch):
    drawn = []
    real = heatmap.draw
    monkeypatch.setattr(
        heatmap,
        "draw",
        lambda pixels, panels, **options: drawn.append(panels) or real(pixels, panels, **options),
    )
    x = WHOLE(lrp.open_photo(photos[0]).pixels)[None]
    explainer = lrp.Explainer(loaded.model, class_names=NAMES, preprocessing=WHOLE)
    explainer(x, lrp.Region("red")).heatmap(photos[0])
    explainer(x, "red").heatmap(photos[0])  # everywhere
    one, other = (panels[0].region for panels in drawn)
    found = loaded.model(x)[0].argmax(0) == 1
    assert (
        one.shape == (48, 72) and abs(one.mean() - float(found.double().mean())) < 0.05 and one[:, :20].all()
    )
    assert other is None


def test_what_cannot_be_asked_of_regions_is_one_sentence(loaded, photos):
    sentence = (
        "a model that decides at each pixel is asked for predicted, true, a class, or several with commas."
    )
    for target in ("red-vs-blue", "top2"):
        (result,) = explained(loaded, photos[:1], target)
        assert (result.status, result.error) == ("skipped", f"target {target!r}: {sentence}")
    (result,) = explained(loaded, photos[:1], "green")
    areas = explained(loaded, photos[:1], overwrite=True)[0].facts["top5"]
    others = ", ".join(f"{entry['name']} ({100 * entry['area']:.1f} %)" for entry in areas)
    assert result.error == f"no pixel is predicted as green, but as {others}"


def test_only_the_background(loaded, tmp_path):
    (tmp_path / "input/x").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "input/x/black.png")
    (result,) = explained(loaded, [tmp_path / "input/x/black.png"])
    assert result.facts["predicted"] == "__background__" and result.facts["area"] == 1


def test_photos_of_one_size_go_with_a_crop_too(loaded, photos):
    cropped = loaded._replace(preprocessing=replace(WHOLE, geometry=lrp.Geometry(24, (24, 24))))
    assert [r.status for r in explained(cropped, photos)] == ["ok", "ok"]


def test_a_table_of_photos_is_refused(loaded, photos, tmp_path):
    with pytest.raises(lrp.ModelError) as caught:
        lrp.evaluate(
            photos[0].parents[1],
            loaded._replace(preprocessing=WHOLE.with_size(24)),
            tmp_path / "r.csv",
            device="cpu",
            name="net",
        )
    assert str(caught.value).startswith("net returns [1, 4, 12, ")
    assert str(caught.value).endswith("; it decides at each place, and a table is of whole photos.")


def test_on_the_command_line(directory, photos, capsys):
    name = directory.write(
        """
        import lrp
        from torch import nn
        def build():
            net = nn.Conv2d(3, 2, 3, padding=1)
            nn.init.constant_(net.weight, 0.1)
            net.weight.data[0] = 0
            nn.init.constant_(net.bias, 0.0)
            net.bias.data[0] = 0.1
            return net, lrp.Preprocessing(lrp.Geometry(24, None), (0.0,) * 3, (1.0,) * 3), ("background", "bright")
        """
    )
    given = ["explain", "input", "-m", f"{name}:build", "--device", "cpu"]
    assert main(given) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ok       input/red/lying.png -> output/red/lying.png  bright ") and out[
        0
    ].endswith(" % of the pixels")
    assert out[-1] == "2 found = 2 ok + 0 kept + 0 skipped"  # no table to look through
    assert main([*given, "--json"]) == 0
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["kept", "kept"]
