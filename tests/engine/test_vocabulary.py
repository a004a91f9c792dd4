"""Every operation of docs/rules.md beyond the plain convolutional net, against `oracle.py` and `oracle_data.py`.

First operation by operation (products, matmul, softmax, maxima), then attention, LSTM and
whole nets written out literally, then what must hold for any net: conservation, exact zeros, a hand-wired
detector, images one by one, linearity.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
from helpers import oracle, oracle_data
from helpers.checks import (
    TERMS,
    TOLERANCE,
    Alone,
    agrees,
    explain_alone,
    images,
    same,
    total,
)
from helpers.operations import Call, halves
from helpers.oracle_data import Trace, adaptive, held, over, sliding, winners

# ----------------------------------------------------------------------------------------------- products


def whole(x):
    return x


def corner(x):
    return x[:, :, :1, :1]


def channel(x):
    return x[:, :1]


# name: (function of two operands, which of them is the signal, how each is cut from its half of the image)
CHOICES = {
    "sigmoid": (lambda a, b: a * torch.sigmoid(b), 0),
    "sigmoid_left": (lambda a, b: torch.sigmoid(a) * b, 1),
    "hardsigmoid": (lambda a, b: a * F.hardsigmoid(b), 0),
    "softmax": (lambda a, b: a * b.softmax(1), 0),
    "sigmoid_moved": (lambda a, b: a * torch.sigmoid(b).flip(3).reshape(a.shape[0], -1).view_as(a), 0),
    "sigmoid_scaled": (lambda a, b: a * (2 * torch.sigmoid(b) - 0.5), 0),
    "sigmoid_left_scaled": (lambda a, b: (1 - torch.sigmoid(a) / 3) * b, 1),
    "sigmoid_pooled": (lambda a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True)), 0),
    "sigmoid_times_tanh": (lambda a, b: torch.sigmoid(a) * torch.tanh(b), 1),
    "tanh_times_sigmoid": (lambda a, b: torch.tanh(a) * torch.sigmoid(b), 0),
    "sigmoid_times_relu": (lambda a, b: torch.sigmoid(a) * F.relu(b), 1),
    "tanh": (lambda a, b: a * torch.tanh(b), 0),
    "tanh_left": (lambda a, b: torch.tanh(a) * b, 1),
    "erf": (lambda a, b: a * torch.erf(b), 0),
    "erf_shifted": (lambda a, b: a * (1 + torch.erf(b * 0.7)), 0),
    "tanh_times_clamp": (lambda a, b: torch.tanh(a) * b.clamp(-1, 1), 1),
    "clamp": (lambda a, b: a * b.clamp(0, 1), 0),
    "clamp_left": (lambda a, b: a.clamp(-0.5, 1) * b, 1),
    "hardtanh": (lambda a, b: a * F.hardtanh(b), 0),
    "relu6": (lambda a, b: a * F.relu6(b + 3), 0),
    "relu6_over_six": (lambda a, b: a * (F.relu6(b + 3) / 6), 0),
    "clamp_before_broadcast": (lambda a, b: a.clamp(0, 1) * b, 1, whole, corner),
    "broadcast": (lambda a, b: a * b, 0, whole, corner),
    "broadcast_left": (lambda a, b: a * b, 1, channel, whole),
    "broadcast_before_glu": (lambda a, b: F.silu(a) * b, 0, whole, corner),
    "two_sigmoids": (lambda a, b: torch.sigmoid(a) * torch.sigmoid(b), None),
    "two_sigmoids_one_broadcasts": (lambda a, b: torch.sigmoid(a) * torch.sigmoid(b), 0, whole, channel),
    "glu": (lambda a, b: F.glu(torch.cat([a, b], 1), 1), 0),
    "relu_glu": (lambda a, b: F.relu(a) * b, 1),
    "swiglu": (lambda a, b: F.silu(a) * b, 1),
    "swiglu_right": (lambda a, b: a * F.silu(b), 0),
    "geglu": (lambda a, b: F.gelu(a) * b, 1),
    "both_activated": (lambda a, b: F.silu(a) * F.gelu(b), None),
    "undecided": (lambda a, b: a * b, None),
    "undecided_moved": (
        lambda a, b: a * b,
        None,
        whole,
        lambda x: x.transpose(2, 3).reshape(x.shape).flip(1),
    ),
    "quotient": (lambda a, b: a / b, 0),
    "quotient_of_sigmoid": (lambda a, b: torch.sigmoid(a) / b, 0),
    "quotient_broadcast": (lambda a, b: a / b, 0, channel, whole),
    "quotient_by_norm": (lambda a, b: a / b.norm(dim=1, keepdim=True), 0),
}


def choice(name):
    function, signal, *cuts = CHOICES[name]
    first, second = cuts or (whole, whole)
    return function, signal, lambda x: first(halves(x)[0]), lambda x: second(halves(x)[1])


def all_to(signal, a, b, x, R, shape):
    """R [n] of one image, each operand's share exactly, summed back over what was broadcast."""
    relevance = np.zeros(x.numel())
    for k, move in enumerate((a, b)):
        share = 0.5 if signal is None else float(k == signal)
        came_from = oracle.dense(lambda u, move=move: move(u).expand(len(u), *shape), tuple(x.shape))
        relevance += share * came_from.T @ R
    return relevance


def explain_product(name, rule=None):
    torch.manual_seed(3)
    function, signal, a, b = choice(name)
    model = Alone(Call(function), lambda x: (a(x), b(x))).double().eval()
    x = torch.randn(2, 4, 2, 3).double()
    R = torch.randn_like(model(x))
    composite = lrp.Composite([] if rule is None else [(lrp.family("product"), rule)])
    explainer = lrp.Explainer(model, composite=composite, dtype=torch.float64)
    return explainer(x, target=R), signal, a, b, x, R, str(explainer.rules(x))


@pytest.mark.parametrize("name", CHOICES)
def test_signal_takes_all(name):
    e, signal, a, b, x, R, table = explain_product(name)
    shape = (2, 2, 3)
    for i in range(2):
        agrees(e.relevance[i].reshape(-1).numpy(), all_to(signal, a, b, x[i], R[i].numpy(), shape), name)
        for term in TERMS:
            assert total(e.ledger, term, i) == 0.0, term
    for k, half in enumerate(halves(e.relevance)):
        assert signal in (None, k) or (half == 0).all()
    gate = {None: "half each", 0: "gate: 2nd operand", 1: "gate: 1st operand"}[signal]
    assert ("the divisor is a constant" if name.startswith("quotient") else gate) in table
    assert e.health.ok, e.health.problems


# a broadcast operand that takes all gets its relevance summed back
OVERRIDES = ["sigmoid", "broadcast", "clamp_before_broadcast", "undecided", "swiglu", "tanh_times_sigmoid"]


