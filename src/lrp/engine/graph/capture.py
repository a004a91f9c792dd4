"""nn.Module + example input -> functional graph of ATen operations. The only user of torch.export.

`torch.export` runs the model once with fake tensors and records every operation, whether the code uses
modules, functions, operators or in-place writes. The resulting graph is functional: no operation changes its
input. It runs a copy: the model itself is not touched.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from lrp.engine.graph.outputs import Output, logits_among
from lrp.engine.graph.tracing.any_batch import FIRST, SECOND, generalise
from lrp.engine.graph.tracing.captured import Captured, tensors_of
from lrp.engine.graph.tracing.constant_branches import ConstantBranches
from lrp.engine.graph.tracing.graph_of_program import (
    SIZE_OF_VALUES,
    check_sizes,
    graph_of_program,
    logits_as_output,
    mark_module_outputs,
    remove_writes,
)
from lrp.engine.graph.tracing.hooks import Hook, forward_hooks, hooked, hooks_that_change, only
from lrp.engine.graph.tracing.inputs import Inputs, as_inputs
from lrp.engine.graph.tracing.isolation import isolated, replaced_here
from lrp.engine.graph.tracing.model_copy import copy_of
from lrp.engine.graph.tracing.packed_sequences import ASKED, sequences
from lrp.engine.graph.tracing.refusals import (
    fails_itself,
    first_line,
    frames_of_the_model,
    hooks_that_cannot_be_followed,
    refuse_modules,
    wrong_channels,
)
from lrp.engine.graph.tracing.scripts import module_of_script, replace_scripts
from lrp.errors import CaptureError, InputError, LrpError


def _call(model: nn.Module, inputs: Inputs, tensors: Sequence[Any]) -> Any:
    """The model's output. A graph's nodes keep the paths of the modules of which it was made, if they have any."""
    if isinstance(model, fx.GraphModule) and any("nn_module_stack" in n.meta for n in model.graph.nodes):
        with fx.traceback.preserve_node_meta():
            return inputs.call(fx.Interpreter(model).run, tensors)
    return inputs.call(model, tensors)


def as_module(model: Any) -> Any:
    """A module that computes what an exported program does; anything else as it is."""
    return model.module() if isinstance(model, ExportedProgram) else model


class _Chosen(nn.Module):
    """The model with one output: the one that holds the logits.

    Attributes:
        written: (module's path, name) of the attributes that a forward pass sets. They are taken off again.
        paths: id of a module's attributes -> its path and itself.
        packs: whether it packs sequences.
    """

    model: nn.Module
    packs = False
    paths: dict[int, tuple[str, nn.Module]]

    def __init__(
        self, model: nn.Module, inputs: Inputs, output: Output, constants: ConstantBranches | None = None
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.output, self.constants = model, inputs, output, constants
        self.__dict__["training"] = False
        self.written = set[tuple[str, str]]()
        # Not `self.modules()` later: torch.fx puts proxies in the place of modules.
        self.__dict__["paths"] = {id(m.__dict__): (path, m) for path, m in model.named_modules()}

    def forward(self, *tensors: Tensor) -> Any:
        if self.constants is not None:
            self.constants.begin(self.model)
        constants = self.constants or contextlib.nullcontext()
        with self._taken_off(), constants, sequences(self.constants) as inside:
            logits = logits_among(_call(self.model, self.inputs, tensors), self.output)
        self.__dict__["packs"] = inside.packed
        return logits

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


def capture(model: nn.Module, example: Tensor | Inputs, output: Output = None) -> Captured:
    """Record what `model` computes from inputs of `example`'s shape, in eval mode.

    Args:
        model: any module. Not changed, not even meanwhile: a copy is traced.
        example: [N, C, H, W], or all of its inputs, on the model's device and in its dtype. Their values are used only
            where hooks or branches must be run to be known.
        output: which of the model's outputs holds the logits, as `logits_among` takes it.

    Raises:
        CaptureError: torch.export cannot trace the model; names the line of the model's code.
        InputError: the model's first convolution expects another number of channels.
    """
    refuse_modules(model)
    example = as_inputs(example)
    with isolated(), plain_numbers(example.device):
        example, hooks = example.each(lambda t: t.detach().clone()), set[Hook]()
        try:
            if forward_hooks(model):
                hooks = hooks_that_change(model, example, lambda m, x: _own(m, x, output))
            captured = _traced(model, example, output, hooks)
        except Exception as error:
            raise _capture_error(model, example, output, hooks, error) from error
        if hooks:
            _compare(model, example, output, hooks, captured)
    captured = logits_as_output(captured, len(example))
    mark_module_outputs(captured.graph)
    return captured


@contextlib.contextmanager
def plain_numbers(device: torch.device) -> Iterator[None]:
    """Without gradients, and whatever mode the caller is in: autocast, inference mode."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def own_output(model: nn.Module, images: Tensor | Inputs, output: Output = None) -> Tensor:
    """What the model itself returns as logits in eval mode, hooks included; it is not changed."""
    images = as_inputs(images)
    with plain_numbers(images.device), hooked(copy_of(model, own_tensors=True), lambda _, hook: hook) as run:
        return _own(run, images, output).detach()


def _own(run: nn.Module, images: Inputs, output: Output) -> Tensor:
    clones = [t.clone() for t in images.tensors]  # it may write into its input
    found: Tensor = logits_among(images.call(run, clones), output)
    return found


def _traced(model: nn.Module, example: Inputs, output: Output, hooks: set[Hook]) -> Captured:
    """The graph for any number of images if possible, else for that of the example."""

    def attempt(count: int, free: bool = False, *, answers: bool) -> Captured:
        images = example if count == len(example) else example.repeated(count)
        return _attempt(model, images, free, output, hooks, answers)

    def free(answers: bool) -> Captured:
        return attempt(2, True, answers=answers)  # torch takes a single image for a constant

    def from_two(answers: bool) -> Captured:
        first, second = (attempt(count, answers=answers) for count in (FIRST, SECOND))
        return generalise(first, second)

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
    model: nn.Module, images: Inputs, free: bool, output: Output, hooks: set[Hook], answers: bool
) -> Captured:
    """One export of a copy that is thrown away afterwards.

    Args:
        answers: answer questions about the values of constants, which costs more than it does to trace.
    """
    own = tensors_of(model)
    with _dense_products(model), hooked(_exportable(copy_of(model), images), only(hooks)) as copied:
        chosen = _Chosen(copied, images, output, ConstantBranches(own) if answers else None)
        program = _export(chosen, images, Dim("N", min=1) if free else None)
        if not answers and any(node.target in NUMBERS for node in program.graph.nodes):
            raise CaptureError(SIZE_OF_VALUES)  # a number out of a tensor: a constant, if the tensor is one
    captured = graph_of_program(program, free, own, images)
    captured.written, captured.packs = frozenset(chosen.written), chosen.packs
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
        if type(error).__name__ in ASKS or str(error).startswith((SIZE_OF_VALUES, NO_NUMPY, ASKED)):
            return True
        error = error.__cause__ or error.__context__
    return False


