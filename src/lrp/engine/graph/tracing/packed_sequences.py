"""Packed sequences held as padded ones while a model is traced: how many steps they have depends on values, which a trace has not.

What `pack_padded_sequence` returns then holds all steps of all sequences, one step of all sequences after the other, and in the
place of the batch sizes the lengths. In a recurrent layer a sequence keeps its state after its end. Sequences are not sorted:
they do not touch each other, and would be put back in order afterwards.

The padded result is as long as the input, where torch's is as long as the longest sequence. Whether this changes what the
model returns is for the caller to find out (`Captured.packs`).
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
from lrp.engine.graph.tracing.recurrent_layers import KINDS, recurrent_layer
from lrp.errors import CaptureError

ASKED = "a sequence is packed"
NOT_KNOWN = "the batch_sizes of a packed sequence are used, which depend on values: use the lengths from which it was made"


class Longest(int):
    """The number of steps of the longest sequence, which is not known; as a number that of all steps."""

    def __gt__(self, other: object) -> bool:
        return False  # as far as is known: a `total_length` may be less than the number of all steps


class BatchSizes:
    """Stands where a packed sequence has its batch sizes.

    Attributes:
        lengths: [N].
        steps, images: L and N of the padded data.
    """

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
        """By this torch takes it for a tensor; `Sequences` answers what torch.nn asks of it."""
        raise CaptureError(NOT_KNOWN)


class Sequences(TorchFunctionMode):
    """Inside, a recurrent layer is one operation, and sequences are packed as padded ones.

    Args:
        constants: know the lengths that do not depend on the image; None: nothing can be packed.

    Attributes:
        packed: whether anything was.
    """

    def __init__(self, constants: ConstantBranches | None) -> None:
        super().__init__()
        self.constants, self.packed = constants, False
        self._orders: dict[int, Tensor] = {}  # permutations of the batch that change nothing

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in KINDS and not kwargs:
            if isinstance(args[1], BatchSizes):
                return _packed_layer(name, *args)
            x, hx, params, has_biases, layers, dropout, train, both_ways, batch_first = args
            if not (dropout and train):
                hx = list(hx) if name == "lstm" else [hx]
                return recurrent_layer(
                    name, x, hx, list(params), has_biases, layers, both_ways, batch_first, None
                )
        if name == "_pack_padded_sequence":
            return self._pack(*args)
        if name == "_pad_packed_sequence":
            return _pad(*args)
        if name == "sort" and sys._getframe(1).f_code is rnn.pack_padded_sequence.__code__:
            return args[0], self._order(args[0])
        if args and id(args[0]) in self._orders and name in OF_AN_ORDER:
            return args[0]
        if name in ("index_select", "__getitem__") and id(args[-1]) in self._orders:
            return args[0]
        return func(*args, **kwargs)

    def _order(self, lengths: Tensor) -> Tensor:
        order = torch.arange(lengths.shape[0], device=lengths.device)
        self._orders[id(order)] = order
        return order

    def _pack(self, data: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, BatchSizes]:
        if self.constants is None:
            raise CaptureError(ASKED)
        self.packed = True
        data = data.transpose(0, 1) if batch_first else data
        if lengths.shape[0] != data.shape[1]:
            raise CaptureError(
                f"{lengths.shape[0]} lengths are given for a batch of {data.shape[1]} sequences"
            )
        known = self.constants.value(lengths)
        if known is not None:
            data = data[: int(known.max())]
        steps, images = data.shape[:2]
        return data.flatten(0, 1), BatchSizes(lengths.to(data.device), steps, images)


OF_AN_ORDER = frozenset({"to", "cpu", "empty_like", "scatter_"})
"""What torch.nn.utils.rnn calls to move a permutation to another device and to invert it."""


def _packed_layer(
    kind: str, data: Tensor, sizes: BatchSizes, hx: Any, params: list[Tensor], has_biases: bool, layers: int,
    dropout: float, train: bool, both_ways: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    if dropout and train:
        raise CaptureError("dropout in a recurrent layer over packed sequences is random")
    hx = list(hx) if kind == "lstm" else [hx]
    x = data.unflatten(0, (sizes.steps, sizes.images))
    out, *last = recurrent_layer(
        kind, x, hx, list(params), has_biases, layers, both_ways, False, sizes.lengths
    )
    return out.flatten(0, 1), *last


def _pad(
    data: Tensor, sizes: BatchSizes, batch_first: bool, padding_value: float, total: int
) -> tuple[Tensor, Tensor]:
    padded = data.unflatten(0, (sizes.steps, sizes.images))
    going = torch.arange(sizes.steps, device=data.device)[:, None] < sizes.lengths
    going = going.reshape(*going.shape, *[1] * (padded.dim() - 2))
    padded = torch.where(going, padded, padding_value)[:total]
    if total > sizes.steps:
        pads = [*[0, 0] * (padded.dim() - 1), 0, total - sizes.steps]
        padded = F.pad(padded, pads, value=padding_value)
    return padded.transpose(0, 1) if batch_first else padded, sizes.lengths


@contextlib.contextmanager
def sequences(constants: ConstantBranches | None) -> Iterator[Sequences]:
    """`Sequences`; and torch does not check the sizes of a packed sequence's states, which would fix the number of images."""
    with contextlib.ExitStack() as stack:
        for owner in (nn.RNNBase, nn.LSTM):
            check = _of_padded_alone(owner.check_forward_args)
            stack.enter_context(replaced_here(owner, "check_forward_args", check))
        yield stack.enter_context(Sequences(constants))


def _of_padded_alone(check: Callable[..., None]) -> Callable[..., None]:
    def checked(layer: nn.RNNBase, data: Tensor, states: Any, sizes: Any) -> None:
        if not isinstance(sizes, BatchSizes):
            check(layer, data, states, sizes)

    return checked