@pytest.mark.parametrize("rule", [lrp.SignalTakesAll(0), lrp.SignalTakesAll(signal=1), lrp.Halves()], ids=str)
@pytest.mark.parametrize("name", OVERRIDES)
def test_signal_is_told(name, rule):
    e, _, a, b, x, R, _ = explain_product(name, rule)
    signal = rule.signal if isinstance(rule, lrp.SignalTakesAll) else None
    for i in range(2):
        expected = all_to(signal, a, b, x[i], R[i].numpy(), (2, 2, 3))
        agrees(e.relevance[i].reshape(-1).numpy(), expected, name)


PASSING_PRODUCTS = {
    "self": lambda x: x * x,
    "self_moved_alike": lambda x: x.flatten(1) * x.flatten(1),
    "silu": lambda x: x * torch.sigmoid(x),
    "swish_beta": lambda x: x * torch.sigmoid(1.5 * x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish_gate": lambda x: x * (F.relu6(x + 3) / 6),
    "gelu_gate": lambda x: x * (1 + torch.erf(x / 2**0.5)),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "constant_over": lambda x: torch.linspace(1, 2, x.shape[3], dtype=x.dtype) / x,
    "reciprocal": lambda x: x.reciprocal(),
    "softsign": lambda x: x / (1 + x.abs()),
    "normalize": lambda x: F.normalize(x, dim=1),
    "over_its_norm": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "over_its_sum": lambda x: x / x.abs().sum(1, keepdim=True),
    "rms_norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
}


@pytest.mark.parametrize("name", PASSING_PRODUCTS)
def test_product_passes(name):
    """The gate, or the divisor, is made from the image too, and gets nothing."""
    torch.manual_seed(4)
    model = Alone(Call(PASSING_PRODUCTS[name]))
    x = torch.randn(3, 4, 2, 3).double()
    R = torch.randn(3, 24).double()
    e = explain_alone(model, None, x, R)
    for i in range(3):
        agrees(e.relevance[i].reshape(-1).numpy(), R[i].numpy(), name)
        for term in TERMS:
            assert abs(total(e.ledger, term, i)) <= TOLERANCE


def tensor(value):
    return torch.from_numpy(value.array)


class SqueezeExcite(nn.Module):
    """The gate is computed by two convolutions, and none of it gets relevance."""

    def __init__(self, gate=torch.sigmoid):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 3)
        self.gate = gate

    def weights(self, y):
        return self.gate(self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True)))))

    def forward(self, x):
        y = F.relu(self.conv(x))
        return self.head((y * self.weights(y)).mean((2, 3)))

    def trace(self, t):
        y = t.act(F.relu, t.module(self.conv, t.image))
        gated = t.mul(y, self.weights(tensor(y)[None])[0], signal=0)
        return t.linear(
            t.mean(t.move(lambda a: a.reshape(4, -1), gated), 1), self.head.weight, self.head.bias
        )


class SelectiveKernel(nn.Module):
    """Two branches, weighted by a softmax over the branches."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=2, dilation=2)
        self.fc = nn.Linear(3, 6)

    def weights(self, y):
        return self.fc(y.sum(1).mean((2, 3))).reshape(-1, 2, 3, 1, 1).softmax(1)

    def forward(self, x):
        y = torch.stack([self.one(x), self.two(x)], 1)
        return (y * self.weights(y)).sum(1).flatten(1)

    def trace(self, t):
        y = t.join([t.module(self.one, t.image), t.module(self.two, t.image)], 0, np.stack)
        weights = self.weights(tensor(y)[None])[0]
        weighted = t.mul(y, weights, signal=0)
        ones, twos = (t.move(lambda a, k=k: a[k], weighted) for k in range(2))
        return t.add(ones, twos)


class LayerScale(nn.Module):
    """x + γ f(x)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gamma = nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x):
        return (x + self.gamma * F.gelu(self.conv(x))).flatten(1)

    def trace(self, t):
        y = t.act(F.gelu, t.module(self.conv, t.image))
        return t.add(t.image, t.scale(y, self.gamma))


class GatedLinear(nn.Module):
    """SwiGLU as in language models: silu(W x) · V x, then a linear; or another activation."""

    def __init__(self, activation=F.silu):
        super().__init__()
        self.w, self.v, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 4)
        self.activation = activation

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.out(self.activation(self.w(x)) * self.v(x)).flatten(1)

    def trace(self, t):
        x = t.move(lambda a: a.reshape(6, -1).T, t.image)
        gate = t.act(self.activation, t.linear(x, self.w.weight, self.w.bias))
        value = t.linear(x, self.v.weight, self.v.bias)
        return t.linear(t.mul(gate, value, signal=1), self.out.weight, self.out.bias)


class PackedGatedLinear(nn.Module):
    """The same with one linear for both, cut in two; F.glu's gate is the second half."""

    def __init__(self):
        super().__init__()
        self.both, self.out = nn.Linear(6, 10), nn.Linear(5, 4)

    def forward(self, x):
        return self.out(F.glu(self.both(x.flatten(2).transpose(1, 2)))).flatten(1)

    def trace(self, t):
        x = t.move(lambda a: a.reshape(6, -1).T, t.image)
        both = t.linear(x, self.both.weight, self.both.bias)
        value, gate = (t.move(lambda a, k=k: np.split(a, 2, -1)[k], both) for k in range(2))
        return t.linear(t.mul(value, t.act(torch.sigmoid, gate), signal=0), self.out.weight, self.out.bias)