ASKS = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
NUMBERS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
NO_NUMPY = ".numpy() is not supported for tensor subclasses"


def _exportable(copied: nn.Module, images: Inputs) -> nn.Module:
    """The copy with only such tensors and modules as torch.export takes."""
    if isinstance(copied, torch.jit.ScriptModule):
        return module_of_script(copied, images.tensors)
    replace_scripts(copied, images)
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


def _export(model: nn.Module, example: Inputs, images: Any) -> ExportedProgram:
    """images: the dimension for any number of images, or None."""
    dynamic = (tuple(None if dim is None else {0: images} for dim in example.batch_dims),) if images else None
    program = export(model, example.tensors, dynamic_shapes=dynamic, strict=False)
    if not remove_writes(program.graph):
        program = program.run_decompositions(
            {}
        )  # torch's own method: always correct, but it traces everything again
    check_sizes(program)
    return program


def _compare(model: nn.Module, example: Inputs, output: Output, hooks: set[Hook], captured: Captured) -> None:
    """Raise if a graph with hooks in it does not compute what the model does with them."""
    root = nn.Module()
    for name, value in captured.values(model).items():
        root.register_buffer(name, value)
    expected = own_output(model, example, output)
    found = fx.GraphModule(root, captured.graph)(*example.tensors)
    limit = 10 * torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
    if not float((found - expected).abs().max()) <= limit:
        raise CaptureError(
            hooks_that_cannot_be_followed(model, hooks, "the traced graph gives other logits than the model")
        )


def _capture_error(
    model: nn.Module, example: Inputs, output: Output, hooks: set[Hook], error: Exception
) -> LrpError:
    """The error for a failed capture. The model is run by itself first: its own error is clearer than torch.export's."""
    given, name = example.shown(), type(model).__name__
    try:
        own_output(model, example, output)
    except LrpError as own:
        return own
    except Exception as own:
        wrong = wrong_channels(model, example.tensors[0])
        if wrong:
            return InputError(wrong)
        return CaptureError(fails_itself(model, example, own))
    if hooks and _succeeds(model, example, output):
        return CaptureError(hooks_that_cannot_be_followed(model, hooks, first_line(error)))
    where = frames_of_the_model(error)
    at = f" at {os.path.basename(where[-1])}" if where else ""
    if sparse := _sparse(model):
        return CaptureError(
            f"{name} could not be captured for {given}{at}: {sparse[0]} is sparse, and a graph holds "
            "it as a dense tensor: use it in products only."
        )
    because = ": no branch may depend on pixel values" if _asks_for_values(error) else ""
    return CaptureError(
        f"{name} could not be captured for {given}{at}: {first_line(error)} "
        f"(torch.export must be able to follow the forward pass{because})."
    )


def _succeeds(model: nn.Module, example: Inputs, output: Output) -> bool:
    """Whether the model can be captured without its hooks."""
    try:
        _traced(model, example, output, set())
    except Exception:
        return False
    return True
