"""nn.Module + example input -> functional graph of ATen operations. The only user of torch.export.

`torch.export` runs the model once with fake tensors and records every operation, whether the code uses
modules, functions, operators or in-place writes. The resulting graph is functional: no operation changes its
input. The model itself is not changed.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export
from torch.export.graph_signature import InputKind, OutputKind

from lrp.engine.graph.any_batch import FIRST, SECOND, generalise
from lrp.engine.graph.facts import facts
from lrp.engine.graph.outputs import HEADS, Output, logits_among
from lrp.errors import CaptureError, InputError, LrpError

TORCH = os.path.dirname(torch.__file__) + os.sep


@dataclass(frozen=True)
class Batch:
    """A size that is a multiple of the number of images: N, or 64N where windows are part of the batch dimension."""

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
        free_batch: whether the graph accepts any batch size; else only the captured one.
        head: the function at the end of the model that the graph leaves out: "softmax", "sigmoid", ...; or "".
    """

    graph: fx.Graph
    parameters: dict[str, str]
    constants: dict[str, Tensor] = field(default_factory=dict)
    free_batch: bool = True
    head: str = ""

    def values(self, model: nn.Module) -> dict[str, Tensor]:
        """The constants as they are now: the model's own storage, detached."""
        own = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        return {**self.constants, **{name: own[path].detach() for name, path in self.parameters.items()}}


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and has no hooks; afterwards it is restored, also after an error.

    Hooks are removed because they would run on fake tensors, and need not be part of the function. Attributes that
    the forward pass sets on modules (caches, counters, tables for this input size) are removed afterwards.
    """
    kept: list[tuple[nn.Module, dict[str, Any], list[tuple[Any, Any]]]] = []
    hooks = (
        "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    )  # fmt: skip
    try:
        for module in model.modules():
            holders = [v for v in module.__dict__.values() if type(v) in (dict, OrderedDict, list, set)]
            kept.append((module, dict(module.__dict__), [(holder, holder.copy()) for holder in holders]))
            for name in hooks:
                if module.__dict__.get(name):
                    module.__dict__[name] = type(module.__dict__[name])()
            # Not module.eval(): models override train() and eval(), and change more than a flag there.
            module.__dict__["training"] = False
        yield
    finally:
        for module, attributes, held in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for holder, content in held:  # buffers, modules, and tables of the model's own
                holder.clear()
                (holder.extend if isinstance(holder, list) else holder.update)(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without logs and warnings: torch.export logs pages about an error that it raises as well."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _Chosen(nn.Module):
    """The model with one output: the one that holds the logits."""

    def __init__(self, model: nn.Module, output: Output) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, image: Tensor) -> Any:
        return logits_among(self.model(image), self.output)


def capture(model: nn.Module, example: Tensor, output: Output = None) -> Captured:
    """Record what `model` computes from images of `example`'s shape.

    Args:
        model: any module that takes one tensor. Not changed.
        example: [N, C, H, W] on the model's device and in its dtype. Only shape, dtype and device are used.
        output: which of the model's outputs holds the logits, as `logits_among` takes it.

    Raises:
        CaptureError: torch.export cannot trace the model; names the line of the model's code.
        InputError: the model's first convolution expects another number of channels.
    """
    example = example.detach()
    pair = example[:1].repeat(2, *[1] * (example.dim() - 1))  # a free batch needs an example of two
    with eval_mode(model), torch.no_grad(), _quiet(), _no_fused_attention():
        chosen = _Chosen(model, output)
        chosen.__dict__["training"] = False
        try:
            captured = _to_graph(_export(chosen, pair, ({0: Dim("N", min=1)},)), True)
        except Exception:
            try:
                captured = _for_any_batch(chosen, example) or _to_graph(_export(chosen, example, None), False)
            except Exception as error:
                raise _capture_error(chosen, example, error) from error
    return _without_head(captured, len(example))


def _for_any_batch(chosen: nn.Module, example: Tensor) -> Captured | None:
    """The graph for any number of images, from those for two numbers; None: there is no such graph."""
    ones = [1] * (example.dim() - 1)
    try:
        first, second = (
            _to_graph(_export(chosen, example[:1].repeat(n, *ones), None), False) for n in (FIRST, SECOND)
        )
        return generalise(first, second, Batch)
    except Exception:
        return None


@contextlib.contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Without torch's fused transformer layer, which would hide the model's operations in one."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _export(model: nn.Module, example: Tensor, dynamic: Any) -> Any:
    program = export(model, (example,), dynamic_shapes=dynamic, strict=False)
    if not _without_writes(program.graph):
        program = program.run_decompositions(
            {}
        )  # torch's own method: always correct, but it traces everything again
    _check_sizes(program)
    return program


def _without_writes(graph: fx.Graph) -> bool:
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
    if str(symbols[0]).startswith(("u", "zu")):
        raise CaptureError("a size depends on values, as that of x[mask] does")
    times = expression / symbols[0]
    if len(symbols) > 1 or not times.is_Integer:
        raise CaptureError(f"a size depends on the number of images as {expression}")
    return Batch(int(times))


def _to_graph(program: Any, free: bool) -> Captured:
    """The exported program as a plain graph: parameters become `get_attr`, only the image is a placeholder."""
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    inlined: dict[fx.Node, list[fx.Node]] = {}
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
                    captured.parameters[name] = spec.target.removeprefix("model.")
        elif node.op == "output":
            wanted = {
                s.arg.name for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT
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
            made = graph.node_copy(node, lambda n: new[n])
        made.meta = _meta(node)
        new[node] = made
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            captured.parameters.pop(str(node.target), None)
            captured.constants.pop(str(node.target), None)
            graph.erase_node(node)
    return captured


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
            inner[node] = graph.node_copy(node, lambda n: inner[n])
            inner[node].meta = _meta(node)
    raise CaptureError("a region without output")


def _without_head(captured: Captured, images: int) -> Captured:
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
    if _name(node) in HEADS and len(node.users) == 1 and _over_classes(node):
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
        rows.meta = {**last.meta, "shape": shape, "shapes": [shape]}
        output.args = (rows,)
    return captured


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::").removeprefix("_") if schema else ""


def _over_classes(node: fx.Node) -> bool:
    """Whether a softmax runs over the classes, the second of two dimensions."""
    return "softmax" not in _name(node) or (len(node.meta["shape"]) == 2 and node.args[1] in (1, -1))


def _meta(node: fx.Node) -> dict[str, Any]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, module = stack[-1] if stack else ("", "")
    path = "" if path == "model" else path.removeprefix("model.")
    value = node.meta.get("val")
    tensors = _tensors(value)
    size = {"size": _size(value)} if isinstance(value, torch.SymInt) else {}
    return {
        **size,
        "shape": tuple(_size(s) for s in tensors[0].shape) if tensors else None,
        "shapes": [tuple(_size(s) for s in t.shape) for t in tensors],
        "dtype": tensors[0].dtype if tensors else None,
        "path": re.sub(r"@\d+", "", path),
        "module": module if isinstance(module, str) else f"{module.__module__}.{module.__qualname__}",
        "source": _source(node.meta.get("stack_trace") or ""),
    }


def _source(trace: str) -> str:
    """File and line of the innermost frame outside torch: the model's code."""
    frames = re.findall(r'File "(.+?)", line (\d+)', trace)
    own = [(file, line) for file, line in frames if not file.startswith(TORCH)]
    return f"{os.path.basename(own[-1][0])}:{own[-1][1]}" if own else ""