class Handwritten(nn.Module):
    """What a compiler would have written as one function: its pieces, each by its own rule."""

    def __init__(self, name):
        super().__init__()
        self.conv, self.gamma, self.beta = (
            nn.Conv2d(2, 3, 2),
            nn.Parameter(torch.randn(3)),
            nn.Parameter(torch.randn(3)),
        )
        self.name = name

    def forward(self, x):
        return getattr(self, self.name)(self.conv(x), None).flatten(1)

    def trace(self, t):
        return getattr(self, self.name)(t.module(self.conv, t.image), t)

    def gelu(self, y, t):
        if t is None:
            return y * 0.5 * (1.0 + torch.erf(y / 2**0.5))
        return t.mul(t.scale(y, 0.5), 1 + torch.erf(tensor(y) / 2**0.5), signal=0)

    def gelu_half_last(self, y, t):
        if t is None:
            return 0.5 * (y * (1.0 + torch.erf(y * 0.5**0.5)))
        return t.scale(t.mul(y, 1 + torch.erf(tensor(y) * 0.5**0.5), signal=0), 0.5)

    def hardswish(self, y, t):
        if t is None:
            return y * F.relu6(y + 3.0) / 6.0
        return t.scale(t.mul(y, F.relu6(tensor(y) + 3), signal=0), 1 / 6)

    def rms_norm(self, y, t):
        """x / σ · γ: the scale is a constant, γ is one by nature."""
        if t is None:
            y = y.permute(0, 2, 3, 1)
            return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gamma
        y = t.move(lambda a: a.transpose(1, 2, 0), y)
        gate = 1 / np.sqrt((y.array**2).mean(-1, keepdims=True) + 1e-6)
        return t.scale(t.mul(y, gate, signal=0), self.gamma)

    def layer_norm(self, y, t):
        """(x − mean) / σ · γ + β: a mean, a difference, a quotient, a product and a sum."""
        if t is None:
            y = y.permute(0, 2, 3, 1)
            mean = y.mean(-1, keepdim=True)
            sigma = torch.sqrt((y - mean).pow(2).mean(-1, keepdim=True) + 1e-6)
            return (y - mean) / sigma * self.gamma + self.beta
        y = t.move(lambda a: a.transpose(1, 2, 0), y)
        centred = t.add(y, t.mean(y, 2, keepdims=True), sign=-1)
        gate = 1 / np.sqrt((centred.array**2).mean(-1, keepdims=True) + 1e-6)
        return t.scale_shift(t.mul(centred, gate, signal=0), self.gamma, self.beta)

    def number_over(self, y, t):
        """PyTorch's way to write it: y.reciprocal() * 1.5."""
        if t is None:
            return 1.5 / y
        return t.scale(t.act(torch.reciprocal, y), 1.5)

    def addcmul(self, y, t):
        if t is None:
            return torch.addcmul(y, y.flip(1), torch.sigmoid(y), value=2)
        product = t.mul(t.move(lambda a: a[::-1], y), torch.sigmoid(tensor(y)), signal=0)
        return t.add(y, product, sign=2)

    def addcdiv(self, y, t):
        if t is None:
            return torch.addcdiv(y, y.flip(1), y.abs() + 1, value=2)
        quotient = t.mul(t.move(lambda a: a[::-1], y), 1 / (tensor(y).abs() + 1), signal=0)
        return t.add(y, quotient, sign=2)

    def residual_gate(self, y, t):
        """Highway: g x + (1 − g) f(x)."""
        if t is None:
            g = torch.sigmoid(y[:, :1])
            return g * y[:, 1:] + (1 - g) * F.relu(y[:, :2])
        g = torch.sigmoid(tensor(y)[:1])
        kept, new = t.move(lambda a: a[1:], y), t.act(F.relu, t.move(lambda a: a[:2], y))
        return t.add(t.mul(kept, g, signal=0), t.mul(new, 1 - g, signal=0))


HANDWRITTEN = [
    "gelu", "gelu_half_last", "hardswish", "rms_norm", "layer_norm", "number_over", "addcmul", "addcdiv", "residual_gate",
]  # fmt: skip
NETS = {
    "squeeze_excite": (SqueezeExcite, 2),
    "squeeze_excite_hardsigmoid": (lambda: SqueezeExcite(F.hardsigmoid), 2),
    "squeeze_excite_relu": (lambda: SqueezeExcite(F.relu), 2),  # told by its broadcasting alone
    "selective_kernel": (SelectiveKernel, 2),
    "layer_scale": (LayerScale, 3),
    "swiglu": (GatedLinear, 6),
    "geglu": (lambda: GatedLinear(F.gelu), 6),
    "reglu": (lambda: GatedLinear(F.relu), 6),
    "glu": (PackedGatedLinear, 6),
} | {f"handwritten_{name}": ((lambda name=name: Handwritten(name)), 2) for name in HANDWRITTEN}


@pytest.mark.parametrize("name", NETS)
def test_net_with_products(name):
    torch.manual_seed(5)
    make, channels = NETS[name]
    check_net(make(), torch.randn(2, channels, 3, 4).double())


def check_net(model, x, trace_of=Trace, composite=None, **options):
    """A net that knows how to write itself out with a `Trace`."""
    model = model.double().eval()
    with torch.no_grad():
        logits = model(x)
    R = torch.randn_like(logits)
    composite = composite or lrp.Composite([], **options)
    e = lrp.Explainer(model, composite=composite, dtype=torch.float64)(x, target=R)
    for i in range(len(x)):
        t = trace_of(x[i])
        with torch.no_grad():
            out = model.trace(t)
        agrees(out.array.reshape(-1), logits[i].numpy(), "logits")
        expected = t.explain(out, R[i])
        same(e, i, expected, R[i], t.largest())
    assert e.health.ok, e.health.problems
    return e


# ---------------------------------------------------------------------------------- matmul of data with data


def first(x):
    return x[:, :2]


def second(x):
    return x[:, 2:]


# x is [N, 4, 3, 5]; name: (function of two operands, how each is moved out of x)
MATMULS = {
    "scores": (torch.matmul, first, lambda x: second(x).transpose(2, 3)),
    "values": (lambda a, b: a.transpose(-1, -2) @ b, first, second),
    "bmm": (torch.bmm, lambda x: first(x).flatten(1, 2), lambda x: second(x).flatten(1, 2).mT),
    "one_head_for_all": (torch.matmul, first, lambda x: x[:, 2:3].transpose(2, 3)),
    "one_query": (torch.matmul, lambda x: x[:, :2, :1], lambda x: second(x).transpose(2, 3)),
    "matrix_vector": (lambda a, b: (a @ b.unsqueeze(-1)).squeeze(-1), first, lambda x: x[:, 2:, 0]),
    "gram": (torch.matmul, lambda x: x.flatten(2), lambda x: x.flatten(2).mT),
    "einsum_tokens": (lambda a, b: torch.einsum("nqc,nkc->nqk", a, b), lambda x: x[:, 0], lambda x: x[:, 3]),
    "einsum_heads": (lambda a, b: torch.einsum("nhqc,nhkc->nhqk", a, b), first, second),
    "einsum_dots": (lambda a, b: torch.einsum("...qc,...kc->...qk", a, b), first, second),
    "einsum_reordered": (lambda a, b: torch.einsum("nhqc,nhkc->nkhq", a, b), first, second),
    "einsum_axis_kept": (lambda a, b: torch.einsum("nhqc,nkc->nhqk", a, b), first, lambda x: x[:, 3]),
    "einsum_tokens_first": (
        lambda a, b: torch.einsum("qnc,knc->nqk", a, b),
        lambda x: x[:, 0].transpose(0, 1),
        lambda x: x[:, 1].transpose(0, 1),
    ),
    "einsum_two_axes": (lambda a, b: torch.einsum("nhqc,nkqc->nhk", a, b), first, second),
}


# (whole numbers, ε): on whole numbers many outputs are exactly 0; None: the default, unnamed
MATMUL_IMAGES = [(False, None), (False, 0.25), (True, 0.0)]


def explain_matmul(name, rule, exact=False, soften=lambda x: x):
    torch.manual_seed(6)
    function, a, b = MATMULS[name]
    model = Alone(Call(lambda a, b: function(soften(a), b)), lambda x: (a(x), b(x)))
    x = images((4, 3, 5), whole=exact)
    R = torch.randn_like(model(x))
    e = explain_alone(model, rule, x, R, lrp.family("matmul"))
    assert e.health.ok, e.health.problems
    return e, function, a, b, x, R


@pytest.mark.parametrize(("exact", "eps"), MATMUL_IMAGES, ids=str)
@pytest.mark.parametrize("name", MATMULS)
def test_halves(name, exact, eps):
    """Each operand hands on half of R by its Epsilon share; where the output is 0, R is dropped."""
    e, function, a, b, x, R = explain_matmul(name, None if eps is None else lrp.Halves(epsilon=eps), exact)
    for i in range(len(x)):
        matrices = held(function, a, b, x[i])
        expected = oracle_data.shared_between(matrices, (0.5, 0.5), x[i], R[i], 1e-6 if eps is None else eps)
        same(e, i, expected, R[i])


