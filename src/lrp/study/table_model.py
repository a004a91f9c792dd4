"""A table of predictions -> a gallery for the model that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from lrp.errors import ModelError
from lrp.gallery.gallery import Gallery
from lrp.gallery.options import DEFAULT_OPTIONS, ExplainOptions
from lrp.models.loading import LoadedModel
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
        ModelError: the table does not name its model, or the model's weights have changed.
        OptionError: there is no such device.
    """
    named = model or next((row.model for row in rows if row.model), "")
    if not named:
        raise ModelError(f"{table}: its rows name no model; {option} names it.")
    gallery = Gallery.of(named, options)
    weights = gallery.identity["weights"]
    made = next((row.weights for row in rows if row.weights), "")
    if made and made != weights[: len(made)]:
        raise ModelError(
            f"{table}: was made with other weights of {resolve_model_name(named) or 'the model'} ({made}) than there are now "
            f"({weights[:16]}); evaluate again, or name the right file with {option}."
        )
    # Of the rule options, the fingerprint of a picture contains only those that differ from the defaults.
    changed = {f.name: getattr(options, f.name) for f in fields(options) if f.name in OF_RULES}
    changed = {name: value for name, value in changed.items() if value != getattr(DEFAULT_OPTIONS, name)}
    identity = {"model": resolve_model_name(named), "weights": weights, "composite": options.composite_name}
    return replace(gallery, identity=identity | changed)
