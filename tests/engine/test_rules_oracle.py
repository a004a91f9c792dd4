"""Every rule on every affine operation against `oracle.py`, and each rule once with a pencil.

An operation is captured once, and explained by each of its rules; two are explained by all of them at once besides.
"""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
from helpers import oracle
from helpers.checks import (
    TERMS,
    TOLERANCE,
    Alone,
    Branch,
    agrees,
    explain_alone,
    images,
    same,
    total,
)
from helpers.operations import OPERATIONS, Call, uneven
from helpers.rules import ALL_RULES, BIASES, EPSILONS, RULES
from helpers.vocabulary import AFFINE

assert not OPERATIONS.keys() & AFFINE.keys()
CASES = OPERATIONS | AFFINE
CORE = ("linear", "conv2d", "conv2d_after_relu", "add")
PRODUCT = [
    pytest.param(
        operation, rule, id=f"{operation}-{rule}", marks=pytest.mark.core if operation in CORE else ()
    )
    for operation in CASES
    for rule in CASES[operation].rules
]


@cache
def subject(operation):
    """A model of one operation, images for it, and the relevance that comes to its outputs."""
    torch.manual_seed(sum(map(ord, operation)))
    case = CASES[operation]
    model = Branch(case).double().eval()
    x = images(case.shape, whole="exact" in operation)
    with torch.no_grad():
        return model, x, torch.randn_like(model(x))


def matrix_at(operation, op, image):
    """Of some operations it is another for every image."""
    matrix = CASES[operation].matrix(op)
    return matrix if isinstance(matrix, oracle.Affine) else matrix(image)


def literal(operation, rule):
    """The oracle's rule; ZBox's bounds hold at the model's input, and a ReLU on the way carries them along."""
    if rule.startswith("ZBox") and CASES[operation].before is F.relu:
        return oracle.z_box(0.0, 3.0, float(rule[5:-1]))
    return ALL_RULES[rule][1]


def expected(operation, rule, op, image, R):
    """What the oracle makes of one image."""
    if rule == "Pass":
        return oracle.Handed(R.numpy())
    a = CASES[operation].before(image)
    return oracle.distribute(literal(operation, rule), matrix_at(operation, op, a), a, R)


@pytest.mark.parametrize(("operation", "rule"), PRODUCT)
def test_rule_on_operation(operation, rule):
    model, x, R = subject(operation)
    e = explain_alone(model, ALL_RULES[rule][0], x, R)
    for i in range(len(x)):
        handed, scale = expected(operation, rule, model.op, x[i], R[i]), float(R[i].abs().sum())
        agrees(e.relevance[i].flatten(), handed.relevance, f"relevance of image {i}")
        for term in TERMS:
            agrees(total(e.ledger, term, i), getattr(handed, term), f"{term} of image {i}", scale)
        assert abs(total(e.ledger, "unexplained", i)) <= TOLERANCE * scale


class Branches(nn.Module):
    """Each branch sees its own channels and writes its own outputs."""

    def __init__(self, branches, channels):
        super().__init__()
        self.channels = channels
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x):
        cuts = x.split(self.channels, dim=1)
        return torch.cat([branch(cut) for branch, cut in zip(self.children(), cuts, strict=True)], dim=1)


@pytest.mark.parametrize("operation", ["linear", "add"])
def test_all_rules_in_one_model(operation):
    """One branch per rule, each on its own channels: relevance and the ledger come apart by path."""
    torch.manual_seed(1)
    case = CASES[operation]
    names = {f"b{i:02d}": rule for i, rule in enumerate(case.rules)}
    model = Branches({name: Branch(case) for name in names}, case.shape[0]).double().eval()
    x = images((len(names) * case.shape[0], *case.shape[1:]), whole=False)
    with torch.no_grad():
        logits = model(x)
    R = torch.randn_like(logits)
    composite = lrp.Composite([(lrp.path(f"{name}.op*"), ALL_RULES[rule][0]) for name, rule in names.items()])
    e = lrp.Explainer(model, composite=composite, dtype=torch.float64)(x, target=R)
    torch.testing.assert_close(e.logits, logits, rtol=1e-12, atol=1e-12)
    parts = (part.chunk(len(names), 1) for part in (x, R, e.relevance))
    for (name, rule), a, r, relevance in zip(names.items(), *parts, strict=True):
        rows = rows_of(e.ledger, name)
        for i in range(len(x)):
            handed = expected(operation, rule, getattr(model, name).op, a[i], r[i])
            scale = float(r[i].abs().sum())
            agrees(relevance[i].flatten(), handed.relevance, f"relevance of image {i} under {rule}")
            for term in TERMS:
                agrees(sums(rows, term)[i], getattr(handed, term), f"{term} of image {i} under {rule}", scale)
            assert abs(sums(rows, "unexplained")[i]) <= TOLERANCE * scale


def rows_of(ledger, name):
    return [row for row in ledger if row.path == name or row.path.startswith(name + ".")]


def sums(rows, term):
    return sum(np.asarray(getattr(row, term)) for row in rows)


@pytest.mark.parametrize("operation", CASES)
def test_default_rule_is_epsilon(operation):
    """A composite that names nothing: Epsilon(1e-6); the totals are those of the one operation."""
    model, x, R = subject(operation)
    e = explain_alone(model, None, x, R)
    torch.testing.assert_close(e.logits, model(x).detach(), rtol=1e-12, atol=1e-12)
    for i in range(len(x)):
        a = CASES[operation].before(x[i])
        handed = oracle.distribute(oracle.epsilon(1e-6), matrix_at(operation, model.op, a), a, R[i])
        same(e, i, handed, R[i])
        agrees(total(e.ledger, "start", i), float(R[i].sum()), "start", float(R[i].abs().sum()))
        agrees(total(e.ledger, "input", i), handed.relevance.sum(), "input", np.abs(handed.relevance).sum())
    assert e.health.ok, e.health.problems


