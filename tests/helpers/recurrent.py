"""nn.LSTM, nn.GRU, nn.RNN and their cells once more, in plain operations on their parameters.

`held=True` is their twin for LRP-0, which is gradient × input of it: what comes from a sigmoid is a constant, and tanh(a) is
a · c with c = tanh(a) / a held constant. In a product with a state that does not depend on x, the gate is all that does: there
σ(a) is a · c as well.
"""

import torch
from torch import nn

FEATURES = 3


def sequences(n, steps):
    """[n, steps, FEATURES], the same first ones for any n."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, steps, FEATURES, generator=generator, dtype=torch.float64)[:n]


def difference(a, b):
    """The largest, relative to the largest of b."""
    assert a.shape == b.shape
    return float((a - b).abs().max()) / float(b.abs().max())


def gradient_times_input(model, x, R):
    """Of Σ logits · R / logits."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (gradient,) = torch.autograd.grad((logits * (R / logits).detach()).sum(), leaf)
    return gradient * x


class Begun(nn.Module):
    """A recurrent layer and its first states.

    Args:
        layer: nn.LSTM, nn.GRU or nn.RNN.
        start: "none" or "zeros", "constant", or "data": computed from x.
    """

    def __init__(self, layer, start):
        super().__init__()
        self.layer, self.start = layer, start
        count = layer.num_layers * (1 + layer.bidirectional)
        width = layer.proj_size or layer.hidden_size
        self.widths = [width, layer.hidden_size] if isinstance(layer, nn.LSTM) else [width]
        for i, w in enumerate(self.widths):
            self.register_buffer(f"first{i}", torch.randn(count, 1, w))
        self.from_x = nn.ModuleList([nn.Linear(FEATURES, count * w) for w in self.widths])

    def begin(self, x):
        """For x [N, L, C], a tuple of [layers · directions, N, H] each; or None."""
        count = self.layer.num_layers * (1 + self.layer.bidirectional)
        if self.start == "none":
            return None
        if self.start == "zeros":
            return tuple(x.new_zeros(count, len(x), w) for w in self.widths)
        if self.start == "constant":
            return tuple(getattr(self, f"first{i}").expand(-1, len(x), -1) for i in range(len(self.widths)))
        made = (linear(x[:, 0]).unflatten(1, (count, -1)) for linear in self.from_x)
        return tuple(s.transpose(0, 1).contiguous() for s in made)

    def given(self, begun):
        """As the layer takes them."""
        return begun if begun is None or isinstance(self.layer, nn.LSTM) else begun[0]


def passed(function, a, held):
    return a * (function(a) / a).detach() if held else function(a)


def gated(a, signal, of_data, held):
    """σ(a) · signal."""
    if held and of_data:
        return a.sigmoid().detach() * signal
    return passed(torch.sigmoid, a, held) * signal


def step(kind, x, state, w, u, b=0.0, c=0.0, p=None, held=False):
    """One step: x [N, C], state (h,) or (h, c) of [N, H] each -> the next state."""
    h, *rest = state
    of_data = h.requires_grad or any(s.requires_grad for s in rest)
    reads, remembered = x @ w.T + b, h @ u.T + c
    if kind == "LSTM":
        i, f, g, o = (reads + remembered).chunk(4, 1)
        g = passed(torch.tanh, g, held)
        cell = gated(f, rest[0], of_data, held) + gated(i, g, True, held)
        h = gated(o, passed(torch.tanh, cell, held), True, held)
        return (h if p is None else h @ p.T), cell
    if kind == "GRU":
        (r, z, n), (r2, z2, n2) = reads.chunk(3, 1), remembered.chunk(3, 1)
        n = passed(torch.tanh, n + gated(r + r2, n2, of_data, held), held)
        keep = z + z2
        new = 1 - keep.sigmoid()
        return ((new.detach() if held else new) * n + gated(keep, h, of_data, held),)
    a = reads + remembered
    return (a.relu() if kind == "RELU" else passed(torch.tanh, a, held),)


def kind_of(layer):
    relu = getattr(layer, "nonlinearity", "") == "relu"
    return "RELU" if relu else type(layer).__name__.removesuffix("Cell")


def parameters(layer, suffix=""):
    """w, u, b, c, p of a cell, or of one direction of one layer."""
    found = [
        getattr(layer, f"{name}{suffix}", None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    w, u, b, c = (0.0 if p is None else p for p in found)
    return w, u, b, c, getattr(layer, f"weight_hr{suffix}", None)


def unrolled(layer, x, start=None, held=False):
    """What a recurrent layer returns: h of every step, and its last states.

    Args:
        x: [N, L, C], whatever the layer's batch_first.
        start: states [layers · directions, N, H], (h,) or (h, c); None: zeros.
        held: the twin for LRP-0.
    """
    kind, ways, last = kind_of(layer), 1 + layer.bidirectional, []
    for index in range(layer.num_layers):
        outputs = []
        for way in range(ways):
            own = parameters(layer, f"_l{index}" + "_reverse" * way)
            if start is None:
                widths = [own[1].shape[1]] + [layer.hidden_size] * (kind == "LSTM")
                state = tuple(x.new_zeros(len(x), width) for width in widths)
            else:
                state = tuple(s[len(last)] for s in start)
            hs = [None] * x.shape[1]
            for t in range(x.shape[1])[:: -1 if way else 1]:
                state = step(kind, x[:, t], state, *own, held=held)
                hs[t] = state[0]
            last.append(state)
            outputs.append(torch.stack(hs, 1))
        x = torch.cat(outputs, 2)
    return x, tuple(torch.stack(s) for s in zip(*last, strict=True))


class InLoops(nn.Module):
    """A layer of one direction as a loop over torch's cell, with the layer's weights."""

    def __init__(self, layer):
        super().__init__()
        self.kind, self.width = kind_of(layer), layer.hidden_size
        made = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}.get(self.kind, nn.RNNCell)
        options = {"nonlinearity": layer.nonlinearity} if made is nn.RNNCell else {}
        self.cell = made(layer.input_size, layer.hidden_size, layer.bias, **options)
        self.cell.load_state_dict({name.removesuffix("_l0"): v for name, v in layer.state_dict().items()})

    def forward(self, x):
        """[N, L, C] -> [N, L, H]."""
        state, outputs = None, []
        for row in x.unbind(1):
            state = self.cell(row, state)
            outputs.append(state[0] if self.kind == "LSTM" else state)
        return torch.stack(outputs, 1)

    def held(self, x):
        """The twin for LRP-0."""
        widths = [self.width] * (2 if self.kind == "LSTM" else 1)
        state, outputs = tuple(x.new_zeros(len(x), width) for width in widths), []
        for row in x.unbind(1):
            state = step(self.kind, row, state, *parameters(self.cell), held=True)
            outputs.append(state[0])
        return torch.stack(outputs, 1)
