"""A recurrent layer as one operation of a trace, however many steps it has, and over sequences of several lengths.

torch itself traces such a layer step by step, half a minute for a few hundred steps, and not at all where sequences are packed.
The operations are torch.ops.lrp.lstm, gru, rnn_tanh and rnn_relu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import rnn

KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _define(kind: str) -> None:
    layer: Callable[..., list[Tensor]] = getattr(torch, kind)

    @torch.library.custom_op(f"lrp::{kind}", mutates_args=())
    def operation(
        input: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool, num_layers: int,
        bidirectional: bool, batch_first: bool, lengths: Tensor | None,
    ) -> list[Tensor]:  # fmt: skip
        """As torch computes it.

        Args:
            input: [L, N, C], or [N, L, C] if `batch_first`.
            hx: h, of an LSTM h and c, each [layers · directions, N, H].
            params: in torch's order.
            lengths: [N], from 1 to L: what lies behind a sequence's end is not read. None: L.

        Returns:
            h of every step, [L, N, directions · H] or [N, L, directions · H], of which behind a sequence's end nothing is
            said; and the last states, as in `hx`.
        """
        options = (params, has_biases, num_layers, 0.0, False, bidirectional)
        if lengths is None:
            out, *last = layer(input, hx if kind == "lstm" else hx[0], *options, batch_first)
            return [out.contiguous(), *last]
        packed: Any = rnn.pack_padded_sequence(input, lengths.cpu(), batch_first, enforce_sorted=False)
        _, sizes, order, back = packed
        begun = [state.index_select(1, order) for state in hx]
        out, *last = layer(packed.data, sizes, begun if kind == "lstm" else begun[0], *options)
        result = rnn.PackedSequence(out, sizes, order, back)
        padded, _ = rnn.pad_packed_sequence(result, batch_first, total_length=input.shape[int(batch_first)])
        return [padded.contiguous(), *(state.index_select(1, back) for state in last)]

    @operation.register_fake
    def _(
        input: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool, num_layers: int,
        bidirectional: bool, batch_first: bool, lengths: Tensor | None,
    ) -> list[Tensor]:  # fmt: skip
        width = hx[0].shape[2] * (2 if bidirectional else 1)
        return [input.new_empty(*input.shape[:2], width), *map(torch.empty_like, hx)]


for _kind in KINDS:
    _define(_kind)


def recurrent_layer(kind: str, x: Tensor, hx: list[Tensor], *options: object) -> tuple[Tensor, ...]:
    """The operation of a kind, of `KINDS`; it returns a tuple, as torch's does."""
    operation: Callable[..., list[Tensor]] = getattr(torch.ops.lrp, kind)
    return tuple(operation(x, hx, *options))
