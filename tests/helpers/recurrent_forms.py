"""Recurrent layers written in several ways; `spellings.py` has them among its forms of tokens, t [N, 9, 8]."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

STEPS = 2


def steps(t: torch.Tensor) -> torch.Tensor:
    """[N, STEPS, 8]: a short sequence."""
    return t[:, :STEPS]


def recurrent(p: Any, gates: int, width: int = 4) -> list[torch.Tensor]:
    """W, U and their biases, as torch has them; U reads a state of `width`."""
    return [p("w", 4 * gates, 8) / 2, p("u", 4 * gates, width) / 2, p("b", 4 * gates), p("c", 4 * gates)]


def gru(t: torch.Tensor, p: Any) -> torch.Tensor:
    start = t.new_zeros(1, len(t), 4)
    return torch.gru(steps(t), start, recurrent(p, 3), True, 1, 0.0, False, False, True)[0]


def gru_cells(t: torch.Tensor, p: Any) -> torch.Tensor:
    hs = [t.new_zeros(len(t), 4)]
    for x in steps(t).unbind(1):
        hs.append(torch.gru_cell(x, hs[-1], *recurrent(p, 3)))
    return torch.stack(hs[1:], 1)


def written_gru(
    t: torch.Tensor, p: Any, blend: Callable[..., torch.Tensor], apart: bool = False
) -> torch.Tensor:
    """`blend(new, old, z)` makes the next state; `apart`: a layer of its own for each gate."""
    w, u, b, c = recurrent(p, 3)
    h, hs = t.new_zeros(len(t), 4), []
    for i in range(STEPS):
        if apart:
            reads = [F.linear(t[:, i], *own) for own in zip(w.chunk(3), b.chunk(3), strict=True)]
            remembered = [h @ own.T + bias for own, bias in zip(u.chunk(3), c.chunk(3), strict=True)]
        else:
            reads, remembered = F.linear(t[:, i], w, b).chunk(3, 1), F.linear(h, u, c).chunk(3, 1)
        r, z = (torch.sigmoid(reads[k] + remembered[k]) for k in (0, 1))
        h = blend(torch.tanh(reads[2] + r * remembered[2]), h, z)
        hs.append(h)
    return torch.stack(hs, 1)


def packed_gru(t: torch.Tensor, p: Any) -> torch.Tensor:
    lengths = torch.full((len(t),), STEPS)
    data, sizes, *_ = nn.utils.rnn.pack_padded_sequence(t, lengths, batch_first=True)
    start = t.new_zeros(1, len(t), 4)
    out = torch.gru(data, sizes, start, recurrent(p, 3), True, 1, 0.0, False, False)[0]
    packed = nn.utils.rnn.PackedSequence(out, sizes)
    return nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]


def lstm(t: torch.Tensor, p: Any, batch_first: bool = True, projected: bool = False) -> torch.Tensor:
    width = 2 if projected else 4
    params = recurrent(p, 4, width) + [p("p", 2, 4)] * projected
    start = [t.new_zeros(1, len(t), width), t.new_zeros(1, len(t), 4)]
    if batch_first:
        return torch.lstm(steps(t), start, params, True, 1, 0.0, False, False, True)[0]
    return torch.lstm(steps(t).transpose(0, 1), start, params, True, 1, 0.0, False, False, False)[
        0
    ].transpose(0, 1)


def lstm_cells(t: torch.Tensor, p: Any) -> torch.Tensor:
    state, hs = (t.new_zeros(len(t), 4), t.new_zeros(len(t), 4)), []
    for i in range(STEPS):
        state = torch.lstm_cell(t[:, i], state, *recurrent(p, 4))
        hs.append(state[0])
    return torch.stack(hs, 1)


def written_lstm(t: torch.Tensor, p: Any, projected: bool = False) -> torch.Tensor:
    w, u, b, c = recurrent(p, 4, 2 if projected else 4)
    h, cell, hs = t.new_zeros(len(t), u.shape[1]), t.new_zeros(len(t), 4), []
    for i in range(STEPS):
        keep, forget, new, show = (F.linear(t[:, i], w, b) + F.linear(h, u, c)).split(4, -1)
        cell = cell * forget.sigmoid() + new.tanh() * keep.sigmoid()
        h = cell.tanh() * show.sigmoid()
        h = F.linear(h, p("p", 2, 4)) if projected else h
        hs.append(h)
    return torch.stack(hs, 1)


def rnn(t: torch.Tensor, p: Any) -> torch.Tensor:
    start = t.new_zeros(2, len(t), 4)
    return torch.rnn_tanh(steps(t), start, recurrent(p, 1) * 2, True, 1, 0.0, False, True, True)[0]


def rnn_cells(t: torch.Tensor, p: Any, written: bool = False) -> torch.Tensor:
    """Both ways, with the same weights."""
    w, u, b, c = recurrent(p, 1)
    ways = []
    for order in (range(STEPS), reversed(range(STEPS))):
        h, hs = t.new_zeros(len(t), 4), {}
        for i in order:
            if written:
                h = torch.tanh(F.linear(t[:, i], w, b) + F.linear(h, u, c))
            else:
                h = torch.rnn_tanh_cell(t[:, i], h, w, u, b, c)
            hs[i] = h
        ways.append(torch.stack([hs[i] for i in range(STEPS)], 1))
    return torch.cat(ways, 2)


RECURRENT = {
    "gru": (
        gru,
        gru_cells,
        packed_gru,
        lambda t, p: written_gru(t, p, lambda new, old, z: (1 - z) * new + z * old),
        lambda t, p: written_gru(t, p, lambda new, old, z: new + z * (old - new), apart=True),
        lambda t, p: written_gru(t, p, torch.lerp),
    ),
    "lstm": (lstm, lambda t, p: lstm(t, p, batch_first=False), lstm_cells, written_lstm),
    "lstm_with_projection": (
        lambda t, p: lstm(t, p, projected=True),
        lambda t, p: written_lstm(t, p, projected=True),
    ),
    "rnn_both_ways": (rnn, rnn_cells, lambda t, p: rnn_cells(t, p, written=True)),
}
