"""Compare two predictions files on the same images. Standard library only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrp.errors import PredictionsError
from lrp.study.analysis import rows_by_class
from lrp.study.predictions import Prediction, counted_predictions
from lrp.study.statistics import Paired, Share, paired_interval, share_interval
from lrp.values import Plain, plain


@dataclass(frozen=True)
class Twin(Plain):
    """The rows of one image in both files."""

    a: Prediction
    b: Prediction

    @property
    def change(self) -> float | None:
        """The true class's confidence in B minus that in A, from -1 to 1."""
        before, after = self.a.true_confidence, self.b.true_confidence
        return None if before is None or after is None else after - before

    @property
    def outcome(self) -> str:
        """ "right" or "wrong" in both files, "gained" if only B is right, "lost" if only A is right."""
        return {
            (True, True): "right", (False, True): "gained", (True, False): "lost", (False, False): "wrong",
        }[bool(self.a.correct), bool(self.b.correct)]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"change": self.change}


@dataclass(frozen=True)
class ClassChange(Plain):
    label: str
    n: int
    a: Share | None
    b: Share | None
    gained: int
    lost: int


@dataclass(frozen=True)
class Restricted(Plain):
    """Both models restricted to the classes that both have.

    A row's restricted prediction is the most probable shared class of its top5, or its prediction if it has no
    top5. If these contain no shared class, the row is undecided and counts as wrong.
    """

    classes: tuple[str, ...]
    overall: Paired
    undecided_a: int
    undecided_b: int


