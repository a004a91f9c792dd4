"""The vocabulary: which family an operation belongs to, and the algebra its rules need.

An operation is one registration: the names of its ATen overload packets, its family, and a function
from the operation to its algebra: an `Affine`, `Sum`, `MaxPool`, `Movement` or `Activation`. Data flows
in through `op.data`; everything else (weights, sizes, constants) is an argument by name, `op["stride"]`.

The algebra is written as tensor code. It runs on tensors, and on fx proxies, which write it down as
part of the explanation program.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lrp.errors import RuleError
from lrp.graph.capture import Batch, Shape, Size
from lrp.rules import Affine, Uniform, total

# ---------------------------------------------------------------- what the algebra of a family is


@dataclass
class Activation:
    """Acts on each element alone; relevance passes."""


@dataclass
class Movement:
    """Carries elements from inputs to outputs.

    back: relevance per output -> relevance per data input; constant: -> the sum that constants among the
    inputs receive, where there can be any.
    """

    back: Callable[[list[Any]], list[Any]]
    constant: Callable[[list[Any]], Any] | None = None


class Place(int):
    """Which data input of an operation."""


@dataclass
class Sum:
    """Σ c_i x_i over operands that may broadcast to `shape`. terms: (operand: a `Place` or a constant, c)."""

    terms: list[tuple[Any, float]]
    shape: Shape
    shapes: list[Shape]


@dataclass
class MaxPool:
    """Largest element of each window. route: (relevance, a, indices) -> to the winners; average: the
    average pool over the same windows."""

    route: Callable[[Any, Any, Any], Any]
    average: Callable[[tuple[int, int] | None], Affine]


Algebra = Affine | Activation | Movement | Sum | MaxPool


# ---------------------------------------------------------------- one operation of a model


@dataclass
class Operation:
    """One operation of the canonical graph, as composites and rules see it.

    Attributes:
        name: the operation, such as "conv2d", "add", "relu".
        family: "conv", "linear", "norm", "pool", "scale", "sum", "maxpool", "activation" or "movement".
        path: dotted name of the module that called it, such as "features.3"; "" in the model itself.
        module: that module's class, such as "torch.nn.modules.conv.Conv2d".
        shape: of the output; batch sizes are `N` or multiples.
        first: a conv or linear that the image reaches through no other.
        nonneg: its data inputs are all provably >= 0.
        source: file:line of the model's code.
        index: place in the order of execution.
    """

    node: fx.Node
    name: str
    family: str
    path: str = ""
    module: str = ""
    shape: Shape = ()
    source: str = ""
    index: int = 0
    first: bool = False
    nonneg: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    data: list[fx.Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """An argument by its name in the operation's signature; constants as tensors."""
        return _resolved(self.arguments[name], self.constants)

    def is_data(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.data

    def input_shape(self, place: int = 0) -> Shape:
        return self.data[place].meta["shape"]

    def __str__(self) -> str:
        return f"{self.path or 'model'} ({self.name})"


def _resolved(value: Any, constants: dict[str, Tensor]) -> Any:
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return constants[str(value.target)]
    if isinstance(value, (list, tuple)):
        return type(value)(_resolved(v, constants) for v in value)
    return value


def sizes(shape: Shape) -> list[int]:
    """A shape as `reshape` takes it: the one size that depends on the batch is -1."""
    return [-1 if isinstance(size, Batch) else size for size in shape]


def one(shape: Shape) -> list[int]:
    """The shape for a single image."""
    return [size.times if isinstance(size, Batch) else size for size in shape]


# ---------------------------------------------------------------- the registry

Lower = Callable[[Operation], Algebra]


@dataclass(frozen=True)
class Entry:
    family: str
    lower: Lower
    when: Callable[[Operation], bool]


_VOCABULARY: dict[str, Entry] = {}


def register(
    *names: str, family: str, when: Callable[[Operation], bool] = lambda op: True
) -> Callable[[Lower], Lower]:
    """Teach the vocabulary an operation: `@register("relu", "relu6", family="activation")`.

    Args:
        when: for which uses of the operation; the others stay unknown.
    """

    def add(lower: Lower) -> Lower:
        for name in names:
            _VOCABULARY[name] = Entry(family, lower, when)
        return lower

    return add


def known() -> dict[str, str]:
    """Operation -> family, of everything that has a rule."""
    return {name: entry.family for name, entry in sorted(_VOCABULARY.items())}


def entry(name: str) -> Entry | None:
    return _VOCABULARY.get(name)


def name_of(node: fx.Node) -> str:
    """The operation's short name: "conv2d" for torch.ops.aten.conv2d.default."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        name = name.removesuffix("_with_indices")  # a max pool is a max pool, winners told or not
        return name if namespace == "aten" else f"{namespace}::{name}"
    return getattr(target, "__name__", str(target))


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """All arguments by name, defaults filled in."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        formal = target._schema.arguments
        given = {a.name: v for a, v in zip(formal, node.args, strict=False)} | dict(node.kwargs)
        return {a.name: given.get(a.name, a.default_value) for a in formal}
    if target is operator.getitem:
        return {"source": node.args[0], "index": node.args[1]}
    bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


# ---------------------------------------------------------------- affine operations


def scale_shift(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x w + b, elementwise: what a batch norm is, once its statistics are constants."""
    return image * weight + bias


def padded_conv(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """A zero pad and the convolution that reads it, as one affine operation."""
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[weight.dim() - 3]
    return conv(F.pad(image, pad), weight, bias, stride, padding, dilation, groups)


def per_channel(values: Tensor | None, dims: int) -> Tensor | None:
    """[C] as [C, 1, ...], to broadcast against [N, C, ...]."""
    return None if values is None else values.reshape(-1, *[1] * dims)


def listed(value: Any, n: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * n if len(values) == 1 else values


@register("conv1d", "conv2d", "conv3d", "padded_conv", family="conv")
def _conv(op: Operation) -> Affine:
    weight, bias = op["weight"], op["bias"]
    n = weight.dim() - 2
    stride, padding, dilation = (listed(op[key], n) for key in ("stride", "padding", "dilation"))
    groups = op["groups"]
    pad = list(op["pad"]) if op.name == "padded_conv" else [0] * 2 * n
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[n - 1]
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    before = [
        s + pad[2 * (n - 1 - d)] + pad[2 * (n - 1 - d) + 1] for d, s in enumerate(one(op.input_shape())[-n:])
    ]
    after = one(op.shape)[-n:]
    kernel = weight.shape[2:]
    # Rows that the stride leaves over were read by no output: the adjoint must know they are there.
    left = [
        before[d] - ((after[d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + 1)
        for d in range(n)
    ]

    def forward(a: Any, w: Any) -> Any:
        return conv(F.pad(a, pad) if any(pad) else a, w, None, stride, padding, dilation, groups)

    def adjoint(s: Any, w: Any) -> Any:
        c = transposed(s, w, None, stride, padding, left, groups, dilation)
        return F.pad(c, [-p for p in pad]) if any(pad) else c

    return Affine(forward, adjoint, weight, per_channel(bias, n))


@register("linear", family="linear")
def _linear(op: Operation) -> Affine:
    def forward(a: Any, w: Any) -> Any:
        return F.linear(a, w)

    def adjoint(s: Any, w: Any) -> Any:
        return F.linear(s, w.t())

    return Affine(forward, adjoint, op["weight"], op["bias"])


@register("scale_shift", family="norm")
def _norm(op: Operation) -> Affine:
    return Affine(lambda a, w: a * w, lambda s, w: s * w, op["weight"], op["bias"])


def _times_constant(op: Operation) -> bool:
    """Whether it is data times (or over) a constant that does not enlarge it."""
    return (
        len(op.data) == 1
        and op.input_shape() == op.shape
        and op.is_data(op.arguments["self"]) | (op.name == "mul")
    )


@register("mul", "div", family="scale", when=_times_constant)
def _scale(op: Operation) -> Affine:
    constant = op["other"] if op.is_data(op.arguments["self"]) else op["self"]
    meta = {"dtype": op.node.meta["dtype"], "device": op.node.meta["device"]}
    weight = torch.as_tensor(constant, **meta)
    return Affine(lambda a, w: a * w, lambda s, w: s * w, 1 / weight if op.name == "div" else weight)


def _uniform(average: Callable[[Any], Any], back: Callable[[Any], Any], own: Any) -> Affine:
    """An operation whose outputs weigh their inputs alike.

    average: a -> Σ u a; back: its adjoint; own: u of each output, a number or a tensor that broadcasts.
    """

    def scaled(z: Any, w: Any) -> Any:
        extra = w.factor if w.power == 1 else w.factor * own ** (w.power - 1)
        return z if isinstance(extra, float) and extra == 1 else z * extra

    return Affine(lambda a, w: scaled(average(a), w), lambda s, w: back(scaled(s, w)), Uniform())


@register("mean", family="pool")
def _mean(op: Operation) -> Affine:
    shape, given, keep = op.input_shape(), op["dim"], op["keepdim"]
    dims = sorted(d % len(shape) for d in (given if given else range(len(shape))))
    count = 1
    for d in dims:
        count *= one(shape)[d]

    def back(s: Any) -> Any:
        if not keep:
            for d in dims:
                s = s.unsqueeze(d)
        return (s / count).expand([-1 if d not in dims else one(shape)[d] for d in range(len(shape))])

    return _uniform(lambda a: a.mean(dim=dims, keepdim=keep), back, 1 / count)


@register("avg_pool2d", family="pool")
def _avg_pool2d(op: Operation) -> Affine:
    return average_pool(
        op, op["kernel_size"], op["stride"] or op["kernel_size"], op["padding"], op["ceil_mode"],
        op["count_include_pad"], op["divisor_override"],
    )  # fmt: skip


def average_pool(
    op: Operation,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> Affine:
    cuts = (listed(kernel, 2), listed(stride, 2), listed(padding, 2), ceil_mode)
    windows = (*cuts, include_pad, divisor)
    height, width = one(op.input_shape())[-2:]
    blank = torch.ones(1, 1, height, width, dtype=op.node.meta["dtype"], device=op.node.meta["device"])
    # A window holds as many real inputs as the sum of ones in it; the padding has no share.
    own = F.avg_pool2d(blank, *windows) / F.avg_pool2d(blank, *cuts, True, 1)

    def back(s: Any) -> Any:
        # Its second argument gives nothing but the size to come back to.
        like = s.new_empty((1, 1, 1, 1)).expand(s.shape[0], s.shape[1], height, width)
        return torch.ops.aten.avg_pool2d_backward(s, like, *windows)

    return _uniform(lambda a: F.avg_pool2d(a, *windows), back, own)


@register("adaptive_avg_pool2d", family="pool")
def _adaptive_avg_pool2d(op: Operation) -> Affine:
    # Cell i of `out` averages the inputs from floor(i·in/out) to ceil((i+1)·in/out): one matrix a side.
    meta = {"dtype": op.node.meta["dtype"], "device": op.node.meta["device"]}
    rows, columns = (
        _cells(size, out).to(**meta)
        for size, out in zip(one(op.input_shape())[-2:], one(op.shape)[-2:], strict=True)
    )
    own = rows.amax(1)[:, None] * columns.amax(1)
    return _uniform(lambda a: rows @ a @ columns.t(), lambda s: rows.t() @ s @ columns, own)


def _cells(size: int, out: int) -> Tensor:
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


# ---------------------------------------------------------------- sums, activations, max pools


@register("add", "sub", family="sum")
def _add(op: Operation) -> Sum:
    sign = op["alpha"] * (1.0 if op.name == "add" else -1.0)
    terms: list[tuple[Any, float]] = []
    for key, factor in (("self", 1.0), ("other", sign)):
        raw = op.arguments[key]
        terms.append((Place(op.data.index(raw)) if op.is_data(raw) else op[key], factor))
    return Sum(terms, op.shape, [node.meta["shape"] for node in op.data])


@register("relu", "relu6", "hardtanh", "leaky_relu", family="activation")
def _activation(op: Operation) -> Activation:
    return Activation()


@register("max_pool2d", family="maxpool")
def _max_pool2d(op: Operation) -> MaxPool:
    kernel = listed(op["kernel_size"], 2)
    stride = listed(op["stride"] or kernel, 2)
    padding, dilation = listed(op["padding"], 2), listed(op["dilation"], 2)
    height, width = one(op.input_shape())[-2:]

    def route(relevance: Any, a: Any, indices: Any) -> Any:
        received = relevance.new_zeros(()).expand(relevance.shape[0], relevance.shape[1], height * width)
        # Windows may overlap: a winner of several collects from each.
        received = received.scatter_add(2, indices.flatten(2), relevance.flatten(2))
        return received.unflatten(2, (height, width))

    def average(window: tuple[int, int] | None) -> Affine:
        if window:
            return average_pool(op, window[0], window[1], 0, False, True, None)
        if any(d != 1 for d in dilation):
            raise RuleError(
                f"Proportional at {op}: a dilated max pool has no average pool; use WinnerTakesAll()."
            )
        return average_pool(op, kernel, stride, padding, op["ceil_mode"], True, None)

    return MaxPool(route, average)


# ---------------------------------------------------------------- movement


@register("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", family="movement")
def _reshape(op: Operation) -> Movement:
    back = sizes(op.input_shape())
    return Movement(lambda r: [r[0].reshape(back)])


@register("permute", family="movement")
def _permute(op: Operation) -> Movement:
    dims = [d % len(op.shape) for d in op["dims"]]
    inverse = [dims.index(d) for d in range(len(dims))]
    return Movement(lambda r: [r[0].permute(inverse)])


@register("transpose", family="movement")
def _transpose(op: Operation) -> Movement:
    return Movement(lambda r: [r[0].transpose(op["dim0"], op["dim1"])])


@register("slice", family="movement")
def _slice(op: Operation) -> Movement:
    shape, dim, step = op.input_shape(), op["dim"] % len(op.shape), op["step"]
    length, taken = shape[dim], op.shape[dim]
    if isinstance(length, Batch) or isinstance(taken, Batch):
        return Movement(lambda r: [r[0]])  # the whole batch: a slice of images cannot be captured
    start = op["start"] or 0
    start = max(start + length, 0) if start < 0 else min(start, length)

    def back(r: list[Any]) -> list[Any]:
        received = r[0]
        if step > 1:  # spread: one element, then step - 1 zeros
            received = F.pad(received.unsqueeze(dim + 1), _pads(len(shape) + 1, dim + 1, 0, step - 1))
            received = received.flatten(dim, dim + 1)
        return [F.pad(received, _pads(len(shape), dim, start, length - start - taken * step))]

    return Movement(back)


@register("select", family="movement")
def _select(op: Operation) -> Movement:
    shape = op.input_shape()
    dim, length = op["dim"] % len(shape), shape[op["dim"] % len(shape)]
    place = op["index"] % length
    return Movement(lambda r: [F.pad(r[0].unsqueeze(dim), _pads(len(shape), dim, place, length - place - 1))])


def _pads(dims: int, dim: int, before: int, after: int) -> list[int]:
    """`F.pad`'s list for one dimension; negative cuts away."""
    return [0, 0] * (dims - 1 - dim) + [before, after]


@register("constant_pad_nd", "pad", family="movement")
def _pad(op: Operation) -> Movement:
    pads = list(op["pad"])
    if op.arguments.get("mode", "constant") != "constant":
        return _copying_pad(op, pads)

    def back(r: list[Any]) -> list[Any]:
        return [F.pad(r[0], [-p for p in pads])]

    return Movement(back, lambda r: total(r[0] - F.pad(back(r)[0], pads)))


def _copying_pad(op: Operation, pads: list[int]) -> Movement:
    """Reflected, replicated and circular pads: each copy gives its relevance to its source."""
    shape, n = op.input_shape(), len(pads) // 2
    inner = one(shape)[len(shape) - n :]
    places = torch.arange(math.prod(inner), dtype=torch.float64).reshape(1, 1, *inner)
    source = F.pad(places, pads, mode=op["mode"]).flatten().long().to(op.node.meta["device"])

    def back(r: list[Any]) -> list[Any]:
        flat = r[0].flatten(len(shape) - n)
        lead = [flat.shape[d] for d in range(len(shape) - n)]
        received = flat.new_zeros(()).expand(*lead, math.prod(inner)).index_add(-1, source, flat)
        return [received.unflatten(-1, inner)]

    return Movement(back)


@register("cat", family="movement")
def _cat(op: Operation) -> Movement:
    given = op.arguments["tensors"]
    shapes = [v.meta["shape"] for v in given]
    dim = op["dim"] % len(op.shape)
    places, fixed, start = [], [], 0
    for value, shape in zip(given, shapes, strict=True):
        if op.is_data(value):
            places.append((op.data.index(value), start, shape[dim]))
        else:
            fixed.append((start, shape[dim]))
        start += shape[dim]

    def back(r: list[Any]) -> list[Any]:
        received: list[Any] = [None] * len(op.data)
        for place, first, length in places:  # the same tensor may stand in it twice
            part = r[0].narrow(dim, first, length)
            received[place] = part if received[place] is None else received[place] + part
        return received

    return Movement(back, lambda r: sum((total(r[0].narrow(dim, *f)) for f in fixed), start=0.0))


@register("split", "split_with_sizes", "chunk", "unbind", family="movement")
def _split(op: Operation) -> Movement:
    shapes: list[Shape] = op.node.meta["shapes"]
    dim = op["dim"] % len(op.input_shape())
    stacked = op.name == "unbind"

    def back(r: list[Any]) -> list[Any]:
        have = next(v for v in r if v is not None)
        parts = []
        for place, shape in enumerate(shapes):
            part = r[place] if place < len(r) else None
            if part is None:  # an output nobody read
                size: list[Any] = [have.shape[i] if isinstance(s, Batch) else s for i, s in enumerate(shape)]
                part = have.new_zeros(size)
            parts.append(part)
        return [torch.stack(parts, dim) if stacked else torch.cat(parts, dim)]

    return Movement(back)


def size_of(shape: Sequence[Size]) -> str:
    return "[" + ", ".join(str(s) for s in shape) + "]"
