"""Measure many models, each in a process of its own; keep the results in a JSON file; lay them out as Markdown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lrp.errors import ModelError
from lrp.survey import architectures as zoo
from lrp.survey import check
from lrp.survey.check import HUGE, LARGE, NOISE, REACHED, Result

HOURS = 1.0  # a model that takes longer is missed
GOAL = 90  # timm families; of torchvision's classifiers all
COMMAND = "lrp models --check"


class Worker:
    """`python -m lrp.survey.check`: if it crashes, or the memory does not suffice, only this model is missed."""

    def __init__(self, name: str, threads: int) -> None:
        """Set off the measurement of `name`, on so many threads."""
        self.name, self.began = name, time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="lrp-check-")
        self.place = Path(self.folder.name) / "result.json"
        # A file, not a pipe: torch logs pages, and nobody reads them while the worker runs.
        self.words = open(Path(self.folder.name) / "words.txt", "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lrp.survey.check", name, str(self.place)],
            stdin=subprocess.DEVNULL, stdout=self.words, stderr=self.words,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def result(self) -> Result | None:
        """What was measured, or what the worker died of; None while it runs."""
        code = self.process.poll()
        late = time.monotonic() - self.began > HOURS * 3600
        if code is None and not late:
            return None
        if code == 0:
            found = Result.from_dict(json.loads(self.place.read_text(encoding="utf-8")))
        else:
            found = Result(self.name, zoo.family(self.name), self._died(code), date=date.today().isoformat())
        self.stop()
        return found

    def _died(self, code: int | None) -> str:
        if code is None:
            return f"took longer than {HOURS:g} h: it was ended"
        if code < 0:
            return f"its process was ended by signal {-code}" + (
                ": the memory did not suffice, probably; try --jobs 1" if code == -9 else ""
            )
        self.words.seek(0)
        lines = self.words.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f"its process ended with exit code {code}: {said[-1] if said else 'it said nothing'}"

    def stop(self) -> None:
        """End it; what it had not handed over is lost."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.words.close()
        self.folder.cleanup()


def survey(
    names: Sequence[str],
    folder: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
) -> Iterator[tuple[Result, bool]]:
    """Measure models and keep the results in `folder`/models.json, written anew after each of them.

    Args:
        names: as `zoo.names` gives them.
        jobs: how many are measured at a time; they share the processor's cores.
        overwrite: also measure what was measured with the same versions.

    Yields:
        (result, whether it was kept from an earlier run), as they come. `folder`/models.md is written at the end.

    Raises:
        ModelError: the folder cannot be written, or models.json in it is something else.
    """
    if jobs < 1:
        raise ModelError(f"jobs={jobs}: at least one model is measured at a time.")
    results, now = load(folder), check.versions()
    # What a process died of says nothing of the model, and has no versions: it is tried again.
    kept = [n for n in names if n in results and results[n].versions == now and not overwrite]
    for name in kept:
        yield results[name], True
    waiting = deque(n for n in names if n not in kept)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: dict[str, Worker] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.popleft()
                running[name] = Worker(name, threads)
            finished = {name: result for name, work in running.items() if (result := work.result())}
            for name, result in finished.items():
                del running[name]
                results[name] = result
                _write(folder / "models.json", _json(results.values()))
                yield result, False
            if not finished:
                time.sleep(0.1)
    finally:
        for work in running.values():
            work.stop()
    _write(folder / "models.md", markdown(results.values()))


def met(results: Iterable[Result], everything: bool) -> bool:
    """Of all models: every classifier of torchvision and `GOAL` timm families; of a part: every one."""
    misses = [r.family for r in results if not r.ok]
    allowed = len(zoo.TIMM) - GOAL if everything else 0
    return "torchvision" not in misses and len(misses) <= allowed


def summary(results: Sequence[Result]) -> str:
    """How many are explained as they should be, in one line."""
    parts = []
    for of, noun in ((True, "torchvision classifiers"), (False, "timm families")):
        mine = [r.ok for r in results if (r.family == "torchvision") is of]
        if mine:
            parts.append(f"{sum(mine)} of {len(mine)} {noun}")
    return f"{', '.join(parts)}: logits are the model's, every node closes, all is finite, and the input is reached."


def load(folder: Path) -> dict[str, Result]:
    """The results in `folder`/models.json by name, in the order of the list; empty if there is no such file."""
    path = folder / "models.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {entry["name"]: Result.from_dict(entry) for entry in content["results"]}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} holds no results of `{COMMAND}` ({type(error).__name__}: {error}): "
            "move it away, or name another folder with --output."
        ) from error
    return found


def _ordered(results: Iterable[Result]) -> list[Result]:
    """As `zoo.names` has them; what it has no longer is left out."""
    order = {name: place for place, name in enumerate(zoo.names())}
    return sorted((r for r in results if r.name in order), key=lambda r: order[r.name])


def _json(results: Iterable[Result]) -> str:
    content = {"command": COMMAND, "results": [r.to_dict() for r in _ordered(results)]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------- Markdown

# Head, what it means, and its entry.
COLUMNS: tuple[tuple[str, str, Callable[[Result], str]], ...] = (
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


def _own_rounding(result: Result) -> str:
    over = result.logit_error is not None and result.logit_error > 1e-4
    return f" ({_number(result.rounding, '.0e')})" if over and result.rounding is not None else ""


def _number(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)


def markdown(results: Iterable[Result]) -> str:
    """The page docs/models.md: misses with their reasons, the tables, and how to read them."""
    results = _ordered(results)
    ours, theirs = ([r for r in results if (r.family == "torchvision") is of] for of in (True, False))
    misses = [r for r in results if not r.ok]
    groups = (("torchvision", len(zoo.names()) - len(zoo.TIMM), ours), ("timm", len(zoo.TIMM), theirs))
    unmeasured = [f"{total - len(group)} of {name}" for name, total, group in groups if len(group) < total]
    lines = [
        "# Models", "",
        f"Made by `{COMMAND}`; do not edit. {_said(results)}", "",
        f"**{summary(results)}**" if results else "**Nothing was measured.**", "",
        *([f"Not measured yet: {', '.join(unmeasured)}.", ""] if unmeasured else []),
        "All classifiers of torchvision, and of each timm family (a module of `timm.models`) the classifier with the "
        f"fewest parameters. Left out: {'; '.join(f'{f} ({reason})' for f, reason in zoo.LEFT_OUT.items())}.", "",
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


def _said(results: Sequence[Result]) -> str:
    """With which versions, when, on how many threads."""

    def span(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(v) for v in values if v is not None}))

    packages = [
        f"{package} {span(r.versions[package] for r in results if r.versions)}"
        for package in check.versions()
    ]
    days = sorted({r.date for r in results if r.date})
    return (
        f"Versions: {', '.join(packages)}. Measured {' to '.join(dict.fromkeys([*days[:1], *days[-1:]]))}, "
        f"on a CPU, torch threads: {span(r.threads for r in results)}."
    )


def _measured(results: list[Result], *more: str) -> list[str]:
    """The table of all columns, after those of `more`: names of the result's own attributes."""
    rows = [[*(getattr(r, name) for name in more), *(entry(r) for _, _, entry in COLUMNS)] for r in results]
    return _table([*more, *(head for head, _, _ in COLUMNS)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; what has a meaning in one is escaped."""
    signs = {"|": "\\|", "*": "\\*", "<": "\\<", "\n": " "}
    cells = [["".join(signs.get(sign, sign) for sign in cell) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines] if rows else ["None."]
