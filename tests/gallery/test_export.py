"""lrp.export: a name, a loaded model, or an explainer of any model -> one ONNX file."""

import json

import pytest
import torch

import lrp
from helpers.small_models import NAMES, SIDE, small_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def facts_of(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_loaded_model(tmp_path):
    loaded = small_model()
    options = lrp.ExplainOptions("epsilon_plus", size=12)
    made = lrp.export(loaded, tmp_path / "a.onnx", target="dog-vs-owl", options=options)
    assert made.path == tmp_path / "a.onnx" and made.size == (12, 12) and made.classes == 3
    facts = facts_of(made.path)
    assert facts["target"] == "dog-vs-owl" and json.loads(facts["classes"]) == list(NAMES)
    assert json.loads(facts["preprocessing"])["crop"] == [12, 12] and facts["composite"] == made.composite
    assert made.composite.startswith("epsilon_plus")


def test_an_explainer_of_ones_own(tmp_path):
    explainer = lrp.Explainer(small_model().model, "epsilon", class_names=NAMES)
    x = torch.zeros(1, 3, SIDE, SIDE)
    made = lrp.export(explainer, str(tmp_path / "a.onnx"), x=x, target_input=True)
    facts = facts_of(made.path)
    assert facts["target"] == "input" and "preprocessing" not in facts


def test_what_cannot_be_is_refused(tmp_path):
    loaded, path = small_model(), tmp_path / "a.onnx"
    explainer = lrp.Explainer(loaded.model)
    x = torch.zeros(1, 3, SIDE, SIDE)
    own = "export of an Explainer: expected images x of the shape to export for, and no options: it has its own."
    for options, kind, message in (
        ({"model": explainer}, lrp.InputError, own),
        ({"model": explainer, "x": x, "options": lrp.ExplainOptions()}, lrp.InputError, own),
        ({"model": loaded, "x": x}, lrp.InputError, "x: expected None beside a name or a loaded model, whose input is known; "
         "options.size changes it."),
        ({"model": loaded, "target": "top2"}, lrp.TargetError, "top2: one target for every image: predicted, a class, or A-vs-B."),
        ({"model": loaded, "target": "true"}, lrp.TargetError, "true: one target for every image: predicted, a class, or A-vs-B."),
        ({"model": loaded, "target": "dog", "target_input": True}, lrp.TargetError,
         "'dog' settles the class, target_input leaves it open: give one of them."),
    ):  # fmt: skip
        with pytest.raises(kind) as error:
            lrp.export(path=path, **options)
        assert str(error.value) == message
    assert not path.exists()
