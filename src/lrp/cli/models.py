"""`lrp models`: the names that --model takes."""

from __future__ import annotations

from typing import Annotated

import typer

from lrp.cli import common


@common.example("lrp models vgg")
def models(
    part: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
) -> None:
    """List the models that have a name here: source of the weights, download size, ImageNet top-1."""
    from lrp.models import model_names

    print(f"{'name':<22} {'top-1':>6} {'download':>9}  weights")
    for entry in model_names():
        if part in entry.name:
            top1 = f"{entry.top1:.1f} %" if entry.top1 else ""
            download = f"{entry.megabytes:.0f} MB" if entry.megabytes else ""
            print(f"{entry.name:<22} {top1:>6} {download:>9}  {entry.source}")
