"""Whether an affine layer counts as a convolution or as a linear layer: by what it computes, not by the module it is in.

Presets give the two different rules. A 1 × 1 convolution and a linear layer over the channels of every position are one
function, and so are a convolution whose window is the whole input and a linear layer of all elements.

- A layer with one window, the whole input, is linear.
- A layer over the channels of each position belongs to the operations next to it that mix positions: in a transformer
  (attention) and at a recurrence it is linear, in a convolutional net it is a convolution, and without either it is linear.
- Every other convolution is a convolution, every other linear layer linear.
"""

from __future__ import annotations

import math

from torch.fx import Node

from lrp.engine.graph import ops
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.shapes import Size, shape_of_one_image, sizes_per_dimension
from lrp.engine.graph.vocabulary.layers import CONVOLUTIONS


def unify_layers(graph: Graph) -> None:
    """Set the family of every convolution and linear layer."""
    operations = graph.operations
    for operation in operations.values():
        if _whole_window(operation):
            operation.family = "linear"
    mixers = {node: kind for node, o in operations.items() if (kind := _mixes_positions(o))}
    mixers |= dict.fromkeys(_recurrent(graph), "recurrence")
    for node, operation in operations.items():
        if _pointwise(operation, graph.images):
            near = {mixers[m] for m in _next_to(node, mixers)}
            operation.family = "conv" if near == {"conv"} else "linear"


def _kernel(operation: Operation) -> list[int]:
    return list(operation["weight"].shape[2:])


def _pads(operation: Operation) -> bool:
    padding = operation["padding"]
    own = any(padding if isinstance(padding, (list, tuple)) else [padding])
    return own or (operation.name == "padded_conv" and any(operation["pad"]))


def _whole_window(operation: Operation) -> bool:
    """Whether a convolution's one window is all of its input."""
    if operation.name not in CONVOLUTIONS or operation.family != "conv" or _pads(operation):
        return False
    return _kernel(operation) == shape_of_one_image(operation.input_shape())[2:]


def _pointwise(operation: Operation, images: Size) -> bool:
    """Whether the same layer is applied to the channels of each of several positions."""
    if operation.name == "linear":
        # Of all images, where their number is fixed.
        rows = math.prod(shape_of_one_image(operation.shape)[:-1])
        return rows > (images if isinstance(images, int) else 1)
    if operation.name not in CONVOLUTIONS or operation.family != "conv" or _pads(operation):
        return False
    return set(_kernel(operation)) <= {1}


def _mixes_positions(operation: Operation) -> str:
    """ "conv" for a convolution with overlapping windows, "attention" for a product of data with data, else ""."""
    if operation.family == "matmul":
        return "attention"
    if operation.family != "conv":
        return ""
    if operation.name not in CONVOLUTIONS:
        return "conv"  # transposed
    kernel = _kernel(operation)
    strides = sizes_per_dimension(operation["stride"], len(kernel))
    return "conv" if any(k > 1 and k > s for k, s in zip(kernel, strides, strict=True)) else ""


def _recurrent(graph: Graph) -> set[Node]:
    """The linear layers of a state: they read what was computed with the same weights before."""
    layers: dict[Node, list[Node]] = {}
    for node, operation in graph.operations.items():
        if operation.name == "linear" and not _pointwise(operation, graph.images):
            layers.setdefault(operation.arguments["weight"], []).append(node)
    found: set[Node] = set()
    for weight, users in layers.items():
        first = min(weight.users)
        behind = _behind(first) if len(weight.users) > 1 else set()
        found.update(user for user in users if user in behind)
    return found


def _behind(node: Node) -> set[Node]:
    """All nodes that depend on a node."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        new = [user for user in waiting.pop().users if user not in found]
        found.update(new)
        waiting += new
    return found


def _next_to(node: Node, mixers: dict[Node, str]) -> set[Node]:
    """The operations that mix positions and that a path without another such operation connects with a layer."""
    found: set[Node] = set()
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        for other in (*current.all_input_nodes, *current.users):
            if other in seen or other.op == "get_attr" or ops.operation_name(other).startswith("sym_"):
                continue
            seen.add(other)
            if other in mixers:
                found.add(other)
            else:
                waiting.append(other)
    return found
