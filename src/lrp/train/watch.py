"""Heatmaps of the same photos after each epoch of a training, and a contact sheet of all of them."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lrp.classes import classes_meant
from lrp.engine.explainer import Explainer
from lrp.errors import TrainingError, os_errors
from lrp.models.loading import LoadedModel
from lrp.pictures import heatmap
from lrp.pictures.contact_sheet import Entry, contact_sheet
from lrp.pictures.photos import open_photo


class Watch:
    """Explains its photos after each epoch: `folder`/epoch_NNN/<photo>.png, and `folder`/development.png.

    For `on_epoch` of `lrp.train.retrain.retrain`, or in any training loop: `watch({"epoch": 3}, loaded)`. The sheet
    shows all maps in `folder`, so after a resumed training it is complete; epoch 0 deletes those of an earlier one.

    Args:
        photos: image files, explained in each epoch: for the class that the photo's folder names, otherwise for the
            class that the model predicts.
        folder: for the pictures.
        composite: a preset's name, or another composite that `lrp.Explainer` accepts; None: the preset that fits the
            architecture.
        range: which levels of photos deeper than 8 bits are black and white, as `open_photo` takes it.
        every: explain only after every `every`-th epoch, and after the first two.

    Raises:
        ImageError: a photo cannot be read; raised here, not during the training.
    """

    def __init__(
        self, photos: Sequence[Path | str], folder: Path | str, *, composite: Any = None, every: int = 1,
        range: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        self.photos = [open_photo(path, range=range) for path in photos]
        self.folder, self.composite, self.every = Path(folder), composite, every
        self.names = _names([photo.path for photo in self.photos])

    def __call__(self, facts: Mapping[str, Any], loaded: LoadedModel) -> None:
        import torch

        epoch = int(facts["epoch"])
        if epoch > 1 and epoch % self.every:
            return
        model, preprocessing, class_names = loaded
        device = next(model.parameters()).device
        composite = {} if self.composite is None else {"composite": self.composite}
        explainer = Explainer(model, class_names=class_names, **composite)
        folder = self.folder / f"epoch_{epoch:03d}"
        with os_errors(folder, "made", TrainingError):
            folder.mkdir(parents=True, exist_ok=True)
            if not epoch:
                for tile, _, _ in (entry for i in range(len(self.photos)) for entry in self.shown(i)):
                    Path(tile).unlink()
        for i, photo in enumerate(self.photos):
            meant = classes_meant(photo.path.absolute().parent.name, class_names)
            target: Any = meant[0] if len(meant) == 1 else "predicted"
            e = explainer(preprocessing(photo.pixels)[None].to(device), target)
            index = int(e.target[0])
            probability = float(torch.softmax(e.logits[0].double(), 0)[index])
            values = e.relevance[0].sum(0).detach().float().cpu().numpy()
            on_photo = preprocessing.geometry.to_photo(values, *photo.pixels.shape[:2])
            title = f"{class_names[index]} {100 * probability:.1f} %"
            warning = "" if e.health.ok else f"NOT TRUSTWORTHY: {e.health.problems[0]}"
            picture = heatmap.draw(
                photo.pixels,
                [heatmap.Panel(on_photo, title, warning)],
                title=f"epoch {epoch}",
                subtitle=photo.path.name,
            )
            picture_file = folder / f"{self.names[i]}.png"
            heatmap.save_png(picture, picture_file, {"epoch": str(epoch)}, TrainingError)
            tile = folder / f"{self.names[i]}.map.png"
            colours = heatmap.heatmap_colours(on_photo, heatmap.heatmap_scale([on_photo]))
            metadata = {"epoch": str(epoch), "photo": photo.digest, "said": warning or title}
            heatmap.save_png(_large(colours), tile, metadata, TrainingError)
        sheet = contact_sheet(
            {
                photo.path.name: [(photo.path, "the photo", ""), *self.shown(i)]
                for i, photo in enumerate(self.photos)
            },
            "What speaks for the class, epoch by epoch; each map on its own scale",
        )
        heatmap.save_png(sheet, self.folder / "development.png", {}, TrainingError)

    def shown(self, i: int) -> list[Entry]:
        """The maps of a photo in the folder, sorted by epoch, each with its titles."""
        found: list[tuple[int, Entry]] = []
        for tile in self.folder.glob(f"epoch_*/{glob.escape(self.names[i])}.map.png"):
            facts = heatmap.read_heatmap_metadata(tile)
            if facts.get("photo") == self.photos[i].digest:
                found.append((int(facts["epoch"]), (tile, f"epoch {facts['epoch']}", facts["said"])))
        return [entry for _, entry in sorted(found)]


def _large(colours: np.ndarray) -> Image.Image:
    """The map of a small photo, enlarged by an integer factor, so that its pixels stay squares."""
    factor = max(1, 208 // max(colours.shape[:2]))
    return Image.fromarray(colours.repeat(factor, 0).repeat(factor, 1))


def _names(files: Sequence[Path]) -> list[str]:
    """A different name for each photo, also for equal file names in different folders."""
    names: list[str] = []
    for file in files:
        name = file.stem if file.stem not in names else f"{file.parent.name}_{file.stem}"
        number = 1
        while name in names:
            number += 1
            name = f"{file.stem}.{number}"
        names.append(name)
    return names
