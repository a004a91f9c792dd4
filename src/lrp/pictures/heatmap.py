"""Relevance -> picture. Depends on numpy and Pillow, not on models: it receives finished numbers and texts."""

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from lrp.errors import ImageError, LrpError
from lrp.pictures.outline import outlined, resized_region
from lrp.pictures.text import Font, font, text_in_font, typeface, wrapped
from lrp.storage.atomic import replacing

STYLES = ("heatmap", "overlay", "both")

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_UNSEEN = (150, 150, 150)
INK, FAINT, FRAME = (25, 25, 25), (95, 95, 95), (200, 200, 200)


def _palette() -> np.ndarray:
    """uint8 [511, 3]: blue, neutral at exactly 255, red.

    Computed in the Oklab colour space (Ottosson 2020): both halves darken equally, so that equal |R| looks equally
    strong and only the hue shows the sign. Red and blue differ for every common kind of colour blindness.
    """
    share = np.linspace(-1, 1, 511)
    lightness = 0.965 - 0.54 * np.abs(share)
    # The maximum that sRGB can show for both hues.
    chroma = np.minimum(0.47 * (0.965 - lightness), 0.17)
    hue = np.radians(np.where(share > 0, 28.0, 258.0))
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_rgb @ cones**3).clip(0, 1).T
    screen = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (screen * 255).round().astype(np.uint8)


PALETTE = _palette()


@dataclass(frozen=True, eq=False)
class Panel:
    """One heatmap beside the photo, or one explanation in the picture of another kind of input."""

    relevance: np.ndarray
    """[H, W] on the photo's pixels, NaN outside the model's crop: what `Geometry.to_photo` returns. Of signals, volumes
    and rows it has the input's shape."""
    title: str
    """The target's name."""
    subtitle: str = ""
    """How much reached the pixels, for example."""
    limit: float | None = None
    """A `heatmap_scale` of its own, for a panel whose values cannot be compared with the others'; `draw` alone uses it."""
    region: np.ndarray | None = None
    """bool [H, W] on the photo's pixels: outlined on the photo and on the heatmap. `draw` alone uses it."""


def heatmap_scale(relevance: Iterable[np.ndarray], percentile: float = 99.5) -> float:
    """The limit L of a scale from -L to L: the percentile of |relevance| over the pixels of all maps that are not NaN.

    Where that is zero (a few large values, zero elsewhere) it is the largest |relevance|, or 1 if that is zero too.
    """
    if not 0 < percentile <= 100:
        raise ImageError(f"expected a percentile above 0 and up to 100, got {percentile:g}")
    sizes = [np.abs(values[np.isfinite(values)], dtype=np.float64) for values in relevance]
    together = np.concatenate([np.zeros(0), *sizes])
    if not together.size:
        return 1.0
    return float(np.percentile(together, percentile)) or float(together.max()) or 1.0


def heatmap_colours(relevance: np.ndarray, limit: float) -> np.ndarray:
    """[H, W] -> uint8 [H, W, 3]: red above zero, blue below, deepest from `limit` on; NaN is mid-grey."""
    if not limit > 0:
        raise ImageError(f"expected a scale's limit above 0, got {limit:g}")
    unseen = np.isnan(relevance)
    # Clipped first, because division by a tiny limit would overflow.
    share = np.where(unseen, 0, relevance).astype(np.float64).clip(-limit, limit) / limit
    picture = PALETTE[np.rint(share * 255).astype(np.intp) + 255]
    picture[unseen] = _UNSEEN
    return picture