@pytest.mark.parametrize(("exact", "eps"), MATMUL_IMAGES, ids=str)
@pytest.mark.parametrize("name", ["scores", "bmm", "one_head_for_all", "one_query", "einsum_heads"])
def test_values(name, exact, eps):
    """The operand that comes from a softmax is a constant: the other gets all."""
    rule = None if eps is None else lrp.Values(epsilon=eps)
    e, function, a, b, x, R = explain_matmul(name, rule, exact, lambda a: a.softmax(-1))
    for i in range(len(x)):
        _, for_values = held(function, lambda x: a(x).softmax(-1), b, x[i])
        expected = oracle.distribute(oracle.epsilon(1e-6 if eps is None else eps), for_values, x[i], R[i])
        same(e, i, expected, R[i])


# ------------------------------------------------------------------------------------------------ softmax

SOFTMAXES = {
    "last": (lambda x: x.softmax(-1), -1, None),
    "channels": (lambda x: F.softmax(x, dim=1), 0, None),
    "rows": (lambda x: torch.softmax(x, 2), 1, None),
    "with_a_mask": (lambda x: (x + causal(x.shape[-1])).softmax(-1), -1, lambda n: causal(n)),
    "masked_fill": (
        lambda x: x.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf).softmax(-1), -1, "filled"
    ),
}  # fmt: skip


def causal(n):
    return torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)


@pytest.mark.parametrize("rule", [None, lrp.Constant(), lrp.SoftmaxTaylor(), "attnlrp"], ids=str)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax(name, rule):
    """Constant: all of it under bias. Taylor: x_i (R_i − p_i ΣR), 0 where x_i = −inf; its rest under bias."""
    torch.manual_seed(7)
    function, axis, mask = SOFTMAXES[name]
    x, R = torch.randn(3, 2, 3, 3).double(), torch.randn(3, 18).double()
    composite = lrp.Composite([], attention="attnlrp") if rule == "attnlrp" else None
    composite = composite or lrp.Composite([] if rule is None else [(lrp.family("softmax"), rule)])
    model = Alone(Call(function)).double().eval()
    e = lrp.Explainer(model, composite=composite, dtype=torch.float64)(x, target=R)
    taylor = not isinstance(rule, lrp.Constant)  # without a rule of its own: nothing else reaches the image
    for i in range(3):
        t = Trace(x[i], attention="attnlrp" if taylor else "cp_lrp")
        scores = t.image
        if mask == "filled":
            hidden = np.isinf(causal(3).numpy())
            scores = t.step(np.where(hidden, -np.inf, x[i].numpy()), lambda R, t=t: t.give(t.image, R))
        elif mask is not None:
            scores = t.add(scores, mask(3))
        same(e, i, t.explain(t.softmax(scores, axis), R[i]), R[i])
    if not taylor:
        assert (e.relevance == 0).all()
    assert e.health.ok, e.health.problems


# ---------------------------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """scaled_dot_product_attention on queries, keys and values that are cut from the image's channels."""

    def __init__(self, heads=(2, 2), mask=None, added=None, queries=slice(None), **options):
        super().__init__()
        self.heads, self.queries, self.options = heads, queries, options
        self.added = added  # the mask as it is added to the scores
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        q, k, v = x.split([self.heads[0], self.heads[1], self.heads[1]], dim=1)
        q = q[:, :, self.queries]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **self.options).flatten(1)

    def trace(self, t):
        q_heads, k_heads = self.heads
        q = t.move(lambda a: a[:q_heads, self.queries], t.image)
        repeats = q_heads // k_heads
        k = t.move(lambda a: a[q_heads : q_heads + k_heads].repeat(repeats, 0), t.image)
        v = t.move(lambda a: a[q_heads + k_heads :].repeat(repeats, 0), t.image)
        return t.attend(q, k, v, self.options.get("scale", q.array.shape[-1] ** -0.5), self.added)


def visible():
    seen = torch.ones(3, 3).tril().bool()
    seen[0, 2] = True
    return seen


def as_added(seen):
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)


FLOAT_MASK = (torch.arange(9.0).reshape(3, 3) - 4) / 3
ATTENTIONS = {
    "plain": lambda: Attention(),
    "scale": lambda: Attention(scale=0.3),
    "causal": lambda: Attention(is_causal=True, added=causal(3)),
    "bool_mask": lambda: Attention(mask=visible(), added=as_added(visible())),
    "bool_mask_per_head": lambda: Attention(
        mask=torch.stack([visible(), visible().T])[None],
        added=as_added(torch.stack([visible(), visible().T])),
    ),
    "float_mask": lambda: Attention(mask=FLOAT_MASK, added=FLOAT_MASK),
    "float_mask_with_inf": lambda: Attention(
        mask=FLOAT_MASK + as_added(visible()), added=FLOAT_MASK + as_added(visible())
    ),
    "mask_and_scale": lambda: Attention(mask=FLOAT_MASK, added=FLOAT_MASK, scale=1.7),
    "grouped_queries": lambda: Attention(heads=(4, 2), enable_gqa=True),
    "one_query": lambda: Attention(queries=slice(0, 1)),
    "dropout_in_eval": lambda: Attention(dropout_p=0.0),
}
ATTENTION_RULES = ("cp_lrp", "attnlrp")


def check_attention(model, x, rule):
    """Under `Composite([])`, and with `attention="attnlrp"`."""
    options = {} if rule == "cp_lrp" else {"attention": "attnlrp"}
    return check_net(model, x, lambda image: Trace(image, attention=rule), **options)


