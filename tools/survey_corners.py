"""The figures of docs/models.md, "Two corners of the tables": where relevance is lost, and whether weights or rules lose it.

python tools/survey_corners.py timm:convmixer_768_32 timm:nextvit_small    # minutes
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import lrp
from lrp.survey.build import model_to_check


def with_positive_scales(model: nn.Module) -> nn.Module:
    """The model with the absolute values of its batch norms' scales; in place."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            module.weight.data.abs_()
    return model


def shares(name: str, preset: str | None, positive: bool) -> str:
    """What became of the start, and which operations took most of what did not reach the image, in one line."""
    torch.manual_seed(0)  # as the survey does
    model, x = model_to_check(name)
    e = lrp.Explainer(with_positive_scales(model) if positive else model, preset, dtype=torch.float64)(x)
    start = float(e.logits[0, e.target[0]])
    lost = Counter[str]()
    for row in e.ledger:
        lost[f"{row.path or '(model)'} {row.op}"] += abs(float(row.dropped[0] / start))
    most = ", ".join(f"{at} {share:.2f}" for at, share in lost.most_common(3))
    parts = {part: float(values[0]) for part, values in e.health.shares.items()}
    return (
        f"{name}, {preset or 'default'}{', scales positive' if positive else ''}: "
        f"{', '.join(f'{part} {share:.2g}' for part, share in parts.items())}; "
        f"amplified {float(e.health.amplification[0]):.3g}; dropped at {most}"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[1:]:
        for preset, positive in ((None, False), (None, True), ("epsilon", False)):
            print(shares(name, preset, positive), flush=True)
