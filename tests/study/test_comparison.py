"""comparison.py by pencil, and against a slow recount; every sentence it says is read here."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrp.errors import PredictionsError
from lrp.study.comparison import compare_predictions
from lrp.study.predictions import Prediction

WORLD = ("tench", "springer", "cassette", "sock", "shoe", "hat", "coat", "bag", "box")
"""What a model of many classes knows; one of three knows just the first three."""


def row(path, predicted, confidence=0.5, *, true=None, ranked=(), known=WORLD, **more):
    """A row whose true class is its folder; `ranked` are the next likely ones after the predicted."""
    true = path.split("/")[-2] if true is None else true
    top = {label: confidence / 2**i for i, label in enumerate((predicted, *ranked))}
    return Prediction(
        path, true, predicted, confidence, top.get(true, 0.01), true == predicted, top5=top,
        true_index=known.index(true), predicted_index=known.index(predicted), **more,
    )  # fmt: skip


def lean(rows):
    """As read from a file of six columns."""
    return [replace(r, top5={}, true_index=None, predicted_index=None) for r in rows]


A = [
    row("d/tench/1", "tench", 0.9, ranked=["sock", "shoe", "hat", "coat"]),
    row("d/tench/2", "sock", 0.6, ranked=["tench", "springer", "hat", "coat"]),
    row("d/springer/1", "shoe", 0.7, ranked=["hat", "coat", "bag", "box"]),
    row("d/springer/2", "springer", 0.4, ranked=["sock", "shoe", "hat", "coat"]),
    row("d/cassette/1", "hat", 0.5, ranked=["tench", "cassette", "sock", "shoe"]),
]
THREE = ("cassette", "springer", "tench")
B = [
    row("d/tench/1", "tench", 0.8, ranked=["springer", "cassette"], known=THREE),
    row("d/tench/2", "tench", 0.7, ranked=["springer", "cassette"], known=THREE),
    row("d/springer/1", "springer", 0.6, ranked=["tench", "cassette"], known=THREE),
    row("d/springer/2", "tench", 0.7, ranked=["springer", "cassette"], known=THREE),
    row("d/cassette/1", "tench", 0.5, ranked=["springer", "cassette"], known=THREE),
]


def paths(twins):
    return [twin.a.path for twin in twins]


def test_by_pencil():
    got = compare_predictions(A, B)
    assert (got.matched, got.only_a, got.only_b, got.left_out, got.folders) == (5, 0, 0, 0, None)
    o = got.overall
    assert (o.n, o.both_right, o.gained, o.lost, o.both_wrong) == (5, 1, 2, 1, 1)
    assert (o.a.successes, o.b.successes, o.difference) == (2, 3, pytest.approx(0.2))
    # The true class's confidence: 0.9 to 0.8, 0.3 to 0.7, 0.01 to 0.6, 0.4 to 0.35, 0.125 to 0.125.
    assert paths(got.rose) == ["d/springer/1", "d/tench/2"]
    assert paths(got.fell) == ["d/tench/1", "d/springer/2"]
    assert [round(t.change, 6) for t in got.rose + got.fell] == [0.59, 0.4, -0.1, -0.05]
    assert paths(got.gained) == ["d/springer/1", "d/tench/2"] and paths(got.lost) == ["d/springer/2"]
    assert [(c.label, c.n, c.a.successes, c.b.successes, c.gained, c.lost) for c in got.classes] == [
        ("tench", 2, 1, 2, 1, 0), ("springer", 2, 1, 1, 1, 1), ("cassette", 1, 0, 0, 0, 0),
    ]  # fmt: skip
    assert got.seen == (9, 3)


def test_different_class_sets_by_pencil():
    got = compare_predictions(A, B, names=("original.csv", "retrained.csv"))
    r = got.restricted
    assert r.classes == ("cassette", "springer", "tench")
    # Among the three A says: tench, tench, nothing, springer, tench. B what it said anyway.
    assert (r.undecided_a, r.undecided_b) == (1, 0)
    assert (r.overall.a.successes, r.overall.b.successes) == (3, 3)
    assert (r.overall.both_right, r.overall.gained, r.overall.lost, r.overall.both_wrong) == (2, 1, 1, 1)
    assert got.notes == (
        "The class sets differ: original.csv shows 9 classes, retrained.csv 3, 3 of them in both. Fewer classes "
        "are easier to choose among, and confidences are shares among different classes; so compare the "
        "accuracies restricted to the shared classes.",
        "Counted as undecided and wrong: 1 image of original.csv where no shared class is among the likeliest "
        "that the file knows; `lrp evaluate --classes data` gives exact numbers.",
    )


def test_restricted_from_six_columns():
    """Only the prediction itself is known: what left the shared classes is undecided."""
    got = compare_predictions(lean(A), lean(B))
    assert got.restricted.classes == THREE and got.seen == (6, 3)  # A's seen are fewer, without its five
    assert (got.restricted.undecided_a, got.restricted.overall.a.successes) == (3, 2)


def test_two_models_of_the_same_classes_do_not_differ_by_what_they_happen_to_show():
    other = [replace(r, top5={r.predicted_label: 0.5, "box": 0.2}) for r in A]
    got = compare_predictions(A[:3], other[:3])
    assert got.seen[0] != got.seen[1] and got.restricted is None and got.notes == ()


def test_class_sets_differ_by_index_by_restriction_or_by_staying_within_the_data():
    few = A[:3]  # shows other classes than A, and leaves those of the data
    assert compare_predictions(few, A).restricted is None
    moved = [replace(r, predicted_index=r.predicted_index + 1, true_index=r.true_index + 1) for r in A]
    assert compare_predictions(few, moved).restricted is not None
    assert compare_predictions(few, [replace(r, restricted=True) for r in A]).restricted is not None
    assert compare_predictions(lean(A), lean(B)).restricted is not None
    # One contradiction is enough: a class of another index, or an index of another class.
    assert (
        compare_predictions(few, [replace(A[0], true_index=77, predicted_index=77), *A[1:]]).restricted
        is not None
    )
    box = [replace(A[2], predicted_label="scarf", top5={"scarf": 0.5})]  # at the shoe's index
    assert compare_predictions(few, [*A[:2], *box, *A[3:]]).restricted is not None
    # Another index, but the very same classes: an other order of outputs is no other choice.
    renumbered = [
        replace(
            r, true_index=THREE.index(r.true_label) + 7, predicted_index=THREE.index(r.predicted_label) + 7
        )
        for r in B
    ]
    assert compare_predictions(B, renumbered).restricted is None
    assert compare_predictions(B, [replace(r, restricted=True) for r in renumbered]).restricted is None


# --- which images are the same ----------------------------------------------------------------------------


def moved(rows, old, new):
    return [replace(r, path=new + r.path.removeprefix(old)) for r in rows]


@pytest.mark.parametrize("folder", ["", "/mnt/data/", "./d/", "../x/d/", "e/f/", "tench/"])
def test_the_data_may_have_moved(folder):
    got = compare_predictions(A, moved(B, "d/", folder))
    assert got.matched == 5 and got.overall == compare_predictions(A, B).overall
    assert compare_predictions(moved(B, "d/", folder), A).matched == 5
    assert got.twins[0].b.path == folder + "tench/1"


def test_the_folders_are_named():
    got = compare_predictions(A, moved(B, "d/", "/mnt/e/"), names=("a.csv", "b.csv"))
    assert got.folders == ("d/", "/mnt/e/")
    assert (
        got.notes[0]
        == "The paths differ: what is below 'd/' in a.csv was matched to what is below '/mnt/e/' in b.csv."
    )


def test_a_file_may_hold_more_and_both_may_miss_some():
    more = [*B, row("d/tench/9", "tench", known=THREE), row("d/tench/8", "tench", known=THREE)]
    got = compare_predictions(A[:4], more)
    assert (got.matched, got.only_a, got.only_b) == (4, 0, 3)
    assert compare_predictions(A[:4], moved(more, "d/", "e/")).matched == 4
    assert compare_predictions(moved(more, "d/", "e/"), A[:4]).matched == 4
    partly = compare_predictions(A[:4], B[1:])
    assert (partly.matched, partly.only_a, partly.only_b) == (3, 1, 1)
    assert partly.notes[0] == "1 image only in A and 1 image only in B are left out."


def test_the_longest_common_rest_decides():
    """Both B's val and train would do; but with val, the rest of the path is longer."""
    a = moved(A[:2], "d/", "old/val/")
    b = moved(B[:2], "d/", "new/val/") + moved(B[:2], "d/", "new/train/")
    got = compare_predictions(a, b)
    assert got.folders == ("old/", "new/") and [t.b.path for t in got.twins] == [
        "new/val/tench/1",
        "new/val/tench/2",
    ]


