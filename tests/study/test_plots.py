"""plots.py and figures.py: what a person reads off a figure is what the numbers say."""

import subprocess
import sys
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from lrp.errors import LrpError
from lrp.pictures import figures
from lrp.study import plots
from lrp.study.analysis import analyse_accuracy, analyse_calibration, analyse_confusion
from lrp.study.comparison import compare_predictions
from lrp.study.predictions import Prediction

TEN = (
    "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
    "gas pump", "golf ball", "parachute",
)  # fmt: skip


def table(labels=TEN, per=6, seed=0, skill=0.7, more=()):
    """`per` images of each class; wrong ones are taken for the next class, or for one of `more`."""
    random = np.random.default_rng(seed)
    rows = []
    for i, true in enumerate(labels):
        for k in range(per):
            right = random.random() < skill
            wrong = [labels[(i + 1) % len(labels)], *more]
            predicted = true if right else wrong[random.integers(len(wrong))]
            sure = float(random.uniform(0.3, 1))
            top5 = {predicted: sure} | ({} if right else {true: (1 - sure) / 2})
            rows.append(
                Prediction(f"d/{true}/{k}", true, predicted, sure, top5[true], predicted == true, top5=top5)
            )
    return rows


ROWS = table()


def every_figure():
    results = {"vgg19": analyse_accuracy(ROWS), "alexnet": analyse_accuracy(table(seed=1, skill=0.4))}
    return {
        "accuracy": plots.plot_accuracy(results),
        "classes": plots.plot_class_accuracy(results),
        "confusion": plots.plot_confusion(analyse_confusion(ROWS)),
        "reliability": plots.plot_reliability(analyse_calibration(ROWS)),
        "comparison": plots.plot_comparison(compare_predictions(ROWS, table(seed=1, skill=0.9))),
    }


def texts(figure):
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]


def bars(axes):
    """(length, colour) of each horizontal bar, from top to bottom."""
    made = [p for p in axes.patches if isinstance(p, matplotlib.patches.Rectangle)]
    return [(p.get_width(), to_hex(p.get_facecolor())) for p in sorted(made, key=lambda p: p.get_y())]


# --- accuracy ---------------------------------------------------------------------------------------------


def test_accuracy_bars_show_the_numbers():
    results = {"vgg19": analyse_accuracy(ROWS), "alexnet": analyse_accuracy(table(seed=1, skill=0.4))}
    figure = plots.plot_accuracy(results, title="On Imagenette")
    axes = figure.axes[0]
    expected = [100 * share.value for one in results.values() for share in (one.top1, one.top5)]
    assert [length for length, _ in bars(axes)] == pytest.approx(expected)
    assert {f"{value:.1f}" for value in expected} <= set(texts(figure))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["vgg19", "alexnet"]
    assert axes.get_xlabel() == "accuracy, % of images" and axes.get_xlim() == (0, 100)
    assert {"On Imagenette", "60 images, with 95 % intervals", "top-1", "top-5"} <= set(texts(figure))
    ends = [
        line.get_xdata()
        for line in axes.lines
        if line.get_color() == figures.INK and len({*line.get_ydata()}) == 1
    ]
    assert ends[0] == pytest.approx([100 * results["vgg19"].top1.low, 100 * results["vgg19"].top1.high])


def test_accuracy_bars_without_top5():
    figure = plots.plot_accuracy({"m": analyse_accuracy([replace(r, top5={}) for r in ROWS])})
    assert len(bars(figure.axes[0])) == 1 and not figure.legends
    assert figure.axes[0].get_xlabel() == "top-1 accuracy, % of images"


def test_accuracy_bars_of_models_on_different_numbers_of_images():
    figure = plots.plot_accuracy({"a": analyse_accuracy(ROWS), "b": analyse_accuracy(ROWS[:17])})
    assert "17 to 60 images, with 95 % intervals" in texts(figure)


def test_class_bars_are_grouped_and_sorted():
    one, two = analyse_accuracy(ROWS), analyse_accuracy(table(seed=1, skill=0.4))
    figure = plots.plot_class_accuracy({"one": one, "two": two})
    axes = figure.axes[0]
    value = {c.label: (c.top1.value, d.top1.value) for c, d in zip(one.classes, two.classes, strict=True)}
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert sorted(labels) == sorted(TEN)
    means = [sum(value[label]) for label in labels]
    assert means == sorted(means, reverse=True)
    assert [length for length, _ in bars(axes)] == pytest.approx(
        [100 * v for label in labels for v in value[label]]
    )
    assert len({colour for _, colour in bars(axes)}) == 2


