"""Measure whether one model is explained correctly, as far as random weights can show it.

Run as a program, `python -m lrp.survey.check NAME FILE` measures the model NAME and writes the result to FILE as
JSON. `lrp.survey.run` starts it as a worker process.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lrp
from lrp.engine.explainer import Explainer
from lrp.engine.graph.outputs import logits_among
from lrp.engine.results.health import AGREES, CLOSES
from lrp.errors import LrpError
from lrp.survey.architectures import family_of
from lrp.survey.build import model_to_check
from lrp.survey.commit import engine_commit
from lrp.survey.hugging_face import has_transformers

REACHED = 1e-6  # of the start: with less relevance at the input, the layers near the input were not tested
HUGE = 400_000_000  # parameters: for larger models the ledger is in float32, to save memory

Make = Callable[[], tuple[nn.Module, Tensor]]

# The last fact that each step sets -> the name of that step.
STEPS = {"shape": "built", "without_evidence": "captured", "finite": "explained", "dtype": "timed"}


@dataclass(frozen=True)
class Measurement:
    """The measurements of one model. None: not measured, see `reason`, or not a finite number.

    Attributes:
        name: from `surveyed_architectures`.
        family: as `family_of` says.
        reason: why the model misses the requirements, one line; "" if it meets them.
        parameters: their number.
        shape: of one image, [C, H, W], or video, [C, frames, H, W].
        preset: the composite's name.
        free_batch: whether the captured graph accepts any number of images.
        seconds: time to make the explanation program from the module.
        operations: number of operations in the graph.
        without_evidence: number of operations whose rule the graph does not determine.
        logit_error: largest difference from the model's own logits, relative to the largest logit; float32.
        rounding: the same difference between the model's own float32 and float64 logits: the error of float32 itself.
        dtype: of the ledger, "float64" or "float32".
        closing_error: unexplained relevance at the worst node, relative to the Σ|R| entering it.
        worst: that node: module path and operation.
        finite: whether relevance and logits are finite, in both types.
        reached, bias, epsilon, dropped: the distribution of the relevance, as shares of the start.
        amplification: largest Σ|R| of a node, relative to the start.
        times: time of one explanation divided by time of one input gradient, float32.
        gradient: seconds of that gradient.
        threads: number of torch threads.
        versions: of lrp and of the packages that the result depends on.
        date: of the measurement.
        commit: of the engine that was measured, as `engine_commit` names it; "": measured outside a checkout;
            None: measured before commits were recorded.
    """

    name: str
    family: str
    reason: str = ""
    parameters: int | None = None
    shape: tuple[int, ...] | None = None
    preset: str | None = None
    free_batch: bool | None = None
    seconds: float | None = None
    operations: int | None = None
    without_evidence: int | None = None
    logit_error: float | None = None
    rounding: float | None = None
    dtype: str | None = None
    closing_error: float | None = None
    worst: str | None = None
    finite: bool | None = None
    reached: float | None = None
    bias: float | None = None
    epsilon: float | None = None
    dropped: float | None = None
    amplification: float | None = None
    times: float | None = None
    gradient: float | None = None
    threads: int | None = None
    versions: dict[str, str] | None = None
    date: str = ""
    commit: str | None = None

    @property
    def ok(self) -> bool:
        return not self.reason

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measurement:
        """The inverse of `to_dict`; unknown entries are ignored."""
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        if kept.get("shape") is not None:
            kept["shape"] = tuple(kept["shape"])
        return cls(**kept)


def check(name: str, *, size: int | None = None, composite: Any = None, repeats: int = 3) -> Measurement:
    """Measure a model with random weights on one image of noise. Never raises: an error becomes the result's reason.

    Args:
        name: from `surveyed_architectures`: "resnet50", "timm:beit_base_patch16_224", "hf:vit".
        size: side of the input in pixels; None: the model's own, 224 for torchvision's largest.
        composite: an argument for `Explainer`; None: the preset that fits the architecture.
        repeats: number of timings, of which the median is used. 0: no timing.
    """
    return check_model(name, lambda: model_to_check(name, size), composite=composite, repeats=repeats)


def check_model(name: str, make: Make, *, composite: Any = None, repeats: int = 3) -> Measurement:
    """Like `check`, for the result of `make`: a model in eval mode, float32, and an image [1, C, ...] for it."""
    facts: dict[str, Any] = {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter(
            "ignore"
        )  # warnings of timm and torch about their own code; ours are in the facts
        torch.manual_seed(0)
        try:
            _measure(facts, make, composite, repeats)
            reason = "; ".join(_missed(facts))
        except LrpError as error:
            reason = f"{type(error).__name__}: {error}"
        except Exception as error:  # models can raise any exception
            step = next((doing for fact, doing in STEPS.items() if fact not in facts), "accounted for")
            reason = f"{type(error).__name__} while it was {step}: {error}".removesuffix(": ")
    return Measurement(
        name, family_of(name), " ".join(reason.split()), **{k: _plain(v) for k, v in facts.items()},
        threads=torch.get_num_threads(), versions=versions_at_check(name), date=date.today().isoformat(),
        commit=engine_commit(),
    )  # fmt: skip


def versions_at_check(name: str) -> dict[str, str]:
    """The versions that a model's result depends on; after a change of one, it is measured again."""
    packages = ["torch", "torchvision", "timm"]
    if name.startswith("hf:") and has_transformers():
        packages.append("transformers")
    return {"lrp": lrp.__version__, **{package: version(package) for package in packages}}


