"""Every rule on every affine operation against `oracle.py`, and each rule once with a pencil.

One model holds one branch per rule, each on its own channels: a single capture tests an operation under all
rules, and relevance and the ledger come apart by branch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
from helpers import oracle

EPSILONS = (0.0, 1e-6, 0.25)
BIASES = ("absorb", "ignore")
TOLERANCE = 1e-9

# name -> (our rule, the oracle's)
RULES = {}
for bias in BIASES:
    RULES[f"Zero({bias})"] = lrp.Zero(bias=bias), oracle.zero(bias)
    for eps in EPSILONS:
        RULES[f"Epsilon({eps}, {bias})"] = lrp.Epsilon(eps, bias=bias), oracle.epsilon(eps, bias)
        RULES[f"Gamma(0.25, {eps}, {bias})"] = (
            lrp.Gamma(0.25, epsilon=eps, bias=bias),
            oracle.gamma(0.25, eps, bias),
        )
        RULES[f"ZPlus({eps}, {bias})"] = lrp.ZPlus(epsilon=eps, bias=bias), oracle.z_plus(eps, bias)
    RULES[f"Gamma(7, {bias})"] = lrp.Gamma(7.0, epsilon=0.25, bias=bias), oracle.gamma(7.0, 0.25, bias)
for bias in (*BIASES, "full"):
    for eps in EPSILONS:
        RULES[f"AlphaBeta(2, 1, {eps}, {bias})"] = (
            lrp.AlphaBeta(2.0, 1.0, epsilon=eps, bias=bias),
            oracle.alpha_beta(2.0, 1.0, eps, bias),
        )
    RULES[f"AlphaBeta(1, 0, {bias})"] = (
        lrp.AlphaBeta(1.0, 0.0, epsilon=0.25, bias=bias),
        oracle.alpha_beta(1, 0, 0.25, bias),
    )
    RULES[f"AlphaBeta(1.7, 0.7, {bias})"] = (
        lrp.AlphaBeta(1.7, 0.7, epsilon=0.25, bias=bias),
        oracle.alpha_beta(1.7, 0.7, 0.25, bias),
    )
for eps in EPSILONS:
    RULES[f"ZBox({eps})"] = lrp.ZBox(-2.5, 3.0, epsilon=eps), oracle.z_box(-2.5, 3.0, eps)
    RULES[f"WSquare({eps})"] = lrp.WSquare(epsilon=eps), oracle.w_square(eps)
    RULES[f"Flat({eps})"] = lrp.Flat(epsilon=eps), oracle.flat(eps)

ELEMENTWISE_RULES = RULES | {"Pass": (lrp.Pass(), oracle.flat(0.0))}  # one input each: all of R is its share
SUM_RULES = {
    name: rules
    for name, rules in RULES.items()
    if name.startswith(("Zero", "Epsilon")) and "ignore" not in name
}
for eps in EPSILONS:
    SUM_RULES[f"Magnitude({eps})"] = lrp.Magnitude(epsilon=eps), oracle.magnitude(eps)
ALL_RULES = ELEMENTWISE_RULES | SUM_RULES
CONSTANT_RULES = tuple(name for name in SUM_RULES if not name.startswith("Magnitude"))


# -------------------------------------------------------------------------------------------- operations


@dataclass(frozen=True)
class Case:
    """An operation, the [C, H, W] it is fed, how its arguments are cut from that, and its matrix."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    matrix: Callable[[nn.Module], oracle.Affine]
    prepare: Callable = lambda x: (x,)  # must keep the order of the elements
    before: Callable = lambda x: x  # what stands before and
    after: Callable = lambda z: z  # after the operation: only activations, which pass
    rules: tuple[str, ...] = tuple(RULES)


class Call(nn.Module):
    """A function as a module, so that it has a path."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, *inputs):
        return self.function(*inputs, **dict(self.named_parameters()))


def plain(make, *shape, view=None, **options):
    """A module whose matrix `oracle.of_module` knows; `view`: its input's shape, if not `shape`."""
    if view is not None:
        options["prepare"] = lambda x: (x.reshape(x.shape[0], *view),)
    return Case(make, shape, lambda op: oracle.of_module(op, view or shape), **options)


