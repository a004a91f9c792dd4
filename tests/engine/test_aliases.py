"""An operation by another of its names in torch has the same map."""

import pytest
import torch
from torch import Tensor, nn

import lrp
from lrp.engine.graph.tracing.aliases import ALIASES

X = torch.rand(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TWO = {"multiply", "divide", "true_divide", "subtract"}
COMPARISONS = {"greater", "greater_equal", "less", "less_equal", "not_equal"}


def function(name: str, f):
    """`f` as it is called under that name, of two tensors of values between 0 and 1."""
    if name in TWO:
        return lambda a, b: f(a, b + 0.5)
    if name in COMPARISONS:
        return lambda a, b: a * f(a, b) + a
    if name == "clip":
        return lambda a, b: f(a, 0.2, 0.8)
    if name.endswith("logsumexp"):
        return lambda a, b: f(a, 1, True) + b
    return lambda a, b: f(a) + b


class Net(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.f, self.a, self.b = f, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.a(x).sigmoid(), self.b(x).sigmoid()).flatten(1)


@pytest.mark.parametrize("preset", ["epsilon", "epsilon_plus", "attnlrp"])
@pytest.mark.parametrize("name", ALIASES)
def test_another_name_has_the_same_map(name, preset):
    own = (
        getattr(torch.special, name.removeprefix("special_"))
        if name.startswith("special_")
        else getattr(torch, name)
    )
    ours = lrp.Explainer(Net(function(name, own)), preset)(X, 5)
    theirs = lrp.Explainer(Net(function(name, getattr(torch, ALIASES[name]))), preset)(X, 5)
    assert torch.equal(ours.relevance, theirs.relevance) and bool(ours.relevance.any())
    assert ours.health.ok, ours.health


@pytest.mark.parametrize("name, base", [("softmax", torch.softmax), ("log_softmax", torch.log_softmax)])
def test_softmax_of_torch_special(name, base):
    special = getattr(torch.special, name)
    for preset in ("attnlrp", "epsilon"):
        ours = lrp.Explainer(Net(lambda a, b: special(a, 1) + b), preset)(X, 5)
        theirs = lrp.Explainer(Net(lambda a, b: base(a, 1) + b), preset)(X, 5)
        assert torch.equal(ours.relevance, theirs.relevance) and ours.health.ok


def test_every_name_is_torchs():
    for name, base in ALIASES.items():
        for overload in getattr(torch.ops.aten, name).overloads():
            if "out" not in overload and "Dimname" not in overload and "names" not in overload:
                ours = getattr(getattr(torch.ops.aten, name), overload)._schema.arguments
                theirs = getattr(getattr(torch.ops.aten, base), overload)._schema.arguments
                assert [a.name for a in ours] == [a.name for a in theirs]