def test_one_folder_stands_for_one_folder():
    """Equal file names in other folders are no matches."""
    with pytest.raises(PredictionsError):
        compare_predictions(A[:3], [*moved(B[:1], "d/", "x/"), *moved(B[1:3], "d/", "y/")])


def test_what_cannot_be_matched_is_said():
    with pytest.raises(PredictionsError) as caught:
        compare_predictions(A[:1], moved(B[:1], "d/tench/1", "d/tench/2"), names=("a.csv", "b.csv"))
    assert str(caught.value) == (
        "expected images that are in both files, got a.csv with 'd/tench/1' and b.csv with 'd/tench/2', which are "
        "not the same below any folder; evaluate both models on the same data."
    )
    with pytest.raises(PredictionsError) as caught:
        compare_predictions(
            A[:2], moved(B[:2], "d/", "x/val/") + moved(B[:2], "d/", "x/train/"), names=("a.csv", "b.csv")
        )
    assert str(caught.value) == (
        "a.csv: its images could be those of b.csv below 'x/val/' or 'x/train/'; evaluate both models on the same "
        "folder."
    )
    with pytest.raises(PredictionsError) as caught:
        compare_predictions(A, [*B, B[1]], names=("a.csv", "b.csv"))
    assert str(caught.value) == "b.csv: expected one row per image, got two of 'd/tench/2'; remove one."
    with pytest.raises(
        PredictionsError, match=r"^a\.csv: expected one row per image, got two of 'd/tench/1'"
    ):
        compare_predictions([*A, A[0]], B, names=("a.csv", "b.csv"))