FAMILIES = {
    "conv": [
        "conv2d", "conv1d", "conv3d", "pad_then_conv2d", "conv2d_batch_norm", "conv2d_same_dilated", "conv1d_same",
    ],
    "linear": ["linear", "linear_on_tokens", "linear_batch_norm", "linear_3d", "linear_4d", "addmm"],
    "norm": ["batch_norm", "constant_minus"],
    "layer_norm": ["layer_norm", "group_norm", "rms_norm", "instance_norm"],
    "pool": [
        "avg_pool2d", "adaptive_avg_pool2d", "adaptive_avg_pool2d_uneven", "mean_positions", "nearest", "bilinear",
        "bicubic_corners", "sum_channels", "cumsum", "fold", "avg_pool3d", "mean_tokens",
    ],
    "scale": ["neg", "times_spread", "divided_by_constant", "times_grid"],
    "sum": ["add", "subtract", "plus_positions", "plus_arange"],
}  # fmt: skip


@pytest.mark.parametrize(("family", "operation"), [(f, o) for f, os in FAMILIES.items() for o in os])
def test_family_finds_the_operation(family, operation):
    model, x, R = subject(operation)
    e = explain_alone(model, lrp.Epsilon(0.25), x, R, lrp.family(family))
    handed = oracle.distribute(oracle.epsilon(0.25), matrix_at(operation, model.op, x[0]), x[0], R[0])
    same(e, 0, handed, R[0])


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("operation", ["linear", "conv2d", "avg_pool2d"])
def test_relative_epsilon(operation, bias):
    """ε in units of the RMS of the layer's outputs, each image its own; all zeros: ε = 0 and R is dropped."""
    torch.manual_seed(16)
    case = OPERATIONS[operation]
    model = Branch(case).double().eval()
    x = images(case.shape, whole=False)
    R = torch.randn_like(model(x)).detach()
    e = explain_alone(model, lrp.Epsilon(0.25, bias=bias, relative=True), x, R)
    matrix, rule = case.matrix(model.op), oracle.epsilon(0.25, bias, relative=True)
    for i in range(len(x)):
        expected = oracle.distribute(rule, matrix, x[i], R[i])
        agrees(e.relevance[i].reshape(-1).numpy(), expected.relevance, f"relevance of image {i}")
        for term in ("bias", "epsilon", "dropped"):
            agrees(total(e.ledger, term, i), getattr(expected, term), term, float(R[i].abs().sum()))


@pytest.mark.parametrize("kind", ["numbers", "tensor"])
def test_zbox_bounds_per_channel(kind):
    torch.manual_seed(7)
    low, high = [-2.0, -1.5, -1.0], [2.0, 2.5, 3.0]
    conv = nn.Conv2d(3, 4, 3, padding=1, stride=2).double()
    x, R = torch.randn(2, 3, 5, 5).double(), torch.randn(2, 36).double()
    bounds = (low, high) if kind == "numbers" else (torch.tensor(low), torch.tensor(high))
    e = explain_alone(Alone(conv), lrp.ZBox(*bounds, epsilon=0.25), x, R)
    rule = oracle.z_box(np.repeat(low, 25), np.repeat(high, 25), 0.25)
    for i in range(2):
        expected = oracle.distribute(rule, oracle.of_module(conv, (3, 5, 5)), x[i], R[i])
        agrees(e.relevance[i].reshape(-1).numpy(), expected.relevance, "relevance")
        agrees(total(e.ledger, "epsilon", i), expected.epsilon, "epsilon", float(R[i].abs().sum()))


def test_zbox_bounds_are_carried_to_the_first_convolution():
    """Through a batch norm (some scales negative: they swap), an activation and a pad that is not zero."""
    torch.manual_seed(18)
    low, high, eps = -1.5, 2.0, 0.25
    norm, conv = uneven(nn.BatchNorm2d(3)).double().eval(), nn.Conv2d(3, 4, 3, padding=1).double()
    assert norm.weight.min() < 0 < norm.weight.max()
    x, R = torch.randn(2, 3, 4, 4).double().clamp(low, high), torch.randn(2, 4 * 7 * 4).double()
    model = nn.Sequential(norm, nn.LeakyReLU(0.5), nn.ConstantPad2d((0, 0, 2, 1), -0.7), conv, nn.Flatten())
    e = explain_alone(model, lrp.ZBox(low, high, epsilon=eps), x, R, lrp.family("conv"))
    with torch.no_grad():
        ends = [model[:3](torch.full((1, 3, 4, 4), end).double())[0] for end in (low, high)]
        lowest, highest = torch.minimum(*ends).flatten().numpy(), torch.maximum(*ends).flatten().numpy()
        for i in range(2):
            a = model[:3](x[i : i + 1])[0]
            matrix = oracle.of_module(conv, (3, 7, 4))
            handed = oracle.distribute(oracle.z_box(lowest, highest, eps), matrix, a, R[i])
            # The norm prepares the input: relevance passes through.
            agrees(e.relevance[i].numpy(), handed.relevance.reshape(3, 7, 4)[:, 2:-1], "relevance")


