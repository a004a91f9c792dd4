"""The results of many models as a Markdown page: docs/models.md."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lrp.survey import check
from lrp.survey.architectures import LEFT_OUT, TIMM, surveyed_architectures
from lrp.survey.check import HUGE, LARGE, NOISE, REACHED, Measurement

COMMAND = "lrp models --check"

# (heading, meaning, result -> cell) of each column.
COLUMNS: tuple[tuple[str, str, Callable[[Measurement], str]], ...] = (
    ("model", "as `--model` takes it; ✗ marks a miss", lambda r: f"{r.name}{'' if r.ok else ' ✗'}"),
    ("parameters", "in millions", lambda r: _number(r.parameters and r.parameters / 1e6, ".1f")),
    (
        "input",
        "height × width in pixels: the model's own, but 224 for torchvision's models above "
        f"{LARGE // 10**6} M parameters",
        lambda r: "×".join(map(str, r.shape[1:])) if r.shape else "",
    ),
    ("preset", "the default for this architecture", lambda r: r.preset or ""),
    ("captured", "seconds from the module to the program that explains it", lambda r: _number(r.seconds, ".1f")),
    ("operations", "in the graph that rules are given to", lambda r: _number(r.operations, "d")),
    (
        "without evidence",
        "operations of them whose rule could not be told from the graph, such as which factor of a product is a gate",
        lambda r: _number(r.without_evidence, "d"),
    ),
    (
        "logits",
        "largest difference to the model's own logits, relative to the largest of them, in float32; asked: 1e-4, or "
        "twice the rounding of the model itself (its float32 logits against float64), which then stands in brackets",
        lambda r: _number(r.logit_error, ".0e") + (_own_rounding(r)),
    ),
    (
        "worst node",
        "what the ledger of one image cannot explain at the worst operation, relative to the Σ|R| entering it, in "
        f"float64; asked: 1e-9. Marked *: in float32, above {HUGE // 10**6} M parameters; asked: 1e-3",
        lambda r: _number(r.closing_error, ".0e") + ("*" if r.dtype == "float32" else ""),
    ),
    ("finite", "relevance and logits, in both types", lambda r: {None: "", True: "yes", False: "no"}[r.finite]),
    (
        "reached",
        f"share of the start that reached the input; below {REACHED:.0e} a model counts as not tested",
        lambda r: _number(r.reached, ".3g"),
    ),
    ("amplified", "largest Σ|R| of an operation, in units of the start", lambda r: _number(r.amplification, ".3g")),
    ("bias", "share that biases took", lambda r: _number(r.bias, ".3g")),
    ("ε", "share that the stabiliser ε took", lambda r: _number(r.epsilon, ".0e")),
    ("dropped", "share dropped where a rule's denominator is empty", lambda r: _number(r.dropped, ".3g")),
    (
        "time",
        "of one explanation, as a multiple of one input gradient of the same model: float32, one image, median of three",
        lambda r: _number(r.times, ".1f") + ("×" if r.times is not None else ""),
    ),
)  # fmt: skip


def survey_summary(results: Sequence[Measurement]) -> str:
    """How many models are explained correctly, in one line."""
    parts = []
    for of, noun in ((True, "torchvision classifiers"), (False, "timm families")):
        mine = [r.ok for r in results if (r.family == "torchvision") is of]
        if mine:
            parts.append(f"{sum(mine)} of {len(mine)} {noun}")
    return f"{', '.join(parts)}: logits are the model's, every node closes, all is finite, and the input is reached."


def survey_page_order(results: Iterable[Measurement]) -> list[Measurement]:
    """The results in the order of `surveyed_architectures`; those of models that are no longer in it are left out."""
    order = {name: place for place, name in enumerate(surveyed_architectures())}
    return sorted((r for r in results if r.name in order), key=lambda r: order[r.name])


def _own_rounding(result: Measurement) -> str:
    over = result.logit_error is not None and result.logit_error > 1e-4
    return f" ({_number(result.rounding, '.0e')})" if over and result.rounding is not None else ""


def _number(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)


def page_as_markdown(results: Iterable[Measurement]) -> str:
    """The page docs/models.md: misses with their reasons, the tables, and how to read them."""
    results = survey_page_order(results)
    ours, theirs = ([r for r in results if (r.family == "torchvision") is of] for of in (True, False))
    misses = [r for r in results if not r.ok]
    groups = (("torchvision", len(surveyed_architectures()) - len(TIMM), ours), ("timm", len(TIMM), theirs))
    unmeasured = [f"{total - len(group)} of {name}" for name, total, group in groups if len(group) < total]
    lines = [
        "# Models", "",
        f"Made by `{COMMAND}`; do not edit. {_provenance(results)}", "",
        f"**{survey_summary(results)}**" if results else "**Nothing was measured.**", "",
        *([f"Not measured yet: {', '.join(unmeasured)}.", ""] if unmeasured else []),
        "All classifiers of torchvision, and of each timm family (a module of `timm.models`) the classifier with the "
        f"fewest parameters. Left out: {'; '.join(f'{f} ({reason})' for f, reason in LEFT_OUT.items())}.", "",
        "## What the columns mean", "",
        *_table(("column", "meaning"), [(head, meaning) for head, meaning, _ in COLUMNS]), "",
        "## What this can and cannot show", "",
        f"Weights are random, and the image is noise. Scales of batch norm are drawn with both signs and its statistics "
        f"measured on {NOISE} images of noise; what initialisers leave at one small value (zero heads and biases, layer "
        "scales) is drawn. That suffices to find wrong wiring, an operation without a rule or a lost branch: "
        "they show in the logits or in the ledger. It cannot show whether maps are meaningful, and shares, "
        "amplification and presets' merits differ with trained weights. A ledger that closes proves that nothing was "
        "lost unseen, not that relevance went where the rule's equation says; for that there are the oracles in tests/.", "",
        "## Misses", "",
        *_table(("model", "reason"), [(r.name, textwrap.shorten(r.reason, 400)) for r in misses]), "",
        "## torchvision", "", *_measured(ours), "",
        "## timm, one model per family", "", *_measured(theirs, "family"), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _provenance(results: Sequence[Measurement]) -> str:
    """The versions, dates and thread counts of the measurements."""

    def span(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(v) for v in values if v is not None}))

    packages = [
        f"{package} {span(r.versions[package] for r in results if r.versions)}"
        for package in check.versions_at_check()
    ]
    days = sorted({r.date for r in results if r.date})
    return (
        f"Versions: {', '.join(packages)}. Measured {' to '.join(dict.fromkeys([*days[:1], *days[-1:]]))}, "
        f"on a CPU, torch threads: {span(r.threads for r in results)}."
    )


def _measured(results: list[Measurement], *more: str) -> list[str]:
    """A table of the columns `more`, which are attributes of `Measurement`, followed by all `COLUMNS`."""
    rows = [[*(getattr(r, name) for name in more), *(entry(r) for _, _, entry in COLUMNS)] for r in results]
    return _table([*more, *(head for head, _, _ in COLUMNS)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, with special characters escaped."""
    signs = {"|": "\\|", "*": "\\*", "<": "\\<", "\n": " "}
    cells = [["".join(signs.get(sign, sign) for sign in cell) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines] if rows else ["None."]
