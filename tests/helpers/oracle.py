"""A slow second implementation of docs/rules.md: dense matrices, one output at a time, float64, no code of `lrp`.

The matrix of an affine operation is computed from unit vectors. A rule defines, for ONE output, how its relevance is
split into parts, and for each part the terms of the denominator. Everything else (division, stabiliser, the ledger's
four terms) is in `distribute`, in the notation of docs/rules.md:

    in = out + bias + epsilon + dropped,   factor = R / s(z),   z = 0 drops R

Letters: a input, w weights, b bias, z output, s stabilised z, R relevance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)  # the tensors are small: more threads would only cost time


@dataclass
class Affine:
    """z = weight @ a + bias; `tap` is True where an input is connected to an output (its weight may be 0)."""

    weight: np.ndarray  # [K, n]
    bias: np.ndarray  # [K]
    tap: np.ndarray  # [K, n] bool

    def __call__(self, a):
        return self.weight @ a + self.bias


@dataclass
class Handed:
    """The relevance of one image after one operation, with the ledger's terms."""

    relevance: np.ndarray  # [n]
    bias: float = 0.0
    epsilon: float = 0.0
    dropped: float = 0.0


# ------------------------------------------------------------------------------------------------ matrices


def dense(linear: Callable, shape: Sequence[int]) -> np.ndarray:
    """The matrix [K, n] of a linear map of [N, *shape]: column j is the image of the j-th unit vector."""
    n = int(np.prod(shape))
    units = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return linear(units).reshape(n, -1).numpy().T.copy()


def affine(linear: Callable, shape: Sequence[int], bias=None, ones: Callable | None = None) -> Affine:
    """`linear`: the operation without its bias; `ones`: the same with every weight 1 (default: where w != 0).

    `bias`: one value per output, already repeated over the output's positions.
    """
    with torch.no_grad():
        weight = dense(linear, shape)
        tap = (weight if ones is None else dense(ones, shape)) != 0
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, dtype=np.float64).reshape(-1)
    return Affine(weight, bias, tap)


def spread(bias, out_shape: Sequence[int]) -> np.ndarray:
    """A bias per channel, [C], repeated to [C, *positions]."""
    bias = bias.detach().numpy().reshape(-1, *[1] * (len(out_shape) - 1))
    return np.broadcast_to(bias, out_shape).reshape(-1).copy()


def of_module(module: nn.Module, shape: Sequence[int]) -> Affine:
    """The matrix of a Linear, a convolution (transposed too) or an average pool at input [*shape]."""
    if isinstance(module, nn.Linear):
        bias = None if module.bias is None else module.bias.detach().numpy()
        weight = module.weight.detach().numpy().copy()
        return Affine(
            weight, np.zeros(len(weight)) if bias is None else bias.copy(), np.ones_like(weight, bool)
        )
    if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        return affine(module, shape)
    call = {
        nn.Conv1d: F.conv1d,
        nn.Conv2d: F.conv2d,
        nn.Conv3d: F.conv3d,
        nn.ConvTranspose1d: F.conv_transpose1d,
        nn.ConvTranspose2d: F.conv_transpose2d,
        nn.ConvTranspose3d: F.conv_transpose3d,
    }[type(module)]
    options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
    if hasattr(module, "output_padding") and "transpose" in call.__name__:
        options["output_padding"] = module.output_padding
    with torch.no_grad():
        out_shape = call(torch.zeros(1, *shape, dtype=torch.float64), module.weight, **options).shape[1:]
    bias = None if module.bias is None else spread(module.bias, out_shape)
    return affine(
        lambda x: call(x, module.weight, **options),
        shape,
        bias,
        lambda x: call(x, torch.ones_like(module.weight), **options),
    )


def scaled(operation: Affine, scale: np.ndarray, shift: np.ndarray) -> Affine:
    """scale * (w a + b) + shift, per output: an operation followed by a batch norm."""
    return Affine(scale[:, None] * operation.weight, scale * operation.bias + shift, operation.tap)


def batch_norm(norm: nn.BatchNorm2d, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) per element of [C, H, W], from the definition with the running statistics."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return spread(scale, shape), spread(shift, shape)


# --------------------------------------------------------------------------------------------------- rules
# rule(a, w, b, tap) for one output -> list of (factor of R, terms of the inputs, term of the bias)


