"""What capturing replaces in the whole process, replaced for its own thread only; other threads go on as before."""

from __future__ import annotations

import contextlib
import functools
import linecache
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import _trace
from torch.fx._symbolic_trace import _Patcher
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.graph_module import _loader

LOCK = threading.RLock()
"""Held while a model is captured or a program written: torch.export and torch.fx keep their state for the whole process."""


SHAPES = 2_000
"""How many results of operations on shapes torch may keep from capture to capture."""


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Everything below, for the time of one capture, of which torch keeps nothing."""
    with (
        LOCK,
        _forgotten(),
        _quiet(),
        _traced_here(),
        _exporting_here(),
        _no_fused_attention(),
        _backends_stay(),
    ):
        yield


@contextlib.contextmanager
def replaced_here(owner: Any, name: str, new: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a module or class; other threads that call it get the original."""
    with _put_back(owner, name) as original:
        setattr(owner, name, here(new, original))
        yield


@contextlib.contextmanager
def _put_back(owner: Any, name: str) -> Iterator[Any]:
    original = getattr(owner, name)
    try:
        yield original
    finally:
        setattr(owner, name, original)


def here(new: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is `new` in this thread and `original` in the others."""
    thread = threading.get_ident()

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (new if threading.get_ident() == thread else original)(*args, **kwargs)

    return either


@contextlib.contextmanager
def sources_go_with(owner: Any) -> Iterator[None]:
    """torch keeps the code of every graph that it makes, for tracebacks; of those made inside, until `owner` is gone."""
    with LOCK:
        before = set(_loader.eval_cache)
        yield
        weakref.finalize(owner, _forget, set(_loader.eval_cache) - before).atexit = False


def _forget(names: set[str]) -> None:
    for name in names:
        _loader.eval_cache.pop(name, None)
        linecache.cache.pop(name, None)


@contextlib.contextmanager
def _forgotten() -> Iterator[None]:
    """torch's environments of sizes hold themselves, by way of C++, and all that was traced: their circles are cut."""
    before, made, init = set(_loader.eval_cache), list[ShapeEnv](), ShapeEnv.__init__

    def noted(env: ShapeEnv, *args: Any, **options: Any) -> None:
        init(env, *args, **options)
        made.append(env)

    try:
        with replaced_here(ShapeEnv, "__init__", noted):
            yield
    finally:
        _forget(set(_loader.eval_cache) - before)
        for env in made:
            for held in (env.fake_tensor_cache, env.tracked_fakes):
                if held is not None:
                    held.clear()
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
        if len(FakeTensorMode.cache) > SHAPES:
            FakeTensorMode.cache_clear()


@contextlib.contextmanager
def _traced_here() -> Iterator[None]:
    """torch.fx puts itself in the place of nn.Module.__call__ and __getattr__ while it traces, for all threads."""
    patch_method = _Patcher.patch_method

    def patch(self: Any, owner: type, name: str, new: Callable[..., Any], *rest: Any, **options: Any) -> None:
        patch_method(self, owner, name, here(new, getattr(owner, name)), *rest, **options)

    with replaced_here(_Patcher, "patch_method", patch):
        yield


@contextlib.contextmanager
def _exporting_here() -> Iterator[None]:
    """torch's flags that it is exporting hold for the process; layers compute in another way then."""
    with contextlib.ExitStack() as stack:
        for name in ("is_compiling", "is_exporting"):
            original = stack.enter_context(_put_back(torch.compiler, name))
            setattr(torch.compiler, name, here(original, functools.partial(bool, original())))
        yield


@contextlib.contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Without torch's fused transformer layer, which would hide the model's operations in one."""
    with replaced_here(torch.backends.mha, "get_fastpath_enabled", lambda: False):
        yield


@contextlib.contextmanager
def _backends_stay() -> Iterator[None]:
    """torch.export switches oneDNN off meanwhile, and all threads would compute slower, and with other roundings."""
    with _put_back(_trace, "_ignore_backend_decomps"):
        _trace._ignore_backend_decomps = contextlib.nullcontext  # type: ignore[assignment]
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without logs, warnings and prints: torch.export writes pages about an error that it raises as well."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_SilentHere, streams)
    try:
        with _no_warnings(), replaced_here(logging.Logger, "isEnabledFor", lambda *_: False):
            yield
    finally:
        sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Not warnings.catch_warnings, which loses filters if two threads are inside it at once."""
    thread = threading.get_ident()

    class Here(type):
        def __subclasscheck__(cls, other: type) -> bool:
            return threading.get_ident() == thread

    class AnyWarning(Warning, metaclass=Here):
        """Any warning of this thread."""

    filters: Any = warnings.filters
    warnings.simplefilter("ignore", AnyWarning)
    entry = filters[0]
    try:
        yield
    finally:
        held: Any
        for held in (filters, warnings.filters):
            if entry in held:
                held.remove(entry)


class _SilentHere:
    """A stream that drops what this thread writes and passes on what others do."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
