"""For piecewise linear nets, the rule Zero at all layers gives gradient × input."""

from typing import Any

import torch
from torch import Tensor, nn

import lrp


def is_gradient_times_input(model: nn.Module, x: Tensor, target: Any) -> lrp.Explanation:
    """Compare with autograd; `target`: a class, or the relevance [N, K] of the logits.

    The backward pass of the gradient starts from R / logit for relevance R.
    """
    leaf = x.detach().clone().requires_grad_()
    logits = model(leaf)
    share = torch.zeros_like(logits)
    if isinstance(target, int):
        share[:, target] = 1.0
    else:
        share = target / logits.detach()
    (gradient,) = torch.autograd.grad((logits * share).sum(), leaf)
    explainer = lrp.Explainer(model, lrp.preset("epsilon", epsilon=0.0), dtype=torch.float64)
    e = explainer(x.detach(), target=target)
    expected = gradient * x.detach()
    largest = expected.abs().amax()
    assert largest > 0, "nothing to compare"
    assert (e.relevance - expected).abs().amax() <= 1e-9 * largest
    return e
