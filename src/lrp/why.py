"""Rows of a table -> pictures of why: a mistake's two classes against each other, two models on one photo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lrp.classes import class_index
from lrp.comparison import Twin
from lrp.errors import ModelError, TargetError
from lrp.gallery import Gallery, Request, Result, Sheet
from lrp.images import Found
from lrp.intervals import percent
from lrp.predictions import Prediction
from lrp.targets import Contrast


def explain_mistakes(
    rows: Sequence[Prediction], files: Mapping[str, Path], gallery: Gallery, output: Path | str
) -> Iterator[Result]:
    """Of each wrong row a picture `output`/NN_<name>.png, NN its rank: why the predicted class, why not the true one
    (its heatmap: blue speaks against it), and the contrast of the two, all on one scale.

    Args:
        rows: with a true and a predicted class.
        files: the photo of each row's path; rows without one are passed over.
        gallery: the model that made the table, and how to explain and draw; its request is not used.

    Yields:
        A `Result` for each; `facts["differs"]` says so where the model predicts another class now.

    Raises:
        ModelError: a row's classes are not the model's.
    """
    names = gallery.loaded.class_names
    requests = {}
    for row in rows:
        predicted, true = _index(row, "predicted", names), _index(row, "true", names)
        requests[row.path] = Request(
            "mistake",
            (predicted, true, Contrast(predicted, true)),
            titles=(
                f"why {row.predicted_label}",
                f"why not {row.true_label} (blue speaks against it)",
                f"{row.predicted_label}, not {row.true_label}",
            ),
            heading=(f"{_said(row)}, truly {_truly(row)}", Path(row.path).name),
        )
    ranked = _Ranked(rows, files)
    made = replace(gallery, request=lambda file: requests[ranked.row[file.path].path])
    for result in made.run(ranked.found, Path(output)):
        yield _checked(result, ranked.row[result.path])


def explain_changes(
    twins: Sequence[Twin],
    files: Mapping[str, Path],
    galleries: tuple[Gallery, Gallery],
    output: Path | str,
    *,
    names: tuple[str, str] = ("A", "B"),
    target: str = "true",
) -> Iterator[Result]:
    """Of each photo a picture `output`/NN_<name>.png with the heatmaps of both models, on one scale.

    Args:
        twins: the rows of both tables.
        files: the photo of each A's path; those without one are passed over.
        galleries: of A's and of B's model.
        names: what the pictures call them.
        target: "true": what speaks for the true class in each; "predicted": for the class that each predicts.

    Yields:
        A `Result` for each, whose facts are those of both: {"a": ..., "b": ...}.

    Raises:
        ModelError: a row's classes are not its model's.
        TargetError: another target.
    """
    if target not in ("true", "predicted"):
        raise TargetError(f"target {target!r}: expected 'true' or 'predicted'.")
    ranked = _Ranked([twin.a for twin in twins], files)
    places = [Path(output, file.relative.with_suffix(".png")) for file in ranked.found]
    sides = []
    for gallery, name, rows in zip(
        galleries, names, zip(*((t.a, t.b) for t in twins), strict=True), strict=True
    ):
        requests = {}
        for row, twin in zip(rows, twins, strict=True):
            index = _index(row, target, gallery.loaded.class_names)
            label, sure = (
                (row.true_label, row.true_confidence)
                if target == "true"
                else (row.predicted_label, row.predicted_confidence)
            )
            title = f"{name}: why {label}" + ("" if sure is None else f"  {percent(sure)}")
            heading = f"{twin.a.true_label}: A says {_said(twin.a)}, B says {_said(twin.b)}"
            requests[twin.a.path] = Request(
                target, (index,), titles=(title,), heading=(heading, Path(twin.a.path).name)
            )
        asked = {file: requests[row.path] for file, row in ranked.row.items()}
        # Nothing is kept: what lies there is a picture of both.
        made = replace(gallery, request=_Lookup(asked), overwrite=True)
        sides.append(made.explained(ranked.found, places))
    pairs = {twin.a.path: twin for twin in twins}
    for file, a, b in zip(ranked.found, *sides, strict=True):
        if not isinstance(a, Sheet) or not isinstance(b, Sheet):
            yield a if isinstance(a, Result) else b
            continue
        both = replace(
            a,
            fingerprint=a.fingerprint + b.fingerprint,
            facts={"a": a.facts, "b": b.facts},
            maps=[*a.maps, *b.maps],
        )
        result = galleries[0].write(both)
        twin = pairs[ranked.row[file.path].path]
        for side, row in (("a", twin.a), ("b", twin.b)):
            _check(result.facts[side], row)
        yield result


@dataclass(frozen=True)
class _Lookup:
    requests: Mapping[Path, Request]

    def __call__(self, file: Found) -> Request:
        return self.requests[file.path]


class _Ranked:
    """The rows' files, named by rank."""

    def __init__(self, rows: Sequence[Prediction], files: Mapping[str, Path]) -> None:
        there = [(rank, row) for rank, row in enumerate(rows, 1) if row.path in files]
        wide = len(str(len(rows)))
        self.found = [
            Found(files[row.path], PurePosixPath(f"{rank:0{wide}}_{files[row.path].name}"))
            for rank, row in there
        ]
        self.row = {file.path: row for file, (_, row) in zip(self.found, there, strict=True)}


def _index(row: Prediction, side: str, class_names: Sequence[str]) -> int:
    label: str = getattr(row, f"{side}_label")
    index: int | None = getattr(row, f"{side}_index")
    if index is None:
        try:
            return class_index(label, class_names)
        except TargetError as error:
            raise ModelError(
                f"{row.path}: {error} The table is of another model: --model names it."
            ) from error
    if index >= len(class_names) or label not in (class_names[index], f"{class_names[index]} ({index})"):
        there = repr(class_names[index]) if index < len(class_names) else f"none of its {len(class_names)}"
        raise ModelError(
            f"{row.path}: class {index} is {label!r} in the table, and {there} in the model: the table is of another "
            "model; --model names it."
        )
    return index


def _said(row: Prediction) -> str:
    return f"{row.predicted_label} {percent(row.predicted_confidence or 0)}"


def _truly(row: Prediction) -> str:
    return row.true_label + ("" if row.true_confidence is None else f" {percent(row.true_confidence)}")


def _checked(result: Result, row: Prediction) -> Result:
    if result.facts:
        _check(result.facts, row)
    return result


def _check(facts: dict[str, object], row: Prediction) -> None:
    """Where only the data's classes competed, another class may well be the likeliest of all."""
    if not row.restricted and row.predicted_label not in (
        facts["predicted"], f"{facts['predicted']} ({facts['predicted_index']})",
    ):  # fmt: skip
        facts["differs"] = (
            f"{row.path}: the table says {row.predicted_label!r}, the model {facts['predicted']!r} now: was it "
            "evaluated with another --size, or on another device?"
        )
