"""What a model is called with: one tensor, or several in tuples, lists and dictionaries, as a flat list of named tensors."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp.errors import InputError

BatchDim = int | None | Mapping[str, int | None]


@dataclass(frozen=True)
class Place:
    """Where tensor number `index` stands in a model's arguments."""

    index: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """A model's arguments.

    Attributes:
        tensors: in the order of the arguments, each with the images along dimension 0.
        names: of the tensors: the parameter of forward, then keys and indices, such as "batch.meta".
        arguments: (positional, by name), nested as the model takes them, with a `Place` for each tensor.
        given: the same as the user gave them: relevance is returned in this structure.
        batch_dims: which dimension of the model's own tensor counts the images; None: it has none.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ("image",)
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((Place(0),), {})
    given: Any = Place(0)
    batch_dims: tuple[int | None, ...] = (0,)

    def __len__(self) -> int:
        """The number of images."""
        return next(len(t) for t, dim in self._with_dims() if dim is not None)

    def _with_dims(self) -> Iterator[tuple[Tensor, int | None]]:
        return zip(self.tensors, self.batch_dims, strict=True)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def key(self) -> Any:
        """Equal for inputs that one graph, with any number of images, can take."""
        sizes = [
            (tuple(t.shape[dim is not None :]), t.dtype if not t.is_floating_point() else None, t.device)
            for t, dim in self._with_dims()
        ]
        return (_key(self.arguments), tuple(sizes), self.batch_dims)

    def each(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """With `function` of each tensor in its place."""
        return dataclasses.replace(self, tensors=tuple(map(function, self.tensors)))

    def to(self, dtype: torch.dtype | None) -> Inputs:
        """Detached, floating tensors in `dtype`."""
        return self.each(lambda t: t.detach().to(dtype) if t.is_floating_point() and dtype else t.detach())

    def images(self, start: int, end: int) -> Inputs:
        """Those images only."""
        return self._batches(lambda t: t[start:end])

    def repeated(self, count: int) -> Inputs:
        """`count` times the first image."""
        return self._batches(lambda t: t[:1].repeat(count, *[1] * (t.dim() - 1)))

    def _batches(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        cut = (t if dim is None else function(t) for t, dim in self._with_dims())
        return dataclasses.replace(self, tensors=tuple(cut))

    def call(self, model: Callable[..., Any], tensors: Sequence[Any] | None = None) -> Any:
        """The model's result for these tensors, or for others in their places."""
        own = [
            t if dim in (None, 0) else t.movedim(0, dim)
            for t, dim in zip(self.tensors if tensors is None else tensors, self.batch_dims, strict=True)
        ]
        args, kwargs = _filled(self.arguments, own)
        return model(*args, **kwargs)

    def nested(self, values: Sequence[Any], leading: int = 0) -> Any:
        """One value for each tensor, in the structure in which the tensors were given; other arguments left as they are.

        leading: the number of dimensions in front of those of the inputs.
        """
        own = [
            v if dim in (None, 0) or v is None else v.movedim(leading, dim + leading if dim >= 0 else dim)
            for v, dim in zip(values, self.batch_dims, strict=True)
        ]
        return _filled(self.given, own)

    def shown(self) -> str:
        """Shapes, for messages."""
        if len(self.tensors) == 1:
            return f"an input of shape {list(self.tensors[0].shape)}"
        sizes = ", ".join(f"{name} {list(t.shape)}" for name, t in zip(self.names, self.tensors, strict=True))
        return f"inputs of shapes {sizes}"

    def positions(self, wanted: Sequence[str | int]) -> frozenset[int]:
        """The tensors that are named: by name, by the name of what they are in, or by number.

        Raises:
            InputError: there is none of that name.
        """
        found = set[int]()
        for entry in wanted:
            hits = {
                i for i, name in enumerate(self.names) if entry in (i, name) or name.startswith(f"{entry}.")
            }
            if not hits:
                raise InputError(
                    f"held={entry!r}: there is no such input; the inputs are {', '.join(self.names)}."
                )
            found |= hits
        return frozenset(found)


def as_inputs(x: Tensor | Inputs) -> Inputs:
    return x if isinstance(x, Inputs) else Inputs((x,))