def _capture_error(chosen: _Chosen, example: Tensor, error: Exception) -> LrpError:
    """The error for a failed capture. The model is run by itself first: its own error is clearer than torch.export's."""
    shape, name = list(example.shape), type(chosen.model).__name__
    try:
        chosen(example.clone())
    except LrpError as own:
        return own
    except Exception as own:
        wrong = _wrong_channels(chosen.model, example)
        if wrong:
            return InputError(wrong)
        return CaptureError(
            f"{name} itself fails on an input of shape {shape}: {type(own).__name__}: {_line(own)}"
        )
    where = [line for line in _frames(error) if not line.startswith(TORCH)]
    at = f" at {os.path.basename(where[-1])}" if where else ""
    return CaptureError(
        f"{name} could not be captured for an input of shape {shape}{at}: {_line(error)} "
        "(torch.export must be able to follow the forward pass: no branch may depend on pixel values)."
    )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _wrong_channels(model: nn.Module, example: Tensor) -> str:
    """The message if the images have another number of channels than the model's first convolution takes, else ""."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if example.dim() == 4 and example.shape[1] != module.in_channels:
                return (
                    f"the images have {example.shape[1]} channels, shape {list(example.shape)}, and the model's first "
                    f"convolution, {path}, takes {module.in_channels}: x must be [N, {module.in_channels}, H, W]."
                )
            return ""
    return ""


def _frames(error: BaseException) -> list[str]:
    frames, tb = [], error.__traceback__
    while tb is not None:
        frames.append(f"{tb.tb_frame.f_code.co_filename}:{tb.tb_lineno}")
        tb = tb.tb_next
    here = os.path.dirname(os.path.abspath(__file__))
    return [f for f in frames if not f.startswith(here) and os.sep + "lrp" + os.sep + "explainer" not in f]
