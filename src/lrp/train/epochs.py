"""The history of a training: a dict of facts per epoch, and which epoch is the best."""

from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]
"""Of one epoch: its number, losses, accuracies, seconds."""


def best_epoch(history: Sequence[Facts]) -> int:
    """The epoch with the highest accuracy on val; of equal ones the one with the lowest loss, then the first."""
    return min(history[1:] or history, key=lambda f: (-f["val_accuracy"], f["val_loss"]))["epoch"]