def draw(
    photo: np.ndarray,
    panels: Sequence[Panel],
    *,
    title: str = "",
    subtitle: str = "",
    style: str = "heatmap",
    percentile: float = 99.5,
    limit: float | None = None,
    unit: str = "logits",
    max_side: int = 1600,
) -> Image.Image:
    """The whole photo on the left, on its right a heatmap for each panel, and a legend below.

    Args:
        photo: uint8 [H, W, 3].
        title, subtitle: texts above the photo, such as the predicted class and its probability.
        style: "heatmap"; "overlay", over the greyed photo, denser where |relevance| is larger; or "both".
        percentile: where the scale ends. All panels share one scale, since they will be compared.
        limit: the limit of that scale, if many pictures share it: `scale()` of all their maps, at this percentile.
        unit: the unit of relevance.
        max_side: a photo with a longer side is shown reduced to this, heatmap included; tiny ones enlarged.

    Raises:
        ImageError: no panel, an unknown style, or a panel of another size than the photo.
    """
    _expect_drawable(photo, panels, style)
    shared = (
        heatmap_scale((p.relevance for p in panels if p.limit is None), percentile)
        if limit is None
        else limit
    )
    limits = [shared if panel.limit is None else panel.limit for panel in panels]
    one_scale = len(set(limits)) == 1
    size = shown_size(photo.shape[0], photo.shape[1], max_side)
    shown = resized_photo(photo, size)
    looks = {"heatmap": [_heatmap], "overlay": [_overlay], "both": [_heatmap, _overlay]}[style]
    regions = [None if panel.region is None else resized_region(panel.region, size) for panel in panels]
    blocks = [_Block([_with_outlines(shown, regions)], title, subtitle)]
    for panel, top, region in zip(panels, limits, regions, strict=True):
        relevance = resized_relevance(panel.relevance, size)
        pictures = [_with_outlines(look(shown, relevance, top), [region]) for look in looks]
        blocks.append(_Block(pictures, panel.title, panel.subtitle, None if one_scale else top))
    end = "up to the largest" if percentile == 100 else f"clipped at the {_ordinal(percentile)} percentile of"
    note = (
        f"relevance in {unit} per input pixel"
        if one_scale
        else "relevance per input pixel, each panel on its own scale"
    )
    note += f", {end} |relevance|" + (" over all images" if one_scale and limit is not None else "")
    unseen = any(np.isnan(panel.relevance).any() for panel in panels)
    return _sheet(blocks, limits[0] if one_scale else None, note, unseen)


def transparent_heatmap(maps: Sequence[np.ndarray], limit: float) -> Image.Image:
    """Heatmaps alone, side by side: the stronger the relevance, the more opaque the pixel.

    Args:
        maps: each [H, W]; what is 0 or NaN is transparent.
        limit: of the scale; from this |relevance| on, pixels are opaque.
    """
    height, width = maps[0].shape
    gap = max(1, width // 20)
    sheet = Image.new("RGBA", (len(maps) * (width + gap) - gap, height))
    for number, relevance in enumerate(maps):
        share = np.nan_to_num(relevance).clip(-limit, limit) / limit
        alpha = np.rint(255 * np.abs(share) ** 0.7)[..., None]
        picture = np.concatenate([_strong(share), alpha.astype(np.uint8)], axis=2)
        sheet.paste(Image.fromarray(picture), (number * (width + gap), 0))
    return sheet


def _strong(share: np.ndarray) -> np.ndarray:
    """Colours of [H, W] from -1 to 1, without the faintest: almost white, they would only lighten the background."""
    return heatmap_colours(np.sign(share) * (0.55 + 0.45 * np.abs(share)), 1)


def save_png(
    image: Image.Image, path: Path | str, metadata: Mapping[str, str], error: type[LrpError] = ImageError
) -> None:
    """Write a PNG that carries `metadata`, whole or not at all even if interrupted; replaces an older file.

    The metadata is one text chunk "lrp" of JSON in ASCII: PNG's own keys and texts cannot hold every key and file name.

    Raises:
        error: the file cannot be written.
    """
    path = Path(path)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", "lrp")
    chunks.add_text("lrp", json.dumps(dict(metadata)))
    with replacing(path, error) as draft, draft.open("wb") as file:
        image.save(file, "PNG", pnginfo=chunks)


def read_heatmap_metadata(path: Path | str) -> dict[str, str]:
    """What `save_png` was given. Empty for any file that is not a complete, undamaged PNG of `save_png`; raises nothing."""
    path = Path(path)
    try:
        if not path.is_file():  # opening a FIFO would block
            return {}
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=["PNG"]) as image:
                text = image.info["lrp"]
                image.verify()  # every chunk's checksum, without decoding; but not that of the last
            file.seek(-len(_PNG_END), os.SEEK_END)
            if file.read() != _PNG_END:
                return {}
        found = json.loads(text)
        return found if all(isinstance(value, str) for value in found.values()) else {}
    except Exception:  # for damaged files Pillow raises many kinds of exceptions
        return {}


