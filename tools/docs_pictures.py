"""Make the pictures of the documentation with lrp: every rule and every preset on one photo.

    python tools/docs_pictures.py [FOLDER]    # docs/pictures without FOLDER; a minute on 2 cores

It is not in docs/ because all files there become part of the site. It uses no random numbers and one thread: on the
same machine the files are the same byte for byte. Photo: scikit-image's coffee (Rachel Michetti, CC0).

Each heatmap is a card: relevance at the model's input, 224 x 224 pixels, enlarged twofold; the share of the logit that
reached the pixels; and a colour bar that ends at the 99.5th percentile of the card's |relevance|.
Operations that no packaged net has (max pools, gates, attention) are shown on small grids of numbers, also computed by
lrp.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import lrp
from lrp.pictures import heatmap
from lrp.pictures.text import font

MODEL, PHOTO, TARGET, BASE = "efficientnet_lite0", "coffee.png", "espresso", "epsilon_gamma_wsquare"
INK, FAINT, FRAME = (25, 25, 25), (95, 95, 95), (200, 200, 200)
SCALE, MARGIN, EM = 2, 12, 26  # factor of enlargement; pixels of the card
CELL, GAP = 92, 40  # pixels, of the drawings with numbers


# ---------------------------------------------------------------- composites


def rule_composites() -> dict[str, lrp.Composite]:
    """File name -> the base preset with one rule replaced. docs/rules.md describes the same composites.

    Without Gamma and WSquare, which are in the base preset, and ZBox, with which it is `epsilon_gamma_box`.
    """
    inner = lrp.family("conv") & ~lrp.first
    ones_that_keep_the_shape = lrp.op("conv2d") & (lambda o: lrp.depthwise(o) and o.input_shape() == o.shape)
    places = {
        "zero": (inner, lrp.Zero()),
        "epsilon": (inner, lrp.Epsilon(0.1, relative=True)),
        "alphabeta": (inner, lrp.AlphaBeta(2, 1)),
        "zplus": (inner, lrp.ZPlus()),
        "flat": (lrp.first, lrp.Flat()),
        "wplus": (lrp.first, lrp.WPlus()),
        "magnitude": (lrp.family("sum"), lrp.Magnitude()),
        "pass": (ones_that_keep_the_shape, lrp.Pass()),
    }
    base = lrp.preset(BASE).pairs
    return {name: lrp.Composite([*base, place], name=name) for name, place in places.items()}


def preset_composites(low: Sequence[float], high: Sequence[float]) -> dict[str, lrp.Composite]:
    return {name: lrp.preset(name, low=low, high=high) for name in lrp.composites()}


# ---------------------------------------------------------------- cards


def card(explanation: lrp.Explanation) -> Image.Image:
    """The heatmap of the one image explained, its share of the start, and its scale."""
    relevance = explanation.relevance[0].sum(0).double().numpy()
    start, reached = float(explanation.start.sum()), float(relevance.sum())
    limit = heatmap.heatmap_scale([relevance])
    picture = Image.fromarray(heatmap.heatmap_colours(relevance, limit))
    width, height = (SCALE * side for side in picture.size)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 4 * EM + 2 * MARGIN), "white")
    sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (MARGIN, MARGIN))
    pen, small = ImageDraw.Draw(sheet), font(None, EM - 6)
    pen.rectangle((MARGIN - 1, MARGIN - 1, MARGIN + width, MARGIN + height), outline=FRAME)
    y = MARGIN + height + EM
    pen.text((MARGIN, y), _share(reached, start), font=small, fill=INK, anchor="lm")
    shades = heatmap.heatmap_colours(np.linspace(-limit, limit, width)[None].repeat(EM // 2, axis=0), limit)
    sheet.paste(Image.fromarray(shades), (MARGIN, y + EM))
    for share, text, anchor in ((0, f"-{limit:.2g}", "lm"), (0.5, "0", "mm"), (1, f"+{limit:.2g}", "rm")):
        place = (MARGIN + share * width, y + round(2.3 * EM))
        pen.text(place, text, font=small, fill=FAINT, anchor=anchor)
    return sheet


def _share(reached: float, start: float) -> str:
    per_cent = 100 * reached / start
    # kaifishr starts from probabilities, which sum to 1; all others from the logit
    unit = "logits" if start > 1.5 else "(all probabilities)"
    return f"{reached:.3g} of {start:.3g} {unit}: {per_cent:.2g} %".replace("-0 %", "0 %")


def photo_card(pixels: np.ndarray) -> Image.Image:
    """The part of the photo that is the model's input, in the layout of the heatmaps."""
    height, width = (SCALE * side for side in pixels.shape[:2])
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 4 * EM + 2 * MARGIN), "white")
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    sheet.paste(picture, (MARGIN, MARGIN))
    pen, small = ImageDraw.Draw(sheet), font(None, EM - 6)
    y = MARGIN + height + EM
    pen.text((MARGIN, y), "what the model sees", font=small, fill=INK, anchor="lm")
    pen.text((MARGIN, y + EM), "photo: Rachel Michetti, CC0", font=small, fill=FAINT, anchor="lm")
    return sheet


