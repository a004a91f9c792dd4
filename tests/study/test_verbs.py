"""The study by its public functions: paths and names, or loaded models, as a user has them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lrp
from helpers.small_models import small_model, write_photos
from lrp.study.table_model import table_model_gallery

MODELS = {"a": small_model(1), "b": small_model(5)}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lrp.models.loading.load_model", lambda name, **_: MODELS[name])
    write_photos(Path("data"), 4)
    for name in MODELS:
        lrp.evaluate("data", name, f"{name}.csv")
    return lrp.read_predictions("a.csv"), lrp.read_predictions("b.csv")


def test_a_folder_and_a_name_are_as_good_as_a_data_set_and_a_model(tables):
    found = lrp.evaluate(lrp.DataSet.open("data"), MODELS["a"], "other.csv", name="a")
    assert Path("other.csv").read_bytes() == Path("a.csv").read_bytes()
    assert {row.model for row in tables[0]} == {"a"}
    assert found.accuracy.counted == 8 == found.total
    assert found.accuracy.top1.value == sum(bool(row.correct) for row in tables[0]) / 8
    small = lrp.evaluate("data", "a", Path("small.csv"), size=8)
    assert small.counts == {"ok": 8}
    assert Path("small.csv").read_bytes() != Path("a.csv").read_bytes()
    with pytest.raises(lrp.OptionError, match="device cuda:99: "):
        lrp.evaluate("data", "a", "never.csv", device="cuda:99")
    with pytest.raises(lrp.DataError, match="found nothing at: nowhere"):
        lrp.evaluate("nowhere", "a", "never.csv")


def test_accuracy_takes_names_or_models(tables):
    by_name = list(lrp.accuracy("data", ["a", "b"], "one"))
    by_model = list(lrp.accuracy("data", MODELS, "two"))
    (single,) = lrp.accuracy("data", "a", "three")
    assert [m.accuracy for m in by_name] == [m.accuracy for m in by_model]
    assert single.accuracy == by_name[0].accuracy and single.output == "three/a_results.csv"
    with pytest.raises(lrp.DataError):  # by the call, before a result is taken
        lrp.accuracy("nowhere", "a", "four")


def test_mistakes_with_heatmaps(tables):
    wrong = [row for row in tables[0] if row.correct is False]
    assert len(wrong) > 2
    done = []
    found = lrp.mistakes("a.csv", count=2, explain=True, advance=lambda *facts: done.append(facts))
    assert done == [(1, 2, "explaining")] * 2
    assert [r.status for r in found.explained] == ["ok", "ok"]
    assert all(r.output.parent == Path("a_errors/mistakes") and r.output.is_file() for r in found.explained)
    assert [facts["path"] for facts in found.to_dict()["explained"]] == [str(r.path) for r in found.explained]
    # A loaded model in place of the name, and options: other pictures.
    overlay = lrp.ExplainOptions(style="overlay", save=("png", "npz"))
    again = lrp.mistakes("a.csv", count=2, explain=True, model=MODELS["a"], options=overlay)
    assert [r.status for r in again.explained] == ["ok", "ok"]
    assert np.load(again.explained[0].output.with_suffix(".npz"))["relevance"].shape[0] == 3
    assert lrp.mistakes("a.csv", count=2).explained == ()
    with pytest.raises(lrp.ModelError) as error:
        lrp.mistakes("a.csv", explain=True, model=MODELS["b"])
    assert "was made with other weights of the model (" in str(error.value)


def test_compare_with_heatmaps(tables):
    found = lrp.compare("a.csv", "b.csv", "out", explain=True, target="predicted")
    groups = {"gained": found.comparison.gained, "lost": found.comparison.lost}
    assert sum(map(len, groups.values()))
    for name, group in groups.items():
        made = [r for r in found.explained if r.output.parent.name == name]
        assert len(made) == len(group) and all(Image.open(r.output).width for r in made)
    sizes = tuple(lrp.ExplainOptions(size=size) for size in (16, 8))
    other = lrp.compare("a.csv", "b.csv", "out", explain=True, models=("a", MODELS["b"]), options=sizes)
    assert {r.status for r in other.explained} == {"ok"}
    assert lrp.compare("a.csv", "b.csv", "out").explained == ()


def test_report_of_tables_and_options(tables):
    pytest.importorskip("jinja2")
    made = lrp.report("a.csv", compare="b.csv", explain=3, options=lrp.ExplainOptions("epsilon_plus"))
    assert made.path == Path("a_report.html") and made.explained == 3 and made.rows == 8
    assert "epsilon_plus, on 16 x 16 pixels" in made.path.read_text()
    own = lrp.report("a.csv", "own.html", explain=1, models=(MODELS["a"], None))
    assert own.path == Path("own.html") and own.explained == 1
    assert "the default for the architecture" in own.path.read_text()
    assert lrp.report("a.csv", "none.html", explain=0).explained == 0


def test_what_a_tables_pictures_are_known_by(tables):
    """The options that change a map, where they are not the defaults, and no others."""
    gallery = table_model_gallery("a.csv", tables[0])
    assert gallery.identity == {"model": "a", "weights": gallery.identity["weights"], "composite": None}
    options = lrp.ExplainOptions("epsilon", "ignore", 0.1, 0.5, precision="mixed", style="both", batch_size=2)
    assert table_model_gallery("a.csv", tables[0], options=options).identity == gallery.identity | {
        "composite": "epsilon", "bias": "ignore", "epsilon": 0.1, "top_k": 0.5, "precision": "mixed",
    }  # fmt: skip
