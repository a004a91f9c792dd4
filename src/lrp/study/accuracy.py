"""Compare several models on one data set: run `evaluate` for each and compute the numbers of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lrp.data.data_set import DataSet
from lrp.errors import DataError, LrpError, PredictionsError
from lrp.models.checkpoints import is_checkpoint
from lrp.models.loading import LoadedModel
from lrp.study.analysis import Accuracy
from lrp.study.evaluate import evaluate
from lrp.study.predictions import prediction_table_paths
from lrp.study.statistics import Share
from lrp.values import Plain

MODELS = ("alexnet", "vgg16", "vgg19", "resnet50")
"""The default models."""

COLUMNS = (
    "model", "class", "images", "top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high", "mean_loss",
    "mean_confidence", "unreadable", "unmatched", "images_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class Measured(Plain):
    """One model's numbers.

    Attributes:
        model: the name given by the caller.
        output: its table of predictions, for later commands; "" if there is none.
        accuracy: None if the model could not be measured.
        images_per_second: None if the table already existed.
        unmatched: class folders that are none of its classes -> the most similar class names.
        error: why it could not be measured.
        no_class: whether it failed because no class folder is one of its classes.
    """

    model: str
    output: str = ""
    accuracy: Accuracy | None = None
    images_per_second: float | None = None
    unmatched: dict[str, list[str]] | None = None
    error: str = ""
    no_class: bool = False


def accuracy(
    data: DataSet | str | Path,
    models: str | Sequence[str] | Mapping[str, LoadedModel] = MODELS,
    output: Path | str = ".",
    *,
    arch: str | None = None,
    labels: str | Path | Sequence[str] | None = None,
    advance: Callable[[str, int, int], None] = lambda model, done, total: None,
    **options: Any,
) -> Iterator[Measured]:
    """Evaluate the models one after another, only one in memory; yields the numbers of each when it is done.

    The tables are `output/<model>_results.csv`, the names that `lrp evaluate` uses: up-to-date tables are not
    computed again, and interrupted ones are resumed. A model that fails gets an `error`; the others continue.

    Args:
        data: a folder that `DataSet.open` can read, or a `DataSet`.
        models: names that `load_model` accepts, or name -> `LoadedModel`.
        output: folder of the tables.
        arch, labels: for weight files without sidecar.
        advance: called with the model's name, the files done since the last call, and the number of files.
        options: keyword arguments of `evaluate`, such as classes="data", size, batch_size, device, overwrite.

    Raises:
        DataError: the data cannot be read.
        PredictionsError: the folder cannot be created.
    """
    opened = data if isinstance(data, DataSet) else DataSet.open(data)
    names = [models] if isinstance(models, str) else list(models)
    given = models if isinstance(models, Mapping) else {}
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PredictionsError(f"{folder}: cannot be made: {error.strerror}") from error

    def measured() -> Iterator[Measured]:
        for name, place in zip(names, prediction_table_paths(names, folder), strict=True):
            bare: dict[str, Any] = (
                {"arch": arch, "labels": labels} if name not in given and is_checkpoint(name) else {}
            )
            try:
                found = evaluate(
                    opened,
                    given.get(name, name),
                    place,
                    name=name,
                    advance=partial(advance, name),
                    **bare,
                    **options,
                )
                fresh = found.total - found.resumed
                unmatched = {folder: list(near) for folder, near in found.unmatched.items()}
                pace = fresh / found.seconds if fresh else None
                yield Measured(name, str(place), found.accuracy, pace, unmatched)
            except LrpError as error:
                yield Measured(name, error=str(error), no_class=isinstance(error, DataError))

    return measured()


def accuracy_table(measured: Iterable[Measured]) -> Iterator[tuple[Any, ...]]:
    """Rows of `COLUMNS`: for each model one row for all classes together, with class "(all)", then one per class."""
    for one in measured:
        if (found := one.accuracy) is None:
            continue
        yield (
            one.model, "(all)", found.counted, *_ends(found.top1), *_ends(found.top5), found.loss, found.confidence,
            found.unreadable, found.unmatched, one.images_per_second,
        )  # fmt: skip
        for c in found.classes:
            yield (
                one.model, c.label, c.support, *_ends(c.top1), *_ends(c.top5), c.loss, c.confidence, None, None, None,
            )  # fmt: skip


def _ends(share: Share | None) -> tuple[float | None, float | None, float | None]:
    return (share.value, share.low, share.high) if share else (None, None, None)
