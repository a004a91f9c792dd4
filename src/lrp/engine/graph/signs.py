"""Which values are provably >= 0: rules that split signs can then skip the a⁻ half of their products."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from lrp.engine.graph import ops

ALWAYS = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "_softmax", "_safe_softmax", "exp", "abs", "square",
                    "softplus", "linalg_vector_norm"})  # fmt: skip
# Where all data inputs are >= 0, so is the output: it holds their elements, averages or sums of them, or zeros.
KEEPS = frozenset({
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "sum", "cat", "stack", "view", "reshape",
    "_unsafe_view", "flatten", "unsqueeze", "squeeze", "permute", "transpose", "slice", "select", "split",
    "split_with_sizes", "chunk", "unbind", "expand", "getitem", "roll", "index", "hardswish", "silu", "gelu", "tanh",
    "leaky_relu", "unflatten", "repeat", "repeat_interleave", "flip", "im2col", "col2im", "cumsum", "amax", "max",
    "upsample_nearest2d", "upsample_bilinear2d", "movedim", "pixel_shuffle", "pixel_unshuffle", "index_select",
    "matmul", "bmm", "sqrt", "mish",
})  # fmt: skip
# Here a number among the arguments decides as well.
NUMBERS = {"add": ("other", "alpha"), "mul": ("other",), "pad": ("value",), "constant_pad_nd": ("value",)}
ASK = frozenset({*NUMBERS, "hardtanh", "clamp"})


def nonnegative(graph: fx.Graph, constants: dict[str, Tensor]) -> set[fx.Node]:
    """The nodes whose every element is >= 0 whatever the image; by one pass in order of execution."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and _holds(node, found, constants):
            found.add(node)
    return found


def _holds(node: fx.Node, found: set[fx.Node], constants: dict[str, Tensor]) -> bool:
    name = ops.name_of(node)
    if name in ALWAYS:
        return True
    if node.target is not operator.getitem and name not in KEEPS | ASK:
        return False
    arguments = ops.arguments_of(node)
    if name in ("hardtanh", "clamp"):
        low = arguments.get("min_val", arguments.get("min"))
        return isinstance(low, (int, float)) and low >= 0
    numbers = [arguments.get(key) for key in NUMBERS.get(name, ())]
    if any(isinstance(v, (int, float)) and v < 0 for v in numbers):
        return False
    return all(_input_holds(n, found, constants) for n in node.all_input_nodes)


def _input_holds(node: fx.Node, found: set[fx.Node], constants: dict[str, Tensor]) -> bool:
    if node.op == "get_attr":
        value = constants[str(node.target)]
        return not value.is_floating_point() or bool((value >= 0).all())
    return node in found or node.meta.get("shape") is None  # a size
