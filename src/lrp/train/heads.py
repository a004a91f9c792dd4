"""The classification layers (heads): finds them in the graph, splits them off, changes their number of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from lrp.engine.graph import vocabulary as vocabulary  # registers the operations that capture needs
from lrp.engine.graph.capture import capture
from lrp.engine.graph.shapes import Batch
from lrp.engine.graph.tracing.captured import Captured
from lrp.errors import ModelError
from lrp.models.architectures import build_architecture, class_axes_of_weights
from lrp.models.catalogue import segmentation_names
from lrp.models.checkpoints import checkpoint_architecture
from lrp.models.downloads import Progress
from lrp.models.loading import LoadedModel, load_model
from lrp.models.own_code.calling import is_own_code
from lrp.models.own_code.model import replace_heads
from lrp.models.preprocessing import Preprocessing
from lrp.models.resolve import takes_texts

REMEDY = (
    "retrain the whole net instead (--train all), or let it end in nn.Linear or nn.Conv2d layers with one output "
    "per class."
)
SIZE: Any = torch.ops.aten.sym_size.int


class Tail(nn.Module):
    """Computes the logits from the heads' inputs.

    Attributes:
        heads: the model's own layers, not copies: training or moving them changes the model too.
        combine: the heads' outputs -> logits [N, K]; no parameters. For a single head often the identity.
    """

    def __init__(self, heads: list[nn.Module], combine: fx.GraphModule) -> None:
        super().__init__()
        self.heads, self.combine = nn.ModuleList(heads), combine

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """features: one per head, as returned by the trunk. Returns logits [N, K]."""
        outputs = [head(values) for head, values in zip(self.heads, features, strict=True)]
        return self.combine(*outputs)


@dataclass(frozen=True)
class Split:
    """A model in two parts: `tail(trunk(x))` are the logits that the model in eval mode computes from `x`.

    Attributes:
        heads: the heads' paths in the model, in the order of `tail.heads`.
        trunk: x [N, C, H, W] -> a tuple of features, features[i] for heads[i]. It has no parameters: its buffers are
            the model's current weights; always in eval mode.
        tail: a tuple of features -> logits [N, K], before the model's final softmax or sigmoid, if any.
    """

    heads: tuple[str, ...]
    trunk: fx.GraphModule
    tail: Tail


class _Head(NamedTuple):
    path: str
    layer: nn.Module
    node: fx.Node  # the one call of the layer


def find_heads(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The paths of the last layers with parameters before the logits, such as ("classifier.6",).

    Several if a model averages several heads ("head", "head_dist"). The model is not changed.

    Args:
        example: [2, C, H, W] on the model's device; its values do not matter.

    Raises:
        ModelError: the logits are not computed by linear layers or convolutions with one output per class, each
            called once and with its own parameters; the message lists all reasons.
        CaptureError: the model cannot be captured.
    """
    return tuple(head.path for head in _find(model, capture(model, example)))


def split_head(model: nn.Module, example: Tensor) -> Split:
    """Split a model before its heads; arguments and errors as in `find_heads`.

    It also raises ModelError if the model accepts only the batch size of `example`, or if the logits depend on data
    that does not pass through the heads. Move the model to its device first: later moves do not move the trunk.
    """
    captured = capture(model, example)
    heads = _find(model, captured)
    if not captured.free_batch:
        raise ModelError(
            f"{type(model).__name__} cannot be cut: its graph was captured for {len(example)} images and takes no "
            f"other number, where any number was expected; {REMEDY}"
        )
    constants = captured.values(model)
    trunk, combine = _trunk(captured, heads), _combine(captured, heads)
    tail = Tail([head.layer for head in heads], fx.GraphModule(_read(constants, combine), combine))
    return Split(tuple(head.path for head in heads), fx.GraphModule(_read(constants, trunk), trunk), tail)


def _find(model: nn.Module, captured: Captured) -> list[_Head]:
    name = type(model).__name__
    logits: Any = captured.graph.output_node().args[0]
    shape: Any = logits.meta["shape"] or ()
    if len(shape) != 2 or isinstance(shape[1], Batch):
        raise ModelError(f"{name} gives an output of shape {list(shape)}, not logits [N, K]; {REMEDY}")
    calls = [n for n in _after_heads(captured, logits) if _reads(captured, n)]
    wrong = list(dict.fromkeys(r for call in calls if (r := _not_a_head(model, captured, call, shape[1]))))
    if not calls:
        wrong.append("no layer with parameters was found")
    behind = {node for call in calls for start in call.all_input_nodes for node in _upstream(start)}
    wrong += [f"{_where(call)} also feeds another of them" for call in calls if call in behind]
    if any(node.op == "placeholder" for node in _after_heads(captured, logits)):
        wrong.append("the image itself reaches them around all layers")
    if wrong:
        raise ModelError(
            f"{name}: its logits come from no layers that could be replaced: {'; '.join(wrong)}; {REMEDY}"
        )
    found = [_Head(path, model.get_submodule(path), c) for c in calls for path in [_path(captured, c)]]
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    return sorted(found, key=lambda head: order[head.path])