@pytest.mark.parametrize(
    "rule", ["Epsilon(0.25, absorb)", "ZPlus(1e-06, ignore)", "Flat(0.25)", "WSquare(1e-06)"]
)
def test_padding_with_a_constant_is_an_input_booked_under_bias(rule):
    """Zero padding has no share; a pad with 0.5 is a constant, and what it would get is the bias's."""
    torch.manual_seed(8)
    conv = nn.Conv2d(2, 3, 3)
    model = Alone(nn.Sequential(nn.ConstantPad2d((1, 0, 2, 1), 0.5), conv)).double()
    x, R = torch.randn(2, 2, 3, 4).double(), torch.randn(2, 36).double()
    e = explain_alone(model, RULES[rule][0], x, R, lrp.family("conv"))
    for i in range(2):
        padded = model.op[0](x[i : i + 1])[0]
        expected = oracle.distribute(
            RULES[rule][1], oracle.of_module(conv, tuple(padded.shape)), padded, R[i]
        )
        relevance = expected.relevance.reshape(padded.shape)
        inner = relevance[:, 2:-1, 1:]
        agrees(e.relevance[i].numpy(), inner, "relevance")
        agrees(
            total(e.ledger, "bias", i),
            expected.bias + relevance.sum() - inner.sum(),
            "bias",
            R[i].abs().sum(),
        )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_by_copies_moves_relevance_to_the_source(mode):
    torch.manual_seed(9)
    conv = nn.Conv2d(2, 3, 3).double()
    x, R = torch.randn(2, 2, 3, 4).double(), torch.randn(2, 3 * 3 * 4).double()
    e = explain_alone(Alone(Call(lambda x: conv(F.pad(x, (1, 1, 1, 1), mode=mode)))), None, x, R)
    copies = oracle.dense(lambda x: F.pad(x, (1, 1, 1, 1), mode=mode), (2, 3, 4))
    for i in range(2):
        padded = F.pad(x[i : i + 1], (1, 1, 1, 1), mode=mode)[0]
        expected = oracle.distribute(oracle.epsilon(), oracle.of_module(conv, (2, 5, 6)), padded, R[i])
        agrees(e.relevance[i].numpy().reshape(-1), copies.T @ expected.relevance, "relevance")


# ------------------------------------------------------------------- max pools, signs, two layers

POOLS = {
    "plain": nn.MaxPool2d(2),
    "rows_left_over": nn.MaxPool2d(3),
    "overlap": nn.MaxPool2d(3, 1),
    "padding": nn.MaxPool2d(3, 2, padding=1),
    "dilation": nn.MaxPool2d(2, 1, dilation=2),
    "dilation_padding": nn.MaxPool2d((3, 2), (1, 2), padding=(1, 0), dilation=2),
    "ceil": nn.MaxPool2d(2, 2, ceil_mode=True),
    "ceil_padding": nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
}


@pytest.mark.parametrize("values", ["real", "ties", "relu"])
@pytest.mark.parametrize("name", POOLS)
def test_winner_takes_all(name, values):
    torch.manual_seed(12)
    pool = POOLS[name]
    x = images((2, 5, 7), whole=values == "ties")
    x = x.relu() if values == "relu" else x
    R = torch.randn_like(pool(x).flatten(1))
    for rule in (None, lrp.WinnerTakesAll()):
        e = explain_alone(Alone(pool), rule, x, R, lrp.family("maxpool"))
        for i in range(len(x)):
            expected = oracle.winner(pool, x[i], (2, 5, 7), R[i])
            agrees(e.relevance[i].numpy().reshape(-1), expected.relevance, f"image {i}")
        assert max(abs(total(e.ledger, t)) for t in ("bias", "epsilon", "dropped")) <= 1e-12


@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("name", [name for name in POOLS if not name.startswith("dilation")])
def test_max_pool_in_proportion(name, eps):
    """As docs/rules.md has it: an average pool with the same window, as PyTorch divides it."""
    torch.manual_seed(13)
    pool = POOLS[name]
    x = images((2, 5, 7), whole=False)
    R = torch.randn_like(pool(x).flatten(1))
    e = explain_alone(Alone(pool), lrp.Proportional(epsilon=eps), x, R, lrp.family("maxpool"))
    average = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)
    matrix = oracle.of_module(average, (2, 5, 7))
    for i in range(len(x)):
        expected = oracle.distribute(oracle.proportional(eps), matrix, x[i], R[i])
        agrees(e.relevance[i].numpy().reshape(-1), expected.relevance, f"image {i}")
        for term in ("bias", "epsilon", "dropped"):
            agrees(total(e.ledger, term, i), getattr(expected, term), term, float(R[i].abs().sum()))


def test_dilated_max_pool_in_proportion_is_refused():
    """There is no dilated average pool."""
    with pytest.raises(lrp.LrpError, match="dilated"):
        explain_alone(
            Alone(POOLS["dilation"]),
            lrp.Proportional(),
            torch.randn(1, 2, 5, 7).double(),
            None,
            lrp.family("maxpool"),
        )


def pass_on(x, R):
    return R


def through(matrix_of):
    """Back through an affine operation under the default rule."""

    def back(x, R):
        matrix = matrix_of(tuple(x.shape))
        return oracle.distribute(oracle.epsilon(), matrix, x, R).relevance.reshape(x.shape)

    return back


def to_winner(x, R):
    return oracle.winner(nn.MaxPool2d(3, 1, 1), x, tuple(x.shape), R).relevance.reshape(x.shape)


def norm_and_back():
    norm = uneven(nn.BatchNorm2d(2)).double().eval()

    def matrix(shape):
        scale, shift = oracle.batch_norm(norm, shape)
        return oracle.Affine(np.diag(scale), shift, np.eye(len(scale)) != 0)

    return norm, through(matrix)


