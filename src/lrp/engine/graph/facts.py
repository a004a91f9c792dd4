"""What is known of an operation whatever its family; stated where it is registered (`ops.register`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What is known of an operation.

    Attributes:
        nonnegative: "always": its output is >= 0; "kept": it is where all its inputs are.
        numbers: the names of arguments that must be >= 0 besides, for "kept".
        rectifies: whether it gives exactly 0 for everything <= 0, by its arguments.
        gate: what makes it a gate in a product: its values are "squashed" into 0 to 1, "signed" between -1 and 1, or
            "bounded" on both sides.
        bounded: whether the gate is one, by its arguments.
        allocates: its output is always new memory, never a view of an input.
        reads_shape: it reads a tensor's shape and type alone, not its values.
    """

    nonnegative: str = ""
    numbers: tuple[str, ...] = ()
    rectifies: Callable[[Arguments], bool] = lambda arguments: False
    gate: str = ""
    bounded: Callable[[Arguments], bool] = lambda arguments: True
    allocates: bool = False
    reads_shape: bool = False


_FACTS: dict[str, Facts] = {}
_NONE = Facts()


def describe(*names: str, **known: Any) -> None:
    """State facts about operations, also of those that relevance never passes through."""
    _FACTS.update(dict.fromkeys(names, Facts(**known)))


def facts(name: str) -> Facts:
    """Of an operation by its short name: "conv2d", "relu"."""
    return _FACTS.get(name.partition(".")[0], _NONE)


describe(
    "sym_size", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "new_empty_strided", reads_shape=True,
)  # fmt: skip
describe("batch_norm", allocates=True)