def pos(v):
    return np.maximum(v, 0.0)


def neg(v):
    return np.minimum(v, 0.0)


@dataclass(frozen=True)
class Rule:
    parts: Callable
    epsilon: float = 0.0
    unsigned: bool = False  # s(z) = z + epsilon even for z < 0 (kaifishr)
    relative: bool = False  # epsilon is in units of the layer's RMS
    options: dict = field(default_factory=dict, hash=False)


def kept(b, bias):
    if bias not in ("absorb", "ignore", "full"):
        raise ValueError(bias)
    return 0.0 if bias == "ignore" else b


def epsilon(epsilon=1e-6, bias="absorb", relative=False):
    return Rule(lambda a, w, b, tap: [(1.0, a * w, kept(b, bias))], epsilon, relative=relative)


def zero(bias="absorb"):
    return epsilon(0.0, bias)


def gamma(gamma=0.25, epsilon=1e-6, bias="absorb"):
    def parts(a, w, b, tap):
        b = kept(b, bias)
        z = (a * w).sum() + b
        up, down = w + gamma * pos(w), w + gamma * neg(w)
        if z > 0:
            return [(1.0, pos(a) * up + neg(a) * down, b + gamma * pos(b))]
        if z < 0:
            return [(1.0, pos(a) * down + neg(a) * up, b + gamma * neg(b))]
        return [(1.0, 0.0 * a, 0.0)]

    return Rule(parts, epsilon)


def alpha_beta(alpha=2.0, beta=1.0, epsilon=1e-6, bias="absorb"):
    def parts(a, w, b, tap):
        b = kept(b, bias)
        b_plus, b_minus = (b, b) if bias == "full" else (pos(b), neg(b))
        plus = pos(a) * pos(w) + neg(a) * neg(w)
        minus = pos(a) * neg(w) + neg(a) * pos(w)
        return [(alpha, plus, b_plus), (-beta, minus, b_minus)]

    return Rule(parts, epsilon)


def z_plus(epsilon=1e-6, bias="absorb", unsigned=False):
    def parts(a, w, b, tap):
        return [(1.0, pos(a) * pos(w) + neg(a) * neg(w), pos(kept(b, bias)))]

    return Rule(parts, epsilon, unsigned)


def z_box(low, high, epsilon=1e-6):
    """`low`, `high`: numbers, or one value per input [n]."""
    return Rule(lambda a, w, b, tap: [(1.0, a * w - low * pos(w) - high * neg(w), 0.0)], epsilon)


def w_square(epsilon=1e-6):
    return Rule(lambda a, w, b, tap: [(1.0, w**2, 0.0)], epsilon)


def flat(epsilon=1e-6):
    return Rule(lambda a, w, b, tap: [(1.0, tap.astype(np.float64), 0.0)], epsilon)


def magnitude(epsilon=1e-6):
    """For x + y and x - y: shares proportional to |x| and |y|."""
    return Rule(lambda a, w, b, tap: [(1.0, np.abs(a * w), abs(b))], epsilon)


def proportional(epsilon=1e-6, unsigned=False):
    """For a max pool treated as an average."""
    return Rule(lambda a, w, b, tap: [(1.0, a * w, 0.0)], epsilon, unsigned)


def distribute(rule: Rule, operation: Affine, a: np.ndarray, R: np.ndarray) -> Handed:
    """Distribute `R` [K] of one image to the inputs `a` [n] of one affine operation."""
    a, R = np.asarray(a, np.float64).reshape(-1), np.asarray(R, np.float64).reshape(-1)
    handed = Handed(np.zeros(len(a)))
    eps = rule.epsilon
    if rule.relative:
        z = [
            sum(terms.sum() + bias for _, terms, bias in rule.parts(a, w, b, tap))
            for w, b, tap in zip(operation.weight, operation.bias, operation.tap, strict=True)
        ]
        eps = rule.epsilon * np.sqrt(np.mean(np.square(z)))
    for w, b, tap, r in zip(operation.weight, operation.bias, operation.tap, R, strict=True):
        for factor, terms, bias in rule.parts(a, w, b, tap):
            z = terms.sum() + bias
            if z == 0:
                handed.dropped += factor * r
                continue
            s = z + eps * (1.0 if z >= 0 or rule.unsigned else -1.0)
            handed.relevance += factor * r * terms / s
            handed.bias += factor * r * bias / s
            handed.epsilon += factor * r * (s - z) / s
    return handed