def test_of_many_classes_those_least_often_right_are_shown():
    labels = [f"class {i}" for i in range(30)]
    got = analyse_accuracy(table(labels))
    figure = plots.plot_class_accuracy({"m": got}, classes=7)
    shown = {t.get_text() for t in figure.axes[0].get_yticklabels()}
    worst = sorted(c.top1.value for c in got.classes)[:7]
    assert sorted(c.top1.value for c in got.classes if c.label in shown) == worst
    assert "the 7 of 30 classes least often right, with 95 % intervals" in texts(figure)


def test_a_class_that_one_model_was_not_given_has_no_bar():
    figure = plots.plot_class_accuracy({"a": analyse_accuracy(ROWS), "b": analyse_accuracy(ROWS[:6])})
    assert sum(length > 0 for length, _ in bars(figure.axes[0])) <= 11


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_every_model_has_a_colour_of_its_own(count):
    figure = plots.plot_class_accuracy({f"m{i}": analyse_accuracy(ROWS[:6]) for i in range(count)})
    assert len({colour for _, colour in bars(figure.axes[0])}) == count


# --- confusion --------------------------------------------------------------------------------------------


def cells(axes):
    """{(row, column): text} of the counts written into the matrix."""
    return {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text()
        for t in axes.texts
        if t.get_text().isdigit()
    }


def test_confusion_counts_and_colours():
    whole = analyse_confusion(ROWS)
    figure = plots.plot_confusion(whole)
    axes = figure.axes[0]
    matrix = np.array(whole.view(50).matrix)
    assert cells(axes) == {tuple(map(int, at)): str(matrix[tuple(at)]) for at in np.argwhere(matrix)}
    wrong, right = (image.get_array() for image in axes.images)
    assert np.array_equal(np.ma.getmaskarray(wrong), np.eye(10) > 0)  # orange beside the diagonal
    assert np.array_equal(np.ma.getmaskarray(right), np.eye(10) == 0)  # blue on it
    shares = 100 * matrix / 6
    assert np.allclose(right.data, shares) and np.allclose(wrong.data, shares)
    assert axes.get_ylabel() == "true class" and axes.get_xlabel() == "predicted class"
    assert [t.get_text() for t in axes.get_yticklabels()] == list(whole.labels)
    deepest = [image.cmap(1.0) for image in axes.images]
    assert deepest[0][0] > deepest[0][2] and deepest[1][2] > deepest[1][0]  # orange, blue
    assert f"60 images, {len(whole.mistakes)} mistakes; coloured by % of the true class" in texts(figure)


def test_text_on_a_deep_cell_is_white():
    axes = plots.plot_confusion(analyse_confusion(table(skill=1.0))).axes[0]
    assert {t.get_color() for t in axes.texts if t.get_text().isdigit()} == {"white"}


def test_of_many_classes_names_stay_and_counts_go():
    labels = [f"class {i}" for i in range(200)]
    figure = plots.plot_confusion(analyse_confusion(table(labels, per=3)))
    axes = figure.axes[0]
    assert cells(axes) == {} and len(axes.get_yticklabels()) == 50
    assert any("the 50 of 200 classes with most mistakes" in t for t in texts(figure))
    assert all(t.get_fontsize() >= 6 for t in axes.get_yticklabels())


def test_predicted_classes_beside_the_true_ones():
    rows = table(TEN[:3], per=40, more=[f"other {i}" for i in range(25)])
    axes = plots.plot_confusion(analyse_confusion(rows)).axes[0]
    columns = [t.get_text() for t in axes.get_xticklabels()]
    assert len(columns) == 14 and columns[:3] == sorted(TEN[:3]) and columns[-1].endswith(" other classes")
    assert sum(int(t) for t in cells(axes).values()) == 120


# --- calibration ------------------------------------------------------------------------------------------


def test_reliability_shows_bins_gaps_and_the_histogram():
    got = analyse_calibration(ROWS, 10)
    figure = plots.plot_reliability(got, title="vgg19")
    axes, below = figure.axes
    filled = [b for b in got.bins if b.count]
    assert [p.get_height() for p in below.patches] == pytest.approx([100 * b.count / 60 for b in filled])
    for lower, upper, b in zip(axes.patches[::2], axes.patches[1::2], filled, strict=True):
        right, sure = 100 * b.accuracy.value, 100 * b.confidence
        assert lower.get_height() == pytest.approx(min(right, sure)) == upper.get_y()
        assert upper.get_y() + upper.get_height() == pytest.approx(max(right, sure))
        orange = upper.get_facecolor()[0] > upper.get_facecolor()[2]
        assert orange == (sure > right)  # surer than right
    title = "\n".join(texts(figure))
    assert "vgg19" in title and f"ECE {100 * got.ece:.1f} %" in title and "60 images" in title
    assert axes.get_ylabel() and below.get_ylabel() == "% of images" and below.get_xlabel() == "confidence, %"


