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
    region: np.ndarray | None = None  # bool [h, w], at the model's input size: what is outlined

    def panel(self, height: int, width: int) -> heatmap.Panel:
        relevance = self.geometry.to_photo(self.values, height, width)
        region = None
        if self.region is not None:  # NaN, outside the model's crop, is not in it
            region = self.geometry.to_photo(self.region.astype(np.float32), height, width) >= 0.5
        return heatmap.Panel(relevance, self.title, self.subtitle, region=region)


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
    names = loaded.class_names
    logits = explained[0].logits[i].detach().cpu()
    probabilities = logits.double().softmax(0)
    best = probabilities.topk(min(5, len(names)))
    winner = int(best.indices[0])
    # For topK the classes are read from the explanations' targets.
    entries = waiting.entries or [int(e.target[i]) for e in explained]
    panels = [_panel(e, i, part, probabilities, names) for e, part in zip(explained, entries, strict=True)]
    facts: dict[str, Any] = {
        "predicted": names[winner],
        "predicted_index": winner,
        "confidence": probability_of(winner, probabilities),
        "top5": [
            {"index": int(k), "name": names[int(k)], "probability": float(p)}
            for p, k in zip(best.values, best.indices, strict=True)
        ],
    }
    heading = _with_probability(names[winner], winner, probabilities, logits)
    return finished_sheet(waiting, i, explained, loaded, with_arrays, facts, panels, heading)


def probability_of(index: int, probabilities: Tensor) -> float | None:
    """None if there is only one logit, which has no share among others."""
    return float(probabilities[index]) if len(probabilities) > 1 else None


def _with_probability(name: str, index: int, probabilities: Tensor, logits: Tensor) -> str:
    """A class with its probability, or with its logit if that is the only one."""
    probability = probability_of(index, probabilities)
    return f"{name}  {float(logits[0]):.3g}" if probability is None else f"{name}  {100 * probability:.1f} %"


def finished_sheet(
    waiting: Waiting,
    i: int,
    explained: Sequence[Explanation],
    loaded: LoadedModel,
    with_arrays: bool,
    facts: dict[str, Any],
    panels: list[dict[str, Any]],
    heading: str,
    regions: Sequence[np.ndarray | None] | None = None,
) -> Sheet:
    """The sheet of the i-th photo of a batch.

    Args:
        facts: what was predicted.
        panels: the facts of each map.
        heading: the title above the photo, unless the request has one.
        regions: for each map, what is outlined, [h, w] at the model's input size.
    """
    photo, place, fingerprint, request, _ = waiting
    geometry = loaded.preprocessing.geometry
    titles = request.titles or [p["title"] for p in panels]
    facts |= {key: panels[0][key] for key in PANEL if key != "probability"}
    facts |= {
        "target_confidence": panels[0]["probability"],
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
            "logits": explained[0].logits[i].detach().float().cpu().numpy(),
            "target": targets[0] if single else targets,
            "crop": np.array(geometry.box(*photo.pixels.shape[:2])),
            "fingerprint": np.array(fingerprint),
        }
    unit = explained[0].unit
    maps = [
        Map(values.sum(0), geometry, title, _account(panel, unit), region)
        for values, title, panel, region in zip(
            relevance, titles, panels, regions or [None] * len(panels), strict=True
        )
    ]
    shown = request.heading or (heading, f"predicted for {photo.path.name}")
    return Sheet(place, photo, fingerprint, facts, maps, shown, arrays, unit)


PANEL = ("target", "target_index", "probability", "logit", "start", "relevance_sum", "health")


def _panel(e: Explanation, i: int, entry: Any, probabilities: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The facts of one heatmap."""
    target = int(e.target[i])
    title = _with_probability(names[target], target, probabilities, e.logits[i])
    if isinstance(entry, Contrast):
        winner = int(probabilities.argmax())
        sides = [winner if side == "predicted" else int(side) for side in (entry.a, entry.b)]
        target, title = sides[0], f"{names[sides[0]]}, not {names[sides[1]]}"
    logit = float(e.logits[i, target])
    return facts_of_panel(e, i, target, title, names[target], probability_of(target, probabilities), logit)


def facts_of_panel(
    e: Explanation, i: int, target: int, title: str, name: str, probability: float | None, logit: float
) -> dict[str, Any]:
    totals = {key: float(v[i]) for key, v in e.ledger.totals.items()}
    health = e.health
    return {
        "title": title,
        "target": name,
        "target_index": target,
        "probability": probability,
        "logit": logit,
        "start": totals["start"],
        "relevance_sum": float(e.relevance[i].double().sum()),
        "health": {
            "ok": health.ok,
            "problems": health.problems,
            "shares": {key: float(v[i]) for key, v in health.shares.items()},
            "amplification": float(health.amplification[i]),
        },
    }


def _account(panel: dict[str, Any], unit: str) -> str:
    health = panel["health"]
    return account_in_words(
        panel["relevance_sum"], panel["start"], unit, health["shares"], health["problems"]
    )