def called(make, *shape, connected=None, bias=None, **options):
    """A function of x that is linear; its matrix by unit vectors."""
    prepare = options.get("prepare", lambda x: (x,))

    def matrix(op):
        return oracle.affine(lambda x: op(*prepare(x)), shape, None if bias is None else bias(op), connected)

    return Case(make, shape, matrix, **options)


def uneven(norm: nn.Module) -> nn.Module:
    """Statistics and scales as after a training that flipped some signs."""
    with torch.no_grad():
        norm.weight.copy_(torch.randn_like(norm.weight) + 0.1)
        norm.bias.copy_(0.5 * torch.randn_like(norm.bias))
        norm.running_mean.copy_(0.5 * torch.randn_like(norm.running_mean))
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.3)
    return norm


def normed(layer, norm):
    return nn.Sequential(layer, uneven(norm))


def normed_matrix(shape, view=None):
    def matrix(op):
        first = oracle.of_module(op[0], view or shape)
        with torch.no_grad():
            out = op[0](torch.zeros(1, *(view or shape)).double()).shape[1:]
        return oracle.scaled(first, *oracle.batch_norm(op[1], out))

    return matrix


def norm_alone(op):
    scale, shift = oracle.batch_norm(op, (3, 4, 4))
    return oracle.Affine(np.diag(scale), shift, np.eye(len(scale), dtype=bool))


class PaddedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 2, 1, 0)))


def padded_matrix(op):
    def padded(weight):
        return lambda x: F.conv2d(F.pad(x, (0, 2, 1, 0)), weight, stride=2)

    weight = op.conv.weight
    return oracle.affine(
        padded(weight), (3, 5, 5), oracle.spread(op.conv.bias, (4, 2, 3)), padded(torch.ones_like(weight))
    )


