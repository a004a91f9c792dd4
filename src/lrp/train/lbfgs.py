"""The optimisation of `fit_head`: L-BFGS on the penalised cross-entropy of a small module, on features read in chunks.

The inputs of linear layers are standardised by a change of variables, without copying any features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lrp.errors import TrainingError

STRENGTHS = tuple(10.0 ** (half / 2) for half in range(2, -11, -1))
"""The penalties tried in the cross-validation, from strong to weak: 10, 3.2, 1, ... 0.00001."""
FOLDS = 5
LARGE = 2**24  # numbers in the features; with more, one fold is accurate enough and five would take minutes
CHUNK = 2**22  # numbers per chunk: limits the memory
ROUGHLY = (
    1e-3  # relative to the objective: in the cross-validation, descent stops after a step that gains less
)


class Rows(Protocol):
    """One array for each photo: a tensor [N, ...], or an object that reads parts of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any) -> Tensor:
        """`at`: a slice, or an index tensor [n]. Returns [n, ...]."""


Features = Mapping[str, Sequence[Rows]]
"""View -> features, one `Rows` for each input of the tail. All views have the same photos in the same order."""


# ---------------------------------------------------------------- the data


class Data:
    """Views and labels of some photos; iteration yields the same chunks in the same order each time."""

    def __init__(
        self,
        what: str,
        views: Sequence[Sequence[Rows]],
        labels: Tensor,
        device: torch.device,
        photos: Tensor | None = None,
    ) -> None:
        """`photos`: the indices of the photos to use, in their order; None: all."""
        self.what, self.views, self.labels, self.device, self.photos = what, views, labels, device, photos
        lengths = sorted({len(rows) for view in views for rows in view} | {len(labels)})
        if len(lengths) > 1 or not len(labels) or not views:
            raise TrainingError(
                f"expected a row of features for each label of the {what} photos, and at least one, got "
                f"{' and '.join(map(str, lengths)) if views else 'no features'}."
            )
        self.numbers = sum(rows[0:1].numel() for view in views for rows in view)  # per photo
        self.photo_count = len(labels) if photos is None else len(photos)

    def __len__(self) -> int:
        """Photos times views."""
        return self.photo_count * len(self.views)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        size = max(1, CHUNK * len(self.views) // max(1, self.numbers))
        for view in self.views:
            for begin in range(0, self.photo_count, size):
                at: Any = slice(begin, min(begin + size, self.photo_count))
                if self.photos is not None:
                    at = self.photos[at]
                yield tuple(rows[at].to(self.device) for rows in view), self.labels[at].to(self.device)

    def of(self, photos: Tensor) -> Data:
        """The first view of some of the photos."""
        return Data(self.what, self.views[:1], self.labels, self.device, photos)


def expect_lbfgs_data(tail: nn.Module, data: Data) -> None:
    """Raise unless the tail accepts the features, has an output for each label, and all features are finite."""
    unfit = 0
    for inputs, labels in data:
        try:
            with torch.no_grad():
                logits = tail(inputs)
        except (RuntimeError, ValueError, TypeError) as error:
            raise TrainingError(
                f"the head does not take the features of the {data.what} photos, "
                f"{[list(values.shape) for values in inputs]}: they are of another model; compute them again."
            ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TrainingError(f"the head gives {got} for {len(labels)} photos: expected logits [N, K].")
        low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
        if low < 0 or high >= classes:
            raise TrainingError(
                f"expected labels from 0 to {classes - 1} for a head with {classes} outputs, got "
                f"{low if low < 0 else high} among those of the {data.what} photos."
            )
        finite = torch.stack([values.flatten(1).isfinite().all(1) for values in inputs]).all(0)
        unfit += len(labels) - int(finite.sum())
    if unfit:
        raise TrainingError(
            f"{unfit} of {len(data)} rows of features of the {data.what} photos hold NaN or infinite numbers: the "
            "model overflows on them; take other weights or another model."
        )


def lbfgs_standardisation(tail: nn.Module, data: Data) -> dict[str, tuple[Tensor, Tensor]]:
    """Path of each layer that can be standardised -> (mean, deviation) of each channel of its input, [F] each.

    In float64, because they are sums over many photos. A channel that is constant except for rounding is not scaled.
    """
    sums: dict[str, list[Tensor]] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channels = -1 if isinstance(layer, nn.Linear) else 1
            values = inputs[0].movedim(channels, -1).flatten(0, -2).double()
            parts = [values.new_tensor(len(values)), values.sum(0), values.square().sum(0)]
            sums[path] = [a + b for a, b in zip(sums[path], parts, strict=True)] if path in sums else parts

        return see

    hooks = [
        layer.register_forward_pre_hook(watch(path))
        for path, layer in tail.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    try:
        expect_lbfgs_data(tail, data)
    finally:
        for hook in hooks:
            hook.remove()
    standards = {}
    for path, (count, total, squares) in sums.items():
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        rounding = 1e-4 * mean.abs() + 1e-30
        deviation = torch.where(deviation > rounding, deviation, torch.ones_like(deviation))
        standards[path] = (mean, deviation)
    return standards


# ---------------------------------------------------------------- the problem


class Variables:
    """The trained variables of a tail: its parameters with respect to standardised inputs.

    w (x - mean) / deviation + b  =  (w / deviation) x + (b - sum(w / deviation * mean)): on the left the variables,
    on the right the parameters of the layer as it is.
    """

    def __init__(self, tail: nn.Module, standards: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.tail, self.standards = tail, {}
        parameters = {name: p.detach() for name, p in tail.named_parameters()}
        self.tensors = {name: p.clone() for name, p in parameters.items()}
        for path, (mean, deviation) in standards.items():
            weight, bias = (f"{path}.{n}".removeprefix(".") for n in ("weight", "bias"))
            if weight not in parameters:  # shared with another layer, whose input may differ
                continue
            w = parameters[weight]
            shape = [1, -1, *[1] * (w.dim() - 2)]
            mean, deviation = mean.to(w.dtype).view(shape), deviation.to(w.dtype).view(shape)
            shifted = bias in parameters
            self.standards[weight] = (bias if shifted else "", mean, deviation)
            self.tensors[weight] = w * deviation
            if shifted:
                self.tensors[bias] = parameters[bias] + (w * mean).flatten(1).sum(1)
        for tensor in self.tensors.values():
            tensor.requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        """Name -> parameter of the tail, with respect to the inputs without standardisation."""
        found = dict(self.tensors)
        for weight, (bias, mean, deviation) in self.standards.items():
            found[weight] = found[weight] / deviation
            if bias:
                found[bias] = found[bias] - (found[weight] * mean).flatten(1).sum(1)
        return found

    def penalty(self) -> Tensor:
        """Half the sum of the squared weights; biases (vectors) are not penalised."""
        squares = [t.square().sum() for t in self.tensors.values() if t.dim() > 1]
        return torch.stack(squares).sum() / 2 if squares else torch.zeros(())

    def evaluate(self, data: Data, smoothing: float = 0.0, descend: bool = False) -> tuple[float, float]:
        """Mean loss in nats and accuracy; with `descend` the loss's gradient is added to the variables' gradients."""
        loss, right = 0.0, 0
        for inputs, labels in data:
            with torch.set_grad_enabled(descend):
                logits = functional_call(self.tail, self.parameters(), (inputs,))
                part = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
                if descend:
                    (part / len(data)).backward()
            loss += part.item()
            right += int((logits.argmax(1) == labels).sum())
        return loss / len(data), right / len(data)

    def copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def set(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(values[name])

    def fold(self) -> None:
        """Write the parameters that correspond to these variables into the tail."""
        found = self.parameters()
        with torch.no_grad():
            for name, parameter in self.tail.named_parameters():
                parameter.copy_(found[name])


class Descent:
    """L-BFGS on loss plus penalty, one step at a time."""

    def __init__(self, variables: Variables, data: Data, strength: float, smoothing: float) -> None:
        self.variables, self.data, self.strength, self.smoothing = variables, data, strength, smoothing
        self.optimizer = torch.optim.LBFGS(
            variables.tensors.values(), max_iter=1, max_eval=25, tolerance_grad=0.0, tolerance_change=0.0,
            history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip
        self.loss = self.accuracy = math.nan
        self._at: list[Tensor] = []
        self._value: Tensor | None = None

    def step(self) -> None:
        self.optimizer.step(self._evaluate)

    def objective(self) -> float:
        """The objective at the current variables; updates `loss` and `accuracy` too."""
        return self._evaluate().item()

    def _evaluate(self) -> Tensor:
        now = list(self.variables.tensors.values())
        # A step starts at the end point of the last line search: its value is cached, which saves a pass over the data.
        if self._value is not None and all(map(torch.equal, self._at, now)):
            return self._value
        self._at = [tensor.detach().clone() for tensor in now]
        for tensor in now:
            tensor.grad = None
        self.loss, self.accuracy = self.variables.evaluate(self.data, self.smoothing, descend=True)
        penalty = self.strength * self.variables.penalty()
        if penalty.requires_grad:
            penalty.backward()
        self._value = torch.tensor(self.loss + penalty.item(), dtype=torch.float64)
        return self._value


def cross_validated(
    variables: Variables, train: Data, smoothing: float, seed: int, tick: Callable[[], None]
) -> float:
    """The penalty with the lowest loss on held-out training photos.

    Tries penalties from strong to weak until the loss rises; each fold starts from its previous solution. 1 if there
    are too few photos.
    """
    count = len(train.labels)
    if count < 2 * FOLDS:
        return 1.0
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    by_class = drawn[train.labels.cpu()[drawn].argsort(stable=True)]
    fold = torch.empty_like(drawn)
    fold[by_class] = torch.arange(count) % FOLDS  # spreads each class over the folds
    start = variables.copy()
    large = count * train.numbers // len(train.views) > LARGE
    parts = [
        (train.of((fold != f).nonzero()[:, 0]), train.of((fold == f).nonzero()[:, 0])) for f in range(FOLDS)
    ]
    places = [start for _ in parts[: 1 if large else FOLDS]]
    best, lowest = STRENGTHS[0], math.inf
    for strength in STRENGTHS:
        losses = []
        for number, (seen, unseen) in enumerate(parts[: len(places)]):
            variables.set(places[number])
            descent = Descent(variables, seen, strength, smoothing)
            before = descent.objective()
            for _ in range(30):
                descent.step()
                now = descent.objective()
                tick()
                if lbfgs_settled(before, now, ROUGHLY):
                    break
                before = now
            places[number] = variables.copy()
            losses.append(variables.evaluate(unseen, smoothing)[0])
        if not sum(losses) < lowest:
            break
        best, lowest = strength, sum(losses)
    variables.set(start)
    return best


def lbfgs_settled(before: float, now: float, share: float) -> bool:
    return before - now <= share * abs(now)
