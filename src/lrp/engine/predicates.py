"""Predicates that select operations for a rule: by family, name, path, module, position, or a function of an `Operation`."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrp.engine.graph.ops import Operation
from lrp.engine.graph.registry import FAMILIES
from lrp.errors import CompositeError

Predicate = Callable[[Operation], Any]


@dataclass(frozen=True)
class Where:
    """A named predicate; combine with &, | and ~."""

    text: str
    test: Predicate
    must_match: bool = False

    def __call__(self, operation: Operation) -> bool:
        return bool(self.test(operation))

    def __and__(self, other: Predicate) -> Where:
        return Where(f"{self} & {predicate_text(other)}", lambda o: self(o) and other(o))

    def __or__(self, other: Predicate) -> Where:
        return Where(f"({self} | {predicate_text(other)})", lambda o: self(o) or other(o))

    def __invert__(self) -> Where:
        return Where(f"~{self}", lambda o: not self(o))

    def __str__(self) -> str:
        return self.text


def predicate_text(predicate: Predicate) -> str:
    return str(predicate) if isinstance(predicate, Where) else getattr(predicate, "__name__", repr(predicate))


everything = Where("everything", lambda o: True)
first = Where("first", lambda o: o.first)


def family(*names: str) -> Where:
    """Operations of a family, one of `graph.registry.FAMILIES`: "conv", "linear", "norm", "sum", "product", ..."""
    unknown = [n for n in names if n not in FAMILIES]
    if unknown:
        raise CompositeError(f"no family {unknown[0]!r}: the families are {', '.join(FAMILIES)}.")
    return Where(f"family({', '.join(names)})", lambda o: o.family in names)


def op(*names: str) -> Where:
    """Operations by their own name, as `lrp rules` prints it: "conv2d", "add", "avg_pool2d"."""
    return Where(f"op({', '.join(names)})", lambda o: o.name in names)


def path(*patterns: str) -> Where:
    """Operations called in modules whose dotted path matches a shell pattern: "features.*", "layer[34].*"."""
    return Where(
        f"path({', '.join(patterns)})",
        lambda o: any(fnmatch.fnmatchcase(o.path, p) for p in patterns),
        must_match=True,
    )


def module(*kinds: type[nn.Module] | str) -> Where:
    """Operations called in a module of a class: `nn.Conv2d`, or the class's name."""
    names = {k if isinstance(k, str) else f"{k.__module__}.{k.__qualname__}" for k in kinds}
    return Where(
        f"module({', '.join(sorted(n.rpartition('.')[2] for n in names))})",
        lambda o: o.module in names or o.module.rpartition(".")[2] in names,
    )


def depthwise(operation: Operation) -> bool:
    """Convolutions in which each output reads one input channel."""
    return operation.family == "conv" and operation["weight"].shape[1] == 1 and operation["groups"] > 1


max_pools = op("max_pool1d", "max_pool2d", "max_pool3d")
"""Max pools over windows: not the maximum over a dimension, nor adaptive ones."""