def dyadic(module: nn.Module) -> nn.Module:
    """Weights from {-1, -1/2, 0, 1/2, 1}: on whole numbers every sum is exact, and many are exactly 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape) / 2)
    return module


def halves(x):
    return tuple(x.chunk(2, dim=1))


def constant(op, spread_to=(3, 4, 4)):
    return op.c.detach().expand(1, *spread_to).numpy()


OPERATIONS = {
    "linear": plain(lambda: nn.Linear(6, 5), 6, 1, 1, view=(6,)),
    "linear_no_bias": plain(lambda: nn.Linear(6, 5, bias=False), 6, 1, 1, view=(6,)),
    "linear_exact": plain(lambda: dyadic(nn.Linear(6, 40)), 6, 1, 1, view=(6,)),
    "linear_on_tokens": Case(
        lambda: nn.Linear(4, 3),
        (3, 2, 4),
        lambda op: oracle.Affine(
            np.kron(np.eye(6), op.weight.detach().numpy()),
            np.tile(op.bias.detach().numpy(), 6),
            np.kron(np.eye(6), np.ones((3, 4))) != 0,
        ),
    ),
    "linear_batch_norm": Case(
        lambda: normed(nn.Linear(6, 5), nn.BatchNorm1d(5)),
        (6, 1, 1),
        normed_matrix((6, 1, 1), (6,)),
        prepare=lambda x: (x.flatten(1),),
    ),
    "conv2d": plain(lambda: nn.Conv2d(3, 4, 3, padding=1), 3, 4, 4),
    "conv2d_exact": plain(lambda: dyadic(nn.Conv2d(3, 4, 2)), 3, 4, 4),
    "conv2d_no_bias": plain(lambda: nn.Conv2d(3, 4, 3, bias=False), 3, 4, 4),
    "conv2d_rows_left_over": plain(lambda: nn.Conv2d(2, 3, 3, stride=3), 2, 5, 4),
    "conv2d_stride_padding": plain(lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(2, 1)), 2, 5, 4),
    "conv2d_dilation": plain(lambda: nn.Conv2d(2, 3, 2, dilation=3, padding=1), 2, 5, 5),
    "conv2d_groups": plain(lambda: nn.Conv2d(4, 6, 2, groups=2), 4, 3, 3),
    "conv2d_depthwise": plain(lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), 3, 4, 4),
    "conv2d_window_all_padding": plain(lambda: nn.Conv2d(2, 3, 1, padding=1), 2, 3, 3),
    "conv2d_same": plain(lambda: nn.Conv2d(2, 3, (2, 3), padding="same"), 2, 3, 4),
    "conv2d_batch_norm": Case(
        lambda: normed(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (3, 4, 4), normed_matrix((3, 4, 4))
    ),
    "conv2d_no_bias_batch_norm": Case(
        lambda: normed(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)),
        (4, 4, 4),
        normed_matrix((4, 4, 4)),
    ),
    "conv1d": plain(lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), 3, 1, 7, view=(3, 7)),
    "conv3d": plain(
        lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=(0, 1, 0)), 4, 3, 3, view=(2, 2, 3, 3)
    ),
    "conv_transpose1d": plain(lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1), 3, 1, 4, view=(3, 4)),
    "conv_transpose2d": plain(
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), 4, 3, 2
    ),
    "conv_transpose3d": plain(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), 4, 2, 2, view=(2, 2, 2, 2)),
    "pad_then_conv2d": Case(PaddedConv, (3, 5, 5), padded_matrix),
    "batch_norm": Case(lambda: uneven(nn.BatchNorm2d(3)), (3, 4, 4), norm_alone, after=F.relu,
                       rules=tuple(ELEMENTWISE_RULES)),
    # inputs provably >= 0, where an engine may skip half of a sign-splitting rule
    "linear_after_relu": Case(
        lambda: nn.Linear(6, 5), (6, 1, 1), lambda op: oracle.of_module(op, (6,)),
        prepare=lambda x: (x.flatten(1),), before=F.relu,
    ),
    "conv2d_after_relu": plain(lambda: nn.Conv2d(3, 4, 3, padding=1), 3, 4, 4, before=F.relu),
    "conv2d_batch_norm_after_relu": Case(
        lambda: normed(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (3, 4, 4), normed_matrix((3, 4, 4)),
        before=F.relu,
    ),
    "pad_then_conv2d_after_relu": Case(PaddedConv, (3, 5, 5), padded_matrix, before=F.relu),
    "batch_norm_after_relu": Case(
        lambda: uneven(nn.BatchNorm2d(3)), (3, 4, 4), norm_alone, before=F.relu, after=F.relu
    ),
    "avg_pool2d_after_relu": plain(lambda: nn.AvgPool2d(3, 2, 1), 2, 5, 5, before=F.relu),
    "add_after_relu": called(
        lambda: Call(torch.add), 4, 3, 2, prepare=halves, before=F.relu, rules=tuple(SUM_RULES)
    ),
    "avg_pool2d": plain(lambda: nn.AvgPool2d(2), 2, 4, 5),
    "avg_pool2d_overlap_padding": plain(lambda: nn.AvgPool2d(3, 2, 1), 2, 5, 5),
    "avg_pool2d_padding_not_counted": plain(lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), 2, 5, 5),
    "avg_pool2d_ceil": plain(lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), 2, 4, 6),
    "avg_pool2d_ceil_not_counted": plain(
        lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), 2, 3, 5
    ),
    "avg_pool2d_divisor": plain(lambda: nn.AvgPool2d(2, divisor_override=3), 2, 4, 4),
    "adaptive_avg_pool2d": plain(lambda: nn.AdaptiveAvgPool2d(2), 2, 4, 6),
    "adaptive_avg_pool2d_global": plain(lambda: nn.AdaptiveAvgPool2d(1), 3, 3, 2),
    "adaptive_avg_pool2d_uneven": plain(lambda: nn.AdaptiveAvgPool2d((3, 2)), 2, 5, 3),
    "adaptive_avg_pool2d_upwards": plain(lambda: nn.AdaptiveAvgPool2d(5), 2, 2, 3),
    "mean_positions": called(lambda: Call(lambda x: x.mean((2, 3))), 3, 2, 3),
    "mean_channels": called(lambda: Call(lambda x: x.mean(1)), 3, 2, 3),
    "mean_keepdim": called(lambda: Call(lambda x: x.mean(-1, keepdim=True)), 3, 2, 3),
    "sum_positions": called(lambda: Call(lambda x: x.sum((2, 3))), 3, 2, 3),
    "upsample_nearest": called(lambda: Call(lambda x: F.interpolate(x, scale_factor=2.0)), 2, 2, 3),
    "upsample_bilinear": called(
        lambda: Call(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")), 2, 2, 3
    ),
    "times_constant": called(lambda: Call(lambda x, c: x * c, c=torch.randn(1, 3, 1, 1)), 3, 2, 2,
                             rules=tuple(ELEMENTWISE_RULES)),
    "matmul_constant": called(lambda: Call(lambda x, c: x @ c, c=torch.randn(4, 3)), 2, 3, 4),
    "times_number": called(lambda: Call(lambda x: x * -1.5), 2, 2, 2),
    "divided_by_number": called(lambda: Call(lambda x: x / -1.5), 2, 2, 2),
    "plus_constant": Case(
        lambda: Call(lambda x, c: x + c, c=torch.randn(1, 3, 1, 1)),
        (3, 4, 4),
        lambda op: oracle.Affine(np.eye(48), constant(op).reshape(-1), np.eye(48, dtype=bool)),
        rules=CONSTANT_RULES,
    ),
    "add": called(lambda: Call(torch.add), 4, 3, 2, prepare=halves, rules=tuple(SUM_RULES)),
    "subtract": called(lambda: Call(torch.sub), 4, 3, 2, prepare=halves, rules=tuple(SUM_RULES)),
    "add_scaled": called(lambda: Call(lambda x, y: torch.add(x, y, alpha=2)), 4, 3, 2, prepare=halves,
                         rules=tuple(SUM_RULES)),
    "add_broadcast": called(
        lambda: Call(lambda x, y: x + y), 4, 3, 1, prepare=lambda x: (x[:, :3, :, :], x[:, 3:, :, :]),
        rules=tuple(SUM_RULES),
    ),
    "subtract_exact": called(lambda: Call(torch.sub), 4, 3, 2, prepare=halves, rules=tuple(SUM_RULES)),
    "mean_exact": called(lambda: Call(lambda x: x.mean((2, 3))), 6, 2, 2),
}  # fmt: skip


# ---------------------------------------------------------------------------------------- one branch a rule


def images(shape, whole: bool) -> torch.Tensor:
    """[6, *shape]: signed, non-negative, all zero, non-positive, with zeros, signed; `whole`: whole numbers."""
    signed = (
        torch.randint(-2, 3, (6, *shape)).double() if whole else torch.randn(6, *shape, dtype=torch.float64)
    )
    x = signed.clone()
    x[1] = signed[1].abs()
    x[2] = 0.0
    x[3] = -signed[3].abs()
    x[4] = signed[4].relu()
    return x


class Branch(nn.Module):
    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        self.op = case.make()

    def forward(self, x):
        return self.case.after(self.op(*self.case.prepare(self.case.before(x)))).flatten(1)


class Branches(nn.Module):
    """Each branch sees its own channels and writes its own outputs."""

    def __init__(self, branches: dict[str, nn.Module], channels: int):
        super().__init__()
        self.channels = channels
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x):
        cuts = x.split(self.channels, dim=1)
        return torch.cat([branch(cut) for branch, cut in zip(self.children(), cuts, strict=True)], dim=1)


def rows_of(ledger, name):
    return [row for row in ledger if row.path == name or row.path.startswith(name + ".")]


def sums(rows, term):
    return sum(np.asarray(getattr(row, term)) for row in rows)


@cache
def explained(operation: str):
    """rule -> (its input, R, the operation, relevance, its ledger rows); an error is kept, not tried again."""
    try:
        return explain_branches(operation)
    except Exception as error:
        return error


def explain_branches(operation: str):
    torch.manual_seed(sum(map(ord, operation)))
    case = OPERATIONS[operation]
    names = {f"b{i:02d}": rule for i, rule in enumerate(case.rules)}
    model = Branches({name: Branch(case) for name in names}, case.shape[0]).double().eval()
    x = images((len(names) * case.shape[0], *case.shape[1:]), whole="exact" in operation)
    with torch.no_grad():
        logits = model(x)
    R = torch.randn_like(logits)
    composite = lrp.Composite([(lrp.path(f"{name}.op*"), ALL_RULES[rule][0]) for name, rule in names.items()])
    e = lrp.Explainer(model, composite=composite, dtype=torch.float64)(x, target=R)
    torch.testing.assert_close(e.logits, logits, rtol=1e-12, atol=1e-12)
    ledger, found = e.ledger, {}
    outputs = logits.shape[1] // len(names)
    for i, (name, rule) in enumerate(names.items()):
        channels, ks = (
            slice(i * case.shape[0], (i + 1) * case.shape[0]),
            slice(i * outputs, (i + 1) * outputs),
        )
        found[rule] = (
            case.before(x[:, channels]).numpy(),
            R[:, ks].numpy(),
            getattr(model, name).op,
            e.relevance[:, channels].numpy(),
            rows_of(ledger, name),
        )
    return found


KNOWN = list(OPERATIONS)
PRODUCT = [(operation, rule) for operation in KNOWN for rule in OPERATIONS[operation].rules]


def literal(operation, rule):
    """The oracle's rule; ZBox's bounds hold at the model's input, and a ReLU on the way carries them along."""
    if rule.startswith("ZBox") and OPERATIONS[operation].before is F.relu:
        return oracle.z_box(0.0, 3.0, float(rule[5:-1]))
    return ALL_RULES[rule][1]


