"""Trains the last layers on features that stay as they are: full-batch L-BFGS on a penalised cross-entropy.

With the trunk frozen, a linear head has one best solution: a method that goes straight there needs no learning rate,
no batches and no luck. What matters is how strongly the weights are held back: cross-validated within the training set.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrp.errors import TrainingError
from lrp.train.lbfgs import (
    Data,
    Descent,
    Features,
    Variables,
    cross_validated,
    expect_fitting,
    settled,
    standards_of,
)
from lrp.values import Plain

Facts = dict[str, Any]

SETTLED = 1e-5  # of the objective: an epoch that gains less is the last
_FORMAT = 1  # of the state


@dataclass(frozen=True)
class HeadSettings(Plain):
    """How a head is trained; the defaults are the stated ones.

    Attributes:
        epochs: at most so many steps of L-BFGS, each over all photos.
        weight_decay: the penalty is weight_decay/2 times the sum of the squared weights, for features scaled to
            standard deviation 1; biases have none. None: cross-validated on the training photos.
        label_smoothing: the share of the target that goes to all classes alike.
        patience: so many epochs without a better accuracy on val, and it stops.
        seed: of the cross-validation's folds; nothing else is drawn.
    """

    epochs: int = 100
    weight_decay: float | None = None
    label_smoothing: float = 0.0
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        decay = self.weight_decay
        wrong = [
            f"{name} = {getattr(self, name):g}, expected {rule}"
            for name, rule, fits in (
                ("epochs", "1 or more", self.epochs >= 1),
                ("weight_decay", "0 or more, or none", decay is None or 0 <= decay < math.inf),
                ("label_smoothing", "0 to below 1", 0 <= self.label_smoothing < 1),
                ("patience", "1 or more", self.patience >= 1),
            )
            if not fits
        ]
        if wrong:
            raise TrainingError(f"settings of the head's training: {'; '.join(wrong)}.")


@dataclass(frozen=True)
class Fitted:
    """What became of a head.

    Attributes:
        history: a dict for each epoch, the first (0) for the head as it came: epoch, loss and accuracy on all views of
            the training photos, objective (that loss and the penalty), val_loss (without smoothing), val_accuracy,
            seconds (since the epoch before).
        best_epoch: whose parameters the tail now has: the highest accuracy on val, of equal ones the lowest loss.
        weight_decay: as set, or as cross-validated.
        last: the tail's parameters after the last epoch.
    """

    history: list[Facts]
    best_epoch: int
    weight_decay: float
    last: dict[str, Tensor]


def fit_head(
    tail: nn.Module,
    features: Features,
    labels: Tensor,
    validation: Features,
    val_labels: Tensor,
    settings: HeadSettings | None = None,
    *,
    state: Mapping[str, Any] | None = None,
    on_state: Callable[[dict[str, Any]], None] = lambda state: None,
    on_epoch: Callable[[Facts], None] = lambda facts: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Fitted:
    """Train all parameters of `tail`, which then has those of the best epoch, and is in eval mode.

    Inputs of `nn.Linear` and `nn.Conv2d` layers are standardised while training; afterwards that is folded into
    weight and bias, so that the layers stay what they are. Any other tail is trained as it is. Draws nothing from the
    global generator; with the same number of threads on the same machine the result is the same bit for bit.

    Args:
        tail: a tuple of features, one for each input -> logits [N, K].
        features: of the training photos; each view counts as further photos.
        labels: int64 [N], from 0 to K - 1; a class may have no photo.
        validation: of other photos; only the first view is judged.
        state: what `on_state` was given, to go on from: ends as the undisturbed run does. `epochs` and `patience`
            may differ from that run's.
        on_state: given the state after each epoch, after `on_epoch`; tensors and plain values, its caller's own.
        on_epoch: given the facts of each epoch, as in `Fitted.history`.
        advance: epochs done since the last call, of at most so many. 0 while strengths are compared.

    Raises:
        TrainingError: features or labels do not fit together or the tail, there are none, some are not finite, the
            state is of another run, or the loss is no number.
    """
    settings = settings or HeadSettings()
    tail.eval()
    device = next(tail.parameters()).device
    train = Data("training", list(features.values()), labels, device)
    val = Data("validation", list(validation.values())[:1], val_labels, device)
    standards = standards_of(tail, train)
    expect_fitting(tail, val)
    identity = asdict(settings) | {
        "photos": len(labels),
        "validating": len(val_labels),
        "views": list(features),
    }
    del identity["epochs"], identity["patience"]
    variables = Variables(tail, standards)
    history: list[Facts] = []
    if state:
        _expect_same(state, identity, variables, standards)
        strength = state["weight_decay"]
        variables.set(state["variables"])
    elif settings.weight_decay is not None:
        strength = settings.weight_decay
    else:
        strength = cross_validated(
            variables, train, settings.label_smoothing, settings.seed, lambda: advance(0, settings.epochs)
        )
    descent = Descent(variables, train, strength, settings.label_smoothing)
    if state:
        descent.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        history = [dict(facts) for facts in state["history"]]
        best = {name: tensor.clone() for name, tensor in state["best"].items()}
        advance(len(history) - 1, settings.epochs)
    while not _finished(history, settings):
        begin = time.perf_counter()
        if history:
            descent.step()
        objective = descent.objective()
        if not math.isfinite(objective):
            raise TrainingError(
                f"epoch {len(history)}: the loss is no number any more: the features have values too large for it; "
                "train the whole net instead (--train all)."
            )
        val_loss, val_accuracy = variables.judge(val)
        history.append(
            {
                "epoch": len(history), "loss": descent.loss, "accuracy": descent.accuracy, "objective": objective,
                "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": time.perf_counter() - begin,
            }
        )  # fmt: skip
        epoch = history[-1]["epoch"]
        if best_epoch(history) == epoch:
            best = variables.copy()
        variables.fold()  # so that whoever is told can look at the model as it is now
        on_epoch(dict(history[-1]))
        on_state(
            {
                "format": _FORMAT, "identity": dict(identity), "weight_decay": strength,
                "standards": {path: [t.clone() for t in pair] for path, pair in standards.items()},
                "variables": variables.copy(), "best": {name: tensor.clone() for name, tensor in best.items()},
                "optimizer": copy.deepcopy(descent.optimizer.state_dict()),
                "history": [dict(facts) for facts in history],
            }
        )  # fmt: skip
        advance(int(epoch > 0), settings.epochs)
    variables.fold()
    last = {name: parameter.detach().clone() for name, parameter in tail.named_parameters()}
    variables.set(best)
    variables.fold()
    return Fitted(history, best_epoch(history), strength, last)


def best_epoch(history: Sequence[Facts]) -> int:
    """The epoch with the highest accuracy on val; of equal ones that with the lowest loss, then the first."""
    return min(history[1:] or history, key=lambda f: (-f["val_accuracy"], f["val_loss"]))["epoch"]


def _finished(history: Sequence[Facts], settings: HeadSettings) -> bool:
    done = len(history) - 1
    if done < 1:
        return False
    return (
        done >= settings.epochs
        or done - best_epoch(history) >= settings.patience
        or settled(history[-2]["objective"], history[-1]["objective"], SETTLED)
    )


def _expect_same(
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    variables: Variables,
    standards: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """That a state is one of this run's."""
    if state.get("format") != _FORMAT:
        raise TrainingError(
            f"the state to go on from is of format {state.get('format')}, expected {_FORMAT}: it was made by another "
            "version of lrp; start over."
        )
    before = state["identity"]
    shapes = {name: list(tensor.shape) for name, tensor in variables.tensors.items()}
    was = {name: list(tensor.shape) for name, tensor in state["variables"].items()}
    changes = [
        f"{name} was {before.get(name)}, is {identity.get(name)}"
        for name in identity
        if before.get(name) != identity.get(name)
    ]
    if was != shapes:
        changes.append(f"the head was {was}, is {shapes}")
    elif any(
        not torch.equal(a.cpu(), b.cpu())  # a state that was read from a file lies on the CPU
        for p in standards
        for a, b in zip(standards[p], state["standards"][p], strict=True)
    ):
        changes.append("the features have other means and deviations")
    if changes:
        raise TrainingError(f"the state to go on from is of another run: {'; '.join(changes)}; start over.")
