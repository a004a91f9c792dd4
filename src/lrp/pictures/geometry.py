"""Which part of a photo the model sees, at which size; and back: values on the model's input onto the photo's pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from lrp.errors import ImageError

RESIZED = 100_000_000  # pixels: a photo 1 pixel wide and 100,000 high would otherwise become 6.5 gigapixels

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Geometry:
    """Resize the shorter side (or both), then crop the centre: the part of a photo that the model sees."""

    resize: int | tuple[int, int] | None
    """The shorter side's new length, or (height, width) for both sides, or None: not resized."""
    crop: tuple[int, int] | None
    """(height, width) of the model's input. A photo that is smaller is padded with black. None: the whole resized photo, so
    that the input has the photo's proportions."""
    interpolation: str = "bilinear"
    """One of "nearest", "bilinear", "bicubic" or "lanczos"."""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ImageError(f"Geometry(interpolation={self.interpolation!r}): expected one of {known}")
        sides = (
            self.resize if isinstance(self.resize, tuple) else (1 if self.resize is None else self.resize,)
        )
        crop = (1, 1) if self.crop is None else self.crop
        if len(crop) != 2 or len(sides) > 2 or min(*sides, *crop) < 1:
            raise ImageError(
                f"Geometry(resize={self.resize}, crop={self.crop}): expected sides of at least 1, "
                "resize as one side or (height, width), crop as (height, width) or None"
            )

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [*input_size, 3], bit for bit what torchvision's Resize and CenterCrop make.

        Raises:
            ImageError: the photo is so narrow that it would be resized to more than `RESIZED` pixels.
        """
        resized, (top, left) = self._placement(*pixels.shape[:2])
        high, wide = self.input_size(*pixels.shape[:2])
        image = Image.fromarray(self._resize(pixels, resized))
        return np.array(image.crop((left, top, left + wide, top + high)))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the model's input for a photo of that size: the crop, if there is one."""
        return self.crop or self._resized(height, width)

    @property
    def input_words(self) -> str:
        """The input's size in words: "224 x 224 pixels"."""
        size = self.crop or self.resize
        if size is None:
            return "the whole photo"
        if isinstance(size, int):
            return f"the whole photo, its shorter side of {size} pixels"
        return f"{size[1]} x {size[0]} pixels"

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the crop in the photo's pixels; outside the photo where it is padded."""
        resized, (top, left) = self._placement(height, width)
        high, wide = self.input_size(height, width)
        down, across = height / resized[0], width / resized[1]
        return left * across, top * down, (left + wide) * across, (top + high) * down

    def to_photo(self, values: np.ndarray, height: int, width: int) -> np.ndarray:
        """Values on the model's input, [*input_size] -> float32 [height, width], NaN outside the crop.

        Values are interpolated linearly between the centres of the model's pixels: no value exceeds its
        neighbours, whereas blocks would show edges that neither photo nor relevance has, and bicubic
        interpolation would add values of the other sign. If the photo has fewer pixels than the model's input,
        each photo pixel is the weighted mean of the model pixels that it covers, so that no large value is
        skipped. Values are kept, not their sum: each is what a pixel of the *model's* input received.

        Raises:
            ImageError: not the model's input size, or not finite.
        """
        sizes = self.input_size(height, width)
        if values.shape != sizes:
            raise ImageError(f"expected relevance of the model's input size {sizes}, got {values.shape}")
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise ImageError(
                f"expected finite relevance, got {count} of {values.size} values NaN or infinite"
            )
        resized, offsets = self._placement(height, width)
        rows, columns = (
            _linear_weights(length, new / length, offset, size)
            for length, new, offset, size in zip((height, width), resized, offsets, sizes, strict=True)
        )
        return rows @ values.astype(np.float32) @ columns.T

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing."""
        if self.resize is None:
            resized = height, width
        elif isinstance(self.resize, tuple):
            resized = self.resize
        elif width <= height:
            resized = int(self.resize * height / width), self.resize
        else:
            resized = self.resize, int(self.resize * width / height)
        if resized[0] * resized[1] > RESIZED:
            raise ImageError(
                f"{width} x {height} pixels are too narrow: with the shorter side at {self.resize} they become "
                f"{resized[0] * resized[1] / 1e6:.6g} megapixels, the limit is {RESIZED / 1e6:g}; crop the photo"
            )
        return resized

    def _resize(self, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [*size, 3]."""
        return np.asarray(Image.fromarray(pixels).resize(size[::-1], INTERPOLATIONS[self.interpolation]))

    def _placement(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) after resizing, and (top, left) of the crop in it; negative where it is padded."""
        resized = self._resized(height, width)
        top, left = map(self._offset, resized, self.crop or resized)
        return resized, (top, left)

    @staticmethod
    def _offset(length: int, size: int) -> int:
        """Where a crop of `size` pixels begins in `length`; negative where it is padded."""
        # torchvision pads the odd pixel at the end, but rounds the crop's offset half to even.
        return -((size - length) // 2) if size > length else round((length - size) / 2)


def _linear_weights(length: int, scale: float, offset: int, size: int) -> np.ndarray:
    """float32 [length, size]: the weight of each model pixel in each photo pixel, along one axis.

    `scale` is the model's pixels per photo pixel. The weights are a triangle around the photo pixel's centre, to each side as
    wide as a model pixel or a photo pixel, whichever is larger. NaN where that centre is outside the crop.
    """
    centre = (np.arange(length) + 0.5) * scale - offset
    distance = np.abs(centre[:, None] - (np.arange(size) + 0.5))
    weights = np.maximum(0, 1 - distance / max(1.0, scale))
    unseen = (centre < 0) | (centre >= size)
    weights[unseen] = np.nan
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
