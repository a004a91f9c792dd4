"""Model x data -> predictions, one row for every file; decoding runs in parallel with inference.

A `Classifier` turns a batch of files into rows independently of other batches, so a runner may call it in any order.
`evaluate` is the runner for one machine: a journal beside the output stores the finished batches.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lrp
from lrp.data.data_set import DataSet, Sample, match_class_folders
from lrp.data.prefetch import read_ahead
from lrp.errors import DataError, ImageError, ModelError, PredictionsError
from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.models.resolve import (
    hash_of_resolved_model,
    resolve_device,
    resolve_model,
    resolve_model_name,
)
from lrp.pictures.photos import PhotoError, kinds_of, open_photo
from lrp.study.analysis import Accuracy, analyse_accuracy
from lrp.study.journal import Journal, journal_of
from lrp.study.predictions import Prediction, read_prediction_rows, read_predictions, write_predictions

CLASSES = ("model", "data")
BATCH = 32


@dataclass
class Classifier:
    """A model with its preprocessing that returns a row for each file of a batch.

    Args:
        loaded: the model on `device`, in eval mode, its preprocessing and class names.
        indices: class folder -> index of the model's output; the files of other folders have no true class.
        name, weights: values of the columns "model" and "weights".
        restrict: only the classes of `indices` can be predicted; the others get probability 0.
        device: the device of the computation.
        half: float16 products with channels-last memory, the fastest on GPUs.
        max_megapixels: larger photos are not read.
    """

    loaded: LoadedModel
    indices: Mapping[str, int]
    name: str = ""
    weights: str = ""
    restrict: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    half: bool = False
    max_megapixels: float = 100.0

    def __post_init__(self) -> None:
        names = self.loaded.class_names
        known = {name for name, count in Counter(names).items() if count > 1}
        self.labels = [f"{n} ({i})" if n in known else n for i, n in enumerate(names)]
        self.notes: set[str] = set()  # what was assumed about files that have been read
        self.competing = sorted(set(self.indices.values())) if self.restrict else list(range(len(names)))

    def __call__(self, samples: Sequence[Sample]) -> list[Prediction]:
        """A row for each file, in their order; depends only on these files."""
        return self.rows(samples, [self.read(sample) for sample in samples])

    def read(self, sample: Sample) -> np.ndarray | str:
        """The model's input pixels of a file, uint8 [h, w, C]; or the reason why it cannot be read."""
        try:
            pre = self.loaded.preprocessing
            photo = open_photo(sample.file, max_megapixels=self.max_megapixels, range=pre.range)
            self.notes.update(kinds_of(photo.notes))
            return pre.channels(pre.geometry.apply(photo.pixels))
        except PhotoError as error:
            return error.reason
        except ImageError as error:
            return str(error)

    def rows(self, samples: Sequence[Sample], seen: Sequence[np.ndarray | str]) -> list[Prediction]:
        """The rows of files that have been read."""
        found: list[np.ndarray | str] = list(seen)
        sizes: dict[tuple[int, ...], list[int]] = {}  # more than one only where the input is the whole photo
        for place, crop in enumerate(seen):
            if isinstance(crop, np.ndarray):
                sizes.setdefault(crop.shape, []).append(place)
        for places in sizes.values():
            confidences = self.confidences(np.stack([np.asarray(seen[place]) for place in places]))
            for place, values in zip(places, confidences, strict=True):
                found[place] = values
        return [self._row(sample, one) for sample, one in zip(samples, found, strict=True)]

    def confidences(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, h, w, C] -> float64 [N, K]: softmax over the classes that can be predicted, 0 for the others."""
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # a view: memory stays channels-last
        x = self.loaded.preprocessing.normalised(x)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=self.half):
            logits: Any = self.loaded.model(x)
        if not isinstance(logits, Tensor) or logits.shape != (len(pixels), len(self.labels)):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            places = isinstance(logits, Tensor) and logits.dim() > 2
            raise ModelError(
                f"{self.name or 'the model'} returns {got} for {len(pixels)} photos: expected logits "
                f"{[len(pixels), len(self.labels)]}, one for each of its class names"
                f"{'; it decides at each place, and a table is of whole photos' if places else ''}."
            )
        logits = logits.double().cpu()
        full = torch.zeros_like(logits)
        full[:, self.competing] = logits[:, self.competing].softmax(1)
        return full.numpy()

    def _row(self, sample: Sample, found: np.ndarray | str) -> Prediction:
        true = self.indices.get(sample.category)
        facts: dict[str, Any] = {"model": self.name, "weights": self.weights, "restricted": self.restrict}
        if true is not None:
            facts |= {"true_index": true, "true_label": self.labels[true]}
        if isinstance(found, np.ndarray) and not np.isfinite(found).all():
            found = "the model returned NaN or infinite values for it"
        if isinstance(found, str):
            return Prediction(sample.path, status="unreadable", error=found, **facts)
        best = np.argsort(-found, kind="stable")[:5]
        first = int(best[0])
        facts |= {
            "predicted_index": first, "predicted_label": self.labels[first], "predicted_confidence": float(found[first]),
            "top5": {self.labels[i]: float(found[i]) for i in best if found[i] > 0},
        }  # fmt: skip
        if true is None:
            unmatched = f"the folder {sample.category!r} is no class of the model"
            return Prediction(sample.path, status="unmatched", error=unmatched, **facts)
        return Prediction(sample.path, true_confidence=float(found[true]), correct=first == true, **facts)


# ---------------------------------------------------------------- the runner


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        output: the CSV.
        counts: files per status: "ok", "unreadable", "unmatched".
        correct: files of status "ok" that are predicted correctly.
        resumed: files whose rows come from an interrupted run; all files if the CSV was up to date.
        seconds: of this run, without loading the model.
        unmatched: folders that are no class of the model -> the most similar class names.
        notes: what was assumed about files that were read now, such as "page 1 of several"; each once.
    """

    output: Path
    counts: Mapping[str, int]
    correct: int
    resumed: int
    seconds: float
    unmatched: Mapping[str, Sequence[str]]
    notes: Sequence[str] = ()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @cached_property
    def accuracy(self) -> Accuracy:
        """The accuracy over all and per class; computed from the CSV at the first access."""
        return analyse_accuracy(read_predictions(self.output))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"output": str(self.output), "total": self.total}


