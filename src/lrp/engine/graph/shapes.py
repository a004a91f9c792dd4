"""Shapes: for one image, for any number of images, per dimension, of operands that broadcast, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batch:
    """A size that is a multiple of the number of images: N, or 64N where windows are part of the batch dimension."""

    times: int = 1

    def __str__(self) -> str:
        return "N" if self.times == 1 else f"{self.times}N"

    __repr__ = __str__


Size = int | Batch
Shape = tuple[Size, ...]


def sizes_per_dimension(value: Any, n: int) -> list[int]:
    """A size given once, or once per dimension, as a list."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * n if len(values) == 1 else values


def shape_for_reshape(shape: Shape) -> list[int]:
    """A shape as `reshape` takes it: the one size that depends on the batch is -1."""
    return [-1 if isinstance(size, Batch) else size for size in shape]


def shape_of_one_image(shape: Shape) -> list[int]:
    """The shape for a single image."""
    return [size.times if isinstance(size, Batch) else size for size in shape]


def broadcast_shape(*shapes: Shape) -> Shape:
    """The shape of an elementwise operation on operands of these shapes."""
    rank = max(map(len, shapes))
    full = [(*[1] * (rank - len(shape)), *shape) for shape in shapes]
    return tuple(next((size for size in sizes_ if size != 1), 1) for sizes_ in zip(*full, strict=True))


def shape_text(shape: Sequence[Size]) -> str:
    return "[" + ", ".join(str(s) for s in shape) + "]"


def sum_to_shape(r: Any, shape: Shape, wanted: Shape) -> Any:
    """Sum relevance of `shape` back over the dimensions along which an operand of shape `wanted` was broadcast."""
    extra = len(shape) - len(wanted)
    if extra:
        r = r.sum(dim=list(range(extra)))
    grown = [i for i, size in enumerate(wanted) if size == 1 and shape[i + extra] != 1]
    return r.sum(dim=grown, keepdim=True) if grown else r
