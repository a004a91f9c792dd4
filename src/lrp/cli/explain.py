"""`lrp explain`: photos in, heatmaps beside the photos out."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lrp.cli import common
from lrp.errors import ImageError, TargetError


class Style(StrEnum):
    heatmap = "heatmap"
    overlay = "overlay"
    both = "both"


class Precision(StrEnum):
    exact = "exact"
    mixed = "mixed"


class Save(StrEnum):
    npz = "npz"


@common.example("lrp explain input -o output --model vgg19 --target top3")
def explain(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Photos, or folders of photos; none: input/, as input/<category>/<image>."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("output"),
    model: Annotated[str, common.MODEL] = "efficientnet_lite0",
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="predicted, true (the folder's name), a class, an index, topK, A-vs-B; several with commas: a,b.",
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
    save: Annotated[Save | None, typer.Option(help="Also write the relevance itself.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per file on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what was skipped.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also make again what is up to date.")
    ] = False,
) -> None:
    """Show which pixels made the model decide: for each photo a picture with its heatmap beside it."""
    counts = run(
        paths or [Path("input")], output, model, composite, target, bias, epsilon, top_k, style.value, percentile,
        shared_scale, size, device, batch_size, max_megapixels, save is not None, json_lines, quiet, overwrite, arch, labels,
        precision=precision.value,
    )  # fmt: skip
    if counts["skipped"]:
        raise common.Skipped


def run(
    paths: list[Path],
    output: Path,
    model: str = "efficientnet_lite0",
    composite: str | None = None,
    target: str = "predicted",
    bias: str | None = None,
    epsilon: float | None = None,
    top_k: float = 0.0,
    style: str = "heatmap",
    percentile: float = 99.5,
    shared_scale: bool = False,
    size: int | None = None,
    device: str = "auto",
    batch_size: int = 8,
    max_megapixels: float = 100.0,
    save_npz: bool = False,
    json_lines: bool = False,
    quiet: bool = False,
    overwrite: bool = False,
    arch: str | None = None,
    labels: Path | None = None,
    report: bool = True,
    precision: str = "exact",
) -> Counter[str]:
    """Explain and print; returns how many files ended with which status. `report`: say how to make one."""
    from lrp.engine.explainer import Explainer
    from lrp.gallery.gallery import Drawing, Gallery, find
    from lrp.gallery.request import Request

    try:
        with common.usage(ImageError):
            found = find(paths, output)
    except typer.BadParameter as error:
        hint = " `lrp demo` fills input/ with photos to try." if paths == [Path("input")] else ""
        raise typer.BadParameter(f"{error.message}.{hint}") from error
    if not found:
        raise typer.BadParameter(f"no files below {', '.join(map(str, paths))}.")
    chosen = common.device(device)
    loaded = common.load(model, size, arch, labels)
    try:
        request = Request.parse(target, loaded.class_names)
    except TargetError as error:
        raise typer.BadParameter(f"--target: {error}") from error
    rules = common.composite(composite, loaded.preprocessing, bias, epsilon, top_k)
    loaded.model.to(chosen)
    gallery = Gallery(
        loaded,
        Explainer(loaded.model, rules, precision=precision, class_names=loaded.class_names),
        request,
        identity={
            "model": model,
            "weights": _weights(loaded),
            "composite": _named(composite, bias, epsilon, top_k),
            "precision": precision,
        },
        drawing=Drawing(style, percentile, shared_scale),
        device=chosen,
        batch_size=batch_size,
        max_megapixels=max_megapixels,
        save_npz=save_npz,
        overwrite=overwrite,
    )
    counts: Counter[str] = Counter()
    with common.progress("explaining", quiet) as advance:
        for result in gallery.run(found, output):
            counts[result.status] += 1
            if json_lines:
                print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
            elif not quiet:
                print(_line(result), flush=True)
            if result.status == "skipped" and (json_lines or quiet):
                common.complain(f"skipped {result.path}: {result.error}")
            advance(1, len(found))
    if not quiet:
        total = (
            f"{len(found)} found = {counts['ok']} ok + {counts['kept']} kept + {counts['skipped']} skipped"
        )
        place = sys.stderr if json_lines else sys.stdout
        print(total, file=place)
        if report and len(paths) == 1 and paths[0].is_dir():
            data, table = shlex.quote(str(paths[0])), shlex.quote(str(output / "results.csv"))
            print(f"A page to look through: lrp evaluate {data} -o {table}; lrp report {table}", file=place)
    return counts


def _weights(loaded: Any) -> str:
    from lrp.models.weights import fingerprint

    return fingerprint(loaded.model)


def _named(composite: str | None, bias: str | None, epsilon: float | None, top_k: float) -> list[Any]:
    return [composite, bias, epsilon, top_k]


def _line(result: Any) -> str:
    """One line of result: what became of a file."""
    if result.status == "skipped":
        return f"skipped  {result.path}: {result.error}"
    facts = result.facts
    line = f"{result.status:<7}  {result.path} -> {result.output}  {facts['predicted']} {100 * facts['confidence']:.1f} %"
    if facts["target_index"] != facts["predicted_index"]:
        line += f", explained: {facts['target']}"
    return line if facts["health"]["ok"] else f"{line}  NOT TRUSTWORTHY: {facts['health']['problems'][0]}"