def minus_transposed(x):
    return x - x.transpose(2, 3)


# What stands between the image and a convolution: modules, and how relevance comes back through each. After some
# of them its input is >= 0, after some it is not: an engine that takes either for granted is wrong on the others.
STAGES = {
    "relu": lambda: (nn.ReLU(), pass_on),
    "relu6": lambda: (nn.ReLU6(), pass_on),
    "leaky_relu": lambda: (nn.LeakyReLU(0.5), pass_on),
    "hardtanh": lambda: (nn.Hardtanh(), pass_on),
    "dropout": lambda: (nn.Dropout(), pass_on),
    "max_pool": lambda: (nn.MaxPool2d(3, 1, 1), to_winner),
    "avg_pool": lambda: (
        nn.AvgPool2d(3, 1, 1), through(lambda shape: oracle.of_module(nn.AvgPool2d(3, 1, 1), shape))
    ),
    "zero_pad": lambda: (nn.ZeroPad2d((1, 0, 2, 1)), lambda x, R: R[:, 2:-1, 1:]),
    "negative_pad": lambda: (nn.ConstantPad2d((1, 0, 2, 1), -1.5), lambda x, R: R[:, 2:-1, 1:]),
    "norm": norm_and_back,
    "difference": lambda: (
        Call(minus_transposed), through(lambda shape: oracle.affine(minus_transposed, shape))
    ),
}  # fmt: skip
BETWEEN = [
    "relu", "relu6", "leaky_relu", "hardtanh", "max_pool", "avg_pool", "norm", "difference", "relu dropout max_pool",
    "relu avg_pool", "relu zero_pad", "relu negative_pad", "relu norm", "relu difference", "norm relu",
    "difference relu", "relu norm relu6",
]  # fmt: skip


@pytest.mark.parametrize(
    "rule", ["AlphaBeta(2, 1, 0.25, absorb)", "Gamma(0.25, 0.25, ignore)", "ZPlus(0.25, absorb)"]
)
@pytest.mark.parametrize("between", BETWEEN)
def test_sign_of_the_input(between, rule):
    torch.manual_seed(17)
    stages = [STAGES[name]() for name in between.split()]
    if between.startswith("norm"):  # of the image: it prepares the input
        stages[0] = (stages[0][0], pass_on)
    conv = nn.Conv2d(2, 3, 3, padding=1)  # padded, so that no batch norm before it can be folded into it
    model = nn.Sequential(*[module for module, _ in stages], conv, nn.Flatten()).double().eval()
    x = torch.randn(2, 2, 4, 4).double()
    R = torch.randn_like(model(x)).detach()
    e = explain_alone(model, RULES[rule][0], x, R, lrp.family("conv"))
    for i in range(2):
        values = [x[i]]
        for module, _ in stages:
            values.append(module(values[-1][None])[0].detach())
        matrix = oracle.of_module(conv, tuple(values[-1].shape))
        relevance = oracle.distribute(RULES[rule][1], matrix, values.pop(), R[i]).relevance
        relevance = relevance.reshape(module(values[-1][None])[0].shape)
        for _, back in reversed(stages):
            relevance = np.asarray(back(values.pop(), relevance))
        agrees(e.relevance[i].numpy(), relevance, "relevance")


@pytest.mark.core
def test_two_layers_by_path():
    """Relevance and every term of the ledger, row by row, through conv -> ReLU -> max pool -> linear."""
    torch.manual_seed(14)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)]
    model = nn.Sequential(*layers).double().eval()
    x, R = torch.randn(3, 3, 4, 4).double(), torch.randn(3, 5).double()
    ours = lrp.Composite([(lrp.everything, lrp.Epsilon(0.3)), (lrp.path("0"), lrp.AlphaBeta(2.0, 1.0, epsilon=0.1)),
                          (lrp.path("4"), lrp.Gamma(0.5, epsilon=0.2))])  # fmt: skip
    theirs = {0: oracle.alpha_beta(2, 1, 0.1), 2: "winner", 4: oracle.gamma(0.5, 0.2)}
    e = lrp.Explainer(model, composite=ours, dtype=torch.float64)(x, target=R)
    for i in range(3):
        relevance, totals, handed = oracle.chain(layers, x[i], lambda z, i=i: R[i], lambda k, m: theirs[k])
        agrees(e.relevance[i].numpy().reshape(-1), relevance, "relevance")
        scale = float(R[i].abs().sum())
        for term, value in totals.items():
            agrees(total(e.ledger, term, i), value, term, scale)
        for k in (0, 4):
            rows = rows_of(e.ledger, str(k))
            for term in ("bias", "epsilon", "dropped"):
                agrees(sums(rows, term)[i], getattr(handed[k], term), f"{term} of {k}", scale)
            (row,) = [row for row in rows if abs(row.bias[i]) > 0]
            agrees(float(row.relevance_out[i]), handed[k].relevance.sum(), "out", scale)
            entering = R[i].sum() if k == 4 else handed[1].relevance.sum()
            agrees(float(row.relevance_in[i]), float(entering), "in", scale)
        largest = max(scale, *(float(np.abs(h.relevance).sum()) for h in handed))
        assert total(e.ledger, "largest", i) == pytest.approx(largest, rel=1e-9)


# ------------------------------------------------------------------------------------------------- top_k

VGG_LIKE = [
    nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
    nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(),
    nn.Linear(30, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6),
]  # fmt: skip


def vgg_like():
    torch.manual_seed(15)
    model = nn.Sequential(*VGG_LIKE).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim > 1 else 0.1))
    return model, torch.randn(3, 3, 8, 10).double()


