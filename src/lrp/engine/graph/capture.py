"""nn.Module + example input -> functional graph of ATen operations. The only user of torch.export.

`torch.export` runs the model once with fake tensors and records every operation, whether the code uses
modules, functions, operators or in-place writes. The resulting graph is functional: no operation changes its
input. It runs a copy: the model itself is not touched.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._export.converter import TS2EPConverter
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.parameter import UninitializedParameter

from lrp.engine.graph.facts import facts
from lrp.engine.graph.outputs import HEADS, Output, logits_among
from lrp.engine.graph.tracing.any_batch import FIRST, SECOND, generalise
from lrp.engine.graph.tracing.constant_branches import ConstantBranches
from lrp.engine.graph.tracing.hooks import Hook, forward_hooks, hooked, hooks_that_change, only
from lrp.engine.graph.tracing.isolation import isolated, replaced_here
from lrp.engine.graph.tracing.model_copy import copy_of
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
        written: (module's path, name) of the attributes that the forward pass itself sets: counters, flags, tables.
        answers: values of parameters and buffers that decided which operations the graph has.
    """

    graph: fx.Graph
    parameters: dict[str, str]
    constants: dict[str, Tensor] = field(default_factory=dict)
    free_batch: bool = True
    head: str = ""
    written: frozenset[tuple[str, str]] = frozenset()
    answers: dict[str, Tensor] = field(default_factory=dict)

    def values(self, model: nn.Module) -> dict[str, Tensor]:
        """The constants as they are now: the model's own storage, detached."""
        own = _tensors_of(model)
        return {**self.constants, **{name: own[path] for name, path in self.parameters.items()}}

    def reads(self) -> set[str]:
        """The model's parameters and buffers that the graph depends on."""
        return {*self.parameters.values(), *self.answers}

    def decides_as(self, model: nn.Module) -> bool:
        """Whether branches on constants are taken as when the model was captured."""
        own = _tensors_of(model) if self.answers else {}
        return all(name in own and torch.equal(own[name], then) for name, then in self.answers.items())


def _call(model: nn.Module, image: Tensor) -> Any:
    """The model's output. A graph's nodes keep the paths of the modules of which it was made, if they have any."""
    if isinstance(model, fx.GraphModule) and any("nn_module_stack" in n.meta for n in model.graph.nodes):
        with fx.traceback.preserve_node_meta():
            return fx.Interpreter(model).run(image)
    return model(image)


def as_module(model: Any) -> Any:
    """A module that computes what an exported program does; anything else as it is."""
    return model.module() if isinstance(model, ExportedProgram) else model


class _Chosen(nn.Module):
    """The model with one output: the one that holds the logits.

    Attributes:
        written: (module's path, name) of the attributes that a forward pass sets. They are taken off again.
        paths: id of a module's attributes -> its path and itself.
    """

    model: nn.Module
    paths: dict[int, tuple[str, nn.Module]]

    def __init__(self, model: nn.Module, output: Output, constants: ConstantBranches | None = None) -> None:
        super().__init__()
        self.model, self.output, self.constants = model, output, constants
        self.__dict__["training"] = False
        self.written = set[tuple[str, str]]()
        # Not `self.modules()` later: torch.fx puts proxies in the place of modules.
        self.__dict__["paths"] = {id(m.__dict__): (path, m) for path, m in model.named_modules()}

    def forward(self, image: Tensor) -> Any:
        if self.constants is not None:
            self.constants.begin(self.model)
        with self._taken_off(), self.constants or contextlib.nullcontext():
            return logits_among(_call(self.model, image), self.output)

    @contextlib.contextmanager
    def _taken_off(self) -> Iterator[None]:
        original, kept = nn.Module.__setattr__, []
        for path, module in self.paths.values():
            holders = [v for v in module.__dict__.values() if type(v) in (dict, OrderedDict, list, set)]
            kept.append((path, module.__dict__, dict(module.__dict__), [(h, h.copy()) for h in holders]))

        def note(module: nn.Module, name: str, value: Any) -> None:
            if id(module.__dict__) in self.paths:
                self.written.add((self.paths[id(module.__dict__)][0], name))
            original(module, name, value)

        try:
            with replaced_here(nn.Module, "__setattr__", note):
                yield
        finally:
            for path, now, before, held in kept:
                self.written.update((path, name) for name in now if now[name] is not before.get(name, now))
                now.clear()
                now.update(before)
                for holder, content in held:  # buffers, modules, and tables of the model's own
                    holder.clear()
                    (holder.extend if isinstance(holder, list) else holder.update)(content)


