"""Predictions -> numbers: accuracy, confidence, confusion, calibration. Standard library only.

Every function takes the rows of one predictions CSV. Only rows with status "ok" count; a number without any counted
row is None. `lrp.study.comparison` compares two files.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lrp.errors import PredictionsError
from lrp.study.predictions import Prediction, counted_predictions, prediction_labels
from lrp.study.statistics import Share, share_interval
from lrp.values import Plain

_FLOOR = sys.float_info.epsilon
"""Lower bound of a confidence in the loss, as in scikit-learn's log_loss: a single 0 would make the mean infinite."""


def rows_by_class(rows: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """True class -> its rows; classes sorted as in `in_order`."""
    rows = list(rows)
    groups: dict[str, list[Prediction]] = {label: [] for label in prediction_labels(rows)}
    for row in rows:
        groups[row.true_label].append(row)
    return {label: group for label, group in groups.items() if group}


# --- accuracy ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassAccuracy(Plain):
    label: str
    support: int
    """Counted images whose true class this is."""
    predicted: int
    """Counted images predicted as this class."""
    top1: Share | None
    top5: Share | None
    loss: float | None
    confidence: float | None
    precision: float | None
    """The share of the images predicted as this class that belong to it; None if there are none."""
    recall: float | None
    """The share of its images predicted as this class."""
    f1: float | None
    """The harmonic mean of precision and recall."""


@dataclass(frozen=True)
class Accuracy(Plain):
    total: int
    """Rows: counted + unreadable + unmatched."""
    counted: int
    unreadable: int
    unmatched: int
    top1: Share | None
    top5: Share | None
    """The share of images whose true class is among the five most probable. None if a row has no such list."""
    loss: float | None
    """Mean of -ln(true confidence), in nats; a confidence below 2.2e-16 counts as 2.2e-16. None if a row has no
    true confidence."""
    confidence: float | None
    """Mean confidence of the predicted class."""
    classes: tuple[ClassAccuracy, ...]
    """The true classes of the counted rows, sorted as in `in_order`."""


def analyse_accuracy(predictions: Sequence[Prediction]) -> Accuracy:
    """Top-1, top-5, loss and mean confidence over all images; precision and recall per class."""
    rows = counted_predictions(predictions)
    status = Counter(row.status for row in predictions)
    return Accuracy(
        len(predictions),
        len(rows),
        status["unreadable"],
        status["unmatched"],
        *_measures(rows),
        _classes(rows),
    )


def _measures(rows: Sequence[Prediction]) -> tuple[Share | None, Share | None, float | None, float | None]:
    """top1, top5, loss, confidence."""
    n = len(rows)
    true = [row.true_confidence for row in rows if row.true_confidence is not None]
    return (
        share_interval(sum(bool(row.correct) for row in rows), n),
        share_interval(sum(row.true_label in row.top5 for row in rows), n)
        if all(row.top5 for row in rows)
        else None,
        _mean([-math.log(max(value, _FLOOR)) for value in true]) if len(true) == n else None,
        _mean([row.predicted_confidence or 0.0 for row in rows]),
    )


def _mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None for an empty sequence."""
    return math.fsum(values) / len(values) if values else None


def _classes(rows: Sequence[Prediction]) -> tuple[ClassAccuracy, ...]:
    taken = Counter(row.predicted_label for row in rows)
    hits = Counter(row.true_label for row in rows if row.true_label == row.predicted_label)
    return tuple(
        ClassAccuracy(
            label,
            len(group),
            taken[label],
            *_measures(group),
            precision=hits[label] / taken[label] if taken[label] else None,
            recall=hits[label] / len(group),
            f1=2 * hits[label] / (len(group) + taken[label]),
        )
        for label, group in rows_by_class(rows).items()
    )


# --- highest and lowest confidence ------------------------------------------------------------------------


@dataclass(frozen=True)
class Surest(Plain):
    """The correct predictions (`correct` in all) with the highest and the lowest confidence."""

    label: str
    """The class; "" for all classes together."""
    correct: int
    highest: tuple[Prediction, ...]
    lowest: tuple[Prediction, ...]


@dataclass(frozen=True)
class Picks(Plain):
    overall: Surest
    classes: tuple[Surest, ...]
    """Every true class, sorted as in `in_order`; also those without a correct prediction."""


def analyse_confidence(predictions: Sequence[Prediction], count: int = 10) -> Picks:
    """The `count` correct predictions with the highest confidence and the `count` with the lowest, over all
    and per class; fewer if there are fewer. Equal confidences are sorted by path."""
    rows = counted_predictions(predictions)
    return Picks(
        _surest("", rows, count),
        tuple(_surest(label, group, count) for label, group in rows_by_class(rows).items()),
    )


def _surest(label: str, rows: Iterable[Prediction], count: int) -> Surest:
    correct = [row for row in rows if row.correct]
    falling = sorted(correct, key=_falling)
    rising = sorted(correct, key=lambda row: (row.predicted_confidence, row.path))
    return Surest(label, len(correct), tuple(falling[:count]), tuple(rising[:count]))


def _falling(row: Prediction) -> tuple[float, str]:
    return -(row.predicted_confidence or 0.0), row.path


# --- confusion --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confused(Plain):
    """`count` images of class `true` were predicted as `predicted`; `share`: of all images of `true`."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Mutual(Plain):
    """Two classes confused with each other; `count`: mistakes in both directions together."""

    first: str
    second: str
    count: int
    first_as_second: int
    second_as_first: int


@dataclass(frozen=True)
class Confusion(Plain):
    labels: tuple[str, ...]
    """Every class that occurs as true or as predicted, sorted by index if known, then by name."""
    matrix: tuple[tuple[int, ...], ...]
    """matrix[i][j]: images of class labels[i] that were predicted as labels[j]."""
    support: tuple[int, ...]
    """Number of images of each class, for any prediction."""
    pairs: tuple[Confused, ...]
    """Sorted by images (most first), then by share (largest first), then in the order of the labels."""
    mutual: tuple[Mutual, ...]
    """Sorted by images (most first), then in the order of the labels."""
    mistakes: tuple[Prediction, ...]
    """Every wrong row, sorted by confidence (highest first), then by path."""

    def view(self, count: int) -> "ConfusionView":
        """The part small enough to display, see `ConfusionView`."""
        size = range(len(self.labels))
        column = [sum(line[j] for line in self.matrix) for j in size]
        wrong = [self.support[i] + column[i] - 2 * self.matrix[i][i] for i in size]
        true = [i for i in size if self.support[i]]
        rows = sorted(sorted(true, key=lambda i: -wrong[i])[:count])
        taken = {j: sum(self.matrix[i][j] for i in rows) for j in size if j not in set(rows)}
        often = sorted((j for j in taken if taken[j]), key=lambda j: -taken[j])
        columns, rest = rows + often[:10], often[10:]
        matrix = [[self.matrix[i][j] for j in columns] for i in rows]
        if rest:
            matrix = [
                line + [sum(self.matrix[i][j] for j in rest)] for i, line in zip(rows, matrix, strict=True)
            ]
        return ConfusionView(
            tuple(self.labels[i] for i in rows),
            tuple(self.labels[j] for j in columns),
            len(rest),
            tuple(map(tuple, matrix)),
            len(true) - len(rows),
        )


@dataclass(frozen=True)
class ConfusionView(Plain):
    """The true classes with most mistakes (their images predicted as another class, and others' as theirs)."""

    rows: tuple[str, ...]
    """In the order of the labels."""
    columns: tuple[str, ...]
    """The same classes, then at most ten others: the most frequent predictions for the rows' images."""
    others: int
    """How many further classes were predicted for the rows' images; if any, the matrix's last column is their sum."""
    matrix: tuple[tuple[int, ...], ...]
    """[rows, columns (+ 1)]; the sum of a row is the number of images of its class."""
    left_out: int
    """Number of true classes that are not shown as rows."""


def analyse_confusion(predictions: Sequence[Prediction]) -> Confusion:
    """The confusion matrix, the most frequent confusions, and the most confident mistakes."""
    rows = counted_predictions(predictions)
    labels = prediction_labels(rows)
    place = {label: i for i, label in enumerate(labels)}
    matrix = [[0] * len(labels) for _ in labels]
    for row in rows:
        matrix[place[row.true_label]][place[row.predicted_label]] += 1
    support = [sum(line) for line in matrix]
    cells = {(i, j): n for i, line in enumerate(matrix) for j, n in enumerate(line) if n and i != j}
    one_way = sorted(cells, key=lambda ij: (-cells[ij], -cells[ij] / support[ij[0]], ij))
    both: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for (i, j), n in cells.items():
        both[min(i, j), max(i, j)][i > j] = n
    return Confusion(
        tuple(labels),
        tuple(map(tuple, matrix)),
        tuple(support),
        tuple(Confused(labels[i], labels[j], cells[i, j], cells[i, j] / support[i]) for i, j in one_way),
        tuple(
            Mutual(labels[i], labels[j], sum(both[i, j]), *both[i, j])
            for i, j in sorted(both, key=lambda ij: (-sum(both[ij]), ij))
        ),
        tuple(sorted((row for row in rows if not row.correct), key=_falling)),
    )


# --- calibration ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin(Plain):
    """The predictions with low < confidence <= high."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Their mean confidence."""
    accuracy: Share | None


@dataclass(frozen=True)
class Calibration(Plain):
    n: int
    bins: tuple[Bin, ...]
    accuracy: Share | None
    confidence: float | None
    gap: float | None
    """Mean confidence minus accuracy: above 0 the model is overconfident, below 0 underconfident."""
    ece: float | None
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017): the mean over images of their bin's
    |accuracy - confidence|. It cannot be negative, so it is biased upwards for few images."""
    mce: float | None
    """Maximum calibration error: the largest |accuracy - confidence| of a bin."""
    adaptive_ece: float | None
    """The expected calibration error from bins with equal numbers of images (Nguyen and O'Connor 2015): bins of
    equal width can have nearly all images in the last bin."""

    @property
    def tendency(self) -> str:
        """ "overconfident" or "underconfident" if the mean confidence is outside the accuracy's 95 % interval,
        otherwise "neither"; "" without images."""
        if self.accuracy is None or self.confidence is None:
            return ""
        if self.confidence > self.accuracy.high:
            return "overconfident"
        return "underconfident" if self.confidence < self.accuracy.low else "neither"


def analyse_calibration(predictions: Sequence[Prediction], bins: int = 15) -> Calibration:
    """How well the confidences agree with the observed accuracy.

    Confidences are rounded to six decimals before binning, so that a value on a bin's edge is not moved into the
    next bin by floating-point rounding.

    Raises:
        PredictionsError: `bins` is below 1.
    """
    if bins < 1:
        raise PredictionsError(f"expected at least one bin of confidences, got bins={bins}")
    rows = [(row.predicted_confidence or 0.0, bool(row.correct)) for row in counted_predictions(predictions)]
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, correct in rows:
        millionths = round(confidence * 1_000_000)
        groups[max(0, -(-millionths * bins // 1_000_000) - 1)].append((confidence, correct))
    made = tuple(_bin(i / bins, (i + 1) / bins, group) for i, group in enumerate(groups))
    gaps = [(b.count, abs(b.accuracy.value - (b.confidence or 0.0))) for b in made if b.accuracy]
    whole = _bin(0.0, 1.0, rows)
    return Calibration(
        len(rows),
        made,
        whole.accuracy,
        whole.confidence,
        None if whole.accuracy is None else (whole.confidence or 0.0) - whole.accuracy.value,
        math.fsum(count * gap for count, gap in gaps) / len(rows) if rows else None,
        max((gap for _, gap in gaps), default=None),
        _adaptive(rows, bins),
    )


def _bin(low: float, high: float, rows: Sequence[tuple[float, bool]]) -> Bin:
    correct = sum(correct for _, correct in rows)
    return Bin(
        low,
        high,
        len(rows),
        _mean([confidence for confidence, _ in rows]),
        share_interval(correct, len(rows)),
    )


def _adaptive(rows: Sequence[tuple[float, bool]], bins: int) -> float | None:
    """Bins of equal numbers of images, up to one: the first bins have one more, as in numpy.array_split."""
    if not rows:
        return None
    # Many confidences equal 1.000000. Equal ones all count with their mean correctness; otherwise the result would
    # depend on the order of the rows, which decides the bins of equal confidences.
    right: dict[float, list[bool]] = defaultdict(list)
    for confidence, correct in rows:
        right[confidence].append(correct)
    over = sorted((confidence, confidence - sum(c) / len(c)) for confidence, c in right.items() for _ in c)
    size, extra = divmod(len(over), bins)
    total, start = 0.0, 0
    for i in range(bins):
        end = start + size + (i < extra)
        total += abs(math.fsum(gap for _, gap in over[start:end]))
        start = end
    return total / len(over)
