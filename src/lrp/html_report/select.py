"""Selects the photos to explain, the most informative first; and the rows to list if there are too many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from lrp.study.comparison import Twin
from lrp.study.predictions import Prediction

KEPT = 4  # one in KEPT places is reserved for photos that are right, if there are any


def select_for_maps(rows: Mapping[str, Prediction], count: int) -> list[str]:
    """The paths of at most `count` rows: mistakes, most confident first; then alternately the right ones with the
    lowest and with the highest confidence."""
    counted = [path for path, row in rows.items() if row.counted]

    def falling(path: str) -> tuple[float, str]:
        return -(rows[path].predicted_confidence or 0.0), path

    wrong = sorted((path for path in counted if not rows[path].correct), key=falling)
    right = sorted((path for path in counted if rows[path].correct), key=falling)
    mixed = list(_in_turn(right[::-1], right))
    mistakes = wrong[: max(count - len(mixed), count - count // KEPT)]
    return (mistakes + mixed)[:count]


def select_changes_for_maps(twins: Sequence[Twin], count: int) -> list[str]:
    """The same for two tables, as A's paths: lost, gained and wrong in both in turn; then right in both. In each group
    sorted by the change of the true class's probability, largest first."""

    def by_change(twin: Twin) -> tuple[float, str]:
        return -abs(twin.change or 0.0), twin.a.path

    groups: dict[tuple[bool, bool], list[str]] = {}
    for twin in sorted(twins, key=by_change):
        groups.setdefault((bool(twin.a.correct), bool(twin.b.correct)), []).append(twin.a.path)
    informative = (groups.get(kind, []) for kind in ((True, False), (False, True), (False, False)))
    return [*_in_turn(*informative), *groups.get((True, True), [])][:count]


def select_to_show(paths: Sequence[str], wrong: set[str], first: Sequence[str], count: int) -> list[str]:
    """At most `count` of the paths, in their order. Explained ones are preferred, then mistakes, then others evenly."""
    if len(paths) <= count:
        return list(paths)
    kept = dict.fromkeys(first[:count])
    for path in paths:
        if len(kept) < count and path in wrong:
            kept[path] = None
    others = [path for path in paths if path not in kept]
    free = count - len(kept)
    kept.update(dict.fromkeys(others[i * len(others) // free] for i in range(free)))
    return [path for path in paths if path in kept]


def select_classes_for_maps(rows: Sequence[Prediction | None]) -> list[str]:
    """The at most two labels to explain. One table: the predicted class, then the true class, or if that is the same
    the second most probable one. Several tables: the true class, then a wrong prediction, or if there is none the
    second most probable class."""
    present = [row for row in rows if row is not None]
    predicted = [row.predicted_label for row in present]
    true = next((row.true_label for row in present), "")
    second = [label for row in present for label in row.top5]
    order = [*predicted, true, *second] if len(rows) == 1 else [true, *predicted, *second]
    return [label for label in dict.fromkeys(order) if label][:2]


def _in_turn(*groups: Sequence[str]) -> Iterator[str]:
    """One path of each group in turn; each path only once."""
    seen: set[str] = set()
    for some in zip_longest(*groups):
        for path in some:
            if path is not None and path not in seen:
                seen.add(path)
                yield path
