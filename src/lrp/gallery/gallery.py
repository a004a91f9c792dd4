"""Photos in, pictures out: explains the files of a folder and accounts for every one of them.

Each file found gives exactly one `Result`: "ok" (explained now), "kept" (an earlier result with the same
fingerprint stands) or "skipped" (with the reason). A bad file stops nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lrp
from lrp.classes import class_index
from lrp.engine.explainer import Explainer, Explanation
from lrp.engine.targets import Contrast
from lrp.errors import ImageError, LrpError, TargetError
from lrp.gallery.request import Request
from lrp.models.loading import LoadedModel
from lrp.pictures import heatmap
from lrp.pictures.photos import Found, Geometry, Photo, find_photos, open_photo
from lrp.storage.atomic import replacing


@dataclass(frozen=True)
class Drawing:
    """How the pictures look: `heatmap.draw`'s words."""

    style: str = "heatmap"
    percentile: float = 99.5
    shared_scale: bool = False


@dataclass
class Result:
    """What became of one file."""

    path: Path
    status: str
    output: Path | None = None
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One JSON object; the keys are the same whatever the status."""
        empty = dict.fromkeys(FACTS)
        return {
            "path": str(self.path),
            "output": str(self.output) if self.output else None,
            "status": self.status,
            "error": self.error,
        } | {**empty, **self.facts}


FACTS = (
    "predicted", "predicted_index", "confidence", "target", "target_index", "target_confidence", "top5", "logit",
    "start", "relevance_sum", "health", "panels", "scale",
)  # fmt: skip


# ---------------------------------------------------------------- where results go


def outputs(found: Sequence[Found], output: Path) -> list[Path]:
    """A picture for each file: the relative path kept, `.png` for its suffix; a taken name keeps its own too.

    A photo is never written over, even where `output` is the photos' own folder.
    """
    taken = {_real(f.path) for f in found}
    places = []
    for file in found:
        relative = Path(*file.relative.parts)
        place = output / relative.with_suffix(".png")
        number = 1
        while _real(place) in taken:
            extra = "" if number == 1 else f".{number}"
            place = output / relative.with_name(f"{relative.name}{extra}.png")
            number += 1
        taken.add(_real(place))
        places.append(place)
    return places


def _real(path: Path) -> str:
    return os.path.join(os.path.realpath(path.parent), path.name)


def find(paths: Sequence[Path], output: Path) -> list[Found]:
    """The files below `paths`, without the results of an earlier run: what lies in `output` counts only if
    it was named itself."""
    root = os.path.realpath(output)
    meant = [os.path.realpath(p) for p in paths if _inside(os.path.realpath(p), root)]
    found = []
    for file in find_photos(paths):
        real = _real(file.path)
        if not _inside(real, root) or any(_inside(real, m) for m in meant):
            found.append(file)
    return found


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


# ---------------------------------------------------------------- the run


@dataclass(frozen=True, eq=False)
class Map:
    """One heatmap to draw: it knows its model's geometry, so that the maps of two models fit into one picture."""

    values: np.ndarray  # [h, w], on the model's input: small until it is drawn
    geometry: Geometry
    title: str
    subtitle: str

    def panel(self, height: int, width: int) -> heatmap.Panel:
        return heatmap.Panel(self.geometry.to_photo(self.values, height, width), self.title, self.subtitle)


@dataclass
class Sheet:
    """An explained photo whose picture is still to be drawn."""

    output: Path
    photo: Photo
    fingerprint: str
    facts: dict[str, Any]
    maps: list[Map]
    heading: tuple[str, str]
    npz: dict[str, Any] | None
    unit: str


