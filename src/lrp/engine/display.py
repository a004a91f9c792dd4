"""Results -> HTML, as a notebook shows them: photo, heatmap, target and health of an explanation; a table of rules.

Only inline styles, no colours of text or background: it is read on light and dark pages. All names are escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lrp.errors import LrpError
from lrp.pictures import heatmap

if TYPE_CHECKING:
    from torch import Tensor

    from lrp.engine.explanation import Explanation
    from lrp.engine.rules_table import RulesTable

IMAGES = 4
"""Of more images than this, the first are shown."""
SIDE = 224  # of a picture, in pixels on the page
_LEFT = "text-align: left; padding-right: 1em"
_CELL = "text-align: left; vertical-align: top; padding: 2px 12px 2px 0"


def explanation(e: Explanation) -> str:
    """The first images: each as the model saw it, its heatmap, what was asked, what reached the pixels, and health.

    The health of more than `IMAGES` is computed on request only (`e.health`): it takes a pass for each image.
    """
    return explanations([e])


def explanations(entries: Sequence[Explanation]) -> str:
    """Of the first images, each with the first few of its explanations below each other."""
    images, count = len(entries[0]), len(entries)
    rows = "".join(
        _row(e, i, with_photo=e is entries[0]) for i in range(min(images, IMAGES)) for e in entries[:IMAGES]
    )
    more = f"<div>... and {images - IMAGES:,} more images</div>" if images > IMAGES else ""
    more += f"<div>... and {count - IMAGES:,} more explanations of each</div>" if count > IMAGES else ""
    return f'<div><table style="border-collapse: collapse">{rows}</table>{more}</div>'


def rules(table: RulesTable) -> str:
    """The whole table; it scrolls where it is long."""
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


# --- one image --------------------------------------------------------------------------------------------


def _row(e: Explanation, i: int, with_photo: bool) -> str:
    relevance = e.relevance[i].detach().cpu().double()
    pictures, lines = "", _words(e, i)
    if relevance.dim() == 3:
        values = relevance.sum(0).numpy()
        limit = heatmap.scale([values])
        if (seen := _seen(e._images[i])) is not None:
            what = "what the model saw; its brightness is stretched"
            pictures += _cell(Image.fromarray(seen).quantize(256), what) if with_photo else "<td></td>"
        pictures += _cell(_heatmap(values, limit), "relevance of each pixel")
        lines.append(f"<small>red speaks for it, blue against; deepest from {limit:.2g} per pixel on</small>")
    words = "".join(f"<div>{line}</div>" for line in lines)
    return f'<tr>{pictures}<td style="{_CELL}">{words}</td></tr>'


def _heatmap(values: np.ndarray, limit: float) -> Image.Image:
    """With every other colour of the heatmap's, and its grey for what is no number: as many as a small PNG holds."""
    share = np.nan_to_num(values.clip(-limit, limit) / limit)
    image = Image.fromarray(np.where(np.isnan(values), 255, np.rint(share * 127) + 127).astype(np.uint8))
    unseen = heatmap.colours(np.full((1, 1), np.nan), 1.0)
    image.putpalette(heatmap.PALETTE[1::2].tobytes() + unseen.tobytes())
    return image


def _cell(image: Image.Image, title: str) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    source = base64.b64encode(content.getvalue()).decode("ascii")
    shown = f'width="{max(1, round(SIDE * image.width / max(image.size)))}"'
    style = "image-rendering: pixelated; max-width: none"
    return (
        f'<td style="{_CELL}"><img {shown} style="{style}" alt="{escape(title)}" title="{escape(title)}" '
        f'src="data:image/png;base64,{source}"></td>'
    )


def _seen(image: Tensor) -> np.ndarray | None:
    """The model's input as a picture: from its least to its greatest value, as the normalisation is not known here.

    None where it has not one channel or three.
    """
    values = image.detach().cpu().double().numpy()
    if values.shape[0] not in (1, 3):
        return None
    low, high = float(values.min()), float(values.max())
    shades = ((values - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)
    return shades.transpose(1, 2, 0).repeat(3 // shades.shape[0], axis=2)


def _words(e: Explanation, i: int) -> list[str]:
    """Lines of HTML."""
    start, reached = float(e.start[i].double().sum()), float(e.relevance[i].double().sum())
    share = f" ({100 * reached / start:.2g} %)" if start else ""
    unit = "of the softmax" if e._explainer.seed == "softmax" else "logits"
    lines = [
        f"<b>{escape(_asked(e, i))}</b>",
        f"{reached:.3g} of {start:.3g} {unit}{share} reached the pixels",
    ]
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


def _asked(e: Explanation, i: int) -> str:
    """The target in words: "espresso 95.1 %", "espresso, not cup"."""
    names, target = e._explainer.class_names, int(e.target[i])

    def named(index: int) -> str:
        return str(names[index]) if names is not None and index < len(names) else f"class {index}"

    if bool(e._request.given[i].any()):
        classes = int((e.start[i] != 0).sum())
        return f"a start relevance at {classes:,} classes, most at {named(target)}"
    if e._explainer.seed == "softmax":
        return "the softmax of all classes"
    against = (e._request.weight[i] < 0).nonzero().flatten().tolist()
    if e._request.predicted[i] < 0:
        against = [int(e.logits[i].argmax())]
    if against:
        return f"{named(target)}, not {named(against[0])}"
    if e.logits.shape[1] == 1:
        return named(target)
    return f"{named(target)} (probability {100 * float(e.logits[i].double().softmax(0)[target]):.3g} %)"
