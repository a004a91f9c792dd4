"""Explain one operation and compare the result with the oracle."""

import numpy as np
import pytest
import torch
from torch import nn

import lrp
from helpers.operations import Case

TERMS = ("bias", "epsilon", "dropped")
TOLERANCE = 1e-9


def images(shape, whole: bool) -> torch.Tensor:
    """[6, *shape]: signed, non-negative, all zero, non-positive, with zeros, signed; `whole`: integers."""
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
    """The operation of a case with the functions applied before and after it."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        self.op = case.make()

    def forward(self, x):
        return self.case.after(self.op(*self.case.prepare(self.case.before(x)))).flatten(1)


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


# ------------------------------------------------------------------------------------------- comparisons


def agrees(ours, expected, what, scale=0.0):
    """Equal within 1e-9 of the largest expected value or of `scale`; exactly 0 if both are 0."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape, what
    error, bound = np.abs(ours - expected), TOLERANCE * max(np.abs(expected).max(), float(scale))
    worst = np.unravel_index(error.argmax(), error.shape)
    if not error[worst] <= bound:
        pytest.fail(
            f"{what}, at {worst}: ours {ours[worst]!r}, oracle {expected[worst]!r}, allowed {bound:.1e}"
        )


TINY = 1e-7  # if almost nothing is expected, the tolerance is 1e-9 · 1e-7 of the relevance that entered


def same(e, i, expected, R, largest=0.0):
    """Compare one image's relevance and the three terms of the ledger's totals."""
    scale = max(float(np.abs(np.asarray(R)).sum()), largest)
    agrees(e.relevance[i].reshape(-1).numpy(), expected.relevance, f"relevance of image {i}", TINY * scale)
    for term in TERMS:
        agrees(total(e.ledger, term, i), getattr(expected, term), f"{term} of image {i}", scale)
