"""A right sum is no proof: what must hold of any net, whatever the ledger says.

What is not seen gets 0.0; a detector wired by hand points at what it detects; a batch is its images; without biases
and ε nothing is lost; what overflows is said.
"""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
from helpers.relu_nets import IMAGE, RELU_NETS, head, lively, relu_net

TERMS = ("bias", "epsilon", "dropped")


def preset(name, **options):
    if name is None or isinstance(name, lrp.Composite):
        return name
    box = {"low": -3.0, "high": 3.0} if name in ("epsilon_gamma_box", "deep_taylor") else {}
    return lrp.preset(name, **box, **options)


def explain(model, composite, x, target):
    return lrp.Explainer(model, composite, dtype=torch.float64)(x, target=target)


# --------------------------------------------------------------------------------------------------- nets


class Excite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), *head(6),
    )  # fmt: skip


def squeeze_excite():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), Excite(6),
        nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Hardswish(), Excite(6), *head(6),
    )  # fmt: skip


class Block(nn.Module):
    """Pre-norm attention written with softmax, then a GELU MLP. [N, T, D]"""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        N, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(N, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (D // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(N, T, D))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A class token, positions, two blocks. The number of tokens follows from the image."""

    def __init__(self, tokens=16):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.token, self.positions = (
            nn.Parameter(torch.randn(1, 1, 8)),
            nn.Parameter(torch.randn(1, tokens + 1, 8)),
        )
        self.blocks, self.norm, self.head = nn.Sequential(Block(), Block()), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Swin(nn.Module):
    """Windows of 2 × 2 patches merged into the batch, then the same shifted by one."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 5)
        self.block, self.shifted = Block(), Block()

    def windows(self, x, block):
        N, H, W, D = x.shape
        x = x.reshape(N, H // 2, 2, W // 2, 2, D).transpose(2, 3).reshape(-1, 4, D)
        return block(x).reshape(N, H // 2, W // 2, 2, 2, D).transpose(2, 3).reshape(N, H, W, D)

    def forward(self, x):
        x = self.windows(self.patches(x).permute(0, 2, 3, 1), self.block)
        x = self.windows(x.roll((-1, -1), (1, 2)), self.shifted).roll((1, 1), (1, 2))
        return self.head(x.mean((1, 2)))


class Recurrent(nn.Module):
    """An LSTM over the columns of the image."""

    def __init__(self, rows=8):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3 * rows, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.lstm(x.permute(0, 3, 1, 2).flatten(2))[0][:, -1])


# ---------------------------------------------------------------------------------------------- not seen


class Sees(nn.Module):
    """A net that is shown a part of the image: `part` cuts it out, or multiplies the rest by zero."""

    def __init__(self, net, part):
        super().__init__()
        self.net, self.part = net, part

    def forward(self, x):
        return self.net(self.part(x))


QUARTER = torch.zeros(8, 8)
QUARTER[4:, 4:] = 1.0
ONE_ROW, STRIDED = torch.zeros(8, 8), torch.zeros(8, 8)
ONE_ROW[5] = STRIDED[::2, ::2] = 1.0


def cut(x):
    return x[:, :, 4:, 4:]


# name: (net, what it is shown, the mask of what it sees)
BLIND = {
    "convolutions": (convolutional, cut, QUARTER),
    "squeeze_excite": (squeeze_excite, cut, QUARTER),
    "transformer": (lambda: ViT(4), cut, QUARTER),
    "lstm": (lambda: Recurrent(1), lambda x: x[:, :, 5:6], ONE_ROW),
    "times_zero": (convolutional, lambda x: x * QUARTER.to(x.dtype), QUARTER),
    "where": (squeeze_excite, lambda x: torch.where(QUARTER > 0, x, 0.5), QUARTER),
    "strided": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.ReLU(), *head(4)), lambda x: x, STRIDED),
}
BLIND_PRESETS = [
    None,
    "epsilon",
    "epsilon_plus_flat",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1_flat",
    "attnlrp",
]


@cache
def blind(name):
    torch.manual_seed(0)
    net, part, seen = BLIND[name]
    return lively(Sees(net(), part)), torch.randn(2, *IMAGE).double(), seen > 0


@pytest.mark.parametrize("composite", BLIND_PRESETS)
@pytest.mark.parametrize("name", BLIND)
def test_what_is_not_seen_gets_exactly_nothing(name, composite):
    model, x, seen = blind(name)
    relevance = explain(model, preset(composite), x, "predicted").relevance
    assert (relevance[:, :, ~seen] == 0.0).all()
    assert (relevance[:, :, seen].abs().sum(1) > 0).all(), "each pixel that is seen gets something"


# ---------------------------------------------------------------------------------- a detector wired by hand


def detector(kernel, pool):
    """Logit c: how much more of colour c than of the others. Only the first convolution's centre is wired."""
    first, second = nn.Conv2d(3, 3, kernel, padding=kernel // 2), nn.Conv2d(3, 3, 3, padding=1, groups=3)
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        first.weight.zero_()[:, :, kernel // 2, kernel // 2] = 1.5 * torch.eye(3) - 0.5
        first.bias.fill_(-0.05)
        second.weight.fill_(1 / 9)
        second.bias.zero_()
        linear.weight.copy_(torch.eye(3))
        linear.bias.zero_()
    between = [nn.MaxPool2d(3, 1, 1)] if pool else []
    return nn.Sequential(first, nn.ReLU(), *between, second, nn.ReLU(), *head(3)[:2], linear).double().eval()


def scene(background):
    """A red square in front of it; and the mask of the square."""
    torch.manual_seed(1)
    x = torch.zeros(1, 3, 12, 12).double()
    x += {
        "grey": 0.9 * torch.rand(12, 12),
        "black": 0.0,
        "blue": torch.tensor([0.0, 0.1, 0.9])[:, None, None],
    }[background]
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[3:7, 5:10] = True
    x[:, :, mask] = torch.tensor([0.9, 0.1, 0.15]).double()[:, None] * (0.7 + 0.3 * torch.rand(20))
    return x, mask


RULES = [lrp.Zero(), lrp.Epsilon(), lrp.Gamma(0.25), lrp.ZPlus(), lrp.AlphaBeta(2.0, 1.0)]
FIRST_RULES = [lrp.Flat(), lrp.WSquare(), lrp.ZBox(0.0, 1.0)]
DETECTIONS = [(3, rule, None) for rule in RULES] + [(1, rule, f) for f in FIRST_RULES for rule in RULES[1::2]]


@pytest.mark.parametrize("background", ["grey", "black", "blue"])
@pytest.mark.parametrize(("kernel", "rule", "first_rule"), DETECTIONS, ids=lambda v: str(v))
def test_a_detector_of_red_points_at_red(kernel, rule, first_rule, background):
    x, mask = scene(background)
    rules = [(lrp.everything, lrp.Epsilon()), (lrp.family("conv"), rule)]
    rules += [(lrp.first, first_rule)] if first_rule else []
    for pool in (False, True) if background == "grey" else (False,):
        model = detector(kernel, pool)
        e = explain(model, lrp.Composite(rules), x, 0)
        assert e.logits[0, 0] > 0.01
        there, everywhere = e.relevance[0, :, mask].abs().sum(), e.relevance.abs().sum()
        assert there >= 0.999 * everywhere and everywhere >= 0.3 * e.logits[0, 0]
        assert e.relevance[0, 0, mask].sum() > 0, "and the red of it speaks for red"


# ------------------------------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize("name", RELU_NETS)
@pytest.mark.parametrize(
    "composite", ["epsilon_plus", "excitation_backprop", "epsilon_gamma_box", "deep_taylor"]
)
def test_without_biases_and_epsilon_nothing_is_lost(name, composite):
    model, x = relu_net(name)
    e = explain(model, preset(composite, bias="ignore", epsilon=0.0), x, "predicted")
    totals = {key: torch.as_tensor(value) for key, value in e.ledger.totals.items()}
    assert (totals["bias"] == 0.0).all() and (totals["epsilon"] == 0.0).all()
    logit = e.logits.amax(1)
    assert torch.allclose(totals["start"], logit, rtol=1e-12)
    reached = e.relevance.sum((1, 2, 3))
    assert ((reached + totals["dropped"] - logit).abs() <= 1e-9 * totals["largest"]).all()
    assert (reached.abs() > 1e-6 * logit.abs()).all(), "a net whose input gets nothing tests nothing"
    assert e.health.ok, e.health.problems


# ------------------------------------------------------------------------------- one by one, and linear

ANY_NET = {"squeeze_excite": squeeze_excite, "swin": Swin, "class_token": ViT, "lstm": Recurrent}


@pytest.mark.parametrize("composite", [None, "attnlrp"])
@pytest.mark.parametrize("name", ANY_NET)
def test_a_batch_is_its_images_and_linear_in_the_start(name, composite):
    torch.manual_seed(3)
    model = lively(ANY_NET[name]())
    x, R1, R2 = torch.randn(3, *IMAGE).double(), torch.randn(3, 5).double(), torch.randn(3, 5).double()
    a, b = torch.tensor([[2.0], [-0.5], [0.0]]).double(), torch.tensor([[-1.0], [3.0], [0.25]]).double()
    explainer = lrp.Explainer(model, preset(composite), dtype=torch.float64)
    one, two, both = (explainer(x, target=R) for R in (R1, R2, a * R1 + b * R2))
    scale = max(float(e.relevance.abs().amax()) for e in (one, two, both))
    expected = a[..., None, None] * one.relevance + b[..., None, None] * two.relevance
    assert (both.relevance - expected).abs().amax() <= 1e-10 * scale
    for i in range(3):
        alone = explainer(x[i : i + 1], target=R1[i : i + 1])
        assert (alone.relevance[0] - one.relevance[i]).abs().amax() <= 1e-10 * scale
        for term in ("start", "input", *TERMS):
            ours, batch = float(alone.ledger.totals[term][0]), float(one.ledger.totals[term][i])
            assert abs(ours - batch) <= 1e-10 * float(one.ledger.totals["largest"][i]), term


# ---------------------------------------------------------------------------------------------- overflow


def test_what_overflows_is_said():
    """Each layer: z = a₁ − a₂ + 1 with nearly a₁ = a₂ = 1: without its bias a denominator of about ε."""
    layers = [nn.Flatten()]
    for _ in range(9):
        linear = nn.Linear(2, 2)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[1.0, -0.999999], [-0.999999, 1.0]]))
            linear.bias.fill_(1.0)
        layers += [linear, nn.ReLU()]
    model, x = nn.Sequential(*layers[:-1]).eval(), torch.ones(1, 1, 1, 2)
    composite = lrp.preset("epsilon", bias="ignore")
    health = lrp.Explainer(model, composite, dtype=torch.float32)(x, target=0).health
    assert not health.ok and any("not finite" in problem for problem in health.problems)
    kept = lrp.Explainer(model.double(), composite, dtype=torch.float64)(x.double(), target=0)
    assert kept.relevance.isfinite().all() and kept.relevance.abs().amax() > 1e40
