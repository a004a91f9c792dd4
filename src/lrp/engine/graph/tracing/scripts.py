"""TorchScript models, and TorchScript inside models, as modules that run the same operations from Python."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch._export.converter import TS2EPConverter

from lrp.engine.graph.tracing.inputs import Inputs


class _Recording(nn.Module):
    """A TorchScript module that notes what it is called with."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script, self.received = script, tuple[Any, ...]()

    def forward(self, *received: Any) -> Any:
        self.received = received
        return self.script(*received)


def replace_scripts(copied: nn.Module, images: Inputs) -> None:
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
    images.call(copied, [t.clone() for t in images.tensors])
    for table, name in places:
        recording: Any = table[name]
        used = recording.received != ()
        table[name] = module_of_script(recording.script, recording.received) if used else recording.script


def module_of_script(script: torch.jit.ScriptModule, received: tuple[Any, ...]) -> nn.Module:
    """A TorchScript model as a module that runs the same operations from Python, with the same names of tensors."""

    class Converter(TS2EPConverter):
        made: nn.Module

        def retrace_as_exported_program(self, gm: nn.Module, name_to_constant: Any) -> Any:
            self.made = gm
            return SimpleNamespace(state_dict={})

    converter = Converter(script, received)
    converter.convert()
    return converter.made


def in_usual_form(node: fx.Node) -> fx.Node:
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
