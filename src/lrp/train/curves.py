"""The training curves: loss and accuracy by epoch, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lrp.errors import TrainingError
from lrp.pictures.figures import BLUE, GREY, ORANGE, figure_style, figure_text, new_figure
from lrp.pictures.figures import save_figure as save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training(history: Sequence[Mapping[str, Any]], best: int, *, title: str = "Training") -> Figure:
    """Loss and accuracy by epoch, for training and validation photos; the best epoch is marked.

    Raises:
        TrainingError: the history has no epoch.
    """
    if not history:
        raise TrainingError("expected at least one epoch to plot, got none")
    with figure_style():
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(9.2, 3.8)
        for place, (name, label, factor) in enumerate(
            (("loss", "loss, nats", 1), ("accuracy", "accuracy, %", 100))
        ):
            axes = figure.add_subplot(1, 2, place + 1)
            for key, series, colour, style in (
                (name, "train", GREY, "--"),
                (f"val_{name}", "val", BLUE, "-"),
            ):
                points = [(one["epoch"], factor * one[key]) for one in history if key in one]
                if points:
                    mark = "o" if len(points) <= 20 else None
                    axes.plot(
                        *zip(*points, strict=True),
                        style,
                        color=colour,
                        marker=mark,
                        markersize=3.5,
                        label=series,
                    )
            chosen = next((one for one in history if one["epoch"] == best), None)
            if chosen:
                value = factor * chosen[f"val_{name}"]
                axes.plot(
                    best,
                    value,
                    "o",
                    color=ORANGE,
                    markersize=7,
                    markerfacecolor="none",
                    label=f"best, {best}",
                )
                axes.annotate(
                    f"{value:.1f} %" if factor == 100 else f"{value:.3f}", (best, value), xytext=(0, 8),
                    textcoords="offset points", ha="center", color=ORANGE,
                )  # fmt: skip
            axes.set(xlabel="epoch", ylabel=label)
            axes.margins(y=0.15)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y")
            axes.legend()
        figure.suptitle(figure_text(title, 110), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure
