"""What to explain of a photo: targets as the command line writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrp.classes import class_index
from lrp.engine.targets import Contrast
from lrp.errors import TargetError


@dataclass(frozen=True)
class Request:
    """What to explain of a photo, one heatmap for each part: a target as the command line writes it, or several.

    Attributes:
        text: as it was asked for.
        parts: each "predicted", "true" (the folder's class), an index, or a `Contrast` of such.
        count: instead of parts, so many of the likeliest classes.
        titles: above each heatmap; without them the class and its probability.
        heading: title and subtitle above the photo; without it the predicted class and the file's name.

    Raises:
        TargetError: neither parts nor a count, or both; not one title for each heatmap.
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
        """Of text as the command line writes it, an index, a `Contrast`, or a list of these; or a request as it is.

        Raises:
            TargetError: no such class, or something else.
        """
        if isinstance(target, Request):
            return target
        if isinstance(target, str):
            return Request.parse(target, class_names)
        parts = tuple(target) if isinstance(target, list | tuple) else (target,)
        return Request(repr(target), tuple(_resolved(part, class_names) for part in parts))

    @staticmethod
    def parse(text: str, class_names: Sequence[str]) -> Request:
        """Read predicted, true, CLASS, INDEX, topK, A-vs-B, or several but topK with commas between them.

        Words come before classes of that name, and a class with a comma in its name before a list.

        Raises:
            TargetError: no such class; the nearest are named.
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

    def entries(self, true: int | None) -> list[Any]:
        """What `Explainer` takes for each part, for a photo whose folder names class `true`."""

        def entry(part: Any) -> Any:
            if isinstance(part, Contrast):
                return Contrast(entry(part.a), entry(part.b))
            return true if part == "true" else part

        return [entry(part) for part in self.parts]

    @property
    def needs_folder(self) -> bool:
        return any("true" in ((p.a, p.b) if isinstance(p, Contrast) else (p,)) for p in self.parts)


def _resolved(part: Any, class_names: Sequence[str]) -> Any:
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