def _after_heads(captured: Captured, logits: fx.Node) -> Iterator[fx.Node]:
    """The nodes backwards from the logits, up to and including the first ones that read parameters, and the image."""
    waiting, seen = [logits], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen or node.op == "get_attr":
            continue
        seen.add(node)
        yield node
        if not _reads(captured, node) and node.target is not SIZE:  # sizes are not data
            waiting += node.all_input_nodes


def _reads(captured: Captured, node: fx.Node) -> list[fx.Node]:
    """The model's parameters and buffers that an operation reads."""
    return [n for n in node.all_input_nodes if n.op == "get_attr" and n.target in captured.parameters]


def _upstream(node: fx.Node) -> set[fx.Node]:
    waiting, seen = [node], set[fx.Node]()
    while waiting:
        if (node := waiting.pop()) not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return seen


def _not_a_head(model: nn.Module, captured: Captured, call: fx.Node, classes: Any) -> str:
    """Why this operation's layer is not a classification head; "" if it is one."""
    where, path, reads = _where(call), _path(captured, call), _reads(captured, call)
    layer: Any = model.get_submodule(path)
    if _operation(call) not in ("linear", "conv2d") or not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"{where} is no linear layer or convolution"
    own = {f"{path}.{name}" for name, _ in layer.named_parameters()}
    everywhere = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    if (
        {captured.parameters[str(node.target)] for node in reads} != own
        or any(user is not call for node in reads for user in node.users)
        or any(everywhere.count(id(p)) > 1 for p in layer.parameters())
    ):
        return f"the weights of {where} are computed, or used elsewhere too"
    if len(layer.weight) != classes:
        return f"{where} has {len(layer.weight)} outputs, not {classes}"
    return "" if _is_all(call, layer) else f"{where} does more than this operation"


def _is_all(call: fx.Node, layer: Any) -> bool:
    """Whether the layer computes only this operation: a subclass may scale or pad its input first."""
    source: Any = call.args[0]
    shape = [2 * size.times if isinstance(size, Batch) else size for size in source.meta["shape"]]
    values = torch.linspace(-1, 1, math.prod(shape), device=layer.weight.device).reshape(shape)
    values, target = values.to(layer.weight.dtype), call.target
    settings = [layer.bias if isinstance(arg, fx.Node) else arg for arg in call.args[2:]]
    with torch.no_grad():
        expected = target(values, layer.weight, *settings, **call.kwargs)  # type: ignore[operator]
        found = layer.forward(values)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def _operation(call: fx.Node) -> str:
    schema = getattr(call.target, "_schema", None)
    return schema.name.removeprefix("aten::") if schema else str(call.target)


def _path(captured: Captured, call: fx.Node) -> str:
    """The path of the module that owns the last parameter that an operation reads: its weight or bias."""
    return captured.parameters[str(_reads(captured, call)[-1].target)].rpartition(".")[0]


def _where(call: fx.Node) -> str:
    """For messages: "classifier.6 (linear)"."""
    return f"{call.meta['path'] or 'the model'} ({_operation(call)})"


def _trunk(captured: Captured, heads: list[_Head]) -> fx.Graph:
    """The graph whose outputs are the heads' inputs."""
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    inputs: list[Any] = [head.node.args[0] for head in heads]
    needed = set[fx.Node]().union(*map(_upstream, inputs))
    for node in captured.graph.nodes:
        if node in needed or node.op == "placeholder":
            new[node] = graph.node_copy(node, new.__getitem__)
    graph.output(tuple(new[node] for node in inputs))
    return graph


def _combine(captured: Captured, heads: list[_Head]) -> fx.Graph:
    """The graph after the heads, with a placeholder for each head's output."""
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    logits: Any = captured.graph.output_node().args[0]
    for place, head in enumerate(heads):
        new[head.node] = graph.placeholder(f"output_{place}")
    images = heads[0].node.meta["shape"][0] == Batch()  # whether a head's output has the batch axis
    between = set(_after_heads(captured, logits))
    for node in captured.graph.nodes:
        if node in new:
            continue
        if node.op == "get_attr" and between.intersection(node.users):
            new[node] = graph.node_copy(node)
        elif node in between and node.target is SIZE and images and _is_batch(node):
            new[node] = graph.call_function(SIZE, (new[heads[0].node], 0))
        elif node in between and all(source in new for source in node.all_input_nodes):
            new[node] = graph.node_copy(node, new.__getitem__)
    if logits not in new:
        name = ", ".join(head.path for head in heads)
        raise ModelError(f"what follows {name} needs sizes that its output does not tell; {REMEDY}")
    graph.output(new[logits])
    return graph


