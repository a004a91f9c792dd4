"""A processor of transformers -> `Preprocessing`: what the processor does is measured, and proven on photos of noise."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from lrp.errors import ModelError
from lrp.models.geometries import ProcessorGeometry, TensorGeometry, measured
from lrp.models.hugging_face.processor_calls import levels_of, processed, settings_of
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.geometry import INTERPOLATIONS, Geometry

# (height, width) of the photos: of both parities, lying, standing, small, square. In the first two a ramp of grey has about one
# level for each pixel.
SIZES = ((201, 254), (254, 201), (301, 427), (60, 83), (224, 224))
TOLERANCE = 1e-5  # of an input's value; one level of grey is more than a hundred times that


def preprocessing_of_processor(processor: Any, name: str) -> Preprocessing:
    """The preprocessing that gives what the processor gives; with a `ProcessorGeometry` only if no other does.

    Args:
        processor: an image processor of transformers.
        name: of the model, for messages.

    Raises:
        ModelError: what it gives is no image of one or three channels with values in proportion to the photo's levels.
    """
    try:
        mean, std, bgr = levels_of(processor)
        photos = [_noise(*size) for size in SIZES]
        wanted = [processed(processor, photo) for photo in photos]
        sizes = {(int(values.shape[1]), int(values.shape[2])) for values in wanted}
        crop = sizes.pop() if len(sizes) == 1 else None
        own = ProcessorGeometry(None, crop, settings=settings_of(processor))
        for geometry in _geometries(own):
            found = Preprocessing(geometry, mean, std, bgr=bgr)
            if _gives(found, photos, wanted):
                return found
        found = Preprocessing(own, mean, std)
        if _gives(found, photos, wanted):
            return found
        reason = "the levels of its images are not in proportion to the photo's"
    except Exception as error:  # a processor can raise anything
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    raise ModelError(
        f"{name}: what its {type(processor).__name__} does with photos cannot be led back to their pixels ({reason}); give a "
        "preprocessing (--preprocess FILE)."
    )


def _geometries(own: ProcessorGeometry) -> Iterator[Geometry]:
    """What the processor may do, the likeliest first: from where it puts the photo's edges, measured to about half a pixel."""
    (_, lying, _), (_, standing, _) = (measured(own, *size) for size in SIZES[:2])
    shorter, both = min(lying), max(abs(np.subtract(lying, standing))) < 2
    resizes: list[int | tuple[int, int] | None]
    if max(abs(np.subtract(lying, SIZES[0]))) < 1:
        resizes = [None]
    elif both:
        high, wide = (round(float(side)) for side in np.add(lying, standing) / 2)
        resizes = [(high, wide)] if own.crop is None else list(dict.fromkeys([own.crop, (high, wide)]))
    else:
        resizes = [round(shorter) + step for step in (0, -1, 1)]
    for resize, kind, interpolation in product(resizes, (TensorGeometry, Geometry), INTERPOLATIONS):
        yield kind(resize, own.crop, interpolation)


def _gives(found: Preprocessing, photos: Sequence[np.ndarray], wanted: Sequence[Tensor]) -> bool:
    """Whether the preprocessing gives what was wanted of each photo."""
    for photo, values in zip(photos, wanted, strict=True):
        ours = found(photo)
        if ours.shape != values.shape or float((ours - values).abs().max()) > TOLERANCE:
            return False
    return True


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