def evaluate(
    data: DataSet | str | Path,
    model: str | Path | LoadedModel,
    output: Path | str,
    *,
    name: str = "",
    classes: str = "model",
    size: int | None = None,
    arch: str | None = None,
    labels: str | Path | Sequence[str] | None = None,
    preprocess: str | Path | Preprocessing | None = None,
    batch_size: int = BATCH,
    device: torch.device | str = "auto",
    workers: int | None = None,
    max_megapixels: float = 100.0,
    range: tuple[float, float] | None = None,
    overwrite: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Predict every file of a data set and write the rows as CSV, in the data set's order.

    If the process is killed, the same call resumes where it stopped, and the CSV is the same byte for byte, because
    the batches have the same boundaries. On a GPU the model runs in float16 where possible (`torch.autocast`).

    Args:
        data: a folder that `DataSet.open` can read, or a `DataSet`.
        model: a name that `load_model` accepts, or a `LoadedModel`; it is moved to `device`, in channels-last memory.
        output: the CSV; during the run, `<output>.journal` exists beside it.
        name: for the column "model"; "": the model's name, if `model` is a name.
        classes: "model": all the model's classes can be predicted; "data": only those of the data set.
        size: side of the model's input in pixels; None: the size it was trained with.
        arch, labels, preprocess: arguments of `load_model`.
        device: "auto" (a GPU if available), "cpu", "cuda", "cuda:1", "mps".
        batch_size: photos per batch.
        workers: decoding threads; None: one per core, at most eight.
        max_megapixels: larger photos are not read.
        range: (LOW, HIGH), the levels of photos deeper than 8 bits that are black and white; None: as the model's
            preprocessing says, or `open_photo` finds for each file.
        overwrite: start from the beginning and replace an existing output.
        advance: called with the number of files done since the last call, and the number of all files.

    Raises:
        DataError: the data cannot be read, or no folder is a class of the model.
        ModelError: the model cannot be loaded.
        PredictionsError: the output cannot be written, is being written by another process, or belongs to another run.
        OptionError: there is no such device.
    """
    if classes not in CLASSES:
        raise DataError(f"classes={classes!r}: expected 'model' or 'data'.")
    output, device, name = Path(output), resolve_device(device), name or resolve_model_name(model)
    data = data if isinstance(data, DataSet) else DataSet.open(data)
    loaded = resolve_model(model, size, arch, labels, range, preprocess)
    weights = hash_of_resolved_model(model, loaded, arch)[:16]
    matched = match_class_folders(data.categories, loaded.class_names)
    net = loaded.model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classifier = Classifier(
        loaded._replace(model=net), matched.indices, name, weights, classes == "data", device,
        half=device.type == "cuda", max_megapixels=max_megapixels,
    )  # fmt: skip
    begin, digest, total = time.perf_counter(), hashlib.sha256(), 0
    for sample in data:
        digest.update(f"{sample.path}\0{_stat(sample)}\n".encode(errors="surrogateescape"))
        total += 1
    identity = {
        "model": name,
        "weights": classifier.weights,
        "preprocessing": json.dumps(loaded.preprocessing.to_dict(), sort_keys=True),
        "class names": _short(json.dumps(loaded.class_names)),
        "classes": classes,
        "data": f"{total} files, {digest.hexdigest()[:16]}",
        "batch size": str(batch_size),
        "device": device.type,
        "max megapixels": f"{max_megapixels:g}",
        "lrp": lrp.__version__,
    }
    tally = _Tally()
    if output.exists() and not overwrite and not journal_of(output).exists():
        if not _up_to_date(output, data, classifier, tally):
            raise PredictionsError(
                f"{output}: is there already, and is not what this would make; --overwrite makes it again, -o writes "
                "elsewhere"
            )
        resumed = total
        advance(total, total)
    else:
        with Journal.open(output, identity, overwrite=overwrite) as journal:
            resumed = sum(min(batch_size, total - unit * batch_size) for unit in journal.done)
            advance(resumed, total)
            batches = enumerate(_batches(data, batch_size))
            todo = ((unit, batch) for unit, batch in batches if unit not in journal.done)
            for unit, batch, seen in read_ahead(
                todo, classifier.read, workers or min(8, os.cpu_count() or 1)
            ):
                journal.add(unit, classifier.rows(batch, seen))
                advance(len(batch), total)
            write_predictions(output, tally.of(journal.rows()))
            journal.remove()
    seconds = time.perf_counter() - begin
    return Evaluation(
        output,
        dict(tally.counts),
        tally.correct,
        resumed,
        seconds,
        matched.unmatched,
        sorted(classifier.notes),
    )


@dataclass
class _Tally:
    """Counts rows while they are iterated."""

    counts: Counter[str] = field(default_factory=Counter)
    correct: int = 0

    def of(self, rows: Iterable[Prediction]) -> Iterator[Prediction]:
        for row in rows:
            self.counts[row.status] += 1
            self.correct += bool(row.correct)
            yield row


def _up_to_date(output: Path, data: DataSet, classifier: Classifier, tally: _Tally) -> bool:
    """Whether a finished table is of the same model and files, and no file was changed after it was written."""
    made = output.stat().st_mtime_ns  # file times are coarse: an equal time may be a later change
    wanted = classifier.name, classifier.weights, classifier.restrict
    try:
        for sample, row in zip_longest(data, tally.of(read_prediction_rows(output))):
            if sample is None or row is None or row.path != sample.path:
                return False
            if (row.model, row.weights, row.restricted) != wanted or _stat(sample)[1] >= made:
                return False
    except PredictionsError:  # a table of another kind
        return False
    return True


def _stat(sample: Sample) -> tuple[int, int]:
    """(size in bytes, modification time in ns); zeros if the file does not exist any more."""
    try:
        facts = sample.file.stat()
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    left = iter(samples)
    while batch := list(islice(left, size)):
        yield batch
