"""What all matplotlib figures of this package share: style, text, and how they are written to a file.

They use matplotlib's objects: no window, no pyplot, and no global setting that stays changed.
"""

from __future__ import annotations

import re
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from lrp.errors import LrpError
from lrp.storage.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, PALE, ORANGE = "#2166ac", "#b5d2ec", "#d9730d"
GREY, INK, FAINT = "#9a9a9a", "#262626", "#5f5f5f"
_LOOK = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#e4e4e4",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "svg.hashsalt": "lrp",
}


def save_figure(figure: Figure, path: Path | str, error: type[LrpError] = LrpError) -> None:
    """Write a PNG or an SVG, by the suffix of the path; whole or not at all, replacing an older file.

    The same figure gives the same bytes.

    Raises:
        error: another suffix, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise error(f"{path}: expected a plot's name to end in .png or .svg, got {path.suffix!r}")
    with replacing(path, error) as draft, figure_style(), warnings.catch_warnings(), draft.open("wb") as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the picture shows a box
        when = {"Date": None} if kind == ".svg" else {"Software": "lrp"}
        figure.savefig(file, format=kind[1:], metadata=when, bbox_inches="tight", pad_inches=0.12)


def figure_style() -> AbstractContextManager[None]:
    """A context with matplotlib's defaults and ours, whatever the user's settings, which are restored afterwards."""
    try:
        import matplotlib.style
        from matplotlib.font_manager import get_font_names
    except ModuleNotFoundError as error:
        raise LrpError("this needs matplotlib: pip install 'lrp[study]'.") from error
    # matplotlib's own font lacks Chinese, Japanese and Korean: another font is used for these if one is installed.
    more = sorted(
        {"Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "Arial Unicode MS"} & {*get_font_names()}
    )
    return matplotlib.style.context(["default", _LOOK | {"font.family": ["DejaVu Sans", *more]}])


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_text(text: str, width: int = 30) -> str:
    """The text wrapped to lines of `width` characters, never shortened; dollar signs, which begin formulas, are escaped."""
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    lines = [""]
    # File names have no spaces, so lines are also broken after other characters.
    for part in re.findall(r"[^\s_/.,:-]*(?:[\s_/.,:-]|$)", shown):
        pieces = [part[i : i + width] for i in range(0, len(part), width)]
        for piece in pieces:
            if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines).replace("$", r"\$")


def percent_axis(axes: Axes, label: str) -> None:
    axes.set(xlim=(0, 100), xlabel=label)
    axes.grid(axis="x")


def set_title(axes: Axes, title: str, note: str) -> None:
    """A title, and below it a fainter note of one or two lines."""
    lines = note.count("\n") + 1
    axes.annotate(
        note, (0, 1), xytext=(0, 6), xycoords="axes fraction", textcoords="offset points", color=FAINT,
        fontsize=8.5, va="bottom", annotation_clip=False,
    )  # fmt: skip
    axes.set_title(figure_text(title, 70), fontweight="bold", pad=10 + 11.5 * lines)
