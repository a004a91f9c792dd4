"""A captured model: its graph, and which of the model's tensors it reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn


@dataclass
class Captured:
    """A model as a graph.

    Attributes:
        graph: one placeholder (the image), `get_attr` nodes for constants, ATen calls, one output (the
            logits). Each node's meta holds "shape", "dtype", "path", "module", "source".
        parameters: constant's name in the graph -> the parameter's or buffer's name in the model.
        constants: constants that belong to the graph, not to the model.
        free_batch: whether the graph accepts any batch size; else only the captured one.
        head: the function at the end of the model that the graph leaves out: "softmax", "sigmoid", ...; or "".
        written: (module's path, name) of the attributes that the forward pass itself sets: counters, flags, tables.
        packs: whether it holds packed sequences as padded ones: where what the model returns depends on the length of the
            longest, it is another function.
        answers: values of parameters and buffers that decided which operations the graph has.
    """

    graph: fx.Graph
    parameters: dict[str, str]
    constants: dict[str, Tensor] = field(default_factory=dict)
    free_batch: bool = True
    head: str = ""
    written: frozenset[tuple[str, str]] = frozenset()
    packs: bool = False
    answers: dict[str, Tensor] = field(default_factory=dict)

    def values(self, model: nn.Module) -> dict[str, Tensor]:
        """The constants as they are now: the model's own storage, detached."""
        own = tensors_of(model)
        return {**self.constants, **{name: own[path] for name, path in self.parameters.items()}}

    def reads(self) -> set[str]:
        """The model's parameters and buffers that the graph depends on."""
        return {*self.parameters.values(), *self.answers}

    def decides_as(self, model: nn.Module) -> bool:
        """Whether branches on constants are taken as when the model was captured."""
        own = tensors_of(model) if self.answers else {}
        return all(name in own and torch.equal(own[name], then) for name, then in self.answers.items())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, dense."""
    own = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {
        name: t.detach() if t.layout is torch.strided else t.detach().to_dense() for name, t in own.items()
    }
