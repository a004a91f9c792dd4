"""The contour of a region, drawn on a picture: dark inside, light outside, so that it shows on any colour."""

import numpy as np
from PIL import Image

from lrp.errors import ImageError

DARK, LIGHT = (25, 25, 25), (255, 255, 255)


def outlined(picture: np.ndarray, region: np.ndarray, width: int | None = None) -> np.ndarray:
    """A copy of the picture with the region's contour; the picture's own edge is none.

    Args:
        picture: uint8 [H, W, 3].
        region: bool [H, W].
        width: of each of the two lines, in pixels; None: thin for the picture's size.

    Raises:
        ImageError: the region has another size than the picture.
    """
    if region.shape != picture.shape[:2]:
        raise ImageError(
            f"expected a region on the picture's pixels {list(picture.shape[:2])}, got {list(region.shape)}"
        )
    width = max(1, round(max(region.shape) / 450)) if width is None else width
    drawn = picture.copy()
    drawn[region & _grown(~region, width)] = DARK
    drawn[~region & _grown(region, width)] = LIGHT
    return drawn


def resized_region(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A region, bool [H, W], as one of (height, width) pixels: each belongs to it if the nearest does."""
    if region.shape == size:
        return region
    return np.asarray(Image.fromarray(region).resize(size[::-1], Image.Resampling.NEAREST))


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask and what is at most `steps` steps up, down, left or right of it."""
    for _ in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask
