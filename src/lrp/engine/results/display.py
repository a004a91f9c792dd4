"""Results -> pictures and HTML: photo, heatmap, target and health of an explanation; a table of rules.

The HTML has only inline styles, and no colours of text or background, so that it suits light and dark pages. All names
are escaped.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageShow

from lrp.engine.results.account import account_in_words, reached_words
from lrp.engine.targets import Contrast, Similarity
from lrp.errors import ImageError, InputError, LrpError
from lrp.pictures import heatmap
from lrp.pictures.geometry import Geometry
from lrp.pictures.photos import Photo, open_photo

if TYPE_CHECKING:
    from torch import Tensor

    from lrp.engine.results.explanation import Explanation
    from lrp.engine.results.rules_table import RulesTable


class Geometrical(Protocol):
    """An object with the geometry of a preprocessing, such as a `Preprocessing`."""

    @property
    def geometry(self) -> Geometry: ...


PhotoLike = str | Path | Photo | Image.Image | np.ndarray

IMAGES = 4
"""At most this many images are shown, the first ones."""
SIDE = 224  # of a picture, in pixels on the page
_LEFT = "text-align: left; padding-right: 1em"
_CELL = "text-align: left; vertical-align: top; padding: 2px 12px 2px 0"


def display_explanations_html(entries: Sequence[Explanation]) -> str:
    """HTML of the first images: each as the model's input, its heatmap, the target, what reached the pixels, and health.

    Several explanations of an image are shown below each other, the first few of them. For more than `IMAGES` images,
    health is computed on request only (`e.health`), because it runs a program for each image.
    """
    images, count = len(entries[0]), len(entries)
    rows = "".join(
        _row(e, i, with_photo=e is entries[0]) for i in range(min(images, IMAGES)) for e in entries[:IMAGES]
    )
    more = f"<div>... and {images - IMAGES:,} more images</div>" if images > IMAGES else ""
    more += f"<div>... and {count - IMAGES:,} more explanations of each</div>" if count > IMAGES else ""
    return f'<div><table style="border-collapse: collapse">{rows}</table>{more}</div>'


def display_rules_html(table: RulesTable) -> str:
    """HTML of the whole table; a long table scrolls."""
    reason = f"<div>{escape(table.reason)}</div>" if table.reason else ""
    head = "".join(
        f'<th style="{_LEFT}">{name}</th>' for name in ("module", "operation", "output", "rule", "note")
    )
    body = "".join(
        "<tr>" + "".join(f'<td style="{_LEFT}">{escape(cell)}</td>' for cell in line) + "</tr>"
        for line in table.lines
    )
    return (
        f"<div><div>composite: <code>{escape(table.composite)}</code></div>{reason}"
        f'<div style="max-height: 30em; overflow: auto"><table><thead><tr>{head}</tr></thead>'
        f'<tbody style="font-family: monospace; white-space: pre">{body}</tbody></table></div></div>'
    )


# --- pictures ---------------------------------------------------------------------------------------------


def explanation_picture(
    entries: Sequence[Explanation],
    photo: PhotoLike | None = None,
    index: int = 0,
    preprocessing: Geometrical | None = None,
) -> Image.Image:
    """The photo, and on its right a heatmap for each explanation; arguments and errors as of `Explanation.heatmap`."""
    e = entries[0]
    if not -len(e) <= index < len(e):
        raise InputError(f"index={index}: expected one of {len(e)} images, 0 to {len(e) - 1}.")
    i = index % len(e)
    if e.relevance.dim() != 4:
        raise InputError(
            f"relevance of shape {list(e.relevance.shape)} is no picture: expected images [N, C, H, W]."
        )
    if photo is None:
        pixels, name = _input_picture(e._images[i]), "what the model saw; its brightness is stretched"
        if pixels is None:
            raise InputError(
                f"an input of {e._images.shape[1]} channels cannot be shown as a photo: give one, heatmap(photo)."
            )
        geometry = None
    else:
        geometry = preprocessing or e._explainer.preprocessing
        pixels, file = _pixels(photo, getattr(geometry, "range", None))
        name = f"predicted for {file}" if file else "predicted"
    best = int(e.logits[i].argmax())
    return heatmap.draw(
        pixels, [_panel(e, i, pixels, geometry) for e in entries],
        title=_with_probability(_class(e, best), _probability(e, i, best)), subtitle=name, unit=e.unit,
    )  # fmt: skip


def _panel(e: Explanation, i: int, pixels: np.ndarray, preprocessing: Geometrical | None) -> heatmap.Panel:
    values = e.relevance[i].detach().double().sum(0).cpu().numpy()
    if preprocessing is not None:
        values = preprocessing.geometry.to_photo(values, *pixels.shape[:2])
    elif values.shape != pixels.shape[:2]:
        (height, width), (rows, columns) = pixels.shape[:2], values.shape
        raise InputError(
            f"the photo is {width} x {height} pixels and the model's input {columns} x {rows}: which part of it the model "
            "saw is not known; give preprocessing=, here or to Explainer(...)."
        )
    return heatmap.Panel(values, _with_probability(*_target(e, i)), _account(e, i))


def _with_probability(words: str, probability: float | None) -> str:
    return words if probability is None else f"{words}  {100 * probability:.1f} %"


def _account(e: Explanation, i: int) -> str:
    if len(e) > IMAGES and "health" not in e.__dict__:  # health runs a program for each image
        return _reached(e, i)
    try:
        health = e.health
    except LrpError as error:
        return f"{_reached(e, i)}; health unknown: {error}"
    relevance, start = float(e.relevance[i].double().sum()), float(e.ledger.totals["start"][i])
    shares = {name: float(values[i]) for name, values in health.shares.items()}
    return account_in_words(relevance, start, e.unit, shares, health.problems)


def _pixels(photo: PhotoLike, range: tuple[float, float] | None) -> tuple[np.ndarray, str]:
    """uint8 [H, W, 3], and the file's name where it has one. range: black and white of deep grey levels."""
    if isinstance(photo, str | Path):
        photo = open_photo(photo, range=range)
    if isinstance(photo, Photo):
        return photo.pixels, photo.path.name
    if isinstance(photo, Image.Image):
        return np.asarray(photo.convert("RGB")), ""
    if isinstance(photo, np.ndarray):
        return photo, ""  # `draw` checks its shape
    raise InputError(
        f"photo: expected a path, a Photo, a PIL image or an array uint8 [H, W, 3], got {type(photo).__name__}."
    )


