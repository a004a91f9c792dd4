"""`lrp data`: download the data sets Imagenette and Imagewoof."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lrp.cli import common


class Name(StrEnum):
    imagenette = "imagenette"
    imagewoof = "imagewoof"


class Size(StrEnum):
    full = "full"
    px320 = "320px"
    px160 = "160px"


@common.command_example("lrp data imagenette --size 160px --root data")
def data(
    name: Annotated[
        Name,
        typer.Argument(help="Ten classes of ImageNet each: imagenette, or imagewoof, which are all dogs."),
    ],
    size: Annotated[
        Size,
        typer.Option(
            help="The photos' shorter side: as they are (1.5 GB), 320 pixels (0.3 GB), 160 (0.1 GB)."
        ),
    ] = Size.px320,
    root: Annotated[Path, typer.Option(help="Folder for the data set's folder and its archive.")] = Path(
        "data"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Unpack again, replacing the folder that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Download, verify and unpack a data set: ROOT/imagenette2-320/{train,val}/<WordNet id>/<image>."""
    from lrp.data.imagenette import ARCHIVES, obtain_imagenette

    archive = ARCHIVES[name.value, size.value]
    with _progress() as show:
        obtained = obtain_imagenette(
            archive,
            root,
            overwrite=overwrite,
            progress=show,
            say=lambda sentence: print(sentence, file=sys.stderr, flush=True),
        )
    if as_json:
        facts = {
            "name": name.value,
            "size": size.value,
            "folder": str(obtained.folder),
            "status": "unpacked" if obtained.fresh else "kept",
            "classes": len(archive.classes),
            "train": obtained.train,
            "val": obtained.val,
            "sha256": obtained.sha256,
        }
        print(json.dumps(facts, ensure_ascii=False))
        return
    status = "unpacked" if obtained.fresh else "already there, complete"
    print(
        f"{obtained.folder}: {obtained.train:,} + {obtained.val:,} photos (train + val) "
        f"of {len(archive.classes)} classes, {status}"
    )


class _progress:
    """A progress bar in bytes on stderr, a task for each step, if it is a terminal; otherwise nothing."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        self.bar = Progress(
            "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self.bar.start()
        return self.show

    def show(self, step: str, done: int, total: int | None) -> None:
        if step not in self.tasks:
            self.tasks[step] = self.bar.add_task(step)
        self.bar.update(self.tasks[step], completed=done, total=total)

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()
