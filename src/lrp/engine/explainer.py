"""Explainer: the public class of the engine."""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from lrp.engine.graph.tracing.inputs import BatchDim, Inputs, inputs_of_call
from lrp.engine.graph.tracing.isolation import LOCK, sources_go_with
from lrp.engine.graph.tracing.model_copy import in_train_mode
from lrp.engine.graph.tracing.refusals import fails_itself
from lrp.engine.graph.writer import NOTHING_INSIDE, Inner, Program, forward_module
from lrp.engine.model_state import ModelState, tensor_version
from lrp.engine.program import Builder
from lrp.engine.request import Named, Request, inner_node, inner_tensors
from lrp.engine.results.explanation import Explanation, Explanations
from lrp.engine.results.health import refuse_other_logits
from lrp.engine.results.ledger import Ledger, ledger_of_each_image
from lrp.engine.results.rules_table import RulesTable
from lrp.engine.rule_check import RuleCheck, check_rules
from lrp.engine.rules import Rule
from lrp.engine.shared_constants import SharedConstants
from lrp.engine.speed.plan import Plan
from lrp.engine.speed.shared_forward import split_at_shared_forward
from lrp.engine.targets import SEEDS, Similarity, Start, entries_of_images, resolve_target, similarity_start
from lrp.errors import CaptureError, CompositeError, InputError, LedgerError, LrpError

if TYPE_CHECKING:
    from lrp.engine.results.display import Geometrical

SIZES = 16
"""How many input sizes are kept for a model, and for an explainer: those used last."""

