"""An exported program as a plain graph: one placeholder, constants by name, logits [N, K] as output, sizes in images."""

from __future__ import annotations

import operator
import os
import re
from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.graph.facts import facts
from lrp.engine.graph.outputs import HEADS
from lrp.engine.graph.shapes import Batch, Shape, Size
from lrp.engine.graph.tracing.aliases import by_usual_name
from lrp.engine.graph.tracing.captured import Captured
from lrp.engine.graph.tracing.inputs import Inputs
from lrp.engine.graph.tracing.scripts import in_usual_form
from lrp.errors import CaptureError

TORCH = os.path.dirname(torch.__file__) + os.sep
SIZE_OF_VALUES = "a size depends on values, as that of x[mask] does"


def remove_writes(graph: fx.Graph) -> bool:
    """Turn in-place operations into functional ones, where that is certainly correct; return whether none is left.

    `relu_(x)` becomes `relu(x)`, and all later readers of x read its result. That is correct where no other
    tensor shares x's memory: x was made by an operation that allocates, and no view was taken before.
    """
    for node in list(graph.nodes):
        target: Any = node.target
        if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
            continue
        namespace, _, name = target._schema.name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
        functional = getattr(packet, target._overloadname, None)
        written = node.args[0] if node.args else None
        if functional is None or functional._schema.is_mutable or not isinstance(written, fx.Node):
            return False
        earlier = [user for user in written.users if user < node]
        if not all(map(_allocates, [written, *earlier])):
            return False
        node.target = functional
        for user in [user for user in written.users if user > node]:
            user.replace_input_with(written, node)
    return True


def _allocates(node: fx.Node) -> bool:
    target: Any = node.target
    name = target._schema.name if isinstance(target, torch._ops.OpOverload) else ""
    return name.startswith("aten::") and facts(name.removeprefix("aten::")).allocates


def check_sizes(program: Any) -> None:
    """Raise for sizes that are neither numbers nor multiples of the number of images, with the line that makes them."""
    for node in program.graph.nodes:
        for value in _tensors_in(node.meta.get("val")):
            try:
                for size in value.shape:
                    size_of(size)
            except CaptureError as error:
                at = _line_of_code(node.meta.get("stack_trace") or "")
                raise CaptureError(f"{error}, at {at}" if at else str(error)) from None


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors_in(v)] if isinstance(value, (tuple, list)) else []


def size_of(size: Any) -> Size:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    if not symbols:
        return int(expression)
    if str(symbols[0]).startswith(("u", "zu")):
        raise CaptureError(SIZE_OF_VALUES)
    times = expression / symbols[0]
    if len(symbols) > 1 or not times.is_Integer:
        raise CaptureError(f"a size depends on the number of images as {expression}")
    return Batch(int(times))


def graph_of_program(program: Any, free: bool, own: dict[str, Tensor], images: Inputs) -> Captured:
    """The exported program as a plain graph: parameters become `get_attr`, only the inputs are placeholders.

    Args:
        images: the inputs of the call that was traced.
        own: the model's parameters and buffers. A constant in their memory is one of them.
    """
    places = {_place(t): name for name, t in own.items() if t.numel()}
    held = {**program.state_dict, **program.constants}
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    inlined: dict[fx.Node, list[fx.Node]] = {}
    captured = Captured(graph, {}, free_batch=free)
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    numbered = (i for i in range(len(images.tensors)))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = inputs[node.name]
            if spec.kind.name == "USER_INPUT":
                index = next(numbered)
                known = {"input": index, "batched": images.batch_dims[index] is not None}
                if images.tensors[index].is_floating_point():
                    known["entry"] = index
                name = re.sub(r"\W", "_", images.names[index])
                made = graph.placeholder("image" if len(images.tensors) == 1 else f"input_{name}")
            else:
                name = re.sub(r"\W", "_", spec.target or node.name)
                made = graph.create_node("get_attr", name, name=name)
                path = spec.target.removeprefix("model.")
                if path not in own:
                    value = held[spec.target].detach()
                    path = places.get(_place(value), "")
                    captured.constants[name] = value
                if path:
                    captured.constants.pop(name, None)
                    captured.parameters[name] = path
        elif node.op == "output":
            wanted = {
                s.arg.name for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"
            }
            (logits,) = [n for n in node.args[0] if isinstance(n, fx.Node) and n.name in wanted]
            made = graph.output(new[logits])
        elif node.op == "get_attr":
            continue  # the graph of an autocast or no_grad region
        elif getattr(node.target, "__name__", "").startswith("wrap_with_"):
            inlined[node] = _inline(graph, program.graph_module, node, new)
            continue
        elif node.target is operator.getitem and node.args[0] in inlined:
            new[node] = inlined[node.args[0]][node.args[1]]
            continue
        else:
            made = by_usual_name(in_usual_form(graph.node_copy(node, lambda n: new[n])))
        made.meta = _facts_of(node) | (known if made.op == "placeholder" else {})
        new[node] = made
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            captured.parameters.pop(str(node.target), None)
            captured.constants.pop(str(node.target), None)
            graph.erase_node(node)
    return captured