@pytest.mark.parametrize(("operation", "rule"), PRODUCT, ids=[f"{o}-{r}" for o, r in PRODUCT])
def test_rule_on_operation(operation, rule):
    found = explained(operation)
    if isinstance(found, Exception):
        raise found
    a, R, op, relevance, rows = found[rule]
    matrix = OPERATIONS[operation].matrix(op)
    for i in range(len(a)):
        expected = oracle.distribute(literal(operation, rule), matrix, a[i], R[i])
        agrees(relevance[i].reshape(-1), expected.relevance, f"relevance of image {i}")
        scale = np.abs(R[i]).sum()
        for term in ("bias", "epsilon", "dropped"):
            agrees(sums(rows, term)[i], getattr(expected, term), f"{term} of image {i}", scale)
        assert abs(sums(rows, "unexplained")[i]) <= TOLERANCE * scale


def agrees(ours, expected, what, scale=0.0):
    """Equal to 1e-9 of the largest; where nothing is expected (and no scale given) nothing may come."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape, what
    error, bound = np.abs(ours - expected), TOLERANCE * max(np.abs(expected).max(), float(scale))
    worst = np.unravel_index(error.argmax(), error.shape)
    if not error[worst] <= bound:
        pytest.fail(
            f"{what}, at {worst}: ours {ours[worst]!r}, oracle {expected[worst]!r}, allowed {bound:.1e}"
        )


# ------------------------------------------------------------------------------------- one operation alone


class Alone(nn.Module):
    def __init__(self, op, prepare=lambda x: (x,)):
        super().__init__()
        self.op = op
        self.prepare = prepare

    def forward(self, x):
        return self.op(*self.prepare(x)).flatten(1)


def explain_alone(model, rule, x, R, predicate=None):
    composite = lrp.Composite([] if rule is None else [(predicate or lrp.path("op*"), rule)])
    return lrp.Explainer(model.double().eval(), composite=composite, dtype=torch.float64)(x, target=R)


def total(ledger, term, i=0):
    return float(ledger.totals[term][i])


@pytest.mark.parametrize("operation", KNOWN)
def test_default_rule_is_epsilon(operation):
    """A composite that names nothing: Epsilon(1e-6); the totals are those of the one operation."""
    torch.manual_seed(5)
    case = OPERATIONS[operation]
    model = Branch(case).double().eval()
    x = images(case.shape, whole=False)
    R = torch.randn_like(model(x)).detach()
    e = explain_alone(model, None, x, R)
    matrix, a = case.matrix(model.op), case.before(x)
    for i in range(len(x)):
        expected = oracle.distribute(oracle.epsilon(1e-6), matrix, a[i], R[i])
        scale = float(R[i].abs().sum())
        agrees(e.relevance[i].reshape(-1).numpy(), expected.relevance, f"relevance of image {i}")
        for term in ("bias", "epsilon", "dropped"):
            agrees(total(e.ledger, term, i), getattr(expected, term), term, scale)
        agrees(total(e.ledger, "start", i), float(R[i].sum()), "start", scale)
        agrees(
            total(e.ledger, "input", i), expected.relevance.sum(), "input", np.abs(expected.relevance).sum()
        )


FAMILIES = {
    "conv": ["conv2d", "conv1d", "conv3d", "pad_then_conv2d", "conv2d_batch_norm"],
    "linear": ["linear", "linear_on_tokens", "linear_batch_norm"],
    "norm": ["batch_norm"],
    "pool": ["avg_pool2d", "adaptive_avg_pool2d", "adaptive_avg_pool2d_uneven", "mean_positions"],
    "sum": ["add", "subtract"],
}


@pytest.mark.parametrize(("family", "operation"), [(f, o) for f, os in FAMILIES.items() for o in os])
def test_family_finds_the_operation(family, operation):
    torch.manual_seed(6)
    case = OPERATIONS[operation]
    model = Branch(case).double().eval()
    x = images(case.shape, whole=False)
    R = torch.randn_like(model(x)).detach()
    e = explain_alone(model, lrp.Epsilon(0.25), x, R, lrp.family(family))
    expected = oracle.distribute(oracle.epsilon(0.25), case.matrix(model.op), x[0], R[0])
    agrees(e.relevance[0].reshape(-1).numpy(), expected.relevance, family)


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
            relevance = handed.relevance.reshape(3, 7, 4)[:, 2:-1]
            scale, shift = oracle.batch_norm(norm, (3, 4, 4))
            diagonal = oracle.Affine(np.diag(scale), shift, np.eye(48) != 0)
            expected = oracle.distribute(oracle.epsilon(), diagonal, x[i], relevance)
            agrees(e.relevance[i].reshape(-1).numpy(), expected.relevance, "relevance")


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


# ------------------------------------------------------------------- movement, activations, max pools, sums

MOVEMENTS = {
    "reshape": lambda x: x.reshape(x.shape[0], 4, -1),
    "view_transpose": lambda x: x.transpose(1, 3),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "slice": lambda x: x[:, 1:, ::2, :-1],
    "split": lambda x: torch.cat(x.split([1, 3], dim=1)[::-1], dim=1),
    "chunk_one_kept": lambda x: x.chunk(2, dim=3)[1],
    "cat_with_itself": lambda x: torch.cat([x, x[:, :1], x], dim=1),
    "stack": lambda x: torch.stack([x, x], dim=2),
    "zero_pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "crop_by_pad": lambda x: F.pad(x, (-1, 1, 0, -1)),
    "roll": lambda x: x.roll((1, -2), dims=(2, 3)),
    "flip": lambda x: x.flip(3),
    "index": lambda x: x[:, [0, 2, 2, 1]],
    "select": lambda x: x[:, 2],
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "clone": lambda x: x.clone().contiguous(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "channel_shuffle": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(-1),
    "unfold": lambda x: F.unfold(x, 2),
}


@pytest.mark.parametrize("name", MOVEMENTS)
def test_relevance_moves_with_its_element(name):
    torch.manual_seed(10)
    move = MOVEMENTS[name]
    x = torch.randn(2, 4, 4, 6).double()
    R = torch.randn_like(move(x).flatten(1))
    e = explain_alone(Alone(Call(move)), None, x, R)
    came_from = oracle.dense(move, (4, 4, 6))
    for i in range(2):
        agrees(e.relevance[i].numpy().reshape(-1), came_from.T @ R[i].numpy(), name)
    scale = float(R.abs().sum())
    for term in (
        "bias",
        "epsilon",
        "dropped",
    ):  # zeros of a pad take what reaches them, and nobody else anything
        took = float(R[0].sum() - e.relevance[0].sum()) if term == "bias" else 0.0
        agrees(total(e.ledger, term), took, term, scale)


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Hardtanh(), nn.ELU(), nn.GELU(),
    nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.Softplus(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(),
    nn.SELU(), nn.PReLU(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_passes(activation):
    torch.manual_seed(11)
    x, R = torch.randn(3, 2, 3, 3).double(), torch.randn(3, 18).double()
    e = explain_alone(Alone(activation), None, x.clone(), R)
    assert torch.equal(e.relevance.flatten(1), R)


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
    """BN -> ReLU -> conv: the batch norm has a rule of its own, and the convolution is the first one."""
    torch.manual_seed(20)
    norm, conv, linear = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.Linear(48, 5)
    model = nn.Sequential(uneven(norm), nn.ReLU(), conv, nn.ReLU(), nn.Flatten(), linear).double().eval()
    x, R = torch.randn(2, 3, 3, 4).double(), torch.randn(2, 5).double()
    _, first, _, last = PRESETS[preset]
    e = lrp.Explainer(model, composite=preset, dtype=torch.float64)(x, target=R)
    scale, shift = oracle.batch_norm(norm, (3, 3, 4))
    diagonal = oracle.Affine(np.diag(scale), shift, np.eye(36) != 0)
    stages = [diagonal, oracle.of_module(conv, (3, 3, 4)), oracle.of_module(linear, (48,))]
    for i in range(2):
        a = [x[i].reshape(-1).numpy()]
        for stage in stages:
            a.append(np.maximum(stage(a[-1]), 0))
        relevance = R[i].numpy()
        for k, rule in ((2, last), (1, first), (0, norm_rule)):
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


@pytest.mark.parametrize("name", PENCIL)
def test_pencil(name):
    w, b, rule, a, R, *expected = PENCIL[name]
    for who, got in neuron([float(v) for v in w], float(b), rule, [float(v) for v in a], float(R)):
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12, err_msg=who)


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


def test_pencil_a_summand_twice():
    # x + x = 6, R = 8, ε = 2: each gets 8 · 3 / 8. x - x = 0: nothing to share
    x, R = torch.tensor([3.0]).double().reshape(1, 1, 1, 1), torch.tensor([[8.0]]).double()
    double = explain_alone(Alone(Call(lambda x: x + x)), lrp.Epsilon(2.0), x, R)
    assert double.relevance.item() == pytest.approx(6) and total(double.ledger, "epsilon") == pytest.approx(2)
    nothing = explain_alone(Alone(Call(lambda x: x - x)), lrp.Epsilon(2.0), x, R)
    assert nothing.relevance.item() == 0 and total(nothing.ledger, "dropped") == 8


def test_pencil_overlapping_max_pool():
    # 1 7 2 with windows of 2, stride 1: the 7 wins both, 3 + 4
    x = torch.tensor([1.0, 7.0, 2.0]).double().reshape(1, 1, 1, 3)
    e = explain_alone(Alone(nn.MaxPool2d((1, 2), 1)), None, x, torch.tensor([[3.0, 4.0]]).double())
    assert e.relevance.flatten().tolist() == [0, 7, 0]
