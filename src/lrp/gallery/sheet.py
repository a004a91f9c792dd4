"""An explained photo whose files are not yet written: its maps, its facts, its texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrp.engine.results.account import account_in_words
from lrp.engine.results.explanation import Explanation
from lrp.engine.targets import Contrast
from lrp.gallery.request import Request
from lrp.models.loading import LoadedModel
from lrp.pictures import heatmap
from lrp.pictures.geometry import Geometry
from lrp.pictures.photos import Photo


class Waiting(NamedTuple):
    """A photo to be explained, with its targets."""

    photo: Photo
    output: Path
    fingerprint: str
    request: Request
    entries: list[Any]  # targets for `Explainer`, one for each map; empty for topK


@dataclass(frozen=True, eq=False)
class Map:
    """One heatmap to draw. It holds its model's geometry, so that one picture can show maps of two models."""

    values: np.ndarray  # [h, w], at the model's input size; resized to the photo only when drawn
    geometry: Geometry
    title: str
    subtitle: str

    def panel(self, height: int, width: int) -> heatmap.Panel:
        return heatmap.Panel(self.geometry.to_photo(self.values, height, width), self.title, self.subtitle)


@dataclass
class Sheet:
    """An explained photo whose files are not yet written.

    Attributes:
        output: the picture; the files of other formats are written beside it.
        facts: as in `Result`; also written to the picture's metadata.
        heading: title and subtitle above the photo.
        arrays: the arrays for "npz", if that format is requested.
        unit: the unit of relevance.
    """

    output: Path
    photo: Photo
    fingerprint: str
    facts: dict[str, Any]
    maps: list[Map]
    heading: tuple[str, str]
    arrays: dict[str, Any] | None
    unit: str

    def without_pixels(self) -> Sheet:
        """A copy without the photo's pixels, to save memory; they are read again when the sheet is drawn."""
        return replace(self, photo=replace(self.photo, pixels=np.empty((0, 0, 3), np.uint8)))


def sheet(
    waiting: Waiting, i: int, explained: Sequence[Explanation], loaded: LoadedModel, with_arrays: bool
) -> Sheet:
    """The sheet of the i-th photo of a batch; `explained`: one explanation of the whole batch for each map."""
    photo, place, fingerprint, request, entries = waiting
    names, geometry = loaded.class_names, loaded.preprocessing.geometry
    logits = explained[0].logits[i].detach().cpu()
    probabilities = logits.double().softmax(0)
    best = probabilities.topk(min(5, len(names)))
    winner = int(best.indices[0])
    # For topK the classes are read from the explanations' targets.
    entries = entries or [int(e.target[i]) for e in explained]
    panels = [_panel(e, i, part, probabilities, names) for e, part in zip(explained, entries, strict=True)]
    titles = request.titles or [p["title"] for p in panels]
    facts: dict[str, Any] = {
        "predicted": names[winner],
        "predicted_index": winner,
        "confidence": float(probabilities[winner]),
        **{key: panels[0][key] for key in PANEL if key != "probability"},
        "target_confidence": panels[0]["probability"],
        "top5": [
            {"index": int(k), "name": names[int(k)], "probability": float(p)}
            for p, k in zip(best.values, best.indices, strict=True)
        ],
        "panels": panels if len(panels) > 1 else None,
        "notes": list(photo.notes),
    }
    relevance = torch.stack([e.relevance[i] for e in explained]).detach().float().cpu().numpy()
    arrays = None
    if with_arrays:
        targets = np.array([int(e.target[i]) for e in explained])
        single = len(explained) == 1
        arrays = {
            "relevance": relevance[0] if single else relevance,
            "logits": logits.float().numpy(),
            "target": targets[0] if single else targets,
            "crop": np.array(geometry.box(*photo.pixels.shape[:2])),
            "fingerprint": np.array(fingerprint),
        }
    unit = explained[0].unit
    predicted = f"{names[winner]}  {100 * float(probabilities[winner]):.1f} %"
    maps = [
        Map(values.sum(0), geometry, title, _account(panel, unit))
        for values, title, panel in zip(relevance, titles, panels, strict=True)
    ]
    heading = request.heading or (predicted, f"predicted for {photo.path.name}")
    return Sheet(place, photo, fingerprint, facts, maps, heading, arrays, unit)


PANEL = ("target", "target_index", "probability", "logit", "start", "relevance_sum", "health")


def _panel(e: Explanation, i: int, entry: Any, probabilities: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The facts of one heatmap."""
    target = int(e.target[i])
    title = f"{names[target]}  {100 * float(probabilities[target]):.1f} %"
    if isinstance(entry, Contrast):
        winner = int(probabilities.argmax())
        sides = [winner if side == "predicted" else int(side) for side in (entry.a, entry.b)]
        target, title = sides[0], f"{names[sides[0]]}, not {names[sides[1]]}"
    totals = {name: float(v[i]) for name, v in e.ledger.totals.items()}
    health = e.health
    shares = {name: float(v[i]) for name, v in health.shares.items()}
    return {
        "title": title,
        "target": names[target],
        "target_index": target,
        "probability": float(probabilities[target]),
        "logit": float(e.logits[i, target]),
        "start": totals["start"],
        "relevance_sum": float(e.relevance[i].double().sum()),
        "health": {
            "ok": health.ok,
            "problems": health.problems,
            "shares": shares,
            "amplification": float(health.amplification[i]),
        },
    }


def _account(panel: dict[str, Any], unit: str) -> str:
    health = panel["health"]
    return account_in_words(
        panel["relevance_sum"], panel["start"], unit, health["shares"], health["problems"]
    )
