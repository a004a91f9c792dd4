"""Answers a model's questions about values, while it is traced, where the values do not depend on the image.

`if (self.std == 0).any()`, `self.size.item()`, `x[:, self.mask]`: a trace has tensors without values. For all that is computed
from parameters, buffers and constants alone, the same is computed beside it with real values, of which questions are answered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

QUESTIONS = frozenset({
    "__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "__array__", "item", "tolist", "numpy",
    "equal", "allclose", "is_nonzero",
})  # fmt: skip
RANDOM = frozenset({
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal", "bernoulli", "multinomial",
    "dropout", "normal_", "uniform_", "bernoulli_", "random_",
})  # fmt: skip
MADE_LIKE = frozenset({"new_tensor", "new_zeros", "new_ones", "new_full", "new_empty"})
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


class _Known(NamedTuple):
    """A tensor of the trace, its real value, and the names of the parameters and buffers that it was computed from."""

    traced: Tensor  # keeps its id in use
    value: Tensor
    names: frozenset[str]


class ConstantBranches(TorchFunctionMode):
    """Inside, questions about constants are answered.

    Attributes:
        answers: the values, then, of the parameters and buffers that an answer depended on.
    """

    def __init__(self, real: dict[str, Tensor]) -> None:
        super().__init__()
        self.real = {
            name: t.detach() for name, t in real.items()
        }  # not in the trace, where it would be an operation of it
        self.answers = dict[str, Tensor]()
        self._known: dict[int, _Known] = {}
        self._written: set[int] = {_memory(t) for t in real.values()}

    def begin(self, model: nn.Module) -> None:
        """The model's tensors are those of the trace now."""
        for tensors in (model.named_parameters, model.named_buffers):
            for name, traced in tensors(remove_duplicate=False):
                if name in self.real:
                    self._known[id(traced)] = _Known(traced, self.real[name], frozenset({name}))

    def value(self, tensor: Tensor) -> Tensor | None:
        """The value of a tensor of the trace; None: it depends on the image."""
        constant = self._is_constant([tensor])
        return self._answer(torch.clone, (tensor,), {}) if constant else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        leaves = tree_leaves((args, kwargs))
        if name in QUESTIONS or _shaped_by_values(name, args):
            if self._is_constant(leaves) and any(isinstance(leaf, FakeTensor) for leaf in leaves):
                return self._answer(func, args, kwargs)
        elif name == "__getitem__":
            args = (args[0], self._without_masks(args[1]))
        result = func(*args, **kwargs)
        written = _written(name, args, kwargs)
        if written is not None or any(isinstance(made, FakeTensor) for made in tree_leaves(result)):
            self._follow(func, name, args, kwargs, result, written)
        return result

    def _is_constant(self, leaves: list[Any]) -> bool:
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        known = all(id(t) in self._known or not isinstance(t, FakeTensor) for t in tensors)
        return known and not any(isinstance(leaf, SYMBOLIC) for leaf in leaves)

    def _answer(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        for name in self._names((args, kwargs)):
            self.answers[name] = _really(torch.clone, (self.real[name],), {})
        result = _really(func, *self._values((args, kwargs)))
        return (
            result if isinstance(result, (bool, Tensor, tuple)) else copy.copy(result)
        )  # an array's memory is the model's

    def _without_masks(self, index: Any) -> Any:
        """A constant mask selects what its indices do; their number depends on its values."""
        parts: list[Any] = []
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, Tensor) and part.dtype == torch.bool and self._is_constant([part]):
                parts.extend(self._answer(torch.nonzero, (part,), {"as_tuple": True}))
            else:
                parts.append(part)
        return tuple(parts) if isinstance(index, tuple) or len(parts) > 1 else parts[0]

    def _follow(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, result: Any, written: Tensor | None
    ) -> None:
        """Compute the same with real values."""
        if name in MADE_LIKE:
            empty = _really(torch.empty, (0,), {"dtype": args[0].dtype, "device": args[0].device})
            args = (empty, *args[1:])
        constant = self._is_constant(tree_leaves((args, kwargs))) and name not in RANDOM
        if constant and (written is None or not self._is_the_models(written)):
            value = _really(func, *self._values((args, kwargs)))
            names = frozenset(self._names((args, kwargs)))
            if written is not None and id(written) in self._known:
                memory = _memory(self._known[id(written)].value)
                for key, known in self._known.items():
                    if _memory(known.value) == memory:
                        self._known[key] = known._replace(names=known.names | names)
            for traced, real in zip(tree_leaves(result), tree_leaves(value), strict=True):
                if isinstance(traced, FakeTensor):
                    self._known[id(traced)] = _Known(traced, real, names)
        elif written is not None:
            self._forget(written)

    def _is_the_models(self, tensor: Tensor) -> bool:
        return id(tensor) in self._known and _memory(self._known[id(tensor)].value) in self._written

    def _forget(self, tensor: Tensor) -> None:
        """What was written into is no constant any more, nor is what shares its memory."""
        if id(tensor) in self._known:
            memory = _memory(self._known[id(tensor)].value)
            self._known = {key: k for key, k in self._known.items() if _memory(k.value) != memory}

    def _names(self, arguments: Any) -> Iterator[str]:
        for leaf in tree_leaves(arguments):
            if id(leaf) in self._known:
                yield from self._known[id(leaf)].names

    def _values(self, arguments: Any) -> Any:
        def value(leaf: Any) -> Any:
            return self._known[id(leaf)].value if id(leaf) in self._known else leaf

        return tree_map(value, arguments)


def _really(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        return func(*args, **kwargs)


def _written(name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a function writes into."""
    if isinstance(kwargs.get("out"), Tensor):
        return kwargs["out"]
    in_place = (
        name in ("__setitem__", "__set__")
        or (name.endswith("_") and not name.endswith("__"))
        or name.startswith("__i")
    )
    in_place = in_place and name not in ("__invert__", "__index__", "__int__", "__iter__")
    return args[0] if in_place and args and isinstance(args[0], Tensor) else None


def _shaped_by_values(name: str, args: Any) -> bool:
    """Whether the size of a function's result depends on the values of what it takes."""
    if name == "where":
        return len(args) == 1
    if name == "repeat_interleave":
        return len(args) == 1 or isinstance(args[1], Tensor)
    return name in ("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
