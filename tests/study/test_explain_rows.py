"""Pictures of mistakes and of changes: the right maps, on one scale, of the right classes, whatever the photo's state."""

import hashlib
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
from lrp.errors import CompositeError, ModelError, TargetError
from lrp.gallery.gallery import Gallery
from lrp.gallery.options import ExplainOptions
from lrp.gallery.request import Request
from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.pictures import heatmap
from lrp.pictures.geometry import Geometry
from lrp.pictures.photos import Found, find_photos
from lrp.study.comparison import compare_predictions
from lrp.study.evaluate import evaluate
from lrp.study.explain_rows import explain_changes, explain_mistakes
from lrp.study.predictions import read_predictions, write_predictions
from lrp.values import percent

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
    request = Request("predicted", ("predicted",))
    return Gallery(model, explainer, request, {"model": "m"}, ExplainOptions(**options))


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
    twins = compare_predictions(a, b).twins
    drawn, limits = [], []
    monkeypatch.setattr(
        heatmap, "draw", lambda *x, draw=heatmap.draw, **k: drawn.append((x, k)) or draw(*x, **k)
    )
    monkeypatch.setattr(
        heatmap,
        "heatmap_colours",
        lambda r, limit, colour=heatmap.heatmap_colours: limits.append(limit) or colour(r, limit),
    )
    files = {t.a.path: Path(t.a.path) for t in twins}
    sides = gallery(before, save=("png", "npz")), gallery(after)
    names = ("A old", "B new")
    for target in ("true", "predicted"):
        drawn.clear()
        limits.clear()
        results = list(explain_changes(twins, files, sides, f"out/{target}", names=names, target=target))
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
            assert [p.title for p in panels] == [
                f"{name}: why {said} {percent(getattr(row, f'{target}_confidence'))}"
                for name, said, row in zip(names, label, (twin.a, twin.b), strict=True)
            ]
            assert all("reached the pixels" in p.subtitle for p in panels)
            assert words["title"] == f"truly {twin.a.true_label}"
            assert words["subtitle"] == (
                f"A old says {twin.a.predicted_label} {percent(twin.a.predicted_confidence)}, "
                f"B new says {twin.b.predicted_label} {percent(twin.b.predicted_confidence)}; {result.path.name}"
            )
            both = heatmap.heatmap_scale([p.relevance for p in panels])
            # Two heatmaps and the bar of the legend.
            assert [limits.pop(0) for _ in range(3)] == [both] * 3 and both != heatmap.heatmap_scale(
                [panels[0].relevance]
            )
            assert words["limit"] is None and [p.limit for p in panels] == [None, None]
            assert set(result.facts) == {"a", "b", "scale"} and result.facts["b"]["target"] == label[1]
    assert not list(Path("out").rglob("*.npz"))  # of one model's, they would not be the picture's
    assert list(explain_changes([], {}, sides, "out")) == []
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
    twins = compare_predictions(wrong, wrong).twins
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
        f"{said.path}: the table says 'great white shark, white shark', the model 'dog' now: was it evaluated at "
        "another size, or on another device?"
    )
    (result,) = explain_mistakes([replace(said, restricted=True)], files, gallery(model), "out2")
    assert "differs" not in result.facts
    end = "the table is of another model; name the one that made it."
    for row, message in (
        (
            replace(said, predicted_index=7),
            f"class 7 is 'great white shark, white shark' in the table, and none of its 3 in the model: {end}",
        ),
        (replace(said, true_index=1), f"class 1 is 'cat' in the table, and 'dog' in the model: {end}"),
        (
            replace(said, true_index=None, true_label="owl"),
            "no class 'owl': no class has a similar name. A name or an index from 0 to 2 is expected. The table is of "
            "another model: name the one that made it.",
        ),
    ):
        with pytest.raises(ModelError) as caught:
            list(explain_mistakes([row], files, gallery(model), "out3"))
        assert str(caught.value) == f"{row.path}: {message}"
    # A table of six columns has labels alone, written as its maker writes them.
    bare = replace(wrong[0], predicted_index=None, true_index=None, predicted_label="Dog")
    (result,) = explain_mistakes([bare], files, gallery(model), "out4")
    assert result.status == "ok" and "differs" not in result.facts
    assert [p["target"] for p in result.facts["panels"]] == ["dog", "cat", "dog"]
    (twin,) = compare_predictions([said], [replace(wrong[0], restricted=True)]).twins
    (result,) = explain_changes([twin], files, (gallery(model), gallery(model)), "both")
    assert "differs" in result.facts["a"] and "differs" not in result.facts["b"]


