"""What an explainer returns: relevance, logits, target; ledger and health on first access; and how it is displayed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrp.engine.graph.tracing.inputs import Inputs
from lrp.engine.model_state import ModelState, tensor_version
from lrp.engine.request import Request
from lrp.engine.results.account import reached_words, sign_in_words
from lrp.engine.results.health import Health, judge_health
from lrp.engine.results.ledger import Ledger
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
        slices, clips [N, 3, T, H, W] as frames, rows [N, F] as bars; one target below the other. Of several inputs, each
        that is not held has its picture.

        Args:
            photo: the photo that was explained: a path, a `Photo`, a PIL image, or uint8 [H, W, 3]. None: the
                model's input, with its brightness stretched. Only for images.
            index: which of the images.
            preprocessing: how that photo became the model's input, so that the heatmap is aligned with it; None:
                the explainer's. Not needed for a photo of the input's size.

        Returns:
            A PIL image, as `lrp explain` writes it.

        Raises:
            InputError: no such image; no picture to draw on, or a photo for what is not one input of images; it is not
                known which part of the photo was the input.
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
        relevance: [N, C, H, W], in logits (in units of the start); its sum over an image is what reached the pixels. Of
            several inputs: in their structure, None for those that are held; of ids [N, L], summed over their embeddings.
        logits: [N, K], the model's; [N, K, *space] where it gives logits for each place.
        target: [N], the class explained; for a contrast its first, for a given start its largest entry.
        start: the start relevance at the logits, of their shape; or of the inner modules it was given for, by name.
    """

    relevance: Any
    logits: Tensor
    target: Tensor
    start: Any
    _explainer: Explainer
    _inputs: Inputs
    _versions: tuple[int, ...]
    _state: ModelState
    _request: Request
    _parts: tuple[Tensor | None, ...]
    _inside: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits)

    def at(self, name: str) -> Tensor:
        """Relevance at the output of a module or operation, of its shape [N, ...].

        Taken from the same pass for the names that the explainer was given as `at`; else computed now, like the ledger.

        Args:
            name: a module's path, such as "layer3" ("relu#2" for its second call, "split[0]" for the first of its outputs); or an
                operation as tables print it, such as "layer3.1 (add)".

        Raises:
            InputError: no such name; names the nearest.
            LedgerError: the model's weights or the inputs have changed since.
        """
        if name not in self._inside:
            self._refuse_changes("the relevance inside")
            self._inside[name] = self._explainer._inside(self._inputs, self._request, name)
        return self._inside[name]

    def _refuse_changes(self, wanted: str) -> None:
        if tuple(map(tensor_version, self._inputs.tensors)) != self._versions:
            raise LedgerError("the images were written to after they were explained: explain them again.")
        if not self._state.holds(self._explainer.model):
            raise LedgerError(
                f"the model's weights changed after the explanation: explain again for {wanted}."
            )

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The account of every operation; computed on first access, from the images, of which a reference is kept.

        Raises:
            LedgerError: the model's weights or the images have changed since.
        """
        self._refuse_changes("a ledger")
        return self._explainer._ledger(self._inputs, self._request)

    @functools.cached_property
    def health(self) -> Health:
        """Whether this is computed correctly, with notes; from the ledger and the model's own logits."""
        ledger = self.ledger
        own = self._explainer._own_output(self._inputs).reshape(self.logits.shape)
        explained = self.logits[torch.arange(len(self)), self.target]
        negative = self._explainer.seed == "one" and bool((explained < 0).any())
        output = self._explainer._as_output(self.logits)
        return judge_health(
            ledger, self.logits, output, own, self._at_inputs, negative, self._explainer.low_precision
        )

    @property
    def _images(self) -> Tensor:
        """The first of the inputs."""
        return self._inputs.tensors[0]

    @property
    def _at_inputs(self) -> list[Tensor]:
        """Relevance at each input that is not held."""
        return [part for part in self._parts if part is not None]

    def sums(self, i: int) -> tuple[float, float]:
        """(relevance that reached the inputs, start relevance) of image i."""
        own = self._request.image(i).inner_starts or [self.start[i]]
        reached, start = (
            sum(float(t.double().sum()) for t in ts) for ts in ([p[i] for p in self._at_inputs], own)
        )
        return reached, start

    @property
    def unit(self) -> str:
        """What relevance is counted in: "logits", or "shares of the softmax" where that is the start."""
        return "shares of the softmax" if self._explainer.seed == "softmax" else "logits"

    def __repr__(self) -> str:
        shape = _shapes(self._at_inputs, 1)
        if len(self) == 1:
            return f"Explanation(1 image {shape}, {self._line(0)})"
        classes = ", ".join(str(int(k)) for k in self.target[:4]) + (", ..." if len(self) > 4 else "")
        return f"Explanation({len(self)} images {shape}, classes {classes})"

    def __str__(self) -> str:
        return "\n".join(f"image {i}: {self._line(i)}" for i in range(len(self)))

    def _line(self, i: int) -> str:
        target = int(self.target[i])
        relevance, start = self.sums(i)
        words = reached_words(relevance, start, self.unit, relevance / start if start else None)
        if self._request.inner.starts:
            return f"from inside the model, {words}"
        if self.logits.dim() > 2:
            return f"class {target} at {int((self.start[i] != 0).any(0).sum()):,} places, {words}"
        if self.logits.shape[1] == 1:
            output = float(self.logits[i, 0])
            return f"output {output:.4g} ({sign_in_words(output)}), {words}"
        return f"class {target}, logit {float(self.logits[i, target]):.4g}, {words}"

    def _entries(self) -> Sequence[Explanation]:
        return [self]


@dataclass(repr=False)
class Explanations(_Pictures, Sequence[Explanation]):
    """T explanations of the same images; `relevance` is [T, N, C, H, W], of several inputs in their structure."""

    relevance: Any
    logits: Tensor
    target: Tensor
    start: Any
    entries: list[Explanation] = field(repr=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def __repr__(self) -> str:
        count = len(self.logits)
        shapes = _shapes(self.entries[0]._at_inputs, 1)
        return f"Explanations({len(self)} of {count} image{'s' * (count != 1)} {shapes})"

    def __str__(self) -> str:
        return "\n".join(
            f"explanation {i}: {line}" for i, e in enumerate(self.entries) for line in str(e).splitlines()
        )

    def _entries(self) -> Sequence[Explanation]:
        return self.entries


def _shapes(parts: Sequence[Tensor], start: int) -> str:
    """Shapes in words, from a dimension on."""
    return " and ".join(str(list(part.shape[start:])) for part in parts) or "without relevance"
