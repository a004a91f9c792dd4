"""Explainer: the public class of the engine."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from lrp.engine import presets
from lrp.engine.composite import Composite
from lrp.engine.default_preset import default_preset
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.canonize import canonize
from lrp.engine.graph.capture import as_module, capture, own_output, plain_numbers
from lrp.engine.graph.outputs import HEADS, Output
from lrp.engine.graph.tracing.captured import Captured
from lrp.engine.graph.tracing.isolation import LOCK, sources_go_with
from lrp.engine.graph.tracing.model_copy import in_train_mode
from lrp.engine.graph.tracing.refusals import fails_itself
from lrp.engine.graph.writer import Program
from lrp.engine.model_state import ModelState, tensor_version
from lrp.engine.program import SEEDS, Builder
from lrp.engine.results.explanation import Explanation, Explanations
from lrp.engine.results.health import difference_to_model
from lrp.engine.results.ledger import Ledger, ledger_of_each_image
from lrp.engine.results.rules_table import RulesTable
from lrp.engine.rule_check import RuleCheck, check_rules
from lrp.engine.rules import Rule
from lrp.engine.shared_constants import SharedConstants
from lrp.engine.speed.plan import Plan
from lrp.engine.speed.shared_forward import split_at_shared_forward
from lrp.engine.targets import Start, resolve_target
from lrp.errors import CaptureError, CompositeError, InputError, LrpError

if TYPE_CHECKING:
    from lrp.engine.results.display import Geometrical

SIZES = 16
"""How many input sizes are kept for a model, and for an explainer: those used last."""

# Captured graphs are shared by all explainers of a model: fifteen presets need one capture.
_Captures = OrderedDict[Any, tuple[Captured, ModelState]]
_CAPTURES: weakref.WeakKeyDictionary[nn.Module, _Captures] = weakref.WeakKeyDictionary()
_CONSTANTS: weakref.WeakKeyDictionary[nn.Module, SharedConstants] = weakref.WeakKeyDictionary()


PRECISIONS = ("exact", "mixed")


@dataclass
class Prepared:
    """Everything that is computed once per input shape."""

    captured: Captured
    graph: Graph
    composite: Composite
    rules: dict[fx.Node, Rule]
    builder: Builder
    state: ModelState
    plain: Program
    program: Any  # `plain`, or its module compiled
    ledger_program: Program | None = None

    @functools.cached_property
    def halves(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        with sources_go_with(self.builder):
            return split_at_shared_forward(self.plain.module)


class Explainer:
    """Explains the decisions of one model with layer-wise relevance propagation.

    Args:
        model: any module that takes images [N, C, H, W] and returns logits [N, K]. It is never modified.
        composite: a preset's name, a `Composite`, None for the preset that fits the architecture, or a
            function that makes a `Composite` for a captured graph.
        seed: what the relevance starts from: "logit" (the target's logit), "one", or "softmax" (of all
            classes; the target then only names the map).
        dtype: torch.float32 or torch.float64; None: the model's dtype, or float32 if it is of half precision.
        precision: "exact", or "mixed": in float32, convolutions whose terms are all of one sign run in bfloat16,
            twice as fast on processors that support it; everything else, logits included, stays in float32.
        compile: run the program through torch.compile.
        class_names: K names, so that targets may be names.
        output: which of the model's outputs holds the logits: an index, a key, an attribute, or a tuple of
            these to follow one after the other. None: the only tensor, or the one called "logits".
        optimise: False computes every denominator and share as in the rules' equations, by `affine.hand_down` alone:
            slower, for comparison. In float64 the relevance is the same to rounding; "mixed" has no effect then.
        preprocessing: how a photo became the input, as `load_model` gives it; for `Explanation.heatmap(photo)`.

    A softmax or sigmoid at the end of the model is left out: its input, the logits, is explained. DataParallel and
    torch.compile wrappers are removed. The model is captured at the first call, once per input shape, for any number
    of images. After a change of the weights, the next call uses the new ones.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite | Callable[[Graph], Composite] | None = None,
        seed: str = "logit",
        dtype: torch.dtype | None = None,
        precision: str = "exact",
        compile: bool = False,
        class_names: Sequence[str] | None = None,
        output: Output = None,
        optimise: bool = True,
        preprocessing: Geometrical | None = None,
    ) -> None:
        model = as_module(model)
        if not isinstance(model, nn.Module):
            raise LrpError(f"Explainer takes a torch.nn.Module, got {type(model).__name__}.")
        if dtype not in (None, torch.float32, torch.float64):
            raise LrpError(
                f"dtype={dtype}: relevance is computed in torch.float32 or torch.float64; ε vanishes in less."
            )
        if precision not in PRECISIONS:
            raise LrpError(f"precision={precision!r}: expected {' or '.join(map(repr, PRECISIONS))}.")
        if isinstance(composite, str):
            composite = presets.preset(composite)
        elif composite is not None and not isinstance(composite, Composite) and not callable(composite):
            raise CompositeError(
                f"composite={composite!r}: expected a preset's name ({', '.join(presets.PRESETS)}), "
                "an lrp.Composite, or None."
            )
        if isinstance(composite, Composite) and composite.seed and seed == "logit":
            seed = composite.seed
        if seed not in SEEDS:
            raise LrpError(f"seed={seed!r}: expected one of {', '.join(map(repr, SEEDS))}.")
        model = _unwrapped(model)
        self.model, self.composite, self.seed, self.output = model, composite, seed, output
        self.precision, self.compile, self.class_names = precision, compile, class_names
        self.preprocessing = preprocessing
        floating = [t for t in model.parameters() if t.is_floating_point()]
        own = floating[0].dtype if floating else torch.float32
        self.dtype = dtype or (own if own in (torch.float32, torch.float64) else torch.float32)
        self.optimise = optimise
        self.low_precision = optimise and precision == "mixed" and self.dtype == torch.float32
        self._prepared: OrderedDict[Any, Prepared] = OrderedDict()

    # ------------------------------------------------------------ explaining

    def __call__(self, x: Tensor, target: Any = "predicted") -> Explanation:
        """Explain a batch.

        Args:
            x: [N, C, H, W], preprocessed as the model expects it.
            target: "predicted", a class index or name, a `Contrast`, a sequence of N of these, or a start
                relevance [N, K], used as it is.

        Raises:
            InputError, TargetError: what is wrong with `x` or `target`.
            CaptureError, UnsupportedError, CompositeError: the model cannot be explained, or not by this composite.
        """
        prepared = self.prepare(x)
        request = self._request(target, x, prepared)
        with plain_numbers(x.device):
            relevance, logits, start = prepared.program(x.detach().to(self.dtype), *request)[:3]
        self._compare(x, prepared, logits)
        return self._explanation(x, prepared, request, relevance, logits, start)

    def many(self, x: Tensor, targets: Sequence[Any]) -> Explanations:
        """Explain the same batch for several targets; the forward pass is computed once.

        Args:
            x: [N, C, H, W].
            targets: T entries, each anything that `target` takes.

        Returns:
            T explanations; `relevance` is [T, N, C, H, W].
        """
        if isinstance(targets, str) or not len(targets):
            raise InputError(f"targets={targets!r}: expected a sequence of at least one target.")
        prepared = self.prepare(x)
        requests = [self._request(target, x, prepared) for target in targets]
        with plain_numbers(x.device):
            shared, one_target = prepared.halves
            kept = shared(x.detach().to(self.dtype))
            results = [one_target(*request, *kept)[:3] for request in requests]
        self._compare(x, prepared, results[0][1])
        entries = [
            self._explanation(x, prepared, request, *result)
            for request, result in zip(requests, results, strict=True)
        ]
        relevance, _, start = (torch.stack(parts) for parts in zip(*results, strict=True))
        target = torch.stack([e.target for e in entries])
        return Explanations(relevance, results[0][1], target, start, entries)

    def _request(self, target: Any, x: Tensor, prepared: Prepared) -> Start:
        classes = prepared.graph.logits.meta["shape"][1]
        like = torch.zeros((), dtype=self.dtype, device=x.device)
        request = resolve_target(target, len(x), classes, self.class_names, like)
        if self.seed == "softmax" and not bool(request.given.any()):
            everything = torch.ones_like(request.weight)
            return Start(request.given, everything, torch.zeros_like(request.predicted))
        return request

    def _explanation(
        self, x: Tensor, prepared: Prepared, request: Start, relevance: Tensor, logits: Tensor, start: Tensor
    ) -> Explanation:
        asked = torch.where((request.weight == 0).all(1, keepdim=True), start, request.weight)
        target = torch.where(request.predicted > 0, logits.argmax(1), asked.argmax(1))
        empty = (relevance == 0).flatten(1).all(1) & (start != 0).any(1)
        if bool(empty.any()):
            _warn_once(
                self,
                f"no relevance reached the input of image {', '.join(map(str, empty.nonzero().flatten().tolist()))}: "
                "its map is 0. health.notes says where the relevance went, and what to try.",
            )
        return Explanation(
            relevance, logits, target, start, self, x, tensor_version(x), prepared.state, request
        )

    # ------------------------------------------------------------ preparing

    def prepare(self, x: Tensor) -> Prepared:
        """Capture the model for images like `x`, assign rules, write the program; cached for the last `SIZES` sizes."""
        self._check(x)
        key = (tuple(x.shape[1:]), x.device)
        with LOCK:
            found = _last_used(self._prepared, key) or _last_used(self._prepared, (*key, len(x)))
            if found is not None and found.state.holds(self.model):
                return found
            captured = self._capture(x, key)
            prepared = self._prepare(captured, self._state(captured), x.device)
            _remember(self._prepared, key if captured.free_batch else (*key, len(x)), prepared)
        return prepared

    def _state(self, captured: Captured) -> ModelState:
        return ModelState.of(self.model, captured.reads(), captured.written)

    def _capture(self, x: Tensor, key: Any) -> Captured:
        """The model's graph; that of an earlier capture if only weights have changed since."""
        known = _CAPTURES.setdefault(self.model, OrderedDict())
        key = (*key, self.output)
        for candidate in (key, (*key, len(x))):
            found = _last_used(known, candidate)
            if found is not None and found[1].fits(self.model) and found[0].decides_as(self.model):
                return found[0]
        if in_train_mode(self.model):
            _warn_once(self, "the model is in train mode: it is explained in eval mode, and left as it was.")
        captured = capture(self.model, self._as_model_takes(x), self.output)
        if not captured.free_batch:
            _warn_once(
                self,
                f"the model can be captured for a fixed number of images only: each batch size is new, now {len(x)}.",
            )
        if captured.head:
            _warn_once(self, f"the model ends in a {captured.head}: its input, the logits, is explained.")
        _remember(known, key if captured.free_batch else (*key, len(x)), (captured, self._state(captured)))
        return captured

    def _prepare(self, captured: Captured, state: ModelState, device: torch.device) -> Prepared:
        with plain_numbers(device):
            constants = _CONSTANTS.setdefault(self.model, SharedConstants())
            values = constants.known(captured.values(self.model), captured.parameters)
            graph = constants.share(lambda: canonize(captured, values, self.dtype, device, self.optimise))
            shape = graph.logits.meta["shape"]
            if shape is None or len(shape) != 2:
                raise CaptureError(
                    f"the model returns a tensor of shape {list(shape or ())}; logits [N, K] are expected."
                )
            wanted = self.composite or default_preset
            chosen = wanted if isinstance(wanted, Composite) else wanted(graph)
            rules = chosen.assign(graph)
            plan = Plan(graph, rules, self.low_precision, device.type == "cpu" and not self.compile)
            builder = Builder(graph, rules, chosen.top_k, self.seed, plan if self.optimise else None)
            builder.versions.compute = constants.version
            with sources_go_with(builder):
                plain = builder.program()
        program: Any = torch.compile(plain.module, fullgraph=True) if self.compile else plain
        return Prepared(captured, graph, chosen, rules, builder, state, plain, program)

    def _as_model_takes(self, x: Tensor) -> Tensor:
        floating = [t for t in self.model.parameters() if t.is_floating_point()]
        return x.detach().to(floating[0].dtype) if floating else x.detach()

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise InputError(f"images must be a torch.Tensor [N, C, H, W], got {type(x).__name__}.")
        if x.dim() < 2 or not x.is_floating_point():
            raise InputError(
                f"images must be a floating tensor [N, C, H, W], got {x.dtype} of shape {list(x.shape)}."
            )
        if not len(x):
            raise InputError(f"the batch is empty: got shape {list(x.shape)}, expected at least one image.")
        if not bool(torch.isfinite(x).all()):
            bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
            raise InputError(
                f"NaN or infinite pixels in image {', '.join(map(str, bad))}: every pixel must be finite."
            )
        held = next(self.model.parameters(), None)
        if held is not None and held.device != x.device:
            raise InputError(
                f"the images are on {x.device} and the model is on {held.device}: move one of them."
            )

    # ------------------------------------------------------------ looking inside

    def rules(self, x: Tensor | None = None) -> RulesTable:
        """The table operation -> rule; `str()` of it is what `lrp rules` prints.

        Args:
            x: images of the shape to capture for; not needed after a call.
        """
        if x is None and not self._prepared:
            raise InputError(
                "rules() before the first explanation needs images of the right shape: rules(x)."
            )
        prepared = self.prepare(x) if x is not None else next(reversed(self._prepared.values()))
        return RulesTable.of(prepared.graph, prepared.rules, prepared.composite)

    def check(self, x: Tensor, *, quiet: bool = False) -> RuleCheck:
        """Compare the rules, custom ones included, with a dense matrix on this model, in float64; print where they differ.

        For some outputs of every affine operation, the rule's equation is evaluated over the rows of the operation's
        matrix, which autograd computes from the model's own operation. For all operations, the account must close,
        and what the rule declares (signs, `in_proportion`) must hold.

        Args:
            x: images; the first one is used.
            quiet: print nothing.
        """
        exact = Explainer(
            self.model, self.composite, self.seed, torch.float64, output=self.output, optimise=self.optimise
        )  # fmt: skip
        prepared = exact.prepare(x)
        with plain_numbers(x.device):
            found = check_rules(prepared.graph, prepared.builder, x[:1].detach().to(torch.float64))
        if not quiet:
            print(found)
        return found

    @property
    def program(self) -> Program:
        """The explanation program last prepared; printing it shows the code."""
        if not self._prepared:
            raise InputError(
                "there is no program before the first explanation: call the explainer, or prepare(x)."
            )
        return next(reversed(self._prepared.values())).plain

    def _compare(self, x: Tensor, prepared: Prepared, logits: Tensor) -> None:
        """Raise if packed sequences, which the graph holds padded, make the model another function."""
        if not prepared.captured.packs:
            return
        name = type(self.model).__name__
        try:
            own = self._own_output(x)
        except Exception as error:
            raise CaptureError(fails_itself(self.model, x, error)) from error
        output = self._as_output(logits)
        if own.shape != output.shape:
            apart = f"{own.shape[1]} of an image, not {output.shape[1]}"
        else:
            difference, limit = difference_to_model(output, own)
            if difference <= limit:
                return
            apart = f"by up to {difference:.1e} of the largest"
        raise CaptureError(
            f"{name} packs sequences, and its logits are not those of padded ones ({apart}): give pad_packed_sequence a "
            "total_length=, and apply to a packed sequence's data only what acts on each step alone."
        )

    def _own_output(self, x: Tensor) -> Tensor:
        """What the model itself returns, [N, K]; after a softmax or sigmoid, if it ends in one."""
        return own_output(self.model, self._as_model_takes(x), self.output).reshape(len(x), -1)

    def _as_output(self, logits: Tensor) -> Tensor:
        """The logits, after the softmax or sigmoid at the end of the model if it has one."""
        head = next(reversed(self._prepared.values())).captured.head
        return HEADS[head](logits) if head else logits

    def _ledger(self, x: Tensor, request: Start) -> Ledger:
        """The account of each image of a batch."""
        prepared, together = self.prepare(x[:1] if self.prepare(x).captured.free_batch else x), False
        if not prepared.captured.free_batch and len(x) > 1:
            try:
                alone = capture(self.model, self._as_model_takes(x[:1]), self.output)
                prepared = self._prepare(alone, prepared.state, x.device)
            except CaptureError:
                together = True
        with sources_go_with(prepared.builder), plain_numbers(x.device):
            if prepared.ledger_program is None:
                prepared.ledger_program = prepared.builder.program(ledger=True)
        names = [str(prepared.rules[o.node]) for o in prepared.ledger_program.rows]
        with plain_numbers(x.device):
            images = x.detach().to(self.dtype)
            return ledger_of_each_image(prepared.ledger_program, names, images, request, together)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model without wrappers: DataParallel, DistributedDataParallel, torch.compile."""
    inner: Any = model
    while True:
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        else:
            return inner


def _last_used(cache: OrderedDict[Any, Any], key: Any) -> Any:
    """The entry, now the one used last; None if there is none."""
    if key in cache:
        cache.move_to_end(key)
    return cache.get(key)


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > SIZES:
        cache.popitem(last=False)


def _warn_once(explainer: Explainer, message: str) -> None:
    if message not in explainer.__dict__.setdefault("_warned", set()):
        explainer.__dict__["_warned"].add(message)
        warnings.warn(message, stacklevel=4)


def explain(
    model: nn.Module,
    x: Tensor,
    target: Any = "predicted",
    composite: str | Composite | None = None,
    **settings: Any,
) -> Explanation:
    """`Explainer(model, composite, **settings)(x, target)` in one call."""
    return Explainer(model, composite, **settings)(x, target)
