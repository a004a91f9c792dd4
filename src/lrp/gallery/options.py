"""Options for explaining, drawing and saving photos, as one value: used by command line, library, study and report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lrp.engine import presets
from lrp.engine.composite import Composite
from lrp.engine.default_preset import default_preset
from lrp.engine.explainer import PRECISIONS
from lrp.engine.graph.canonical import Graph
from lrp.errors import ImageError, OptionError
from lrp.gallery.formats import FORMATS
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.heatmap import STYLES
from lrp.pictures.levels import check_range


@dataclass(frozen=True)
class ExplainOptions:
    """How photos are explained, drawn and saved.

    Attributes:
        composite: a preset's name, or a `Composite`; None: the preset that fits the architecture.
        bias: "absorb" (biases keep their share of the relevance), "ignore" (they get none); None: the preset's value.
        epsilon: the stabiliser of every rule; None: the preset's value.
        top_k: keep this fraction of the largest relevance at each layer; 0 keeps all.
        style: "heatmap", "overlay" or "both": what is drawn beside the photo.
        percentile: of |relevance|, where the colour scale ends; above 0, up to 100.
        shared_scale: one colour scale for all photos, so that they can be compared.
        size: side of the model's input in pixels; None: the size it was trained with.
        device: "auto" (a GPU if available), "cpu", "cuda", "cuda:1", "mps".
        precision: "exact", or "mixed": sums of one sign in bfloat16.
        batch_size: photos per batch.
        max_megapixels: larger photos are skipped without being read.
        range: (LOW, HIGH), the levels of photos deeper than 8 bits that are black and white; None: as `open_photo` finds
            for each file.
        save: files written for each photo: "png" (the picture), "npz" (relevance and logits as arrays), "heatmap" (the
            heatmap alone, transparent). A result is kept by a later run only if "png" is among them: the picture holds its
            facts.
        overwrite: compute up-to-date results again.
        arch, labels, preprocess: arguments of `load_model`.

    Raises:
        OptionError: invalid values; the message names all of them.
        CompositeError: no such preset, or the preset does not allow this bias, epsilon or top_k.
    """

    composite: str | Composite | None = None
    bias: str | None = None
    epsilon: float | None = None
    top_k: float = 0.0
    style: str = "heatmap"
    percentile: float = 99.5
    shared_scale: bool = False
    size: int | None = None
    device: str = "auto"
    precision: str = "exact"
    batch_size: int = 8
    max_megapixels: float = 100.0
    save: tuple[str, ...] = ("png",)
    overwrite: bool = False
    arch: str | None = None
    labels: str | Path | Sequence[str] | None = None
    range: tuple[float, float] | None = None
    preprocess: str | Path | Preprocessing | None = None

    def __post_init__(self) -> None:
        if isinstance(self.save, list):
            object.__setattr__(self, "save", tuple(self.save))
        if isinstance(self.range, list):
            object.__setattr__(self, "range", tuple(self.range))
        wrong = [f"{name}={getattr(self, name)!r}: expected {words}" for name, words in self._wrong()]
        if wrong:
            raise OptionError("; ".join(wrong))
        if not isinstance(self.composite, Composite):
            self._preset(self.composite or "epsilon_gamma_box", low=-1.0, high=1.0)  # checks the settings now

    def _wrong(self) -> list[tuple[str, str]]:
        """(option, expected value) of each invalid option."""
        formats = isinstance(self.save, tuple) and self.save and all(name in FORMATS for name in self.save)
        fits = {
            "composite": (
                self.composite is None or isinstance(self.composite, str | Composite),
                "a preset's name, an lrp.Composite, or None",
            ),
            "style": (self.style in STYLES, _one_of(STYLES)),
            "percentile": (_number(self.percentile) and 0 < self.percentile <= 100, "above 0 and up to 100"),
            "size": (self.size is None or _whole(self.size), "a whole number of pixels from 1 on, or None"),
            "device": (isinstance(self.device, str), "'auto', or a device's name"),
            "precision": (self.precision in PRECISIONS, _one_of(PRECISIONS)),
            "batch_size": (_whole(self.batch_size), "a whole number from 1 on"),
            "max_megapixels": (
                _number(self.max_megapixels) and self.max_megapixels >= 0,
                "a number from 0 on",
            ),
            "range": (_range(self.range), "(LOW, HIGH), two finite numbers, LOW below HIGH, or None"),
            "save": (bool(formats), f"a tuple of at least one of {', '.join(map(repr, FORMATS))}"),
        }
        wrong = [(name, words) for name, (right, words) in fits.items() if not right]
        if isinstance(self.composite, Composite):
            wrong += [
                (name, f"{default_preset!r} beside a Composite, which has rules of its own")
                for name, default_preset in (("bias", None), ("epsilon", None), ("top_k", 0.0))
                if getattr(self, name) != default_preset
            ]
        return wrong

    def _preset(self, name: str, **bounds: Any) -> Composite:
        return presets.preset(name, **bounds, **self._settings())

    def _settings(self) -> dict[str, Any]:
        bias = {} if self.bias is None else {"bias": self.bias}
        return {"epsilon": self.epsilon, "top_k": self.top_k} | bias

    def rules(self, preprocessing: Preprocessing) -> Composite | Callable[[Graph], Composite]:
        """The composite for inputs with this preprocessing, as an argument for `Explainer`."""
        if isinstance(self.composite, Composite):
            return self.composite
        bounds: dict[str, Any] = {"low": preprocessing.low, "high": preprocessing.high}
        if self.composite is None:
            return partial(default_preset, **bounds, **self._settings())
        return self._preset(self.composite, **bounds)

    @property
    def composite_name(self) -> str | None:
        """The preset's name, or the description of a `Composite`; None: chosen for the architecture."""
        return self.composite.describe() if isinstance(self.composite, Composite) else self.composite


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _range(value: Any) -> bool:
    try:
        check_range(value)
    except ImageError:
        return False
    return True


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


DEFAULT_OPTIONS = ExplainOptions()
