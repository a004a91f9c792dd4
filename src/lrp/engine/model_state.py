"""Whether a model has changed since it was captured or explained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelState:
    """A record of a model, to detect later changes: its modules with their plain attributes (strides, flags),
    the identity of its tensors, and a sample of their values. The sample is needed because a write through `.data`
    does not change a tensor's version counter.
    """

    names: frozenset[str]  # of the tensors that the captured graph reads
    modules: tuple[Any, ...]
    tensors: tuple[Any, ...]
    sample: Tensor

    @staticmethod
    def of(model: nn.Module, names: Iterable[str]) -> ModelState:
        every = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        names = frozenset(names)
        tensors = {name: every[name] for name in sorted(names) if name in every}
        modules = tuple((name, id(m), *_plain(m)) for name, m in model.named_modules())
        facts = tuple(
            (n, t.data_ptr(), tensor_version(t), tuple(t.shape), t.dtype, t.device)
            for n, t in tensors.items()
        )
        picked = [_sample(t.detach()) for t in tensors.values()]
        sample = torch.cat(picked) if picked else torch.zeros(0)
        return ModelState(names, modules, facts, sample)

    def fits(self, model: nn.Module) -> bool:
        """Whether a graph captured then is still valid; values of weights may have changed."""
        other = ModelState.of(model, self.names)
        mine, theirs = ([(f[0], *f[3:]) for f in s.tensors] for s in (self, other))
        return self.modules == other.modules and mine == theirs

    def holds(self, model: nn.Module) -> bool:
        """Whether nothing has changed, weights included."""
        other = ModelState.of(model, self.names)
        return (
            self.modules == other.modules
            and self.tensors == other.tensors
            and torch.equal(self.sample, other.sample)
        )


def tensor_version(t: Tensor) -> int:
    """How often a tensor was written to; 0 for tensors made in inference mode, which have no counter."""
    return 0 if t.is_inference() else t._version


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that a forward pass may branch on or compute with."""
    for name, value in module.__dict__.items():
        if name != "training" and isinstance(value, (bool, int, float, str, tuple)):
            yield name, value


def _sample(t: Tensor) -> Tensor:
    flat = t.reshape(-1) if t.is_contiguous() else t.flatten()
    return flat[:: max(1, flat.numel() // 32)].to(torch.float32).nan_to_num(0.5)
