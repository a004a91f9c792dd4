"""Trains the last layers on fixed features: full-batch L-BFGS on a penalised cross-entropy.

With a frozen trunk, the problem of a linear head is convex: L-BFGS finds its optimum without a learning rate, batches
or random numbers. What matters is the strength of the penalty: it is cross-validated within the training set.
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
from lrp.train.epochs import Facts, best_epoch
from lrp.train.lbfgs import (
    Data,
    Descent,
    Features,
    Variables,
    cross_validated,
    expect_lbfgs_data,
    lbfgs_settled,
    lbfgs_standardisation,
)
from lrp.values import Plain

SETTLED = 1e-5  # relative to the objective: training stops after an epoch that gains less
_FORMAT = 1  # version of the state


@dataclass(frozen=True)
class HeadSettings(Plain):
    """Settings for training a head.

    Attributes:
        epochs: maximum number of L-BFGS steps, each over all photos.
        weight_decay: the penalty is weight_decay/2 times the sum of the squared weights, for features scaled to
            standard deviation 1; biases have none. None: cross-validated on the training photos.
        label_smoothing: the share of the target that is spread evenly over all classes.
        patience: stop after this number of epochs without a better accuracy on val.
        seed: of the cross-validation's folds; nothing else is random.
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
    """The result of `fit_head`.

    Attributes:
        history: a dict per epoch, the first (0) for the head before training: epoch, loss and accuracy on all views of
            the training photos, objective (loss plus penalty), val_loss (without smoothing), val_accuracy, seconds
            (since the previous epoch).
        best_epoch: the epoch whose parameters the tail has now: highest accuracy on val, then lowest loss.
        weight_decay: the value set, or found by cross-validation.
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
    """Train all parameters of `tail`. It ends with the parameters of the best epoch, in eval mode.

    Inputs of `nn.Linear` and `nn.Conv2d` layers are standardised during training; then this is folded into weight and
    bias, so that the layers are unchanged. Other tails are trained without it. The global random generator is not
    used; with the same number of threads on the same machine the result is the same bit for bit.

    Args:
        tail: a tuple of features, one for each input -> logits [N, K].
        features: of the training photos; each view counts as additional photos.
        labels: int64 [N], from 0 to K - 1; a class may have no photo.
        validation: features of other photos; only the first view is evaluated.
        state: a value passed to `on_state`, to resume from: the result is that of an uninterrupted run. `epochs` and
            `patience` may differ from that run's.
        on_state: called with the state after each epoch, after `on_epoch`; copies of tensors and plain values.
        on_epoch: called with the facts of each epoch, as in `Fitted.history`.
        advance: called with the epochs done since the last call and the maximum; with 0 during cross-validation.

    Raises:
        TrainingError: features, labels and tail do not match, there are none, some are not finite, the state is of
            another run, or the loss is NaN or infinite.
    """
    settings = settings or HeadSettings()
    tail.eval()
    device = next(tail.parameters()).device
    train = Data("training", list(features.values()), labels, device)
    val = Data("validation", list(validation.values())[:1], val_labels, device)
    standards = lbfgs_standardisation(tail, train)
    expect_lbfgs_data(tail, val)
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
        val_loss, val_accuracy = variables.evaluate(val)
        history.append(
            {
                "epoch": len(history), "loss": descent.loss, "accuracy": descent.accuracy, "objective": objective,
                "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": time.perf_counter() - begin,
            }
        )  # fmt: skip
        epoch = history[-1]["epoch"]
        if best_epoch(history) == epoch:
            best = variables.copy()
        variables.fold()  # so that `on_epoch` sees the model of this epoch
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


def _finished(history: Sequence[Facts], settings: HeadSettings) -> bool:
    done = len(history) - 1
    if done < 1:
        return False
    return (
        done >= settings.epochs
        or done - best_epoch(history) >= settings.patience
        or lbfgs_settled(history[-2]["objective"], history[-1]["objective"], SETTLED)
    )


def _expect_same(
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    variables: Variables,
    standards: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Raise unless a state belongs to this run."""
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
        not torch.equal(a.cpu(), b.cpu())  # a state read from a file is on the CPU
        for p in standards
        for a, b in zip(standards[p], state["standards"][p], strict=True)
    ):
        changes.append("the features have other means and deviations")
    if changes:
        raise TrainingError(f"the state to go on from is of another run: {'; '.join(changes)}; start over.")