def test_one_class_of_two_names_is_refused():
    renamed = [replace(r, true_label="n01440764") if r.true_label == "tench" else r for r in B]
    with pytest.raises(PredictionsError) as caught:
        compare_predictions(A, renamed, names=("a.csv", "b.csv"))
    assert str(caught.value) == (
        "d/tench/1: expected the same true class in both files, got 'tench' in a.csv and 'n01440764' in b.csv "
        "(2 of 5 images differ); evaluate both models with the same class names."
    )


def test_only_what_counts_in_both_is_compared():
    a = [replace(A[0], status="unreadable", error="x", correct=None), *A[1:]]
    b = [*B[:4], replace(B[4], status="unmatched", true_label="", correct=None)]
    got = compare_predictions(a, b)
    assert (got.matched, got.left_out, got.overall.n) == (5, 2, 3)
    assert got.notes[0] == (
        "2 images in both files could not be read, or have no class of the model, in one of them: left out."
    )
    with pytest.raises(PredictionsError, match="got no correct"):
        compare_predictions([replace(A[0], correct=None), *A[1:]], B)


def test_a_confidence_that_is_not_known_did_not_move():
    got = compare_predictions(A, [replace(r, true_confidence=None) for r in B[:1]] + B[1:])
    assert got.twins[0].change is None and paths(got.fell) == ["d/springer/2"]
    assert compare_predictions([replace(r, true_confidence=None) for r in A], B).rose == ()


def test_of_nothing_there_are_no_numbers():
    for a, b in ([], []), (A, []), ([], B):
        got = compare_predictions(a, b)
        assert got.matched == got.overall.n == 0 and got.overall.p is None
        assert got.rose == got.fell == got.gained == got.lost == got.classes == ()
        json.dumps(got.to_dict(), allow_nan=False)


# --- all of it --------------------------------------------------------------------------------------------


@given(
    table=st.lists(
        st.tuples(*[st.sampled_from(THREE)] * 3, *[st.integers(0, 10**6).map(lambda n: n / 10**6)] * 2),
        max_size=40,
    )
)
def test_against_a_recount(table):
    a, b = [], []
    for i, (true, before, after, x, y) in enumerate(table):
        a.append(Prediction(f"d/{true}/{i}", true, before, 0.5, x, true == before))
        b.append(Prediction(f"d/{true}/{i}", true, after, 0.5, y, true == after))
    got = compare_predictions(a, b[::-1], count=3)
    won = [i for i, (t, p, q, *_) in enumerate(table) if p != t == q]
    gone = [i for i, (t, p, q, *_) in enumerate(table) if p == t != q]
    number = lambda twin: int(twin.a.path.split("/")[-1])  # noqa: E731
    assert sorted(map(number, got.gained)) == won and sorted(map(number, got.lost)) == gone
    assert (got.overall.gained, got.overall.lost) == (len(won), len(gone))
    assert sum(c.gained for c in got.classes) == len(won) and sum(c.n for c in got.classes) == len(table)
    changes = sorted(y - x for *_, x, y in table)
    assert [t.change for t in got.rose] == [c for c in changes[::-1] if c > 0][:3]
    assert [t.change for t in got.fell] == [c for c in changes if c < 0][:3]


def test_the_other_way_round_it_is_the_opposite():
    one, other = compare_predictions(A, B), compare_predictions(B, A)
    assert one.overall.difference == -other.overall.difference
    assert (one.overall.low, one.overall.high) == pytest.approx((-other.overall.high, -other.overall.low))
    assert one.overall.p == other.overall.p and paths(one.gained) == paths(other.lost)
    assert paths(one.rose) == paths(other.fell)


def test_it_becomes_json():
    plain = compare_predictions(A, B).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert "twins" not in plain and plain["overall"]["gained"] == 2
    assert [t["a"]["path"] for t in plain["gained"]] == ["d/springer/1", "d/tench/2"]
    assert plain["rose"][0]["change"] == pytest.approx(0.59) and len(plain["notes"]) == 2
    assert plain["restricted"]["overall"]["n"] == 5
