"""`lrp rules`: the rule of each operation of a model, without running an explanation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lrp.cli import common


@common.command_example("lrp rules vgg19 --composite epsilon_plus_flat")
def rules(
    model: Annotated[
        str | None, typer.Argument(help="As --model of `lrp explain`; random weights suffice.")
    ] = None,
    arch: Annotated[str | None, common.ARCH] = None,
    composite: Annotated[str | None, common.COMPOSITE] = None,
    bias: Annotated[str | None, common.BIAS] = None,
    epsilon: Annotated[float | None, common.EPSILON] = None,
    top_k: Annotated[float, common.TOP_K] = 0.0,
    size: Annotated[int | None, common.SIZE] = None,
    known: Annotated[
        bool, typer.Option("--known", help="List the operations that have a rule, instead.")
    ] = False,
) -> None:
    """Print the table operation -> rule: module path, operation, output's shape, rule, sign of its input."""
    if known:
        import lrp.engine.graph.vocabulary  # noqa: F401  (registers the supported operations)
        from lrp.engine.graph.ops import known as vocabulary

        for name, family in vocabulary().items():
            print(f"{name:<24} {family}")
        return
    import torch

    from lrp.engine.explainer import Explainer
    from lrp.gallery.options import ExplainOptions
    from lrp.models.loading import load_model

    with common.as_wrong_arguments():
        options = ExplainOptions(composite, bias, epsilon, top_k)
    named: dict[str, Any] = {} if arch is None else {"arch": arch}
    loaded = load_model(
        model or "efficientnet_lite0", pretrained=False, **named
    )  # rules do not depend on weights
    preprocessing = loaded.preprocessing.with_size(size) if size else loaded.preprocessing
    print(
        Explainer(loaded.model, options.rules(preprocessing)).rules(
            torch.zeros(2, 3, *preprocessing.geometry.crop)
        )
    )
