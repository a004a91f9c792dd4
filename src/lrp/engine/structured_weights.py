"""Weights with a structure.

A mean, a layer norm or an upsampling is a matrix too, but too large to be stored as one. A structure stores it
in few numbers, and computes its own positive part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Structured(ABC):
    """A matrix stored in few numbers. Its versions have the same class."""

    empty: bool = False  # all entries are known to be 0

    @abstractmethod
    def positive(self) -> Structured: ...
    @abstractmethod
    def negative(self) -> Structured: ...
    @abstractmethod
    def square(self) -> Structured: ...
    @abstractmethod
    def ones(self) -> Structured: ...
    @abstractmethod
    def __add__(self, other: Any) -> Any: ...
    @abstractmethod
    def __rmul__(self, number: float) -> Any: ...


def all_weights_alike(w: Tensor) -> bool:
    """Whether the tensor is an expanded scalar: all entries share one element in memory."""
    return not any(w.stride())


@dataclass(frozen=True)
class Uniform(Structured):
    """Weights that are equal for all inputs of an output, as in a mean or a sum: factor · u^power, where u is
    the operation's own weight of that output, 1 / (size of its window)."""

    factor: float = 1.0
    power: int = 1

    @property
    def empty(self) -> bool:  # type: ignore[override]
        return self.factor == 0

    def positive(self) -> Uniform:
        return Uniform(max(self.factor, 0.0), self.power)

    def negative(self) -> Uniform:
        return Uniform(min(self.factor, 0.0), self.power)

    def square(self) -> Uniform:
        return Uniform(self.factor**2, 2 * self.power)

    def ones(self) -> Uniform:
        return Uniform(1.0, 0)

    def __add__(self, other: Any) -> Uniform:
        return Uniform(self.factor + other.factor, self.power)

    def __rmul__(self, number: float) -> Uniform:
        return Uniform(number * self.factor, self.power)


Matrices = tuple[Tensor, ...]


@dataclass(frozen=True)
class Separable(Structured):
    """Σ of products of one matrix per spatial dimension, which act one after the other, as an upsampling does.

    terms: of each, the matrices [out, in] along the last dimensions, such as (rows [H', H], columns [W', W]).
    """

    terms: tuple[Matrices, ...]

    @property
    def empty(self) -> bool:  # type: ignore[override]
        return not any(_nonzero(term) for term in self.terms)

    def _single(self) -> Matrices:
        (term,) = self.terms  # versions are computed only from an operation's own weight, which has one term
        return term

    def _of_sign(self, negatives: int) -> Separable:
        """The entries that are products of an odd (1) or even (0) number of negative factors."""
        terms: list[Matrices] = [()]
        parity = [0]
        for m in self._single():
            terms = [(*term, part) for term in terms for part in (m.clamp(min=0), m.clamp(max=0))]
            parity = [(p + own) % 2 for p in parity for own in (0, 1)]
        wanted = [term for term, p in zip(terms, parity, strict=True) if p == negatives]
        return Separable(tuple(filter(_nonzero, wanted)) or tuple(wanted[:1]))

    def positive(self) -> Separable:
        return self._of_sign(0)

    def negative(self) -> Separable:
        return self._of_sign(1)

    def square(self) -> Separable:
        return Separable((tuple(m * m for m in self._single()),))

    def ones(self) -> Separable:
        return Separable((tuple((m != 0).to(m.dtype) for m in self._single()),))

    def __add__(self, other: Any) -> Separable:
        return Separable(self.terms + other.terms)

    def __rmul__(self, number: float) -> Separable:
        return Separable(tuple((number * first, *rest) for first, *rest in self.terms))

    def forward(self, a: Any) -> Any:
        parts = [_along_each(a, term) for term in self.terms]
        return sum(parts[1:], start=parts[0])

    def adjoint(self, s: Any) -> Any:
        parts = [_along_each(s, [m.t() for m in term]) for term in self.terms]
        return sum(parts[1:], start=parts[0])


def _along_each(a: Any, matrices: Sequence[Tensor]) -> Any:
    """Each matrix [out, in] along its own one of the last dimensions of `a`."""
    a = a @ matrices[-1].t()
    made = [len(matrices[-1])]
    for m in reversed(matrices[:-1]):
        a = m @ a if len(made) == 1 else (m @ a.flatten(-len(made))).unflatten(-1, made)
        made = [len(m), *made]
    return a


def _nonzero(term: Matrices) -> bool:
    return all(bool(m.any()) for m in term)


@dataclass(frozen=True)
class Centred(Structured):
    """z_k = own_k a_k + shared_k Σ_j a_j: a layer norm whose scale is a constant.

    own, shared: per output; tensors or proxies. The entry on the diagonal is own + shared.
    """

    own: Any
    shared: Any

    def _of(self, diagonal: Any, shared: Any) -> Centred:
        return Centred(diagonal - shared, shared)

    def positive(self) -> Centred:
        return self._of((self.own + self.shared).clamp(min=0), self.shared.clamp(min=0))

    def negative(self) -> Centred:
        return self._of((self.own + self.shared).clamp(max=0), self.shared.clamp(max=0))

    def square(self) -> Centred:
        return self._of((self.own + self.shared).square(), self.shared.square())

    def ones(self) -> Centred:
        return Centred(torch.zeros_like(self.own), torch.ones_like(self.shared))

    def __add__(self, other: Any) -> Centred:
        return Centred(self.own + other.own, self.shared + other.shared)

    def __rmul__(self, number: float) -> Centred:
        return Centred(number * self.own, number * self.shared)


@dataclass(frozen=True)
class NonNegative(Structured):
    """Weights >= 0 that are known only by what they do, as those of an interpolation at computed places: times a factor.

    Versions that need the single weights (w², 1) do not exist.
    """

    factor: float = 1.0

    @property
    def empty(self) -> bool:  # type: ignore[override]
        return self.factor == 0

    def positive(self) -> NonNegative:
        return NonNegative(max(self.factor, 0.0))

    def negative(self) -> NonNegative:
        return NonNegative(min(self.factor, 0.0))

    def square(self) -> NonNegative:
        raise TypeError("the single weights are not known")

    def ones(self) -> NonNegative:
        raise TypeError("the single weights are not known")

    def __add__(self, other: Any) -> NonNegative:
        return NonNegative(self.factor + other.factor)

    def __rmul__(self, number: float) -> NonNegative:
        return NonNegative(number * self.factor)
