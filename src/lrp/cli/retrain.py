"""`lrp retrain`: train a model on new classes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp.cli import common, tables
from lrp.cli.evaluate import JSON, LINKS, MEGAPIXELS, OVERWRITE, QUIET
from lrp.errors import DataError, TrainingError, os_errors

if TYPE_CHECKING:
    from lrp.data.splits import TrainingData
    from lrp.models.loading import LoadedModel
    from lrp.train.training_run import OnEpoch, Retrained

CLASSES = 30


class Train(StrEnum):
    head = "head"
    all = "all"


@common.command_example("lrp retrain data/imagenette2-320 --model vgg19 -o vgg19_imagenette.pth")
def retrain(
    data: Annotated[
        Path,
        typer.Argument(help="DATA/train and DATA/val, or DATA/<class>/<image>, then split.", metavar="DATA"),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Ends in .pth or .safetensors; every --model takes it.")
    ],
    model: Annotated[str, common.MODEL] = "efficientnet_lite0",
    arch: Annotated[str | None, common.ARCH] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
    train: Annotated[
        Train, typer.Option(help="head: the last layer, on features computed once; all: the whole net.")
    ] = Train.head,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; none: 100 for the head, 10 for all.")
    ] = None,
    size: Annotated[int | None, common.SIZE] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that go through the model together.")] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="all: so many batches make one step.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="all: AdamW's highest; none: 0.0003.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="none: cross-validated for the head, 0.05 for all.")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="none: 0 for the head, 0.1 for all.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs without a better accuracy; none: 20 for the head, 5 for all."),
    ] = None,
    val_share: Annotated[float, typer.Option(help="Of each class, where there is no DATA/val.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split, the fresh head, order and crops.")] = 0,
    max_skip_rate: Annotated[
        float, typer.Option(min=0, max=1, help="More unreadable files than this share: stop.")
    ] = 0.05,
    max_megapixels: Annotated[float, MEGAPIXELS] = 100.0,
    range: Annotated[tuple[float, float] | None, common.RANGE] = None,
    follow_links: Annotated[bool, LINKS] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Random weights; nothing downloaded.")
    ] = False,
    device: Annotated[str, common.DEVICE] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="all: so many of them.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="all: on so many machines.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="That decode; none: one per core, up to 8.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the features; none: .lrp_features beside the output.")
    ] = None,
    watch: Annotated[
        list[Path] | None,
        typer.Option(help="A photo to explain after each epoch; as often as there are some.", dir_okay=False),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write NAME.tensorboard/.")] = False,
    overwrite: Annotated[bool, OVERWRITE] = False,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Give a model your class folders as classes and train it. Stopped, the same command goes on."""
    from lrp.train.fit_all import NetSettings
    from lrp.train.fit_head import HeadSettings
    from lrp.train.retrain import retrain as run

    asked = {
        "epochs": epochs, "weight_decay": weight_decay, "label_smoothing": label_smoothing, "patience": patience,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if train is Train.head and (accumulate != 1 or learning_rate is not None or devices * nodes > 1):
        raise typer.BadParameter(
            "--accumulate, --learning-rate, --devices and --nodes belong to --train all."
        )
    rate: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
    settings: dict[str, Any]
    if train is Train.head:
        settings = {"head": HeadSettings(seed=seed, **given)}
    else:
        settings = {
            "net": NetSettings(
                seed=seed,
                keep_statistics=not from_scratch,
                batch_size=batch_size,
                accumulate=accumulate,
                **rate,
                **given,
            )
        }
    given_range = common.checked_range(range)
    heard: list[OnEpoch] = []
    place = output.with_name(output.stem)
    if watch:
        from lrp.train.watch import Watch

        heard.append(Watch(watch, f"{place}.watch", every=1 if train is Train.all else 10, range=given_range))
    if tensorboard:
        heard.append(_tensorboard_writer(Path(f"{place}.tensorboard")))
    quiet = quiet or (devices * nodes > 1 and _not_the_first())
    silent = quiet or as_json
    printed: list[str] = []

    def on_data(material: TrainingData) -> None:
        printed.extend(material.notes)
        if not silent:
            _show_data(material)

    with _Bar("reading photos", quiet) as advance:
        if not silent:
            heard.append(_Lines(settings["net"].epochs if train is Train.all else 0))
        with common.as_wrong_arguments(DataError, TrainingError):
            found = run(
                data, output, model, arch=arch, preprocess=preprocess, train=train.value, **settings, size=size, val_share=val_share, seed=seed,
                max_skip_rate=max_skip_rate, max_megapixels=max_megapixels, range=given_range,
                follow_links=follow_links, pretrained=not from_scratch, device=device, devices=devices, nodes=nodes, workers=workers,
                batch_size=batch_size, cache=cache, overwrite=overwrite, on_epoch=heard,
                on_data=on_data, advance=advance,
            )  # fmt: skip
    if not found.files:  # not the first process
        return
    for path, reason in found.broken:
        common.print_message(f"left out {path}: {reason}")
    for note in found.notes:
        if not silent and note not in printed:
            common.print_message(note)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    elif not quiet:
        print(_summary(found))
    if found.broken:
        raise common.Skipped


def _show_data(material: TrainingData) -> None:
    """Print a summary of the data before the training begins."""
    classes = material.classes
    print(
        f"{len(material.train):,} photos to train on, {len(material.val):,} to validate, {len(classes)} classes"
    )
    for note in material.notes:
        common.print_message(note)
    if len(classes) <= CLASSES:
        rows = [[c.label, f"{c.train:,}", f"{c.val:,}"] for c in classes]
        tables.print_table("Classes", ("class", ">train", ">val"), rows)
    sys.stdout.flush()


class _Lines:
    """Prints each epoch, with the estimated time for the rest of at most `epochs`. 0: unknown number, no estimate."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.first: tuple[int, float] | None = None

    def __call__(self, facts: dict[str, Any], loaded: LoadedModel) -> None:
        words, now = _epoch_line(facts), time.monotonic()
        if self.first is None:
            self.first = facts["epoch"], now
        elif left := self.epochs - facts["epoch"]:
            each = (now - self.first[1]) / (facts["epoch"] - self.first[0])
            words += f"; {_duration(left * each)} left" if left > 0 else ""
        print(words, flush=True)


def _duration(seconds: float) -> str:
    """A time as text: "40 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _epoch_line(facts: dict[str, Any]) -> str:
    """The metrics of one epoch as one line."""
    words = [f"epoch {facts['epoch']:>3}"]
    if "loss" in facts:
        words.append(f"loss {facts['loss']:.3f}, {100 * facts['accuracy']:.1f} % of train")
    words.append(f"val loss {facts['val_loss']:.3f}, {100 * facts['val_accuracy']:.1f} % of val")
    if "images_per_second" in facts:
        words.append(f"{facts['images_per_second']:.0f} images/s")
    return "; ".join(words)


class _Bar(common.progress):
    """A bar with images per second; text after a comma, such as the loss, can change without restarting the bar."""

    def __init__(self, what: str, quiet: bool) -> None:
        from rich.progress import ProgressColumn, Task
        from rich.text import Text

        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                images = not task.description.startswith(
                    "training the head"
                )  # each of its steps uses all images
                return Text(f"{task.speed:.0f} images/s" if images and task.speed else "")

        super().__init__(what, quiet)
        self.bar.columns = (*self.bar.columns, Speed())

    def __enter__(self) -> Callable[[int, int, str], None]:
        advance = super().__enter__()

        def update(done: int, total: int, words: str) -> None:
            advance(done, total, words.partition(",")[0])
            self.bar.update(self.bar.task_ids[0], description=words)

        return update


def _not_the_first() -> bool:
    """Whether this is not the first of the processes that train together."""
    try:
        from lightning_fabric.utilities.rank_zero import rank_zero_only
    except ModuleNotFoundError:
        return False
    return bool(getattr(rank_zero_only, "rank", 0))


def _summary(found: Retrained) -> str:
    best = found.metrics
    words = f"best: epoch {best['epoch']}, {100 * best['val_accuracy']:.2f} % of val, val loss {best['val_loss']:.3f}"
    if found.kept:
        words += " (up to date)"
    if found.resumed:
        words += f" (went on after epoch {found.resumed})"
    return f"{words}\n-> {', '.join(found.files)}"


def _tensorboard_writer(folder: Path) -> OnEpoch:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise TrainingError("--tensorboard needs tensorboard: pip install 'lrp[train]'.") from error
    with os_errors(folder, "written", TrainingError):
        writer = SummaryWriter(str(folder))

    def write(facts: dict[str, Any], loaded: LoadedModel) -> None:
        for name, value in facts.items():
            if name != "epoch":
                writer.add_scalar(name.replace("val_", "val/"), value, facts["epoch"])
        writer.flush()

    return write