def _expect_drawable(photo: np.ndarray, panels: Sequence[Panel], style: str) -> None:
    if style not in STYLES:
        raise ImageError(f"style={style!r}: expected one of {', '.join(STYLES)}")
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
        raise ImageError(f"expected a photo as uint8 [H, W, 3], got {photo.dtype} {list(photo.shape)}")
    if not panels:
        raise ImageError("expected at least one panel to draw, got none")
    for panel in panels:
        if panel.relevance.shape != photo.shape[:2]:
            raise ImageError(
                f"panel {panel.title!r}: expected relevance on the photo's pixels {list(photo.shape[:2])}, "
                f"got {list(panel.relevance.shape)}; Geometry.to_photo brings it there"
            )


# --- one picture ------------------------------------------------------------------------------------------


def shown_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Reduced to `max_side`, or enlarged by a whole number, so that a tiny photo's pixels stay squares."""
    longer = max(height, width)
    if longer > max_side:
        return max(1, round(height * max_side / longer)), max(1, round(width * max_side / longer))
    factor = max(1, round(min(360, max_side) / longer))
    return height * factor, width * factor


def resized_photo(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    method = Image.Resampling.LANCZOS if size < photo.shape[:2] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(photo).resize(size[::-1], method))


def resized_relevance(relevance: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """When reduced, the mean of the values that are not NaN; NaN where more than half of them are."""
    if size >= relevance.shape:
        factor = size[0] // relevance.shape[0]
        return relevance.repeat(factor, axis=0).repeat(factor, axis=1)
    seen = np.isfinite(relevance)
    total, share = (
        np.asarray(Image.fromarray(a.astype(np.float32)).resize(size[::-1], Image.Resampling.BOX))
        for a in (np.where(seen, relevance, 0), seen)
    )
    return np.where(share >= 0.5, total / np.maximum(share, 0.5), np.nan)


def _with_outlines(picture: np.ndarray, regions: Sequence[np.ndarray | None]) -> np.ndarray:
    for region in regions:
        picture = picture if region is None else outlined(picture, region)
    return picture


def _grey(photo: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).convert("L").convert("RGB"), dtype=np.float32)


