"""Facts about an operation that do not depend on its family; given where it is registered (`registry.register`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """Facts about an operation.

    Attributes:
        nonnegative: "always": its output is >= 0; "kept": its output is >= 0 if all its inputs are.
        numbers: the names of numeric arguments that must also be >= 0, for "kept".
        rectifies: arguments -> whether it maps every value <= 0 to exactly 0.
        gate: how it can be the gate of a product: its values lie between 0 and 1 ("squashed"), between -1 and 1
            ("signed"), or between other limits ("bounded").
        bounded: arguments -> whether its values have these limits.
        allocates: its output is always new memory, never a view of an input.
        reads_shape: it reads only a tensor's shape and dtype, not its values.
        steps: arguments -> whether its floating values change only in steps (rounding, signs), so that it carries no
            relevance. Whatever is not floating (comparisons, indices) carries none either.
    """

    nonnegative: str = ""
    numbers: tuple[str, ...] = ()
    rectifies: Callable[[Arguments], bool] = lambda arguments: False
    gate: str = ""
    bounded: Callable[[Arguments], bool] = lambda arguments: True
    allocates: bool = False
    reads_shape: bool = False
    steps: Callable[[Arguments], bool] = lambda arguments: False


_FACTS: dict[str, Facts] = {}
_NONE = Facts()


def add_operation_facts(*names: str, **known: Any) -> None:
    """Record facts about operations, also about those that relevance never passes through."""
    _FACTS.update(dict.fromkeys(names, Facts(**known)))


def facts(name: str) -> Facts:
    """The facts about an operation, by its short name: "conv2d", "relu"."""
    return _FACTS.get(name.partition(".")[0], _NONE)


add_operation_facts(
    "sym_size", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "new_empty_strided", reads_shape=True,
)  # fmt: skip
add_operation_facts("batch_norm", allocates=True)
add_operation_facts(
    "sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "heaviside", "floor_divide", steps=lambda arguments: True
)  # fmt: skip