PROGRAMS = 16
"""How many programs are kept for an input size: of the map, of the ledger, and those that look inside."""

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
    compile: bool = False
    _made: OrderedDict[Any, Any] = field(default_factory=OrderedDict)

    def program(self, inner: Inner = NOTHING_INSIDE, *, ledger: bool = False) -> Program:
        """The program, written when it is first asked for."""
        return self._once((inner, ledger), lambda: self.builder.program(inner=inner, ledger=ledger))

    @property
    def plain(self) -> Program:
        return self.program()

    def run(self, inner: Inner, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run a program, compiled if that was asked for."""
        program: Any = self.program(inner)
        if self.compile:
            program = self._once(
                (inner, "compiled"), lambda: torch.compile(self.program(inner).module, fullgraph=True)
            )
        result: tuple[Tensor, ...] = program(*tensors)
        return result

    def halves(self, inner: Inner = NOTHING_INSIDE) -> tuple[fx.GraphModule, fx.GraphModule]:
        """A program in two parts: what no target changes, and the rest."""
        count = len(self.graph.inputs)
        return self._once(
            (inner, "halves"), lambda: split_at_shared_forward(self.program(inner).module, count)
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """The logits."""
        module = self._once("forward", lambda: forward_module(self.graph, self.builder.versions.names))
        logits: Tensor = module(*inputs.tensors)[0]
        return logits

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes; the last `PROGRAMS` are kept."""
        with LOCK:
            if _last_used(self._made, key) is None:
                with sources_go_with(self.builder), plain_numbers(self.graph.device):
                    _remember(self._made, key, make(), PROGRAMS)
            return self._made[key]


class Explainer:
    """Explains the decisions of one model with layer-wise relevance propagation.

    Args:
        model: any module that takes images [N, C, H, W], or several inputs, and returns logits [N, K], or one of [N] or
            [N, K, *space]. It is never modified.
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
            these to follow one after the other; or a function of what the model returns, which becomes part of what is
            explained. None: the only tensor, or the one called "logits".
        held: names or numbers of inputs that are constants: masks, positions. Inputs of integers are, but for ids of which an
            embedding is taken; those of booleans always.
        batch_dim: which dimension of an input counts the images, for all or by name; None: it has none, and is held.
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
        held: Sequence[str | int] = (),
        batch_dim: BatchDim = 0,
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
        self.held, self.batch_dim = ((held,) if isinstance(held, (str, int)) else tuple(held)), batch_dim
        floating = [t for t in model.parameters() if t.is_floating_point()]
        own = floating[0].dtype if floating else torch.float32
        self.dtype = dtype or (own if own in (torch.float32, torch.float64) else torch.float32)
        self.optimise = optimise
        self.low_precision = optimise and precision == "mixed" and self.dtype == torch.float32
        self._prepared: OrderedDict[Any, Prepared] = OrderedDict()
        self._captures: _Captures = OrderedDict()

    # ------------------------------------------------------------ explaining

    def __call__(
        self,
        x: Any = None,
        target: Any = "predicted",
        *,
        start: Named | None = None,
        through: Named | None = None,
        at: Sequence[str] = (),
        **named: Any,
    ) -> Explanation:
        """Explain a batch.

        Args:
            x: [N, C, H, W], preprocessed as the model expects it. For a model of several inputs: a tuple of them, a dictionary
                of them by name, nested as the model takes them.
            target: "predicted", a class index or name, a `Contrast`, a sequence of N of these, or a start
                relevance [N, K], used as it is. An embedding: `Similarity`. Logits for each place: also `Region`, one
                place (class, *position), or a mask of places [N, *space].
            start: relevance starts inside the model instead: module or operation -> relevance at its output.
            through: only a part of the relevance passes: module or operation -> a mask that broadcasts to its output.
            at: names for `Explanation.at`, to be returned by the same pass.
            named: inputs by name.

        Raises:
            InputError, TargetError: what is wrong with the inputs or `target`.
            CaptureError, UnsupportedError, CompositeError: the model cannot be explained, or not by this composite.
        """
        inputs = self.inputs(x, **named)
        prepared = self.prepare(inputs)
        request = self._request(target, inputs, prepared, start, through, at)
        with plain_numbers(inputs.device):
            result = prepared.run(request.inner, *inputs.to(self.dtype).tensors, *request.arguments)
        self._compare(inputs, prepared, request, result)
        return self._explanation(inputs, prepared, request, result, at, start)

    def many(
        self,
        x: Any,
        targets: Sequence[Any],
        *,
        start: Named | None = None,
        through: Named | Sequence[Named] | None = None,
        at: Sequence[str] = (),
        **named: Any,
    ) -> Explanations:
        """Explain the same batch for several targets, or through several masks; the forward pass is computed once.

        Args:
            x, start, at, named: as for one explanation.
            targets: T entries, each anything that `target` takes; a single one goes with all of `through`.
            through: masks for all, or a sequence of T, one for each explanation.

        Returns:
            T explanations; `relevance` is [T, N, C, H, W].
        """
        if isinstance(targets, str) or not len(targets):
            raise InputError(f"targets={targets!r}: expected a sequence of at least one target.")
        targets = list(targets)
        masks = [through] if through is None or isinstance(through, Mapping) else list(through)
        count = max(len(targets), len(masks))
        if {len(targets), len(masks)} - {1, count} or not masks:
            raise InputError(
                f"{len(targets)} targets and {len(masks)} masks: give one for each, or one for all."
            )
        inputs = self.inputs(x, **named)
        prepared = self.prepare(inputs)
        requests = [
            self._request(targets[i % len(targets)], inputs, prepared, start, masks[i % len(masks)], at)
            for i in range(count)
        ]
        entries, kept = list[Explanation](), dict[Inner, Any]()
        with plain_numbers(inputs.device):
            for request in requests:
                shared, one_target = prepared.halves(request.inner)
                if request.inner not in kept:
                    kept[request.inner] = shared(*inputs.to(self.dtype).tensors)
                result = one_target(*request.arguments, *kept[request.inner])
                if not entries:
                    self._compare(inputs, prepared, request, result)
                entries.append(self._explanation(inputs, prepared, request, result, at, start))
        parts = zip(*(e._parts for e in entries), strict=True)
        stacked = [None if part[0] is None else torch.stack(part) for part in parts]
        relevance = inputs.nested(stacked, leading=1)
        target = torch.stack([e.target for e in entries])
        starts = entries[0].start if start else torch.stack([e.start for e in entries])
        return Explanations(relevance, entries[0].logits, target, starts, entries)

    def inputs(self, x: Any = None, **named: Any) -> Inputs:
        """The model's inputs, checked.

        Raises:
            InputError: the model cannot be called so; pixels that are not finite; another device than the model's.
        """
        inputs = inputs_of_call(self.model, x, named, self.batch_dim)
        self._check(inputs)
        return inputs

    def _request(
        self,
        target: Any,
        inputs: Inputs,
        prepared: Prepared,
        start: Named | None = None,
        through: Named | None = None,
        at: Sequence[str] = (),
    ) -> Request:
        graph, images = prepared.graph, len(inputs)
        like = torch.zeros((), dtype=self.dtype, device=inputs.device)
        begun = inner_tensors(graph, start, images, like, mask=False)
        masks = inner_tensors(graph, through, images, like, mask=True)
        inner = Inner(
            tuple(node for node, *_ in begun),
            tuple(node for node, *_ in masks),
            tuple(inner_node(graph, name) for name in ((at,) if isinstance(at, str) else at)),
        )
        dims = tuple(dim for *_, dim in (*begun, *masks))
        masked = tuple(t for _, t, _ in masks)
        if begun:
            return Request(inner, tuple(t for _, t, _ in begun), masked, dims)
        made, entries = self._start(target, inputs, prepared, like)
        return Request(inner, made, masked, (0, 0, 0, *dims), entries)

    def _start(
        self, target: Any, inputs: Inputs, prepared: Prepared, like: Tensor
    ) -> tuple[Start, list[Any] | None]:
        """The start relevance at the logits, and what each image is explained for."""
        shape = [len(inputs), *prepared.graph.logits.meta["shape"][1:]]
        if isinstance(target, Similarity):
            with plain_numbers(inputs.device):
                own = prepared.forward(inputs.to(self.dtype))
                zero = torch.zeros_like(own)
                start = similarity_start(own, self._embedding(target.to, inputs))
                return Start(start, zero, zero[:, :1]), [target] * len(inputs)
        request = resolve_target(target, shape, self.class_names, like)
        if bool(request.given.any()):
            return request, None
        if self.seed == "softmax":
            request = Start(
                request.given, torch.ones_like(request.weight), torch.zeros_like(request.predicted)
            )
        return request, entries_of_images(target, len(inputs), len(shape) - 2)

    def _embedding(self, to: Any, inputs: Inputs) -> Tensor:
        """The embedding of other inputs, or the one that is given."""
        is_input = not isinstance(to, Tensor) or (
            to.dim() == inputs.tensors[0].dim() and to.shape[1:] == inputs.tensors[0].shape[1:]
        )
        if not is_input or (isinstance(to, Tensor) and len(inputs.tensors) > 1):
            return torch.as_tensor(to)
        other = self.inputs(to)
        return self.prepare(other).forward(other.to(self.dtype))

    def _explanation(
        self,
        inputs: Inputs,
        prepared: Prepared,
        request: Request,
        result: Sequence[Tensor],
        at: Sequence[str],
        start: Named | None,
    ) -> Explanation:
        program = prepared.program(request.inner)
        count = len(program.inputs)
        reached = dict(zip(program.inputs, result[:count], strict=True))
        parts = tuple(reached.get(i) for i in range(len(inputs.tensors)))
        logits, begun, *inside = result[count:]
        if request.inner.starts:
            target = self._classes(logits).argmax(1)
            empty = torch.zeros(len(inputs), dtype=torch.bool)
        else:
            _, weight, predicted = request.starts
            asked = torch.where(
                (weight == 0).flatten(1).all(1)[(...,) + (None,) * (logits.dim() - 1)], begun, weight
            )
            target = self._classes(asked).argmax(1)
            if logits.dim() == 2:
                target = torch.where(predicted[:, 0] > 0, logits.argmax(1), target)
            empty = (begun != 0).flatten(1).any(1)
            for part in reached.values():
                empty = empty & (part == 0).flatten(1).all(1)
        if bool(empty.any()) and not request.masks:
            _warn_once(
                self,
                f"no relevance reached the input of image {', '.join(map(str, empty.nonzero().flatten().tolist()))}: "
                "its map is 0. health.notes says where the relevance went, and what to try.",
            )
        names = (at,) if isinstance(at, str) else tuple(at)
        return Explanation(
            inputs.nested(parts), logits, target, dict(start) if start else begun, self, inputs,
            tuple(map(tensor_version, inputs.tensors)), prepared.state, request, parts,
            dict(zip(names, inside, strict=True)),
        )  # fmt: skip

    @staticmethod
    def _classes(values: Tensor) -> Tensor:
        """Values [N, K, *space] summed over the places."""
        return values if values.dim() == 2 else values.flatten(2).sum(2)

    # ------------------------------------------------------------ preparing

    def prepare(self, x: Any) -> Prepared:
        """Capture the model for inputs like `x`, assign rules, write the program; cached for the last `SIZES` sizes."""
        inputs = x if isinstance(x, Inputs) else self.inputs(x)
        key = inputs.key
        with LOCK:
            found = _last_used(self._prepared, key) or _last_used(self._prepared, (key, len(inputs)))
            if found is not None and found.state.holds(self.model):
                return found
            captured = self._capture(inputs, key)
            prepared = self._prepare(captured, self._state(captured), inputs)
            _remember(self._prepared, key if captured.free_batch else (key, len(inputs)), prepared)
        return prepared

    def _state(self, captured: Captured) -> ModelState:
        return ModelState.of(self.model, captured.reads(), captured.written)

    def _capture(self, inputs: Inputs, key: Any) -> Captured:
        """The model's graph; that of an earlier capture if only weights have changed since."""
        # A function may refer to the model, which would then be kept alive by its own captures.
        known = self._captures if callable(self.output) else _CAPTURES.setdefault(self.model, OrderedDict())
        key = (key, None if callable(self.output) else self.output)
        for candidate in (key, (key, len(inputs))):
            found = _last_used(known, candidate)
            if found is not None and found[1].fits(self.model) and found[0].decides_as(self.model):
                return found[0]
        if in_train_mode(self.model):
            _warn_once(self, "the model is in train mode: it is explained in eval mode, and left as it was.")
        captured = capture(self.model, self._as_model_takes(inputs), self.output)
        if not captured.free_batch:
            _warn_once(
                self,
                f"the model can be captured for a fixed number of images only: each batch size is new, now {len(inputs)}.",
            )
        if captured.head:
            _warn_once(self, f"the model ends in a {captured.head}: its input, the logits, is explained.")
        _remember(
            known, key if captured.free_batch else (key, len(inputs)), (captured, self._state(captured))
        )
        return captured

    def _prepare(self, captured: Captured, state: ModelState, inputs: Inputs) -> Prepared:
        device = inputs.device
        with plain_numbers(device):
            constants = _CONSTANTS.setdefault(self.model, SharedConstants())
            values = constants.known(captured.values(self.model), captured.parameters)
            held = self._held(inputs)
            graph = constants.share(
                lambda: canonize(captured, values, self.dtype, device, self.optimise, held)
            )
            shape = graph.logits.meta["shape"]
            if shape is None or len(shape) < 2 or shape[0] != graph.images:
                raise CaptureError(
                    f"the model returns a tensor of shape {list(shape or ())}; logits [N, K] or [N, K, *space] are expected."
                )
            if not graph.entries:
                raise InputError(
                    f"all inputs are held, or hold integers of which no embedding is taken: {', '.join(inputs.names)}; "
                    "relevance needs one of floating numbers or ids."
                )
            wanted = self.composite or default_preset
            chosen = wanted if isinstance(wanted, Composite) else wanted(graph)
            rules = chosen.assign(graph)
            plan = Plan(graph, rules, self.low_precision, device.type == "cpu" and not self.compile)
            builder = Builder(graph, rules, chosen.top_k, self.seed, plan if self.optimise else None)
            builder.versions.compute = constants.version
            prepared = Prepared(captured, graph, chosen, rules, builder, state, self.compile)
            prepared.program()
        return prepared

    def _held(self, inputs: Inputs) -> frozenset[int]:
        """The inputs that are constants, by number."""
        without_images = {i for i, dim in enumerate(inputs.batch_dims) if dim is None}
        return inputs.positions(self.held) | without_images

    def _as_model_takes(self, inputs: Inputs) -> Inputs:
        floating = [t for t in self.model.parameters() if t.is_floating_point()]
        return inputs.to(floating[0].dtype if floating else None)

    def _check(self, inputs: Inputs) -> None:
        single = inputs.names == ("image",)
        for name, x in zip(inputs.names, inputs.tensors, strict=True):
            what = "images" if single else f"input {name}"
            if single and (x.dim() < 2 or not x.is_floating_point()) and not _takes_ids(x):
                raise InputError(
                    f"images must be a floating tensor [N, C, H, W], got {x.dtype} of shape {list(x.shape)}."
                )
            if not x.is_floating_point():
                continue
            if not bool(torch.isfinite(x).all()):
                bad = (
                    (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist() if x.dim() > 1 else []
                )
                where = (
                    f"pixels in image {', '.join(map(str, bad))}: every pixel"
                    if single
                    else f"values in {what}: every value"
                )
                raise InputError(f"NaN or infinite {where} must be finite.")
        if not len(inputs):
            raise InputError(
                f"the batch is empty: got shape {list(inputs.tensors[0].shape)}, expected at least one image."
            )
        held = next(self.model.parameters(), None)
        for x in inputs.tensors:
            if held is not None and held.device != x.device:
                raise InputError(
                    f"the images are on {x.device} and the model is on {held.device}: move one of them."
                )

    # ------------------------------------------------------------ looking inside

    def rules(self, x: Any = None) -> RulesTable:
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

    def check(self, x: Any, *, quiet: bool = False) -> RuleCheck:
        """Compare the rules, custom ones included, with a dense matrix on this model, in float64; print where they differ.

        For some outputs of every affine operation, the rule's equation is evaluated over the rows of the operation's
        matrix, which autograd computes from the model's own operation. For all operations, the account must close,
        and what the rule declares (signs, `in_proportion`) must hold.

        Args:
            x: images; the first one is used.
            quiet: print nothing.
        """
        exact = Explainer(
            self.model, self.composite, self.seed, torch.float64, output=self.output, optimise=self.optimise,
            held=self.held, batch_dim=self.batch_dim,
        )  # fmt: skip
        inputs = exact.inputs(x)
        prepared = exact.prepare(inputs)
        with plain_numbers(inputs.device):
            first = inputs.images(0, 1).to(torch.float64)
            found = check_rules(prepared.graph, prepared.builder, first.tensors)
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

    def _compare(
        self, inputs: Inputs, prepared: Prepared, request: Request, result: Sequence[Tensor]
    ) -> None:
        """Raise where a model that packs sequences returns other logits than its graph, which holds them padded."""
        if not prepared.captured.packs:
            return
        try:
            own = self._own_output(inputs)
        except Exception as error:
            raise CaptureError(fails_itself(self.model, inputs, error)) from error
        logits = result[len(prepared.program(request.inner).inputs)]
        refuse_other_logits(type(self.model).__name__, self._as_output(logits), own)

    def _own_output(self, inputs: Inputs) -> Tensor:
        """What the model itself returns; after a softmax or sigmoid, if it ends in one."""
        return own_output(self.model, self._as_model_takes(inputs), self.output)

    def _as_output(self, logits: Tensor) -> Tensor:
        """The logits, after the softmax or sigmoid at the end of the model if it has one."""
        head = next(reversed(self._prepared.values())).captured.head
        return HEADS[head](logits) if head else logits

    @property
    def labels_are_independent(self) -> bool:
        """Whether the model ends in a sigmoid of each logit, and not in a softmax over them."""
        last = next(reversed(self._prepared.values()), None)
        return last is not None and last.captured.head in ("sigmoid", "log_sigmoid")

    def _inside(self, inputs: Inputs, request: Request, name: str) -> Tensor:
        """Relevance at the output of a module or operation."""
        prepared = self.prepare(inputs)
        inner = request.inner._replace(at=(inner_node(prepared.graph, name),))
        with plain_numbers(inputs.device):
            return prepared.run(inner, *inputs.to(self.dtype).tensors, *request.arguments)[-1]

    def _ledger(self, inputs: Inputs, request: Request) -> Ledger:
        """The account of each image of a batch."""
        first = inputs.images(0, 1)
        prepared = self.prepare(first if self.prepare(inputs).captured.free_batch else inputs)
        inner, together = request.inner._replace(at=()), False
        if not prepared.captured.free_batch and len(inputs) > 1:
            if inner.starts or inner.through:
                raise LedgerError(
                    f"the model is captured for {len(inputs)} images only, and an account of relevance inside it needs one: explain "
                    "one image at a time."
                )
            try:
                alone = capture(self.model, self._as_model_takes(first), self.output)
                prepared = self._prepare(alone, prepared.state, first)
            except CaptureError:  # the model takes so many images only
                together = True
        program = prepared.program(inner, ledger=True)
        names = [str(prepared.rules[o.node]) for o in program.rows]
        with plain_numbers(inputs.device):
            return ledger_of_each_image(program, names, inputs.to(self.dtype), request, together)


def _takes_ids(x: Tensor) -> bool:
    """Whether a tensor may hold ids."""
    return x.dim() == 2 and x.dtype in (torch.int32, torch.int64)


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


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any, limit: int | None = None) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > (limit or SIZES):
        cache.popitem(last=False)


def _warn_once(explainer: Explainer, message: str) -> None:
    if message not in explainer.__dict__.setdefault("_warned", set()):
        explainer.__dict__["_warned"].add(message)
        warnings.warn(message, stacklevel=4)


def explain(
    model: nn.Module,
    x: Any,
    target: Any = "predicted",
    composite: str | Composite | None = None,
    **settings: Any,
) -> Explanation:
    """`Explainer(model, composite, **settings)(x, target)` in one call."""
    return Explainer(model, composite, **settings)(x, target)
