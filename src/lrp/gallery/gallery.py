"""Explains image files, writes their pictures, and returns one result for each file.

Each file found gives exactly one `Result`: "ok" (explained now), "kept" (an earlier result with the same
fingerprint is still valid) or "skipped" (with the reason). A bad file does not stop the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrp.classes import class_index
from lrp.engine.explainer import Explainer
from lrp.engine.results.explanation import Explanation
from lrp.errors import ImageError, LrpError, TargetError
from lrp.gallery import fingerprints
from lrp.gallery.formats import FORMATS, Finished
from lrp.gallery.options import DEFAULT_OPTIONS, ExplainOptions
from lrp.gallery.regions import decides_at_places, region_entries, region_sheet
from lrp.gallery.request import Request
from lrp.gallery.results import Result, result_picture_paths
from lrp.gallery.sheet import Sheet, Waiting, sheet
from lrp.models.loading import LoadedModel
from lrp.models.resolve import (
    hash_of_resolved_model,
    resolve_device,
    resolve_model,
    resolve_model_name,
    takes_texts,
)
from lrp.pictures import heatmap
from lrp.pictures.photos import Found, Photo, open_photo

RequestOf = Request | Callable[[Found], Request]


@dataclass
class Gallery:
    """Explains files with one model and writes a picture for each.

    Args:
        loaded: the model on `device`, its preprocessing at the requested size, its class names.
        explainer: the explainer of that model.
        request: one request for all photos, or a function that returns the request of each file.
        identity: everything else that the fingerprint of a result depends on (model's name, weights, preset).
        options: how to draw and save; rules, size and device are already applied in `loaded` and `explainer`.
    """

    loaded: LoadedModel
    explainer: Explainer
    request: RequestOf
    identity: dict[str, Any]
    options: ExplainOptions = DEFAULT_OPTIONS
    device: torch.device | None = None

    @classmethod
    def of(
        cls,
        model: str | Path | LoadedModel,
        options: ExplainOptions = DEFAULT_OPTIONS,
        target: Any = "predicted",
    ) -> Gallery:
        """A gallery for a model's name or a `LoadedModel`; the model is moved to the options' device.

        Args:
            target: a value that `Request.of` accepts, or a function that returns the request of each file.

        Raises:
            ModelError: the model cannot be loaded.
            OptionError: there is no such device.
            TargetError: no such class.
        """
        device = resolve_device(options.device)
        labels = options.labels
        if labels is None and takes_texts(model):
            labels = Request.texts(target) or None
        loaded = resolve_model(model, options.size, options.arch, labels, options.range, options.preprocess)
        request = target if callable(target) else Request.of(target, loaded.class_names)
        loaded.model.to(device)
        explainer = Explainer(
            loaded.model, options.rules(loaded.preprocessing), precision=options.precision,
            class_names=loaded.class_names, preprocessing=loaded.preprocessing,
        )  # fmt: skip
        identity = {
            "model": resolve_model_name(model),
            "weights": hash_of_resolved_model(model, loaded, options.arch),
            "composite": [options.composite_name, options.bias, options.epsilon, options.top_k],
            "precision": options.precision,
        }
        return cls(loaded, explainer, request, identity, options, device)

    def run(self, found: Sequence[Found], output: Path) -> Iterator[Result]:
        """Explain the files; yields one result for each, in their order."""
        paths = result_picture_paths(found, output, [FORMATS[name].suffix for name in self.options.save])
        scale_digest = fingerprints.digest_of_all(found) if self.options.shared_scale else ""
        made = self.explained(found, paths, scale_digest)
        if not self.options.shared_scale:
            for one in made:
                yield one if isinstance(one, Result) else self.write(one, None)
            return
        # A shared scale needs all maps before the first picture. Only the maps are kept in memory (they are small, at
        # the model's input size); the photos are read again when they are drawn.
        waiting = [one if isinstance(one, Result) else one.without_pixels() for one in made]
        maps = [m.values for one in waiting if isinstance(one, Sheet) for m in one.maps]
        # Pictures of an interrupted run are kept, so their colour scale must be used for the others too.
        known = [one.facts["scale"] for one in waiting if isinstance(one, Result) and one.status == "kept"]
        limit = known[0] if known else heatmap.heatmap_scale(maps, self.options.percentile) if maps else None
        for one in waiting:
            yield one if isinstance(one, Result) else self.write(one, limit)

    def explained(
        self, found: Sequence[Found], paths: Sequence[Path], scale_digest: str = ""
    ) -> Iterator[Result | Sheet]:
        """Finished results and sheets to draw, in the files' order; photos go through the model in batches."""
        queue: list[Result | Waiting] = []
        # Photos of different sizes cannot go through the model together.
        batch_size = self.options.batch_size if self.loaded.preprocessing.geometry.crop else 1

        def flush() -> Iterator[Result | Sheet]:
            waiting = [q for q in queue if isinstance(q, Waiting)]
            sheets = iter(self._batch(waiting) if waiting else [])
            yield from [q if isinstance(q, Result) else next(sheets) for q in queue]
            queue.clear()

        for file, path in zip(found, paths, strict=True):
            queue.append(self._opened(file, path, scale_digest))
            if sum(isinstance(q, Waiting) for q in queue) == batch_size or len(queue) == 16 * batch_size:
                yield from flush()
        yield from flush()

    def _opened(self, file: Found, path: Path, scale_digest: str) -> Result | Waiting:
        """The photo with its target; or a result: kept from an earlier run, or skipped with the reason."""
        try:
            photo = self._photo(file.path)
            self.loaded.preprocessing.geometry.box(
                *photo.pixels.shape[:2]
            )  # raises for a photo that is too narrow
            request = self.request if isinstance(self.request, Request) else self.request(file)
            true = self._folder_class(file) if request.needs_folder else None
        except LrpError as error:
            return Result(file.path, "skipped", error=getattr(error, "reason", None) or str(error))
        options = self.options
        fingerprint = fingerprints.result_fingerprint(
            self.identity, self.loaded, options, photo, request, true, scale_digest
        )
        if not options.overwrite:
            kept = fingerprints.facts_with_fingerprint(path, fingerprint, options.save)
            if kept is not None:
                return Result(file.path, "kept", path, facts=kept)
        return Waiting(photo, path, fingerprint, request, request.entries(true))

    def _photo(self, path: Path) -> Photo:
        limit, range = self.options.max_megapixels, self.loaded.preprocessing.range
        return open_photo(path, max_megapixels=limit, range=range)

    def _folder_class(self, file: Found) -> int:
        folder = file.path.absolute().parent.name
        try:
            return class_index(folder, self.loaded.class_names)
        except TargetError as error:
            raise TargetError(f"target 'true' takes the folder {folder!r} as the class: {error}") from error

    def _batch(self, waiting: list[Waiting]) -> list[Result | Sheet]:
        preprocess = self.loaded.preprocessing
        x = torch.stack([preprocess(one.photo.pixels) for one in waiting]).to(self.device)
        if decides_at_places(self.explainer, x):
            return [self._regions(one, x[i : i + 1]) for i, one in enumerate(waiting)]
        panels = {one.request.panels for one in waiting}
        if len(panels) > 1:
            raise TargetError(
                f"the photos of one batch ask for {' and '.join(map(str, sorted(panels)))} heatmaps: give each as many, "
                "or take batch_size=1."
            )
        entries = [one.entries for one in waiting]
        if any(one.request.count for one in waiting):
            ranked = self._logits(x).topk(max(panels), dim=1).indices.tolist()
            entries = [
                top if one.request.count else one.entries for one, top in zip(waiting, ranked, strict=True)
            ]
        explained = self._explained(x, entries)
        return [sheet(one, i, explained, self.loaded, self._arrays) for i, one in enumerate(waiting)]

    def _regions(self, waiting: Waiting, x: Tensor) -> Result | Sheet:
        """The sheet of one photo, of a model that decides at each place."""
        names = self.loaded.class_names
        try:
            entries = region_entries(waiting.request, waiting.entries, self._logits(x)[0].cpu(), names)
        except TargetError as error:
            return Result(waiting.photo.path, "skipped", error=str(error))
        return region_sheet(waiting, entries, self._explained(x, [entries]), self.loaded, self._arrays)

    def _logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.loaded.model(x.clone())
        return logits

    def _explained(self, x: Tensor, entries: Sequence[Sequence[Any]]) -> list[Explanation]:
        """One explanation of the whole batch for each map; one forward pass for all of them.

        entries: for each photo, a target for each map.
        """
        targets = [list(part) for part in zip(*entries, strict=True)]
        return [self.explainer(x, targets[0])] if len(targets) == 1 else list(self.explainer.many(x, targets))

    @property
    def _arrays(self) -> bool:
        return any(FORMATS[name].arrays for name in self.options.save)

    def write(self, sheet: Sheet, limit: float | None = None) -> Result:
        """Write a sheet, on its own colour scale or from -limit to limit. It may hold maps of another gallery too."""
        options, source = self.options, sheet.photo.path
        sheet.facts["scale"] = limit
        try:
            pixels = sheet.photo.pixels
            if not pixels.size:
                pixels = self._photo(source).pixels
            panels = [one.panel(*pixels.shape[:2]) for one in sheet.maps]
            made = Finished(sheet, pixels, panels, options.style, options.percentile, limit)
            sheet.output.parent.mkdir(parents=True, exist_ok=True)
            for name in sorted(
                options.save, key=lambda name: name == "png"
            ):  # PNG last: if it exists, all files exist
                FORMATS[name].write(made, sheet.output.with_suffix(FORMATS[name].suffix))
        except ImageError as error:
            return Result(source, "skipped", error=str(error), facts=sheet.facts)
        except OSError as error:
            reason = f"{sheet.output}: cannot be written: {error.strerror or error}"
            return Result(source, "skipped", error=reason, facts=sheet.facts)
        first = "png" if "png" in options.save else options.save[0]
        return Result(source, "ok", sheet.output.with_suffix(FORMATS[first].suffix), facts=sheet.facts)