def _measure(facts: dict[str, Any], make: Make, composite: Any, repeats: int) -> None:
    """Set the facts one by one, so that the earlier ones are kept if a step fails."""
    model, x = make()
    for p in model.parameters():
        p.requires_grad_(False)  # the gradient of the comparison is with respect to the input only
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    facts["shape"] = tuple(x.shape[1:])

    # Imports the modules that torch.export needs, so that the timing does not include it.
    Explainer(nn.Flatten().eval()).prepare(torch.zeros(1, 1, 1, 2))
    explainer = Explainer(model, composite)
    began = time.perf_counter()
    prepared = explainer.prepare(x)
    facts["seconds"] = time.perf_counter() - began
    facts["free_batch"] = prepared.captured.free_batch
    facts["preset"] = prepared.composite.name
    facts["operations"] = len(prepared.graph.operations)
    facts["without_evidence"] = sum(not o.evident for o in prepared.plain.rows)

    single = explainer(x)
    with torch.no_grad():
        own = logits_among(model(x.clone()), None)  # a copy: the model may modify its input in place
    facts["logit_error"] = float((single.logits - own).abs().max() / own.abs().max())
    facts["finite"] = _finite(single)
    if repeats:
        facts["times"], facts["gradient"] = _times(explainer, x, int(single.target[0]), repeats)

    facts["dtype"] = "float64" if facts["parameters"] <= HUGE else "float32"
    if facts["dtype"] == "float64":
        del explainer, prepared, single  # the largest models have no memory for two programs
        single = Explainer(model, composite, dtype=torch.float64)(x)
        facts["finite"] = facts["finite"] and _finite(single)
        facts["rounding"] = float((single.logits - own).abs().max() / single.logits.abs().max())
    health, ledger = single.health, single.ledger
    facts["closing_error"] = health.closing_error
    worst = max(ledger, key=lambda row: float(row.closing_error.nan_to_num(math.inf)), default=None)
    facts["worst"] = f"{worst.path or '(model)'} {worst.op}" if worst else None
    facts["reached"] = float(health.shares["input"][0])
    for name in ("bias", "epsilon", "dropped"):
        facts[name] = float(health.shares[name][0])
    facts["amplification"] = float(health.amplification[0])


def _finite(explanation: Any) -> bool:
    return bool(torch.isfinite(explanation.relevance).all() and torch.isfinite(explanation.logits).all())


def _times(explainer: Explainer, x: Tensor, target: int, repeats: int) -> tuple[float, float]:
    """(seconds of an explanation over seconds of a gradient, seconds of that gradient): medians, interleaved."""

    def gradient() -> None:
        image = x.clone().requires_grad_()
        logits = logits_among(explainer.model(image.clone()), None)
        torch.autograd.grad(logits[0, target], image)

    seconds: dict[Callable[[], Any], list[float]] = {gradient: [], lambda: explainer(x): []}
    for _ in range(repeats + 1):
        for run, taken in seconds.items():
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    one, other = (statistics.median(taken[1:]) for taken in seconds.values())  # the first one is a warm-up
    return other / one, one


def _missed(facts: dict[str, Any]) -> list[str]:
    """The requirements that the model does not meet, as text."""
    dtype = torch.float64 if facts["dtype"] == "float64" else torch.float32
    limits = {"logits": max(AGREES[torch.float32], 2 * facts.get("rounding", 0)), "closes": CLOSES[dtype]}
    missed = []
    if not facts["logit_error"] <= limits["logits"]:
        missed.append(
            f"logits differ from the model's by {facts['logit_error']:.1e} of the largest (limit {limits['logits']:.0e})"
        )
    if not facts["finite"]:
        missed.append("not finite: relevance or logits hold NaN or infinite values")
        if math.isfinite(facts["amplification"]):
            missed[-1] += (
                f" in float32; in float64 the largest Σ|R| of a node is {facts['amplification']:.0e} × start"
            )
        return missed  # the sums below are then meaningless
    if not facts["closing_error"] <= limits["closes"]:
        missed.append(
            f"{facts['worst']} does not close: {facts['closing_error']:.1e} of the relevance entering it is "
            f"unexplained in {facts['dtype']} (limit {limits['closes']:.0e})"
        )
    if not abs(facts["reached"]) >= REACHED:
        missed.append(
            f"not tested: {facts['reached']:.1e} of the start reached the input (from {REACHED:.0e} on)"
        )
    return missed


def _plain(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _main(arguments: list[str]) -> None:
    name, place = arguments
    result = check(name)
    Path(place).write_text(json.dumps(result.to_dict(), allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1:])