def capture(model: nn.Module, example: Tensor, output: Output = None) -> Captured:
    """Record what `model` computes from images of `example`'s shape, in eval mode.

    Args:
        model: any module that takes one tensor. Not changed, not even meanwhile: a copy is traced.
        example: [N, C, H, W] on the model's device and in its dtype. Its values are used only where hooks or branches
            must be run to be known.
        output: which of the model's outputs holds the logits, as `logits_among` takes it.

    Raises:
        CaptureError: torch.export cannot trace the model; names the line of the model's code.
        InputError: the model's first convolution expects another number of channels.
    """
    _refuse(model)
    with isolated(), plain_numbers(example.device):
        example, hooks = example.detach().clone(), set[Hook]()
        try:
            if forward_hooks(model):
                hooks = hooks_that_change(model, example, lambda m, x: _own(m, x, output))
            captured = _traced(model, example, output, hooks)
        except Exception as error:
            raise _capture_error(model, example, output, hooks, error) from error
        if hooks:
            _compare(model, example, output, hooks, captured)
    return _without_head(captured, len(example))


@contextlib.contextmanager
def plain_numbers(device: torch.device) -> Iterator[None]:
    """Without gradients, and whatever mode the caller is in: autocast, inference mode."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def own_output(model: nn.Module, images: Tensor, output: Output = None) -> Tensor:
    """What the model itself returns as logits in eval mode, hooks included; it is not changed."""
    with plain_numbers(images.device), hooked(copy_of(model, own_tensors=True), lambda _, hook: hook) as run:
        return _own(run, images, output).detach()


def _own(run: nn.Module, images: Tensor, output: Output) -> Tensor:
    found: Tensor = logits_among(run(images.clone()), output)  # it may write into its input
    return found


def _traced(model: nn.Module, example: Tensor, output: Output, hooks: set[Hook]) -> Captured:
    """The graph for any number of images if possible, else for that of the example."""

    def attempt(count: int, free: bool = False, *, answers: bool) -> Captured:
        images = example if count == len(example) else example[:1].repeat(count, *[1] * (example.dim() - 1))
        return _attempt(model, images, free, output, hooks, answers)

    def free(answers: bool) -> Captured:
        return attempt(2, True, answers=answers)  # torch takes a single image for a constant

    def from_two(answers: bool) -> Captured:
        first, second = (attempt(count, answers=answers) for count in (FIRST, SECOND))
        made: Captured = generalise(first, second, Batch)
        return made

    def fixed(answers: bool) -> Captured:
        return attempt(len(example), answers=answers)

    failed: Exception | None = None
    for way in (free, from_two, fixed):
        for answers in (False, True):
            try:
                return way(answers)
            except Exception as error:
                failed = error
                if not _asks_for_values(error):
                    break
        else:
            break  # it asks for values of pixels
    assert failed is not None
    raise failed


def _attempt(
    model: nn.Module, images: Tensor, free: bool, output: Output, hooks: set[Hook], answers: bool
) -> Captured:
    """One export of a copy that is thrown away afterwards.

    Args:
        answers: answer questions about the values of constants, which costs more than it does to trace.
    """
    own = _tensors_of(model)
    with _dense_products(model), hooked(_exportable(copy_of(model), images), only(hooks)) as copied:
        chosen = _Chosen(copied, output, ConstantBranches(own) if answers else None)
        program = _export(chosen, images, ({0: Dim("N", min=1)},) if free else None)
        if not answers and any(node.target in NUMBERS for node in program.graph.nodes):
            raise CaptureError(SIZE_OF_VALUES)  # a number out of a tensor: a constant, if the tensor is one
    captured = _to_graph(program, free, own)
    captured.written = frozenset(chosen.written)
    if chosen.constants is not None:
        captured.answers = chosen.constants.answers
    return captured


def _dense_products(model: nn.Module) -> Any:
    """Sparse tensors are dense in the graph: then torch.sparse.mm is torch.mm."""
    return replaced_here(torch.sparse, "mm", torch.mm) if _sparse(model) else contextlib.nullcontext()


def _sparse(model: nn.Module) -> list[str]:
    """The names of parameters and buffers that are sparse."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, t in named if t.layout is not torch.strided]