# ------------------------------------------------------------------------------------------------ max pool


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def windows(pool: nn.MaxPool2d, shape: Sequence[int]):
    """For each output of a max pool over [C, H, W], in order: the flat indices of its inputs, row by row."""
    C, H, W = shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = map(
        pair, (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    rows, columns = pool(torch.zeros(1, C, H, W, dtype=torch.float64)).shape[-2:]
    for c in range(C):
        for i in range(rows):
            for j in range(columns):
                yield [
                    (c * H + y) * W + x
                    for y in range(i * sh - ph, i * sh - ph + dh * kh, dh)
                    for x in range(j * sw - pw, j * sw - pw + dw * kw, dw)
                    if 0 <= y < H and 0 <= x < W
                ]


def winner(pool: nn.MaxPool2d, a, shape, R) -> Handed:
    """The largest input of a window gets all of its relevance; of equal ones the first."""
    a, R = np.asarray(a).reshape(-1), np.asarray(R).reshape(-1)
    handed = Handed(np.zeros(len(a)))
    for inputs, r in zip(windows(pool, shape), R, strict=True):
        best = inputs[0]
        for j in inputs:
            if a[j] > a[best]:
                best = j
        handed.relevance[best] += r
    return handed


def pool_as_average(pool: nn.MaxPool2d, shape) -> Affine:
    """A max pool as an average: its windows with weight 1 / (inputs in the window)."""
    inputs = list(windows(pool, shape))
    weight = np.zeros((len(inputs), int(np.prod(shape))))
    for row, js in zip(weight, inputs, strict=True):
        row[js] = 1.0 / len(js)
    return Affine(weight, np.zeros(len(inputs)), weight != 0)


# ------------------------------------------------------------------------------------------- whole programs


def cut(R: np.ndarray, top_k: float) -> tuple[np.ndarray, float]:
    """Keep only the max(1, int(top_k n)) largest elements (signed); returns them and the sum of the others."""
    if not top_k:
        return R, 0.0
    k = max(1, int(top_k * R.size))
    order = sorted(range(R.size), key=lambda i: -R[i])
    kept_ = np.zeros_like(R)
    kept_[order[:k]] = R[order[:k]]
    return kept_, float(sum(R[i] for i in order[k:]))


def chain(
    modules: Sequence[nn.Module], x: torch.Tensor, start, rule_of: Callable, top_k=0.0, first_input=None
):
    """Explain one image [C, H, W] by a chain of modules; `rule_of(index, module)` -> Rule or "winner".

    `start`: function of the logits [K] -> relevance [K]. `first_input`: replaces the input of the first affine
    operation. `top_k` is applied at the output of each linear, conv and pool.
    Returns (relevance [n], totals, list of Handed per module from input to output).
    """
    values = [x.double()]
    with torch.no_grad():
        for module in modules:
            values.append(module(values[-1][None])[0])
    R = np.asarray(start(values[-1].numpy()), np.float64).reshape(-1)
    totals = {"start": float(R.sum()), "bias": 0.0, "epsilon": 0.0, "dropped": 0.0}
    handed_by = []
    heavy = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    first = next(i for i, module in enumerate(modules) if isinstance(module, nn.Conv2d | nn.Linear))
    for i in reversed(range(len(modules))):
        module, a = modules[i], values[i]
        if not isinstance(
            module, heavy
        ):  # ReLU, dropout, flatten: relevance is unchanged, or moves with its element
            handed_by.append(Handed(R))
            continue
        R, lost = cut(R, top_k)
        rule = rule_of(i, module)
        shape = tuple(a.shape)
        a = a.numpy().reshape(-1)
        if i == first and first_input is not None:
            a = np.full_like(a, first_input)
        if rule == "winner":
            handed = winner(module, a, shape, R)
        elif isinstance(module, nn.MaxPool2d):
            handed = distribute(rule, of_module(nn.AvgPool2d(2, 2), shape), a, R)
        else:
            handed = distribute(rule, of_module(module, shape), a, R)
        handed.dropped += lost
        handed_by.append(handed)
        R = handed.relevance
        for name in ("bias", "epsilon", "dropped"):
            totals[name] += getattr(handed, name)
    totals["input"] = float(R.sum())
    return R, totals, handed_by[::-1]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()
