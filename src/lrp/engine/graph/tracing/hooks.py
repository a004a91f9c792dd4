"""Forward hooks: which of them are part of the function that a model computes, and which only look.

A hook is part of it if it returns something else than it received, or writes into a tensor that it received or that its
module holds, or sets one there, as torch's weight norm does. One run on real images tells. Hooks that only look are left
out of the graph: they would see tensors without values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves

from lrp.engine.graph.tracing.inputs import Inputs
from lrp.engine.graph.tracing.isolation import here
from lrp.engine.graph.tracing.model_copy import FORWARD_HOOKS, Copier, copy_of

EVERY_MODULE = "every module"
Change = Callable[["Hook", Any], Any]


@dataclass(frozen=True)
class Hook:
    """Where a hook is. path: of its module, or `EVERY_MODULE`; number: the one that torch gave it."""

    path: str
    kind: str
    number: int

    def __str__(self) -> str:
        kind = "forward pre-hook" if "pre" in self.kind else "forward hook"
        return f"the {kind} of {self.path or 'the model'}"


def forward_hooks(model: nn.Module) -> list[Hook]:
    """All forward hooks of a model, and those that torch calls for every module."""
    paths = [*model.named_modules(), (EVERY_MODULE, None)]
    return [Hook(path, kind, n) for path, m in paths for kind in FORWARD_HOOKS for n in list(_table(m, kind))]


def _table(module: nn.Module | None, kind: str) -> dict[int, Any]:
    found: Any = getattr(torch_module, f"_global{kind}") if module is None else module.__dict__.get(kind, {})
    return found


def hooks_that_change(
    model: nn.Module, images: Inputs, run: Callable[[nn.Module, Inputs], Tensor]
) -> set[Hook]:
    """The hooks that are part of the function, found in one run; all of them where leaving out the others matters.

    Args:
        run: (model, images) -> logits.
    """
    found = set[Hook]()
    with hooked(copy_of(model, own_tensors=True), lambda at, hook: _Watched(hook, at, found)) as watched:
        expected = run(watched, images)
    every = set(forward_hooks(model))
    if found and found != every:
        try:
            with hooked(copy_of(model, own_tensors=True), only(found)) as without:
                matters = _differ(run(without, images), expected)
        except Exception:
            matters = True
        if matters:  # one hook reads what another noted
            return every
    return found


def only(kept: set[Hook]) -> Change:
    return lambda at, hook: hook if at in kept else _nothing


def _nothing(*_: Any, **__: Any) -> None:
    return None


@contextlib.contextmanager
def hooked(copied: nn.Module, change: Change) -> Iterator[nn.Module]:
    """The copy of a model with other hooks; inside, those for every module are changed likewise, for this thread.

    Args:
        change: (where, hook) -> the hook in its place.
    """
    for path, module in copied.named_modules():
        for kind in FORWARD_HOOKS:
            table = _table(module, kind)
            for number, hook in list(table.items()):
                table[number] = change(Hook(path, kind, number), hook)
    copier, restored = Copier(), list[Callable[[], None]]()
    try:
        for kind in FORWARD_HOOKS:
            table = _table(None, kind)
            for number, hook in list(table.items()):
                new = change(Hook(EVERY_MODULE, kind, number), copier.hook(hook))
                table[number] = here(new, hook)
                restored.append(lambda t=table, n=number, h=hook: t.update({n: h} if n in t else {}))  # type: ignore[misc]
        yield copied
    finally:
        for restore in restored:
            restore()


class _Watched:
    """A hook that adds itself to `found` when it turns out to be part of the function."""

    def __init__(self, hook: Any, at: Hook, found: set[Hook]) -> None:
        self.hook, self.at, self.found = hook, at, found

    def __call__(self, module: nn.Module, *received: Any) -> Any:
        given, held = tree_leaves(received), _held(module)
        seen = [(t, t.clone()) for t in (*given, *held.values()) if isinstance(t, Tensor)]
        result = self.hook(module, *received)
        returned = tree_leaves(result)
        now = _held(module)
        passed_on = result is None or all(any(r is g for g in given) for r in returned)
        rebound = now.keys() != held.keys() or any(now[name] is not held[name] for name in held)
        if not passed_on or rebound or any(_differ(t, before) for t, before in seen):
            self.found.add(self.at)
        return result


def _held(module: nn.Module) -> dict[str, Tensor]:
    tables = (module.__dict__, module._parameters, module._buffers)
    return {name: t for table in tables for name, t in table.items() if isinstance(t, Tensor)}


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or bool(((a != b) & ((a == a) | (b == b))).any())
