"""A copy of a model that shares its tensors: whatever runs on it leaves the user's model as it was.

Copied are modules, their containers, their hooks, and the plain objects, functions and bound methods that they hold, so that
a forward pass and its hooks meet only each other's copies. Shared are tensors, and whatever cannot be copied faithfully.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

SHARED = frozenset({
    type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size, torch.layout,
    types.ModuleType, types.BuiltinFunctionType,
})  # fmt: skip
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Hooks that take no part in a forward pass without gradients.
OTHER_HOOKS = frozenset({
    "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
})  # fmt: skip
LONG = 10_000  # a longer container holds data, not parts of a model


def copy_of(model: nn.Module, *, own_tensors: bool = False) -> nn.Module:
    """The model in eval mode, as a tree of modules of its own.

    Args:
        own_tensors: for a run with real values, which may write into tensors: buffers are copied, too, and tensors
            that are plain attributes, and the parameters of modules with hooks.
    """
    copier = Copier()
    if own_tensors:
        copier.own_tensors = True
        hooked = (m for m in model.modules() if any(m.__dict__.get(kind) for kind in FORWARD_HOOKS))
        copier.own_parameters = {id(p) for m in hooked for p in m._parameters.values()}
    copied: nn.Module = copier.copy(model)
    for module in copied.modules():
        # Not module.eval(): models override train() and eval(), and change more than a flag there.
        if not isinstance(module, torch.jit.ScriptModule):
            module.__dict__["training"] = False
        if (
            "_guards_fn" in module._modules
        ):  # of an exported program: refuses other batch sizes than its example's
            module._modules["_guards_fn"] = _Nothing()
    return copied


def in_train_mode(model: nn.Module) -> bool:
    """Whether any module is; a frozen script has no mode."""
    return any(getattr(module, "training", False) for module in model.modules())


class _Nothing(nn.Module):
    def forward(self, *_: Any) -> None:
        return None


class Copier:
    """Copies one value after the other; what two of them hold in common is copied once."""

    def __init__(self) -> None:
        self.own_tensors, self.own_parameters = False, set[int]()
        self.memo: dict[int, tuple[Any, Any]] = {}  # id -> (original, which keeps the id in use; its copy)

    def copy(self, value: Any) -> Any:
        """The copy of a value; the value itself where there is nothing in it to copy."""
        kind = type(value)
        if kind in SHARED or (kind is nn.Parameter and id(value) not in self.own_parameters):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)][1]
        make = COPIERS.get(kind)
        if make is not None:
            return make(self, value)
        if isinstance(value, torch.jit.ScriptModule):
            return self._kept(value, _script_in_eval_mode(value))
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, tuple) and hasattr(kind, "_make"):  # a named tuple
            return self._kept(value, kind._make(map(self.copy, value)))
        plain: bool = _is_plain(kind)  # type: ignore[arg-type]
        return self.plain_object(value) if plain else value

    def _kept(self, value: Any, copied: Any) -> Any:
        self.memo[id(value)] = value, copied
        return copied

    def module(self, value: nn.Module) -> nn.Module:
        copied = self._kept(value, object.__new__(type(value)))
        for name, attribute in list(value.__dict__.items()):
            if name in OTHER_HOOKS:
                own: Any = OrderedDict()
            elif name in FORWARD_HOOKS:
                own = self._kept(attribute, OrderedDict())
                own.update((key, self.hook(hook)) for key, hook in list(attribute.items()))
            else:
                own = self.copy(attribute)
            copied.__dict__[name] = own
        return copied

    def hook(self, hook: Any) -> Any:
        """A hook with a namespace of its own, so that what it notes in global variables stays with the copy."""
        if not isinstance(hook, types.FunctionType):
            return self.copy(hook)
        names = [name for name in _names(hook.__code__) if name in hook.__globals__]
        own = {name: self.copy(hook.__globals__[name]) for name in names}
        return self._function(hook, {**hook.__globals__, **own})

    def function(self, value: types.FunctionType) -> Any:
        if not value.__closure__ and not value.__defaults__ and not value.__kwdefaults__:
            return value
        return self._function(value, None)

    def _function(self, value: types.FunctionType, namespace: dict[str, Any] | None) -> Any:
        """The function over copies of what its closure and defaults hold; itself if that changes nothing."""
        cells = [types.CellType() for _ in value.__closure__ or ()]
        made = types.FunctionType(
            value.__code__, value.__globals__ if namespace is None else namespace, value.__name__,
            closure=tuple(cells) if value.__closure__ else None,
        )  # fmt: skip
        self._kept(value, made)  # before its closure is followed, which may lead back to it
        changed = namespace is not None
        for new, old in zip(cells, value.__closure__ or (), strict=True):
            try:
                content = old.cell_contents
            except ValueError:  # empty
                continue
            new.cell_contents = self.copy(content)
            changed = changed or new.cell_contents is not content
        made.__defaults__ = self._each(value.__defaults__)
        made.__kwdefaults__ = self._each(value.__kwdefaults__)
        changed = changed or made.__defaults__ is not value.__defaults__
        if not changed and made.__kwdefaults__ is value.__kwdefaults__:
            return self._kept(value, value)
        made.__dict__.update(value.__dict__)
        made.__module__, made.__qualname__ = value.__module__, value.__qualname__
        return made

    def _each(self, values: Any) -> Any:
        """A tuple or dict of copies; itself if all of them are the originals."""
        if not values:
            return values
        if isinstance(values, dict):
            made: Any = {name: self.copy(value) for name, value in values.items()}
            same = all(made[name] is value for name, value in values.items())
        else:
            made = tuple(map(self.copy, values))
            same = all(a is b for a, b in zip(made, values, strict=True))
        return values if same else made

    def method(self, value: types.MethodType) -> Any:
        return types.MethodType(self.copy(value.__func__), self.copy(value.__self__))

    def partial(self, value: Any) -> Any:
        function = self.copy(value.func)
        return functools.partial(function, *map(self.copy, value.args), **self.copy(value.keywords))

    def reference(self, value: Any) -> Any:
        target = value()
        copied = self.copy(target)
        return value if copied is target else weakref.ref(copied)

    def handle(self, value: RemovableHandle) -> Any:
        """A hook that removes itself removes its copy."""
        _, hooks = self.memo.get(id(value.hooks_dict_ref()), (None, None))
        if hooks is None:
            return value
        copied = self._kept(value, object.__new__(RemovableHandle))
        copied.__dict__.update(value.__dict__, hooks_dict_ref=weakref.ref(hooks), extra_dict_ref=())
        return copied

    def tuple(self, value: tuple[Any, ...]) -> Any:
        return self._each(value)

    def container(self, value: Any) -> Any:
        """A list, set, deque or dictionary, copied even where its content is not: a forward pass may add to it."""
        if len(value) > LONG:
            return value
        if isinstance(value, deque):
            copied: Any = self._kept(value, deque(maxlen=value.maxlen))
        elif isinstance(value, defaultdict):
            copied = self._kept(value, defaultdict(value.default_factory))
        else:
            copied = self._kept(value, type(value)())
        if isinstance(value, dict):
            dict.update(copied, [(self.copy(k), self.copy(v)) for k, v in list(value.items())])
        elif isinstance(value, set):
            copied.update(map(self.copy, list(value)))
        else:
            copied.extend(map(self.copy, list(value)))
        return copied

    def plain_object(self, value: Any) -> Any:
        copied = self._kept(value, object.__new__(type(value)))
        for name, attribute in list(value.__dict__.items()):
            copied.__dict__[name] = self.copy(attribute)
        return copied

    def tensor(self, value: Tensor) -> Any:
        if not self.own_tensors:
            return value
        own = value.detach().clone()
        is_parameter = isinstance(value, nn.Parameter)
        return self._kept(value, nn.Parameter(own, requires_grad=False) if is_parameter else own)


COPIERS: dict[type, Callable[[Copier, Any], Any]] = {
    types.FunctionType: Copier.function,
    types.MethodType: Copier.method,
    functools.partial: Copier.partial,
    weakref.ref: Copier.reference,
    RemovableHandle: Copier.handle,
    tuple: Copier.tuple,
    **dict.fromkeys((list, set, dict, OrderedDict, defaultdict, Counter, deque), Copier.container),
}


def _script_in_eval_mode(script: torch.jit.ScriptModule) -> Any:
    """Its flags lie in C++: one in train mode can only be copied with its weights."""
    return copy.deepcopy(script).eval() if in_train_mode(script) else script


@functools.cache
def _is_plain(kind: type) -> bool:
    """Whether an object of this class is its attributes, and nothing more: no way of its own to be made, copied or ended."""
    own = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
    return (
        getattr(kind, "__dictoffset__", 0) != 0
        and all(getattr(kind, name, None) is getattr(object, name, None) for name in own)
        and not any(hasattr(kind, name) for name in ("__del__", "__copy__", "__deepcopy__", "__setstate__"))
        and not any(getattr(base, "__slots__", ()) for base in kind.__mro__)
        and not issubclass(kind, type)
    )


def _names(code: types.CodeType) -> set[str]:
    """The names of global variables in a function, and in the functions inside it."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
