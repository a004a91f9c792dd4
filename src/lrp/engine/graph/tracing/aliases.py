"""Operations that torch has under several names, by the one that the vocabulary has."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten: Any = torch.ops.aten

ALIASES = {
    "absolute": "abs", "negative": "neg", "multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "clip": "clamp",
    "arctan": "atan", "fix": "trunc", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne",
    "special_expit": "sigmoid", "special_erf": "erf", "special_exp2": "exp2", "special_expm1": "expm1",
    "special_log1p": "log1p", "special_logsumexp": "logsumexp",
}  # fmt: skip
"""Names of the same overloads with the same arguments, as torch's documentation lists them."""
OTHER_OVERLOADS = {
    aten.special_softmax.default: aten.softmax.int,
    aten.special_log_softmax.default: aten.log_softmax.int,
}


def by_usual_name(node: fx.Node) -> fx.Node:
    """The node, calling the operation by its usual name."""
    target: Any = node.target
    if target in OTHER_OVERLOADS:
        node.target = OTHER_OVERLOADS[target]
    elif isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        usual = ALIASES.get(target._schema.name.removeprefix("aten::"))
        if usual:
            node.target = getattr(getattr(aten, usual), target._overloadname)
    return node
