"""analysis.py and intervals.py against scikit-learn, SciPy, published numbers and a pencil."""

import ast
import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

import lrp.study.analysis
from lrp.errors import PredictionsError
from lrp.study.analysis import analyse_accuracy, analyse_calibration, analyse_confidence, analyse_confusion
from lrp.study.predictions import Prediction
from lrp.study.statistics import Share, mcnemar, paired_interval, share_interval, tango_interval


def row(path, true, predicted, confidence, true_confidence=None, **more):
    if true_confidence is None and true == predicted:
        true_confidence = confidence
    return Prediction(path, true, predicted, confidence, true_confidence, true == predicted, **more)


def top(*labels):
    return {label: 0.5 / 2**i for i, label in enumerate(labels)}


# By pencil: five that count, of three classes; "owl" is only ever predicted.
PENCIL = [
    row("d/cat/1", "cat", "cat", 0.9, top5=top("cat", "dog"), true_index=1, predicted_index=1),
    row("d/cat/2", "cat", "dog", 0.6, 0.3, top5=top("dog", "cat"), true_index=1, predicted_index=0),
    row("d/cat/3", "cat", "owl", 0.7, 0.0, top5=top("owl", "dog"), true_index=1, predicted_index=2),
    row("d/dog/1", "dog", "dog", 0.5, top5=top("dog", "cat"), true_index=0, predicted_index=0),
    row("d/dog/2", "dog", "cat", 0.8, 0.1, top5=top("cat", "dog"), true_index=0, predicted_index=1),
    Prediction("d/dog/3", "dog", status="unreadable", error="not a photo", true_index=0),
    Prediction("d/elk/1", "", "cat", 0.99, status="unmatched", predicted_index=1, top5=top("cat")),
]

LABELS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
confidences = st.integers(0, 10**6).map(lambda n: n / 10**6)


@st.composite
def tables(draw, least=0):
    rows = []
    for i in range(draw(st.integers(least, 40))):
        ranked = draw(st.permutations(LABELS))[:5]
        true = draw(st.sampled_from(LABELS[:5]))
        rows.append(
            row(f"d/{true}/{i}", true, ranked[0], draw(confidences), draw(confidences), top5=top(*ranked))
        )
    return rows


# --- intervals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 60, 3925, 50_000])
def test_wilson_is_scipys(n):
    for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = binomtest(successes, n).proportion_ci(method="wilson")
        got = share_interval(successes, n)
        assert (got.value, got.successes, got.n) == (successes / n, successes, n)
        assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= got.low <= got.value <= got.high <= 1


def test_share_of_nothing_and_in_words():
    assert share_interval(0, 0) is None
    assert str(share_interval(9, 10)) == "90.0 % (59.6 to 98.2)"
    assert share_interval(0, 3).low == 0.0 and share_interval(3, 3).high == 1.0
    assert Share(0.5, 0.1, 0.9, 1, 2).to_dict() == {
        "value": 0.5, "low": 0.1, "high": 0.9, "successes": 1, "n": 2,
    }  # fmt: skip


def test_tango_as_published():
    """Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8: complete response
    before and after consolidation therapy (Cavo 2012), as the book's R package `contingencytables` has it."""
    assert tuple(round(v, 4) for v in tango_interval(6, 16, 161)) == (-0.1240, -0.0054)


