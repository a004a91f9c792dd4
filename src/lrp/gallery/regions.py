"""Photos explained by a model that decides at each place: a class is explained where it is predicted, and outlined there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrp.engine.explainer import Explainer
from lrp.engine.results.explanation import Explanation
from lrp.engine.targets import Region
from lrp.errors import TargetError
from lrp.gallery.request import Request
from lrp.gallery.sheet import Sheet, Waiting, facts_of_panel, finished_sheet
from lrp.models.loading import LoadedModel
from lrp.pictures.outline import resized_region


def decides_at_places(explainer: Explainer, x: Tensor) -> bool:
    """Whether the model gives logits [N, K, *space] of images like `x`."""
    shape: Any = explainer.prepare(x).graph.logits.meta["shape"]
    return len(shape) > 2


def region_entries(
    request: Request, entries: Sequence[Any], logits: Tensor, names: Sequence[str]
) -> list[Region]:
    """What an explainer is asked for each part of a request.

    Args:
        entries: "predicted" or a class's index, for each part.
        logits: [K, *space], of the photo.

    Raises:
        TargetError: a contrast or topK; or no part's class is predicted anywhere.
    """
    if request.count or not all(isinstance(entry, int | str) for entry in entries):
        raise TargetError(
            f"target {request.text!r}: a model that decides at each pixel is asked for predicted, true, a class, or several with commas."
        )
    found = logits.argmax(0)
    areas = torch.bincount(found.flatten(), minlength=len(logits))
    chosen = [_largest(areas, names) if entry == "predicted" else int(entry) for entry in entries]
    if not any(int(areas[index]) for index in chosen):
        order = areas.argsort(descending=True)
        others = ", ".join(f"{names[int(k)]} ({_percent(areas, int(k))})" for k in order if int(areas[k]))
        asked = " or ".join(names[index] for index in chosen)
        raise TargetError(f"no pixel is predicted as {asked}, but as {others}")
    return [Region(index) for index in chosen]


def region_sheet(
    waiting: Waiting,
    entries: Sequence[Region],
    explained: Sequence[Explanation],
    loaded: LoadedModel,
    with_arrays: bool,
) -> Sheet:
    """The sheet of a photo explained for these entries, one explanation for each; see `sheet`."""
    names, logits = loaded.class_names, explained[0].logits[0].detach().cpu().double()
    found, probabilities = logits.argmax(0), logits.softmax(0)
    areas = torch.bincount(found.flatten(), minlength=len(logits))
    order = [int(k) for k in areas.argsort(descending=True)[:5] if int(areas[k])]
    winner = _largest(areas, names)

    def mean_probability(index: int) -> float:
        there = probabilities[index][found == index]
        return float(there.mean()) if len(there) else 0.0

    panels, regions = [], []
    for e, entry in zip(explained, entries, strict=True):
        target = int(entry.class_)
        there = found == target
        logit = float(logits[target][there].mean()) if bool(there.any()) else 0.0
        title = _with_area(names[target], areas, target)
        panels.append(facts_of_panel(e, 0, target, title, names[target], mean_probability(target), logit))
        panels[-1]["area"] = int(areas[target]) / found.numel()
        regions.append(
            resized_region(there.numpy(), (int(e.relevance.shape[-2]), int(e.relevance.shape[-1])))
        )
    facts: dict[str, Any] = {
        "predicted": names[winner],
        "predicted_index": winner,
        "confidence": mean_probability(winner),
        "area": int(areas[winner]) / found.numel(),
        "top5": [
            {
                "index": k,
                "name": names[k],
                "probability": mean_probability(k),
                "area": int(areas[k]) / found.numel(),
            }
            for k in order
        ],
    }
    heading = _with_area(names[winner], areas, winner)
    return finished_sheet(waiting, 0, explained, loaded, with_arrays, facts, panels, heading, regions)


def _largest(areas: Tensor, names: Sequence[str]) -> int:
    """The class that is predicted at the most places, other than a background; the background if there is no other."""
    order = [int(k) for k in areas.argsort(descending=True) if int(areas[k])]
    things = [k for k in order if "background" not in names[k].casefold()]
    return (things or order)[0]


def _with_area(name: str, areas: Tensor, index: int) -> str:
    return f"{name}  {_percent(areas, index)} of the pixels"


def _percent(areas: Tensor, index: int) -> str:
    return f"{100 * int(areas[index]) / int(areas.sum()):.1f} %"
