"""The training photos: shuffled and augmented.

Random numbers depend only on seed, epoch and index, so a resumed run draws the same as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lrp.data.splits import Example
from lrp.errors import ImageError, TrainingError
from lrp.models.preprocessing import Preprocessing
from lrp.pictures.photos import open_photo

if TYPE_CHECKING:
    from lrp.train.fit_all import NetSettings


class Photos(Dataset[tuple[Tensor, int]]):
    """The examples as model inputs, [C, h, w] normalised; for training, augmented differently in each epoch.

    The augmentation of a photo depends only on the seed, the epoch and its index: not on workers, nor on resuming.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preprocessing: Preprocessing,
        settings: NetSettings | None,
        max_megapixels: float = 100.0,
    ) -> None:
        self.examples, self.preprocessing, self.settings = examples, preprocessing, settings
        self.max_megapixels = max_megapixels

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = item
        example = self.examples[index]
        try:
            limit, range = self.max_megapixels, self.preprocessing.range
            pixels = open_photo(example.sample.file, max_megapixels=limit, range=range).pixels
        except ImageError as error:
            raise TrainingError(
                f"{error}: it could be read when the training began. Put it back, and the same command goes on."
            ) from error
        if self.settings is None:
            return self.preprocessing(pixels), example.target
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.settings.seed, epoch, index)) % 2**63)
            levels = torch.from_numpy(self.preprocessing.channels(pixels)).permute(2, 0, 1)
            return self._augmented(levels), example.target

    def _augmented(self, photo: Tensor) -> Tensor:
        from torchvision.transforms import v2

        settings, pre = self.settings, self.preprocessing
        assert settings is not None
        crop = v2.RandomResizedCrop(
            pre.geometry.crop,
            (settings.crop, 1.0),
            interpolation=v2.InterpolationMode(pre.geometry.interpolation),
        )
        steps = [crop, v2.RandomHorizontalFlip(0.5 if settings.mirror else 0.0)]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(pre.mean), list(pre.std))]
        return v2.Compose(steps)(photo)


class Order(Sampler[tuple[int, int]]):
    """(epoch, index) of every photo: shuffled by seed and epoch for training, otherwise in order.

    With several devices, device `rank` gets every `world`-th photo. In training the order is padded from its
    beginning, so that all devices take the same number of steps.
    """

    def __init__(self, count: int, seed: int | None, rank: int = 0, world: int = 1) -> None:
        self.count, self.seed, self.rank, self.world = count, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        return (
            len(range(self.rank, self.count, self.world))
            if self.seed is None
            else -(-self.count // self.world)
        )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        places = list(range(self.count))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
            places = torch.randperm(self.count, generator=generator).tolist()
            places += places[: len(self) * self.world - self.count]
        return ((self.epoch, place) for place in places[self.rank :: self.world])


def batch_loader(batches: DataLoader[Any]) -> Iterator[Any]:
    """The batches. An error in a decoding process is raised again in this process, with its one-line message."""
    try:
        yield from batches
    except TrainingError as error:
        last = str(error).strip().splitlines()[-1]
        raise TrainingError(last.removeprefix(f"{TrainingError.__module__}.TrainingError: ")) from error
