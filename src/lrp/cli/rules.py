"""`lrp rules`: the rule of each operation of a model, without running an explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lrp.cli import common


@common.command_example("lrp rules vgg19 --composite epsilon_plus_flat")
def rules(
    model: Annotated[
        str | None, typer.Argument(help="As --model of `lrp explain`; random weights suffice.")
    ] = None,
    arch: Annotated[str | None, common.ARCH] = None,
    labels: Annotated[Path | None, common.LABELS] = None,
    preprocess: Annotated[Path | None, common.PREPROCESS] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    bias: Annotated[str | None, common.BIAS] = None,
    epsilon: Annotated[float | None, common.EPSILON] = None,
    top_k: Annotated[float, common.TOP_K] = 0.0,
    size: Annotated[int | None, common.SIZE] = None,
    known: Annotated[
        bool,
        typer.Option(
            "--known",
            help="List instead the operations that the tests have run, and on images of how many dimensions.",
        ),
    ] = False,
) -> None:
    """Print the table operation -> rule: module path, operation, output's shape, rule, sign of its input."""
    if known:
        from lrp.engine.results.known import known_operations

        for name, families, dimensions in known_operations():
            print(f"{name:<28} {families:<22} {', '.join(f'{d}-d' for d in dimensions)}")
        return
    from lrp.engine.explainer import Explainer
    from lrp.gallery.options import ExplainOptions
    from lrp.models.loading import load_model

    with common.as_wrong_arguments():
        options = ExplainOptions(composite, bias, epsilon, top_k)
    given = {"arch": arch, "size": size, "preprocess": preprocess, "labels": labels}
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    loaded = load_model(
        model or "efficientnet_lite0", pretrained=False, **named
    )  # rules do not depend on weights
    preprocessing = loaded.preprocessing
    print(Explainer(loaded.model, options.rules(preprocessing)).rules(preprocessing.zeros(2)))