@pytest.mark.parametrize("top_k", [0, 0.02, 0.3, 1.0])
def test_kaifishr(top_k):
    """The VGG program this project follows, written out once more from its paragraph in docs/presets.md."""
    model, x = vgg_like()
    e = lrp.Explainer(model, composite=lrp.preset("kaifishr", top_k=top_k), dtype=torch.float64)(x)

    def rule_of(k, module):
        if isinstance(module, nn.Conv2d | nn.Linear):
            return oracle.z_plus(1e-5, "ignore", unsigned=True)
        return oracle.proportional(1e-5, unsigned=True)

    for i in range(len(x)):
        relevance, totals, _ = oracle.chain(VGG_LIKE, x[i], oracle.softmax, rule_of, top_k, first_input=1.0)
        assert np.abs(relevance).sum() > 1e-3
        agrees(e.relevance[i].numpy().reshape(-1), relevance, "relevance")
        for term, value in totals.items():
            agrees(total(e.ledger, term, i), value, term, 1.0)


@pytest.mark.parametrize("top_k", [0.02, 0.3, 0.999])
@pytest.mark.parametrize("preset", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "excitation_backprop"])
def test_top_k(preset, top_k):
    """Cut at the output of each linear, conv and pool; what is cut is `dropped`."""
    model, x = vgg_like()
    R = torch.randn(3, 6).double()
    e = lrp.Explainer(model, composite=lrp.preset(preset, top_k=top_k), dtype=torch.float64)(x, target=R)
    conv, linear = {
        "epsilon": (oracle.epsilon(), oracle.epsilon()),
        "epsilon_plus": (oracle.z_plus(), oracle.epsilon()),
        "epsilon_alpha2_beta1": (oracle.alpha_beta(), oracle.epsilon()),
        "excitation_backprop": (oracle.z_plus(), oracle.z_plus()),
    }[preset]
    rules = {
        nn.Conv2d: conv,
        nn.Linear: linear,
        nn.MaxPool2d: "winner",
        nn.AdaptiveAvgPool2d: oracle.epsilon(),
    }
    for i in range(len(x)):
        relevance, totals, handed = oracle.chain(
            VGG_LIKE, x[i], lambda z, i=i: R[i], lambda k, m: rules[type(m)], top_k
        )
        agrees(e.relevance[i].numpy().reshape(-1), relevance, "relevance")
        scale = max(np.abs(h.relevance).sum() for h in handed)
        for term, value in totals.items():
            agrees(total(e.ledger, term, i), value, term, scale)


PRESETS = {
    # name: (options, first conv, other convs, linear), with bias="absorb" unless the preset says otherwise
    "epsilon": ({}, oracle.epsilon(), oracle.epsilon(), oracle.epsilon()),
    "epsilon_plus": ({}, oracle.z_plus(), oracle.z_plus(), oracle.epsilon()),
    "epsilon_plus_flat": ({}, oracle.flat(), oracle.z_plus(), oracle.epsilon()),
    "epsilon_gamma_box": (
        {"low": -2.1, "high": 2.6}, oracle.z_box(-2.1, 2.6), oracle.gamma(0.25), oracle.epsilon()
    ),
    "epsilon_gamma_wsquare": ({}, oracle.w_square(), oracle.gamma(0.25), oracle.epsilon()),
    "epsilon_alpha2_beta1": ({}, oracle.alpha_beta(), oracle.alpha_beta(), oracle.epsilon()),
    "epsilon_alpha2_beta1_flat": ({}, oracle.flat(), oracle.alpha_beta(), oracle.epsilon()),
    "sequential_preset_a": ({}, *[oracle.alpha_beta(1, 0, bias="full")] * 2, oracle.epsilon(0.1)),
    "sequential_preset_b": ({}, *[oracle.alpha_beta(2, 1, bias="full")] * 2, oracle.epsilon(0.1)),
    "sequential_preset_a_flat": ({}, oracle.flat(), oracle.alpha_beta(1, 0, bias="full"), oracle.epsilon(0.1)),
    "sequential_preset_b_flat": ({}, oracle.flat(), oracle.alpha_beta(2, 1, bias="full"), oracle.epsilon(0.1)),
    "deep_taylor": (
        {"low": -2.1, "high": 2.6}, oracle.z_box(-2.1, 2.6), oracle.z_plus(bias="ignore"), oracle.z_plus(bias="ignore")
    ),
    "excitation_backprop": ({}, oracle.z_plus(), oracle.z_plus(), oracle.z_plus()),
}  # fmt: skip


@pytest.mark.core
@pytest.mark.parametrize("name", PRESETS)
def test_preset(name):
    model, x = vgg_like()
    R = torch.randn(3, 6).double()
    options, first, conv, linear = PRESETS[name]
    e = lrp.Explainer(model, composite=lrp.preset(name, **options), dtype=torch.float64)(x, target=R)
    rules = {
        nn.Conv2d: conv,
        nn.Linear: linear,
        nn.MaxPool2d: "winner",
        nn.AdaptiveAvgPool2d: oracle.epsilon(),
    }
    for i in range(len(x)):
        relevance, totals, handed = oracle.chain(
            VGG_LIKE, x[i], lambda z, i=i: R[i], lambda k, m: first if k == 0 else rules[type(m)]
        )
        agrees(e.relevance[i].numpy().reshape(-1), relevance, "relevance")
        scale = max(np.abs(h.relevance).sum() for h in handed)
        for term, value in totals.items():
            agrees(total(e.ledger, term, i), value, term, scale)


