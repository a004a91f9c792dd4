"""What an explainer returns: relevance, logits, target; ledger and health on first access."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrp.engine.ledger import Health, Ledger, judge
from lrp.engine.model_state import Stamp, version
from lrp.engine.targets import Start
from lrp.errors import LedgerError

if TYPE_CHECKING:
    from lrp.engine.explainer import Explainer


@dataclass
class Explanation:
    """What of the targets' logits reached the pixels.

    Attributes:
        relevance: [N, C, H, W], in logits (in units of the start); its sum over an image is what reached
            the pixels.
        logits: [N, K], the model's.
        target: [N], the class explained; of a contrast its first, of a given start its largest entry.
        start: [N, K], the relevance that was handed in at the logits.
    """

    relevance: Tensor
    logits: Tensor
    target: Tensor
    start: Tensor
    _explainer: Explainer = field(repr=False)
    _images: Tensor = field(repr=False)
    _images_version: int = field(repr=False)
    _stamp: Stamp = field(repr=False)
    _request: Start = field(repr=False)

    def __len__(self) -> int:
        return len(self.relevance)

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The account of every operation; computed on first access, from a reference to the images.

        Raises:
            LedgerError: the model's weights or the images have changed since.
        """
        if version(self._images) != self._images_version:
            raise LedgerError("the images were written to after they were explained: explain them again.")
        if not self._stamp.holds(self._explainer.model):
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
        return judge(ledger, self.logits, output, own, self.relevance, negative, self._explainer.coarse)

    def __str__(self) -> str:
        reached = self.relevance.flatten(1).sum(1)
        lines = [
            f"image {i}: class {int(self.target[i])}, logit {float(self.logits[i, self.target[i]]):.4g}, "
            f"reached the pixels: {float(reached[i]):.4g} of {float(self.start[i].sum()):.4g}"
            for i in range(len(self))
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """How a notebook shows it: photo, heatmap, target and health of the first images."""
        from lrp.engine import display  # only where there is something to show

        return display.explanation(self)


@dataclass
class Explanations(Sequence[Explanation]):
    """T explanations of the same images; `relevance` is [T, N, C, H, W]."""

    relevance: Tensor
    logits: Tensor
    target: Tensor
    start: Tensor
    entries: list[Explanation] = field(repr=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: Any) -> Any:
        return self.entries[place]

    def _repr_html_(self) -> str:
        from lrp.engine import display

        return display.explanations(self.entries)
