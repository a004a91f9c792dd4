"""Rows of a table -> heatmaps: the two classes of a mistake, or two models on one photo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lrp.classes import class_index, classes_meant
from lrp.engine.targets import Contrast
from lrp.errors import CompositeError, ModelError, TargetError
from lrp.gallery.gallery import Gallery
from lrp.gallery.request import Request
from lrp.gallery.results import Result, result_picture_paths
from lrp.gallery.sheet import Sheet
from lrp.pictures.photos import Found
from lrp.study.comparison import Twin
from lrp.study.predictions import Prediction
from lrp.values import percent

T = TypeVar("T")

LONGEST = 36  # characters of a class name in a title: two names with their probabilities fit above a heatmap


def explain_mistakes(
    rows: Sequence[Prediction], files: Mapping[str, Path], gallery: Gallery, output: Path | str
) -> Iterator[Result]:
    """For each wrong row write a picture `output`/NN_<name>.png, NN its rank: heatmaps for the predicted class, for the
    true class (blue: evidence against it), and for the contrast of the two, all on one scale.

    Args:
        rows: of one table; those that are right or have no true class are skipped.
        files: path -> photo; rows without a photo are skipped, but keep their rank.
        gallery: the model that made the table, and how to explain and draw; its request is not used.

    Yields:
        A `Result` for each; `facts["differs"]` is set if the model now predicts another class than the table.

    Raises:
        ModelError: a row's classes are not the model's.
        CompositeError: a preset whose heatmap is the same for every class.
    """
    _expect_choice(gallery)
    names = gallery.loaded.class_names
    ranked = _ranked({row.path: row for row in rows if row.correct is False}, files)
    requests = {file: _mistake(row, names) for file, row in ranked.items()}
    made = replace(gallery, request=requests.__getitem__)
    for result, row in zip(made.run(list(ranked), Path(output)), ranked.values(), strict=True):
        if result.facts:
            _check(result.facts, row, names)
        yield result


def explain_changes(
    twins: Sequence[Twin],
    files: Mapping[str, Path],
    galleries: tuple[Gallery, Gallery],
    output: Path | str,
    *,
    names: tuple[str, str] = ("A", "B"),
    target: str = "true",
) -> Iterator[Result]:
    """For each photo write a picture `output`/NN_<name>.png with the heatmaps of both models, on one scale.

    Args:
        twins: the rows of both tables.
        files: A's path -> photo; twins without a photo are skipped, but keep their rank.
        galleries: of A's and of B's model; A's drawing options are used. Only pictures are written, always again.
        names: the names of the models in the pictures.
        target: "true": explain the true class in both models; "predicted": the class that each model predicts.

    Yields:
        A `Result` for each, with the facts of both: {"a": ..., "b": ...}; `differs` in each as in `explain_mistakes`.

    Raises:
        ModelError: a row's classes are not its model's.
        CompositeError: a preset whose heatmap is the same for every class.
        TargetError: `target` is neither of the two.
    """
    for gallery in galleries:
        _expect_choice(gallery)
    if target not in ("true", "predicted"):
        raise TargetError(f"target {target!r}: expected 'true' or 'predicted'.")
    ranked = _ranked({twin.a.path: twin for twin in twins}, files)
    found = list(ranked)
    places = result_picture_paths(found, Path(output))
    sides = []
    for side, gallery, name in zip(("a", "b"), galleries, names, strict=True):
        classes = gallery.loaded.class_names
        requests = {
            file: _change(getattr(twin, side), name, target, classes) for file, twin in ranked.items()
        }
        # Earlier pictures are never kept: each shows two models, but a fingerprint identifies only one.
        options = replace(gallery.options, overwrite=True, save=("png",))
        made = replace(gallery, request=requests.__getitem__, options=options)
        sides.append(made.explained(found, places))
    writer = replace(galleries[0], options=replace(galleries[0].options, save=("png",)))
    for twin, a, b in zip(ranked.values(), *sides, strict=True):
        if isinstance(a, Sheet) and isinstance(b, Sheet):
            for sheet, row, gallery in zip((a, b), (twin.a, twin.b), galleries, strict=True):
                _check(sheet.facts, row, gallery.loaded.class_names)
            yield writer.write(_joined(a, b, twin, names))
        else:
            yield a if isinstance(a, Result) else b


# --- requests ---------------------------------------------------------------------------------------------


def _ranked(items: Mapping[str, T], files: Mapping[str, Path]) -> dict[Found, T]:
    """The items whose photo is known, each with a `Found` whose name begins with the item's rank."""
    wide = len(str(len(items)))
    return {
        Found(files[path], PurePosixPath(f"{rank:0{wide}}_{files[path].name}")): item
        for rank, (path, item) in enumerate(items.items(), 1)
        if path in files
    }