def inputs_of_call(model: Any, x: Any, named: Mapping[str, Any], batch_dim: BatchDim = 0) -> Inputs:
    """The inputs of `model` as a user gives them.

    Args:
        x: one tensor; a tuple: the positional arguments; a mapping: the arguments by name. A tuple, a list or a mapping is
            the one argument of a model whose forward cannot be called so. None: there are only `named` ones.
        named: more arguments, by name.
        batch_dim: which dimension counts the images; of all inputs, or by name. None: the input has none.

    Raises:
        InputError: the model cannot be called so; an argument holds no tensor; the numbers of images differ.
    """
    if isinstance(x, Tensor) and not named and batch_dim == 0:
        return Inputs((x,))
    args, kwargs, names = _bound(model, x, dict(named))
    tensors, paths = list[Tensor](), list[str]()

    def placed(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            paths.append(path)
            return Place(len(tensors) - 1)
        if type(value).__module__.startswith("numpy"):
            raise InputError(
                f"input {path} is a numpy {type(value).__name__}, where a torch.Tensor is expected: torch.as_tensor(...)."
            )
        if isinstance(value, Mapping):
            return {key: placed(v, f"{path}.{key}") for key, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return type(value)._make(placed(v, f"{path}.{i}") for i, v in enumerate(value))
        if isinstance(value, (tuple, list)):
            return type(value)(placed(v, f"{path}.{i}") for i, v in enumerate(value))
        return value

    arguments = (
        tuple(placed(value, name) for value, name in zip(args, names, strict=True)),
        {name: placed(value, name) for name, value in kwargs.items()},
    )
    if not tensors:
        raise InputError(
            f"images must be a torch.Tensor [N, C, H, W], or the inputs tensors in a tuple or a dictionary, got {_kinds(x, named)}."
        )
    dims = tuple(_dim_of(name, batch_dim) for name in paths)
    moved = []
    for t, name, dim in zip(tensors, paths, dims, strict=True):
        if dim is not None and not -t.dim() <= dim < t.dim():
            raise InputError(
                f"input {name} of shape {list(t.shape)} has no dimension {dim} for the images: give it one, or say "
                f"batch_dim={{{name!r}: None}} if it is the same for all images."
            )
        moved.append(t if dim in (None, 0) else t.movedim(dim, 0))
    counts = {name: len(t) for t, name, dim in zip(moved, paths, dims, strict=True) if dim is not None}
    if not counts:
        raise InputError("batch_dim=None for every input: at least one must count the images.")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"the inputs have different numbers of images: {listed}; dimension 0 counts them, or what batch_dim= says."
        )
    return Inputs(tuple(moved), tuple(paths), arguments, _as_given(x, named, arguments, names), dims)


def _dim_of(name: str, batch_dim: BatchDim) -> int | None:
    if not isinstance(batch_dim, Mapping):
        return batch_dim
    parts = name.split(".")
    return next(
        (batch_dim[p] for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in batch_dim), 0
    )


def _as_given(x: Any, named: Mapping[str, Any], arguments: Any, names: list[str]) -> Any:
    """The structure for relevance: that of x; with arguments by name beside it, a dictionary of all of them."""
    args, kwargs = arguments
    if named and x is not None:
        return {**dict(zip(names, args, strict=True)), **kwargs}
    if type(x) in (tuple, list) and len(args) == len(x):
        return type(x)(args)
    return args[0] if args else kwargs


def _bound(model: Any, x: Any, named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
    """How forward is called, and the names of the positional arguments."""
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    if x is None:
        ways.append(((), named))
    elif isinstance(x, Mapping):
        ways += [((), {**x, **named}), ((dict(x),), named)]
    elif isinstance(x, (tuple, list)) and not hasattr(x, "_make"):
        ways += [(tuple(x), named), ((x,), named)]
    else:
        ways.append(((x,), named))
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # of a script
        args, kwargs = ways[0]
        return args, kwargs, [str(i) for i in range(len(args))]
    problems = []
    for args, kwargs in ways:
        if not all(isinstance(name, str) for name in kwargs):
            continue
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            problems.append(str(error))
            continue
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        formal = [p.name for p in signature.parameters.values() if p.kind in kinds]
        return args, kwargs, [*formal, *map(str, range(len(formal), len(args)))][: len(args)]
    raise InputError(
        f"{type(model).__name__} takes ({', '.join(signature.parameters)}), got {_kinds(x, named)}: "
        f"{problems[0] if problems else 'names must be text'}."
    )


def _kinds(x: Any, named: Mapping[str, Any]) -> str:
    """What was given, in words."""
    by_name = ", ".join(f"{name}=" for name in named)
    if x is None:
        return by_name or "nothing"
    if isinstance(x, Mapping):
        first = "{" + ", ".join(map(repr, x)) + "}"
    elif isinstance(x, (tuple, list)):
        first = f"a {type(x).__name__} of {len(x)}"
    else:
        first = type(x).__name__
    return f"{first}, {by_name}" if by_name else first


def _filled(value: Any, tensors: Sequence[Any]) -> Any:
    """A structure with tensors in their places."""
    if isinstance(value, Place):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _filled(v, tensors) for key, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return type(value)._make(_filled(v, tensors) for v in value)
    if isinstance(value, (tuple, list)):
        return type(value)(_filled(v, tensors) for v in value)
    return value


def _key(value: Any) -> Any:
    """A structure as something that can be compared."""
    if isinstance(value, dict):
        return (dict, tuple((key, _key(v)) for key, v in value.items()))
    if isinstance(value, (tuple, list)):
        return (type(value), tuple(map(_key, value)))
    simple = value is None or isinstance(value, (Place, bool, int, float, str, torch.dtype, torch.device))
    return (type(value), value) if simple else id(value)
