"""Numbers -> matplotlib figures, through its object interface: no window, no pyplot, no change of global state.

Where colours have a meaning, blue is right and orange is wrong; the two can be distinguished with every common kind of
colour blindness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lrp.errors import LrpError
from lrp.pictures.figures import (
    BLUE,
    FAINT,
    GREY,
    INK,
    ORANGE,
    PALE,
    figure_style,
    figure_text,
    new_figure,
    percent_axis,
    set_title,
)
from lrp.pictures.figures import save_figure as save_figure
from lrp.study.analysis import Accuracy, Calibration, Confusion
from lrp.study.comparison import Comparison, Twin
from lrp.study.statistics import Paired, Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One for each model, different in hue and in lightness; from Okabe and Ito's palette.
_MODELS = (BLUE, "#e69f00", "#56b4e9", ORANGE, "#7f7f7f", "#00455e", "#cc79a7", "#c8b400")
_ORANGES, _BLUES = ("#ffffff", "#f6bb80", "#a84c00"), ("#ffffff", "#8ab8e0", "#0b3c6f")


# --- accuracy ---------------------------------------------------------------------------------------------


def plot_accuracy(results: Mapping[str, Accuracy], *, title: str = "Accuracy") -> Figure:
    """Bars of top-1 and top-5 accuracy of each model, with 95 % intervals.

    Raises:
        LrpError: no model, or none with an image that counts.
    """
    _expect(any(one.counted for one in results.values()), "at least one image that counts")
    top5 = any(one.top5 for one in results.values())
    with figure_style():
        figure = new_figure(7.2, 1.5 + len(results) * (0.56 if top5 else 0.36))
        axes = figure.add_subplot()
        for row, one in enumerate(results.values()):
            if top5:
                _bar(axes, row - 0.19, 0.36, one.top1, BLUE, "top-1" if row == 0 else None, number=True)
                _bar(axes, row + 0.19, 0.36, one.top5, PALE, "top-5" if row == 0 else None, number=True)
            else:
                _bar(axes, row, 0.6, one.top1, BLUE, None, number=True)
        _names(axes, list(results))
        percent_axis(axes, "accuracy, % of images" if top5 else "top-1 accuracy, % of images")
        counts = sorted({one.counted for one in results.values()})
        images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        set_title(axes, title, f"{images} images, with 95 % intervals")
        if top5:
            _legend(figure)
    return figure


def plot_class_accuracy(
    results: Mapping[str, Accuracy], *, title: str = "Accuracy per class", classes: int = 40
) -> Figure:
    """Top-1 accuracy of each model on each class, with 95 % intervals; classes with the highest accuracy at the top.

    If there are more than `classes` classes, those with the lowest accuracy are shown.

    Raises:
        LrpError: no model, or none with an image that counts.
    """
    shares: dict[str, dict[str, Share]] = {}
    for name, one in results.items():
        for entry in one.classes:
            if entry.top1:
                shares.setdefault(entry.label, {})[name] = entry.top1

    _expect(shares, "at least one image that counts")

    def right(label: str) -> float:
        return sum(share.value for share in shares[label].values()) / len(shares[label])

    ranked = sorted(shares, key=lambda label: -right(label))
    shown = ranked[-classes:]
    thick = 0.8 / len(results)
    with figure_style():
        colours = _colours(len(results))
        figure = new_figure(7.2, 1.5 + len(shown) * max(0.26, 0.13 * (len(results) + 1)))
        axes = figure.add_subplot()
        for row, label in enumerate(shown):
            for number, name in enumerate(results):
                at = row - 0.4 + (number + 0.5) * thick
                value, named = shares[label].get(name), name if row == 0 else None
                _bar(axes, at, 0.9 * thick, value, colours[number], named)
        _names(axes, shown)
        percent_axis(axes, "top-1 accuracy, % of the class's images")
        note = "most often right first, with 95 % intervals"
        if len(shown) < len(ranked):
            note = f"the {len(shown)} of {len(ranked)} classes least often right, with 95 % intervals"
        set_title(axes, title, note)
        if len(results) > 1:
            _legend(figure)
    return figure


def _bar(
    axes: Axes,
    at: float,
    thick: float,
    value: Share | None,
    colour: str,
    label: str | None,
    number: bool = False,
) -> None:
    if value is None:
        axes.barh(at, 0, thick, color=colour, label=label and figure_text(label))
        return
    middle, low, high = 100 * value.value, 100 * value.low, 100 * value.high
    axes.barh(at, middle, thick, color=colour, label=label and figure_text(label))
    axes.plot([low, high], [at, at], color="white", linewidth=2.6, alpha=0.7, solid_capstyle="butt")
    axes.plot([low, high], [at, at], color=INK, linewidth=1, solid_capstyle="butt")
    for end in (low, high):
        axes.plot([end, end], [at - 0.22 * thick, at + 0.22 * thick], color=INK, linewidth=1)
    if number:
        axes.annotate(
            f"{middle:.1f}", (high, at), xytext=(4, 0), textcoords="offset points", va="center", color=INK,
            annotation_clip=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def _colours(count: int) -> list[Any]:
    if count <= len(_MODELS):
        return list(_MODELS[:count])
    from matplotlib import colormaps

    return [colormaps["cividis"](i / (count - 1)) for i in range(count)]


# --- confusion --------------------------------------------------------------------------------------------


def plot_confusion(
    confusion: Confusion, *, title: str = "What is taken for what", classes: int = 50
) -> Figure:
    """True classes as rows, predicted classes as columns: blue on the diagonal (right), orange elsewhere (wrong).

    The colour shows the share of the true class's images. Counts are written in the cells if there is enough space.
    If there are more than `classes` true classes, those with most mistakes are shown; see `ConfusionView`.

    Raises:
        LrpError: no image.
    """
    _expect(confusion.labels, "at least one image")
    import numpy as np

    view = confusion.view(classes)
    counts = np.array(view.matrix)
    rows, wide = counts.shape
    columns = [*view.columns, *([f"{view.others} other classes"] if view.others else [])]
    shares = 100 * counts / counts.sum(1, keepdims=True)
    diagonal = np.eye(rows, wide) > 0
    top = float(shares[~diagonal].max(initial=0)) or 100.0
    written = max(rows, wide) <= 25
    # In inches. The limit keeps the picture of a thousand classes small enough to open; zoom the SVG to read the names.
    cell = min(1.2, max(0.46, 3.6 / rows)) if written else min(0.2, 24 / wide)
    size = 8.5 if written else 32 * cell
    with figure_style():
        colours = [_scale(*shades) for shades in (_ORANGES, _BLUES)]
        figure = new_figure(wide * cell + 3.2, rows * cell + 2.4)
        axes = figure.add_subplot()
        pictures = [
            axes.imshow(np.ma.masked_where(hidden, shares), cmap=scale, vmin=0, vmax=end)
            for hidden, scale, end in zip((diagonal, ~diagonal), colours, (top, 100), strict=True)
        ]
        if written:
            for (i, j), count in np.ndenumerate(counts):
                deep = shares[i, j] / (100 if i == j else top) > (0.7 if i == j else 0.85)
                if count:
                    axes.text(
                        j, i, f"{count}", ha="center", va="center", color="white" if deep else INK,
                        fontsize=8.5 if count < 1000 else 6.5,
                    )  # fmt: skip
        axes.set_yticks(range(rows), [figure_text(name) for name in view.rows], fontsize=size)
        slant: dict[str, Any] = (
            {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if written else {"rotation": 90}
        )
        axes.set_xticks(range(wide), [figure_text(name) for name in columns], fontsize=size, **slant)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_xticks(np.arange(wide + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#e4e4e4", linewidth=0.5)
        axes.tick_params(which="both", length=0)
        for spine in axes.spines.values():
            spine.set(visible=True, color="#cccccc")
        if wide > rows:
            axes.axvline(rows - 0.5, color=FAINT, linewidth=1)
        for picture, label, low in zip(pictures, ("wrong", "right"), (0, 0.53), strict=True):
            # Each colour bar is half as high as the matrix and has a fixed width in inches.
            place = axes.inset_axes((1 + 0.15 / (wide * cell), low, 0.14 / (wide * cell), 0.47))
            bar = figure.colorbar(picture, cax=place)
            bar.set_label(f"{label}, %", fontsize=8.5)
            bar.outline.set(color="#cccccc", linewidth=0.5)
        total, mistakes = sum(confusion.support), len(confusion.mistakes)
        note = f"{total:,} images, {mistakes:,} mistakes; coloured by % of the true class"
        if view.left_out:
            note += f"; the {rows} of {rows + view.left_out} classes with most mistakes"
        set_title(axes, title, note)
    return figure


def _scale(*shades: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("lrp", shades)  # transparent where masked


# --- calibration ------------------------------------------------------------------------------------------


def plot_reliability(calibration: Calibration, *, title: str = "Reliability") -> Figure:
    """Accuracy at each confidence, with 95 % intervals; below it a histogram of the confidences.

    Raises:
        LrpError: no image.
    """
    _expect(calibration.n, "at least one image")
    bins = [b for b in calibration.bins if b.accuracy]
    with figure_style():
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        figure = new_figure(5.4, 6.2)
        grid = figure.add_gridspec(2, 1, height_ratios=[3.4, 1])
        axes = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=axes)
        for b in bins:
            assert b.accuracy and b.confidence is not None
            left, width = 100 * b.low, 100 * (b.high - b.low)
            right, sure = 100 * b.accuracy.value, 100 * b.confidence
            common, gap = min(right, sure), abs(right - sure)
            box: dict[str, Any] = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
            axes.bar(left, common, color=PALE, **box)
            axes.bar(left, gap, bottom=common, color="#f3c496" if sure > right else "#6fa6d6", **box)
            axes.plot([sure, sure], [100 * b.accuracy.low, 100 * b.accuracy.high], color=INK, linewidth=1)
            axes.plot(sure, right, "o", color=INK, markersize=3.5)
            below.bar(left, 100 * b.count / calibration.n, width, align="edge", color=GREY, edgecolor="white")
        axes.plot([0, 100], [0, 100], "--", color=FAINT, linewidth=1)
        axes.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, % of the bin's images")
        axes.tick_params(labelbottom=False)
        marks = [
            Line2D([], [], color=INK, marker="o", markersize=3.5, label="accuracy, 95 % interval"),
            Patch(color="#f3c496", label="gap: surer than right"),
            Line2D([], [], color=FAINT, linestyle="--", linewidth=1, label="as right as sure"),
            Patch(color="#6fa6d6", label="gap: less sure than right"),
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8)
        below.set(xlabel="confidence, %", ylabel="% of images")
        for one in (axes, below):
            one.grid(axis="y")
        set_title(axes, title, _verdict(calibration))
    return figure


def _verdict(c: Calibration) -> str:
    assert c.accuracy and c.confidence is not None and c.ece is not None and c.mce is not None
    tendency = f": {c.tendency}" if c.tendency != "neither" else ""
    return (
        f"ECE {100 * c.ece:.1f} %, largest gap {100 * c.mce:.1f} %, {c.n:,} images\n"
        f"mean confidence {100 * c.confidence:.1f} %, accuracy {c.accuracy}{tendency}"
    )


# --- comparison -------------------------------------------------------------------------------------------


def plot_comparison(comparison: Comparison, *, title: str = "") -> Figure:
    """Scatter plot of the true class's confidence in A and B, one point per image; and both accuracies.

    Raises:
        LrpError: no image counts in both files.
    """
    _expect(comparison.twins, "at least one image that counts in both files")
    a, b = (figure_text(name, 48) for name in comparison.names)
    groups: list[tuple[str, Sequence[Twin], dict[str, Any]]] = [
        ("right in both", _where(comparison, True, True), {"color": "#c4c4c4", "marker": ".", "s": 14}),
        ("wrong in both", _where(comparison, False, False), {"color": "#7a7a7a", "marker": "x", "s": 12}),
        ("lost: right, then wrong", comparison.lost, {"color": ORANGE, "marker": "v", "s": 24}),
        ("gained: wrong, then right", comparison.gained, {"color": BLUE, "marker": "^", "s": 24}),
    ]
    blocks = [("", comparison.overall)]
    if comparison.restricted:
        shared = f"{len(comparison.restricted.classes)} shared classes: "
        blocks = [("", comparison.overall), (shared, comparison.restricted.overall)]
    with figure_style():
        figure = new_figure(10.4, 5.2)
        grid = figure.add_gridspec(1, 2, width_ratios=[1.25, 1])
        axes = figure.add_subplot(grid[0])
        for label, twins, marks in groups:
            known = [t for t in twins if t.change is not None]
            points = [(100 * (t.a.true_confidence or 0), 100 * (t.b.true_confidence or 0)) for t in known]
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.scatter(
                x, y, label=f"{label} ({len(twins):,})", linewidths=0.8, clip_on=False,
                rasterized=len(points) > 2000, **marks,
            )  # fmt: skip
        axes.plot([0, 100], [0, 100], "--", color=FAINT, linewidth=1, zorder=0)
        axes.set(
            xlim=(0, 100), ylim=(0, 100), aspect="equal", anchor="N",
            xlabel=f"confidence in the true class, %\n{a}", ylabel=f"{b}\nconfidence in the true class, %",
        )  # fmt: skip
        set_title(axes, "Confidence in the true class", "each mark one image")
        column = grid[1].subgridspec(2, 1, height_ratios=[len(blocks), 2.7 - len(blocks)])
        _accuracies(figure.add_subplot(column[0]), comparison, blocks)
        corner = figure.add_subplot(column[1])
        corner.set_axis_off()
        corner.legend(*axes.get_legend_handles_labels(), loc="upper left", reverse=True, borderaxespad=0)
        if title:
            figure.suptitle(figure_text(title, 110), x=0.01, ha="left", fontsize=11)
    return figure


def _where(comparison: Comparison, a: bool, b: bool) -> list[Twin]:
    return [t for t in comparison.twins if (bool(t.a.correct), bool(t.b.correct)) == (a, b)]


def _accuracies(axes: Axes, comparison: Comparison, blocks: Sequence[tuple[str, Paired]]) -> None:
    names, row = [], 0.0
    for label, pair in blocks:
        for name, value, colour in zip(comparison.names, (pair.a, pair.b), (GREY, BLUE), strict=True):
            _bar(axes, row, 0.62, value, colour, None, number=True)
            names.append((row, name))
            row += 0.8
        axes.annotate(
            _difference(label, pair), (0, row - 0.3), xytext=(4, 0), textcoords="offset points", va="top",
            fontsize=8.5, linespacing=1.4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
        row += 1.2
    axes.set_ylim(row - 0.5, -0.6)
    axes.set_yticks([at for at, _ in names], [figure_text(name, 22) for _, name in names])
    axes.tick_params(axis="y", length=0)
    percent_axis(axes, "accuracy, % of images")
    set_title(axes, "Accuracy", f"{comparison.overall.n:,} images in both, with 95 % intervals")


def _difference(label: str, pair: Paired) -> str:
    assert pair.difference is not None and pair.low is not None and pair.high is not None
    points = f"{100 * pair.difference:+.1f} points ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})"
    chance = "p < 0.001" if (pair.p or 0) < 0.001 else f"p = {pair.p:.3f}"
    return f"{label}{points}\n{pair.gained:,} gained, {pair.lost:,} lost, McNemar {chance}"


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [figure_text(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _expect(something: object, what: str) -> None:
    if not something:
        raise LrpError(f"expected {what} to plot, got none")


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=4)
