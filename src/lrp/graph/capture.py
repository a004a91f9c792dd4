"""nn.Module + example input -> functional graph of ATen operations. The only user of torch.export.

`torch.export` runs the model once with fake tensors and writes down every operation, whatever the code
looks like: modules, functions, operators, in-place writes. The graph it gives is functional: no operation
changes its input. The model comes out as it went in.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export
from torch.export.graph_signature import InputKind, OutputKind

from lrp.errors import CaptureError

TORCH = os.path.dirname(torch.__file__) + os.sep


@dataclass(frozen=True)
class Batch:
    """A size that is a multiple of the number of images: N, or 64N where windows join the batch."""

    times: int = 1

    def __str__(self) -> str:
        return "N" if self.times == 1 else f"{self.times}N"

    __repr__ = __str__


Size = int | Batch
Shape = tuple[Size, ...]


@dataclass
class Captured:
    """A model as a graph.

    Attributes:
        graph: one placeholder (the image), `get_attr` nodes for constants, ATen calls, one output (the
            logits). Each node's meta holds "shape", "dtype", "path", "module", "source".
        parameters: constant's name in the graph -> the parameter's or buffer's name in the model.
        constants: constants that belong to the graph, not to the model.
        free_batch: whether any number of images goes through; else only as many as captured with.
    """

    graph: fx.Graph
    parameters: dict[str, str]
    constants: dict[str, Tensor] = field(default_factory=dict)
    free_batch: bool = True

    def values(self, model: nn.Module) -> dict[str, Tensor]:
        """The constants as they are now: the model's own storage, detached."""
        own = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        return {**self.constants, **{name: own[path].detach() for name, path in self.parameters.items()}}


@contextlib.contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without hooks inside; every flag and hook back afterwards, whatever happens.

    Hooks come off because they would run on fake tensors, and may not be part of the function anyway.
    """
    kept: list[tuple[nn.Module, bool, dict[str, Any]]] = []
    hooks = (
        "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    )  # fmt: skip
    try:
        for module in model.modules():
            kept.append((module, module.training, {name: module.__dict__.get(name) for name in hooks}))
            for name in hooks:
                if module.__dict__.get(name):
                    module.__dict__[name] = type(module.__dict__[name])()
            # Not module.eval(): models override train() and eval(), and change more than a flag there.
            module.__dict__["training"] = False
        yield
    finally:
        for module, training, found in kept:
            module.__dict__["training"] = training
            for name, value in found.items():
                if value is not None:
                    module.__dict__[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs pages about what it then raises; our error says it in one line."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def capture(model: nn.Module, example: Tensor) -> Captured:
    """Write down what `model` computes from images of `example`'s shape.

    Args:
        model: any module that takes one tensor and returns logits [N, K]. Not changed.
        example: [N, C, H, W] on the model's device and in its dtype. Only shape, dtype and device count.

    Raises:
        CaptureError: torch.export cannot follow the model; names the line of the model's code.
    """
    example = example.detach()
    pair = example[:1].repeat(2, *[1] * (example.dim() - 1))  # a free batch needs an example of two
    with as_found(model), torch.no_grad(), _quiet():
        try:
            program = _export(model, pair, ({0: Dim("N", min=1)},))
            free = True
        except Exception:
            try:
                program = _export(model, example, None)
                free = False
            except Exception as error:
                raise CaptureError(_explained(model, example, error)) from error
    return _to_graph(program, free)


def _export(model: nn.Module, example: Tensor, dynamic: Any) -> Any:
    program = export(model, (example,), dynamic_shapes=dynamic, strict=False)
    if not _without_writes(program.graph):
        program = program.run_decompositions({})  # torch's own way: right always, and traces everything again
    _check_sizes(program)
    return program


def _without_writes(graph: fx.Graph) -> bool:
    """Turn in-place operations into functional ones, where that is plainly right; say whether none is left.

    `relu_(x)` becomes `relu(x)`, and all later readers of x read its result. That is right where no other
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


ALLOCATE = frozenset({
    "conv1d", "conv2d", "conv3d", "linear", "matmul", "batch_norm", "layer_norm", "group_norm", "add", "sub", "mul",
    "div", "cat", "relu", "hardtanh", "hardswish", "silu", "gelu", "sigmoid", "hardsigmoid", "leaky_relu", "elu",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "bmm", "softmax",
})  # fmt: skip


