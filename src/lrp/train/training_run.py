"""The files of a training: writes them, and reads those of an earlier run.

During the training, a lock and `OUTPUT.resume`, from which a killed run resumes, are beside the output. Permanent files
are `<name>.last.pth`, `<name>.history.json` and `<name>.curves.png`. None of them is needed to load the output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrp.data.splits import TrainingData
from lrp.errors import TrainingError, os_errors
from lrp.models.checkpoints import (
    checkpoint_facts,
    checkpoint_sidecar,
    save_checkpoint,
    update_checkpoint_facts,
)
from lrp.models.loading import LoadedModel
from lrp.models.preprocessing import Preprocessing
from lrp.models.weights import write_tensors
from lrp.storage.atomic import path_beside, remove_drafts, replacing, write_whole
from lrp.storage.locks import START_OVER, begun_by_another_run
from lrp.train.epochs import Facts, best_epoch
from lrp.values import Plain

OnEpoch = Callable[[Facts, LoadedModel], None]
"""Called with an epoch's facts and the model after that epoch, which it must not change."""


@dataclass(frozen=True)
class Retrained(Plain):
    """The result of a training.

    Attributes:
        output: the weights of the best epoch, a file for `load_model`.
        files: all files written, the output first.
        history: a dict for each epoch; the first is the model before training.
        metrics: of the best epoch: epoch, val_accuracy, val_loss.
        classes: {"label", "folder", "train", "val"} of each class.
        broken: (path, reason) of files that were skipped.
        notes: remarks about the data for the user.
        kept: whether the output already existed, made by the same command.
        resumed: number of epochs done by an earlier run.
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


class Run:
    """The state and the files of one training run."""

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
        replaced: Sequence[str] = (),
    ) -> None:
        self.output, self.identity, self.settings, self.data = output, identity, settings, data
        self.architecture, self.preprocessing, self.model, self.seed = (
            architecture,
            preprocessing,
            model,
            seed,
        )
        self.on_epoch, self.replaced = on_epoch, replaced
        self.resume = path_beside(output, "resume")
        self.last_file = output.with_name(f"{output.stem}.last{output.suffix}")
        self.history_file = output.with_name(f"{output.stem}.history.json")
        self.history: list[Facts] = []
        self.extra: Facts = {}
        self.last: dict[str, Tensor] = {}
        self.broken = list(data.broken)
        self.notes = list(data.notes)
        self.resumed = 0

    # ------------------------------------------------------------ files of an earlier run

    def kept(self) -> Retrained | None:
        """The finished result of the same command, or None."""
        facts = None if self.resume.exists() else checkpoint_facts(self.output)
        if facts is None or not facts.get("finished") or facts.get("identity") != self.identity:
            return None
        try:
            history = json.loads(self.history_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return self._result(history, facts["metrics"], kept=True)

    def begin(self, overwrite: bool) -> Mapping[str, Any] | None:
        """The state to resume from; None if there is none.

        Raises:
            TrainingError: the existing files belong to another run, or are damaged.
        """
        remove_drafts(*self._files(), checkpoint_sidecar(self.last_file), self.resume)
        if overwrite:
            with os_errors(self.resume, "removed", TrainingError):
                self.resume.unlink(missing_ok=True)
            return None
        if self.resume.exists():
            try:
                found = torch.load(self.resume, weights_only=True, map_location="cpu")
                before, state = found["identity"], found["state"]
            except Exception as error:  # a damaged file can raise any exception
                raise TrainingError(f"{self.resume} is damaged: {START_OVER}.") from error
            if before != self.identity:
                raise TrainingError(f"{begun_by_another_run(self.output, before, self.identity)}.")
            self.history = [dict(facts) for facts in state["history"]]
            self.resumed = len(self.history) - 1
            return state
        if os.path.lexists(self.output):
            raise TrainingError(
                f"{self.output}: is there already, and is not what this would make; {START_OVER}."
            )
        return None

    # ------------------------------------------------------------ writing

    def add_epoch(self, facts: Facts, model: nn.Module) -> None:
        """Add an epoch to the history, and call the `on_epoch` functions."""
        if facts["epoch"] < len(self.history):
            return  # already reported before the run was killed
        self.history.append(dict(facts))
        self._write_history()

        now = LoadedModel(model.eval(), self.preprocessing, self.data.class_names)
        for function in self.on_epoch:
            function(dict(facts), now)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the state from which a killed run resumes, atomically."""
        advice = ". What was finished before is kept; the same command goes on"
        with replacing(self.resume, TrainingError, advice=advice) as draft:
            write_tensors({"identity": self.identity, "state": dict(state)}, draft)

    def after_epoch(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        self.save_state(state)
        self.save_best(model, state["history"])

    def save_best(self, model: nn.Module, history: Sequence[Facts]) -> None:
        """Save the model as the output, if the last epoch is the best.

        It is called after the state is written, and again when a killed run resumes. If the epoch were computed again
        instead, it might no longer be the best, since on GPUs the numbers differ from run to run.
        """
        if best_epoch(history) == history[-1]["epoch"]:
            self._save(self.output, model, self._facts(history[-1], finished=False))

    def end(self, model: nn.Module, history: Sequence[Facts]) -> Retrained:
        """Write the remaining files, and remove the state for resuming."""
        best = history[best_epoch(history)]
        if self.last:  # only the head was trained; the model has the best head
            self._save(self.output, model, self._facts(best, finished=False))
            held = {name: model.state_dict()[name].clone() for name in self.last}
            model.load_state_dict(self.last, strict=False)
            self._save(self.last_file, model, self._facts(history[-1], finished=True))
            model.load_state_dict(held, strict=False)
        else:
            self._save(self.last_file, model, self._facts(history[-1], finished=True))
        self.history = [dict(facts) for facts in history]
        self._write_history()
        self._draw()
        update_checkpoint_facts(self.output, self._facts(best, finished=True))
        with os_errors(self.resume, "removed", TrainingError):
            self.resume.unlink(missing_ok=True)
        return self._result(self.history, self._metrics(best), resumed=self.resumed)

    def _save(self, path: Path, model: nn.Module, facts: Facts) -> None:
        save_checkpoint(
            path, model, self.architecture, self.data.class_names, self.preprocessing, facts, self.replaced
        )

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
        write_whole(self.history_file, [text], TrainingError)

    def _draw(self) -> None:
        """Draw the training curves, if matplotlib is installed."""
        with suppress(ModuleNotFoundError):
            import matplotlib  # noqa: F401

            from lrp.train import curves

            figure = curves.plot_training(self.history, best_epoch(self.history), title=self.output.name)
            for path in self._curves():
                curves.save_figure(figure, path, TrainingError)

    def _files(self) -> list[Path]:
        return [
            self.output,
            checkpoint_sidecar(self.output),
            self.last_file,
            self.history_file,
            *self._curves(),
        ]

    def _curves(self) -> list[Path]:
        return [self.output.with_name(f"{self.output.stem}.curves{suffix}") for suffix in (".png", ".svg")]

    def _result(
        self, history: Sequence[Facts], metrics: Facts, kept: bool = False, resumed: int = 0
    ) -> Retrained:
        return Retrained(
            str(self.output),
            tuple(str(file) for file in self._files() if file.exists()),
            tuple(history),
            metrics,
            tuple(c.to_dict() for c in self.data.classes),
            tuple(self.broken),
            tuple(self.notes),
            kept,
            resumed,
        )