def _is_batch(size: fx.Node) -> bool:
    source, axis = size.args
    return source.meta["shape"][axis] == Batch()  # type: ignore[union-attr]


def _read(constants: dict[str, Tensor], graph: fx.Graph) -> dict[str, Any]:
    """The constants that a graph reads, as the root of an fx.GraphModule."""
    return {str(n.target): constants[str(n.target)] for n in graph.nodes if n.op == "get_attr"}


class Adapted(NamedTuple):
    """A model with another number of classes, in eval mode; `save_checkpoint` takes the architecture's name.

    Attributes:
        heads: paths of the new layers.
        replaced: of a model of the user's code: the same; `save_checkpoint` takes them. Others are built for any number.
    """

    model: nn.Module
    preprocessing: Preprocessing
    architecture: str
    heads: tuple[str, ...]
    replaced: tuple[str, ...] = ()


def model_with_new_head(
    name: str,
    classes: int,
    *,
    pretrained: bool = True,
    seed: int = 0,
    arch: str | None = None,
    progress: Progress | None = None,
    preprocess: str | Path | Preprocessing | None = None,
    size: int | None = None,
) -> Adapted:
    """The model `name` of `load_model` with new heads for `classes` classes; everything else as loaded.

    The heads are initialised from `seed` only, with PyTorch's default for such layers; the global generator is
    unchanged. Auxiliary heads used only in training are new too. The model can be saved and loaded like any other of
    its architecture.

    Args:
        name, pretrained, arch, progress, preprocess, size: see `load_model`.

    Raises:
        ModelError: see `load_model`; or `classes` is below 2; or the model has no head for whole photos.
    """
    if classes < 2:
        raise ModelError(f"{name} cannot decide between {classes} classes: at least 2 are expected.")
    of = checkpoint_architecture(name, arch)
    # Of other models, the architecture is built for the size that its weights were trained with.
    given: dict[str, Any] = {
        "arch": arch,
        "preprocess": preprocess,
        "size": size if is_own_code(of) else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    _expect_head(of, pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = load_model(name, pretrained=pretrained, progress=progress, **given)
        if loaded.preprocessing.geometry.crop is None:
            raise ModelError(
                f"{name} takes photos of different sizes, and a training puts several together: expected a preprocessing with a "
                "crop."
            )
        if is_own_code(of):
            return _own_model_with_new_head(loaded, of, classes, seed)
        fresh = {tensor.rpartition(".")[0] for tensor in class_axes_of_weights(of, loaded.preprocessing)}
        model = build_architecture(of, classes, loaded.preprocessing)
        torch.manual_seed(seed)  # again, so that building the rest does not affect the heads
        for path in sorted(fresh):
            model.get_submodule(path).reset_parameters()  # type: ignore[operator]
    kept = {n: t for n, t in loaded.model.state_dict().items() if n.rpartition(".")[0] not in fresh}
    model.load_state_dict({**model.state_dict(), **kept})
    preprocessing = loaded.preprocessing if size is None else loaded.preprocessing.with_size(size)
    return Adapted(model.eval(), preprocessing, of, tuple(sorted(fresh)))


def _expect_head(architecture: str, pretrained: bool) -> None:
    """Raise for models that have no head to replace, before anything is downloaded."""
    if architecture in segmentation_names():
        raise ModelError(
            f"{architecture} decides at each pixel: expected a classifier of whole photos to retrain."
        )
    if takes_texts(architecture):
        raise ModelError(
            f"{architecture} compares photos with texts, and has no classes of its own to replace: expected an image classifier."
        )
    if is_own_code(architecture) and not pretrained:
        raise ModelError(
            f"{architecture} decides for itself which weights it has: leave --from-scratch out, and return random ones."
        )


def _own_model_with_new_head(loaded: LoadedModel, of: str, classes: int, seed: int) -> Adapted:
    heads = find_heads(loaded.model, loaded.preprocessing.zeros(2))
    torch.manual_seed(seed)
    replace_heads(loaded.model, heads, classes)
    return Adapted(loaded.model.eval(), loaded.preprocessing, of, heads, heads)
