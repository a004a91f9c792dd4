"""A table of predictions -> a gallery for the model that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from lrp.errors import ModelError
from lrp.gallery.gallery import Gallery
from lrp.gallery.options import DEFAULT_OPTIONS, ExplainOptions
from lrp.models.checkpoints import is_checkpoint
from lrp.models.hugging_face.repository import PREFIX
from lrp.models.loading import LoadedModel
from lrp.models.own_code.calling import is_own_code
from lrp.models.own_code.files import hash_of_own_model
from lrp.models.resolve import resolve_model_name
from lrp.study.predictions import Prediction

OF_RULES = ("bias", "epsilon", "top_k", "precision")


def table_model_gallery(
    table: str | Path,
    rows: Sequence[Prediction],
    model: str | Path | LoadedModel | None = None,
    options: ExplainOptions = DEFAULT_OPTIONS,
    option: str = "--model",
) -> Gallery:
    """A gallery for the model that made a table.

    Args:
        table: its file, for messages.
        rows: its rows; they name the model and its weights.
        model: replaces the model that the rows name, for example if its file was moved.
        option: the command line's option for `model`, for messages.

    Raises:
        ModelError: the table does not name its model, or the model's weights (or its code, if it is the user's own) have
            changed; or the rows name code of the user's that `model` does not.
        OptionError: there is no such device.
    """
    recorded = next((row.model for row in rows if row.model), "")
    named = model or recorded
    if not named:
        raise ModelError(f"{table}: its rows name no model; {option} names it.")
    if not model and is_own_code(recorded):
        raise ModelError(
            f"{table}: its rows are of your own code {recorded}: {option} {recorded} allows it to be run."
        )
    gallery = Gallery.of(named, _fitting(options, resolve_model_name(named)))
    weights = gallery.identity["weights"]
    made = next((row.weights for row in rows if row.weights), "")
    # The hash of a model of the user's code holds more than one of the same model that is given as it is.
    also = weights if isinstance(named, str | Path) else hash_of_own_model(gallery.loaded.model)
    if made and not (weights.startswith(made) or also.startswith(made)):
        what = "weights or code" if is_own_code(recorded) else "weights"
        raise ModelError(
            f"{table}: was made with other {what} of {resolve_model_name(named) or 'the model'} ({made}) than there are now "
            f"({weights[:16]}); evaluate again, or name the right file with {option}."
        )
    # Of the rule options, the fingerprint of a picture contains only those that differ from the defaults.
    changed = {f.name: getattr(options, f.name) for f in fields(options) if f.name in OF_RULES}
    changed = {name: value for name, value in changed.items() if value != getattr(DEFAULT_OPTIONS, name)}
    identity = {"model": resolve_model_name(named), "weights": weights, "composite": options.composite_name}
    return replace(gallery, identity=identity | changed)


def _fitting(options: ExplainOptions, name: str) -> ExplainOptions:
    """The options without those that are for the model of another table: a model that has a name here takes none of them."""
    if is_checkpoint(name):
        return options
    if is_own_code(name) or name.startswith(PREFIX):
        return replace(options, arch=None)
    return replace(options, arch=None, labels=None, preprocess=None)
