"""Photos and their predictions -> relevance maps: for each model, one map for each of two classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lrp.classes import class_index
from lrp.errors import CompositeError, ImageError, TargetError
from lrp.html_report import encode, select
from lrp.pictures.photos import open_photo
from lrp.study.explain_rows import class_index_of_explained_row
from lrp.study.predictions import Prediction

if TYPE_CHECKING:
    from lrp.gallery.gallery import Gallery
    from lrp.pictures.photos import Photo


class Explainable(NamedTuple):
    """A row of the report to explain: its number, its photo, and its prediction in each table."""

    row: int
    file: Path
    predictions: tuple[Prediction | None, ...]


def explain_maps(
    asked: Sequence[Explainable], galleries: Sequence[Gallery], position: Mapping[str, int], notes: list[str]
) -> Iterator[encode.Explained]:
    """The maps of each photo. A note is added for unreadable photos and for predictions that differ from the table.

    Explains one photo at a time, so that its account and health do not depend on other photos.

    Raises:
        ModelError: a row's classes are not its model's.
        CompositeError: the maps are the same for every class.
    """
    for gallery in galleries:
        if gallery.explainer.seed == "softmax":
            raise CompositeError(
                "expected rules that explain one class, got some that start from the softmax of all (as kaifishr does): "
                "take another --composite, or --explain 0."
            )
    unread, differing = 0, 0
    for one in asked:
        changed: list[str] = []
        try:
            photo = open_photo(one.file, range=galleries[0].loaded.preprocessing.range)
            made = _explained(one, photo, galleries, position, changed)
        except ImageError:
            unread += 1
            continue
        differing += bool(changed)
        yield made
    if unread:
        notes.append(f"{unread:,} photos that were to be explained could not be read.")
    if differing:
        notes.append(
            f"{differing:,} of {len(asked):,} explained photos are predicted otherwise now than in the table: evaluated at "
            "another size, or on another device?"
        )


def _explained(
    one: Explainable,
    photo: Photo,
    galleries: Sequence[Gallery],
    position: Mapping[str, int],
    changed: list[str],
) -> encode.Explained:
    shown = encode.shrink_to_encode(photo.pixels, encode.PHOTO)
    entry: dict[str, Any] = {
        "row": one.row,
        "photo": encode.data_uri(shown),
        "width": shown.width,
        "height": shown.height,
        "maps": [],
    }
    made = encode.Explained(entry)
    labels = select.select_classes_for_maps(one.predictions)
    for number, (gallery, row) in enumerate(zip(galleries, one.predictions, strict=True)):
        if row is not None:
            for facts, relevance in _maps(photo, gallery, row, labels, position, changed):
                entry["maps"].append({"model": number} | facts)
                made.maps.append(relevance)
    return made


def _maps(
    photo: Photo,
    gallery: Gallery,
    row: Prediction,
    labels: Sequence[str],
    position: Mapping[str, int],
    changed: list[str],
) -> Iterator[tuple[dict[str, Any], Any]]:
    preprocessing, explainer = gallery.loaded.preprocessing, gallery.explainer
    names = gallery.loaded.class_names
    classes = {label: index for label in labels if (index := _index(row, label, names)) is not None}
    if not classes:
        return
    x = preprocessing(photo.pixels).unsqueeze(0).to(gallery.device)
    made = explainer.many(x, list(classes.values()))
    height, width = photo.pixels.shape[:2]
    left, top, right, bottom = preprocessing.geometry.box(height, width)
    probabilities = made.logits[0].detach().double().softmax(0).cpu()
    if (
        row.predicted_label
        and not row.restricted
        and int(probabilities.argmax()) != _index(row, row.predicted_label, names)
    ):
        changed.append(row.path)
    for label, e in zip(classes, made, strict=True):
        index, health = classes[label], e.health
        totals = {name: float(values[0]) for name, values in e.ledger.totals.items()}
        relevance = e.relevance[0].detach().double().sum(0).cpu().numpy()
        yield (
            {
                "class": position[label],
                "probability": float(probabilities[index]),
                "logit": float(made.logits[0, index]),
                "start": totals["start"],
                "shares": {name: float(values[0]) for name, values in health.shares.items()},
                "health": {
                    "ok": health.ok,
                    "problems": health.problems,
                    "notes": [note.removeprefix("image 0: ") for note in health.notes],
                },
                "seed": explainer.seed,
                "box": [left / width, top / height, right / width, bottom / height],
            },
            relevance,
        )


def _index(row: Prediction, label: str, names: Sequence[str]) -> int | None:
    """The model's index for a class; None if it has no such class, for example after retraining on others."""
    for side in ("predicted", "true"):
        if label == getattr(row, f"{side}_label"):
            return class_index_of_explained_row(row, side, names)
    try:
        return class_index(label, names)
    except TargetError:
        return None