# ---------------------------------------------------------------- drawings with numbers


class MaxPool(nn.Module):
    """Image [N, 1, 4, 4] -> the sum of its four windows' maxima."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 2).sum((2, 3))


class Added(nn.Module):
    """Image [N, 1, 2, 3], x above y -> Σ (x + y)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, 0] + x[:, :, 1]).sum(2)


class Gated(nn.Module):
    """Image [N, 1, 2, 3], signal above gate -> Σ signal · sigmoid(gate)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, 0] * torch.sigmoid(x[:, :, 1])).sum(2)


class Attention(nn.Module):
    """Image [N, 1, 2, 3], scores above values -> softmax(scores) · values, one query and three tokens."""

    def forward(self, x: Tensor) -> Tensor:
        attention = x[:, 0, 0].softmax(1)
        return torch.bmm(attention[:, None], x[:, 0, 1][:, :, None])[:, 0]


POOLED = torch.tensor([[[[1.0, 3, 0, 1], [2, 0, 1, 2], [0, 1, 4, 4], [1, 0, 0, 0]]]])
SUMMANDS = torch.tensor([[[[3.0, 1, 2], [-2, 1, -1]]]])
TWO_ROWS = torch.tensor([[[[2.0, 1, -1], [1, -2, 3]]]])

DRAWINGS: dict[str, tuple[nn.Module, Tensor, Sequence[str], Mapping[str, lrp.Composite]]] = {
    "max_pool": (
        MaxPool(),
        POOLED,
        (),
        {
            "WinnerTakesAll": lrp.Composite([(lrp.everything, lrp.WinnerTakesAll())]),
            "Proportional": lrp.Composite([(lrp.everything, lrp.Proportional())]),
        },
    ),
    "sum": (
        Added(),
        SUMMANDS,
        ("x", "y"),
        {
            "Epsilon": lrp.Composite([(lrp.everything, lrp.Epsilon())]),
            "Magnitude": lrp.Composite([(lrp.family("sum"), lrp.Magnitude())]),
        },
    ),
    "gate": (
        Gated(),
        TWO_ROWS,
        ("signal", "gate"),
        {
            "SignalTakesAll": lrp.Composite([(lrp.everything, lrp.SignalTakesAll())]),
            "Halves": lrp.Composite([(lrp.everything, lrp.Halves())]),
        },
    ),
    "attention": (
        Attention(),
        TWO_ROWS,
        ("scores", "values"),
        {
            "Values, Constant (CP-LRP)": lrp.preset("cp_lrp"),
            "Halves, SoftmaxTaylor (AttnLRP)": lrp.preset("attnlrp"),
        },
    ),
}


def drawing(name: str) -> Image.Image:
    """The input and, for each of two rules, the relevance on it: one grid of numbers each."""
    model, x, rows, composites = DRAWINGS[name]
    results = {title: lrp.Explainer(model.eval(), c)(x) for title, c in composites.items()}
    logit = float(next(iter(results.values())).logits)
    limit = max(float(e.relevance.abs().max()) for e in results.values())
    height, width = x.shape[2] * CELL, x.shape[3] * CELL
    left = GAP + (90 if rows else 0)
    column = max(width + GAP, 370)
    sheet = Image.new("RGB", (left + 3 * column, height + 5 * EM), "white")
    pen, letters, small = ImageDraw.Draw(sheet), font(None, EM), font(None, EM - 6)
    for number, row in enumerate(rows):
        place = (left - 14, 3 * EM + (number + 0.5) * CELL)
        pen.text(place, row, font=small, fill=FAINT, anchor="rm")
    panels = [("input", f"logit {logit:.3g}", x[0, 0], None)]
    for title, e in results.items():
        totals = {k: float(v) for k, v in e.ledger.totals.items()}
        parts = [
            f"{totals[k]:.3g} {word}" for k, word in (("input", "reached the input"), ("bias", "to bias"))
        ]
        booked = parts[0] + (f", {parts[1]}" if abs(totals["bias"]) > 1e-6 else "")
        panels.append((title, booked, e.relevance[0, 0], limit))
    for number, (title, below, values, top) in enumerate(panels):
        x0, y0 = left + number * column, 3 * EM
        pen.text((x0, 1.8 * EM), title, font=small, fill=INK, anchor="lm")
        shades = (
            heatmap.heatmap_colours(values.double().numpy(), top) if top else np.full((*values.shape, 3), 255)
        )
        for i, line in enumerate(values.tolist()):
            for j, value in enumerate(line):
                box = (x0 + j * CELL, y0 + i * CELL, x0 + (j + 1) * CELL, y0 + (i + 1) * CELL)
                pen.rectangle(box, fill=tuple(int(v) for v in shades[i, j]), outline=FRAME)
                dark = shades[i, j].mean() < 140
                text = f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) > 0.005 else "0"
                middle = (x0 + (j + 0.5) * CELL, y0 + (i + 0.5) * CELL)
                pen.text(middle, text, font=letters, fill="white" if dark else INK, anchor="mm")
        pen.text((x0, y0 + height + EM), below, font=small, fill=FAINT, anchor="lm")
    return sheet


# ---------------------------------------------------------------- main


load = functools.cache(lrp.load_model)  # one model, so that it is captured once


def explained(composite: lrp.Composite) -> lrp.Explanation:
    """The photo's espresso under a composite."""
    model, preprocessing, class_names = load(MODEL)
    photo = lrp.open_photo(Path(skimage.data.__file__).parent / PHOTO)
    return lrp.Explainer(model, composite, class_names=class_names)(preprocessing(photo.pixels)[None], TARGET)