def test_reliability_says_which_way_the_model_is_off():
    rows = [replace(r, predicted_confidence=0.99) for r in table(per=20, skill=0.4)]
    assert any(
        t.endswith(": overconfident") for t in texts(plots.plot_reliability(analyse_calibration(rows)))
    )


# --- comparison -------------------------------------------------------------------------------------------


def test_comparison_shows_every_image_once():
    got = compare_predictions(ROWS, table(seed=1, skill=0.9), names=("before.csv", "after.csv"))
    figure = plots.plot_comparison(got, title="Imagenette")
    scatter = figure.axes[0]
    made = {c.get_label().split(" (")[0]: c for c in scatter.collections}
    o = got.overall
    counts = {k: len(c.get_offsets()) for k, c in made.items()}
    assert counts == {
        "right in both": o.both_right, "wrong in both": o.both_wrong,
        "lost: right, then wrong": o.lost, "gained: wrong, then right": o.gained,
    }  # fmt: skip
    points = {tuple(p) for p in np.round(made["gained: wrong, then right"].get_offsets(), 9)}
    assert points == {
        tuple(np.round((100 * t.a.true_confidence, 100 * t.b.true_confidence), 9)) for t in got.gained
    }
    assert to_hex(made["gained: wrong, then right"].get_facecolor()[0]) == figures.BLUE
    assert to_hex(made["lost: right, then wrong"].get_facecolor()[0]) == figures.ORANGE
    assert "before.csv" in scatter.get_xlabel() and "after.csv" in scatter.get_ylabel()
    assert "%" in scatter.get_xlabel() and "%" in scatter.get_ylabel()
    said = "\n".join(texts(figure))
    assert f"{100 * o.difference:+.1f} points ({100 * o.low:+.1f} to {100 * o.high:+.1f})" in said
    assert f"{o.gained} gained, {o.lost} lost, McNemar p" in said and "Imagenette" in said
    lengths = [length for length, _ in bars(figure.axes[1])]
    assert lengths == pytest.approx([100 * o.a.value, 100 * o.b.value])


def test_comparison_of_different_class_sets_shows_both_accuracies():
    got = compare_predictions(table(more=["sock", "shoe"]), table(seed=1))
    figure = plots.plot_comparison(got)
    r = got.restricted.overall
    lengths = [length for length, _ in bars(figure.axes[1])]
    assert lengths[2:] == pytest.approx([100 * r.a.value, 100 * r.b.value])
    assert any(t.startswith("10 shared classes: ") for t in texts(figure))


# --- what all figures share -------------------------------------------------------------------------------


def test_all_axes_are_labelled_and_no_word_is_cut_off(tmp_path):
    long = "a very long class name, such as those that WordNet gives, with commas, synonyms and no end"
    labels = (long, *TEN[:3])
    results = {"a model of a very long name / with.a_path": analyse_accuracy(table(labels))}
    some = [
        plots.plot_accuracy(results), plots.plot_class_accuracy(results),
        plots.plot_confusion(analyse_confusion(table(labels))), *every_figure().values(),
    ]  # fmt: skip
    for number, figure in enumerate(some):
        plots.save_figure(figure, tmp_path / f"{number}.png")
        # White all around: nothing touches the edge.
        pixels = np.asarray(Image.open(tmp_path / f"{number}.png").convert("L"))
        edge = np.concatenate(
            [pixels[:4].ravel(), pixels[-4:].ravel(), pixels[:, :4].ravel(), pixels[:, -4:].ravel()]
        )
        assert edge.min() > 250
    words = " ".join(t.get_text().replace("\n", " ") for t in some[1].axes[0].get_yticklabels())
    assert long in words


def test_words_are_wrapped_at_their_joints():
    assert (
        figures.figure_text("runs/2024/vgg19_results_original.csv", 14)
        == "runs/2024/\nvgg19_results_\noriginal.csv"
    )
    assert figures.figure_text("x" * 25, 10) == "\n".join(["x" * 10, "x" * 10, "x" * 5])
    assert figures.figure_text("English springer", 30) == "English springer"
    assert figures.figure_text(" a\n b\t\x00 $5 and $6\udce9", 40) == r"a b ? \$5 and \$6?"
    assert figures.figure_text("") == ""


