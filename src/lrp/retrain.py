"""A model with new classes: its head trained on features that are kept, or all of it; saved for every other command.

Beside the output stand, while it is being made, its lock and `OUTPUT.resume`, from which a killed run goes on; and for
good `<name>.last.pth`, `<name>.history.json` and `<name>.curves.png`. Nothing of it is needed to load the output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lrp
from lrp.errors import TrainingError
from lrp.features import Store, features
from lrp.fit_all import NetSettings, fit_all, launch
from lrp.fit_head import HeadSettings, fit_head
from lrp.heads import adapted, find_heads
from lrp.heads import split as cut
from lrp.intervals import Plain
from lrp.lock import START_OVER, Lock, beside, differing
from lrp.models import (
    PACKAGED,
    SUFFIXES,
    LoadedModel,
    Preprocessing,
    save_checkpoint,
    sidecar_facts,
    update_facts,
)
from lrp.predictions import os_errors, write_whole
from lrp.splits import TrainingData, split
from lrp.weights import fingerprint

MODES = ("head", "all")
Facts = dict[str, Any]
OnEpoch = Callable[[Facts, LoadedModel], None]
"""Given an epoch's facts and the model as it is then, not to be changed."""


@dataclass(frozen=True)
class Retrained(Plain):
    """What became of a training.

    Attributes:
        output: the weights of the best epoch; `load_model` takes it.
        files: all that was written, the output first.
        history: a dict for each epoch; the first is the model as it came.
        metrics: of the best epoch: epoch, val_accuracy, val_loss.
        classes: {"label", "folder", "train", "val"} of each.
        broken: (path, reason) of files that were left out.
        notes: what a person should know of the data.
        kept: it was there already, made by the same command.
        resumed: epochs that an earlier run had done.
    """

    output: str
    files: tuple[str, ...]
    history: tuple[Facts, ...]
    metrics: Facts
    classes: tuple[Facts, ...]
    broken: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    kept: bool = False
    resumed: int = 0


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
    follow_links: bool = False,
    pretrained: bool = True,
    device: torch.device | str = "cpu",
    devices: int = 1,
    nodes: int = 1,
    workers: int | None = None,
    batch_size: int = 32,
    cache: Path | str | None = None,
    overwrite: bool = False,
    arch: str | None = None,
    on_data: Callable[[TrainingData], None] = lambda data: None,
    on_epoch: Sequence[OnEpoch] = (),
    advance: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Retrained:
    """Give a model the class folders of `data` as its classes, and train it.

    Killed at any moment, the same call goes on from its last epoch and ends with the same numbers; a call whose
    output is there already returns it. On a CPU, `train="head"` gives the same bits each time.

    Args:
        data: as `lrp.splits.split` reads it; so are val_share, seed, max_skip_rate, max_megapixels, follow_links.
        output: ends in .pth, .pt or .safetensors.
        model: of `load_model`; or a file with its sidecar, to go on from there with other classes or data.
        train: "head": the last layers alone, on features that are computed once. "all": everything, beginning with
            the head that "head" finds.
        head, net: how; `seed` is theirs too.
        size: side of the model's input; None: what it was trained with. It is written to the output's sidecar.
        pretrained: False begins with random weights.
        device: "cpu", "cuda", "cuda:1"; for "all" also `devices` of them on each of `nodes` machines.
        workers: that decode; None: one per core, eight at most.
        batch_size: photos that go through the trunk together.
        cache: folder of the features; None: .lrp_features beside the output.
        overwrite: start over, whatever is there.
        on_data: called when the data is read.
        on_epoch: each called after each epoch, in the first process.
        advance: called with the number done since the last call, of how many, and words.

    Raises:
        TrainingError, DataError, ModelError, PredictionsError: one line each; what is finished is kept.
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
    fabric = launch(str(device), devices, nodes) if train == "all" else None
    first = fabric is None or fabric.is_global_zero
    with os_errors(output.parent, "made"):
        output.parent.mkdir(parents=True, exist_ok=True)
    with _locked(output) if first else nullcontext():
        material = split(
            data, val_share=val_share, seed=seed, max_skip_rate=max_skip_rate, max_megapixels=max_megapixels,
            follow_links=follow_links, advance=lambda done, total: advance(done, total, "reading photos"),
        )  # fmt: skip
        on_data(material)
        advance(0, 1, f"loading {model}")
        fresh = adapted(model, len(material.classes), pretrained=pretrained, seed=seed, arch=arch)
        preprocessing = fresh.preprocessing if size is None else fresh.preprocessing.with_size(size)
        identity = {
            "model": model,
            "weights": fingerprint(fresh.model)[:16],
            "preprocessing": json.dumps(preprocessing.to_dict(), sort_keys=True),
            "class names": json.dumps(material.class_names, ensure_ascii=False),
            "data": material.fingerprint[:16],
            "train": train,
            "settings": json.dumps(settings.to_dict(), sort_keys=True),
            "device": fabric.device.type if fabric else torch.device(device).type,
            "devices": str(devices * nodes),
            "lrp": lrp.__version__,
        }
        run = _Run(
            output, identity, settings, material, fresh.architecture, preprocessing, model, seed, on_epoch
        )
        if not overwrite and (kept := run.kept()) is not None:
            return kept
        state = run.begin(overwrite, first)
        where = fabric.device if fabric else torch.device(device)
        # With channels last, CPUs and GPUs run convolutions nearly twice as fast.
        net_ = fresh.model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = torch.zeros(2, 3, *preprocessing.geometry.crop, device=where)
        if train == "head" or (state is None and pretrained):
            trained = _head(
                run, net_, example, head or HeadSettings(seed=seed), where, batch_size, workers,
                Path(cache) if cache else output.parent / ".lrp_features", advance, state,
                whole=train == "head",
            )  # fmt: skip
            if train == "head":
                return run.end(net_, trained)
        assert fabric is not None
        fitted = fit_all(
            net_, find_heads(net_, example), preprocessing, material.train, material.val, settings, fabric,
            workers=workers, state=state,
            on_state=lambda held, better: run.after_epoch(net_, held, better), advance=advance,
            on_epoch=lambda facts: run.tell(facts, net_) if first else None,
        )  # fmt: skip
        if not first:
            return Retrained(str(output), (), tuple(fitted), {}, (), (), ())
        return run.end(net_, fitted)


def _head(
    run: _Run,
    model: nn.Module,
    example: Tensor,
    settings: HeadSettings,
    device: torch.device,
    batch_size: int,
    workers: int | None,
    cache: Path,
    advance: Callable[[int, int, str], None],
    state: Mapping[str, Any] | None,
    whole: bool,
) -> list[Facts]:
    """Train the head on features: the whole of a training, or how one of the whole net begins."""
    parts = cut(model, example)
    # The weights below the head: the head itself is fresh at each run, and no part of the features.
    key = fingerprint(parts.trunk)

    def trunk(images: Tensor) -> tuple[Tensor, ...]:
        return parts.trunk(images.contiguous(memory_format=torch.channels_last))

    stores: list[Store] = []
    for examples, views in ((run.data.train, ("plain", "mirrored")), (run.data.val, ("plain",))):
        stores.append(
            features(
                trunk, [e.sample for e in examples], run.preprocessing, cache, key, views=views,
                batch_size=batch_size, device=device, workers=workers, digests=[e.digest for e in examples],
                advance=lambda done, total: advance(done, total, "computing features"),
            )
        )  # fmt: skip
    labels = [
        torch.tensor([examples[i].target for i in store.kept])
        for examples, store in zip((run.data.train, run.data.val), stores, strict=True)
    ]
    fitted = fit_head(
        parts.tail, stores[0].views, labels[0], stores[1].views, labels[1], settings, state=state if whole else None,
        on_state=run.keep if whole else lambda state: None,
        on_epoch=(lambda facts: run.tell(facts, model)) if whole else lambda facts: None,
        advance=lambda done, total: advance(done, total, "training the head"),
    )  # fmt: skip
    run.extra = {"weight_decay": fitted.weight_decay}
    if whole:
        # From the tail's names to the model's.
        run.last = {
            f"{parts.heads[int(name.split('.')[1])]}.{name.split('.', 2)[2]}": tensor
            for name, tensor in fitted.last.items()
        }
    return fitted.history


class _Run:
    """What is written, when, and what is there from an earlier run."""

    def __init__(
        self,
        output: Path,
        identity: dict[str, str],
        settings: Any,
        data: TrainingData,
        architecture: str,
        preprocessing: Preprocessing,
        model: str,
        seed: int,
        on_epoch: Sequence[OnEpoch],
    ) -> None:
        self.output, self.identity, self.settings, self.data = output, identity, settings, data
        self.architecture, self.preprocessing, self.model, self.seed = (
            architecture,
            preprocessing,
            model,
            seed,
        )
        self.on_epoch = on_epoch
        self.resume = beside(output, "resume")
        self.last_file = output.with_name(f"{output.stem}.last{output.suffix}")
        self.history_file = output.with_name(f"{output.stem}.history.json")
        self.history: list[Facts] = []
        self.extra: Facts = {}
        self.last: dict[str, Tensor] = {}
        self.resumed = 0

    # ------------------------------------------------------------ what is there

    def kept(self) -> Retrained | None:
        """The finished output of the same command."""
        facts = None if self.resume.exists() else sidecar_facts(self.output)
        if facts is None or not facts.get("finished") or facts.get("identity") != self.identity:
            return None
        try:
            history = json.loads(self.history_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return self._result(history, facts["metrics"], kept=True)

    def begin(self, overwrite: bool, first: bool) -> Mapping[str, Any] | None:
        """The state to go on from, if there is one of this run.

        Raises:
            TrainingError: what is there is another run's.
        """
        if overwrite:
            if first:
                with os_errors(self.resume, "removed"):
                    self.resume.unlink(missing_ok=True)
            return None
        if self.resume.exists():
            try:
                found = torch.load(self.resume, weights_only=True, map_location="cpu")
                before, state = found["identity"], found["state"]
            except Exception as error:  # what a damaged file raises depends on where it is damaged
                raise TrainingError(f"{self.resume} is damaged: {START_OVER}.") from error
            if before != self.identity:
                raise TrainingError(f"{differing(self.output, before, self.identity)}.")
            self.history = [dict(facts) for facts in state["history"]]
            self.resumed = len(self.history) - 1
            return state
        if os.path.lexists(self.output):
            raise TrainingError(
                f"{self.output}: is there already, and is not what this would make; {START_OVER}."
            )
        return None

    # ------------------------------------------------------------ what is written

    def tell(self, facts: Facts, model: nn.Module) -> None:
        """Note an epoch, and say it to whoever wants to know."""
        if facts["epoch"] < len(self.history):
            return  # said before the run was killed
        self.history.append(dict(facts))
        self._write_history()

        now = LoadedModel(model.eval(), self.preprocessing, self.data.class_names)
        for function in self.on_epoch:
            function(dict(facts), now)

    def keep(self, state: Mapping[str, Any]) -> None:
        """What a killed run goes on from; whole or not at all."""
        part = self.resume.with_name(self.resume.name + ".part")
        with os_errors(
            self.resume, "written", ". What was finished before is kept; the same command goes on"
        ):
            try:
                with open(part, "wb") as file:
                    torch.save({"identity": self.identity, "state": dict(state)}, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, self.resume)
            except RuntimeError as error:  # how torch says that the disk is full
                raise OSError(None, str(error).splitlines()[0]) from error
            finally:
                with suppress(OSError):
                    part.unlink()

    def after_epoch(self, model: nn.Module, state: Mapping[str, Any], better: bool) -> None:
        """The best first: killed in between, the epoch is done again, and again is the best."""
        if better:
            best = state["history"][-1]
            self._save(self.output, model, self._facts(best, finished=False))
        self.keep(state)

    def end(self, model: nn.Module, history: Sequence[Facts]) -> Retrained:
        """Write what is not there yet, and take away what was only for going on."""
        best = best_of(history)
        if self.last:  # the head's training: the model has the best head
            self._save(self.output, model, self._facts(best, finished=False))
            held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict({**held, **self.last})
            self._save(self.last_file, model, self._facts(history[-1], finished=True))
            model.load_state_dict(held)
        else:
            self._save(self.last_file, model, self._facts(history[-1], finished=True))
        self.history = [dict(facts) for facts in history]
        self._write_history()
        self._draw()
        update_facts(self.output, self._facts(best, finished=True))
        with os_errors(self.resume, "removed"):
            self.resume.unlink(missing_ok=True)
        return self._result(self.history, self._metrics(best), resumed=self.resumed)

    def _save(self, path: Path, model: nn.Module, facts: Facts) -> None:
        save_checkpoint(path, model, self.architecture, self.data.class_names, self.preprocessing, facts)

    def _facts(self, epoch: Facts, finished: bool) -> Facts:
        return {
            "finished": finished,
            "identity": self.identity,
            "from": self.model,
            "train": self.identity["train"],
            "settings": asdict(self.settings) | self.extra,
            "seed": self.seed,
            "data": {
                "fingerprint": self.data.fingerprint,
                "classes": [c.to_dict() for c in self.data.classes],
            },
            "metrics": self._metrics(epoch),
        }

    def _metrics(self, epoch: Facts) -> Facts:
        return {name: epoch[name] for name in ("epoch", "val_accuracy", "val_loss")}

    def _write_history(self) -> None:
        text = json.dumps(self.history, indent=1) + "\n"
        write_whole(self.history_file, [text])

    def _draw(self) -> None:
        """The curves, where there is what draws them."""
        with suppress(ModuleNotFoundError):
            import matplotlib  # noqa: F401

            from lrp import plots

            figure = plots.training(self.history, best_of(self.history)["epoch"], title=self.output.name)
            for place in self._curves():
                plots.save(figure, place)

    def _curves(self) -> list[Path]:
        return [self.output.with_name(f"{self.output.stem}.curves{suffix}") for suffix in (".png", ".svg")]

    def _result(
        self, history: Sequence[Facts], metrics: Facts, kept: bool = False, resumed: int = 0
    ) -> Retrained:
        files = [self.output, Path(f"{self.output}.json"), self.last_file, self.history_file, *self._curves()]
        return Retrained(
            str(self.output),
            tuple(str(file) for file in files if file.exists()),
            tuple(history),
            metrics,
            tuple(c.to_dict() for c in self.data.classes),
            self.data.broken,
            self.data.notes,
            kept,
            resumed,
        )


def best_of(history: Sequence[Facts]) -> Facts:
    """The epoch with the highest accuracy on val; of equal ones that with the lowest loss, then the first."""
    return min(history[1:] or history, key=lambda facts: (-facts["val_accuracy"], facts["val_loss"]))


class _locked:
    """The output is this run's alone."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def __enter__(self) -> None:
        self.lock = Lock(self.output)

    def __exit__(self, *_: Any) -> None:
        self.lock.release()