class TwoStems(nn.Module):
    """The image reaches two convolutions first; one of them is called again further on, and is not first there."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.out = nn.Linear(5 * 12, 4)

    def forward(self, x):
        y, z = F.relu(self.one(x)), self.other(x)
        return self.out(torch.cat([self.one(y), z], dim=1).relu().flatten(1))


@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat"])
def test_first_is_a_call_and_may_be_several(preset):
    torch.manual_seed(19)
    model, x = TwoStems().double().eval(), torch.randn(2, 3, 3, 4).double()
    R = torch.randn(2, 4).double()
    options, first, later, _ = PRESETS[preset]
    e = lrp.Explainer(model, composite=lrp.preset(preset, **options), dtype=torch.float64)(x, target=R)
    one, other = oracle.of_module(model.one, (3, 3, 4)), oracle.of_module(model.other, (3, 3, 4))
    for i in range(2):
        a = x[i].reshape(-1).numpy()
        y = np.maximum(one(a), 0)
        last = np.maximum(np.concatenate([one(y), other(a)]), 0)
        relevance = oracle.distribute(
            oracle.epsilon(), oracle.of_module(model.out, (60,)), last, R[i]
        ).relevance
        through_one = oracle.distribute(later, one, y, relevance[:36]).relevance
        expected = (
            oracle.distribute(first, one, a, through_one).relevance
            + oracle.distribute(first, other, a, relevance[36:]).relevance
        )
        agrees(e.relevance[i].reshape(-1).numpy(), expected, "relevance")


@pytest.mark.parametrize(
    ("preset", "norm_rule"),
    [
        ("epsilon", oracle.epsilon()),
        ("epsilon_plus", oracle.z_plus()),
        ("epsilon_plus_flat", oracle.z_plus()),
        ("epsilon_alpha2_beta1", oracle.z_plus()),
        ("excitation_backprop", oracle.z_plus()),
    ],
)
def test_preset_on_a_batch_norm_that_cannot_be_folded(preset, norm_rule):
    """conv -> ReLU -> BN -> ReLU -> conv: the batch norm has a rule of its own."""
    torch.manual_seed(20)
    before, norm, conv = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
    linear = nn.Linear(48, 5)
    layers = [before, uneven(norm), conv, nn.Flatten(), linear]
    model = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1]).double().eval()
    x, R = torch.randn(2, 3, 3, 4).double(), torch.randn(2, 5).double()
    _, first, later, last = PRESETS[preset]
    e = lrp.Explainer(model, composite=preset, dtype=torch.float64)(x, target=R)
    scale, shift = oracle.batch_norm(norm, (3, 3, 4))
    diagonal = oracle.Affine(np.diag(scale), shift, np.eye(36) != 0)
    convs = [oracle.of_module(m, (3, 3, 4)) for m in (before, conv)]
    stages = [convs[0], diagonal, convs[1], oracle.of_module(linear, (48,))]
    for i in range(2):
        a = [x[i].reshape(-1).numpy()]
        for stage in stages:
            a.append(np.maximum(stage(a[-1]), 0))
        relevance = R[i].numpy()
        for k, rule in ((3, last), (2, later), (1, norm_rule), (0, first)):
            relevance = oracle.distribute(rule, stages[k], a[k], relevance).relevance
        agrees(e.relevance[i].reshape(-1).numpy(), relevance, "relevance")


@pytest.mark.parametrize("seed", ["one", "softmax"])
def test_other_starts(seed):
    model, x = vgg_like()
    e = lrp.Explainer(model, composite="epsilon_plus", seed=seed, dtype=torch.float64)(x, target=2)
    z = model(x).detach()
    R = z.softmax(1) if seed == "softmax" else torch.eye(6).double()[2].expand(3, 6)
    expected = lrp.Explainer(model, composite="epsilon_plus", dtype=torch.float64)(x, target=R)
    for i in range(3):
        agrees(e.relevance[i].numpy(), expected.relevance[i].numpy(), "relevance")
        agrees(total(e.ledger, "start", i), 1.0, "start")


def test_in_one_call():
    model, x = vgg_like()
    ours = lrp.explain(model, x, target=1, composite="epsilon_plus").relevance
    assert torch.equal(ours, lrp.Explainer(model, composite="epsilon_plus")(x, target=1).relevance)
    assert ours.dtype == torch.float64  # the model's own


@pytest.mark.parametrize("target", ["predicted", 2, [0, 5, 3]])
def test_start_is_the_logit_of_the_target(target):
    model, x = vgg_like()
    e = lrp.Explainer(model, composite="epsilon_plus", dtype=torch.float64)(x, target=target)
    z = model(x).detach().numpy()
    classes = {"predicted": z.argmax(1), 2: [2, 2, 2]}.get(
        target if isinstance(target, str | int) else None, target
    )
    assert list(e.target) == list(classes)
    rules = {nn.Conv2d: oracle.z_plus(), nn.Linear: oracle.epsilon(), nn.MaxPool2d: "winner",
             nn.AdaptiveAvgPool2d: oracle.epsilon()}  # fmt: skip
    for i, k in enumerate(classes):
        relevance, totals, _ = oracle.chain(
            VGG_LIKE, x[i], lambda z, k=k: z * (np.arange(6) == k), lambda _, m: rules[type(m)]
        )
        agrees(e.relevance[i].numpy().reshape(-1), relevance, "relevance")
        assert total(e.ledger, "start", i) == pytest.approx(z[i, k], rel=1e-12) == totals["start"]


# --------------------------------------------------------------------------------------------- with a pencil


def neuron(w, b, rule, a, R):
    """Σ a w + b, one output. Returns (relevance, bias, epsilon, dropped), from the oracle and from the engine."""
    layer = nn.Linear(len(w), 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([w]))
        layer.bias.copy_(torch.tensor([b]))
    mine = oracle.distribute(rule[1], oracle.of_module(layer, (len(a),)), np.array(a), np.array([R]))
    yield "oracle", (mine.relevance, mine.bias, mine.epsilon, mine.dropped)
    x = torch.tensor(a).double().reshape(1, -1, 1, 1)
    e = explain_alone(Alone(layer, lambda x: (x.flatten(1),)), rule[0], x, torch.tensor([[R]]).double())
    yield (
        "engine",
        (e.relevance.reshape(-1).numpy(), *(total(e.ledger, t) for t in ("bias", "epsilon", "dropped"))),
    )


# a = (3, -1), w = (2, 1), b = 1: a w = (6, -1), z = 6
# a = (3, -1), w = (-2, 1), b = 1: a w = (-6, -1), z = -6
# a = (3, -1), w = (2, -1), b = 1: a w = (6, 1), z = 8
PENCIL = {
    # 6 (6, -1, 1) / 6
    "Zero": ((2, 1), 1, (lrp.Zero(), oracle.zero()), (3, -1), 6, (6, -1), 1, 0, 0),
    # without b: z = 5, so 6 (6, -1) / 5
    "Zero, bias ignored": (
        (2, 1), 1, (lrp.Zero(bias="ignore"), oracle.zero("ignore")), (3, -1), 6, (7.2, -1.2), 0, 0, 0
    ),
    # z = 6 - 6 + 0 = 0: nothing to share
    "Zero, empty": ((2, 6), 0, (lrp.Zero(), oracle.zero()), (3, -1), 5, (0, 0), 0, 0, 5),
    # s = 6 + 2: 6 (6, -1, 1, 2) / 8
    "Epsilon": ((2, 1), 1, (lrp.Epsilon(2.0), oracle.epsilon(2.0)), (3, -1), 6, (4.5, -0.75), 0.75, 1.5, 0),
    # z = -6, s = -8, R = 6: 6 (-6, -1, 1, -2) / -8
    "Epsilon, z < 0": ((-2, 1), 1, (lrp.Epsilon(2.0), oracle.epsilon(2.0)), (3, -1), 6, (4.5, 0.75), -0.75, 1.5, 0),
    # z = 0, s would be 0 + 2: still dropped, not taken by ε
    "Epsilon, empty": ((2, 6), 0, (lrp.Epsilon(2.0), oracle.epsilon(2.0)), (3, -1), 5, (0, 0), 0, 0, 5),
    # z = 6 > 0, γ = 1: 3·(2+2) = 12, -1·(1+0) = -1, b + b⁺ = 2, sum 13, s = 15: 6 (12, -1, 2, 2) / 15
    "Gamma": ((2, 1), 1, (lrp.Gamma(1.0, epsilon=2.0), oracle.gamma(1.0, 2.0)), (3, -1), 6, (4.8, -0.4), 0.8, 0.8, 0),
    # z = -6 < 0: 3·(-2-2) = -12, -1·(1+1) = -2, b + b⁻ = 1, sum -13, s = -15, R = -6: -6 (-12, -2, 1, -2) / -15
    "Gamma, z < 0": (
        (-2, 1), 1, (lrp.Gamma(1.0, epsilon=2.0), oracle.gamma(1.0, 2.0)), (3, -1), -6, (-4.8, -0.8), 0.4, -0.8, 0
    ),
    # z = 6 - 6 + 0 = 0: the case between the two
    "Gamma, z = 0": ((2, 6), 0, (lrp.Gamma(1.0, epsilon=2.0), oracle.gamma(1.0, 2.0)), (3, -1), 5, (0, 0), 0, 0, 5),
    # b = -8: z = -3 with the bias, 5 without: the test of the sign leaves it out too.
    # 3·4 = 12, -1·1 = -1, sum 11, s = 13: 13 (12, -1, 0, 2) / 13
    "Gamma, bias ignored": (
        (2, 1), -8, (lrp.Gamma(1.0, epsilon=2.0, bias="ignore"), oracle.gamma(1.0, 2.0, "ignore")), (3, -1), 13, (12, -1), 0, 2, 0
    ),
    # z⊕ = 6 + 1, s = 8: 2·6 (6, 0, 1, 1) / 8 = (9, 0, 1.5, 1.5); z⊖ = -1, s = -2: -6 (0, -1, 0, -1) / -2 = (0, -3, 0, -3)
    "AlphaBeta": (
        (2, 1), 1, (lrp.AlphaBeta(2.0, 1.0, epsilon=1.0), oracle.alpha_beta(2, 1, 1.0)), (3, -1), 6, (9, -3), 1.5, -1.5, 0
    ),
    # z⊕ = 6 - 2, s = 5: 2·3 (6, 0, -2, 1) / 5 = (7.2, 0, -2.4, 1.2)
    # z⊖ = -1 - 2, s = -4: -3 (0, -1, -2, -1) / -4 = (0, -0.75, -1.5, -0.75)
    "AlphaBeta, full bias": (
        (2, 1), -2, (lrp.AlphaBeta(2.0, 1.0, epsilon=1.0, bias="full"), oracle.alpha_beta(2, 1, 1.0, "full")),
        (3, -1), 3, (7.2, -0.75), -3.9, 0.45, 0,
    ),
    # a >= 0, w >= 0: z⊖ = 0, -βR = -5 is dropped. z⊕ = 6 + 4 = 10: 2·5 (6, 4) / 10
    "AlphaBeta, nothing negative": (
        (2, 4), 0, (lrp.AlphaBeta(2.0, 1.0, epsilon=0.0), oracle.alpha_beta(2, 1, 0.0)), (3, 1), 5, (6, 4), 0, 0, -5
    ),
    # z⊕ = 6 + 1, s = 8: 6 (6, 0, 1, 1) / 8
    "ZPlus": ((2, 1), 1, (lrp.ZPlus(epsilon=1.0), oracle.z_plus(1.0)), (3, -1), 6, (4.5, 0), 0.75, 0.75, 0),
    # two negatives make a positive: a⁻w⁻ = 2. z⊕ = 2: R = 3 to the second
    "ZPlus, a < 0": ((-2, -2), -1, (lrp.ZPlus(epsilon=0.0), oracle.z_plus(0.0)), (3, -1), 3, (0, 3), 0, 0, 0),
    # low = -2, high = 4: 3·2 - (-2)·2 = 10, (-1)(-1) - 4·(-1) = 5, sum 15, s = 16: 8 (10, 5, 1) / 16; no bias
    "ZBox": ((2, -1), 1, (lrp.ZBox(-2.0, 4.0, epsilon=1.0), oracle.z_box(-2.0, 4.0, 1.0)), (3, -1), 8, (5, 2.5), 0, 0.5, 0),
    # 6 (4, 1, 1) / (4 + 1 + 1)
    "WSquare": ((2, 1), 1, (lrp.WSquare(epsilon=1.0), oracle.w_square(1.0)), (3, -1), 6, (4, 1), 0, 1, 0),
    # 6 (1, 1, 1) / (2 + 1), whatever the weights
    "Flat": ((2, 0), 1, (lrp.Flat(epsilon=1.0), oracle.flat(1.0)), (3, -1), 6, (2, 2), 0, 2, 0),
}  # fmt: skip


@pytest.mark.core
@pytest.mark.parametrize("name", PENCIL)
def test_pencil(name):
    w, b, rule, a, R, *expected = PENCIL[name]
    for who, got in neuron([float(v) for v in w], float(b), rule, [float(v) for v in a], float(R)):
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12, err_msg=who)


@pytest.mark.core
def test_pencil_sums_and_pools():
    # x = (3, -1): x + y = 2. Epsilon(2): s = 4: 2 (3, -1, 2) / 4. Magnitude(0): 2 (3, 1) / 4
    def both(x):
        return x[:, :1], x[:, 1:]

    x, R = torch.tensor([[3.0, -1.0]]).double().reshape(1, 2, 1, 1), torch.tensor([[2.0]]).double()
    add = explain_alone(Alone(Call(torch.add), both), lrp.Epsilon(2.0), x, R)
    assert (
        add.relevance.flatten().tolist() == pytest.approx([1.5, -0.5]) and total(add.ledger, "epsilon") == 1.0
    )
    add = explain_alone(Alone(Call(torch.add), both), lrp.Magnitude(epsilon=0.0), x, R)
    assert add.relevance.flatten().tolist() == pytest.approx([1.5, 0.5])
    # x - y = 4, R = 2: 2 (3, 1) / 4
    add = explain_alone(Alone(Call(torch.sub), both), lrp.Epsilon(0.0), x, R)
    assert add.relevance.flatten().tolist() == pytest.approx([1.5, 0.5])
    # the window 1 5 / 4 2: the 5 wins R = 24; in proportion 24 (1, 5, 4, 2) / 12
    x, R = torch.tensor([1.0, 5.0, 4.0, 2.0]).double().reshape(1, 1, 2, 2), torch.tensor([[24.0]]).double()
    pool = explain_alone(Alone(nn.MaxPool2d(2)), lrp.WinnerTakesAll(), x, R)
    assert pool.relevance.flatten().tolist() == [0, 24, 0, 0]
    pool = explain_alone(Alone(nn.MaxPool2d(2)), lrp.Proportional(epsilon=0.0), x, R)
    assert pool.relevance.flatten().tolist() == pytest.approx([2, 10, 8, 4])
    # the mean is 3; with ε = 1 s = 4: 24 (1, 5, 4, 2) / 4 / 4, and ε takes 6
    pool = explain_alone(Alone(nn.AvgPool2d(2)), lrp.Epsilon(1.0), x, R)
    assert pool.relevance.flatten().tolist() == pytest.approx([1.5, 7.5, 6, 3])
    assert total(pool.ledger, "epsilon") == pytest.approx(6)


@pytest.mark.core
def test_pencil_a_summand_twice():
    # x + x = 6, R = 8, ε = 2: each gets 8 · 3 / 8. x - x = 0: nothing to share
    x, R = torch.tensor([3.0]).double().reshape(1, 1, 1, 1), torch.tensor([[8.0]]).double()
    double = explain_alone(Alone(Call(lambda x: x + x)), lrp.Epsilon(2.0), x, R)
    assert double.relevance.item() == pytest.approx(6) and total(double.ledger, "epsilon") == pytest.approx(2)
    nothing = explain_alone(Alone(Call(lambda x: x - x)), lrp.Epsilon(2.0), x, R)
    assert nothing.relevance.item() == 0 and total(nothing.ledger, "dropped") == 8


@pytest.mark.core
def test_pencil_overlapping_max_pool():
    # 1 7 2 with windows of 2, stride 1: the 7 wins both, 3 + 4
    x = torch.tensor([1.0, 7.0, 2.0]).double().reshape(1, 1, 1, 3)
    e = explain_alone(Alone(nn.MaxPool2d((1, 2), 1)), None, x, torch.tensor([[3.0, 4.0]]).double())
    assert e.relevance.flatten().tolist() == [0, 7, 0]