def _allocates(node: fx.Node) -> bool:
    target: Any = node.target
    return (
        isinstance(target, torch._ops.OpOverload) and target._schema.name.removeprefix("aten::") in ALLOCATE
    )


def _check_sizes(program: Any) -> None:
    for node in program.graph.nodes:
        for value in _tensors(node.meta.get("val")):
            for size in value.shape:
                _size(size)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []


def _size(size: Any) -> Size:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    if not symbols:
        return int(expression)
    times = expression / symbols[0]
    if len(symbols) > 1 or not times.is_Integer:
        raise CaptureError(f"a size depends on the number of images as {expression}")
    return Batch(int(times))


def _to_graph(program: Any, free: bool) -> Captured:
    """The exported program as a plain graph: parameters become `get_attr`, only the image is a placeholder."""
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    captured = Captured(graph, {}, free_batch=free)
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = inputs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                made = graph.placeholder("image")
            else:
                name = re.sub(r"\W", "_", spec.target or node.name)
                made = graph.create_node("get_attr", name, name=name)
                if spec.kind is InputKind.CONSTANT_TENSOR or spec.target in program.constants:
                    captured.constants[name] = program.constants[spec.target].detach()
                else:
                    captured.parameters[name] = spec.target
        elif node.op == "output":
            wanted = {
                s.arg.name for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT
            }
            outputs = [n for n in node.args[0] if isinstance(n, fx.Node) and n.name in wanted]
            if len(outputs) != 1:
                raise CaptureError(
                    f"the model returns {len(outputs)} tensors; one is expected: the logits [N, K]. "
                    "Wrap the model in one that returns the logits alone."
                )
            made = graph.output(new[outputs[0]])
        else:
            made = graph.node_copy(node, lambda n: new[n])
        made.meta = _meta(node)
        new[node] = made
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            captured.parameters.pop(str(node.target), None)
            captured.constants.pop(str(node.target), None)
            graph.erase_node(node)
    return captured


def _meta(node: fx.Node) -> dict[str, Any]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, module = stack[-1] if stack else ("", "")
    value = node.meta.get("val")
    tensors = _tensors(value)
    return {
        "shape": tuple(_size(s) for s in tensors[0].shape) if tensors else None,
        "shapes": [tuple(_size(s) for s in t.shape) for t in tensors],
        "dtype": tensors[0].dtype if tensors else None,
        "path": re.sub(r"@\d+", "", path),
        "module": module if isinstance(module, str) else f"{module.__module__}.{module.__qualname__}",
        "source": _source(node.meta.get("stack_trace") or ""),
    }


def _source(trace: str) -> str:
    """The innermost line outside torch itself: the model's own."""
    frames = re.findall(r'File "(.+?)", line (\d+)', trace)
    own = [(file, line) for file, line in frames if not file.startswith(TORCH)]
    return f"{os.path.basename(own[-1][0])}:{own[-1][1]}" if own else ""


def _explained(model: nn.Module, example: Tensor, error: Exception) -> str:
    """Why capture failed. The plain model is asked first: its own error beats torch.export's account of it."""
    shape = list(example.shape)
    try:
        model(example.clone())
    except Exception as own:
        reason = str(own).strip().splitlines()[0] if str(own).strip() else type(own).__name__
        return f"{type(model).__name__} itself fails on an input of shape {shape}: {type(own).__name__}: {reason}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    where = [line for line in _frames(error) if not line.startswith(TORCH)]
    at = f" at {os.path.basename(where[-1])}" if where else ""
    return (
        f"{type(model).__name__} could not be captured for an input of shape {shape}{at}: {reason} "
        "(torch.export must be able to follow the forward pass: no branch may depend on pixel values)."
    )


def _frames(error: BaseException) -> list[str]:
    frames, tb = [], error.__traceback__
    while tb is not None:
        frames.append(f"{tb.tb_frame.f_code.co_filename}:{tb.tb_lineno}")
        tb = tb.tb_next
    here = os.path.abspath(__file__)
    return [f for f in frames if not f.startswith(here) and os.sep + "lrp" + os.sep + "explainer" not in f]