def _asks_for_values(error: BaseException | None) -> bool:
    """Whether an export failed because a trace has no values."""
    while error is not None:
        if type(error).__name__ in ASKS or str(error).startswith((SIZE_OF_VALUES, NO_NUMPY)):
            return True
        error = error.__cause__ or error.__context__
    return False


ASKS = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
NUMBERS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
NO_NUMPY = ".numpy() is not supported for tensor subclasses"
SIZE_OF_VALUES = "a size depends on values, as that of x[mask] does"


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, dense."""
    own = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {
        name: t.detach() if t.layout is torch.strided else t.detach().to_dense() for name, t in own.items()
    }


def _exportable(copied: nn.Module, images: Tensor) -> nn.Module:
    """The copy with only such tensors and modules as torch.export takes."""
    if isinstance(copied, torch.jit.ScriptModule):
        return _from_script(copied, (images,))
    _replace_scripts(copied, images)
    made: dict[int, Tensor] = {}
    for module in copied.modules():
        tables: tuple[Any, Any] = module._parameters, module._buffers
        for table in tables:
            for name, t in table.items():
                if t is not None and (t.is_inference() or t.layout is not torch.strided):
                    dense = t.detach().clone() if t.layout is torch.strided else t.detach().to_dense()
                    plain = nn.Parameter(dense, requires_grad=False) if table is module._parameters else dense
                    table[name] = made.setdefault(id(t), plain)
    return copied


class _Recording(nn.Module):
    """A TorchScript module that notes what it is called with."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script, self.received = script, tuple[Any, ...]()

    def forward(self, *received: Any) -> Any:
        self.received = received
        return self.script(*received)


def _replace_scripts(copied: nn.Module, images: Tensor) -> None:
    """Replace the TorchScript modules inside a model; one run tells what they are called with."""
    outer = [m for m in copied.modules() if not isinstance(m, torch.jit.ScriptModule)]
    places = [
        (module._modules, name)
        for module in outer
        for name, child in module._modules.items()
        if isinstance(child, torch.jit.ScriptModule)
    ]
    if not places:
        return
    for table, name in places:
        table[name] = _Recording(table[name])  # type: ignore[arg-type]
    copied(images.clone())
    for table, name in places:
        recording: Any = table[name]
        used = recording.received != ()
        table[name] = _from_script(recording.script, recording.received) if used else recording.script


def _from_script(script: torch.jit.ScriptModule, received: tuple[Any, ...]) -> nn.Module:
    """A TorchScript model as a module that runs the same operations from Python, with the same names of tensors."""

    class Converter(TS2EPConverter):
        made: nn.Module

        def retrace_as_exported_program(self, gm: nn.Module, name_to_constant: Any) -> Any:
            self.made = gm
            return SimpleNamespace(state_dict={})

    converter = Converter(script, received)
    converter.convert()
    return converter.made


def _export(model: nn.Module, example: Tensor, dynamic: Any) -> ExportedProgram:
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


def _check_sizes(program: ExportedProgram) -> None:
    """Raise for sizes that are neither numbers nor multiples of the number of images, with the line that makes them."""
    for node in program.graph.nodes:
        for value in _tensors(node.meta.get("val")):
            try:
                for size in value.shape:
                    _size(size)
            except CaptureError as error:
                at = _source(node.meta.get("stack_trace") or "")
                raise CaptureError(f"{error}, at {at}" if at else str(error)) from None


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
        raise CaptureError(SIZE_OF_VALUES)
    times = expression / symbols[0]
    if len(symbols) > 1 or not times.is_Integer:
        raise CaptureError(f"a size depends on the number of images as {expression}")
    return Batch(int(times))


def _to_graph(program: Any, free: bool, own: dict[str, Tensor]) -> Captured:
    """The exported program as a plain graph: parameters become `get_attr`, only the image is a placeholder.

    Args:
        own: the model's parameters and buffers. A constant in their memory is one of them.
    """
    places = {_place(t): name for name, t in own.items() if t.numel()}
    held = {**program.state_dict, **program.constants}
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
            made = _in_usual_form(graph.node_copy(node, lambda n: new[n]))
        made.meta = _meta(node)
        new[node] = made
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            captured.parameters.pop(str(node.target), None)
            captured.constants.pop(str(node.target), None)
            graph.erase_node(node)
    return captured


