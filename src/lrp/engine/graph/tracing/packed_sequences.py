"""Packed sequences held as padded ones while a model is traced: how many steps they have depends on values, which a trace has not.

What `pack_padded_sequence` returns then holds all steps of all sequences, one step of all sequences after the other, and in the
place of the batch sizes the lengths. A recurrent layer of it is one operation, `packed_recurrence`, in which a sequence keeps
its state after its end. Sequences are not sorted: they do not touch each other, and are put back in order afterwards.

The padded result is as long as the input, where torch's is as long as the longest sequence. Whether this changes what the
model returns is for the caller to find out.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode

from lrp.engine.graph.tracing.constant_branches import ConstantBranches
from lrp.engine.graph.tracing.isolation import replaced_here
from lrp.errors import CaptureError

LAYERS = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


@torch.library.custom_op("lrp::packed_recurrence", mutates_args=())
def packed_recurrence(
    kind: str,
    data: Tensor,
    lengths: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    """A recurrent layer over sequences of several lengths.

    Args:
        kind: one of `LAYERS`.
        data: [L, N, C]; what lies behind a sequence's end is not read.
        lengths: [N], from 1 to L.
        states: h, of an LSTM h and c, each [layers · directions, N, H].
        weights: in torch's order.

    Returns:
        h of every step, [L, N, directions · H], of which nothing is said behind a sequence's end; and the last states.
    """
    packed = rnn.pack_padded_sequence(data, lengths.cpu(), enforce_sorted=False)
    _, sizes, order, back = packed
    begun = [s.index_select(1, order) for s in states]
    layer: Callable[..., list[Tensor]] = getattr(torch, kind)
    options = (weights, has_biases, num_layers, 0.0, False, bidirectional)
    out, *last = layer(packed.data, sizes, begun if kind == "lstm" else begun[0], *options)
    padded, _ = rnn.pad_packed_sequence(rnn.PackedSequence(out, sizes, order, back), total_length=len(data))
    return [padded, *(s.index_select(1, back) for s in last)]


@packed_recurrence.register_fake
def _(
    kind: str,
    data: Tensor,
    lengths: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    width = states[0].shape[2] * (2 if bidirectional else 1)
    return [data.new_empty(*data.shape[:2], width), *map(torch.empty_like, states)]


class Longest(int):
    """The number of steps of the longest sequence, which is not known; as a number that of all steps."""

    def __gt__(self, other: object) -> bool:
        return False  # as far as one knows: a `total_length` may be less than the number of steps


class BatchSizes:
    """Stands where a packed sequence has its batch sizes."""

    device = torch.device("cpu")

    def __init__(self, lengths: Tensor, steps: int, images: int) -> None:
        self.lengths, self.steps, self.images = lengths, steps, images

    def size(self, dim: int) -> int:
        return Longest(self.steps)

    def __getitem__(self, step: Any) -> int:
        if step != 0:
            raise CaptureError(NOT_KNOWN)
        return self.images  # each sequence has a first step

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name}: {NOT_KNOWN}")

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        """By this torch takes it for a tensor; `Packing` answers what torch.nn asks of it."""
        raise CaptureError(NOT_KNOWN)


NOT_KNOWN = (
    "the batch_sizes of a packed sequence are used, which depend on values: use the lengths from which it was made"
)
ASKED = "the length of a sequence is asked for"


class Packing(TorchFunctionMode):
    """Inside, sequences are packed as padded ones.

    Attributes:
        used: whether any was.
    """

    def __init__(self, constants: ConstantBranches) -> None:
        super().__init__()
        self.constants, self.used = constants, False
        self._orders: dict[int, Tensor] = {}  # permutations of the batch that are none

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            return self._packed(*args)
        if name == "_pad_packed_sequence":
            return _padded(*args)
        if name in LAYERS and isinstance(args[1], BatchSizes):
            return _recurrence(name, *args)
        if name == "sort" and sys._getframe(1).f_code is rnn.pack_padded_sequence.__code__:
            return args[0], self._order(args[0])
        if args and id(args[0]) in self._orders and name in UNCHANGED:
            return args[0]
        if name in ("index_select", "__getitem__") and id(args[-1]) in self._orders:
            return args[0]
        return func(*args, **kwargs)

    def _order(self, lengths: Tensor) -> Tensor:
        order = torch.arange(len(lengths), device=lengths.device)
        self._orders[id(order)] = order
        return order

    def _packed(self, data: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, BatchSizes]:
        self.used = True
        data = data.transpose(0, 1) if batch_first else data
        if len(lengths) != data.shape[1]:
            raise CaptureError(
                f"{len(lengths)} lengths are given for a batch of {data.shape[1]} sequences"
            )
        known = self.constants.value(lengths)
        if known is not None:
            data = data[: int(known.max())]
        steps, images = data.shape[:2]
        return data.flatten(0, 1), BatchSizes(lengths.to(data.device), steps, images)


# Functions of a permutation, called by torch.nn.utils.rnn, that leave the identity what it is.
UNCHANGED = frozenset({"to", "cpu", "empty_like", "scatter_"})


def _recurrence(
    kind: str, data: Tensor, sizes: BatchSizes, states: Any, weights: list[Tensor], has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    apart = data.unflatten(0, (sizes.steps, sizes.images))
    states = list(states) if kind == "lstm" else [states]
    options = (list(weights), has_biases, num_layers, bidirectional)
    out, *last = torch.ops.lrp.packed_recurrence(kind, apart, sizes.lengths, states, *options)
    return out.flatten(0, 1), *last


def _padded(
    data: Tensor, sizes: BatchSizes, batch_first: bool, padding_value: float, total: int
) -> tuple[Tensor, Tensor]:
    steps = sizes.steps
    padded = data.unflatten(0, (steps, sizes.images))
    going = torch.arange(steps, device=data.device)[:, None] < sizes.lengths
    going = going.reshape(*going.shape, *[1] * (padded.dim() - 2))
    padded = torch.where(going, padded, padding_value)[:total]
    if total > steps:
        padded = F.pad(padded, [*[0, 0] * (padded.dim() - 1), 0, total - steps], value=padding_value)
    return padded.transpose(0, 1) if batch_first else padded, sizes.lengths


@contextlib.contextmanager
def packing(constants: ConstantBranches | None) -> Iterator[Packing | None]:
    """Sequences are packed as padded ones; without `constants`, whose lengths may be known, none can be packed."""
    with contextlib.ExitStack() as stack:
        if constants is None:
            stack.enter_context(replaced_here(rnn, "_packed_sequence_init", _ask))
            yield None
        else:
            for owner in (nn.RNNBase, nn.LSTM):
                checked = _checking(owner.check_forward_args)
                stack.enter_context(replaced_here(owner, "check_forward_args", checked))
            yield stack.enter_context(Packing(constants))


def _ask(*_: Any) -> Any:
    raise CaptureError(ASKED)


def _checking(check: Callable[..., None]) -> Callable[..., None]:
    """Without a check of the sizes of a packed sequence's states, which would fix the number of images."""

    def checked(layer: nn.RNNBase, data: Tensor, states: Any, sizes: Any) -> None:
        if not isinstance(sizes, BatchSizes):
            check(layer, data, states, sizes)

    return checked
