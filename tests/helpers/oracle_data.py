"""The formulas of docs/rules.md that are not in `oracle.py`: products of data, attention, scales computed from data.

One image at a time, numpy, float64, no code of `lrp`. `Trace` computes a net step by step with the literal formulas;
every step stores a function that propagates relevance back.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from helpers import oracle
from helpers.oracle import Affine, Handed

# ------------------------------------------------------------------------------------------------ matrices


def measured(function: Callable, shape: Sequence[int], elementwise=False) -> Affine:
    """The matrix and the constant of an affine function of [N, *shape], from its values at 0 and at unit vectors.

    `elementwise`: each output is connected to its own input, even by a weight of 0.
    """
    with torch.no_grad():
        zeros = torch.zeros(1, *shape, dtype=torch.float64)
        weight = oracle.dense(lambda u: function(u) - function(torch.zeros_like(u)), shape)
        weight[np.abs(weight) < 1e-12] = 0.0  # antialiasing leaves 1e-17, which is no connection
        tap = np.eye(len(weight), dtype=bool) if elementwise else weight != 0
        return Affine(weight, function(zeros).reshape(-1).numpy().copy(), tap)


def normalised(a, groups: Iterable, weight=None, bias=None, eps=1e-5, centred=True) -> Affine:
    """Layer, group, instance and RMS norm at image `a` as affine maps: σ is constant, the matrix is (I − 1/n) γ/σ.

    `groups`: the flat indices of the elements that share a mean and a σ. `weight` (γ), `bias` (β): one per element.
    """
    a = np.asarray(a, np.float64).reshape(-1)
    matrix = np.zeros((a.size, a.size))
    for group in groups:
        n = len(group)
        mean = a[group].mean() if centred else 0.0
        sigma = np.sqrt(np.mean((a[group] - mean) ** 2) + eps)
        matrix[np.ix_(group, group)] = (np.eye(n) - centred / n) / sigma
    weight = np.ones(a.size) if weight is None else np.asarray(weight, np.float64).reshape(-1)
    bias = np.zeros(a.size) if bias is None else np.asarray(bias, np.float64).reshape(-1)
    return Affine(weight[:, None] * matrix, bias.copy(), matrix != 0)


def held(function: Callable, a: Callable, b: Callable, x: torch.Tensor) -> tuple[Affine, Affine]:
    """The matrix for each operand of the bilinear function(a(x), b(x)) with the other operand constant; `a` and `b`
    only move elements."""

    def fixed(u):
        return x.expand(len(u), *x.shape)

    one = oracle.affine(lambda u: function(a(u), b(fixed(u))), tuple(x.shape))
    other = oracle.affine(lambda u: function(a(fixed(u)), b(u)), tuple(x.shape))
    return one, other


def shared_between(matrices: Sequence[Affine], shares: Sequence[float], x, R, epsilon=1e-6) -> Handed:
    """Each operand gets its share of R, distributed by Epsilon (Halves: ½ and ½; Values: all and nothing)."""
    total = Handed(np.zeros(np.asarray(x).size))
    for matrix, share in zip(matrices, shares, strict=True):
        handed = oracle.distribute(oracle.epsilon(epsilon), matrix, x, share * np.asarray(R))
        total.relevance += handed.relevance
        total.epsilon += handed.epsilon
        total.dropped += handed.dropped
    return total


# ------------------------------------------------------------------------------------------------- winners


def over(shape: Sequence[int], dims: Sequence[int]) -> list[np.ndarray]:
    """The flat indices that a maximum over `dims` (of [C, H, W]) compares, output by output."""
    index = np.moveaxis(np.arange(np.prod(shape)).reshape(shape), dims, range(-len(dims), 0))
    return list(index.reshape(-1, int(np.prod([shape[d] for d in dims]))))


def adaptive(shape: Sequence[int], size: Sequence[int]) -> list[np.ndarray]:
    """The windows of an adaptive pool: from ⌊i n / k⌋ to ⌈(i + 1) n / k⌉."""
    index = np.arange(np.prod(shape)).reshape(shape)
    ends = [
        [(i * n // k, -(-(i + 1) * n // k)) for i in range(k)] for n, k in zip(shape[1:], size, strict=True)
    ]
    return [
        channel[top:bottom, left:right].reshape(-1)
        for channel in index
        for top, bottom in ends[0]
        for left, right in ends[1]
    ]


def sliding(n: int, kernel: int, stride: int, padding: int, dilation: int, out: int) -> list[list[int]]:
    """The windows of a pool along one axis of n."""
    starts = (i * stride - padding for i in range(out))
    return [[j for j in range(s, s + dilation * kernel, dilation) if 0 <= j < n] for s in starts]


def winners(groups: Iterable, a, R) -> np.ndarray:
    """The largest of a group gets the relevance of its output; of equal ones the first."""
    a, R = np.asarray(a).reshape(-1), np.asarray(R).reshape(-1)
    relevance = np.zeros(a.size)
    for group, r in zip(groups, R, strict=True):
        best = group[0]
        for j in group:
            if a[j] > a[best]:
                best = j
        relevance[best] += r
    return relevance


# --------------------------------------------------------------------------------------------- a whole net


class Value:
    """An intermediate array, and the relevance propagated back to it so far."""

    def __init__(self, array):
        self.array = np.asarray(array, np.float64)
        self.relevance = np.zeros(self.array.shape)


def array_of(x):
    """The numbers of a `Value`, or of a constant."""
    return x.array if isinstance(x, Value) else numpy(x)


def numpy(x):
    return x.detach().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)


def times(factor, terms):
    """factor · terms, but 0 where the factor is 0, also for infinite terms: a score of −inf gets no relevance."""
    factor, terms = np.broadcast_arrays(factor, terms)
    return np.where(factor == 0, 0.0, factor * np.where(factor == 0, 0.0, terms))


def summed_back(R, shape):
    """R summed to `shape`: the relevance of an operand that was broadcast."""
    R = R.sum(tuple(range(R.ndim - len(shape))))
    return R.sum(tuple(i for i, n in enumerate(shape) if n == 1 and R.shape[i] > 1), keepdims=True)


def softmax(z, axis):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


class Trace:
    """The computation of a net for one image. Constants are arrays or tensors, data are `Value`s.

    `epsilon`: of all operations except linears and convolutions. `linear`, `conv`: the rules of these.
    `attention`: "cp_lrp" or "attnlrp".
    """

    def __init__(self, image, epsilon=1e-6, linear=None, conv=None, attention="cp_lrp"):
        self.image = Value(numpy(image))
        self.eps = epsilon
        self.rule = oracle.epsilon(epsilon)
        self.linear_rule, self.conv_rule = linear or self.rule, conv or self.rule
        self.attention = attention
        self.bias = self.epsilon = self.dropped = 0.0
        self.steps = []

    def step(self, array, back) -> Value:
        out = Value(array)
        self.steps.append((out, back))
        return out

    def explain(self, out: Value, R) -> Handed:
        out.relevance += np.asarray(R).reshape(out.array.shape)
        for value, back in reversed(self.steps):
            back(value.relevance)
        return Handed(self.image.relevance.reshape(-1), self.bias, self.epsilon, self.dropped)

    def largest(self) -> float:
        """The largest Σ|R| of a step, after `explain`: the scale for rounding errors."""
        return max(float(np.abs(value.relevance).sum()) for value, _ in self.steps)

    def per_output(self, R, z):
        """R / s(z); adds the share of ε, and the relevance dropped where z = 0, to the ledger."""
        sign = np.where(z >= 0, 1.0, -1.0)
        s = np.where(z == 0, 1.0, z + self.eps * sign)
        self.epsilon += float((R * self.eps * sign / s)[z != 0].sum())
        self.dropped += float(R[z == 0].sum())
        return np.where(z == 0, 0.0, R / s)

    def give(self, x, R):
        """Add R to a `Value`; if x is a constant, to the ledger's bias."""
        if isinstance(x, Value):
            x.relevance += summed_back(R, x.array.shape)
        else:
            self.bias += float(R.sum())

    # -- affine

    def hand(self, rule, matrix: Affine, a, R):
        handed = oracle.distribute(rule, matrix, a, R)
        self.bias += handed.bias
        self.epsilon += handed.epsilon
        self.dropped += handed.dropped
        return handed.relevance

    def affine(self, matrix: Affine, x: Value, shape, rule=None) -> Value:
        def back(R):
            x.relevance += self.hand(rule or self.rule, matrix, x.array, R).reshape(x.array.shape)

        return self.step(matrix(x.array.reshape(-1)).reshape(shape), back)

    def module(self, module, x: Value) -> Value:
        """A convolution or an average pool."""
        with torch.no_grad():
            shape = module(torch.from_numpy(x.array)[None]).shape[1:]
        rule = self.conv_rule if hasattr(module, "weight") else self.rule
        return self.affine(oracle.of_module(module, x.array.shape), x, shape, rule)

    def linear(self, x: Value, weight, bias=None) -> Value:
        """On the last axis: every row is a separate affine operation."""
        weight = numpy(weight)
        bias = np.zeros(len(weight)) if bias is None else numpy(bias)
        matrix = Affine(weight, bias, np.ones_like(weight, bool))

        def back(R):
            for at in np.ndindex(x.array.shape[:-1]):
                x.relevance[at] += self.hand(self.linear_rule, matrix, x.array[at], R[at])

        return self.step(x.array @ weight.T + bias, back)

    def layer_norm(self, x: Value, norm) -> Value:
        rows = np.arange(x.array.size).reshape(-1, x.array.shape[-1])
        weight, bias = (
            p if p is None else np.broadcast_to(numpy(p), x.array.shape) for p in (norm.weight, norm.bias)
        )
        return self.affine(normalised(x.array, rows, weight, bias, norm.eps), x, x.array.shape)

    def mean(self, x: Value, axis, keepdims=False) -> Value:
        z = x.array.mean(axis, keepdims=True)

        def back(R):
            q = self.per_output(R.reshape(z.shape), z)
            x.relevance += times(q, x.array * z.size / x.array.size)

        return self.step(z if keepdims else z.squeeze(axis), back)

    def scale(self, x: Value, c) -> Value:
        """Times a constant."""
        z = x.array * numpy(c)
        return self.step(z, lambda R: self.give(x, times(self.per_output(R, z), z)))

    # -- two operands

    def add(self, x, y, sign=1) -> Value:
        """x + y or x − y of two data operands, or of data and a constant: Epsilon over the two."""
        z = array_of(x) + sign * array_of(y)

        def back(R):
            q = self.per_output(R, z)
            self.give(x, times(q, array_of(x)))
            self.give(y, times(q, sign * array_of(y)))

        return self.step(z, back)

    def scale_shift(self, x: Value, w, b) -> Value:
        """w x + b with constants: Epsilon over the two terms."""
        scaled, shift = x.array * numpy(w), np.broadcast_to(numpy(b), x.array.shape)

        def back(R):
            q = self.per_output(R, scaled + shift)
            self.give(x, times(q, scaled))
            self.give(shift, times(q, shift))

        return self.step(scaled + shift, back)

    def mul(self, x, y, signal: int | None = None) -> Value:
        """Data times data: the signal gets all relevance; None: half each."""

        def back(R):
            for k, part in enumerate((x, y)):
                share = 0.5 if signal is None else float(k == signal)
                if share:
                    part.relevance += summed_back(share * R, part.array.shape)

        return self.step(array_of(x) * array_of(y), back)

    def matmul(self, x: Value, y: Value, shares=(0.5, 0.5)) -> Value:
        z = x.array @ y.array

        def back(R):
            q = self.per_output(R, z)
            for_x = x.array * (shares[0] * q @ y.array.swapaxes(-1, -2))
            for_y = y.array * (x.array.swapaxes(-1, -2) @ (shares[1] * q))
            x.relevance += for_x
            y.relevance += for_y

        return self.step(z, back)

    def softmax(self, x: Value, axis=-1) -> Value:
        p = softmax(x.array, axis)

        def back(R):
            given = np.zeros_like(R)
            if self.attention == "attnlrp":
                given = times(R - p * R.sum(axis, keepdims=True), np.where(np.isinf(x.array), 0.0, x.array))
            x.relevance += given
            self.bias += float(R.sum() - given.sum())

        return self.step(p, back)

    # -- activations and movements

    def act(self, function: Callable, x: Value) -> Value:
        """`function`: a PyTorch activation. Relevance passes unchanged: the derivative is never used."""
        with torch.no_grad():
            out = function(torch.from_numpy(x.array)).numpy()
        return self.step(out, lambda R: self.give(x, R))

    def move(self, function: Callable, x: Value) -> Value:
        """`function`: of numpy, a view or a copy of elements."""
        source = function(np.arange(x.array.size).reshape(x.array.shape))

        def back(R):
            np.add.at(x.relevance.reshape(-1), source, R)

        return self.step(function(x.array), back)

    def join(self, parts: Sequence, axis: int, function=np.concatenate) -> Value:
        """Concatenate (or stack) values and constants."""
        owner = function([np.full(array_of(part).shape, k) for k, part in enumerate(parts)], axis)

        def back(R):
            for k, part in enumerate(parts):
                self.give(part, R[owner == k].reshape(array_of(part).shape))

        return self.step(function([array_of(part) for part in parts], axis), back)

    # -- blocks

    def attend(self, q: Value, k: Value, v: Value, scale=None, mask=None) -> Value:
        """Attention on [..., tokens, width]; `scale`, `mask`: factor and summand of the scores."""
        scores = self.matmul(q, self.move(lambda a: a.swapaxes(-1, -2), k))
        if scale is not None:
            scores = self.scale(scores, scale)
        if mask is not None:
            scores = self.add(scores, mask)
        shares = (0.0, 1.0) if self.attention == "cp_lrp" else (0.5, 0.5)
        return self.matmul(self.softmax(scores), v, shares)

    def lstm(self, xs: Sequence[Value], w_ih, w_hh, b_ih=None, b_hh=None) -> list[Value]:
        """One layer, one direction, from a zero state; the gates are i, f, g, o. Returns [(h, c) per step]."""
        h = c = np.zeros(w_hh.shape[1])
        states = []
        for x in xs:
            if isinstance(h, Value):
                recurrent = self.linear(h, w_hh, b_hh)
            else:
                recurrent = np.zeros(len(w_hh)) if b_hh is None else numpy(b_hh)
            gates = self.add(self.linear(x, w_ih, b_ih), recurrent)
            i, f, g, o = (self.move(lambda a, k=k: np.split(a, 4)[k], gates) for k in range(4))
            i, f, o = (self.act(torch.sigmoid, gate) for gate in (i, f, o))
            kept = self.mul(f, c, signal=1) if isinstance(c, Value) else self.scale(f, c)
            c = self.add(kept, self.mul(i, self.act(torch.tanh, g), signal=1))
            h = self.mul(o, self.act(torch.tanh, c), signal=1)
            states.append((h, c))
        return states