@pytest.mark.parametrize("name", ["$x_1$ $", "日本語", "bad\udce9", "a\nb", "", "%d {} \\alpha", "x" * 300])
def test_any_class_name_can_be_drawn(name, tmp_path):
    rows = [
        replace(r, true_label=(r.true_label and name) or "-")
        for r in table((name or "-", "b"), per=2, skill=0)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("png", "svg"):
            plots.save_figure(
                plots.plot_class_accuracy({name: analyse_accuracy(rows)}), tmp_path / f"a.{kind}"
            )
        plots.save_figure(plots.plot_confusion(analyse_confusion(rows)), tmp_path / "b.svg")


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for kind in ("png", "svg"):
        made = []
        for number in (1, 2):
            place = tmp_path / f"{number}.{kind}"
            plots.save_figure(every_figure()["comparison"], place)
            made.append(place.read_bytes())
        assert made[0] == made[1]
    assert b"<dc:date>" not in made[0] and made[0].startswith(b"<?xml")


def test_nothing_global_is_changed_and_a_users_settings_do_not_matter(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save_figure(every_figure()["accuracy"], tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context(
        {"axes.facecolor": "black", "font.size": 30, "savefig.dpi": 20, "lines.linewidth": 9}
    ):
        plots.save_figure(every_figure()["accuracy"], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_pyplot_and_no_matplotlib_before_it_is_needed():
    code = (
        "import sys, lrp.study.plots; early = 'matplotlib' in sys.modules; from lrp.study.analysis import analyse_accuracy; "
        "from lrp.study.predictions import Prediction; "
        "lrp.study.plots.plot_accuracy({'m': analyse_accuracy([Prediction('p', 'a', 'a', 1.0, 1.0, True)])}); "
        "print(early, 'matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.png.jpg"])
def test_other_kinds_of_file_are_refused(name, tmp_path):
    with pytest.raises(LrpError) as caught:
        plots.save_figure(every_figure()["accuracy"], tmp_path / name)
    suffix = {"plot.pdf": ".pdf", "plot": "", "plot.png.jpg": ".jpg"}[name]
    assert (
        str(caught.value)
        == f"{tmp_path / name}: expected a plot's name to end in .png or .svg, got {suffix!r}"
    )


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    figure, place = every_figure()["accuracy"], tmp_path / "a.PNG"
    place.write_bytes(b"older")

    def breaks(self, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(figure), "savefig", breaks)
    with pytest.raises(LrpError) as caught:
        plots.save_figure(figure, place)
    assert str(caught.value) == f"{place}: cannot be written: No space left on device"
    assert place.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["a.PNG"]
    monkeypatch.undo()
    plots.save_figure(figure, place)
    assert Image.open(place).format == "PNG" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(LrpError, match="cannot be written: No such file or directory"):
        plots.save_figure(figure, tmp_path / "missing" / "a.svg")


@pytest.mark.parametrize("make, what", [
    (lambda: plots.plot_accuracy({}), "at least one image that counts"),
    (lambda: plots.plot_accuracy({"m": analyse_accuracy([])}), "at least one image that counts"),
    (lambda: plots.plot_class_accuracy({"m": analyse_accuracy([])}), "at least one image that counts"),
    (lambda: plots.plot_confusion(analyse_confusion([])), "at least one image"),
    (lambda: plots.plot_reliability(analyse_calibration([])), "at least one image"),
    (lambda: plots.plot_comparison(compare_predictions([], [])), "at least one image that counts in both files"),
])  # fmt: skip
def test_nothing_to_plot_is_said(make, what):
    with pytest.raises(LrpError) as caught:
        make()
    assert str(caught.value) == f"expected {what} to plot, got none"


def test_without_matplotlib_one_sentence(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LrpError) as caught:
        plots.plot_accuracy({"m": analyse_accuracy(ROWS)})
    assert str(caught.value) == "this needs matplotlib: pip install 'lrp[study]'."


def luminance(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear


@pytest.mark.parametrize(
    "pair", [(figures.BLUE, figures.ORANGE), (figures.BLUE, figures.GREY), ("#f3c496", "#6fa6d6")]
)
def test_right_and_wrong_are_told_apart_by_the_colour_blind(pair):
    """Machado, Oliveira, Fernandes 2009, full deficiency: protanopia, deuteranopia, tritanopia, in linear RGB."""
    kinds = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
    for kind in kinds:
        seen = [(np.array(kind) @ luminance(c)).clip(0, 1) ** (1 / 2.2) for c in pair]
        assert np.abs(seen[0] - seen[1]).max() > 0.15
