"""A map of zeros is never silent: a softmax that alone keeps relevance away is passed, and else a warning says so."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp

torch.manual_seed(0)
X = torch.randn(3, 3, 8, 8, dtype=torch.float64)
AGES = torch.arange(5, dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, end):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.linear, self.other = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(4, 5)
        self.end = end

    def forward(self, x):
        f = F.relu(self.conv(x)).mean((2, 3))
        return self.end(self.linear(f), self.other(f))


ENDS = {
    "probability of a class": lambda z, y: z.softmax(1)[:, 1],
    "of two classes": lambda z, y: z.softmax(1)[:, 1:3],
    "expected age": lambda z, y: (z.softmax(1) * AGES.to(z)).sum(1),
    "expected age, as a product": lambda z, y: z.softmax(1) @ AGES.to(z),
    "mean of two": lambda z, y: (z.softmax(1) + y.softmax(1)) / 2,
    "logarithm": lambda z, y: (z.softmax(1) + 1e-3).log(),
    "clamped": lambda z, y: z.softmax(1).clamp(1e-4, 1 - 1e-4),
    "odds": lambda z, y: (z.softmax(1) + 1e-3).log() - (1 - z.softmax(1)).log(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_softmax_that_all_goes_through_is_passed(end, n):
    model = Net(end).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a map that is 0
        e = lrp.Explainer(model, "epsilon")(X[:n], 0)
    assert (e.relevance.flatten(1).abs().amax(1) > 0).all()
    assert e.health.ok, e.health.problems
    assert "SoftmaxTaylor" in str(e._explainer.rules())


def test_it_is_the_taylor_rule_that_is_applied():
    """p₁ as the output: R_j = z_j (p₁ [j = 1] − p₁ p_j), which then goes on as a start at the logits."""
    model, bare = Net(ENDS["probability of a class"]).double().eval(), Net(lambda z, y: z).double().eval()
    z = bare(X).detach()
    p = z.softmax(1)
    start = z * (p[:, 1:2] * F.one_hot(torch.tensor(1), 5) - p[:, 1:2] * p)
    right = lrp.Explainer(bare, lrp.preset("epsilon", epsilon=0))(X, start).relevance
    ours = lrp.Explainer(model, lrp.preset("epsilon", epsilon=0))(X, 0).relevance
    torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-12)


def test_attention_stays_a_constant_where_the_values_reach_the_image():
    """Only what has to be opened is: here the softmax of the output, not that of the attention."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (
                nn.Linear(3, 4),
                nn.Linear(3, 4),
                nn.Linear(3, 4),
                nn.Linear(4, 5),
            )

        def forward(self, x):
            t = x.flatten(2).mT
            a = (self.q(t) @ self.k(t).mT).softmax(-1)
            return self.out((a @ self.v(t)).mean(1)).softmax(1)[:, 1]

    rules = lrp.Explainer(Attention().double().eval(), "cp_lrp").rules(X)
    used = [line.rule for line in rules.lines if line.op in ("softmax", "matmul")]
    assert used == ["–", "–", "Values", "SoftmaxTaylor"]


def test_a_map_of_zeros_is_said():
    """LRP-z⁺ over weights that are all negative shares nothing: relevance is dropped there."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.fill_(-1.0)
    x = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    explainer = lrp.Explainer(model, "excitation_backprop")
    with pytest.warns(UserWarning) as said:
        e = explainer(x, 0)
    assert [str(w.message) for w in said] == [
        "no relevance reached the input of image 0, 1: its map is 0. health.notes says where the relevance went, "
        "and what to try."
    ]
    assert e.health.notes[1:3] == [
        "image 0: 100.0 % of the start went to empty denominators, most of it at 1 (linear, ZPlus): no input has the "
        "sign by which the rule shares: try the preset 'gamma' or 'epsilon'",
        "image 0: the map is 0: no relevance reached the input",
    ]


def test_all_of_it_in_the_bias_is_said():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[1].bias.fill_(1e6)
    e = lrp.Explainer(model, "epsilon")(torch.rand(1, 1, 2, 2, dtype=torch.float64), 0)
    assert e.health.notes[1].startswith(
        "image 0: 100.0 % of the start went to constants, most of it at 1 (linear, Epsilon): "
    )
    assert e.health.notes[1].endswith("try lrp.preset(..., bias='ignore'), or another preset")


def test_all_of_it_in_epsilon_is_said():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double().eval()
    composite = lrp.Composite([(lrp.everything, lrp.Epsilon(1e9))])
    e = lrp.Explainer(model, composite)(torch.rand(1, 1, 2, 2, dtype=torch.float64), 0)
    assert e.health.notes[1].endswith(
        "ε is large beside the values there: try a smaller one, lrp.preset(..., epsilon=1e-9)"
    )


def test_a_start_of_zero_needs_no_warning():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e = lrp.Explainer(model, "epsilon")(torch.rand(2, 1, 2, 2).double(), torch.zeros(2, 2).double())
    assert float(e.relevance.abs().max()) == 0
