"""LRP-γ with one product more than LRP-ε where a >= 0 and relevance is zero wherever z <= 0, else with two more."""

from __future__ import annotations

from typing import Any

import torch

from lrp.engine.affine import Affine, Branch, Flow, total
from lrp.engine.speed.epsilon_in_bias import bias_with_epsilon, quotient_with_epsilon_in_bias
from lrp.engine.speed.low_precision import total_in_low_precision
from lrp.engine.speed.site import KnownSite
from lrp.engine.weight_versions import Amplified, Times, magnitude, negative, positive, unchanged


def gamma_of(branches: tuple[Branch, ...]) -> float | None:
    """γ, where these are the branches of LRP-γ; else None."""
    version = branches[0].terms[0][1]
    if not isinstance(version, Amplified):
        return None
    more, less = Amplified(version.gamma, positive), Amplified(version.gamma, negative)
    expected = (
        Branch((("a+", more), ("a-", less)), more, sign=1, where="z > 0"),
        Branch((("a+", less), ("a-", more)), less, sign=-1, where="z < 0"),
    )
    return version.gamma if branches == expected else None


def hand_down_gamma(
    gamma: float, rule: Any, op: Affine, site: KnownSite, a: Any, z: Any, relevance: Any
) -> Flow:
    """With a⁺w⁺ + a⁻w⁻ = (aw + |a||w|) / 2 and a⁺w⁻ + a⁻w⁺ = (aw − |a||w|) / 2, and the same for the bias, it is

    D = sgn(z) ((1 + γ/2) |z| + γ/2 (Σ |a||w| + |b|)).

    All terms in the outer parentheses are >= 0: nothing cancels.
    """
    ignored = rule.bias == "ignore" and op.bias is not None
    single = site.zero_below and site.nonneg and not rule.relative  # a relative ε needs every D
    if single and not ignored:  # an ignored bias may turn the sign of z
        return _one_branch(gamma, rule, op, site, a, z, relevance)
    z, b = (z - op.bias, None) if ignored else (z, op.bias)
    own, more = Times(1 + gamma / 2, unchanged), Times(gamma / 2, magnitude)
    weights = [site.version(op.weight, version) for version in (own, more)]
    shift = 0.0 if rule.relative else rule.epsilon
    size = abs(z) * own.factor + total_in_low_precision(
        op,
        site,
        a if site.nonneg else abs(a),
        weights[1],
        bias_with_epsilon(None if b is None else more(b), shift),
    )
    sign = torch.sign(z)
    s = sign * quotient_with_epsilon_in_bias(relevance, size, rule, 1, site.dims, shifted=shift != 0)[0]
    signed = sign * s
    first, second = op.adjoint(s, weights[0]), op.adjoint(signed, weights[1])
    received = a * (first + second) if site.nonneg else a * first + abs(a) * second
    decided = torch.where(z == 0, 0.0, relevance)
    _, epsilon, dropped = quotient_with_epsilon_in_bias(decided, size, rule, 1, site.dims, shifted=shift != 0)
    bias = 0.0 if b is None else total(s * own(b) + signed * more(b))
    return Flow((received,), bias, epsilon, dropped + total(relevance - decided))


def _one_branch(gamma: float, rule: Any, op: Affine, site: KnownSite, a: Any, z: Any, relevance: Any) -> Flow:
    """Where a >= 0 and only z > 0 has relevance: weights w + γw⁺, bias b + γb⁺."""
    more, own, sign = Times(gamma, positive), z, 0
    c = None if op.bias is None else more(op.bias)
    shift = 0.0
    if site.rectified is not None:
        own, sign, shift = site.rectified, 1, rule.epsilon
    d = own + total_in_low_precision(op, site, a, site.version(op.weight, more), bias_with_epsilon(c, shift))
    s, epsilon, dropped = quotient_with_epsilon_in_bias(
        relevance, d, rule, sign, site.dims, shifted=shift != 0
    )
    bias = 0.0 if c is None else total(torch.where(d == shift, 0.0, s * (op.bias + c)))
    amplified = site.version(op.weight, Amplified(gamma, positive))
    return Flow((a * op.adjoint(s, amplified),), bias, epsilon, dropped)