def save(image: Image.Image, path: Path, palette: Image.Image | None = None) -> None:
    """As a PNG with a palette, of the photo or of the colour scale: a third of the bytes, no visible difference."""
    few = image.quantize(96, palette=palette, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB", flush=True)


def scale_palette() -> Image.Image:
    """The colours of heatmaps in equal steps, and the greys of text and frames."""
    shades = heatmap.heatmap_colours(np.linspace(-1, 1, 101)[None], 1).reshape(-1, 3)
    greys = np.linspace(25, 255, 16).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    image = Image.new("P", (1, 1))
    image.putpalette(np.concatenate([shades, greys]).tobytes())
    return image


def main(folder: Path = Path(__file__).parents[1] / "docs" / "pictures") -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = load(MODEL).preprocessing
    pixels = lrp.open_photo(Path(skimage.data.__file__).parent / PHOTO).pixels
    save(photo_card(preprocessing.geometry.apply(pixels)), folder / "photo.png")
    low, high, palette = preprocessing.low, preprocessing.high, scale_palette()
    for kind, composites in (
        ("rule", rule_composites()),
        ("preset", preset_composites(low, high)),
    ):
        for name, composite in composites.items():
            if name in ("attnlrp", "cp_lrp"):  # without attention they are `gamma`
                continue
            save(card(explained(composite)), folder / f"{kind}_{name}.png", palette)
    for name in DRAWINGS:
        save(drawing(name), folder / f"numbers_{name}.png", palette)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
