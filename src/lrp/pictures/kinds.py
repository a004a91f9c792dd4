"""The kind of an input, by its shape alone: row, signal, image, volume, clip; what it consists of and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from lrp.pictures.signals import draw_signal
from lrp.pictures.table_rows import draw_row
from lrp.pictures.volumes import draw_volume, is_clip


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        name: of one of them.
        places: what it consists of.
        draw: (input, panels, heading=, unit=) -> a picture; None for images, which lie on a photo, and for the unknown.
    """

    name: str
    places: str
    draw: Callable[..., Image.Image] | None


ROW = Kind("row", "features", draw_row)
SIGNAL = Kind("signal", "samples", draw_signal)
IMAGE = Kind("image", "pixels", None)
VOLUME = Kind("volume", "voxels", draw_volume)
CLIP = Kind("clip", "pixels", draw_volume)
UNKNOWN = Kind("input", "input", None)


def kind_of(shape: Sequence[int]) -> Kind:
    """shape: of one input, such as [C, L]."""
    if is_clip(shape):
        return CLIP
    return {1: ROW, 2: SIGNAL, 3: IMAGE, 4: VOLUME}.get(len(shape), UNKNOWN)
