"""The results of many models as a Markdown page: docs/models.md."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lrp.survey.architectures import GROUPS, LEFT_OUT, Group, group_of, surveyed_architectures
from lrp.survey.build import LARGE, NOISE
from lrp.survey.check import HUGE, REACHED, Measurement
from lrp.survey.hugging_face import LEFT_OUT_HUGGING_FACE

COMMAND = "lrp models --check"

# (heading, meaning, result -> cell) of each column.
COLUMNS: tuple[tuple[str, str, Callable[[Measurement], str]], ...] = (
    (
        "model",
        "as `--model` takes it; the others by the prefix of their table; ✗ marks a miss",
        lambda r: f"{r.name}{'' if r.ok else ' ✗'}",
    ),
    ("parameters", "in millions", lambda r: _number(r.parameters and r.parameters / 1e6, ".1f")),
    (
        "input",
        "height × width in pixels: the model's own, but 224 for torchvision's classifiers above "
        f"{LARGE // 10**6} M parameters; of a video: frames × height × width",
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
        "of one explanation, as a multiple of one input gradient of the same model: float32, one image, median of three; empty: not "
        "timed, because the machine was busy",
        lambda r: _number(r.times, ".1f") + ("×" if r.times is not None else ""),
    ),
    (
        "engine",
        "the commit that had last changed the engine when this row was measured; + marks uncommitted changes, ? rows "
        "measured before commits were recorded",
        lambda r: _engine(r),
    ),
)  # fmt: skip


def survey_summary(results: Sequence[Measurement]) -> str:
    """How many models are explained correctly, in one line."""
    parts = []
    for group in GROUPS:
        mine = [r.ok for r in results if group_of(r.name) is group]
        if mine:
            parts.append(f"{sum(mine)} of {len(mine)} {group.noun}")
    return f"{', '.join(parts)}: logits are the model's, every node closes, all is finite, and the input is reached."


def survey_page_order(results: Iterable[Measurement]) -> list[Measurement]:
    """The results in the order of `surveyed_architectures`; those of models that are no longer in it are left out."""
    order = {name: place for place, name in enumerate(surveyed_architectures())}
    return sorted((r for r in results if r.name in order), key=lambda r: order[r.name])


def _engine(result: Measurement) -> str:
    return "?" if result.commit is None else result.commit


def _left_out(families: Mapping[str, str]) -> str:
    return ", ".join(f"{family} ({reason})" for family, reason in families.items())


def _own_rounding(result: Measurement) -> str:
    over = result.logit_error is not None and result.logit_error > 1e-4
    return f" ({_number(result.rounding, '.0e')})" if over and result.rounding is not None else ""


def _number(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)


def page_as_markdown(results: Iterable[Measurement]) -> str:
    """The page docs/models.md: misses with their reasons, the tables, and how to read them."""
    results = survey_page_order(results)
    mine = {group: [r for r in results if group_of(r.name) is group] for group in GROUPS}
    misses = [r for r in results if not r.ok]
    totals = {group: len(group.names) for group in GROUPS}
    unmeasured = [
        f"{totals[group] - len(found)} {group.noun}"
        for group, found in mine.items()
        if len(found) < totals[group]
    ]
    lines = [
        "# Models", "",
        f"Made by `{COMMAND}`; do not edit. {_provenance(results)}", "",
        f"**{survey_summary(results)}**" if results else "**Nothing was measured.**", "",
        *([f"Not measured yet: {', '.join(unmeasured)}.", ""] if unmeasured else []),
        "All of torchvision's classifiers, and of each timm family (a module of `timm.models`) the classifier with the "
        "fewest parameters. torchvision's video classifiers, on few small frames; its segmentation nets, their scores "
        "averaged over the pixels; its nets made to be quantised, in float32. Of each family of image classifiers in "
        "Hugging Face's transformers a small model, built from a configuration in `lrp.survey.hugging_face`. Left out: "
        f"of timm {_left_out(LEFT_OUT)}; of transformers {_left_out(LEFT_OUT_HUGGING_FACE)}.", "",
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
        *_table(
            ("model", "reason", "engine"),
            [(r.name, textwrap.shorten(r.reason, 400), _engine(r)) for r in misses],
        ), "",
        *_corners({r.name: r for r in results}),
        *(line for group, found in mine.items() for line in (f"## {group.title}", "", *_measured(found, group), "")),
    ]  # fmt: skip
    return "\n".join(lines)


def _corners(results: Mapping[str, Measurement]) -> list[str]:
    """Why the two rows that stand out most look as they do; of those that were measured."""
    paragraphs = {
        "timm:convmixer_768_32": lambda r: (
            f"**ConvMixer** ({r.name}) is the net whose layers near the image are not tested: {r.reached:.1e} of the start "
            f"reaches the image, {r.dropped:.3g} is dropped and {r.bias:.3g} goes to biases. Its ledger closes: these shares "
            "sum to 1. They are lost at its 65 batch norms. Each comes after a ReLU, so that there is no convolution in front "
            "to fold it into, and it is explained as a layer of its own, y = s·a + t with one input a >= 0. z⁺ divides what "
            "arrives between the positive parts of s·a and of t. Where s < 0, or a = 0, the first is 0: all goes to the bias, "
            "or is dropped if t <= 0 too. The survey draws one scale in five negative, and 32 of the norms stand in a row "
            "with no way around them. With the absolute values of the same scales 1.2 % reaches the image. `epsilon` drops "
            "nothing, but there the relevance grows to 420,000 times the start on its way, which is worse."
        ),
        "timm:nextvit_small": lambda r: (
            f"**NextViT** ({r.name}) drops the second largest share, {r.dropped:.3g}, and amplifies most: Σ|R| grows to "
            f"{r.amplification:.3g} times the start. These are two things. What is dropped is dropped at eight batch norms "
            "that come after sums and pools, as ConvMixer's do after ReLUs, here with inputs of both signs: z⁺ has nothing to divide where "
            "s·a and t are negative. Most of it is dropped at the last norm, before the pool and the head; the final norms of "
            "SwiftFormer, Visformer, StarNet and EfficientFormerV2 drop theirs in the same way. What is amplified is not lost: "
            "pools and sums of values of both signs hand out shares over 1 of both signs where the values nearly cancel, "
            "and these shares cancel in the layers before. It is so for `epsilon` too (200 times), which drops nothing, "
            "and more so with positive scales (620 times): it belongs to the net, not to a rule."
        ),
    }  # fmt: skip
    found = [
        text(results[name])
        for name, text in paragraphs.items()
        if name in results and results[name].amplification
    ]
    if not found:
        return []
    command = f"python tools/survey_corners.py {' '.join(paragraphs)}"
    return [
        "## Two corners of the tables", "",
        *(line for text in found for line in (text, "")),
        f"The figures that are not in the tables: `{command}`.", "",
    ]  # fmt: skip


def _provenance(results: Sequence[Measurement]) -> str:
    """The versions, dates, thread counts and commits of the measurements."""

    def span(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(v) for v in values if v is not None}))

    versions = [r.versions for r in results if r.versions]
    packages = [
        f"{package} {span(of.get(package) for of in versions)}"
        for package in dict.fromkeys(package for of in versions for package in of)
    ]
    days = sorted({r.date for r in results if r.date})
    return (
        f"Versions: {', '.join(packages)}. Measured {' to '.join(dict.fromkeys([*days[:1], *days[-1:]]))}, "
        f"on a CPU, torch threads: {span(r.threads for r in results)}. Engine: {_engines(results)}."
    )


def _engines(results: Iterable[Measurement]) -> str:
    """How many rows each commit of the engine measured, in words."""
    words = {None: "before commits were recorded", "": "outside a checkout"}
    rows = Counter(r.commit for r in results)
    return ", ".join(
        f"{number} {'row' if number == 1 else 'rows'} {words.get(commit) or f'at {commit}'}"
        for commit, number in rows.most_common()
    )


def _measured(results: list[Measurement], group: Group) -> list[str]:
    """A table of all `COLUMNS`; for timm, whose names do not always tell it, the family before them."""
    family = group.prefix == "timm:"
    rows = [[*([r.family] if family else []), *(entry(r) for _, _, entry in COLUMNS)] for r in results]
    return _table([*(["family"] if family else []), *(head for head, _, _ in COLUMNS)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, with special characters escaped."""
    signs = {"|": "\\|", "*": "\\*", "<": "\\<", "\n": " "}
    cells = [["".join(signs.get(sign, sign) for sign in cell) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines] if rows else ["None."]
