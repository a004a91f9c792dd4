"""Pictures of mistakes and of changes: the right maps, on one scale, of the right classes, whatever the photo's state."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lrp
from lrp import heatmap
from lrp.cli import main
from lrp.comparison import compare
from lrp.errors import ModelError, TargetError
from lrp.evaluate import evaluate
from lrp.gallery import Gallery, Request
from lrp.images import Found, Geometry, find_photos
from lrp.models import LoadedModel, Preprocessing
from lrp.predictions import read_predictions, write_predictions
from lrp.why import explain_changes, explain_mistakes

NAMES = ("cat", "dog", "great white shark, white shark")


def loaded(seed: int, side: int = 16, names=NAMES) -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, len(names))
        )
    return LoadedModel(
        model.eval(), Preprocessing(Geometry(side + 4, (side, side)), (0.5,) * 3, (0.25,) * 3), names
    )


def gallery(model: LoadedModel, **options) -> Gallery:
    explainer = lrp.Explainer(model.model, "epsilon_gamma_wsquare", class_names=model.class_names)
    return Gallery(model, explainer, Request("predicted", ("predicted",)), {"model": "m"}, **options)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for folder in ("cat", "dog"):
        Path("data", folder).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"data/{folder}/{i}.png")
    return lrp.DataSet.open("data")


def table(data, model: LoadedModel, name: str, **options):
    evaluate(data, model, name, name="m", **options)
    return read_predictions(name)


def maps_of(model: LoadedModel, file: Path, targets) -> list[np.ndarray]:
    """By the library alone, one call each."""
    x = model.preprocessing(lrp.open_photo(file).pixels)[None]
    explainer = lrp.Explainer(model.model, "epsilon_gamma_wsquare", class_names=model.class_names)
    return [explainer(x, target).relevance[0].sum(0).numpy() for target in targets]


def test_a_mistake_has_three_maps_on_one_scale(data, monkeypatch):
    model = loaded(1)
    wrong = [r for r in table(data, model, "r.csv") if not r.correct]
    assert len(wrong) >= 3
    drawn = []
    monkeypatch.setattr(
        heatmap, "draw", lambda *a, draw=heatmap.draw, **k: drawn.append((a, k)) or draw(*a, **k)
    )
    files = {r.path: Path(r.path) for r in wrong}
    results = list(explain_mistakes(wrong, files, gallery(model), "out"))
    assert [str(r.output) for r in results] == [
        f"out/{rank}_{Path(r.path).stem}.png" for rank, r in enumerate(wrong, 1)
    ]
    for row, result, ((_, panels), words) in zip(wrong, results, drawn, strict=True):
        assert result.status == "ok" and "differs" not in result.facts
        predicted, true = NAMES.index(row.predicted_label), NAMES.index(row.true_label)
        expected = maps_of(model, Path(row.path), [predicted, true, lrp.Contrast(predicted, true)])
        for panel, values in zip(panels, expected, strict=True):
            on_photo = model.preprocessing.geometry.to_photo(values, 24, 32)
            np.testing.assert_allclose(panel.relevance, on_photo, atol=1e-5 * np.nanmax(abs(on_photo)))
        np.testing.assert_allclose(expected[2], expected[0] - expected[1], atol=1e-5 * abs(expected[0]).max())
        np.testing.assert_allclose(
            panels[2].relevance,
            panels[0].relevance - panels[1].relevance,
            atol=1e-5 * np.nanmax(abs(panels[0].relevance)),
        )
        assert [p.title for p in panels] == [
            f"why {row.predicted_label}", f"why not {row.true_label} (blue speaks against it)",
            f"{row.predicted_label}, not {row.true_label}",
        ]  # fmt: skip
        assert (
            words["title"].startswith(f"{row.predicted_label} ")
            and f", truly {row.true_label} " in words["title"]
        )
        assert words["limit"] is None and all(p.limit is None for p in panels)  # one scale for the three
        assert [p["target"] for p in result.facts["panels"]] == [
            row.predicted_label,
            row.true_label,
            row.predicted_label,
        ]
    # Again: nothing is made twice; another confidence in the heading is another picture.
    assert {r.status for r in explain_mistakes(wrong, files, gallery(model), "out")} == {"kept"}
    other = [replace(wrong[0], predicted_confidence=0.123), *wrong[1:]]
    assert [r.status for r in explain_mistakes(other, files, gallery(model), "out")][:2] == ["ok", "kept"]


def test_both_models_on_one_scale(data, monkeypatch):
    before, after = loaded(1), loaded(5, side=24, names=NAMES[::-1])
    a, b = table(data, before, "a.csv"), table(data, after, "b.csv")
    twins = compare(a, b).twins
    drawn = []
    monkeypatch.setattr(
        heatmap, "draw", lambda *x, draw=heatmap.draw, **k: drawn.append((x, k)) or draw(*x, **k)
    )
    files = {t.a.path: Path(t.a.path) for t in twins}
    sides = gallery(before), gallery(after)
    for target in ("true", "predicted"):
        drawn.clear()
        results = list(explain_changes(twins, files, sides, f"out/{target}", target=target))
        assert [r.status for r in results] == ["ok"] * 8
        for twin, result, ((_, panels), words) in zip(twins, results, drawn, strict=True):
            label = [getattr(row, f"{target}_label") for row in (twin.a, twin.b)]
            expected = [
                maps_of(model, Path(twin.a.path), [name])[0]
                for model, name in zip((before, after), label, strict=True)
            ]
            for panel, values, model in zip(panels, expected, (before, after), strict=True):
                on_photo = model.preprocessing.geometry.to_photo(values, 24, 32)
                np.testing.assert_allclose(panel.relevance, on_photo, atol=1e-5 * np.nanmax(abs(on_photo)))
            assert panels[0].title.startswith(f"A: why {label[0]}  ") and panels[1].title.startswith(
                f"B: why {label[1]}"
            )
            assert words["limit"] is None and [p.limit for p in panels] == [None, None]
            assert set(result.facts) == {"a", "b", "scale"} and result.facts["b"]["target"] == label[1]
    with pytest.raises(TargetError, match="target 'other': expected 'true' or 'predicted'"):
        list(explain_changes(twins, files, sides, "out", target="other"))


def test_a_photo_that_is_gone_or_broken_stops_no_other(data):
    model = loaded(1)
    rows = table(data, model, "r.csv")
    Path("data/cat/1.png").write_bytes(b"broken")
    wrong = [replace(r, predicted_label="dog", predicted_index=1, correct=False) for r in rows[:4]]
    files = {r.path: Path(r.path) for r in wrong if "2.png" not in r.path}
    results = list(explain_mistakes(wrong, files, gallery(model), "out"))
    assert [(r.path.name, r.status) for r in results] == [
        ("0.png", "ok"),
        ("1.png", "skipped"),
        ("3.png", "ok"),
    ]
    assert sorted(p.name for p in Path("out").iterdir()) == ["1_0.png", "4_3.png"]
    twins = compare(wrong, wrong).twins
    results = list(explain_changes(twins, files, (gallery(model), gallery(model)), "both"))
    assert [r.status for r in results] == ["ok", "skipped", "ok"]


def test_the_model_is_the_tables(data):
    """What it predicts now is compared; classes it has not, and others under that number, are refused."""
    model = loaded(1)
    rows = table(data, model, "r.csv")
    wrong = [replace(r, correct=False) for r in rows if r.predicted_label == "dog" and r.true_label == "cat"][
        :1
    ]
    files = {r.path: Path(r.path) for r in wrong}
    said = replace(wrong[0], predicted_label=NAMES[2], predicted_index=2)
    (result,) = explain_mistakes([said], files, gallery(model), "out")
    assert result.facts["differs"] == (
        f"{said.path}: the table says 'great white shark, white shark', the model 'dog' now: was it evaluated with "
        "another --size, or on another device?"
    )
    (result,) = explain_mistakes([replace(said, restricted=True)], files, gallery(model), "out2")
    assert "differs" not in result.facts
    for row, message in (
        (
            replace(said, predicted_index=7),
            "class 7 is 'great white shark, white shark' in the table, and none of its 3 in",
        ),
        (
            replace(said, true_index=1),
            "class 1 is 'cat' in the table, and 'dog' in the model: the table is of another",
        ),
        (replace(said, true_index=None, true_label="owl"), "no class 'owl': "),
    ):
        with pytest.raises(ModelError, match=message):
            list(explain_mistakes([row], files, gallery(model), "out3"))
    bare = replace(said, predicted_index=None, true_index=None)
    assert [r.status for r in explain_mistakes([bare], files, gallery(model), "out4")] == ["ok"]


# --- the targets of a request -----------------------------------------------------------------------------


def test_several_targets_in_one_picture(data):
    request = Request.parse("predicted,true,predicted-vs-true", NAMES)
    assert request.parts == ("predicted", "true", lrp.Contrast("predicted", "true")) and request.needs_folder
    assert request.entries(1) == ["predicted", 1, lrp.Contrast("predicted", 1)]
    assert Request.parse("cat, 1", NAMES).parts == (0, 1)
    assert Request.parse("great white shark, white shark", NAMES).parts == (2,)  # a name, not a list
    assert not Request.parse("cat-vs-dog", NAMES).needs_folder
    assert Request.parse("top2", NAMES).count == 2
    for text, message in (
        ("cat,top2", "target 'cat,top2': top2 stands alone, not in a list."),
        ("cat,dgo", "no class 'dgo': did you mean 'dog' (1)? A name or an index from 0 to 2 is expected."),
        ("top9", "target 'top9': the model has 3 classes, top1 to top3."),
    ):
        with pytest.raises(TargetError) as caught:
            Request.parse(text, NAMES)
        assert str(caught.value) == message
    model = loaded(1)
    made = replace(gallery(model, save_npz=True), request=request)
    (result, *_) = made.run(find_photos([Path("data")]), Path("out"))
    panels = result.facts["panels"]
    assert len(panels) == 3 and panels[1]["target"] == "cat"
    relevance = np.load(result.output.with_suffix(".npz"))["relevance"]
    predicted = NAMES.index(result.facts["predicted"])
    expected = maps_of(model, result.path, [predicted, 0, lrp.Contrast(predicted, 0)])
    for got, values in zip(relevance.sum(1), expected, strict=True):
        np.testing.assert_allclose(got, values, atol=1e-5 * abs(values).max())


def test_each_photo_its_own_request(data):
    model = loaded(1)
    wanted = {
        "0.png": Request("a", (0,)),
        "1.png": Request("b", (1,)),
        "2.png": Request("c", (2,)),
        "3.png": Request("d", ("predicted",)),
    }
    found = [Found(f.path, f.relative) for f in find_photos([Path("data/cat")])]
    made = replace(gallery(model), request=lambda file: wanted[file.path.name])
    facts = [r.facts for r in made.run(found, Path("out"))]
    assert [f["target_index"] for f in facts[:3]] == [0, 1, 2]
    assert facts[3]["target_index"] == facts[3]["predicted_index"]


# --- the commands -----------------------------------------------------------------------------------------


@pytest.fixture
def models(data, monkeypatch):
    from lrp import models

    known = {"m": loaded(1), "a": loaded(1), "b": loaded(5, side=24)}
    monkeypatch.setattr(models, "load_model", lambda name, **_: known[name])
    for name in ("a", "b"):
        evaluate(data, known[name], f"{name}.csv", name=name)
    return known


def test_errors_explained(models, capsys):
    wrong = sum(not r.correct for r in read_predictions("a.csv"))
    assert main(["errors", "a.csv", "--explain", "--composite", "epsilon"]) == 0
    assert f"-> a_errors/mistakes: {wrong} pictures\n" in capsys.readouterr().out
    assert len(list(Path("a_errors/mistakes").glob("*.png"))) == wrong
    assert main(["errors", "a.csv", "--explain", "--json", "-n", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [f["status"] for f in facts["explained"]] == ["ok", "ok"]
    # Another file of weights under the same name since.
    with torch.no_grad():
        models["a"].model[0].bias.add_(1)
    assert main(["errors", "a.csv", "--explain"]) == 1
    assert "a.csv: was made with other weights of a (" in capsys.readouterr().err
    assert main(["errors", "a.csv", "--explain", "--model", "m"]) == 0
    write_predictions("bare.csv", [replace(r, model="", weights="") for r in read_predictions("a.csv")])
    assert main(["errors", "bare.csv", "--explain"]) == 1
    assert "bare.csv: its rows name no model; --model names it." in capsys.readouterr().err


def test_compare_explained(models, capsys):
    assert main(["compare", "a.csv", "b.csv", "--explain", "--target", "predicted"]) == 0
    out = capsys.readouterr().out
    twins = compare(read_predictions("a.csv"), read_predictions("b.csv"))
    for name, group in (("gained", twins.gained), ("lost", twins.lost)):
        assert len(list(Path("a_vs_b", name).glob("*.png"))) == len(group)
        assert not group or f"-> a_vs_b/{name}: {len(group)} pictures" in out
    assert twins.gained or twins.lost
    assert main(["compare", "a.csv", "b.csv", "--explain", "--model-b", "a"]) == 1
    assert "name the right file with --model-b." in capsys.readouterr().err
