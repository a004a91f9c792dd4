"""`lrp explain`: explain photos and write pictures with the photos and their heatmaps."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from lrp.cli import common
from lrp.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lrp.gallery.results import Result


class Style(StrEnum):
    heatmap = "heatmap"
    overlay = "overlay"
    both = "both"


class Precision(StrEnum):
    exact = "exact"
    mixed = "mixed"


class Save(StrEnum):
    png = "png"
    npz = "npz"
    heatmap = "heatmap"


@common.command_example("lrp explain input -o output --model vgg19 --target top3")
def explain(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Photos, or folders of photos; none: input/, as input/<category>/<image>."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("output"),
    model: Annotated[str, common.MODEL] = "efficientnet_lite0",
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="predicted, true (the folder's name), a class, an index, topK, A-vs-B; several with commas: a,b. Of a model of images "
            "and texts: a text, or two, A-vs-B.",
        ),
    ] = "predicted",
    bias: Annotated[str | None, common.BIAS] = None,
    epsilon: Annotated[float | None, common.EPSILON] = None,
    top_k: Annotated[float, common.TOP_K] = 0.0,
    style: Annotated[Style, typer.Option(help="What stands beside the photo.")] = Style.heatmap,
    percentile: Annotated[
        float, typer.Option(min=50, max=100, help="Where the colour scale ends, of |relevance|.")
    ] = 99.5,
    shared_scale: Annotated[
        bool, typer.Option("--shared-scale", help="One colour scale for all photos, so that they compare.")
    ] = False,
    size: Annotated[int | None, common.SIZE] = None,
    device: Annotated[str, common.DEVICE] = "auto",
    precision: Annotated[
        Precision,
        typer.Option(
            help="mixed: sums of one sign in bfloat16, faster where the processor has it, about 0.1 % off."
        ),
    ] = Precision.exact,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that go through the model together.")] = 8,
    max_megapixels: Annotated[float, typer.Option(min=0, help="Larger photos are skipped unread.")] = 100.0,
    range: Annotated[tuple[float, float] | None, common.RANGE] = None,
    save: Annotated[
        list[Save] | None,
        typer.Option(
            help="Also npz: relevance as arrays; heatmap: it alone, transparent. As often as wanted."
        ),
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per file on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what was skipped.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also make again what is up to date.")
    ] = False,
) -> None:
    """Show which pixels made the model decide: for each photo a picture with its heatmap beside it."""
    from lrp.gallery.explain_folder import explain_folder
    from lrp.gallery.options import ExplainOptions

    given = paths or [Path("input")]
    with common.progress("explaining", quiet) as advance:
        with common.as_wrong_arguments():
            options = ExplainOptions(
                composite, bias, epsilon, top_k, style.value, percentile, shared_scale, size, device, precision.value,
                batch_size, max_megapixels, ("png", *dict.fromkeys(one.value for one in save or ())), overwrite, arch,
                labels, common.checked_range(range), preprocess,
            )  # fmt: skip
            try:
                with common.as_wrong_arguments(ImageError):
                    results = explain_folder(given, output, model, target, options, advance=advance)
            except typer.BadParameter as error:
                raise typer.BadParameter(_not_found(error.message, given)) from error
        at_places: list[Result] = []  # a table is of whole photos
        counts = print_explained_files(_noted(results, at_places), json_lines, quiet)
    if not quiet and len(given) == 1 and given[0].is_dir() and not at_places:
        named = {"--model": model, "--arch": arch, "--labels": labels, "--preprocess": preprocess}
        _print_next_commands(
            given[0], output / "results.csv", named, sys.stderr if json_lines else sys.stdout
        )
    if counts["skipped"]:
        raise common.Skipped


def _print_next_commands(data: Path, table: Path, named: dict[str, Any], place: TextIO) -> None:
    """How to go on from these photos to a report of all of them."""
    from lrp.models.own_code.calling import is_own_code
    from lrp.models.resolve import takes_texts

    model = named["--model"]
    if named["--labels"] is None and takes_texts(model):  # its classes were the target's texts
        return
    given = {option: str(value) for option, value in named.items() if value is not None}
    given = {} if given == {"--model": "efficientnet_lite0"} else given
    evaluate = ["lrp", "evaluate", str(data), *itertools.chain(*given.items()), "-o", str(table)]
    # A table names its model, but that does not make code run.
    code = is_own_code(model) or is_own_code(given.get("--arch", ""))
    report = ["lrp", "report", str(table), *(itertools.chain(*given.items()) if code else ())]
    print(f"A page to look through: {shlex.join(evaluate)}; {shlex.join(report)}", file=place)


def _noted(results: Iterable[Result], at_places: list[Result]) -> Iterator[Result]:
    """The results; those of a model that decides at each pixel are added to the list."""
    for result in results:
        if result.facts.get("area") is not None:
            at_places.append(result)
        yield result


def _not_found(message: str, given: list[Path]) -> str:
    if message.endswith("."):
        return message
    return f"{message}." + (
        " `lrp demo` fills input/ with photos to try." if given == [Path("input")] else ""
    )


def print_explained_files(
    results: Iterable[Result], json_lines: bool = False, quiet: bool = False
) -> Counter[str]:
    """Print each result when it is ready, then the totals; returns the number of files per status."""
    counts: Counter[str] = Counter()
    assumed = False
    for result in results:
        counts[result.status] += 1
        if json_lines:
            print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
        elif not quiet:
            print(_line(result), flush=True)
        if not assumed and any("black to white" in note for note in result.facts.get("notes") or ()):
            assumed = True
            common.print_message(common.RANGES)
        if result.status == "skipped" and (json_lines or quiet):
            common.print_message(f"skipped {result.path}: {result.error}")
    if not quiet:
        total = f"{counts.total()} found = {counts['ok']} ok + {counts['kept']} kept + {counts['skipped']} skipped"
        print(total, file=sys.stderr if json_lines else sys.stdout)
    return counts


def _line(result: Result) -> str:
    """The result of a file as one line."""
    if result.status == "skipped":
        return f"skipped  {result.path}: {result.error}"
    facts = result.facts
    line = f"{result.status:<7}  {result.path} -> {result.output}  {facts['predicted']} {_share(facts)}"
    if facts["target_index"] != facts["predicted_index"]:
        line += f", explained: {facts['target']}"
    if facts.get("notes"):
        line += f"  ({'; '.join(facts['notes'])})"
    return line if facts["health"]["ok"] else f"{line}  NOT TRUSTWORTHY: {facts['health']['problems'][0]}"


def _share(facts: dict[str, Any]) -> str:
    """How sure a prediction is; of a model that decides at each pixel, where it is; of a single logit, its value."""
    if facts.get("area") is not None:
        return f"{100 * facts['area']:.1f} % of the pixels"
    return f"{facts['logit']:.3g}" if facts["confidence"] is None else f"{100 * facts['confidence']:.1f} %"
