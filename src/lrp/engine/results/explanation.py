"""What an explainer returns: relevance, logits, target; ledger and health on first access; and how it is displayed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrp.engine.model_state import ModelState, tensor_version
from lrp.engine.results.account import reached_words
from lrp.engine.results.health import Health, judge_health
from lrp.engine.results.ledger import Ledger
from lrp.engine.targets import Start
from lrp.errors import LedgerError

if TYPE_CHECKING:
    from PIL import Image

    from lrp.engine.explainer import Explainer
    from lrp.engine.results.display import Geometrical, PhotoLike


class _Pictures:
    """Drawing, which `Explanation` and `Explanations` have in common."""

    def _entries(self) -> Sequence[Explanation]:
        raise NotImplementedError

    def heatmap(
        self, photo: PhotoLike | None = None, index: int = 0, preprocessing: Geometrical | None = None
    ) -> Image.Image:
        """The photo with the heatmap beside it, one for each target: red supports the target, blue opposes it.

        Signals [N, C, L] are drawn as traces coloured by relevance, volumes [N, C, D, H, W] as their most relevant
        slices, clips [N, 3, T, H, W] as frames, rows [N, F] as bars; one target below the other.

        Args:
            photo: the photo that was explained: a path, a `Photo`, a PIL image, or uint8 [H, W, 3]. None: the
                model's input, with its brightness stretched. Only for images.
            index: which of the images.
            preprocessing: how that photo became the model's input, so that the heatmap is aligned with it; None:
                the explainer's. Not needed for a photo of the input's size.

        Returns:
            A PIL image, as `lrp explain` writes it.

        Raises:
            InputError: no such image; no picture to draw on, or a photo for what is no image; it is not known which
                part of the photo was the input.
            ImageError: the photo cannot be read.
        """
        from lrp.engine.results import display  # only drawing needs it

        return display.explanation_picture(self._entries(), photo, index, preprocessing)

    def save(
        self,
        path: str | Path,
        photo: PhotoLike | None = None,
        index: int = 0,
        preprocessing: Geometrical | None = None,
    ) -> Path:
        """Write `heatmap(photo, index, preprocessing)` as a PNG file, whole or not at all; returns its path.

        Raises:
            ImageError: the name does not end in .png, or the file cannot be written.
        """
        from lrp.engine.results import display

        return display.save(self._entries(), Path(path), photo, index, preprocessing)

    def show(
        self, photo: PhotoLike | None = None, index: int = 0, preprocessing: Geometrical | None = None
    ) -> None:
        """Show `heatmap(photo, index, preprocessing)`: in a notebook below the cell, elsewhere in an image viewer.

        Raises:
            ImageError: there is neither.
        """
        from lrp.engine.results import display

        display.show(self.heatmap(photo, index, preprocessing))

    def _repr_html_(self) -> str:
        """How a notebook shows it: photo, heatmap, target and health of the first images."""
        from lrp.engine.results import display

        return display.display_explanations_html(self._entries())

    def _repr_png_(self) -> bytes | None:
        """The first image's picture, for frontends without HTML; None if there is none or a value is not finite."""
        from lrp.engine.results import display

        return display.display_png(self._entries())


@dataclass(repr=False)
class Explanation(_Pictures):
    """How much of the targets' logits reached each pixel.

    Attributes:
        relevance: [N, C, H, W], in logits (in units of the start); its sum over an image is what reached
            the pixels.
        logits: [N, K], the model's.
        target: [N], the class explained; for a contrast its first, for a given start its largest entry.
        start: [N, K], the start relevance at the logits.
    """

    relevance: Tensor
    logits: Tensor
    target: Tensor
    start: Tensor
    _explainer: Explainer
    _images: Tensor
    _images_version: int
    _state: ModelState
    _request: Start

    def __len__(self) -> int:
        return len(self.relevance)

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The account of every operation; computed on first access, from the images, of which a reference is kept.

        Raises:
            LedgerError: the model's weights or the images have changed since.
        """
        if tensor_version(self._images) != self._images_version:
            raise LedgerError("the images were written to after they were explained: explain them again.")
        if not self._state.holds(self._explainer.model):
            raise LedgerError(
                "the model's weights changed after the explanation: explain again for a ledger."
            )
        return self._explainer._ledger(self._images, self._request)

    @functools.cached_property
    def health(self) -> Health:
        """Whether this is computed correctly, with notes; from the ledger and the model's own logits."""
        ledger = self.ledger
        own = self._explainer._own_output(self._images)
        explained = self.logits.gather(1, self.target[:, None])
        negative = self._explainer.seed == "one" and bool((explained < 0).any())
        output = self._explainer._as_output(self.logits)
        return judge_health(
            ledger, self.logits, output, own, self.relevance, negative, self._explainer.low_precision
        )

    @property
    def unit(self) -> str:
        """What relevance is counted in: "logits", or "shares of the softmax" where that is the start."""
        return "shares of the softmax" if self._explainer.seed == "softmax" else "logits"

    def __repr__(self) -> str:
        shape = list(self.relevance.shape[1:])
        if len(self) == 1:
            return f"Explanation(1 image {shape}, {self._line(0)})"
        classes = ", ".join(str(int(k)) for k in self.target[:4]) + (", ..." if len(self) > 4 else "")
        return f"Explanation({len(self)} images {shape}, classes {classes})"

    def __str__(self) -> str:
        return "\n".join(f"image {i}: {self._line(i)}" for i in range(len(self)))

    def _line(self, i: int) -> str:
        target = int(self.target[i])
        relevance, start = float(self.relevance[i].double().sum()), float(self.start[i].double().sum())
        words = reached_words(relevance, start, self.unit, relevance / start if start else None)
        return f"class {target}, logit {float(self.logits[i, target]):.4g}, {words}"

    def _entries(self) -> Sequence[Explanation]:
        return [self]


@dataclass(repr=False)
class Explanations(_Pictures, Sequence[Explanation]):
    """T explanations of the same images; `relevance` is [T, N, C, H, W]."""

    relevance: Tensor
    logits: Tensor
    target: Tensor
    start: Tensor
    entries: list[Explanation] = field(repr=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def __repr__(self) -> str:
        count = len(self.logits)
        return (
            f"Explanations({len(self)} of {count} image{'s' * (count != 1)} {list(self.relevance.shape[2:])})"
        )

    def __str__(self) -> str:
        return "\n".join(
            f"explanation {i}: {line}" for i, e in enumerate(self.entries) for line in str(e).splitlines()
        )

    def _entries(self) -> Sequence[Explanation]:
        return self.entries