def save(
    entries: Sequence[Explanation], path: Path, photo: PhotoLike | None, index: int, preprocessing: Any
) -> Path:
    if path.suffix.lower() != ".png":
        raise ImageError(
            f"{path}: expected a name that ends in .png; for another format: e.heatmap(photo).save({path.name!r})."
        )
    heatmap.save_png(explanation_picture(entries, photo, index, preprocessing), path, {})
    return path


def show(image: Image.Image) -> None:
    """Show an image below a notebook's cell, or in the image viewer."""
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive else None
    if hasattr(shell, "kernel"):  # a notebook, not a terminal
        from IPython.display import display

        display(image)
    elif not ImageShow.show(image):
        raise ImageError("there is no image viewer here: e.save('heatmap.png') writes a file.")


def display_png(entries: Sequence[Explanation]) -> bytes | None:
    """The first image's picture as PNG, with 256 colours so that it is small."""
    e = entries[0]
    if (
        e.relevance.dim() != 4
        or e._images.shape[1] not in (1, 3)
        or not bool(e.relevance[0].isfinite().all())
    ):
        return None
    return _png(explanation_picture(entries[:IMAGES]).quantize(256, dither=Image.Dither.NONE))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


# --- one image --------------------------------------------------------------------------------------------


def _row(e: Explanation, i: int, with_photo: bool) -> str:
    relevance = e.relevance[i].detach().cpu().double()
    pictures, lines = "", _lines(e, i)
    if relevance.dim() == 3:
        values = relevance.sum(0).numpy()
        limit = heatmap.heatmap_scale([values])
        if (seen := _input_picture(e._images[i])) is not None:
            what = "what the model saw; its brightness is stretched"
            pictures += _cell(Image.fromarray(seen).quantize(256), what) if with_photo else "<td></td>"
        pictures += _cell(_heatmap(values, limit), "relevance of each pixel")
        lines.append(f"<small>red speaks for it, blue against; deepest from {limit:.2g} per pixel on</small>")
    words = "".join(f"<div>{line}</div>" for line in lines)
    return f'<tr>{pictures}<td style="{_CELL}">{words}</td></tr>'


