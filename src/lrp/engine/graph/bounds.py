"""The range of a first layer's input: that of the model's input, propagated through the operations between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import Batch, shape_of_one_image
from lrp.errors import CompositeError


def carried_bounds(graph: Graph, operation: Operation, low: Any, high: Any) -> tuple[Tensor, Tensor]:
    """The bounds of the image, as given to `ZBox`, converted to bounds of the operation's input, [1, *in].

    Raises:
        CompositeError: several inputs reach the operation, or one that holds ids.
    """
    reaching = entries_behind(graph, operation)
    if len(reaching) != 1 or reaching[0].op != "placeholder":
        raise CompositeError(
            f"ZBox at {operation}: low and high are the range of one image, and {len(reaching)} inputs or embeddings reach it: give it "
            "another rule."
        )
    (entry,) = reaching
    shape = shape_of_one_image(entry.meta["shape"])
    ends = []
    for bound in (low, high):
        b = torch.as_tensor(bound, dtype=graph.dtype, device=graph.device)
        b = b.reshape(1, -1, *[1] * (len(shape) - 2)) if b.dim() == 1 else b
        ends.append(_run(graph, entry, b.expand(1, *shape[1:]).contiguous(), operation.data[0]))
    return torch.minimum(*ends), torch.maximum(*ends)  # a negative factor between them swaps the two


def bounds_of_each_image(bounds: tuple[Tensor, Tensor], operation: Operation, a: Any) -> tuple[Any, Any]:
    """The same bounds for each image, also where windows are part of the batch dimension."""
    images = operation.input_shape()[0]
    if not isinstance(images, Batch) or images.times == 1:
        return bounds
    blank = torch.zeros_like(a).unflatten(0, (-1, images.times))
    low, high = ((blank + bound).flatten(0, 1) for bound in bounds)
    return low, high


def entries_behind(graph: Graph, operation: Operation) -> list[fx.Node]:
    """The nodes where data enter the model that an operation's data depend on."""
    found, waiting = set(operation.data), list(operation.data)
    while waiting:
        new = [n for n in waiting.pop().all_input_nodes if n not in found]
        found.update(new)
        waiting += new
    return [n for n in graph.entries if n in found]


def _run(graph: Graph, entry: fx.Node, image: Tensor, to: fx.Node) -> Tensor:
    values: dict[fx.Node, Any] = {entry: image}

    def run(node: fx.Node) -> Any:
        if node not in values:
            if node.op == "get_attr":
                values[node] = graph.constants[str(node.target)]
            else:
                target: Any = node.target
                values[node] = target(*fx.map_arg(node.args, run), **fx.map_arg(dict(node.kwargs), run))
        return values[node]

    result: Tensor = run(to)
    return result
