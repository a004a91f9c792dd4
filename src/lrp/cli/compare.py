"""`lrp compare`: two models on the same photos, such as before and after retraining."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp.cli import common, tables
from lrp.cli.confidence import ROOT
from lrp.cli.evaluate import JSON, QUIET

if TYPE_CHECKING:
    from lrp.study.comparison import Comparison, Twin
    from lrp.study.statistics import Paired

CLASSES = 30


class Target(StrEnum):
    true = "true"
    predicted = "predicted"


@common.command_example("lrp compare vgg19_results_original.csv vgg19_results_retrained.csv --explain")
def compare(
    a: Annotated[
        Path, typer.Argument(help="The original's table.", metavar="A.csv", exists=True, dir_okay=False)
    ],
    b: Annotated[Path, typer.Argument(help="The other's.", metavar="B.csv", exists=True, dir_okay=False)],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="How many photos of a kind to show.")
    ] = 10,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for tables and pictures; none: one beside A."),
    ] = None,
    root: Annotated[Path | None, ROOT] = None,
    explain: Annotated[bool, common.EXPLAIN] = False,
    target: Annotated[
        Target,
        typer.Option(help="With --explain: the photo's true class, or the one that each model predicts."),
    ] = Target.true,
    model_a: Annotated[
        str | None, typer.Option(help="With --explain: A's model, if it is not where its rows say.")
    ] = None,
    model_b: Annotated[str | None, typer.Option(help="The same of B.")] = None,
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    size_a: Annotated[int | None, typer.Option(min=1, help="Side of A's input, as it was evaluated.")] = None,
    size_b: Annotated[int | None, typer.Option(min=1, help="The same of B.")] = None,
    device: Annotated[str, common.DEVICE] = "auto",
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Set B against A: accuracy, photos gained and lost, where confidence moved most."""
    from lrp.study.folder import compare as compared

    options = tuple(
        common.explain_options(
            explain, composite, size, device, arch=arch, labels=labels, preprocess=preprocess
        )
        for size in (size_a, size_b)
    )
    with common.progress("explaining", quiet) as advance:
        found = compared(
            a, b, output, count=count, root=root, explain=explain, target=target.value, models=(model_a, model_b),
            options=options, advance=advance,
        )  # fmt: skip
    common.print_result_warnings(found.explained)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    elif not quiet:
        _show(found.comparison, count)
    common.print_written_files(found.written, as_json or quiet, found.explained)


def _show(c: Comparison, count: int) -> None:
    print(f"A = {c.names[0]}, B = {c.names[1]}")
    for note in c.notes:
        print(note)
    print()
    shares = {f"all classes ({c.overall.n:,} images)": c.overall}
    if c.restricted:
        shares[f"the {len(c.restricted.classes)} shared classes"] = c.restricted.overall
    names = "A", "B", "B - A", "McNemar's test", "gained", "lost"
    tables.print_table(
        "Accuracy (95 % interval)",
        ("", *(f">{head}" for head in shares)),
        list(zip(names, *map(_accuracies, shares.values()), strict=True)),
    )
    changed = [k for k in c.classes if k.gained or k.lost]
    if changed:
        shown = sorted(changed, key=lambda k: -(k.gained + k.lost))[:CLASSES]
        title = "Classes with photos gained or lost"
        if len(shown) < len(changed):
            title += f": the {len(shown)} of {len(changed)} with most; classes.csv has all"
        tables.print_table(
            title,
            ("class", ">images", ">A", ">B", ">gained", ">lost"),
            [
                [
                    k.label, f"{k.n:,}", *(tables.percent_cell(side.value if side else None) for side in (k.a, k.b)),
                    f"{k.gained:,}", f"{k.lost:,}",
                ]
                for k in shown
            ],
        )  # fmt: skip
    for title, twins in (
        ("Gained: A wrong, B right", c.gained),
        ("Lost: A right, B wrong", c.lost),
        ("The true class's confidence rose most", c.rose),
        ("The true class's confidence fell most", c.fell),
    ):
        if twins:
            more = f" (the first {count} of {len(twins):,})" if len(twins) > count else ""
            columns = ">", "true", ">in A", ">in B", "A said", "B said", "photo"
            tables.print_table(title + more, columns, _twins(twins[:count]))


def _accuracies(p: Paired) -> list[str]:
    if p.difference is None or p.low is None or p.high is None or p.p is None:
        return ["", "", "", "", "0", "0"]
    difference = f"{100 * p.difference:+.1f} points ({100 * p.low:+.1f} to {100 * p.high:+.1f})"
    chance = f"p {p.p:.3f}" if p.p >= 0.001 else "p < 0.001"
    return [str(p.a), str(p.b), difference, chance, f"{p.gained:,}", f"{p.lost:,}"]


def _twins(twins: Sequence[Twin]) -> list[list[str]]:
    from lrp.values import percent

    def cell(value: float | None) -> str:
        return "" if value is None else percent(value)

    return [
        [
            str(rank), t.a.true_label, cell(t.a.true_confidence), cell(t.b.true_confidence), t.a.predicted_label,
            t.b.predicted_label, t.a.path,
        ]
        for rank, t in enumerate(twins, 1)
    ]  # fmt: skip
