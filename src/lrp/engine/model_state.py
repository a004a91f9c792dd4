"""Whether a model has changed since it was captured or explained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module


@dataclass(frozen=True)
class ModelState:
    """A record of a model, to detect later changes: its modules with their plain attributes (strides, flags) and hooks,
    the identity of its tensors, and a sample of their values. The sample is needed because a write through `.data`
    does not change a tensor's version counter.
    """

    names: frozenset[str]  # of the tensors that the captured graph reads
    written: frozenset[
        tuple[str, str]
    ]  # (module's path, name) of attributes that a forward pass sets: no change
    modules: tuple[Any, ...]
    tensors: tuple[Any, ...]
    sample: Tensor

    @staticmethod
    def of(
        model: nn.Module, names: Iterable[str], written: frozenset[tuple[str, str]] = frozenset()
    ) -> ModelState:
        every = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        names = frozenset(names)
        tensors = {name: every[name] for name in sorted(names) if name in every}
        modules = tuple(
            (path, id(m), *(kv for kv in _plain(m) if (path, kv[0]) not in written), *_hook_numbers(m))
            for path, m in model.named_modules()
        )
        modules += (tuple(torch_module._global_forward_pre_hooks), tuple(torch_module._global_forward_hooks))
        facts = tuple(
            (n, _pointer(t), tensor_version(t), tuple(t.shape), t.dtype, t.device) for n, t in tensors.items()
        )
        picked = [sample_of(t.detach()) for t in tensors.values()]
        sample = torch.cat(picked) if picked else torch.zeros(0)
        return ModelState(names, written, modules, facts, sample)

    def fits(self, model: nn.Module) -> bool:
        """Whether a graph captured then is still valid; values of weights may have changed."""
        other = ModelState.of(model, self.names, self.written)
        mine, theirs = ([(f[0], *f[3:]) for f in s.tensors] for s in (self, other))
        return self.modules == other.modules and mine == theirs

    def holds(self, model: nn.Module) -> bool:
        """Whether nothing has changed, weights included."""
        other = ModelState.of(model, self.names, self.written)
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
    for name, value in list(module.__dict__.items()):
        if name != "training" and (isinstance(value, PLAIN) or _plain_tuple(value)):
            yield name, value


PLAIN = (bool, int, float, str)


def _plain_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, PLAIN) or _plain_tuple(v) for v in value)


def _hook_numbers(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """The numbers that torch gave a module's forward hooks; it gives none twice."""
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        yield tuple(module.__dict__.get(kind, ()))


def _pointer(t: Tensor) -> int:
    return t.data_ptr() if t.layout is torch.strided else id(t)


def sample_of(t: Tensor) -> Tensor:
    """About 32 of its values, in float32."""
    t = t if t.layout is torch.strided else t.to_dense()
    flat = t.reshape(-1) if t.is_contiguous() else t.flatten()
    return flat[:: max(1, flat.numel() // 32)].to(torch.float32).nan_to_num(0.5)