def score_by_brute_force(gained, lost, n, delta):
    """|z| of the score test: the nuisance probability by maximising the multinomial likelihood numerically."""

    def minus_log_likelihood(q):
        p = [q + delta, q, 1 - 2 * q - delta]
        return -sum(
            c * math.log(max(x, 1e-300))
            for c, x in zip((gained, lost, n - gained - lost), p, strict=True)
            if c
        )

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return abs(gained - lost - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


@pytest.mark.parametrize(
    "gained, lost, n", [(6, 16, 161), (1, 7, 21), (5, 0, 30), (0, 3, 10), (20, 18, 3925), (9, 9, 20)]
)
def test_tango_inverts_the_score_test(gained, lost, n):
    for limit in tango_interval(gained, lost, n):
        assert score_by_brute_force(gained, lost, n, limit) == pytest.approx(norm.ppf(0.975), abs=1e-3)


def test_tango_of_nothing_moved_and_of_everything():
    z2 = norm.ppf(0.975) ** 2
    assert tango_interval(0, 0, 40) == pytest.approx(
        (-z2 / (40 + z2), z2 / (40 + z2))
    )  # its closed form there
    assert tango_interval(7, 0, 7)[1] == 1.0 and tango_interval(0, 7, 7)[0] == -1.0
    assert tango_interval(3, 1, 9) == pytest.approx(tuple(-v for v in reversed(tango_interval(1, 3, 9))))


@pytest.mark.parametrize("up, down", [(0.1, 0.1), (0.15, 0.05), (0.02, 0.02), (0.3, 0.1)])
def test_tango_covers_the_truth_about_95_times_of_100(up, down):
    """Exactly, over every possible outcome of 40 images."""
    n, covered = 40, 0.0
    for gained in range(n + 1):
        chance = binom.pmf(gained, n, up)
        if chance < 1e-7:
            continue
        for lost in range(n - gained + 1):
            both = chance * binom.pmf(lost, n - gained, down / (1 - up))
            if both > 1e-7:
                low, high = tango_interval(gained, lost, n)
                covered += both * (low <= up - down <= high)
    assert 0.93 < covered < 0.995


@pytest.mark.parametrize(
    "gained, lost", [(0, 0), (1, 0), (0, 5), (6, 16), (16, 6), (50, 50), (300, 250), (1200, 900)]
)
def test_mcnemar_is_the_binomial_test(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_as_published():
    assert round(mcnemar(6, 16), 6) == 0.052479  # Fagerland, Lydersen, Laake 2017, chapter 8


def test_paired_by_pencil():
    a, b = [True, True, True, False, False, False], [True, False, True, True, True, False]
    got = paired_interval(a, b)
    assert (got.n, got.both_right, got.gained, got.lost, got.both_wrong) == (6, 2, 2, 1, 1)
    assert (got.a.successes, got.b.successes, got.difference) == (3, 4, 1 / 6)
    assert got.low < got.difference < got.high and got.p == 1.0
    empty = paired_interval([], [])
    assert set(empty.to_dict().values()) == {0, None}


# --- accuracy ---------------------------------------------------------------------------------------------


def test_accuracy_by_pencil():
    got = analyse_accuracy(PENCIL)
    assert (got.total, got.counted, got.unreadable, got.unmatched) == (7, 5, 1, 1)
    assert (got.top1.successes, got.top1.n, got.top5.successes) == (2, 5, 4)
    assert got.confidence == pytest.approx((0.9 + 0.6 + 0.7 + 0.5 + 0.8) / 5)
    # The third has 0, and counts as the least number that still changes 1.
    assert got.loss == pytest.approx(-(math.log(0.9 * 0.3 * 0.5 * 0.1) + math.log(2.0**-52)) / 5)
    dog, cat = got.classes  # by index, not by name
    assert (dog.label, dog.support, dog.predicted, dog.top1.successes, dog.top5.successes) == (
        "dog",
        2,
        2,
        1,
        2,
    )
    assert (cat.label, cat.support, cat.predicted, cat.top1.successes, cat.top5.successes) == (
        "cat",
        3,
        2,
        1,
        2,
    )
    assert (dog.precision, dog.recall, dog.f1) == (0.5, 0.5, 0.5)
    assert (cat.precision, cat.recall, cat.f1) == (0.5, 1 / 3, pytest.approx(0.4))


@given(rows=tables())
def test_accuracy_is_scikit_learns(rows):
    got = analyse_accuracy(rows)
    if not rows:
        assert got.top1 is None and got.loss is None and got.classes == ()
        return
    true, predicted = [r.true_label for r in rows], [r.predicted_label for r in rows]
    assert got.top1.value == pytest.approx(np.mean(np.array(true) == np.array(predicted)))
    assert got.top5.value == pytest.approx(
        np.mean([t in list(r.top5) for t, r in zip(true, rows, strict=True)])
    )
    assert [c.label for c in got.classes] == sorted(set(true))  # without indices: by name
    expected = precision_recall_fscore_support(
        true, predicted, labels=[c.label for c in got.classes], zero_division=math.nan
    )
    for one, precision, recall, f1, support in zip(got.classes, *expected, strict=True):
        assert one.support == support == one.top1.n
        assert (math.nan if one.precision is None else one.precision) == pytest.approx(precision, nan_ok=True)
        assert (one.recall, one.f1) == (pytest.approx(recall), pytest.approx(f1))


@given(values=st.lists(st.integers(1, 10**6).map(lambda n: n / 10**6), min_size=1, max_size=20))
def test_loss_is_scikit_learns(values):
    rows = [row(f"{i}", "a", "b", 0.5, value) for i, value in enumerate(values)]
    expected = log_loss([1] * len(values), [[1 - v, v] for v in values], labels=[0, 1])
    assert analyse_accuracy(rows).loss == pytest.approx(expected, abs=1e-9)


def test_what_a_row_does_not_know_is_not_known():
    six = [replace(r, top5={}, true_index=None, predicted_index=None) for r in PENCIL]
    assert analyse_accuracy(six).top5 is None and analyse_accuracy(six).top1.successes == 2
    one_lacks = [replace(PENCIL[0], top5={}, true_confidence=None), *PENCIL[1:]]
    got = analyse_accuracy(one_lacks)
    assert got.top5 is None and got.loss is None
    dog, cat = got.classes
    assert cat.top5 is None and cat.loss is None
    assert dog.top5.successes == 2 and dog.loss is not None  # that class knows it of all its rows


@pytest.mark.parametrize("rows", [[], PENCIL[5:]], ids=["none", "none counts"])
def test_of_nothing_there_are_no_numbers(rows):
    got = analyse_accuracy(rows)
    assert (got.total, got.counted) == (len(rows), 0)
    assert got.top1 is got.top5 is got.loss is got.confidence is None and got.classes == ()
    assert analyse_confidence(rows, 3).overall.highest == () and analyse_confidence(rows, 3).classes == ()
    assert (
        analyse_confusion(rows).labels
        == analyse_confusion(rows).mistakes
        == analyse_confusion(rows).view(5).rows
        == ()
    )
    c = analyse_calibration(rows)
    assert c.ece is c.mce is c.adaptive_ece is c.gap is c.accuracy is None and c.tendency == ""
    assert len(c.bins) == 15 and all(b.count == 0 and b.accuracy is None for b in c.bins)


@pytest.mark.parametrize("column, nothing", [
    ("true_label", ""), ("predicted_label", ""), ("predicted_confidence", None), ("correct", None),
])  # fmt: skip
@pytest.mark.parametrize(
    "function", [analyse_accuracy, analyse_confidence, analyse_confusion, analyse_calibration]
)
def test_a_row_that_counts_is_whole(function, column, nothing):
    with pytest.raises(PredictionsError) as caught:
        function([replace(PENCIL[0], **{column: nothing})])
    assert str(caught.value) == (
        "d/cat/1: expected a row with status ok to have all of true_label, predicted_label, predicted_confidence "
        f"and correct, got no {column}; make the file again with `lrp evaluate`."
    )


# --- picks ------------------------------------------------------------------------------------------------


def test_picks_by_pencil():
    rows = [row(f"d/{x}/{i}", x, x, c) for x, i, c in [
        ("a", 1, 0.5), ("a", 2, 0.9), ("a", 3, 0.9), ("a", 4, 0.2), ("b", 1, 0.7), ("b", 2, 0.2),
    ]] + [row("d/b/3", "b", "a", 1.0), row("d/c/1", "c", "a", 0.1)]  # fmt: skip
    got = analyse_confidence(rows, 3)
    paths = lambda some: [r.path for r in some]  # noqa: E731
    assert paths(got.overall.highest) == ["d/a/2", "d/a/3", "d/b/1"]
    assert paths(got.overall.lowest) == ["d/a/4", "d/b/2", "d/a/1"]  # ties by path, both ways
    assert (got.overall.label, got.overall.correct) == ("", 6)
    a, b, c = got.classes
    assert (a.label, a.correct, paths(a.lowest)) == ("a", 4, ["d/a/4", "d/a/1", "d/a/2"])
    assert (b.correct, paths(b.highest), paths(b.lowest)) == (2, ["d/b/1", "d/b/2"], ["d/b/2", "d/b/1"])
    assert (c.label, c.correct, c.highest, c.lowest) == ("c", 0, (), ())


@given(rows=tables(), count=st.integers(0, 9))
def test_picks_are_the_ends_of_the_sorted_list(rows, count):
    got = analyse_confidence(rows, count).overall
    values = sorted(r.predicted_confidence for r in rows if r.correct)
    assert [r.predicted_confidence for r in got.highest] == values[::-1][:count]
    assert [r.predicted_confidence for r in got.lowest] == values[:count]


# --- confusion --------------------------------------------------------------------------------------------


def test_confusion_by_pencil():
    got = analyse_confusion(PENCIL)
    assert got.labels == ("dog", "cat", "owl")
    assert got.matrix == ((1, 1, 0), (1, 1, 1), (0, 0, 0))
    assert got.support == (2, 3, 0)
    # One image each: the larger share of its class first, then by the labels' order.
    assert [(p.true, p.predicted, p.count, p.share) for p in got.pairs] == [
        ("dog", "cat", 1, 1 / 2), ("cat", "dog", 1, 1 / 3), ("cat", "owl", 1, 1 / 3),
    ]  # fmt: skip
    assert [(m.first, m.second, m.count, m.first_as_second, m.second_as_first) for m in got.mutual] == [
        ("dog", "cat", 2, 1, 1), ("cat", "owl", 1, 1, 0),
    ]  # fmt: skip
    assert [r.path for r in got.mistakes] == ["d/dog/2", "d/cat/3", "d/cat/2"]


@given(rows=tables(least=1))
def test_confusion_is_scikit_learns(rows):
    got = analyse_confusion(rows)
    true, predicted = [r.true_label for r in rows], [r.predicted_label for r in rows]
    assert list(got.labels) == sorted({*true, *predicted})
    if len(got.labels) > 1:  # scikit-learn warns of a single one
        assert np.array_equal(got.matrix, confusion_matrix(true, predicted, labels=list(got.labels)))
    wrong = Counter((t, p) for t, p in zip(true, predicted, strict=True) if t != p)
    assert {(p.true, p.predicted): p.count for p in got.pairs} == wrong
    assert [p.count for p in got.pairs] == sorted(wrong.values(), reverse=True)
    both = Counter(tuple(sorted(pair)) for pair in wrong.elements())
    assert {(m.first, m.second): m.count for m in got.mutual} == both
    assert all(m.first_as_second + m.second_as_first == m.count for m in got.mutual)
    assert len(got.mistakes) == sum(wrong.values())


def test_view_by_pencil():
    """Three true classes, many others predicted; the two true ones with most mistakes are looked at."""
    rows = [row(f"d/a/{i}", "a", p, 0.5) for i, p in enumerate(["a", "b", "x1", "x1", "x2"])]
    rows += [row(f"d/b/{i}", "b", p, 0.5) for i, p in enumerate(["b", *[f"y{k:02}" for k in range(12)]])]
    rows += [row("d/c/1", "c", "c", 0.5), row("d/c/2", "c", "a", 0.5)]
    got = analyse_confusion(rows).view(2)
    assert got.rows == ("a", "b") and got.left_out == 1
    # Besides these the ten most frequent, first by count, then in order: x1 twice, x2, y00 to y07.
    assert got.columns == ("a", "b", "x1", "x2", *[f"y{k:02}" for k in range(8)])
    assert got.others == 4
    assert got.matrix == ((1, 1, 2, 1, *[0] * 8, 0), (0, 1, 0, 0, *[1] * 8, 4))
    whole = analyse_confusion(rows).view(50)
    assert whole.rows == ("a", "b", "c") and whole.left_out == 0
    assert [sum(line) for line in whole.matrix] == [5, 13, 2]


@given(rows=tables(), count=st.integers(1, 8))
def test_a_view_loses_no_image_of_its_rows(rows, count):
    whole = analyse_confusion(rows)
    view = whole.view(count)
    support = dict(zip(whole.labels, whole.support, strict=True))
    assert [sum(line) for line in view.matrix] == [support[label] for label in view.rows]
    assert len(view.rows) == min(count, sum(n > 0 for n in whole.support))
    assert view.columns[: len(view.rows)] == view.rows


# --- calibration ------------------------------------------------------------------------------------------


def calibration_by_numpy(confidence, correct, bins):
    """ECE, MCE (Guo et al. 2017, equations 3 and 5) and the equal-mass ECE, shortly."""
    confidence, correct = np.array(confidence), np.array(correct, float)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    gaps, weights = [], []
    for b in range(bins):
        if (which == b).any():
            gaps.append(abs(correct[which == b].mean() - confidence[which == b].mean()))
            weights.append((which == b).mean())
    order = np.argsort(confidence, kind="stable")
    chunks = [c for c in np.array_split(order, bins) if len(c)]
    adaptive = sum(len(c) / len(order) * abs(correct[c].mean() - confidence[c].mean()) for c in chunks)
    return np.dot(gaps, weights), max(gaps), adaptive


@settings(max_examples=60)
@given(
    values=st.lists(st.tuples(confidences, st.booleans()), min_size=1, max_size=60, unique_by=lambda v: v[0]),
    bins=st.sampled_from([1, 2, 5, 15, 16, 40]),
)
def test_calibration_is_numpys(values, bins):
    # Off the edges, where the oracle's floats are a matter of rounding.
    values = [(c, r) for c, r in values if abs(c * bins - round(c * bins)) > 1e-9 or c in (0, 1)]
    rows = [row(f"{i}", "a", "a" if right else "b", c, 0.5) for i, (c, right) in enumerate(values)]
    if rows:
        got = analyse_calibration(rows, bins)
        ece, mce, adaptive = calibration_by_numpy(*zip(*values, strict=True), bins)
        assert (got.ece, got.mce, got.adaptive_ece) == pytest.approx((ece, mce, adaptive), abs=1e-12)
        assert sum(b.count for b in got.bins) == got.n == len(rows)


def test_calibration_by_pencil():
    rows = [row(f"{i}", "a", p, c, 0.1) for i, (p, c) in enumerate([
        ("a", 0.2), ("b", 0.2), ("a", 0.4), ("b", 0.9), ("a", 1.0),
    ])]  # fmt: skip
    got = analyse_calibration(rows, 5)
    # 0.2 is in (0, 0.2], 0.4 in (0.2, 0.4]: a bin's upper edge is its own.
    assert [b.count for b in got.bins] == [2, 1, 0, 0, 2]
    assert [b.accuracy and b.accuracy.value for b in got.bins] == [0.5, 1.0, None, None, 0.5]
    assert (got.bins[0].low, got.bins[0].high) == (0.0, 0.2)
    assert got.ece == pytest.approx((2 * 0.3 + 1 * 0.6 + 2 * 0.45) / 5)
    assert got.mce == pytest.approx(0.6)
    assert got.gap == pytest.approx(2.7 / 5 - 3 / 5)  # underconfident, if five images told anything
    assert (got.tendency, got.accuracy.successes, got.confidence) == ("neither", 3, pytest.approx(0.54))
    # One image each; the two of 0.2 count half right.
    assert got.adaptive_ece == pytest.approx((0.3 + 0.3 + 0.6 + 0.9 + 0) / 5)


@pytest.mark.parametrize("bins", [3, 5, 7, 10, 15, 20])
def test_a_confidence_on_an_edge_falls_where_a_pencil_puts_it(bins):
    for k in range(1, bins + 1):
        if (k * 10**6) % bins == 0:
            got = analyse_calibration([row("x", "a", "a", k / bins)], bins)
            assert [b.count for b in got.bins].index(1) == k - 1
    assert analyse_calibration([row("x", "a", "b", 0.0, 0.0)], bins).bins[0].count == 1


def test_the_order_of_the_rows_does_not_matter():
    """Even where most confidences are the same, as those of 1.000000 are."""
    values = [(1.0, True)] * 30 + [(1.0, False)] * 10 + [(0.5, True)] * 3
    rows = [row(f"{i}", "a", "a" if r else "b", c, 0.1) for i, (c, r) in enumerate(values)]
    assert analyse_calibration(rows).adaptive_ece == analyse_calibration(rows[::-1]).adaptive_ece
    assert analyse_calibration(rows).adaptive_ece == pytest.approx((40 * 0.25 + 3 * 0.5) / 43, abs=0.02)


def test_overconfidence_needs_more_than_chance():
    def rows(right, wrong, confidence):
        return [row(f"{i}", "a", "a" if i < right else "b", confidence, 0.1) for i in range(right + wrong)]

    assert analyse_calibration(rows(50, 50, 0.9)).tendency == "overconfident"
    assert analyse_calibration(rows(50, 50, 0.3)).tendency == "underconfident"
    assert analyse_calibration(rows(50, 50, 0.55)).tendency == "neither"
    assert analyse_calibration(rows(50, 50, 0.9)).gap == pytest.approx(0.4)


def test_calibration_needs_a_bin():
    with pytest.raises(PredictionsError) as caught:
        analyse_calibration(PENCIL, 0)
    assert str(caught.value) == "expected at least one bin of confidences, got bins=0"


# --- all of them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[], PENCIL], ids=["nothing", "something"])
def test_everything_becomes_json(rows):
    some = [
        analyse_accuracy(rows),
        analyse_confidence(rows, 2),
        analyse_confusion(rows),
        analyse_confusion(rows).view(3),
        analyse_calibration(rows),
    ]
    for one in some:
        plain = one.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    if rows:
        assert some[0].to_dict()["classes"][0]["top1"]["n"] == 2
        assert some[2].to_dict()["mistakes"][0]["path"] == "d/dog/2"
        assert some[2].to_dict()["mistakes"][0]["top5"] == {"cat": 0.5, "dog": 0.25}


def test_the_rows_are_left_alone_and_twice_gives_the_same():
    before = [replace(r) for r in PENCIL]
    for function in (analyse_accuracy, analyse_confidence, analyse_confusion, analyse_calibration):
        assert function(PENCIL) == function(tuple(PENCIL)) == function(PENCIL)
    assert before == PENCIL


def test_classes_are_ordered_by_index_then_by_name():
    rows = [row(f"{t}{p}", t, p, 0.5, 0.5, true_index=i, predicted_index=j) for (t, i), (p, j) in product(
        [("b", None), ("zebra", 3), ("a", None), ("yak", 12)], repeat=2)]  # fmt: skip
    assert analyse_confusion(rows).labels == ("zebra", "yak", "a", "b")


@pytest.mark.parametrize("module", ["analysis", "statistics", "comparison"])
def test_the_standard_library_is_enough(module):
    """So that a table can be studied where neither torch nor numpy is installed."""
    tree = ast.parse((Path(lrp.study.analysis.__file__).parent / f"{module}.py").read_text())
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {n.split(".")[0] for n in names} <= {"collections", "dataclasses", "math", "sys", "typing", "lrp"}