@dataclass
class Gallery:
    """Explains files with one model and writes a picture for each.

    Args:
        loaded: the model on `device`, its preprocessing at the size wanted, its class names.
        explainer: explains that model.
        request: the same for all photos, or what gives each one its own.
        identity: whatever else decides what a result is (model's name, weights, preset): its fingerprint.
        save_npz: write `<name>.npz` beside each picture: relevance [C, H, W] float32 (of K heatmaps
            [K, C, H, W]), logits, target, crop (left, top, right, bottom in photo pixels), fingerprint.
    """

    loaded: LoadedModel
    explainer: Explainer
    request: Request | Callable[[Found], Request]
    identity: dict[str, Any]
    drawing: Drawing = Drawing()
    device: torch.device | None = None
    batch_size: int = 8
    max_megapixels: float = 100.0
    save_npz: bool = False
    overwrite: bool = False

    def run(self, found: Sequence[Found], output: Path) -> Iterator[Result]:
        """Explain the files; yields one result for each, in their order."""
        places = outputs(found, output)
        common = self._all_digests(found) if self.drawing.shared_scale else ""
        made = self.explained(found, places, common)
        if not self.drawing.shared_scale:
            for one in made:
                yield one if isinstance(one, Result) else self.write(one, None)
            return
        # One scale needs all maps first; they are small, at the model's input size. Photos are read again.
        waiting = [one if isinstance(one, Result) else _without_photo(one) for one in made]
        maps = [m.values for one in waiting if isinstance(one, Sheet) for m in one.maps]
        # An interrupted run left some pictures: they are kept, and theirs is the scale of all.
        known = [one.facts["scale"] for one in waiting if isinstance(one, Result) and one.status == "kept"]
        limit = known[0] if known else heatmap.scale(maps, self.drawing.percentile) if maps else None
        for one in waiting:
            yield one if isinstance(one, Result) else self.write(one, limit)

    def explained(
        self, found: Sequence[Found], places: Sequence[Path], common: str = ""
    ) -> Iterator[Result | Sheet]:
        """Results that are settled and sheets to draw, in order; photos go through the model in batches."""
        # Results, and (photo, place, fingerprint, request, entries) that wait for a batch.
        queue: list[Any] = []

        def flush() -> Iterator[Result | Sheet]:
            waiting = [q for q in queue if not isinstance(q, Result)]
            sheets = iter(self._batch(waiting) if waiting else [])
            yield from [q if isinstance(q, Result) else next(sheets) for q in queue]
            queue.clear()

        for file, place in zip(found, places, strict=True):
            queue.append(self._opened(file, place, common))
            if (
                sum(not isinstance(q, Result) for q in queue) == self.batch_size
                or len(queue) == 16 * self.batch_size
            ):
                yield from flush()
        yield from flush()

    def _opened(self, file: Found, place: Path, common: str) -> Any:
        """The photo with its target, or the result that is already there, or why it is skipped."""
        try:
            photo = open_photo(file.path, max_megapixels=self.max_megapixels)
            self.loaded.preprocessing.geometry.box(*photo.pixels.shape[:2])  # refuses what is too narrow
            request = self.request if isinstance(self.request, Request) else self.request(file)
            true = self._folder_class(file) if request.needs_folder else None
        except LrpError as error:
            return Result(file.path, "skipped", error=getattr(error, "reason", None) or str(error))
        fingerprint = self._fingerprint(photo, request, true, common)
        if not self.overwrite and (kept := self._kept(place, fingerprint)) is not None:
            return Result(file.path, "kept", place, facts=kept)
        return photo, place, fingerprint, request, request.entries(true)

    def _folder_class(self, file: Found) -> int:
        folder = file.path.absolute().parent.name
        try:
            return class_index(folder, self.loaded.class_names)
        except TargetError as error:
            raise TargetError(f"target 'true' takes the folder {folder!r} as the class: {error}") from error

    # ------------------------------------------------------------ what makes a result the same

    def _fingerprint(self, photo: Photo, request: Request, true: int | None, common: str) -> str:
        facts = {
            **self.identity,
            "lrp": lrp.__version__,
            "photo": photo.digest,
            "target": request.text if self._written(request) else repr(request),
            "true": true,
            "preprocessing": self.loaded.preprocessing.to_dict(),
            "drawing": asdict(self.drawing),
            "all": common,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _written(self, request: Request) -> bool:
        """Whether its text says all of it: not where a caller chose the parts, or words of their own."""
        try:
            return Request.parse(request.text, self.loaded.class_names) == request
        except TargetError:
            return False

    def _all_digests(self, found: Sequence[Found]) -> str:
        """On one common scale, each picture depends on all photos."""
        digest = hashlib.sha256()
        for file in found:
            try:
                with open(file.path, "rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
            except OSError:
                digest.update(b"unreadable")
        return digest.hexdigest()

    def _kept(self, place: Path, fingerprint: str) -> dict[str, Any] | None:
        """The facts of an earlier result with this fingerprint, if all its files are there."""
        metadata = heatmap.read_metadata(place)
        if metadata.get("fingerprint") != fingerprint:
            return None
        if self.save_npz:
            try:
                with np.load(place.with_suffix(".npz")) as saved:
                    if str(saved["fingerprint"]) != fingerprint:
                        return None
            except Exception:  # missing, cut short, or not ours: np.load raises what it meets
                return None
        return json.loads(metadata["facts"])

    # ------------------------------------------------------------ explaining

    def _batch(self, waiting: list[Any]) -> list[Sheet]:
        pre = self.loaded.preprocessing
        x = torch.stack([pre(photo.pixels) for photo, *_ in waiting]).to(self.device)
        requests, entries = [request for *_, request, _ in waiting], [part for *_, part in waiting]
        panels = {request.panels for request in requests}
        if len(panels) > 1:
            raise TargetError(
                f"the photos of one batch ask for {' and '.join(map(str, sorted(panels)))} heatmaps: give each as many, "
                "or take batch_size=1."
            )
        if any(request.count for request in requests):
            with torch.no_grad():
                ranked = self.loaded.model(x.clone()).topk(max(panels), dim=1).indices.tolist()
            entries = [
                top if r.count else part for r, top, part in zip(requests, ranked, entries, strict=True)
            ]
        targets = [list(part) for part in zip(*entries, strict=True)]
        # One forward pass for all parts.
        explained = (
            [self.explainer(x, targets[0])] if len(targets) == 1 else list(self.explainer.many(x, targets))
        )
        return [self._sheet(i, item, explained) for i, item in enumerate(waiting)]

    def _sheet(self, i: int, item: Any, explained: list[Explanation]) -> Sheet:
        photo, place, fingerprint, request, entries = item
        names = self.loaded.class_names
        logits = explained[0].logits[i].detach().cpu()
        probabilities = logits.double().softmax(0)
        best = probabilities.topk(min(5, len(names)))
        winner = int(best.indices[0])
        # Of topK the classes are the explanations' own targets.
        entries = entries or [int(e.target[i]) for e in explained]
        panels = [self._panel(e, i, part, probabilities) for e, part in zip(explained, entries, strict=True)]
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
        }
        relevance = torch.stack([e.relevance[i] for e in explained]).detach().float().cpu().numpy()
        targets = np.array([int(e.target[i]) for e in explained])
        single = len(explained) == 1
        npz = {
            "relevance": relevance[0] if single else relevance,
            "logits": logits.float().numpy(),
            "target": targets[0] if single else targets,
            "crop": np.array(self.loaded.preprocessing.geometry.box(*photo.pixels.shape[:2])),
            "fingerprint": np.array(fingerprint),
        }
        unit = "shares of the softmax" if self.explainer.seed == "softmax" else "logits"
        predicted = f"{names[winner]}  {100 * float(probabilities[winner]):.1f} %"
        geometry = self.loaded.preprocessing.geometry
        return Sheet(
            place, photo, fingerprint, facts,
            maps=[
                Map(r.sum(0), geometry, title, _account(p, unit))
                for r, title, p in zip(relevance, titles, panels, strict=True)
            ],
            heading=request.heading or (predicted, f"predicted for {photo.path.name}"),
            npz=npz if self.save_npz else None,
            unit=unit,
        )  # fmt: skip

    def _panel(self, e: Explanation, i: int, entry: Any, probabilities: Tensor) -> dict[str, Any]:
        """The facts of one heatmap."""
        names, target = self.loaded.class_names, int(e.target[i])
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

    # ------------------------------------------------------------ writing

    def write(self, sheet: Sheet, limit: float | None = None) -> Result:
        """Draw a sheet, which may hold another gallery's maps too, on its own scale or from -limit to limit."""
        source = sheet.photo.path
        sheet.facts["scale"] = limit
        try:
            pixels = sheet.photo.pixels
            if not pixels.size:
                pixels = open_photo(source, max_megapixels=self.max_megapixels).pixels
            panels = [one.panel(*pixels.shape[:2]) for one in sheet.maps]
            picture = heatmap.draw(
                pixels, panels, title=sheet.heading[0], subtitle=sheet.heading[1], style=self.drawing.style,
                percentile=self.drawing.percentile, limit=limit, unit=sheet.unit,
            )  # fmt: skip
            sheet.output.parent.mkdir(parents=True, exist_ok=True)
            if sheet.npz is not None:
                with replacing(sheet.output.with_suffix(".npz")) as draft, draft.open("wb") as file:
                    np.savez_compressed(file, **sheet.npz)
            metadata = {
                "fingerprint": sheet.fingerprint,
                "facts": json.dumps(sheet.facts),
                "photo": sheet.photo.digest,
            }
            heatmap.save_png(picture, sheet.output, metadata)
        except ImageError as error:
            return Result(source, "skipped", error=str(error), facts=sheet.facts)
        except OSError as error:
            reason = f"{sheet.output}: cannot be written: {error.strerror or error}"
            return Result(source, "skipped", error=reason, facts=sheet.facts)
        return Result(source, "ok", sheet.output, facts=sheet.facts)


PANEL = ("target", "target_index", "probability", "logit", "start", "relevance_sum", "health")


def _without_photo(sheet: Sheet) -> Sheet:
    sheet.photo = replace(sheet.photo, pixels=np.empty((0, 0, 3), np.uint8))
    return sheet


def _account(panel: dict[str, Any], unit: str) -> str:
    """How much reached the pixels, in words: "4.1 of 11.4 logits (36 %) reached the pixels; bias 61 %, ε 3 %"."""
    start, shares = panel["start"], panel["health"]["shares"]
    words = {"bias": "bias", "epsilon": "ε", "dropped": "dropped"}
    rest = [f"{words[k]} {100 * shares[k]:.0f} %" for k in words if abs(shares[k]) >= 0.005]
    text = f"{panel['relevance_sum']:.3g} of {start:.3g} {unit} ({100 * shares['input']:.0f} %) reached the pixels"
    text += f"; {', '.join(rest)}" if rest else ""
    return text if panel["health"]["ok"] else f"NOT TRUSTWORTHY: {panel['health']['problems'][0]}. {text}"
