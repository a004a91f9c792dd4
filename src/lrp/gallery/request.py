"""Which outputs of a photo to explain: targets in the syntax of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrp.classes import class_index
from lrp.engine.targets import Contrast, plain_target
from lrp.errors import TargetError


@dataclass(frozen=True)
class Request:
    """Which outputs of a photo to explain: one or more targets in the command line's syntax, one heatmap for each part.

    Attributes:
        text: the target as the user wrote it.
        parts: each "predicted", "true" (the folder's class), an index, or a `Contrast` of these.
        count: instead of parts, the number of most probable classes to explain.
        titles: one title above each heatmap; default: the class and its probability.
        heading: title and subtitle above the photo; default: the predicted class and the file's name.

    Raises:
        TargetError: neither or both of parts and count are given; or the number of titles is not that of the heatmaps.
    """

    text: str
    parts: tuple[Any, ...] = ()
    count: int = 0
    titles: tuple[str, ...] = ()
    heading: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if bool(self.parts) == bool(self.count):
            raise TargetError(
                f"request {self.text!r}: expected parts or a count, got {len(self.parts)} parts and count={self.count}."
            )
        if self.titles and len(self.titles) != self.panels:
            raise TargetError(
                f"request {self.text!r}: {len(self.titles)} titles for {self.panels} heatmaps: give one for each, or none."
            )

    @property
    def panels(self) -> int:
        return self.count or len(self.parts)

    @staticmethod
    def of(target: Any, class_names: Sequence[str]) -> Request:
        """From text in the command line's syntax, an index, a `Contrast`, or a list, array or pandas column of these; a
        `Request` is unchanged.

        Raises:
            TargetError: no such class, or another type of target.
        """
        if isinstance(target, Request):
            return target
        target = plain_target(target)
        if isinstance(target, str):
            return Request.parse(target, class_names)
        target = target.tolist() if isinstance(target, Tensor) else target
        parts = tuple(target) if isinstance(target, list | tuple) else (target,)
        return Request(repr(target), tuple(_resolved(part, class_names) for part in parts))

    @staticmethod
    def parse(text: str, class_names: Sequence[str]) -> Request:
        """Parse predicted, true, CLASS, INDEX, topK, A-vs-B; or several of these except topK, separated by commas.

        Keywords take precedence over classes of the same name, and a class with a comma in its name over a list.

        Raises:
            TargetError: no such class; the message names the most similar ones.
        """
        if match := re.fullmatch(r"top(\d+)", text):
            count = int(match[1])
            if not 1 <= count <= len(class_names):
                raise TargetError(
                    f"target {text!r}: the model has {len(class_names)} classes, top1 to top{len(class_names)}."
                )
            return Request(text, count=count)
        try:
            return Request(text, (_part(text, class_names),))
        except TargetError:
            if "," not in text:
                raise
        parts = [part.strip() for part in text.split(",")]
        if top := [part for part in parts if re.fullmatch(r"top\d+", part)]:
            raise TargetError(f"target {text!r}: {top[0]} stands alone, not in a list.")
        return Request(text, tuple(_part(part, class_names) for part in parts))

    @staticmethod
    def texts(target: Any) -> tuple[str, ...]:
        """The texts that a target names, for a model of images and texts, whose classes they become: whole, with their commas."""
        target = plain_target(target)
        if isinstance(target, Contrast):
            target = [target.a, target.b]
        elif isinstance(target, str):
            target = target.split("-vs-")
        elif not isinstance(target, list | tuple):
            return ()
        sides = [
            side for part in target for side in ([part] if isinstance(part, str) else Request.texts(part))
        ]
        named = [
            side for side in sides if side not in ("predicted", "true") and not re.fullmatch(r"top\d+", side)
        ]
        return tuple(dict.fromkeys(named))

    def entries(self, true: int | None) -> list[Any]:
        """The `Explainer` target of each part, for a photo whose folder names class `true`."""

        def entry(part: Any) -> Any:
            if isinstance(part, Contrast):
                return Contrast(entry(part.a), entry(part.b))
            return true if part == "true" else part

        return [entry(part) for part in self.parts]

    @property
    def needs_folder(self) -> bool:
        return any("true" in ((p.a, p.b) if isinstance(p, Contrast) else (p,)) for p in self.parts)


def _resolved(part: Any, class_names: Sequence[str]) -> Any:
    part = plain_target(part)
    if isinstance(part, Contrast):
        return Contrast(_resolved(part.a, class_names), _resolved(part.b, class_names))
    if isinstance(part, str):
        return _part(part, class_names)
    if isinstance(part, int) and not isinstance(part, bool):
        return _part(str(part), class_names)
    raise TargetError(
        f"target: expected text, an index, a Contrast, or a list of these, got {type(part).__name__}."
    )


def _part(text: str, class_names: Sequence[str]) -> Any:
    def side(text: str) -> Any:
        return text if text in ("predicted", "true") else class_index(text, class_names)

    first, versus, second = text.partition("-vs-")
    return Contrast(side(first), side(second)) if versus else side(text)
