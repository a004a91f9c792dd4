"""What is asked of a program: what relevance starts from, and what happens to it inside the model, at which named places."""

from __future__ import annotations

import difflib
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.shapes import Batch, Shape, shape_text
from lrp.engine.graph.writer import Inner
from lrp.errors import InputError


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of a program behind the model's inputs.

    Attributes:
        inner: which program.
        starts: given, weight, predicted of the logits, or the start relevance of inner nodes.
        masks: of the nodes that relevance is masked at.
        dims: the dimension of each of `starts` and `masks` that counts the images.
        entries: what each image is explained for, as `target` takes it; None: a start relevance.
    """

    inner: Inner
    starts: tuple[Tensor, ...]
    masks: tuple[Tensor, ...] = ()
    dims: tuple[int, ...] = (0, 0, 0)
    entries: Sequence[Any] | None = None

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return (*self.starts, *self.masks)

    @property
    def inner_starts(self) -> tuple[Tensor, ...]:
        """The start relevance of inner nodes."""
        return self.starts if self.inner.starts else ()

    def image(self, index: int) -> Request:
        """The request for one image."""
        own = [t.narrow(dim, index, 1) for t, dim in zip(self.arguments, self.dims, strict=True)]
        count = len(self.starts)
        entries = None if self.entries is None else self.entries[index : index + 1]
        return replace(self, starts=tuple(own[:count]), masks=tuple(own[count:]), entries=entries)

    def only(self, index: int) -> Request:
        """The request for all images, with relevance at one of them only."""

        def alone(t: Tensor, dim: int) -> Tensor:
            kept = torch.zeros_like(t)
            kept.narrow(dim, index, 1).copy_(t.narrow(dim, index, 1))
            return kept

        return replace(self, starts=tuple(map(alone, self.starts, self.dims)))


Named = Mapping[str, Any]
NEAREST = 3  # names in a message


def inner_tensors(
    graph: Graph, given: Named | None, images: int, like: Tensor, *, mask: bool
) -> list[tuple[fx.Node, Tensor, int]]:
    """(node, tensor of the node's shape, dimension of the images) for each name.

    Args:
        given: name of a module or operation -> relevance, or with `mask` what broadcasts to it.
        images: N.
        like: a tensor of the dtype and on the device to use.

    Raises:
        InputError: no such name; relevance ends there; another shape; values that are not finite.
    """
    what = "through" if mask else "start"
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"{what}= takes a dictionary, module -> tensor, got {type(given).__name__}.")
    found = []
    for name, value in (given or {}).items():
        node = inner_node(graph, name)
        if "entry" in node.meta:
            raise InputError(
                f"{what}={{{name!r}: ...}}: relevance ends there; use the relevance of the input."
            )
        sizes = node.meta["shape"]
        dims = [
            d for d, size in enumerate(sizes) if size == Batch() or (not isinstance(size, Batch) and d == 0)
        ]
        if not dims or any(isinstance(size, Batch) and size.times > 1 for size in sizes):
            raise InputError(
                f"{what}={{{name!r}: ...}}: the output there, {shape_text(sizes)}, has no dimension for the images alone."
            )
        shape = [images if isinstance(size, Batch) else size for size in sizes]
        tensor = torch.as_tensor(value).detach().to(like)
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{what}={{{name!r}: ...}} holds NaN or infinite values; every entry must be finite."
            )
        try:
            fits = mask or list(tensor.shape) == shape
            full = tensor.expand(shape) if fits else None
        except RuntimeError:
            full = None
        if full is None:
            raise InputError(
                f"{what}={{{name!r}: ...}} has shape {list(tensor.shape)}, and "
                + (f"does not broadcast to the output there, {shape}: channels are [C, 1, 1]." if mask
                   else f"the output there is {shape}.")
            )  # fmt: skip
        found.append((node, full, dims[0]))
    return found


# ---------------------------------------------------------------- names of places


def inner_node(graph: Graph, name: str) -> fx.Node:
    """The node of that name: a module's path ("layer3", "relu#2" for its second call) or an operation, as tables print it.

    Raises:
        InputError: there is none, or it is not unique; names the nearest.
    """
    known = dict(_named(graph))
    if name in known:
        return known[name]
    calls = [k for k in known if k.startswith((f"{name}#", f"{name}["))]
    if calls:
        raise InputError(f"{name!r} has {len(calls)} outputs: say {_listed(calls)}.")
    if name in graph.merged:
        raise InputError(f"{name!r} has no relevance of its own: {graph.merged[name]}.")
    near = difflib.get_close_matches(name, known, NEAREST, 0.0)
    raise InputError(
        f"{name!r} is no module or operation that relevance passes; the nearest are {_listed(near)}."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _named(graph: Graph) -> Iterator[tuple[str, fx.Node]]:
    """All names, and what they stand for."""
    outputs: dict[str, dict[str, list[fx.Node]]] = defaultdict(
        lambda: defaultdict(list)
    )  # path -> call -> nodes
    data = {*graph.operations, *graph.entries}
    for node in graph.fx.nodes:
        part = node.target is operator.getitem and node.args[0] in data
        if node not in data and not part:
            continue
        for path, shape in node.meta.get("outputs", ()):
            if _same(shape, node.meta["shape"]):
                outputs[path.partition("@")[0]][path].append(node)
            else:
                graph.merged[path] = "it is computed in another shape"
    for path, calls in outputs.items():
        for number, nodes in enumerate(calls.values(), 1):
            call = path if len(calls) == 1 else f"{path}#{number}"
            for index, node in enumerate(nodes):
                yield (call if len(nodes) == 1 else f"{call}[{index}]"), node
    same: dict[str, list[fx.Node]] = defaultdict(list)
    for node, operation in graph.operations.items():
        if node.meta.get("shape") is not None and not any(u.target is operator.getitem for u in node.users):
            same[str(operation)].append(node)
    for text, nodes in same.items():
        for number, node in enumerate(nodes, 1):
            yield (text if len(nodes) == 1 else f"{text}#{number}"), node


def _same(a: Shape, b: Any) -> bool:
    return tuple(a) == tuple(b or ())
