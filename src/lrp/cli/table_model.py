"""What `--explain` of `lrp errors` and `lrp compare` share: the table's own model, ready to explain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lrp.cli import common
from lrp.errors import ModelError

if TYPE_CHECKING:
    from lrp.gallery.gallery import Gallery, Result
    from lrp.study.predictions import Prediction

EXPLAIN = typer.Option("--explain", help="Also draw the heatmaps.")
MODEL = typer.Option(
    "--model", "-m", help="With --explain: the table's model, if it is not where its rows say."
)


def gallery(
    table: Path,
    rows: Sequence[Prediction],
    model: str | None,
    composite: str | None,
    size: int | None,
    device: str,
    option: str = "--model",
) -> Gallery:
    """What explains the model that made a table.

    Raises:
        ModelError: the table does not name its model, or the model's weights are others now.
    """
    from lrp.engine.explainer import Explainer
    from lrp.gallery.gallery import Gallery
    from lrp.gallery.request import Request
    from lrp.models.weights import fingerprint

    named = model or next((row.model for row in rows if row.model), "")
    if not named:
        raise ModelError(f"{table}: its rows name no model; {option} names it.")
    chosen = common.device(device)
    loaded = common.load(named, size)
    weights = fingerprint(loaded.model)
    made = next((row.weights for row in rows if row.weights), "")
    if made and made != weights[: len(made)]:
        raise ModelError(
            f"{table}: was made with other weights of {named} ({made}) than there are now ({weights[:16]}); "
            f"evaluate again, or name the right file with {option}."
        )
    loaded.model.to(chosen)
    rules = common.composite(composite, loaded.preprocessing, None, None, 0.0)
    return Gallery(
        loaded,
        Explainer(loaded.model, rules, class_names=loaded.class_names),
        Request("predicted", ("predicted",)),
        identity={"model": named, "weights": weights, "composite": composite},
        device=chosen,
    )


def told(results: Iterable[Result], total: int, what: str, quiet: bool) -> Iterator[Result]:
    """The results as they come, with a bar; what was skipped or is not as the table says is said."""
    with common.progress(what, quiet) as advance:
        for result in results:
            advance(1, total)
            if result.status == "skipped":
                common.complain(f"skipped {result.path}: {result.error}")
            for facts in (result.facts, result.facts.get("a") or {}, result.facts.get("b") or {}):
                if "differs" in facts:
                    common.complain(facts["differs"])
                if facts.get("health") and not facts["health"]["ok"]:
                    common.complain(f"{result.path}: NOT TRUSTWORTHY: {facts['health']['problems'][0]}")
            yield result