def _place(t: Tensor) -> Any:
    """Where a tensor lies in memory."""
    return t.data_ptr(), t.shape, t.stride(), t.dtype


def _inline(
    graph: fx.Graph, owner: fx.GraphModule, call: fx.Node, new: dict[fx.Node, fx.Node]
) -> list[fx.Node]:
    """Inline a region of autocast or no_grad: its operations are the same outside it, as the explainer sets the dtype."""
    index = next(i for i, a in enumerate(call.args) if isinstance(a, fx.Node) and a.op == "get_attr")
    region: Any = owner.get_submodule(str(getattr(call.args[index], "target", "")))
    operands = iter(call.args[index + 1 :])
    inner: dict[fx.Node, Any] = {}
    for node in region.graph.nodes:
        if node.op == "placeholder":
            operand = next(operands)
            inner[node] = new[operand] if isinstance(operand, fx.Node) else operand
        elif node.op == "output":
            return [inner[n] for n in node.args[0]]
        else:
            inner[node] = by_usual_name(graph.node_copy(node, lambda n: inner[n]))
            inner[node].meta = _facts_of(node)
    raise CaptureError("a region without output")


def logits_as_output(captured: Captured, images: int) -> Captured:
    """Make the logits the output, as [N, K]: without a softmax or sigmoid at the end of the model.

    images: N of a graph that is captured for a fixed number of images.
    """
    graph = captured.graph
    output = graph.output_node()
    last: Any = output.args[0]
    node = last
    while (
        _name(node) in ("squeeze", "view", "reshape", "flatten", "clone", "contiguous")
        and len(node.users) == 1
    ):
        node = node.args[0]
    reshaped = node is not last and len(node.meta["shape"] or ()) > 2  # what were places may be classes now
    if _name(node) in HEADS and len(node.users) == 1 and _over_classes(node) and not reshaped:
        captured.head = _name(node)
        node.replace_all_uses_with(node.args[0])
        last = output.args[0]
        graph.erase_node(node)
    if len(last.meta["shape"] or ()) == 1:  # the images' logits one after the other; often one per image
        (size,) = last.meta["shape"]
        each = size.times if isinstance(size, Batch) else size // images
        with graph.inserting_before(output):
            rows = graph.call_function(torch.ops.aten.reshape.default, (last, [-1, each]))
        shape: Shape = (Batch() if isinstance(size, Batch) else images, each)
        known = {key: value for key, value in last.meta.items() if key != "entry"}
        rows.meta = {**known, "shape": shape, "shapes": [shape], "inside": ()}
        output.args = (rows,)
    return captured


def mark_module_outputs(graph: fx.Graph) -> None:
    """Note at each node of a captured graph the modules whose output it is, as (path, shape): others than the module read it.

    Uses and removes `meta["inside"]`: the paths of the modules around a node, with "@1" behind that of a second call.
    """
    inside: dict[fx.Node, tuple[str, ...]] = {n: n.meta.pop("inside", ()) for n in graph.nodes}
    for node in graph.nodes:
        if node.op == "call_function" and not node.meta.get("size"):
            left = [p for p in inside[node] if any(p not in inside[user] for user in node.users)]
            node.meta["outputs"] = tuple((path, node.meta["shape"]) for path in left)


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::").removeprefix("_") if schema else ""


def _over_classes(node: fx.Node) -> bool:
    """Whether a softmax runs over the classes, dimension 1."""
    rank: int = len(node.meta["shape"])
    return "softmax" not in _name(node) or (rank > 1 and int(node.args[1]) % rank == 1)  # type: ignore[arg-type]


def _facts_of(node: fx.Node) -> dict[str, Any]:
    calls = node.meta.get("nn_module_stack") or {}
    stack = list(calls.values())
    path, module = stack[-1] if stack else ("", "")
    path = "" if path == "model" else path.removeprefix("model.")
    around = [
        re.sub(r"@\d+", "", entry[0]).removeprefix("model.") + "".join(re.findall(r"@\d+$", key))
        for key, entry in calls.items()
    ]
    value = node.meta.get("val")
    tensors = _tensors_in(value)
    size = {"size": size_of(value)} if isinstance(value, torch.SymInt) else {}
    return {
        **size,
        "shape": tuple(size_of(s) for s in tensors[0].shape) if tensors else None,
        "shapes": [tuple(size_of(s) for s in t.shape) for t in tensors],
        "dtype": tensors[0].dtype if tensors else None,
        "path": re.sub(r"@\d+", "", path),
        "inside": tuple(p for p in around if p.partition("@")[0] not in ("", "model")),
        "module": module if isinstance(module, str) else f"{module.__module__}.{module.__qualname__}",
        "source": _line_of_code(node.meta.get("stack_trace") or ""),
    }


def _line_of_code(trace: str) -> str:
    """File and line of the innermost frame outside torch: the model's code."""
    frames = re.findall(r'File "(.+?)", line (\d+)', trace)
    own = [(file, line) for file, line in frames if not file.startswith(TORCH)]
    return f"{os.path.basename(own[-1][0])}:{own[-1][1]}" if own else ""
