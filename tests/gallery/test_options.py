"""ExplainOptions: one value for all that explain, which refuses what cannot be when it is made."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

import lrp
from helpers.small_models import small_model
from lrp.gallery.options import DEFAULT_OPTIONS
from lrp.models.resolve import resolve_device, resolve_model

WRONG = {
    "composite": (3, "composite=3: expected a preset's name, an lrp.Composite, or None"),
    "style": ("fancy", "style='fancy': expected 'heatmap', 'overlay' or 'both'"),
    "percentile": (0, "percentile=0: expected above 0 and up to 100"),
    "size": (0, "size=0: expected a whole number of pixels from 1 on, or None"),
    "device": (1, "device=1: expected 'auto', or a device's name"),
    "precision": ("half", "precision='half': expected 'exact' or 'mixed'"),
    "batch_size": (True, "batch_size=True: expected a whole number from 1 on"),
    "max_megapixels": (-1, "max_megapixels=-1: expected a number from 0 on"),
    "range": ((3, 1), "range=(3, 1): expected (LOW, HIGH), two finite numbers, LOW below HIGH, or None"),
    "save": ("npz", "save='npz': expected a tuple of at least one of 'png', 'npz', 'heatmap'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_cannot_be_is_refused(name):
    value, message = WRONG[name]
    with pytest.raises(lrp.OptionError) as error:
        lrp.ExplainOptions(**{name: value})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"save": ()}, "save=(): "),
        ({"save": ("png", "gif")}, "save=('png', 'gif'): "),
        ({"percentile": float("nan")}, "percentile=nan: "),
        ({"max_megapixels": "1"}, "max_megapixels='1': "),
    ],
)
def test_other_values_that_cannot_be(options, words):
    with pytest.raises(lrp.OptionError) as error:
        lrp.ExplainOptions(**options)
    assert str(error.value).startswith(words)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(lrp.OptionError) as error:
        lrp.ExplainOptions(style="fancy", size=-1)
    assert str(error.value) == (
        "style='fancy': expected 'heatmap', 'overlay' or 'both'; size=-1: expected a whole number of pixels from 1 on, or None"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"composite": "epsilon_pluss"}, "no preset 'epsilon_pluss': did you mean 'epsilon_plus'?"),
        ({"epsilon": -1.0}, "epsilon must be a finite number >= 0"),
        ({"bias": "maybe"}, "bias must be 'absorb' or 'ignore'."),
        ({"top_k": 2.0}, "top_k"),
    ],
)
def test_a_preset_that_cannot_be_is_refused_before_a_model_is_loaded(options, words):
    with pytest.raises(lrp.CompositeError) as error:
        lrp.ExplainOptions(**options)
    assert words in str(error.value)


def test_a_composite_has_rules_of_its_own():
    composite = lrp.Composite([(lrp.everything, lrp.ZPlus())], name="mine")
    with pytest.raises(lrp.OptionError) as error:
        lrp.ExplainOptions(composite, bias="ignore", epsilon=0.1, top_k=0.5)
    assert str(error.value) == (
        "bias='ignore': expected None beside a Composite, which has rules of its own; epsilon=0.1: expected None beside a "
        "Composite, which has rules of its own; top_k=0.5: expected 0.0 beside a Composite, which has rules of its own"
    )
    options = lrp.ExplainOptions(composite)
    assert options.rules(small_model().preprocessing) is composite
    assert options.composite_name == composite.describe()


def test_it_is_a_value():
    options = lrp.ExplainOptions(save=["png", "npz"])
    assert options == lrp.ExplainOptions(save=("png", "npz")) == replace(options, style="heatmap")
    assert options != DEFAULT_OPTIONS == lrp.ExplainOptions()
    with pytest.raises(FrozenInstanceError):
        options.size = 3
    text = lrp.ExplainOptions.__doc__ or ""
    assert all(field.name in text for field in fields(options))


def test_bounds_of_zbox_are_the_preprocessings():
    pre = small_model().preprocessing
    rules = lrp.ExplainOptions("epsilon_gamma_box").rules(pre)
    assert (
        rules.describe() == lrp.preset("epsilon_gamma_box", low=pre.low, high=pre.high, top_k=0.0).describe()
    )


def test_a_model_is_a_name_or_what_load_model_gives():
    loaded = small_model()
    assert resolve_model(loaded) == loaded == resolve_model(tuple(loaded))
    assert resolve_model(loaded, size=8).preprocessing == loaded.preprocessing.with_size(8)
    with pytest.raises(lrp.ModelError) as error:
        resolve_model(loaded.model)
    assert str(error.value) == (
        "model: expected a name, a file of weights, or what lrp.load_model returns, got Sequential; of a module of yours, "
        "LoadedModel(module.eval(), preprocessing, class_names) makes one."
    )


def test_a_device_that_is_not_there():
    assert resolve_device("cpu").type == "cpu" and resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(lrp.OptionError) as error:
        resolve_device("nonsense")
    assert str(error.value).startswith("device nonsense: ")
    assert str(error.value).endswith(" (auto, cpu and cuda are usual)")