@dataclass(frozen=True)
class Comparison(Plain):
    names: tuple[str, str]
    matched: int
    """Number of images in both files."""
    only_a: int
    only_b: int
    left_out: int
    """Matched images that do not count in one of the files (unreadable, or of no class of its model)."""
    folders: tuple[str, str] | None
    """If the paths differ: A's leading folders, and B's leading folders in their place."""
    overall: Paired
    classes: tuple[ClassChange, ...]
    """The true classes, in A's order."""
    twins: tuple[Twin, ...]
    """Every image that counts in both files, in A's order."""
    rose: tuple[Twin, ...]
    """The images whose confidence in the true class rose most."""
    fell: tuple[Twin, ...]
    """The images whose confidence in the true class fell most."""
    seen: tuple[int, int]
    """How many classes occur in A, and in B: as true, predicted, or among the five most probable."""
    restricted: Restricted | None
    """None unless the class sets differ."""

    @property
    def gained(self) -> tuple[Twin, ...]:
        """A wrong, B right; sorted by the rise of the true class's confidence, largest first."""
        return _by_change((t for t in self.twins if t.b.correct and not t.a.correct), rising=True)

    @property
    def lost(self) -> tuple[Twin, ...]:
        """A right, B wrong; sorted by the fall of the true class's confidence, largest first."""
        return _by_change((t for t in self.twins if t.a.correct and not t.b.correct), rising=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know to interpret the numbers; one or two sentences each."""
        return tuple(_notes(self))

    def to_dict(self) -> dict[str, Any]:
        """Without `twins`, which repeat the two files; with `gained`, `lost` and `notes`."""
        kept = {name: value for name, value in vars(self).items() if name != "twins"}
        return plain(kept | {"gained": self.gained, "lost": self.lost, "notes": self.notes})


def compare_predictions(
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    *,
    count: int = 10,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compare the predictions B with A, image by image.

    Images are matched by path. If no path is in both files, the data may have been moved: then a leading folder of
    A's paths is replaced by one of B's, such that every path of the smaller file is in the other; of several such
    pairs of folders, the pair with the longest common remainder of the paths is used.

    Args:
        count: the length of `rose` and of `fell`.
        names: the names of A and B in messages and notes.

    Raises:
        PredictionsError: no image in common, a path twice in one file, an ambiguous match of folders, or an image
            whose true class differs between A and B.
    """
    rows_a, rows_b = _by_path(a, names[0]), _by_path(b, names[1])
    folders = _folders(list(rows_a), list(rows_b), names)
    pairs = [
        Twin(row, rows_b[other])
        for path, row in rows_a.items()
        if (other := compared_path(path, folders)) is not None and other in rows_b
    ]
    _expect_same_classes(pairs, names)
    counted_predictions([row for pair in pairs for row in (pair.a, pair.b)])  # raises for incomplete rows
    twins = tuple(pair for pair in pairs if pair.a.counted and pair.b.counted)
    seen_a, seen_b = _seen(a), _seen(b)
    return Comparison(
        names,
        len(pairs),
        len(rows_a) - len(pairs),
        len(rows_b) - len(pairs),
        len(pairs) - len(twins),
        folders if folders[0] != folders[1] else None,
        _paired(twins),
        _classes(twins),
        twins,
        _by_change((twin for twin in twins if (twin.change or 0) > 0), rising=True)[:count],
        _by_change((twin for twin in twins if (twin.change or 0) < 0), rising=False)[:count],
        (len(seen_a), len(seen_b)),
        _restricted(twins, seen_a & seen_b) if _sets_differ(a, b, seen_a, seen_b) else None,
    )


# --- matching images --------------------------------------------------------------------------------------


def _by_path(rows: Iterable[Prediction], name: str) -> dict[str, Prediction]:
    found: dict[str, Prediction] = {}
    for row in rows:
        if row.path in found:
            raise PredictionsError(
                f"{name}: expected one row per image, got two of {row.path!r}; remove one."
            )
        found[row.path] = row
    return found


def _folders(a: Sequence[str], b: Sequence[str], names: tuple[str, str]) -> tuple[str, str]:
    """The prefix of A's paths and the prefix that replaces it in B's; both "" if the paths are equal."""
    if not a or not b or not set(a).isdisjoint(b):
        return "", ""
    if len(b) < len(a):
        right, left = _folders(b, a, (names[1], names[0]))
        return left, right
    everything = set(b)
    first = a[0].split("/")
    possible: dict[tuple[str, str], int] = {}
    for path in b:
        common = 0
        for mine, other in zip(reversed(first), reversed(path.split("/")), strict=False):
            if mine != other:
                break
            common += 1
        if common:
            rest = len("/".join(first[-common:]))
            possible[a[0][:-rest], path[:-rest]] = common
    fitting = [f for f in possible if all(compared_path(path, f) in everything for path in a)]
    longest = [f for f in fitting if possible[f] == max(possible[g] for g in fitting)]
    if len(longest) == 1:
        return longest[0]
    if longest:
        raise PredictionsError(
            f"{names[0]}: its images could be those of {names[1]} below {longest[0][1]!r} or {longest[1][1]!r}; "
            "evaluate both models on the same folder."
        )
    raise PredictionsError(
        f"expected images that are in both files, got {names[0]} with {a[0]!r} and {names[1]} with {b[0]!r}, "
        "which are not the same below any folder; evaluate both models on the same data."
    )


def compared_path(path: str, folders: tuple[str, str]) -> str | None:
    """The path in B for a path in A; None if it is not below A's folder."""
    return folders[1] + path[len(folders[0]) :] if path.startswith(folders[0]) else None


def _expect_same_classes(pairs: Sequence[Twin], names: tuple[str, str]) -> None:
    known = [twin for twin in pairs if twin.a.true_label and twin.b.true_label]
    differing = [twin for twin in known if twin.a.true_label != twin.b.true_label]
    if differing:
        first = differing[0]
        raise PredictionsError(
            f"{first.a.path}: expected the same true class in both files, got {first.a.true_label!r} in {names[0]} "
            f"and {first.b.true_label!r} in {names[1]} ({len(differing)} of {len(known)} images differ); "
            "evaluate both models with the same class names."
        )


# --- what changed -----------------------------------------------------------------------------------------


def _paired(twins: Sequence[Twin]) -> Paired:
    return paired_interval([bool(twin.a.correct) for twin in twins], [bool(twin.b.correct) for twin in twins])


def _by_change(twins: Iterable[Twin], *, rising: bool) -> tuple[Twin, ...]:
    sign = -1 if rising else 1
    return tuple(sorted(twins, key=lambda twin: (sign * (twin.change or 0.0), twin.a.path)))


def _classes(twins: Sequence[Twin]) -> tuple[ClassChange, ...]:
    after = {twin.a.path: bool(twin.b.correct) for twin in twins}
    changes = []
    for label, rows in rows_by_class(twin.a for twin in twins).items():
        both = [(bool(row.correct), after[row.path]) for row in rows]
        right_a, right_b = (sum(side) for side in zip(*both, strict=True))
        gained, lost = both.count((False, True)), both.count((True, False))
        n = len(both)
        changes.append(
            ClassChange(label, n, share_interval(right_a, n), share_interval(right_b, n), gained, lost)
        )
    return tuple(changes)


# --- different class sets ---------------------------------------------------------------------------------


def _seen(rows: Iterable[Prediction]) -> set[str]:
    found: set[str] = set()
    for row in rows:
        found.update((row.true_label, row.predicted_label), row.top5)
    return found - {""}


def _sets_differ(
    a: Sequence[Prediction], b: Sequence[Prediction], seen_a: set[str], seen_b: set[str]
) -> bool:
    """Whether the predictions show that the two models have different classes.

    Two models with the same 1000 classes may predict a different 400 of them, so different labels alone are no proof.
    """
    if seen_a == seen_b:
        return False
    # Only one of them predicts classes outside those of its images: for example 10 classes against 1000.
    if (seen_a <= _true(a)) != (seen_b <= _true(b)):
        return True
    if any(row.restricted for row in a) or any(row.restricted for row in b):
        return True
    # A label with two indices, or an index with two labels: one contradiction is enough.
    pairs = _pairs(b)
    return any((x == y) != (i == j) for x, i in _pairs(a) for y, j in pairs)


def _true(rows: Iterable[Prediction]) -> set[str]:
    return {row.true_label for row in rows}


def _pairs(rows: Iterable[Prediction]) -> set[tuple[str, int]]:
    """(label, index) of each class whose index is known."""
    return {
        (label, index)
        for row in rows
        for label, index in ((row.true_label, row.true_index), (row.predicted_label, row.predicted_index))
        if label and index is not None
    }


def _restricted(twins: Sequence[Twin], shared: set[str]) -> Restricted:
    before, after = ([_likeliest(row, shared) for row in rows] for rows in _sides(twins))
    true = [twin.a.true_label for twin in twins]
    overall = paired_interval(
        *([x == t for x, t in zip(side, true, strict=True)] for side in (before, after))
    )
    return Restricted(tuple(sorted(shared)), overall, before.count(None), after.count(None))


def _sides(twins: Sequence[Twin]) -> tuple[list[Prediction], list[Prediction]]:
    return [twin.a for twin in twins], [twin.b for twin in twins]


def _likeliest(row: Prediction, shared: set[str]) -> str | None:
    known: Mapping[str, float] | tuple[str, ...] = row.top5 or (row.predicted_label,)
    return next((label for label in known if label in shared), None)


# --- notes ------------------------------------------------------------------------------------------------


def _notes(c: Comparison) -> Iterable[str]:
    a, b = c.names
    if c.folders:
        yield f"The paths differ: what is below {c.folders[0]!r} in {a} was matched to what is below {c.folders[1]!r} in {b}."
    if c.only_a or c.only_b:
        yield f"{_images(c.only_a)} only in {a} and {_images(c.only_b)} only in {b} are left out."
    if c.left_out:
        yield (
            f"{_images(c.left_out)} in both files could not be read, or have no class of the model, "
            "in one of them: left out."
        )
    if c.restricted is None:
        return
    yield (
        f"The class sets differ: {a} shows {c.seen[0]} classes, {b} {c.seen[1]}, {len(c.restricted.classes)} of them "
        "in both. Fewer classes are easier to choose among, and confidences are shares among different classes; "
        "so compare the accuracies restricted to the shared classes."
    )
    for name, undecided in ((a, c.restricted.undecided_a), (b, c.restricted.undecided_b)):
        if undecided:
            yield (
                f"Counted as undecided and wrong: {_images(undecided)} of {name} where no shared class is among the "
                "likeliest that the file knows; `lrp evaluate --classes data` gives exact numbers."
            )


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"
