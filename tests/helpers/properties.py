"""What must hold for the explanation of any net."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import lrp

LOW, HIGH = -4.0, 4.0


def preset(name: str) -> lrp.Composite:
    boxed = name in ("epsilon_gamma_box", "deep_taylor")
    return lrp.preset(name, low=LOW, high=HIGH) if boxed else lrp.preset(name)


def check_net(net: nn.Module, x: torch.Tensor, name: str, piecewise_linear: bool) -> None:
    """The program's logits are the model's; the ledger closes; no image depends on another; LRP-0 is gradient × input.

    Raises:
        AssertionError: which of these does not hold, by how much.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # maps of zeros occur
        explainer = lrp.Explainer(net, preset(name), dtype=torch.float64)
        try:
            together = explainer(x, 1)
        except lrp.CompositeError:
            assert name == "kaifishr"  # its average pools do not fit every max pool
            return
        health = together.health
        assert health.ok, health.problems
        scale = together.relevance.abs().amax().clamp(min=1e-30)
        for n in (1, 2):
            fewer = explainer(x[:n], 1).relevance
            apart = float((fewer - together.relevance[:n]).abs().amax() / scale)
            assert apart <= 1e-9, f"{n} of {len(x)} images have another map than in the batch, by {apart:.1e}"
        if piecewise_linear:
            leaf = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
            expected = gradient * x
            ours = lrp.Explainer(net, lrp.preset("epsilon", epsilon=0.0), dtype=torch.float64)(x, 1).relevance
            largest = expected.abs().amax().clamp(min=1e-30)
            apart = float((ours - expected).abs().amax() / largest)
            assert apart <= 1e-8, f"LRP-0 differs from gradient × input by {apart:.1e}"