def _mistake(row: Prediction, class_names: Sequence[str]) -> Request:
    predicted, true = (class_index_of_explained_row(row, side, class_names) for side in ("predicted", "true"))
    wrong, right = _short(row.predicted_label), _short(row.true_label)
    return Request(
        "mistake",
        (predicted, true, Contrast(predicted, true)),
        titles=(f"why {wrong}", f"why not {right} (blue speaks against it)", f"{wrong}, not {right}"),
        heading=(f"{_prediction(row, 'predicted')}, truly {_prediction(row, 'true')}", Path(row.path).name),
    )


def _change(row: Prediction, name: str, target: str, class_names: Sequence[str]) -> Request:
    return Request(
        "change",
        (class_index_of_explained_row(row, target, class_names),),
        titles=(f"{name}: why {_prediction(row, target)}",),
    )


def _joined(a: Sheet, b: Sheet, twin: Twin, names: tuple[str, str]) -> Sheet:
    """One sheet with both models' heatmaps; without arrays, since these would be of one model only."""
    predictions = (
        f"{name} says {_prediction(row, 'predicted')}"
        for name, row in zip(names, (twin.a, twin.b), strict=True)
    )
    return replace(
        a,
        fingerprint=a.fingerprint + b.fingerprint,
        facts={"a": a.facts, "b": b.facts},
        maps=[*a.maps, *b.maps],
        heading=(f"truly {_short(twin.a.true_label)}", f"{', '.join(predictions)}; {Path(twin.a.path).name}"),
        arrays=None,
    )


def _prediction(row: Prediction, side: str) -> str:
    label, sure = getattr(row, f"{side}_label"), getattr(row, f"{side}_confidence")
    return _short(label) + ("" if sure is None else f" {percent(sure)}")


def _short(label: str) -> str:
    """Truncate long labels, such as ImageNet's lists of synonyms, so that the rest of the title fits."""
    return label if len(label) <= LONGEST else label[: LONGEST - 3].rstrip(" ,") + "..."


# --- checks that the model made the table -----------------------------------------------------------------


def class_index_of_explained_row(row: Prediction, side: str, class_names: Sequence[str]) -> int:
    label: str = getattr(row, f"{side}_label")
    index: int | None = getattr(row, f"{side}_index")
    if index is None:
        try:
            return class_index(label, class_names)
        except TargetError as error:
            raise ModelError(
                f"{row.path}: {error} The table is of another model: name the one that made it."
            ) from error
    name = class_names[index] if index < len(class_names) else None
    # A table writes classes with equal names as "NAME (INDEX)".
    if name is None or (label != f"{name} ({index})" and index not in classes_meant(label, class_names)):
        instead = f"none of its {len(class_names)}" if name is None else repr(name)
        raise ModelError(
            f"{row.path}: class {index} is {label!r} in the table, and {instead} in the model: the table is of another "
            "model; name the one that made it."
        )
    return index


def _expect_choice(gallery: Gallery) -> None:
    if gallery.explainer.seed == "softmax":
        raise CompositeError(
            "expected rules that explain one class, got some that start from the softmax of all (as kaifishr does), "
            "whose heatmap is the same for every class: take another composite to see why this one, why not that."
        )


def _check(facts: dict[str, object], row: Prediction, class_names: Sequence[str]) -> None:
    """Set `differs` if the prediction changed. Not checked if only the data's classes could be predicted: then another
    class may be the most probable of all."""
    if (
        not row.restricted
        and class_index_of_explained_row(row, "predicted", class_names) != facts["predicted_index"]
    ):
        facts["differs"] = (
            f"{row.path}: the table says {row.predicted_label!r}, the model {facts['predicted']!r} now: was it "
            "evaluated at another size, or on another device?"
        )
