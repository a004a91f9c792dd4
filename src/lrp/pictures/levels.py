"""Grey levels deeper than 8 bits -> 8 bits: which level becomes black, and which white."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from lrp.errors import ImageError

Range = tuple[float, float]
DEPTHS = (8, 10, 12, 14, 16)  # of cameras, scanners and detectors, which store all of them as 16 bits
SUSPICIOUS = 63  # the largest upper byte of a channel of 14 bits


class NoRange(Exception):
    """The levels alone do not say what is black and what is white."""


def check_range(given: object) -> Range | None:
    """(LOW, HIGH) as floats; None stays None.

    Raises:
        ImageError: not two finite numbers, LOW below HIGH.
    """
    if given is None:
        return None
    if (
        isinstance(given, tuple | list)
        and len(given) == 2
        and all(map(_is_number, given))
        and given[0] < given[1]
    ):
        return float(given[0]), float(given[1])
    raise ImageError(f"range={given!r}: expected (LOW, HIGH), two finite numbers, LOW below HIGH")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_deep(image: Image.Image) -> bool:
    """Whether it holds one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def eight_bits(image: Image.Image, given: Range | None) -> tuple[np.ndarray, str]:
    """uint8 [H, W], by the rule that `open_photo` documents; and what was assumed, "" if nothing was.

    Raises:
        NoRange: floats outside 0 to 1, and no range is given.
        ValueError: there is no finite value.
    """
    levels = np.asarray(image).astype(np.float32 if image.mode == "F" else np.float64)
    finite = levels[np.isfinite(levels)]
    if not finite.size:
        raise ValueError("no finite value")
    (start, end), note = (given, "") if given else _range(image, float(finite.min()), float(finite.max()))
    scaled = (np.nan_to_num(levels, nan=start, posinf=end, neginf=start) - start) / max(end - start, 1e-30)
    grey = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    if image.mode == "I;16" and _tag(image, PHOTOMETRIC) == 0:
        grey = 255 - grey  # "white is zero", which Pillow handles up to 8 bits only
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[np.asarray(image) == clear] = 255
    return grey, note


BITS_PER_SAMPLE, PHOTOMETRIC, LEAST, LARGEST = 258, 262, 340, 341  # tags of TIFF


def _tag(image: Image.Image, number: int) -> float | None:
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    value = tags.get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int | float) else None


def _range(image: Image.Image, low: float, high: float) -> tuple[Range, str]:
    """Black and white of a file whose levels are `low` to `high`, and what was assumed."""
    largest, least = _tag(image, LARGEST), _tag(image, LEAST) or 0.0
    if largest is not None and least < largest and least <= low and high <= largest:
        return (least, largest), ""
    if image.mode == "F":
        if low >= 0 and high <= 1:
            return (0.0, 1.0), ""
        raise NoRange(
            f"holds floats from {low:g} to {high:g}, and nothing says which is black and which white: "
            "say it with --range LOW HIGH (range=(LOW, HIGH))"
        )
    sixteen = (
        image.mode.startswith("I;16") or image.format == "PNG"
    )  # older Pillow opens a PNG of 16 bits as "I"
    stored = int(_tag(image, BITS_PER_SAMPLE) or 16) if sixteen else 32
    if stored < 16:
        return (0.0, 2.0**stored - 1), ""
    if low < 0 or high > 65535:
        return (low, high), f"levels {low:g} to {high:g}, the file's own, are black to white"
    bits = next(depth for depth in DEPTHS if high <= 2**depth - 1)
    if bits == stored:
        return (0.0, 65535.0), ""
    return (0.0, 2.0**bits - 1), f"{bits} of {stored} bits: levels 0 to {2**bits - 1} are black to white"


def shallow_colours(image: Image.Image, rawmodes: list[str], rgb: np.ndarray) -> str:
    """A note for colours of 16 bits that look as if they used fewer: Pillow reads the upper 8 only."""
    largest = int(rgb.max(initial=0))
    if any(";16" in mode for mode in rawmodes) and not is_deep(image) and largest <= SUSPICIOUS:
        return f"colours of 16 bits are read by their upper 8, and these reach {largest} of 255"
    return ""
