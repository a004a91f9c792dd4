"""Results -> pictures and HTML: input, relevance, target and health of an explanation; a table of rules.

The HTML has only inline styles, and no colours of text or background, so that it suits light and dark pages. All names
are escaped.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageShow

from lrp.engine.results.account import account_in_words, reached_words
from lrp.engine.results.target_words import predicted_words, target_words, with_probability
from lrp.engine.targets import Contrast
from lrp.errors import ImageError, InputError, LrpError
from lrp.pictures import heatmap
from lrp.pictures.geometry import Geometry
from lrp.pictures.kinds import IMAGE, UNKNOWN, Kind, kind_of
from lrp.pictures.outline import resized_region
from lrp.pictures.page import below_each_other
from lrp.pictures.photos import Photo, open_photo
from lrp.pictures.volumes import stretched

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


def draw_input(
    values: np.ndarray, panels: Sequence[heatmap.Panel], heading: str = "", unit: str = "logits"
) -> Image.Image:
    """The picture of one input that is no image: a row [F], a signal [C, L], a volume or a clip [C, D, H, W].

    Args:
        values: the input.
        panels: explanations of it, with relevance of its shape.
        heading, unit: see `draw_signal`.

    Raises:
        InputError: another number of dimensions.
    """
    draw = kind_of(values.shape).draw
    if draw is None:
        raise InputError(
            f"relevance of an input of shape {list(values.shape)} is no picture: expected rows [F], signals [C, L], images "
            "[C, H, W], or volumes [C, D, H, W]."
        )
    return draw(values, panels, heading=heading, unit=unit)


def display_explanations_html(entries: Sequence[Explanation]) -> str:
    """HTML of the first images: each as the model's input, its relevance, the target, what reached the pixels, and health.

    Several explanations of an image are shown below each other, the first few of them. For more than `IMAGES` images,
    health is computed on request only (`e.health`), because it runs a program for each image.
    """
    images, count = len(entries[0]), len(entries)
    rows = "".join(
        _row(e, i, with_photo=e is entries[0]) for i in range(min(images, IMAGES)) for e in entries[:IMAGES]
    )
    name = _kind(entries[0]).name
    more = f"<div>... and {images - IMAGES:,} more {name}s</div>" if images > IMAGES else ""
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
    """The input with each explanation of it; arguments and errors as of `Explanation.heatmap`."""
    e = entries[0]
    if not -len(e) <= index < len(e):
        raise InputError(f"index={index}: expected one of {len(e)} {_kind(e).name}s, 0 to {len(e) - 1}.")
    i, parts = index % len(e), _parts(e)
    if not parts:
        raise InputError("no input has relevance in this explanation, so there is no picture of it.")
    if (photo is not None or preprocessing is not None) and [p.kind for p in parts].count(IMAGE) != 1:
        shapes = " and ".join(str(list(part.relevance.shape)) for part in parts)
        raise InputError(
            f"photo=, preprocessing=: expected neither for relevance of shape {shapes}, because a photo belongs to one input "
            "of images [N, C, H, W]."
        )
    pictures = {}
    for same in zip(*map(_parts, entries), strict=True):
        panels = [_panel(each, i, part) for each, part in zip(entries, same, strict=True)]
        values = _values(same[0].values[i])
        if same[0].kind is IMAGE:
            picture = _on_photo(e, i, values, panels, photo, preprocessing)
        else:
            classes = e.logits.dim() == 2 and e.logits.shape[1] > 1
            picture = draw_input(
                values, panels, f"predicted: {predicted_words(e, i)}" if classes else "", e.unit
            )
        pictures[same[0].name] = picture
    return pictures.popitem()[1] if len(pictures) == 1 else below_each_other(pictures)


class _Part(NamedTuple):
    """One of the inputs, [N, ...], and its relevance, of its shape."""

    name: str
    values: Tensor
    relevance: Tensor

    @property
    def kind(self) -> Kind:
        return kind_of(self.relevance.shape[1:])


def _parts(e: Explanation) -> list[_Part]:
    """Without inputs that are held."""
    inputs = zip(e._inputs.names, e._inputs.tensors, e._parts, strict=True)
    return [_Part(name, values, part) for name, values, part in inputs if part is not None]


def _kind(e: Explanation) -> Kind:
    """Of the input; of several, "input"."""
    parts = _parts(e)
    return parts[0].kind if len(parts) == 1 else UNKNOWN


def _on_photo(
    e: Explanation,
    i: int,
    values: np.ndarray,
    panels: Sequence[heatmap.Panel],
    photo: PhotoLike | None,
    preprocessing: Geometrical | None,
) -> Image.Image:
    """values: of the model's input, [C, H, W], as the panels' relevance is."""
    if photo is None:
        pixels, name = stretched(values), "what the model saw; its brightness is stretched"
        if pixels is None:
            raise InputError(
                f"an input of {len(values)} channels cannot be shown as a photo: give one, heatmap(photo)."
            )
        geometry = None
    else:
        geometry = preprocessing or e._explainer.preprocessing
        pixels, file = _pixels(photo, getattr(geometry, "range", None))
        name = f"predicted for {file}" if file else "predicted"
    placed = [
        replace(
            p,
            relevance=_at_pixels(p.relevance.sum(0), pixels, geometry),
            region=None if p.region is None else _at_pixels(p.region.astype(float), pixels, geometry) >= 0.5,
        )
        for p in panels
    ]
    return heatmap.draw(pixels, placed, title=predicted_words(e, i), subtitle=name, unit=e.unit)


def _at_pixels(values: np.ndarray, pixels: np.ndarray, preprocessing: Geometrical | None) -> np.ndarray:
    if preprocessing is not None:
        return preprocessing.geometry.to_photo(values, *pixels.shape[:2])
    if values.shape != pixels.shape[:2]:
        (height, width), (rows, columns) = pixels.shape[:2], values.shape
        raise InputError(
            f"the photo is {width} x {height} pixels and the model's input {columns} x {rows}: which part of it the model "
            "saw is not known; give preprocessing=, here or to Explainer(...)."
        )
    return values


def _values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _panel(e: Explanation, i: int, part: _Part) -> heatmap.Panel:
    relevance, title = _values(part.relevance[i]), with_probability(*target_words(e, i))
    region = _region(e, i, relevance.shape[1:]) if part.kind is IMAGE else None
    return heatmap.Panel(relevance, title, _account(e, i, part), region=region)


def _region(e: Explanation, i: int, size: tuple[int, ...]) -> np.ndarray | None:
    """The places that were asked for, of a model that decides at each place, as a region of an input of `size`; None: all."""
    entries = e._request.entries
    if e.logits.dim() != 4 or entries is None or isinstance(entries[i], (int, str, Contrast)):
        return None
    places: np.ndarray = (e.start[i] != 0).any(0).cpu().numpy()
    return resized_region(places, (size[0], size[1]))


def _account(e: Explanation, i: int, part: _Part) -> str:
    """What reached this input, and where the rest went."""
    if len(e) > IMAGES and "health" not in e.__dict__:  # health runs a program for each image
        return _reached(e, i)
    try:
        health = e.health
    except LrpError as error:
        return f"{_reached(e, i)}; health unknown: {error}"
    relevance, start = float(part.relevance[i].double().sum()), float(e.ledger.totals["start"][i])
    shares = {name: float(values[i]) for name, values in health.shares.items()}
    if len(_parts(e)) > 1:
        shares["input"] = relevance / start if start else 0.0
    return account_in_words(relevance, start, e.unit, shares, health.problems, part.kind.places)


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
    parts = _parts(entries[0])
    if not parts or not all(_drawable(p) and bool(p.relevance[0].isfinite().all()) for p in parts):
        return None
    return _png(_fewer_colours(explanation_picture(entries[:IMAGES])))


def _drawable(part: _Part) -> bool:
    return part.kind.draw is not None or (part.kind is IMAGE and part.values.shape[1] in (1, 3))


def _fewer_colours(image: Image.Image) -> Image.Image:
    return image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


# --- one image --------------------------------------------------------------------------------------------


def _row(e: Explanation, i: int, with_photo: bool) -> str:
    pictures, below, lines, parts = "", "", _lines(e, i), _parts(e)
    for part in parts:
        values, own = _values(part.values[i]), _values(part.relevance[i])
        name = f"{escape(part.name)}: " if len(parts) > 1 else ""
        if part.kind is IMAGE:
            own = own.sum(0)
            limit = heatmap.heatmap_scale([own])
            if (seen := stretched(values)) is not None:
                what = "what the model saw; its brightness is stretched"
                pictures += _cell(Image.fromarray(seen).quantize(256), what) if with_photo else "<td></td>"
            pictures += _cell(_heatmap(own, limit), "relevance of each pixel")
            words = f"red speaks for it, blue against; deepest from {limit:.2g} per pixel on"
            lines.append(f"<small>{name}{words}</small>")
        elif part.kind.draw is not None:
            # As wide as the page, so the words stand above it.
            image = draw_input(values, [heatmap.Panel(own, "")], unit=e.unit)
            below += f"<div>{name}</div>" if name else ""
            below += _image(_fewer_colours(image), "relevance", "max-width: 100%")
    words = "".join(f"<div>{line}</div>" for line in lines)
    return f'<tr>{pictures}<td style="{_CELL}">{words}{below}</td></tr>'


def _heatmap(values: np.ndarray, limit: float) -> Image.Image:
    """A picture of 256 colours, the most in a PNG's palette: every second one of the heatmap's, and its grey for NaN."""
    share = np.nan_to_num(values.clip(-limit, limit) / limit)
    image = Image.fromarray(np.where(np.isnan(values), 255, np.rint(share * 127) + 127).astype(np.uint8))
    unseen = heatmap.heatmap_colours(np.full((1, 1), np.nan), 1.0)
    image.putpalette(heatmap.PALETTE[1::2].tobytes() + unseen.tobytes())
    return image


def _cell(image: Image.Image, title: str) -> str:
    width = max(1, round(SIDE * image.width / max(image.size)))
    style = f"width: {width}px; image-rendering: pixelated; max-width: none"
    return f'<td style="{_CELL}">{_image(image, title, style)}</td>'


def _image(image: Image.Image, title: str, style: str) -> str:
    source = base64.b64encode(_png(image)).decode("ascii")
    words = f'alt="{escape(title)}" title="{escape(title)}"'
    return f'<img style="{style}" {words} src="data:image/png;base64,{source}">'


def _reached(e: Explanation, i: int) -> str:
    relevance, start = e.sums(i)
    share = relevance / start if start else None
    return reached_words(relevance, start, e.unit, share, ".3g", _kind(e).places)


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
    lines += [f"{100 * part:.3g} % {words}" for words, part in taken.items() if abs(part) >= 0.005]
    if health.ok:
        return [*lines, "health: ok"]
    return [*lines, *(f"<b>NOT TRUSTWORTHY</b>: {escape(problem)}" for problem in health.problems)]


def _target_text(e: Explanation, i: int) -> str:
    """The target in words: "espresso (probability 95.1 %)", "espresso, not cup"."""
    words, probability = target_words(e, i)
    return words if probability is None else f"{words} (probability {100 * probability:.3g} %)"
