"""Tables of predictions -> the report's data as plain JSON values: counts, shares and rows, no pictures.

Classes are given as indices into `classes`; missing values are -1, None or "".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lrp.study.analysis import analyse_accuracy, analyse_calibration, analyse_confusion
from lrp.study.comparison import Comparison
from lrp.study.predictions import Prediction, counted_predictions, prediction_labels
from lrp.values import plain

BARS = 20  # number of bars in the histogram of confidences


class Table:
    """One table of predictions; `rows`: the report's path of a photo -> its row."""

    def __init__(self, name: str, file: str, rows: Mapping[str, Prediction]) -> None:
        self.name, self.file, self.rows = name, file, rows


def summary_labels(tables: Sequence[Table]) -> list[str]:
    """All class labels that occur; those of true and predicted classes first."""
    rows = [row for table in tables for row in table.rows.values()]
    found = dict.fromkeys(prediction_labels(counted_predictions(rows)))
    for row in rows:
        found.update(dict.fromkeys((row.true_label, row.predicted_label, *row.top5)))
    found.pop("", None)
    return list(found)


def summary_of_model(table: Table, position: Mapping[str, int]) -> dict[str, Any]:
    """The statistics of one table's model."""
    rows = list(table.rows.values())
    found, calibrated, confused = analyse_accuracy(rows), analyse_calibration(rows), analyse_confusion(rows)
    here = [position[label] for label in confused.labels]
    cells = [
        (here[i], here[j], count)
        for i, line in enumerate(confused.matrix)
        for j, count in enumerate(line)
        if count
    ]
    return {
        "name": next((row.model for row in rows if row.model), table.name),
        "file": table.file,
        "total": found.total,
        "counted": found.counted,
        "unreadable": found.unreadable,
        "unmatched": found.unmatched,
        "top1": plain(found.top1),
        "top5": plain(found.top5),
        "loss": found.loss,
        "confidence": found.confidence,
        "restricted": any(row.restricted for row in rows),
        "classes": [
            {
                "class": position[c.label], "support": c.support, "predicted": c.predicted, "top1": plain(c.top1),
                "precision": c.precision, "recall": c.recall, "f1": c.f1, "confidence": c.confidence,
            }
            for c in found.classes
        ],
        "histogram": _histogram(rows),
        "calibration": {
            "ece": calibrated.ece, "adaptive_ece": calibrated.adaptive_ece, "tendency": calibrated.tendency,
            "bins": [plain(bin) for bin in calibrated.bins],
        },
        "pairs": [
            {"true": position[p.true], "predicted": position[p.predicted], "count": p.count, "share": p.share}
            for p in confused.pairs
        ],
        "matrix": {
            "labels": here, "rows": [c[0] for c in cells], "cols": [c[1] for c in cells], "counts": [c[2] for c in cells],
        },
    }  # fmt: skip


def _histogram(rows: Sequence[Prediction]) -> dict[str, Any]:
    right, wrong = [0] * BARS, [0] * BARS
    for row in rows:
        if row.counted and row.predicted_confidence is not None:
            bars = right if row.correct else wrong
            bars[min(int(row.predicted_confidence * BARS), BARS - 1)] += 1
    return {"edges": [i / BARS for i in range(BARS + 1)], "right": right, "wrong": wrong}


def summary_of_rows(
    paths: Sequence[str], tables: Sequence[Table], position: Mapping[str, int]
) -> dict[str, Any]:
    """The rows of those paths as columns. The file's facts come from the first table that contains the path."""
    rows = [next(table.rows[path] for table in tables if path in table.rows) for path in paths]
    return {
        "path": list(paths),
        "file": [PurePosixPath(path).name for path in paths],
        "true": [position.get(row.true_label, -1) for row in rows],
        "status": [row.status for row in rows],
        "error": [row.error for row in rows],
        "thumb": [""] * len(rows),
        "by": [_predictions([table.rows.get(path) for path in paths], position) for table in tables],
    }


def _predictions(rows: Sequence[Prediction | None], position: Mapping[str, int]) -> dict[str, Any]:
    return {
        "predicted": [position.get(row.predicted_label, -1) if row else -1 for row in rows],
        "confidence": [row.predicted_confidence if row else None for row in rows],
        "true_confidence": [row.true_confidence if row else None for row in rows],
        "correct": [-1 if row is None or row.correct is None else int(row.correct) for row in rows],
        "top5": [[[position[label], p] for label, p in row.top5.items()] if row else [] for row in rows],
    }


def summary_of_comparison(
    found: Comparison, paths: Sequence[str], position: Mapping[str, int]
) -> dict[str, Any]:
    """The comparison of two tables; `outcome`: one for each of the paths, which are A's."""
    outcomes = {twin.a.path: twin.outcome for twin in found.twins}
    return {
        "overall": plain(found.overall),
        "classes": [
            {
                "class": position[c.label],
                "n": c.n,
                "a": plain(c.a),
                "b": plain(c.b),
                "gained": c.gained,
                "lost": c.lost,
            }
            for c in found.classes
        ],
        "notes": list(found.notes),
        "outcome": [outcomes.get(path, "") for path in paths],
    }
