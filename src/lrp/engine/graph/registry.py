"""Which family an operation belongs to, and the algebra its rules need: the registry of the vocabulary.

An operation is one registration: the names of its ATen overload packets, its family, and a function
from the operation to its algebra: an `Affine`, or one of `graph.algebra`. Its data inputs are `op.data`;
everything else (weights, sizes, constants) is an argument by name, `op["stride"]`. The registrations are in
`graph.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Activation, Algebra
from lrp.engine.graph.facts import add_operation_facts
from lrp.errors import RuleError

if TYPE_CHECKING:
    from lrp.engine.graph.ops import Operation

FAMILIES = (
    "conv", "linear", "norm", "layer_norm", "pool", "scale", "sum", "product", "matmul", "softmax", "maxpool",
    "activation", "movement",
)  # fmt: skip
Lower = Callable[["Operation"], Algebra | Affine]


@dataclass(frozen=True)
class Entry:
    """One registration of an operation; `when` decides for which of its uses it holds."""

    family: str
    lower: Lower
    when: Callable[[Operation], bool]


_VOCABULARY: dict[str, list[Entry]] = {}


def register(
    *names: str, family: str, when: Callable[[Operation], bool] = lambda op: True, **known: Any
) -> Callable[[Lower], Lower]:
    """Register an operation in the vocabulary.

        @lrp.register("mylib::flip", family="movement")
        def _(op):
            return lrp.Movement(lambda r: [r[0].flip(1)])

    An activation needs no function; its relevance passes unchanged: `lrp.register("mylib::snake", family="activation")`.
    The last registration is tried first.

    Args:
        names: as `lrp rules` and errors print them: "relu" of ATen, "mylib::snake" of another namespace.
        family: which rules apply, one of `FAMILIES`; the function must return the object that they need: an
            `Affine` for conv, linear, norm, layer_norm, pool and scale, a `Movement` for movement, ...
        when: for which uses of the operation (an `Operation`); the others stay as they were.
        known: facts about the operation, as `Facts` has them: `nonnegative="kept"`, `gate="squashed"`, ...

    Raises:
        RuleError: there is no such family.
    """
    if family not in FAMILIES:
        raise RuleError(f"register(family={family!r}): the families are {', '.join(FAMILIES)}.")

    if known:
        add_operation_facts(*names, **known)

    def add(lower: Lower) -> Lower:
        for name in names:
            kept = [e for e in _VOCABULARY.get(name, []) if (e.family, e.lower) != (family, _pass)]
            _VOCABULARY[name] = [Entry(family, lower, when), *kept]
        return lower

    if family == "activation":
        add(_pass)
    return add


def _pass(op: Operation) -> Algebra:
    return Activation()


def registered() -> dict[str, str]:
    """Operation -> its families, of everything that has a rule."""
    return {
        name: ", ".join(dict.fromkeys(e.family for e in reversed(found)))
        for name, found in sorted(_VOCABULARY.items())
    }


def vocabulary_entries(name: str) -> list[Entry]:
    return _VOCABULARY.get(name, [])
