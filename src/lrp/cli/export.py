"""`lrp export`: the explanation program as one file that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrp.cli import common
from lrp.errors import TargetError


@common.command_example("lrp export efficientnet_lite0 --composite epsilon_plus_flat -o explain.onnx")
def export(
    model: Annotated[str, typer.Argument(help=common.MODEL_HELP)] = "efficientnet_lite0",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; none: MODEL_explain.onnx.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="predicted, a class, or A-vs-B; the same for every image.")
    ] = "predicted",
    target_input: Annotated[
        bool,
        typer.Option(
            "--target-input",
            help="The file has a second input: the class of each image, -1 the predicted one.",
        ),
    ] = False,
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    bias: Annotated[str | None, common.BIAS] = None,
    epsilon: Annotated[float | None, common.EPSILON] = None,
    top_k: Annotated[float, common.TOP_K] = 0.0,
    size: Annotated[int | None, common.SIZE] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write one ONNX file from images to logits and relevance, for any number of images."""
    from lrp.gallery.export import export as write
    from lrp.gallery.options import ExplainOptions

    if target_input and target != "predicted":
        raise typer.BadParameter(
            f"--target {target} settles the class, --target-input leaves it open: give one of them."
        )
    with common.as_wrong_arguments():
        options = ExplainOptions(
            composite,
            bias,
            epsilon,
            top_k,
            size=size,
            device="cpu",
            arch=arch,
            labels=labels,
            preprocess=preprocess,
        )
    try:
        made = write(
            model, output or Path(f"{Path(model).stem.replace(':', '_')}_explain.onnx"), target=target,
            target_input=target_input, options=options, overwrite=overwrite,
        )  # fmt: skip
    except TargetError as error:
        colon = "" if str(error).startswith(f"{target}: ") else ":"
        raise typer.BadParameter(f"--target{colon} {error}") from error
    crop = f"[N, 3, {made.size[0]}, {made.size[1]}]"
    print(
        f"{made.path}: {made.bytes / 1e6:.0f} MB; image {crop}{' and target [N]' if target_input else ''} -> "
        f"logits [N, {made.classes}] and relevance {crop}, by {made.composite}"
    )
    if made.logits is None:
        print("not checked: onnxruntime is not installed (pip install 'lrp[export]')")
    else:
        print(
            f"checked in onnxruntime against torch, with 1 and 3 images: logits differ by {made.logits:.0e}, "
            f"relevance by {made.relevance:.0e} (at one pixel by {made.pixel:.0e} of the largest)"
        )
