"""Health: whether an explanation can be trusted, judged from its ledger, its logits and the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrp.engine.results.account import sign_in_words
from lrp.engine.results.ledger import LEAST, Ledger
from lrp.errors import CaptureError

# The limits of a correct explanation.
# Unexplained relevance, relative to the Σ|R| entering a node:
CLOSES = {torch.float64: 1e-9, torch.float32: 1e-3}
# Difference to the model's logits, relative to the largest one; the larger limit of both dtypes counts:
AGREES = {torch.float64: 1e-9, torch.float32: 1e-4}
HALF = 3e-2  # the same, for a model in half precision
# Difference between the logits of an image alone and in its batch, relative to the largest one:
APART = {torch.float64: 1e-8, torch.float32: 1e-3}
# `wrong_sign`, for the rounding errors of fast convolutions:
SIGNS = {torch.float64: 1e-12, torch.float32: 1e-5}
# CLOSES and SIGNS in mixed precision: rounding errors of up to 1/256 largely cancel; 6e-3 was the worst seen.
LOW_PRECISION = 1e-2


@dataclass(frozen=True)
class Health:
    """Whether an explanation is computed correctly, and notes about it.

    Attributes:
        ok: the program's logits are the model's, and those of each image alone; every node closes; everything is
            finite. Nothing else is checked: a correct map can have lost most of its relevance to biases.
        problems: why `ok` is False, one sentence each.
        notes: amplification and shares per image, in words; they do not change `ok`.
        logit_error: largest difference to the model's own logits, relative to the largest of them.
        closing_error: the worst node's unexplained part, relative to the Σ|R| entering it.
        amplification: [N] largest Σ|R| of a node over |start|.
        shares: [N] each: "input", "bias", "epsilon", "dropped" as fractions of the start; of several inputs also
            "input NAME" of each.
    """

    ok: bool
    problems: list[str]
    notes: list[str]
    logit_error: float
    closing_error: float
    amplification: Tensor
    shares: dict[str, Tensor]

    def __str__(self) -> str:
        return "\n".join(["ok" if self.ok else "NOT OK", *self.problems, *self.notes])


def difference_to_model(output: Tensor, own: Tensor) -> tuple[float, float]:
    """The largest difference of a program's output to the model's own, and its limit; both relative to the largest value."""
    limit = max(AGREES[output.dtype], AGREES.get(own.dtype, HALF))
    own = own.to(output)
    return float((output - own).abs().max()) / max(float(own.abs().max()), LEAST), limit


def refuse_other_logits(name: str, output: Tensor, own: Tensor) -> None:
    """Raise if a program, which holds packed sequences as padded ones, and the model do not return the same.

    Raises:
        CaptureError: by how much they differ, and how not to depend on the longest sequence.
    """
    if own.numel() == output.numel():
        difference, limit = difference_to_model(output, own.reshape(output.shape))
        if difference <= limit:
            return
        apart = f"by up to {difference:.1e} of the largest"
    else:
        apart = f"{own[0].numel()} of an image, not {output[0].numel()}"
    raise CaptureError(
        f"{name} packs sequences, and its logits are not those of padded ones ({apart}): give pad_packed_sequence a "
        "total_length=, and apply to a packed sequence's data only what acts on each step alone."
    )


def judge_health(
    ledger: Ledger,
    logits: Tensor,
    output: Tensor,
    own: Tensor,
    relevance: Sequence[Tensor],
    negative: bool,
    low_precision: bool = False,
) -> Health:
    """Health from a ledger, the program's logits [N, K], its and the model's own output [N, K], and the relevance at each input.

    `output` is the logits, after the softmax or sigmoid at the end of the model if one was left out.
    `negative`: a target's logit is negative while its start is 1. `low_precision`: computed in mixed precision.
    """
    dtype = logits.dtype
    logit_error, limit = difference_to_model(output, own)
    closes = LOW_PRECISION if low_precision else CLOSES[dtype]
    worst = max(ledger.rows, key=lambda r: float(r.closing_error.nan_to_num(torch.inf).max()), default=None)
    closing = float(worst.closing_error.max()) if worst else 0.0
    problems = []
    if not all(bool(torch.isfinite(t).all()) for t in (*relevance, logits)):
        problems.append("not finite: relevance or logits hold NaN or infinite values")
    if not logit_error <= limit:
        problems.append(
            f"logits differ from the model's by {logit_error:.1e} of the largest (limit {limit:.0e})"
        )
    mixed = float((logits - ledger.logits).abs().max()) / max(float(ledger.logits.abs().max()), LEAST)
    if mixed > APART[dtype]:
        problems.append(
            f"the images of a batch change each other's logits, by {mixed:.1e} of the largest (limit "
            f"{APART[dtype]:.0e}): explain them one at a time"
        )
    if worst and not closing <= closes:
        problems.append(
            f"{worst.path or '(model)'} ({worst.op}, {worst.rule}) does not close: {closing:.1e} of the relevance "
            f"entering it is unexplained (limit {closes:.0e})"
        )
    signs = SIGNS[dtype]
    declared = max(ledger.rows, key=lambda r: float(r.wrong_sign.max()), default=None)
    if declared and float(declared.wrong_sign.max()) > (LOW_PRECISION if low_precision else signs):
        problems.append(
            f"{declared.path or '(model)'} ({declared.op}, {declared.rule}): a Branch declares the sign of its denominator, and "
            f"{float(declared.wrong_sign.max()):.1e} of Σ|D| has the other sign: remove `sign` from the Branch, or correct its terms"
        )
    t = ledger.totals
    safe = torch.where(t["start"] == 0, torch.ones_like(t["start"]), t["start"])
    shares = {name: t[name] / safe for name in t if name.startswith("input") or name in TRY}
    amplification = t["largest"] / safe.abs()
    notes = []
    for i in range(len(safe)):
        parts = ", ".join(f"{name} {100 * float(v[i]):.1f} %" for name, v in shares.items())
        notes.append(
            f"image {i}: of a start of {float(t['start'][i]):.4g}: {parts}; largest Σ|R| {float(amplification[i]):.3g} × start"
        )
        if logits.dim() == 2 and logits.shape[1] == 1:
            sign = sign_in_words(float(logits[i, 0]))
            notes.append(f"image {i}: the output is {sign}, and relevance of the same sign raises its size")
        notes += _where_all_went(ledger, shares, i)
        if all(bool((part[i] == 0).all()) for part in relevance) and float(t["start"][i]) != 0:
            notes.append(f"image {i}: the map is 0: no relevance reached the input")
    if negative:
        notes.append(
            "seed 'one' on a negative logit turns the signs around: what speaks for the class looks negative"
        )
    return Health(not problems, problems, notes, logit_error, closing, amplification, shares)


ONE_WAY = 0.999  # of the start
TRY = {
    "bias": "try lrp.preset(..., bias='ignore'), or another preset",
    "epsilon": "ε is large beside the values there: try a smaller one, lrp.preset(..., epsilon=1e-9)",
    "dropped": "no input has the sign by which the rule shares: try the preset 'gamma' or 'epsilon'",
}


def _where_all_went(ledger: Ledger, shares: dict[str, Tensor], image: int) -> list[str]:
    """A note if nearly all of the start went one way that is not the input: to which operation, and what to try."""
    if abs(float(shares["input"][image])) > 1 - ONE_WAY:
        return []
    for name, advice in TRY.items():
        share = float(shares[name][image])
        if share <= ONE_WAY:
            continue
        row = max(ledger.rows, key=lambda r: abs(float(getattr(r, name)[image])))
        if row.rule == "Constant":
            advice = "its rule treats it as a constant: try the preset 'attnlrp', or explain its input with output="
        words = {"bias": "constants", "epsilon": "ε", "dropped": "empty denominators"}[name]
        return [
            f"image {image}: {100 * share:.1f} % of the start went to {words}, most of it at {row.path or '(model)'} "
            f"({row.op}, {row.rule}): {advice}"
        ]
    return []