def test_classes_of_one_name_are_told_apart_by_their_index(data):
    model = loaded(1, names=("cat", "dog", "dog"))
    rows = table(data, model, "r.csv")
    row = next(r for r in rows if r.true_label == "cat" and r.predicted_index != 0)
    assert row.predicted_label == f"dog ({row.predicted_index})" and not row.correct
    (result,) = explain_mistakes([row], {row.path: Path(row.path)}, gallery(model), "out")
    assert result.status == "ok" and "differs" not in result.facts
    assert result.facts["panels"][0]["target_index"] == row.predicted_index


def test_only_mistakes_and_no_photo_written_over(data):
    model = loaded(1)
    rows = table(data, model, "r.csv")
    wrong = [r for r in rows if r.correct is False]
    assert 0 < len(wrong) < len(rows)
    files = {r.path: Path(r.path) for r in rows}
    results = list(explain_mistakes(rows, files, gallery(model), "out"))
    assert [str(r.path) for r in results] == [r.path for r in wrong]
    # In the photos' own folder, where one has the name of a picture.
    Path("1_0.png").write_bytes(Path(rows[0].path).read_bytes())
    Path("0.png").write_bytes(Path(rows[1].path).read_bytes())
    twins = compare_predictions(rows, rows).twins[:2]
    here = {twins[0].a.path: Path("0.png"), twins[1].a.path: Path("1_0.png")}
    results = list(explain_changes(twins, here, (gallery(model), gallery(model)), "."))
    assert [str(r.output) for r in results] == ["1_0.png.png", "2_1_0.png"]
    assert Path("1_0.png").read_bytes() == Path(rows[0].path).read_bytes()


def test_long_names_leave_room_for_the_rest_of_a_title(data, monkeypatch):
    long = "goldfish, Carassius auratus, an ornamental fish of ponds and bowls"
    model = loaded(1, names=("cat", long, "shark"))
    row = replace(
        table(data, model, "r.csv")[0],
        predicted_label=long,
        predicted_index=1,
        predicted_confidence=0.75,
        true_confidence=0.25,
        correct=False,
    )
    drawn = []
    monkeypatch.setattr(
        heatmap, "draw", lambda *a, draw=heatmap.draw, **k: drawn.append((a, k)) or draw(*a, **k)
    )
    (result,) = explain_mistakes([row], {row.path: Path(row.path)}, gallery(model), "out")
    ((_, panels), words) = drawn[0]
    short = "goldfish, Carassius auratus, an o..."
    assert words["title"] == f"{short} 75.0 %, truly cat 25.0 %" and words["subtitle"] == "0.png"
    assert [p.title for p in panels] == [
        f"why {short}", "why not cat (blue speaks against it)", f"{short}, not cat"
    ]  # fmt: skip
    assert result.facts["panels"][0]["target"] == long  # whole in the facts


def test_rules_that_explain_no_single_class_are_refused(data):
    model = loaded(1)
    every = replace(gallery(model), explainer=lrp.Explainer(model.model, "kaifishr"))
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(every.explainer(x, 0).relevance, every.explainer(x, 1).relevance)
    for made in (
        explain_mistakes([], {}, every, "out"),
        explain_changes([], {}, (gallery(model), every), "out"),
    ):
        with pytest.raises(CompositeError) as caught:
            list(made)
        assert str(caught.value) == (
            "expected rules that explain one class, got some that start from the softmax of all (as kaifishr does), "
            "whose heatmap is the same for every class: take another composite to see why this one, why not that."
        )