def _in_usual_form(node: fx.Node) -> fx.Node:
    """TorchScript's convolution, one operation for all kinds, as torch.export writes it."""
    aten = torch.ops.aten
    if node.target is aten.convolution.default:
        *tensors, stride, padding, dilation, transposed, output_padding, groups = node.args
        name = f"conv{'_transpose' if transposed else ''}{len(stride)}d"  # type: ignore[arg-type]
        if transposed:
            node.target = getattr(aten, name).input if len(stride) > 1 else getattr(aten, name).default  # type: ignore[arg-type]
            node.args = (*tensors, stride, padding, output_padding, groups, dilation)
        else:
            node.target = getattr(aten, name).default
            node.args = (*tensors, stride, padding, dilation, groups)
    return node


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


def _refuse(model: nn.Module) -> None:
    """Raise for modules that cannot be captured, whatever their code is."""
    for path, module in model.named_modules():
        at, kind = path or "the model", type(module)
        quantised = ".quantized" in kind.__module__ and kind.__module__.startswith(
            ("torch.ao.nn", "torch.nn")
        )
        if quantised and not kind.__name__.endswith(
            "FloatFunctional"
        ):  # that one is made to be quantised later
            raise CaptureError(
                f"{at} is a quantised {kind.__name__}, whose weights are integers: explain the model from which "
                "it was made."
            )
        if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
            raise CaptureError(
                f"{at} ({kind.__name__}) has no weights yet: call the model once, so that it makes them."
            )


def _compare(model: nn.Module, example: Tensor, output: Output, hooks: set[Hook], captured: Captured) -> None:
    """Raise if a graph with hooks in it does not compute what the model does with them."""
    root = nn.Module()
    for name, value in captured.values(model).items():
        root.register_buffer(name, value)
    expected = own_output(model, example, output)
    found = fx.GraphModule(root, captured.graph)(example)
    limit = 10 * torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
    if not float((found - expected).abs().max()) <= limit:
        raise CaptureError(_hooks_text(model, hooks, "the traced graph gives other logits than the model"))


def _hooks_text(model: nn.Module, hooks: set[Hook], reason: str) -> str:
    names = ", ".join(sorted(map(str, hooks)))
    verb = "changes" if len(hooks) == 1 else "change"
    return (
        f"{type(model).__name__} could not be captured: {names} {verb} values in a way that torch.export cannot follow: "
        f"{reason}. Remove it, or compute the same in forward()."
    )


def _capture_error(
    model: nn.Module, example: Tensor, output: Output, hooks: set[Hook], error: Exception
) -> LrpError:
    """The error for a failed capture. The model is run by itself first: its own error is clearer than torch.export's."""
    shape, name = list(example.shape), type(model).__name__
    try:
        own_output(model, example, output)
    except LrpError as own:
        return own
    except Exception as own:
        wrong = _wrong_channels(model, example)
        if wrong:
            return InputError(wrong)
        return CaptureError(
            f"{name} itself fails on an input of shape {shape}: {type(own).__name__}: {_line(own)}"
        )
    if hooks and _succeeds(model, example, output):
        return CaptureError(_hooks_text(model, hooks, _line(error)))
    where = [line for line in _frames(error) if not line.startswith(TORCH)]
    at = f" at {os.path.basename(where[-1])}" if where else ""
    if sparse := _sparse(model):
        return CaptureError(
            f"{name} could not be captured for an input of shape {shape}{at}: {sparse[0]} is sparse, and a graph holds "
            "it as a dense tensor: use it in products only."
        )
    because = ": no branch may depend on pixel values" if _asks_for_values(error) else ""
    return CaptureError(
        f"{name} could not be captured for an input of shape {shape}{at}: {_line(error)} "
        f"(torch.export must be able to follow the forward pass{because})."
    )


def _succeeds(model: nn.Module, example: Tensor, output: Output) -> bool:
    """Whether the model can be captured without its hooks."""
    try:
        _traced(model, example, output, set())
    except Exception:
        return False
    return True


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
