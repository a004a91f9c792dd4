"""What is computed from a model's weights, computed once for all input sizes and presets: folded weights and their versions.

While a canonical graph is made, operations on the model's tensors are put off. Each result is known by how it is made: which
operation, of which tensors, with which numbers. Where the same was made before and is still in use, it is taken; only the rest is computed. Nothing
is kept alive by this: what no program uses any more is freed.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from lrp.engine.graph.canonical import Graph
from lrp.engine.model_state import sample_of, tensor_version

SMALL = (
    1 << 16
)  # elements; larger intermediate results are computed again for each use, so that memory does not grow


class SharedConstants:
    """The constants of one model's programs."""

    def __init__(self) -> None:
        self._made: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()
        self._keys: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> how it is made
        self._versions: dict[Any, tuple[Any, Any]] = {}

    def known(self, values: dict[str, Tensor], paths: dict[str, str]) -> dict[str, Tensor]:
        """A graph's constants, where possible as tensors that other graphs use.

        Args:
            values: `Captured.values`.
            paths: name of a constant -> the model's parameter or buffer, for those that are one.
        """
        return {
            name: self._models_own(paths[name], t) if name in paths else self._graphs_own(t)
            for name, t in values.items()
        }

    def _models_own(self, path: str, tensor: Tensor) -> Tensor:
        """The tensor, or one of the same memory and state: its version, and a sample as a write through `.data` has no version."""
        state = (path, tensor.data_ptr(), tensor_version(tensor), *_form(tensor))
        return self._take(_digest("model", state, sample_of(tensor).cpu().numpy().tobytes()), tensor)

    def _graphs_own(self, tensor: Tensor) -> Tensor:
        """The tensor, or an equal one."""
        if not tensor.numel() or tensor.dtype == torch.bfloat16:  # which numpy does not have
            return tensor
        values = tensor.detach().cpu().contiguous().numpy().tobytes()
        return self._take(_digest("graph", _form(tensor), values), tensor)

    def share(self, canonize: Callable[[], Graph]) -> Graph:
        """The graph that `canonize` makes, of tensors that are known here."""
        try:
            with _Recorder(self):
                graph = canonize()
        except Written:
            graph = canonize()
        for name, value in list(graph.constants.items()):
            value = value.ready() if isinstance(value, PutOff) else value
            key = self.key(value)
            graph.constants[name] = self._graphs_own(value) if key is None else self._take(key, value)
        return graph

    def version(self, weight: Tensor, version: Callable[[Any], Any]) -> Any:
        """version(weight), computed once for as long as both are in use."""
        key = id(weight), version
        held, made = (reference() for reference in self._versions.get(key, (_gone, _gone)))
        if held is weight and made is not None:
            return made
        made = version(weight)
        try:
            forget = weakref.ref(made, lambda _: self._versions.pop(key, None))
        except TypeError:  # an object without weak references: not shared
            return made
        self._versions[key] = weakref.ref(weight), forget
        return made

    def key(self, tensor: Any) -> str | None:
        return tensor.key if isinstance(tensor, PutOff) else self._keys.get(tensor)

    def made(self, key: str) -> Tensor | None:
        return self._made.get(key)

    def _take(self, key: str, tensor: Tensor) -> Tensor:
        """The tensor that is known by this key, or this one."""
        self.remember(key, tensor)
        return self._made.get(key, tensor)

    def remember(self, key: str, tensor: Tensor) -> None:
        """Know a tensor by its key; the first one of a key is the one that is shared."""
        self._made.setdefault(key, tensor)
        self._keys[tensor] = key


def _gone() -> None:
    return None


class PutOff(Tensor):
    """A tensor that is not computed yet: it has a shape and a type."""

    shared: SharedConstants
    key: str
    outline: Tensor  # on the meta device
    make: Callable[[], Tensor]
    small: Tensor | None

    @staticmethod
    def __new__(cls, outline: Tensor, device: torch.device) -> PutOff:
        return Tensor._make_wrapper_subclass(
            cls, outline.shape, strides=outline.stride(), dtype=outline.dtype, device=device
        )

    def __init__(self, outline: Tensor, device: torch.device) -> None:
        self.outline, self.small = outline, None

    def ready(self) -> Tensor:
        found = self.shared.made(self.key)
        if found is None:
            found = self.small if self.small is not None else self.make()
            self.shared.remember(self.key, found)
            if found.numel() <= SMALL:
                self.small = found
        return found

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "numpy", "__array__", "data_ptr", "untyped_storage"):
            return func(*_ready(args), **_ready(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*_ready(args), **_ready(kwargs or {}))


def _ready(arguments: Any) -> Any:
    return tree_map(lambda a: a.ready() if isinstance(a, PutOff) else a, arguments)


class _Recorder(TorchDispatchMode):
    """Puts off what is computed of known tensors alone."""

    def __init__(self, shared: SharedConstants) -> None:
        super().__init__()
        self.shared = shared

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, shared = kwargs or {}, self.shared
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        keys = [shared.key(t) for t in tensors]
        if func._schema.is_mutable and keys[:1] != [None]:
            raise Written
        if not tensors or None in keys or not _is_function(func):
            return func(*_ready(args), **_ready(kwargs))
        key = _digest(str(func), *_described((args, kwargs), shared))
        is_view = func._schema.returns[0].alias_info is not None
        if is_view and not any(isinstance(t, PutOff) for t in tensors):
            view = func(*args, **kwargs)  # costs nothing
            shared.remember(key, view)
            return view
        found = None if is_view else shared.made(key)
        if found is not None:
            return found
        device = kwargs.get("device") or max(tensors, key=Tensor.dim).device
        return self._later(func, args, kwargs, key, device)

    def _later(self, func: Any, args: Any, kwargs: Any, key: str, device: torch.device) -> Tensor:
        try:
            outline = func(*_outlines(args), **{k: v for k, v in _outlines(kwargs).items() if k != "device"})
        except Exception:  # it needs values
            result: Tensor = func(*_ready(args), **_ready(kwargs))
            self.shared.remember(key, result)
            return result
        made = PutOff(outline, device)
        made.shared, made.key = self.shared, key
        made.make = lambda: func(*_ready(args), **_ready(kwargs))
        return made


class Written(Exception):
    """Something writes into a tensor that others may use."""


def _is_function(func: Any) -> bool:
    """Whether an operation's result is one tensor, which depends on its arguments alone, and which nobody writes into."""
    schema, name = func._schema, func._schema.name
    one = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
    fixed = not schema.is_mutable and torch.Tag.nondeterministic_seeded not in func.tags
    return one and fixed and not name.startswith("aten::new_") and not name.endswith("_like")


def _outlines(arguments: Any) -> Any:
    def outline(leaf: Any) -> Any:
        if isinstance(leaf, PutOff):
            return leaf.outline
        if isinstance(leaf, Tensor):
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        return leaf

    return tree_map(outline, arguments)


def _described(arguments: Any, shared: SharedConstants) -> Iterator[str]:
    """The arguments as text, tensors by their keys."""
    yield repr(tree_map(lambda a: (shared.key(a),) if isinstance(a, Tensor) else a, arguments))


def _form(t: Tensor) -> tuple[Any, ...]:
    return tuple(t.shape), t.stride(), t.dtype, t.device


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\n")
    return digest.hexdigest()
