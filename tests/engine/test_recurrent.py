"""Recurrent layers and cells in loops, against the same nets written out, autograd and LRP by hand."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lrp
from helpers.recurrent import FEATURES, Begun, InLoops, difference, gradient_times_input, sequences, unrolled
from lrp.engine.graph.capture import capture

PRESETS = ["gamma", "excitation_backprop"]
STEPS, HIDDEN, CLASSES = 3, 5, 4


class Net(Begun):
    """A recurrent layer over [N, L, C], and a linear layer of all that it returns."""

    def __init__(self, layer, start="none"):
        super().__init__(layer, start)
        width = self.widths[0] * (1 + layer.bidirectional)
        self.head = nn.Linear(STEPS * width + len(self.first0) * sum(self.widths), CLASSES)

    def all_of(self, outputs, states):
        return self.head(torch.cat([outputs.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], 1))

    def forward(self, x):
        first = self.layer.batch_first
        outputs, states = self.layer(x if first else x.transpose(0, 1), self.given(self.begin(x)))
        states = states if isinstance(states, tuple) else (states,)
        return self.all_of(outputs if first else outputs.transpose(0, 1), states)


class Unrolled(nn.Module):
    def __init__(self, net, held=False):
        super().__init__()
        self.net, self.held = net, held

    def forward(self, x):
        return self.net.all_of(*unrolled(self.net.layer, x, self.net.begin(x), self.held))


LAYERS = {
    "lstm": (nn.LSTM, {}),
    "lstm_all": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True}),
    "lstm_projected_no_bias": (nn.LSTM, {"proj_size": 3, "bias": False}),
    "lstm_from_a_constant": (nn.LSTM, {"proj_size": 2, "bidirectional": True, "start": "constant"}),
    "lstm_from_data": (nn.LSTM, {"proj_size": 2, "batch_first": True, "start": "data"}),
    "gru": (nn.GRU, {}),
    "gru_from_zeros": (nn.GRU, {"batch_first": True, "start": "zeros"}),
    "gru_all": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "gru_no_bias": (nn.GRU, {"bias": False, "batch_first": True, "bidirectional": True}),
    "gru_from_a_constant": (nn.GRU, {"num_layers": 2, "start": "constant"}),
    "gru_from_data": (nn.GRU, {"bidirectional": True, "batch_first": True, "start": "data"}),
    "rnn": (nn.RNN, {"batch_first": True}),
    "rnn_all": (nn.RNN, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
    "rnn_relu_all": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True, "batch_first": True}),
    "rnn_relu_from_data": (nn.RNN, {"nonlinearity": "relu", "bias": False, "start": "data"}),
}  # fmt: skip


@cache
def net(name):
    torch.manual_seed(sum(map(ord, name)))
    made, options = LAYERS[name]
    options = dict(options)
    start = options.pop("start", "none")
    return Net(made(FEATURES, HIDDEN, **options), start).double().eval()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_steps_written_out(name):
    """Under one preset; test_same_function has every preset, for fewer layers."""
    model, plain, x = net(name), Unrolled(net(name)).eval(), sequences(3, STEPS)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-12, atol=1e-12)
    explainer, of_plain = (lrp.Explainer(m, "gamma") for m in (model, plain))
    together = explainer(x, 1)
    assert together.relevance.abs().amax((0, 2)).min() > 0, "a step that gets nothing shows nothing"
    for n in (1, 2, 3):
        e = explainer(x[:n], 1)
        torch.testing.assert_close(e.logits, model(x[:n]).detach(), rtol=1e-12, atol=1e-12)
        assert difference(e.relevance, of_plain(x[:n], 1).relevance) <= 1e-9
        assert difference(e.relevance, together.relevance[:n]) <= 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_zero_is_gradient_times_input(name):
    """Of the layer itself where it is an RNN with ReLU; else of its twin, in which gates are constants."""
    model, x = net(name), sequences(3, STEPS)
    R = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    e = lrp.Explainer(model, lrp.preset("epsilon", epsilon=0.0))(x, R)
    twin = model if "relu" in name else Unrolled(model, held=True)
    assert difference(e.relevance, gradient_times_input(twin, x, R)) <= 1e-9
    assert e.health.ok, e.health.problems
    assert (e.ledger.totals["unexplained"].abs() <= 1e-9 * e.ledger.totals["largest"]).all()


# ---------------------------------------------------------------- by hand

EPSILON = 0.01


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def of_summand(part, whole, R):
    """LRP-ε: what one summand gets."""
    return part * R / (whole + EPSILON * np.where(whole >= 0, 1, -1))


def through(a, w, z, R):
    """LRP-ε through z = w a + b, neuron by neuron."""
    received = np.zeros(len(a))
    for k in range(len(z)):
        for j in range(len(a)):
            received[j] += of_summand(w[k, j] * a[j], z[k], R[k])
    return received


def gru_by_hand(xs, R_last, w, u, b, c):
    """Relevance of the steps of one sequence, from that of the last state."""
    n, h, kept = u.shape[1], np.zeros(u.shape[1]), []
    for x in xs:
        reads, remembered = w @ x + b, u @ h + c
        r, z = (sigmoid((reads + remembered)[k * n : (k + 1) * n]) for k in (0, 1))
        new = np.tanh(reads[2 * n :] + r * remembered[2 * n :])
        kept.append((x, h, reads, remembered, r, z, new))
        h = (1 - z) * new + z * h
    R_xs, R_h = [], R_last
    for x, h, reads, remembered, r, z, new in reversed(kept):
        whole = (1 - z) * new + z * h
        R_new, R_kept = (of_summand(part, whole, R_h) for part in ((1 - z) * new, z * h))
        read, gated = reads[2 * n :], r * remembered[2 * n :]
        R_reads = np.concatenate([np.zeros(2 * n), of_summand(read, read + gated, R_new)])
        R_gated = of_summand(gated, read + gated, R_new)
        R_h = R_kept
        if h.any():
            R_h = R_h + through(h, u[2 * n :], remembered[2 * n :], R_gated)
        else:  # the first step: r * c depends on x through r alone
            R_reads[:n] = of_summand(reads[:n], (reads + remembered)[:n], R_gated)
        R_xs.append(through(x, w, reads, R_reads))
    return np.stack(R_xs[::-1])


def projected_lstm_by_hand(xs, R_last, w, u, b, c, p):
    n, h, cell, kept = p.shape[1], np.zeros(p.shape[0]), np.zeros(p.shape[1]), []
    for x in xs:
        reads, remembered = w @ x + b, u @ h + c
        i, f, g, o = (reads + remembered).reshape(4, n)
        i, f, o, new = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
        before, cell = cell, f * cell + i * new
        shown = o * np.tanh(cell)
        kept.append((x, h, reads, remembered, f * before, i * new, shown))
        h = p @ shown
    R_xs, R_h, R_cell = [], R_last, np.zeros(n)
    for x, h, reads, remembered, old, new, shown in reversed(kept):
        R_cell = R_cell + through(shown, p, p @ shown, R_h)
        R_g, R_cell = (of_summand(part, old + new, R_cell) for part in (new, old))
        R = np.concatenate([np.zeros(2 * n), R_g, np.zeros(n)])
        R_reads, R_remembered = (of_summand(part, reads + remembered, R) for part in (reads, remembered))
        R_h = through(h, u, remembered, R_remembered)
        R_xs.append(through(x, w, reads, R_reads))
    return np.stack(R_xs[::-1])


class LastOutput(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


@pytest.mark.parametrize("kind", ["gru", "lstm_with_projection"])
def test_by_hand(kind):
    torch.manual_seed(3)
    if kind == "gru":
        layer, by_hand = nn.GRU(FEATURES, HIDDEN, batch_first=True), gru_by_hand
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    else:
        layer, by_hand = nn.LSTM(FEATURES, HIDDEN, proj_size=3, batch_first=True), projected_lstm_by_hand
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"]
    model, x = LastOutput(layer).double().eval(), sequences(2, STEPS)
    R = torch.randn(2, layer.proj_size or HIDDEN).double()
    e = lrp.Explainer(model, lrp.preset("epsilon", epsilon=EPSILON))(x, R)
    own = [getattr(layer, f"{name}_l0").detach().numpy() for name in names]
    for i in range(2):
        expected = torch.from_numpy(by_hand(x[i].numpy(), R[i].numpy(), *own))
        assert difference(e.relevance[i], expected) <= 1e-9
    assert (e.ledger.totals["epsilon"].abs() > 1e-3).all(), "ε is to show"


# ---------------------------------------------------------------- cells, convolutions in front


class Stem(nn.Module):
    """A convolution over the steps, then something recurrent, whose last output counts."""

    def __init__(self, inner):
        super().__init__()
        torch.manual_seed(8)
        self.conv, self.inner, self.head = (
            nn.Conv1d(FEATURES, FEATURES, 3, padding=1),
            inner,
            nn.Linear(HIDDEN, 4),
        )

    def forward(self, x):
        made = self.inner(self.conv(x.transpose(1, 2)).relu().transpose(1, 2))
        return self.head((made[0] if isinstance(made, tuple) else made)[:, -1])


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(
    "made", [nn.LSTM, nn.GRU, nn.RNN, lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)]
)
def test_a_layer_is_its_cell_in_a_loop(made, steps):
    """Also behind a convolution, whose rule the weights of a recurrent layer do not get."""
    torch.manual_seed(9)
    layer = made(FEATURES, HIDDEN, batch_first=True)
    first, second = (Stem(inner).double().eval() for inner in (layer, InLoops(layer)))
    x = sequences(3, steps)
    for preset in PRESETS:
        explainers = [lrp.Explainer(model, preset) for model in (first, second)]
        ours, theirs = (explainer(x, 1).relevance for explainer in explainers)
        assert difference(ours, theirs) <= 1e-9, preset
    rules = {(o.path, o.name): o.family for o in explainers[0].prepare(x).graph.operations.values()}
    assert rules["conv", "conv1d"] == "conv" and rules["inner", "linear"] == "linear"


class Looped(nn.Module):
    """As loops are often written: how many images there are is read as a number."""

    def __init__(self, layer):
        super().__init__()
        self.cell = InLoops(layer).cell

    def forward(self, x):
        h = torch.zeros(int(x.shape[0]), HIDDEN, dtype=x.dtype)
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
        return h


def test_a_loop_over_any_number_of_images():
    layer, x = nn.GRU(FEATURES, HIDDEN, batch_first=True), sequences(3, STEPS)
    expected = lrp.explain(LastOutput(layer).double().eval(), x, 1, "epsilon").relevance
    explainer = lrp.Explainer(Looped(layer).double().eval(), "epsilon")
    for n in (1, 2, 3):
        assert difference(explainer(x[:n], 1).relevance, expected[:n]) <= 1e-9
    assert explainer.prepare(x).captured.free_batch


def test_a_long_layer_is_one_operation_of_the_captured_graph():
    captured = capture(
        LastOutput(nn.GRU(FEATURES, HIDDEN, batch_first=True)).eval(), torch.randn(2, 300, FEATURES)
    )
    assert captured.free_batch and len(captured.graph.nodes) < 15


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_operation_is_torchs_layer(kind, batch_first):
    torch.manual_seed(4)
    made = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
    options = {"nonlinearity": kind.removeprefix("rnn_")} if made is nn.RNN else {}
    options |= {"proj_size": 2} if kind == "lstm" else {}
    layer = made(FEATURES, HIDDEN, 2, bidirectional=True, batch_first=batch_first, **options).double()
    x, lengths = sequences(3, STEPS), torch.tensor([2, 3, 1])
    x = x if batch_first else x.transpose(0, 1)
    begun = [torch.randn(4, 3, w).double() for w in ([2, HIDDEN] if kind == "lstm" else [HIDDEN])]
    start = tuple(begun) if kind == "lstm" else begun[0]
    fixed = (layer._flat_weights, True, 2, True, batch_first)
    operation = getattr(torch.ops.lrp, kind)
    with torch.no_grad():
        plain, states = layer(x, start)
        of_packed, last = layer(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False), start)
        padded, _ = pad_packed_sequence(of_packed, batch_first)
        for given, out, end in ((None, plain, states), (lengths, padded, last)):
            expected = [out, *(end if kind == "lstm" else [end])]
            made = operation(x, begun, *fixed, given)
            torch.testing.assert_close(list(made), expected, rtol=0, atol=0)
            torch.library.opcheck(
                operation, (x, begun, *fixed, given), test_utils=("test_schema", "test_faketensor")
            )


def test_images_as_steps_are_refused():
    model = LastOutput(nn.LSTM(FEATURES, HIDDEN)).eval()
    with pytest.raises(lrp.UnsupportedError) as error:
        lrp.explain(model, torch.randn(2, 4, FEATURES))
    assert str(error.value) == (
        "layer (lstm) takes the images of the batch for its steps: give it [steps, images, features], or make it with "
        "batch_first=True."
    )
