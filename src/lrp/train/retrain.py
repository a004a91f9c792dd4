"""Train a model on new classes: its head on cached features, or the whole net; saved for use by every other command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lrp
from lrp.data.data_set import Sample
from lrp.data.splits import TrainingData, split
from lrp.errors import CaptureError, ModelError, TrainingError, os_errors
from lrp.models.architectures import build_architecture
from lrp.models.catalogue import PACKAGED
from lrp.models.checkpoints import SUFFIXES
from lrp.models.own_code.calling import is_own_code
from lrp.models.own_code.files import hash_of_own_model
from lrp.models.preprocessing import Preprocessing
from lrp.models.resolve import resolve_device
from lrp.models.weights import hash_of_model_weights
from lrp.pictures.photos import Photo, open_photo
from lrp.storage.locks import Lock
from lrp.train.devices import launch_devices, shared_by_devices
from lrp.train.epochs import Facts
from lrp.train.features import Store, features
from lrp.train.fit_all import NetSettings, fit_all
from lrp.train.fit_head import HeadSettings, fit_head
from lrp.train.heads import Adapted, model_with_new_head, split_head
from lrp.train.training_run import OnEpoch, Retrained, Run

MODES = ("head", "all")
Advance = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Task:
    """The values that the first process sends to all processes to train the whole net."""

    data: TrainingData
    architecture: str
    preprocessing: Preprocessing
    heads: tuple[str, ...]
    replaced: tuple[str, ...]
    state: Mapping[str, Any] | None


def retrain(
    data: Path | str,
    output: Path | str,
    model: str = PACKAGED,
    *,
    train: str = "head",
    head: HeadSettings | None = None,
    net: NetSettings | None = None,
    size: int | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    max_skip_rate: float = 0.05,
    max_megapixels: float = 100.0,
    range: tuple[float, float] | None = None,
    follow_links: bool = False,
    pretrained: bool = True,
    device: torch.device | str = "auto",
    devices: int = 1,
    nodes: int = 1,
    workers: int | None = None,
    batch_size: int = 32,
    cache: Path | str | None = None,
    overwrite: bool = False,
    arch: str | None = None,
    preprocess: str | Path | Preprocessing | None = None,
    on_data: Callable[[TrainingData], None] = lambda data: None,
    on_epoch: Sequence[OnEpoch] = (),
    advance: Advance = lambda done, total, what: None,
) -> Retrained:
    """Replace the classes of a model by the class folders of `data`, and train it.

    If the process is killed, the same call resumes from the last epoch and ends with the same numbers; if its output
    already exists, it is returned. On a CPU, `train="head"` gives the same result bit for bit each time.

    Args:
        data: see `lrp.data.splits.split`, also for val_share, seed, max_skip_rate, max_megapixels, follow_links.
        range: (LOW, HIGH), the levels of photos deeper than 8 bits that are black and white; the output's sidecar stores
            it, so that other commands read photos in the same way. None: as `open_photo` finds for each file.
        output: the file of the trained weights; ends in .pth, .pt or .safetensors.
        model: a name that `load_model` accepts; or a file with its sidecar, to continue with other classes or data.
        train: "head": only the last layers, on features that are computed once. "all": all layers, starting from the
            head that "head" finds.
        head, net: settings of the training; the default ones use `seed`.
        size: side of the model's input in pixels; None: the size it was trained with. The output's sidecar stores it.
        pretrained: False: start from random weights.
        device: "auto" (a GPU if available), "cpu", "cuda", "cuda:1"; for "all" also `devices` of them on each of
            `nodes` machines.
        workers: number of decoding workers; None: one per core, at most eight.
        batch_size: photos per batch through the trunk.
        cache: folder of the features; None: .lrp_features beside the output.
        overwrite: start from the beginning and replace existing files.
        arch, preprocess: arguments of `load_model`.
        on_data: called after the data is read.
        on_epoch: functions to call after each epoch.
        advance: called with the number done since the last call, the total, and a text: the step, and after a comma
            its loss and accuracy.

    With several devices, only the first process reads the data, writes files, and calls these functions; in the other
    processes the result has no files.

    Raises:
        TrainingError, DataError, ModelError, BusyError: with a one-line message; finished epochs are kept.
    """
    output = Path(output)
    if train not in MODES:
        raise TrainingError(f"train={train!r}: expected 'head' or 'all'.")
    if not output.name.endswith(SUFFIXES):
        raise TrainingError(f"{output}: expected a name that ends in {', '.join(SUFFIXES)}.")
    if output.is_dir():
        raise TrainingError(f"{output}: is a folder; name a file in it.")
    settings: Any = (
        (head or HeadSettings(seed=seed))
        if train == "head"
        else (net or NetSettings(seed=seed, keep_statistics=pretrained))
    )
    chosen = resolve_device(device)
    fabric = launch_devices(str(chosen), devices, nodes) if train == "all" else None
    first = fabric is None or fabric.is_global_zero
    where = fabric.device if fabric else chosen
    model_: nn.Module
    run: Run

    def begin() -> _Task | Retrained:
        """Everything before the training of the whole net. Returns the final result if only the head is trained, or if
        the output already exists."""
        nonlocal run, model_
        material = split(
            data, val_share=val_share, seed=seed, max_skip_rate=max_skip_rate, max_megapixels=max_megapixels,
            range=range, follow_links=follow_links, advance=lambda done, total: advance(done, total, "reading photos"),
        )  # fmt: skip
        on_data(material)
        advance(0, 1, f"loading {model}")
        fresh = model_with_new_head(
            model,
            len(material.classes),
            pretrained=pretrained,
            seed=seed,
            arch=arch,
            preprocess=preprocess,
            size=size,
        )
        preprocessing = fresh.preprocessing if range is None else fresh.preprocessing.with_range(range)
        identity = {
            "model": model,
            "weights": _hash(fresh)[:16],
            "preprocessing": json.dumps(preprocessing.to_dict(), sort_keys=True),
            "class names": json.dumps(material.class_names, ensure_ascii=False),
            "data": material.fingerprint[:16],
            "train": train,
            "settings": json.dumps(settings.to_dict(), sort_keys=True),
            "device": where.type,
            "devices": str(devices * nodes),
            "lrp": lrp.__version__,
        }
        run = Run(
            output,
            identity,
            settings,
            material,
            fresh.architecture,
            preprocessing,
            model,
            seed,
            on_epoch,
            fresh.replaced,
        )
        if not overwrite and (kept := run.kept()) is not None:
            return kept
        state = run.begin(overwrite)
        model_ = _on_device(fresh.model, where)
        if train == "head" or (state is None and pretrained):
            fitted = _head(
                run, model_, preprocessing.zeros(2).to(where),
                head or HeadSettings(seed=seed), where, batch_size, workers,
                Path(cache) if cache else output.parent / ".lrp_features", max_megapixels, advance, state,
            )  # fmt: skip
            if train == "head":
                return run.end(model_, fitted)
        elif state is not None:
            model_.load_state_dict(state["model"])
            run.save_best(model_, state["history"])
        return _Task(material, fresh.architecture, preprocessing, fresh.heads, fresh.replaced, state)

    with os_errors(output.parent, "made", TrainingError):
        output.parent.mkdir(parents=True, exist_ok=True)
    with Lock(output, error=TrainingError) if first else nullcontext():
        task = begin() if fabric is None else shared_by_devices(fabric, begin)
        if isinstance(task, Retrained) and first:
            return task
        if not isinstance(task, _Task):
            return Retrained(str(output), (), (), {}, (), (), ())
        assert fabric is not None
        if not first:  # Fabric copies the weights from the first process
            built = build_architecture(
                task.architecture, len(task.data.classes), task.preprocessing, heads=task.replaced,
                progress=lambda line: None,  # the first process has said it
            )  # fmt: skip
            model_ = _on_device(built, where)
        history = fit_all(
            model_, task.heads, task.preprocessing, task.data.train, task.data.val, settings, fabric,
            workers=workers, state=task.state, max_megapixels=max_megapixels,
            advance=advance if first else lambda done, total, what: None,
            on_epoch=lambda facts: run.add_epoch(facts, model_), on_state=lambda held: run.after_epoch(model_, held),
        )  # fmt: skip
        if not first:
            return Retrained(str(output), (), tuple(history), {}, (), (), ())
        return run.end(model_, history)


def _hash(fresh: Adapted) -> str:
    own = is_own_code(fresh.architecture)
    return hash_of_own_model(fresh.model) if own else hash_of_model_weights(fresh.model)


def _on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device in channels-last memory, in which convolutions run nearly twice as fast."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _head(
    run: Run,
    model: nn.Module,
    example: Tensor,
    settings: HeadSettings,
    device: torch.device,
    batch_size: int,
    workers: int | None,
    cache: Path,
    max_megapixels: float,
    advance: Advance,
    state: Mapping[str, Any] | None,
) -> list[Facts]:
    """Train the head on features: as the whole training, or as the first step of training the whole net."""
    whole = run.identity["train"] == "head"
    try:
        parts = split_head(model, example)
    except (ModelError, CaptureError) as error:
        if whole:
            raise
        run.notes.append(f"the training began with a random head: {error}")
        return []
    # Only the trunk's weights and operations: the features do not depend on the head, which is new in each run.
    operations = hashlib.sha256(parts.trunk.code.encode()).hexdigest()
    key = hash_of_model_weights(parts.trunk) + operations

    def trunk(images: Tensor) -> tuple[Tensor, ...]:
        return parts.trunk(images.contiguous(memory_format=torch.channels_last))

    def read(sample: Sample) -> Photo:
        return open_photo(sample.file, max_megapixels=max_megapixels, range=run.preprocessing.range)

    count = len(run.data.train) + len(run.data.val)
    stores: list[Store] = []
    for examples, views in ((run.data.train, ("plain", "mirrored")), (run.data.val, ("plain",))):
        stores.append(
            features(
                trunk, [e.sample for e in examples], run.preprocessing, cache, key, views=views,
                batch_size=batch_size, device=device, workers=workers, digests=[e.digest for e in examples],
                read=read, advance=lambda done, _: advance(done, count, "computing features"),
            )
        )  # fmt: skip
        run.broken += stores[-1].broken  # became unreadable after the data was read
    labels = [
        torch.tensor([examples[i].target for i in store.kept])
        for examples, store in zip((run.data.train, run.data.val), stores, strict=True)
    ]

    def progress(done: int, total: int) -> None:
        last = run.history[-1] if whole and run.history else {}
        words = f", loss {last['loss']:.3f}, {100 * last['accuracy']:.1f} %" if last else ""
        advance(done, total, f"training the head{words}")

    fitted = fit_head(
        parts.tail, stores[0].views, labels[0], stores[1].views, labels[1], settings, state=state if whole else None,
        on_state=run.save_state if whole else lambda state: None,
        on_epoch=(lambda facts: run.add_epoch(facts, model)) if whole else lambda facts: None, advance=progress,
    )  # fmt: skip
    if whole:
        run.extra = {"weight_decay": fitted.weight_decay}
        # Rename the parameters from the tail's names to the model's.
        run.last = {
            f"{parts.heads[int(name.split('.')[1])]}.{name.split('.', 2)[2]}": tensor
            for name, tensor in fitted.last.items()
        }
    return fitted.history