def _heatmap(values: np.ndarray, limit: float) -> Image.Image:
    """A picture of 256 colours, the most in a PNG's palette: every second one of the heatmap's, and its grey for NaN."""
    share = np.nan_to_num(values.clip(-limit, limit) / limit)
    image = Image.fromarray(np.where(np.isnan(values), 255, np.rint(share * 127) + 127).astype(np.uint8))
    unseen = heatmap.heatmap_colours(np.full((1, 1), np.nan), 1.0)
    image.putpalette(heatmap.PALETTE[1::2].tobytes() + unseen.tobytes())
    return image


def _cell(image: Image.Image, title: str) -> str:
    source = base64.b64encode(_png(image)).decode("ascii")
    shown = f'width="{max(1, round(SIDE * image.width / max(image.size)))}"'
    style = "image-rendering: pixelated; max-width: none"
    return (
        f'<td style="{_CELL}"><img {shown} style="{style}" alt="{escape(title)}" title="{escape(title)}" '
        f'src="data:image/png;base64,{source}"></td>'
    )


def _input_picture(image: Tensor) -> np.ndarray | None:
    """The model's input as a picture: from its least to its greatest value, as the normalisation is not known here.

    None unless it has one or three channels.
    """
    values = image.detach().cpu().double().numpy()
    if values.shape[0] not in (1, 3):
        return None
    low, high = float(values.min()), float(values.max())
    shades = ((values - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)
    return shades.transpose(1, 2, 0).repeat(3 // shades.shape[0], axis=2)


def _reached(e: Explanation, i: int) -> str:
    relevance, start = e.sums(i)
    return reached_words(relevance, start, e.unit, relevance / start if start else None, ".2g")


def _lines(e: Explanation, i: int) -> list[str]:
    """Lines of HTML."""
    lines = [f"<b>{escape(_target_text(e, i))}</b>", _reached(e, i)]
    if len(e) > IMAGES and "health" not in e.__dict__:
        return [*lines, "health: not computed for so many images; ask for e.health"]
    try:
        health = e.health
    except LrpError as error:
        return [*lines, f"health: unknown: {escape(str(error))}"]
    rest = (("bias", "biases"), ("epsilon", "ε"), ("dropped", "dropped at outputs without an input to go to"))
    taken = {words: float(health.shares[key][i]) for key, words in rest}
    lines += [f"{100 * part:.2g} % {words}" for words, part in taken.items() if abs(part) >= 0.005]
    if health.ok:
        return [*lines, "health: ok"]
    return [*lines, *(f"<b>NOT TRUSTWORTHY</b>: {escape(problem)}" for problem in health.problems)]


def _target_text(e: Explanation, i: int) -> str:
    """The target in words: "espresso (probability 95.1 %)", "espresso, not cup"."""
    words, probability = _target(e, i)
    return words if probability is None else f"{words} (probability {100 * probability:.3g} %)"


def _target(e: Explanation, i: int) -> tuple[str, float | None]:
    """The target in words, and of a single class its probability."""
    target, entries = int(e.target[i]), e._request.entries
    if e._request.inner.starts:
        return "relevance that starts inside the model", None
    if entries is None:
        classes = int((e.start[i] != 0).sum())
        return f"a start relevance at {classes:,} classes, most at {_class(e, target)}", None
    entry = entries[i]
    if e._explainer.seed == "softmax":
        return "the softmax of all classes", None
    if isinstance(entry, Similarity):
        return f"similarity {float(e.start[i].sum()):.3g}", None
    if isinstance(entry, Contrast):
        other = int(e.logits[i].argmax()) if entry.b == "predicted" else int(e.start[i].argmin())
        against = (e._request.starts[1][i] < 0).nonzero().flatten().tolist()
        return f"{_class(e, target)}, not {_class(e, against[0] if against else other)}", None
    if e.logits.dim() > 2:
        places = int((e.start[i] != 0).any(0).sum())
        of_each = entry == "predicted" or getattr(entry, "class_", "") == "predicted"
        return f"{'the predicted classes' if of_each else _class(e, target)} at {places:,} places", None
    if e.logits.shape[1] == 1:
        return "the model's one output", None
    return _class(e, target), _probability(e, i, target)


def _class(e: Explanation, index: int) -> str:
    names = e._explainer.class_names
    return str(names[index]) if names is not None and index < len(names) else f"class {index}"


def _probability(e: Explanation, i: int, index: int) -> float | None:
    """None for a model with one logit. Of labels that are each on their own, the sigmoid."""
    if e.logits.shape[1] == 1:
        return None
    own = e._explainer.labels_are_independent
    z = e.logits[i].double()
    return float((z.sigmoid() if own else z.softmax(0))[index])
