"""Trains a whole net, on one device or many: AdamW, warm-up and cosine, augmentation, early stopping.

Lightning Fabric handles devices, nodes and precision. The only state is that passed to `on_state`, so a killed run
resumes from its last epoch and ends with the same numbers.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lrp.data.splits import Example
from lrp.errors import TrainingError
from lrp.models.preprocessing import Preprocessing
from lrp.train.batches import Order, Photos, batch_loader
from lrp.train.devices import shared_by_devices
from lrp.train.epochs import Facts, best_epoch
from lrp.values import Plain

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class NetSettings(Plain):
    """Settings for training a whole net.

    Attributes:
        epochs: maximum number of passes over the photos.
        batch_size: photos per batch and device.
        accumulate: number of batches per step; their gradients are averaged.
        learning_rate: AdamW's peak rate for a step of 32 photos; scaled with the square root of their number.
        head_factor: multiplies the rate of the head; a head that was not trained before may need 10.
        weight_decay: of weights; biases and scales have none.
        label_smoothing: the share of the target that is spread evenly over all classes.
        warmup: the share of all steps in which the rate rises; then it falls to zero as half a cosine.
        patience: stop after this number of epochs without a better accuracy on val.
        crop: the smallest share of a photo's area in a training crop; 1: no crops.
        mirror: mirror half of the training photos.
        keep_statistics: batch norms keep their original statistics in training too, so that the first step starts
            from exactly the net whose head was fitted; small batches give poor statistics.
        clip: the largest norm of the gradient.
        seed: of the order of the photos and of all crops.
    """

    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 3e-4
    head_factor: float = 1.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    warmup: float = 0.1
    patience: int = 5
    crop: float = 0.6
    mirror: bool = True
    keep_statistics: bool = True
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} = {value:g}, expected {rule}"
            for name, rule, fits in (
                ("epochs", "1 or more", self.epochs >= 1),
                ("batch_size", "1 or more", self.batch_size >= 1),
                ("accumulate", "1 or more", self.accumulate >= 1),
                ("learning_rate", "a number above 0", 0 < self.learning_rate < math.inf),
                ("head_factor", "a number above 0", 0 < self.head_factor < math.inf),
                ("weight_decay", "0 or more", 0 <= self.weight_decay < math.inf),
                ("label_smoothing", "0 to below 1", 0 <= self.label_smoothing < 1),
                ("warmup", "0 to below 1", 0 <= self.warmup < 1),
                ("patience", "1 or more", self.patience >= 1),
                ("crop", "above 0 up to 1", 0 < self.crop <= 1),
                ("clip", "a number above 0", self.clip > 0),
            )
            if not fits
            for value in [getattr(self, name)]
        ]
        if wrong:
            raise TrainingError(f"settings of the training: {'; '.join(wrong)}.")


def fit_all(
    model: nn.Module,
    heads: Sequence[str],
    preprocessing: Preprocessing,
    train: Sequence[Example],
    val: Sequence[Example],
    settings: NetSettings,
    fabric: Fabric,
    *,
    workers: int | None = None,
    max_megapixels: float = 100.0,
    state: Mapping[str, Any] | None = None,
    on_state: Callable[[dict[str, Any]], None] = lambda state: None,
    on_epoch: Callable[[Facts], None] = lambda facts: None,
    advance: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[Facts]:
    """Train `model` in place; returns the history, one dict per epoch; the first is the model before training.

    At the end the model has the weights of the last epoch; to keep the best ones, save them in `on_state`.

    Args:
        heads: paths of the new layers.
        workers: decoding processes; None: one per core, at most eight.
        state: of an earlier run, to resume from: {"model", "optimizer", "epoch", "history"}.
        on_state: called with the state after each epoch, after `on_epoch`. Only the first process calls these two; if
            they raise, the other processes return.
        on_epoch: called with the facts of each epoch: epoch, loss, accuracy (of training, with augmentation),
            val_loss, val_accuracy, learning_rate, seconds, images_per_second.
        advance: called with the photos done since the last call, the total of all epochs, and a text: the epoch, and
            after a comma its loss and accuracy so far.

    Raises:
        TrainingError: the loss is NaN or infinite, or a photo cannot be read any more.
    """
    optimizer = torch.optim.AdamW(_groups(model, heads, settings))
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    rank, world = fabric.global_rank, fabric.world_size
    order = Order(len(train), settings.seed, rank, world)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    if workers:
        options["multiprocessing_context"] = "spawn" if fabric.device.type == "cuda" else None
    # Batch norm cannot train on a batch of one photo: drop the last batch then; each epoch drops another photo.
    single = len(order) > settings.batch_size > 1 and len(order) % settings.batch_size == 1
    batches = DataLoader(
        Photos(train, preprocessing, settings, max_megapixels),
        settings.batch_size,
        sampler=order,
        drop_last=single,
        **options,
    )
    val_batches = DataLoader(
        Photos(val, preprocessing, None, max_megapixels),
        settings.batch_size,
        sampler=Order(len(val), None, rank, world),
        **options,
    )
    history: list[Facts] = []
    if state:
        model.load_state_dict(state["model"])
    wrapped, wrapped_optimizer = fabric.setup(model.to(memory_format=torch.channels_last), optimizer)
    if state:
        optimizer.load_state_dict(state["optimizer"])
        history = [dict(facts) for facts in state["history"]]
    # Fabric need not set up the loaders: the samplers already divide the photos between the devices.
    steps = -(-len(batches) // settings.accumulate)
    in_epoch = len(order) * world + len(val)
    total = len(val) + settings.epochs * in_epoch
    begun = len(history)

    def close() -> bool:
        """End of an epoch, in the first process only: check the loss, then call `on_epoch` and `on_state`."""
        if len(history) == begun:
            return True  # done by an earlier run
        facts = history[-1]
        if not math.isfinite(facts.get("loss", 0.0) + facts["val_loss"]):
            raise TrainingError(
                f"epoch {facts['epoch']}: the loss is no number any more; a lower --learning-rate than "
                f"{settings.learning_rate:g} may help."
            )
        on_epoch(facts)
        if facts["epoch"]:
            on_state(
                {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": facts["epoch"],
                    "history": history,
                }
            )  # fmt: skip
        return True

    if history:
        advance(len(val) + (len(history) - 1) * in_epoch, total, "training")
    else:
        val_loss, accuracy = _evaluate(model, val_batches, fabric, advance, total, "training")
        history.append({"epoch": 0, "val_loss": val_loss, "val_accuracy": accuracy})
    while shared_by_devices(fabric, close) and not _finished(history, settings):
        epoch, begin = len(history), time.perf_counter()
        order.epoch = epoch
        words, reported = f"training, epoch {epoch} of {settings.epochs}", begin
        sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        wrapped.train()
        if settings.keep_statistics:
            for norm in _batch_norms(model):
                norm.eval()
        optimizer.zero_grad(set_to_none=True)
        for number, (images, targets) in enumerate(batch_loader(batches)):
            step, part = divmod(number, settings.accumulate)
            last = part == settings.accumulate - 1 or number == len(batches) - 1
            images, targets = fabric.to_device(
                (images.contiguous(memory_format=torch.channels_last), targets)
            )
            with fabric.no_backward_sync(wrapped, enabled=not last):
                logits = _logits(wrapped(images))
                loss = functional.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
                count = min(settings.accumulate, len(batches) - step * settings.accumulate)
                fabric.backward(loss / count)
            if last:
                rate = _rate(((epoch - 1) * steps + step) / (settings.epochs * steps), settings)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["factor"] * settings.learning_rate * _scale(settings, world)
                fabric.clip_gradients(
                    wrapped, wrapped_optimizer, max_norm=settings.clip, error_if_nonfinite=False
                )
                wrapped_optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                right = (logits.argmax(1) == targets).sum()
                sums += torch.stack(
                    [loss.double() * len(targets), right.double(), right.new_tensor(len(targets))]
                )
            if (
                time.perf_counter() > reported + 1
            ):  # at most once a second: reading the sums waits for the GPU
                reported, (so_far, hits, seen) = time.perf_counter(), sums.tolist()
                words = f"training, epoch {epoch} of {settings.epochs}, loss {so_far / seen:.3f}, {hits / seen:.1%}"
            advance(len(targets) * world, total, words)
        total_loss, correct, seen = _summed(fabric, sums)
        seconds = time.perf_counter() - begin
        val_loss, accuracy = _evaluate(model, val_batches, fabric, advance, total, words)
        history.append(
            {
                "epoch": epoch, "loss": total_loss / seen, "accuracy": correct / seen, "val_loss": val_loss,
                "val_accuracy": accuracy, "learning_rate": optimizer.param_groups[0]["lr"], "seconds": seconds,
                "images_per_second": seen / seconds,
            }
        )  # fmt: skip
    return history


def _finished(history: Sequence[Facts], settings: NetSettings) -> bool:
    done = len(history) - 1
    return done >= settings.epochs or (done > 0 and done - best_epoch(history) >= settings.patience)


def _groups(model: nn.Module, heads: Sequence[str], settings: NetSettings) -> list[dict[str, Any]]:
    """Parameter groups for head or trunk, with or without weight decay: matrices decay, biases and scales do not."""
    kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        fresh = any(name.startswith(f"{head}.") for head in heads)
        kinds.setdefault((fresh, parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": settings.head_factor if fresh else 1.0,
            "weight_decay": settings.weight_decay if matrix else 0.0,
        }
        for (fresh, matrix), parameters in kinds.items()
    ]


def _batch_norms(model: nn.Module) -> Iterator[Any]:
    """The modules with running statistics."""
    return (module for module in model.modules() if getattr(module, "running_mean", None) is not None)


def _rate(progress: float, settings: NetSettings) -> float:
    """Rises from 0 to 1 in the warm-up, then falls to 0 as half a cosine; `progress`: share of all steps done."""
    if progress < settings.warmup:
        return (progress + 1e-3) / (settings.warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - settings.warmup) / (1 - settings.warmup)))


def _scale(settings: NetSettings, world: int) -> float:
    return math.sqrt(settings.batch_size * settings.accumulate * world / 32)


def _logits(output: Any) -> Tensor:
    """The logits, without the auxiliary outputs of nets with heads for training only (GoogLeNet, Inception)."""
    return output if isinstance(output, Tensor) else output[0]


def _summed(fabric: Fabric, sums: Tensor) -> list[float]:
    """The sums added over all devices."""
    total: Any = fabric.all_reduce(sums, reduce_op="sum")
    return total.tolist()


def _evaluate(
    model: nn.Module,
    val_batches: DataLoader[Any],
    fabric: Fabric,
    advance: Callable[[int, int, str], None],
    total: int,
    words: str,
) -> tuple[float, float]:
    """Mean loss in nats and accuracy.

    Takes the unwrapped model: the wrapped one communicates with the other processes in each batch, and these may have
    fewer batches.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
    with torch.no_grad():
        for images, targets in batch_loader(val_batches):
            images, targets = fabric.to_device(
                (images.contiguous(memory_format=torch.channels_last), targets)
            )
            with fabric.autocast():
                logits = _logits(model(images)).float()
            loss = functional.cross_entropy(logits, targets, reduction="sum")
            right = (logits.argmax(1) == targets).sum()
            sums += torch.stack([loss.double(), right.double(), right.new_tensor(len(targets))])
            advance(len(targets) * fabric.world_size, total, words)
    loss_sum, correct, count = _summed(fabric, sums)
    return loss_sum / count, correct / count