def _dimmed(photo: np.ndarray) -> np.ndarray:
    """Dark, grey and hatched: different from zero relevance and from a dark photo."""
    rows, columns = np.ogrid[: photo.shape[0], : photo.shape[1]]
    period = max(8, round(max(photo.shape) / 45))
    line = (rows + columns) % period < max(1, period // 8)
    return _grey(photo) * 0.4 + 20 + 45 * line[..., None]


def _heatmap(photo: np.ndarray, relevance: np.ndarray, limit: float) -> np.ndarray:
    picture = np.where(np.isnan(relevance)[..., None], _dimmed(photo), heatmap_colours(relevance, limit))
    return picture.astype(np.uint8)


def _overlay(photo: np.ndarray, relevance: np.ndarray, limit: float) -> np.ndarray:
    share = (np.nan_to_num(relevance).clip(-limit, limit) / limit)[..., None]
    alpha = 0.9 * np.abs(share) ** 0.7
    picture = (255 - 0.75 * (255 - _grey(photo))) * (1 - alpha) + _strong(share[..., 0]) * alpha
    return np.where(np.isnan(relevance)[..., None], _dimmed(photo), picture).astype(np.uint8)


# --- the sheet: blocks of pictures with texts -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Block:
    """Pictures of one size side by side under one heading, with a colour bar of their own or without."""

    pictures: list[np.ndarray]
    title: str
    subtitle: str
    bar: float | None = None


def _sheet(blocks: Sequence[_Block], limit: float | None, note: str, unseen: bool) -> Image.Image:
    """The first block on the left, the others in a grid on its right, the legend below that grid."""
    height, width = blocks[0].pictures[0].shape[:2]
    em = min(40, max(14, round(max(width, 320, 0.6 * height) / 26)))
    line, gap = round(1.35 * em), round(1.5 * em)
    face = typeface([note, *(text for block in blocks for text in (block.title, block.subtitle))])
    small, large = font(face, em), font(face, round(1.15 * em))

    # At least 20 em, so that the texts fit beside a narrow photo.
    photo_width, panel_width = (
        max(20 * em, len(b.pictures) * (width + gap) - gap) for b in (blocks[0], blocks[1])
    )
    headings = []
    for block in blocks:
        available = photo_width if block is blocks[0] else panel_width
        heading = [
            (text, large, INK) for text in wrapped(text_in_font(block.title, face), large, available, 2)
        ]
        heading += [
            (text, small, FAINT) for text in wrapped(text_in_font(block.subtitle, face), small, available, 3)
        ]
        headings.append(heading)
    above = max(map(len, headings)) * line + round(0.4 * em)
    cell = above + height + (round(2.6 * line) if limit is None else 0)

    count = len(blocks) - 1
    columns = _columns(count, photo_width, panel_width, cell)
    left = 2 * gap + photo_width
    across = columns * (panel_width + gap) - gap
    legend_top = gap + math.ceil(count / columns) * (cell + gap)
    footer = wrapped(text_in_font(note, face), small, across, 3)
    legend_height = (0 if limit is None else round(2.4 * line)) + (len(footer) + bool(unseen)) * line

    sheet = Image.new("RGB", (left + across + gap, legend_top + legend_height + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (block, heading) in enumerate(zip(blocks, headings, strict=True)):
        row, column = divmod(max(0, index - 1), columns)
        x = gap if index == 0 else left + column * (panel_width + gap)
        y = gap + row * (cell + gap)
        for number, (text, letters, ink) in enumerate(heading):
            pen.text((x, y + number * line + em), text, font=letters, fill=ink, anchor="ls")
        for number, picture in enumerate(block.pictures):
            at = (x + number * (width + gap), y + above)
            sheet.paste(Image.fromarray(picture), at)
            pen.rectangle((at[0] - 1, at[1] - 1, at[0] + width, at[1] + height), outline=FRAME)
        if block.bar is not None:
            draw_colour_bar(sheet, (x, y + above + height + em), min(panel_width, 20 * em), block.bar, small)
    y = legend_top
    if limit is not None:
        draw_colour_bar(sheet, (left, y), min(across, 20 * em), limit, small)
        y += round(2.4 * line)
    for text in footer:
        pen.text((left, y + em), text, font=small, fill=FAINT, anchor="ls")
        y += line
    if unseen:
        swatch = _dimmed(np.full((em, 2 * em, 3), 128, np.uint8)).astype(np.uint8)
        sheet.paste(Image.fromarray(swatch), (left, y + round(0.15 * em)))
        pen.text(
            (left + round(2.6 * em), y + em), "not seen by the model", font=small, fill=FAINT, anchor="ls"
        )
    return sheet


def _columns(count: int, photo: float, panel: float, cell: float) -> int:
    """The number of columns that comes nearest to a wide screen's shape and leaves few cells empty."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        shape = (photo + columns * panel) / (rows * cell)
        return abs(math.log(shape / 2.4)) + 1.3 * (rows * columns - count) / columns

    return min(range(1, count + 1), key=cost)


def draw_colour_bar(sheet: Image.Image, at: tuple[int, int], width: int, limit: float, letters: Font) -> None:
    x, y = at
    high = round(0.8 * letters.size)
    shades = heatmap_colours(np.linspace(-limit, limit, width)[None].repeat(high, axis=0), limit)
    sheet.paste(Image.fromarray(shades), at)
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((x - 1, y - 1, x + width, y + high), outline=FRAME)
    for share, text, anchor in ((0, f"-{limit:.3g}", "ls"), (0.5, "0", "ms"), (1, f"+{limit:.3g}", "rs")):
        mark = (x + share * (width - 1), y + high + 1.2 * letters.size)
        pen.text(mark, text, font=letters, fill=INK, anchor=anchor)


def _ordinal(number: float) -> str:
    text = f"{number:g}"
    teens = text[-2:] in ("11", "12", "13") and "." not in text
    return text + ("th" if teens else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th"))