@pytest.mark.parametrize("rule", ATTENTION_RULES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_scaled_dot_product_attention(name, rule):
    torch.manual_seed(8)
    model = ATTENTIONS[name]()
    channels = model.heads[0] + 2 * model.heads[1]
    e = check_attention(model, torch.randn(2, channels, 3, 4).double(), rule)
    queries_and_keys = e.relevance[:, : -model.heads[1]]
    assert (queries_and_keys == 0).all() == (rule == "cp_lrp")


class SelfAttention(nn.Module):
    """One linear for q, k and v, heads, softmax, one linear: as timm, torchvision and others write it."""

    def __init__(self, width=6, heads=2, style="fused"):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.style = heads, style

    def forward(self, x):
        N, L, C = x.shape
        if self.style == "einsum":
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            q, k, v = (p.view(N, L, self.heads, -1) for p in (q, k, v))
            p = (torch.einsum("nqhd,nkhd->nhqk", q, k) * (C // self.heads) ** -0.5).softmax(-1)
            return self.proj(torch.einsum("nhqk,nkhd->nqhd", p, v).reshape(N, L, C))
        q, k, v = self.qkv(x).reshape(N, L, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.style == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.style == "divided":
            y = (q @ k.transpose(-2, -1) / (C // self.heads) ** 0.5).softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(N, L, C))

    def trace(self, t, x):
        return t.linear(
            self.mixed(t, t.linear(x, self.qkv.weight, self.qkv.bias)), self.proj.weight, self.proj.bias
        )

    def mixed(self, t, qkv):
        L, C = qkv.array.shape[0], self.proj.in_features
        q, k, v = (
            t.move(lambda a, i=i: a.reshape(L, 3, self.heads, -1)[:, i].transpose(1, 0, 2), qkv)
            for i in range(3)
        )
        y = t.attend(q, k, v, (C // self.heads) ** -0.5)
        return t.move(lambda a: a.transpose(1, 0, 2).reshape(L, C), y)


class MultiHead(nn.Module):
    """nn.MultiheadAttention with one input for all; `first`: tokens first, images second."""

    def __init__(self, width=6, heads=2, weights=False, batch_first=True):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.weights, self.batch_first = weights, batch_first
        with torch.no_grad():
            self.attn.in_proj_bias.normal_()
            self.attn.out_proj.bias.normal_()

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.attn(x, x, x, need_weights=self.weights)[0]
        return y if self.batch_first else y.transpose(0, 1)

    def trace(self, t, x):
        attn = self.attn
        qkv = t.linear(x, attn.in_proj_weight, attn.in_proj_bias)
        L, C = x.array.shape
        heads, d = attn.num_heads, C // attn.num_heads
        q, k, v = (
            t.move(lambda a, i=i: a[:, i * C : (i + 1) * C].reshape(L, heads, d).transpose(1, 0, 2), qkv)
            for i in range(3)
        )
        scale = d**-0.5
        y = t.attend(q, k, v, scale)  # with the weights PyTorch scales the queries: the same function
        y = t.move(lambda a: a.transpose(1, 0, 2).reshape(L, C), y)
        return t.linear(y, attn.out_proj.weight, attn.out_proj.bias)


class OnTokens(nn.Module):
    """An image [N, C, H, W] as tokens [N, H·W, C]."""

    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(x.flatten(2).transpose(1, 2)).flatten(1)

    def trace(self, t):
        return self.op.trace(t, t.move(lambda a: a.reshape(len(a), -1).T, t.image))


class Block(nn.Module):
    """Pre-norm, attention, pre-norm, two linears; each on a branch of its own."""

    def __init__(self, width=6, hidden=8, bias=True, attn=None, activation=F.gelu):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn = attn or SelfAttention(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))

    def trace(self, t, x):
        x = t.add(x, self.attn.trace(t, t.layer_norm(x, self.norm1)))
        y = t.linear(t.layer_norm(x, self.norm2), self.fc1.weight, self.fc1.bias)
        return t.add(x, t.linear(t.act(self.activation, y), self.fc2.weight, self.fc2.bias))


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer, norm first or last."""

    def __init__(self, norm_first, batch_first=True):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            6, 2, 8, activation="gelu", norm_first=norm_first, batch_first=batch_first
        )
        self.batch_first = batch_first

    def forward(self, x):
        if self.batch_first:
            return self.layer(x)
        return self.layer(x.transpose(0, 1)).transpose(0, 1)

    def trace(self, t, x):
        layer, attn = self.layer, MultiHead()
        attn.attn = self.layer.self_attn

        def feed_forward(x):
            y = t.act(F.gelu, t.linear(x, layer.linear1.weight, layer.linear1.bias))
            return t.linear(y, layer.linear2.weight, layer.linear2.bias)

        if layer.norm_first:
            x = t.add(x, attn.trace(t, t.layer_norm(x, layer.norm1)))
            return t.add(x, feed_forward(t.layer_norm(x, layer.norm2)))
        x = t.layer_norm(t.add(x, attn.trace(t, x)), layer.norm1)
        return t.layer_norm(t.add(x, feed_forward(x)), layer.norm2)


class SwinBlock(nn.Module):
    """Shifted windows: [N · windows, tokens, width] on the way, a position table, a mask between regions."""

    def __init__(self, width=4, heads=2, window=2, side=4):
        super().__init__()
        self.norm, self.attn, self.heads, self.window = (
            nn.LayerNorm(width),
            SelfAttention(width, heads),
            heads,
            window,
        )
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        where = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        ).flatten(1)
        between = (where[:, :, None] - where[:, None, :] + window - 1) * torch.tensor([2 * window - 1, 1])[
            :, None, None
        ]
        self.register_buffer("index", between.sum(0))
        edge = torch.arange(side).ge(side - window).long() + torch.arange(side).ge(side - 1)
        regions = self.partition((edge[:, None] * 3 + edge)[None, :, :, None]).squeeze(-1)
        self.register_buffer("mask", as_added(regions[:, :, None] == regions[:, None, :]).clamp(min=-100.0))

    def partition(self, x):
        N, H, W, C = x.shape
        x = x.view(N, H // self.window, self.window, W // self.window, self.window, C)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, C)

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        N, H, W, C = x.shape
        windows = self.partition(torch.roll(self.norm(x), (-1, -1), (1, 2)))
        B, L, _ = windows.shape
        qkv = self.attn.qkv(windows).reshape(B, L, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(L, L, -1).permute(2, 0, 1).unsqueeze(0)
        scores = scores.view(N, -1, self.heads, L, L) + self.mask.unsqueeze(1).unsqueeze(0)
        p = scores.view(-1, self.heads, L, L).softmax(-1)
        y = self.attn.proj((p @ v).transpose(1, 2).reshape(B, L, C))
        y = y.view(N, H // self.window, W // self.window, self.window, self.window, C)
        y = torch.roll(y.permute(0, 1, 3, 2, 4, 5).reshape(N, H, W, C), (1, 1), (1, 2))
        return (x + y).flatten(1)

    def trace(self, t):
        M = self.window
        x = t.move(lambda a: a.transpose(1, 2, 0), t.image)
        H, W, C = x.array.shape

        def partition(a):
            a = np.roll(a, (-1, -1), (0, 1)).reshape(H // M, M, W // M, M, C)
            return a.transpose(0, 2, 1, 3, 4).reshape(-1, M * M, C)

        def together(a):
            a = a.reshape(H // M, W // M, M, M, C).transpose(0, 2, 1, 3, 4).reshape(H, W, C)
            return np.roll(a, (1, 1), (0, 1))

        windows = t.move(partition, t.layer_norm(x, self.norm))
        qkv = t.linear(windows, self.attn.qkv.weight, self.attn.qkv.bias)
        B, L, _ = qkv.array.shape
        q, k, v = (
            t.move(lambda a, i=i: a.reshape(B, L, 3, self.heads, -1)[:, :, i].transpose(0, 2, 1, 3), qkv)
            for i in range(3)
        )
        scores = t.matmul(q, t.move(lambda a: a.swapaxes(-1, -2), k))
        scores = t.scale(scores, (C // self.heads) ** -0.5)  # of the queries, in the model: the same function
        table = self.table.detach().numpy()[self.index.numpy()].transpose(2, 0, 1)
        scores = t.add(t.add(scores, np.broadcast_to(table, scores.array.shape)), self.mask[:, None])
        y = t.matmul(t.softmax(scores), v, (0.0, 1.0) if t.attention == "cp_lrp" else (0.5, 0.5))
        y = t.move(lambda a: a.transpose(0, 2, 1, 3).reshape(B, L, C), y)
        return t.add(x, t.move(together, t.linear(y, self.attn.proj.weight, self.attn.proj.bias)))


BLOCKS = {
    "fused": lambda: OnTokens(SelfAttention()),
    "divided": lambda: OnTokens(SelfAttention(style="divided")),
    "einsum": lambda: OnTokens(SelfAttention(style="einsum")),
    "multihead": lambda: OnTokens(MultiHead()),
    "multihead_weights": lambda: OnTokens(MultiHead(weights=True)),
    "multihead_tokens_first": lambda: OnTokens(MultiHead(batch_first=False)),
    "multihead_tokens_first_weights": lambda: OnTokens(MultiHead(batch_first=False, weights=True)),
    "block": lambda: OnTokens(Block()),
    "block_multihead": lambda: OnTokens(Block(attn=MultiHead())),
    "two_blocks": lambda: OnTokens(Both(Block(), Block())),
    "encoder_layer": lambda: OnTokens(EncoderLayer(norm_first=False)),
    "encoder_layer_norm_first": lambda: OnTokens(EncoderLayer(norm_first=True)),
    "encoder_layer_tokens_first": lambda: OnTokens(EncoderLayer(norm_first=True, batch_first=False)),
}


class Both(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def trace(self, t, x):
        for part in self.parts:
            x = part.trace(t, x)
        return x


@pytest.mark.parametrize("rule", ATTENTION_RULES)
@pytest.mark.parametrize("name", BLOCKS)
def test_attention_block(name, rule):
    torch.manual_seed(9)
    check_attention(BLOCKS[name](), torch.randn(2, 6, 2, 2).double(), rule)


@pytest.mark.parametrize("rule", ATTENTION_RULES)
def test_shifted_windows(rule):
    torch.manual_seed(10)
    check_attention(SwinBlock(), torch.randn(2, 4, 4, 4).double(), rule)


class ViT(nn.Module):
    """Patches, a class token, positions, blocks, a norm, a linear on the class token (or on the mean)."""

    def __init__(self, bias=True, constants=True, depth=2, size=(4, 6), width=6, classes=5):
        super().__init__()
        tokens = size[0] * size[1] // 4
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.constants = constants
        if constants:
            self.token = nn.Parameter(torch.randn(1, 1, width))
            self.positions = nn.Parameter(torch.randn(1, tokens + 1, width))
        self.blocks = Both(*[Block(width, bias=bias) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, bias=bias), nn.Linear(width, classes)
        if not bias:
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.bias = None

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.constants:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if self.constants else x.mean(1))

    def trace(self, t):
        x = t.module(self.patches, t.image)
        x = t.move(lambda a: a.reshape(len(a), -1).T, x)
        if self.constants:
            x = t.add(t.join([self.token[0].detach().numpy(), x], 0), self.positions[0])
        x = t.layer_norm(self.blocks.trace(t, x), self.norm)
        x = t.move(lambda a: a[0], x) if self.constants else t.mean(x, 0)
        return t.linear(x, self.head.weight, self.head.bias)


VIT_COMPOSITES = {
    "cp_lrp": ("cp_lrp", {"conv": oracle.gamma(0.25), "linear": oracle.gamma(0.05)}),
    "attnlrp": ("attnlrp", {"conv": oracle.gamma(0.25), "linear": oracle.gamma(0.05)}),
    "epsilon": ("cp_lrp", {}),
    "epsilon_plus": ("cp_lrp", {"conv": oracle.z_plus()}),
    "excitation_backprop": ("cp_lrp", {"conv": oracle.z_plus(), "linear": oracle.z_plus()}),
    "epsilon_alpha2_beta1_flat": ("cp_lrp", {"conv": oracle.flat()}),
}


WITHOUT_CONSTANTS = ("cp_lrp", "attnlrp")


@pytest.mark.parametrize(
    ("preset", "constants"), [(p, True) for p in VIT_COMPOSITES] + [(p, False) for p in WITHOUT_CONSTANTS]
)
def test_vision_transformer_by_preset(preset, constants):
    torch.manual_seed(11)
    attention, rules = VIT_COMPOSITES[preset]
    check_net(
        ViT(constants=constants),
        torch.randn(2, 3, 4, 6).double(),
        lambda image: Trace(image, attention=attention, **rules),
        lrp.preset(preset),
    )


@pytest.mark.parametrize("part", ["expanded", "repeated"])
def test_class_token_is_a_constant(part):
    """What reaches it is booked under bias; so is a position's share of its sum."""
    torch.manual_seed(12)
    token, positions = torch.randn(1, 1, 3), torch.randn(1, 5, 3)

    def embed(x, token, positions):
        x = x.flatten(2).transpose(1, 2)
        n = x.shape[0]
        token = token.expand(n, -1, -1) if part == "expanded" else token.repeat(n, 1, 1)
        return torch.cat([token, x], 1) + positions

    model = Alone(Call(embed, token=token, positions=positions))
    x, R = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 15).double()
    e = explain_alone(model, None, x, R)
    for i in range(2):
        t = Trace(x[i])
        tokens = t.move(lambda a: a.reshape(3, 4).T, t.image)
        same(e, i, t.explain(t.add(t.join([token[0].numpy(), tokens], 0), positions[0]), R[i]), R[i])


# ------------------------------------------------------------------------------------------------- maxima

# name: (function, [C, H, W], the flat indices that compete for each output)
MAXIMA = {
    "max_channels": (lambda x: x.max(1).values, (3, 2, 4), lambda s: over(s, (0,))),
    "max_last": (lambda x: x.max(-1, keepdim=True)[0], (3, 2, 4), lambda s: over(s, (2,))),
    "max_tokens": (lambda x: torch.max(x.flatten(2), 2)[0], (3, 2, 4), lambda s: over(s, (1, 2))),
    "amax_positions": (lambda x: x.amax((2, 3)), (3, 2, 4), lambda s: over(s, (1, 2))),
    "amax_keepdim": (lambda x: torch.amax(x, 1, keepdim=True), (3, 2, 4), lambda s: over(s, (0,))),
    "amax_apart": (lambda x: x.amax((1, 3)), (3, 2, 4), lambda s: over(s, (0, 2))),
    "adaptive_2d": (lambda x: F.adaptive_max_pool2d(x, (2, 3)), (2, 4, 6), lambda s: adaptive(s, (2, 3))),
    "adaptive_2d_uneven": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (2, 5, 3), lambda s: adaptive(s, (3, 2))),
    "adaptive_2d_global": (lambda x: F.adaptive_max_pool2d(x, 1), (2, 3, 3), lambda s: adaptive(s, (1, 1))),
    "adaptive_2d_upwards": (lambda x: F.adaptive_max_pool2d(x, 4), (2, 2, 3), lambda s: adaptive(s, (4, 4))),
    "max_pool1d": (lambda x: F.max_pool1d(x.flatten(2), 2), (2, 1, 7), lambda s: pooled_1d(s, 2, 2, 0, 1, 3)),
    "max_pool1d_overlap": (
        lambda x: F.max_pool1d(x.flatten(2), 3, 2, padding=1), (2, 1, 7), lambda s: pooled_1d(s, 3, 2, 1, 1, 4)
    ),
    "max_pool1d_dilated": (
        lambda x: F.max_pool1d(x.flatten(2), 3, 1, dilation=2), (2, 1, 7), lambda s: pooled_1d(s, 3, 1, 0, 2, 3)
    ),
}  # fmt: skip


def pooled_1d(shape, *window):
    return [[c * shape[2] + j for j in js] for c in range(shape[0]) for js in sliding(shape[2], *window)]


@pytest.mark.parametrize("values", ["real", "ties", "relu"])
@pytest.mark.parametrize("name", MAXIMA)
def test_maximum(name, values):
    """The winner takes all, and the first of equals."""
    torch.manual_seed(13)
    function, shape, groups = MAXIMA[name]
    x = images(shape, whole=values == "ties")
    x = x.relu() if values == "relu" else x
    R = torch.randn_like(function(x).flatten(1))
    e = explain_alone(Alone(Call(function)), None, x, R)
    for i in range(len(x)):
        agrees(e.relevance[i].reshape(-1).numpy(), winners(groups(shape), x[i], R[i]), f"image {i}")
    assert max(abs(total(e.ledger, term)) for term in TERMS) <= 1e-12


# --------------------------------------------------------------------------------------------------- LSTM


class Recurrent(nn.Module):
    """The rows of the image one after another; all steps' outputs, or the last states of both directions."""

    def __init__(self, layers=1, both_ways=False, bias=True, batch_first=True, zeros=False, last=False):
        super().__init__()
        self.lstm = nn.LSTM(
            4,
            3,
            layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=both_ways,
            dropout=0.5 * (layers > 1),
        )
        self.layers, self.ways, self.zeros, self.last = layers, 1 + both_ways, zeros, last

    def forward(self, x):
        x = x.squeeze(1)
        states = None
        if self.zeros:
            states = 2 * (torch.zeros(self.layers * self.ways, x.shape[0], 3, dtype=x.dtype),)
        if not self.lstm.batch_first:
            x = x.transpose(0, 1)
        out, (h, c) = self.lstm(x, states)
        if self.last:
            return torch.cat([h, c], 2).transpose(0, 1).flatten(1)
        return (out if self.lstm.batch_first else out.transpose(0, 1)).flatten(1)

    def trace(self, t):
        rows = [t.move(lambda a, k=k: a[0, k], t.image) for k in range(t.image.array.shape[1])]
        last = []
        for layer in range(self.layers):
            ways = []
            for way in range(self.ways):
                suffix = f"_l{layer}" + "_reverse" * way
                weights = [getattr(self.lstm, f"weight_{name}{suffix}") for name in ("ih", "hh")]
                biases = [getattr(self.lstm, f"bias_{name}{suffix}", None) for name in ("ih", "hh")]
                states = t.lstm(rows[:: -1 if way else 1], *weights, *biases)
                last.append(t.join(states[-1], 0))
                ways.append([h for h, _ in states][:: -1 if way else 1])
            rows = [t.join(at_one_step, 0) for at_one_step in zip(*ways, strict=True)]
        return t.join(last if self.last else rows, 0)


RECURRENT = {
    "one_layer": {},
    "batch_second": {"batch_first": False},
    "no_bias": {"bias": False},
    "given_zeros": {"zeros": True},
    "both_ways": {"both_ways": True},
    "both_ways_batch_second": {"both_ways": True, "batch_first": False},
    "two_layers": {"layers": 2},
    "two_layers_both_ways": {"layers": 2, "both_ways": True},
    "last_states": {"last": True, "layers": 2, "both_ways": True},
}


@pytest.mark.parametrize("name", RECURRENT)
def test_lstm(name):
    torch.manual_seed(16)
    check_net(Recurrent(**RECURRENT[name]), torch.randn(2, 1, 3, 4).double())


# ---------------------------------------------------------------------------------- what holds for any net


@pytest.mark.parametrize("constants", [False, True], ids=["mean", "class_token"])
def test_a_transformer_without_biases_conserves(constants):
    """CP-LRP with ε = 0: all of the logit reaches the image, or what is added to it: the token, the positions."""
    torch.manual_seed(17)
    model = ViT(bias=False, constants=constants, width=8).double().eval()
    x, R = torch.randn(3, 3, 4, 6).double(), torch.randn(3, 5).double()
    e = lrp.Explainer(model, composite=lrp.preset("cp_lrp", epsilon=0.0), dtype=torch.float64)(x, target=R)
    start, reached, bias = R.sum(1), e.relevance.sum((1, 2, 3)), torch.as_tensor(e.ledger.totals["bias"])
    largest = torch.as_tensor(e.ledger.totals["largest"])
    assert (reached.abs() > 1e-3 * start.abs()).all()
    assert ((start - reached - bias).abs() <= 1e-9 * largest).all()
    for term in ("epsilon", "dropped"):
        assert (torch.as_tensor(e.ledger.totals[term]) == 0).all()
    if not constants:
        assert (bias.abs() <= 1e-12 * largest).all()
    assert e.health.ok, e.health.problems


class Quarter(nn.Module):
    """A net that sees the upper left quarter of the image alone: cut from the image, or from its features."""

    def __init__(self, net, cut="image"):
        super().__init__()
        self.net, self.cut = net, cut

    def forward(self, x):
        if self.cut == "image":
            return self.net(x[:, :, :4, :6])
        return self.net.head(self.net.norm(self.net.blocks(self.patches_kept(x))).mean(1))

    def patches_kept(self, x):
        return self.net.patches(x)[:, :, :2, :3].flatten(2).transpose(1, 2)


def small_convolutional_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


QUARTERS = {
    "convolutions": lambda: Quarter(small_convolutional_net()),
    "transformer": lambda: Quarter(ViT()),
    "transformer_tokens": lambda: Quarter(ViT(constants=False), cut="tokens"),
    "lstm": lambda: Quarter(RowsThenLstm(18)),
}
PRESETS = ["epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "attnlrp"]


class RowsThenLstm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lstm, self.head = nn.LSTM(width, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1])


def by_preset(name):
    return lrp.preset(name, low=-3.0, high=3.0) if name.endswith("box") else lrp.preset(name)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", QUARTERS)
def test_what_is_not_seen_gets_nothing(name, preset):
    torch.manual_seed(18)
    model = QUARTERS[name]().double().eval()
    x = torch.randn(2, 3, 8, 12).double()
    e = lrp.Explainer(model, composite=by_preset(preset), dtype=torch.float64)(x, target="predicted")
    seen = torch.zeros(8, 12, dtype=torch.bool)
    seen[:4, :6] = True
    assert (e.relevance[:, :, ~seen] == 0).all()
    assert (e.relevance[:, :, seen].abs().sum((1, 2)) > 1e-6).all()


def coloured_squares(background):
    """An image with a red, a green and a blue square, far enough apart for 3 × 3; and where they are."""
    torch.manual_seed(19)
    x = torch.zeros(3, 12, 12).double()
    if background == "grey":
        x += 0.2 + 0.6 * torch.rand(1, 12, 12).double()
    places = [(slice(1, 4), slice(1, 5)), (slice(7, 11), slice(0, 3)), (slice(6, 10), slice(7, 11))]
    for colour, (rows, columns) in enumerate(places):
        x[:, rows, columns] = (
            0.05 * torch.rand(3, 4, 4).double()[:, : rows.stop - rows.start, : columns.stop - columns.start]
        )
        x[colour, rows, columns] += 0.8
    return x[None], places


def opponents(kernel):
    """A convolution with an output per colour: that colour less the two others, less a threshold."""
    conv = nn.Conv2d(3, 3, kernel.shape[0], padding=kernel.shape[0] // 2)
    with torch.no_grad():
        conv.weight.copy_((2 * torch.eye(3) - 1)[:, :, None, None] * kernel)
        conv.bias.fill_(-0.15)
    return conv


def within_colours(kernel):
    """A convolution that smooths each colour by itself."""
    conv = nn.Conv2d(3, 3, kernel.shape[0], padding=kernel.shape[0] // 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3)[:, :, None, None] * kernel)
    return conv


POINT, BLUR = torch.ones(1, 1), torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def colour_detector(first, second=None):
    """Opponency, ReLU, (a blur, ReLU,) the mean over the image, and one logit per colour."""
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(10 * torch.eye(3))
        linear.bias.fill_(0.1)
    between = [] if second is None else [within_colours(second), nn.ReLU()]
    layers = [opponents(first), nn.ReLU(), *between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear]
    return nn.Sequential(*layers).double().eval()


DETECTORS = {  # the kernels, and what is between the squares
    "point_on_grey": (POINT, None, "grey"),
    "point_then_blur_on_grey": (POINT, BLUR, "grey"),
    "blur_on_black": (BLUR, None, "black"),
    "blur_then_blur_on_black": (BLUR, BLUR, "black"),
}
DETECTOR_RULES = [lrp.Zero(), lrp.Epsilon(), lrp.Gamma(0.25), lrp.ZPlus(), lrp.AlphaBeta(2.0, 1.0)]
FIRST_RULES = [
    lrp.Flat(),
    lrp.WSquare(),
    lrp.ZBox(0.0, 1.0),
]  # for points: a 3 × 3 sees the rim of a square too
DETECTIONS = [(name, rule, None) for name in DETECTORS for rule in DETECTOR_RULES] + [
    (name, lrp.ZPlus(), rule)
    for name, (first, *_) in DETECTORS.items()
    for rule in FIRST_RULES
    if first is POINT
]


@pytest.mark.parametrize(("name", "rule", "first_rule"), DETECTIONS, ids=str)
def test_a_colour_detector_points_at_its_colour(name, rule, first_rule):
    """99.9 % of |R| lie on the squares of the class's colour, whichever of the three colours is asked for."""
    first, second, background = DETECTORS[name]
    x, places = coloured_squares(background)
    model = colour_detector(first, second)
    assert (model(x) > 0.2).all()
    rules = [(lrp.family("conv"), rule)] + ([] if first_rule is None else [(lrp.first, first_rule)])
    explainer = lrp.Explainer(model, composite=lrp.Composite(rules), dtype=torch.float64)
    e = explainer(x.expand(3, -1, -1, -1), target=[0, 1, 2])
    for magnitude, (rows, columns) in zip(e.relevance.abs().sum(1), places, strict=True):
        assert magnitude[rows, columns].sum() >= 0.999 * magnitude.sum() > 1e-3
    assert e.health.ok, e.health.problems


class MiniSqueezeExcite(nn.Module):
    """Two gated blocks with batch norms, one on a residual branch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Hardswish())
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc1, self.fc2, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            y = self.norm(self.conv(x))
            gate = torch.sigmoid(self.fc2(F.silu(self.fc1(F.adaptive_avg_pool2d(y, 1)))))
            x = x + y * gate
        return self.head(F.silu(x).mean((2, 3)))


class WholeAttentions(nn.Module):
    """A layer of every style, so that every way of merging heads and images is batched."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, 2)
        self.layers = nn.Sequential(
            SelfAttention(), SelfAttention(style="divided"), SelfAttention(style="einsum"), MultiHead(),
            MultiHead(weights=True, batch_first=False), Block(),
        )  # fmt: skip
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


class WholeSwin(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), SwinBlock(), nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.block(F.interpolate(self.stem(x), size=(4, 4), mode="bilinear")))


class Handful(nn.Module):
    """What PyTorch writes out in steps, where a step might forget that there are several images."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4), nn.Linear(4, 5)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y = torch.addcmul(y, y.flip(1), torch.sigmoid(y), value=0.5)
        y = torch.addcdiv(y, y.flip(2), y.abs() + 1, value=0.5)
        y = torch.lerp(y, y.flip(3), 0.3)
        y = F.normalize(y, dim=1) + F.softmin(y, dim=1) * y
        y = y - torch.outer(torch.linspace(0, 1, 3, dtype=x.dtype), torch.linspace(0, 1, 5, dtype=x.dtype))
        return self.head(y.cumsum(2).amax((2, 3)))


ANY_NET = {
    "vision_transformer": ViT,
    "attentions": WholeAttentions,
    "windows": WholeSwin,
    "squeeze_excite": MiniSqueezeExcite,
    "lstm": lambda: RowsThenLstm(18),
    "handful": Handful,
}


def any_net(name, images=3):
    torch.manual_seed(20)
    model = ANY_NET[name]().double().eval()
    return model, torch.randn(images, 3, 4, 6).double()


@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "attnlrp"])
@pytest.mark.parametrize("name", ANY_NET)
def test_a_batch_gives_what_its_images_give(name, preset):
    model, x = any_net(name)
    R = torch.randn_like(model(x)).detach()
    explainer = lrp.Explainer(model, composite=lrp.preset(preset), dtype=torch.float64)
    e = explainer(x, target=R)
    for i in range(len(x)):
        alone = explainer(x[i : i + 1], target=R[i : i + 1])
        worst = (e.relevance[i] - alone.relevance[0]).abs().max()
        assert worst <= 1e-10 * alone.relevance.abs().max()
        for term in TERMS:
            allowed = 1e-10 * total(alone.ledger, "largest")
            assert abs(total(e.ledger, term, i) - total(alone.ledger, term)) <= allowed


@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "attnlrp"])
@pytest.mark.parametrize("name", ANY_NET)
def test_linear_in_the_start(name, preset):
    model, x = any_net(name, images=2)
    one, two = torch.randn(2, 2, 5).double()
    explainer = lrp.Explainer(model, composite=lrp.preset(preset), dtype=torch.float64)
    a, b, both = (explainer(x, target=R).relevance for R in (one, two, 3 * one - 0.5 * two))
    assert (both - (3 * a - 0.5 * b)).abs().max() <= 1e-10 * (3 * a).abs().max()