@pytest.mark.parametrize("preset", ["epsilon", "epsilon_plus_flat", "epsilon_gamma_wsquare"])
def test_a_contrast_is_the_difference_to_the_last_digits(data, preset):
    """In float64, where no rounding hides a map that is only nearly right; through the gallery's own batch."""
    model = loaded(3)
    explainer = lrp.Explainer(model.model, preset, dtype=torch.float64)
    x = torch.stack([model.preprocessing(lrp.open_photo(f.path).pixels) for f in find_photos([Path("data")])])
    for a, b in ((0, 1), (2, 0)):
        one, other, contrast = (
            e.relevance for e in explainer.many(x, [[a] * 8, [b] * 8, [lrp.Contrast(a, b)] * 8])
        )
        assert float((contrast - (one - other)).abs().max()) < 1e-12 * float(one.abs().max())
        assert float(contrast.abs().max()) > 1e-3 * float(one.abs().max())


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
    made = replace(gallery(model, save=("png", "npz")), request=request)
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


def test_what_is_asked_for_makes_a_picture_another(data):
    """All of a request counts, not only its text; and what the command line writes counts as ever."""
    model = loaded(1)
    found = find_photos([Path("data/cat/0.png")])

    def status(request: Request) -> str:
        (result,) = replace(gallery(model), request=request).run(found, Path("out"))
        return result.status

    asked = [
        Request("x", (0,)),
        Request("x", (1,)),
        Request("x", (1, 0)),
        Request("x", (1, 0), titles=("one", "two")),
        Request("x", (1, 0), titles=("one", "three")),
        Request("x", (1, 0), heading=("a", "b")),
        Request("x", (1, 0), heading=("a", "c")),
        Request("cat", (1,)),  # not what its text says
        Request.parse("cat", NAMES),
    ]
    for request in asked:
        assert [status(request), status(request)] == ["ok", "kept"]
    (photo,) = (lrp.open_photo(f.path) for f in found)
    facts = {
        "model": "m", "lrp": lrp.__version__, "photo": photo.digest, "target": "cat", "true": None,
        "preprocessing": model.preprocessing.to_dict(), "all": "",
        "drawing": {"style": "heatmap", "percentile": 99.5, "shared_scale": False},
    }  # fmt: skip
    expected = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    assert heatmap.read_heatmap_metadata("out/0.png")["fingerprint"] == expected


def test_requests_that_contradict_themselves(data):
    for options, message in (
        ({}, "request 'x': expected parts or a count, got 0 parts and count=0."),
        ({"parts": (1,), "count": 2}, "request 'x': expected parts or a count, got 1 parts and count=2."),
        (
            {"parts": (1, 2), "titles": ("one",)},
            "request 'x': 1 titles for 2 heatmaps: give one for each, or none.",
        ),
    ):
        with pytest.raises(TargetError) as caught:
            Request("x", **options)
        assert str(caught.value) == message
    model = loaded(1)
    found = find_photos([Path("data/cat")])[:2]
    wanted = {"0.png": Request("a", (0, 1)), "1.png": Request("b", (1,))}
    made = replace(gallery(model), request=lambda file: wanted[file.path.name])
    with pytest.raises(TargetError) as caught:
        list(made.run(found, Path("out")))
    assert str(caught.value) == (
        "the photos of one batch ask for 1 and 2 heatmaps: give each as many, or take batch_size=1."
    )
    assert [
        r.status for r in replace(made, options=ExplainOptions(batch_size=1)).run(found, Path("out"))
    ] == ["ok", "ok"]
    # As many for each will do, however they are asked for.
    wanted["1.png"] = Request("top2", count=2)
    chosen, ranked = (
        r.facts for r in replace(made, options=ExplainOptions(overwrite=True)).run(found, Path("out"))
    )
    assert [p["target_index"] for p in chosen["panels"]] == [0, 1]
    assert [p["target_index"] for p in ranked["panels"]] == [c["index"] for c in ranked["top5"][:2]]


# --- the commands -----------------------------------------------------------------------------------------


@pytest.fixture
def models(data, monkeypatch):
    from lrp.models import loading as models

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
    twins = compare_predictions(read_predictions("a.csv"), read_predictions("b.csv"))
    for name, group in (("gained", twins.gained), ("lost", twins.lost)):
        assert len(list(Path("a_vs_b", name).glob("*.png"))) == len(group)
        assert not group or f"-> a_vs_b/{name}: {len(group)} pictures" in out
    assert twins.gained or twins.lost
    assert main(["compare", "a.csv", "b.csv", "--explain", "--model-b", "a"]) == 1
    assert "name the right file with --model-b." in capsys.readouterr().err
