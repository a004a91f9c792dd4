"""Every operation that is no layer of `layers.py`, in the smallest function that calls it, and what LRP-0 makes of it.

As `layers.py`: run end to end by `tests/engine/test_known_operations.py`, and the source of `lrp rules --known`.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from helpers.layers import SPACE, Layer, normalised
from helpers.operations import Call
from helpers.recurrent import InLoops, unrolled

SHAPE = (4, 4, 6)
aten = torch.ops.aten


def itself(function, **parameters):
    """Piecewise linear: gradient × input is LRP-0."""
    return Layer(lambda: Call(function, **{k: torch.randn(s) for k, s in parameters.items()}), SHAPE)


def passes(function):
    """An activation: relevance passes element by element, as through x · c with c = f(x) / x held constant."""

    def made():
        return function() if isinstance(function, type) else Call(function)

    return Layer(made, SHAPE, lambda op, x: x * (op(x) / x).detach())


def held(function, **parameters):
    """A function of x and of x again, which LRP treats as a constant: gates, divisors, attention."""

    def twice(x, **own):
        return function(x, x, **own)

    def twin(op, x):
        return function(x, x.detach(), **dict(op.named_parameters()))

    return Layer(lambda: Call(twice, **{k: torch.randn(s) for k, s in parameters.items()}), SHAPE, twin)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


MASK = (torch.arange(24) * 7 % 5 < 3).view(4, 6)

ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "prelu": nn.PReLU, "elu": F.elu, "selu": F.selu,
    "celu": F.celu, "gelu": F.gelu, "silu": F.silu, "mish": F.mish, "hardswish": F.hardswish,
    "hardtanh": F.hardtanh, "hardshrink": lambda x: F.hardshrink(x, 0.1), "softshrink": lambda x: F.softshrink(x, 0.1),
    "log_sigmoid": F.logsigmoid, "softplus": F.softplus, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh, "erf": torch.erf, "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1,
    "abs": torch.abs, "square": torch.square, "sin": torch.sin, "cos": torch.cos, "atan": torch.atan,
    "reciprocal": torch.reciprocal, "clamp": lambda x: x.clamp(-0.2, 0.3), "clamp_min": lambda x: torch.clamp_min(x, -0.1),
    "clamp_max": lambda x: torch.clamp_max(x, 0.2), "threshold": lambda x: F.threshold(x, 0.1, -0.3),
    "log": lambda x: torch.log(x.abs()), "log1p": lambda x: torch.log1p(x.abs()),
    "log2": lambda x: torch.log2(x.abs()), "log10": lambda x: torch.log10(x.abs()),
    "sqrt": lambda x: torch.sqrt(x.abs()), "rsqrt": lambda x: torch.rsqrt(x.abs()),
    "rrelu": lambda x: F.rrelu(x, training=False),
    "rrelu_lowered": lambda x: aten.rrelu_with_noise_functional(x, torch.zeros_like(x), 0.1, 0.3, False)[0], "pow": lambda x: x**3,
    "maximum": lambda x: torch.maximum(x, x.new_full((6,), 0.1)),
    "minimum": lambda x: torch.minimum(x, x.new_full((6,), 0.1)),
    "fmod": lambda x: torch.fmod(x, 0.7), "remainder": lambda x: torch.remainder(x, 0.7),
    "atan2": lambda x: torch.atan2(x, x.new_full((6,), 0.7)), "constant_over": lambda x: x.new_full((6,), 1.5) / x,
    "true_divide_over": lambda x: torch.true_divide(x.new_full((6,), 0.7), x),
}  # fmt: skip

PRODUCTS = {
    "gate": held(lambda x, h: x * torch.sigmoid(h)),
    "gate_pooled": held(lambda x, h: x * torch.sigmoid(h.mean((2, 3), keepdim=True))),
    "quotient": held(lambda x, h: x / (h.square() + 1)),
    "times_sign": held(lambda x, h: x * h.sign()),
    "times_comparison": held(lambda x, h: x * (h > h.flip(1))),
    "plus_round": held(lambda x, h: x + h.round()),
    "minus_floor": held(lambda x, h: x - torch.floor(h * 3) / 3),
    "over_trunc": held(lambda x, h: x / (h.trunc().abs() + 1)),
    "times_one_hot": held(lambda x, h: x * F.one_hot(h.argmax(1), 4).movedim(-1, 1)),
    "times_heaviside": held(lambda x, h: x * torch.heaviside(h, h.new_zeros(()))),
    "plus_floor_divide": held(lambda x, h: x + torch.floor_divide(h, 0.3)),
    "plus_rounded_quotient": held(lambda x, h: x + torch.div(h, 0.3, rounding_mode="trunc")),
    "glu": held(lambda x, h: x[:, :2] * torch.sigmoid(h[:, 2:])),
    "glu_fused": Layer(lambda: nn.GLU(1), SHAPE, lambda op, x: x[:, :2] * torch.sigmoid(x[:, 2:].detach())),
    "addcmul": held(lambda x, h: torch.addcmul(x, x.flip(1), torch.sigmoid(h), value=2)),
    "addcdiv": held(lambda x, h: torch.addcdiv(x, x.flip(1), h.abs() + 1, value=2)),
    "vector_norm": Layer(
        lambda: Call(lambda x: x.norm(dim=1)), SHAPE,
        lambda op, x: (x * (x / x.norm(dim=1, keepdim=True)).detach()).sum(1),
    ),
    "softmax": held(lambda x, h: x + h.softmax(1)),
    "softmax_lowered": held(lambda x, h: x + aten._softmax(h, 1, False)),
    "softmax_safe": held(lambda x, h: x + aten._safe_softmax(h, 1)),
    "layer_norm_lowered": Layer(
        lambda: Call(lambda x: aten.native_layer_norm(x, [6], None, None, 1e-3)[0]), SHAPE,
        lambda op, x: normalised(x, [3], 1e-3),
    ),
    "group_norm_lowered": Layer(
        lambda: Call(lambda x: aten.native_group_norm(x, None, None, x.shape[0], 4, 24, 1, 1e-3)[0]), SHAPE,
        lambda op, x: normalised(x, [1, 2, 3], 1e-3),
    ),
    "attention": held(lambda x, h: (tokens(h) @ tokens(h).mT).softmax(-1) @ tokens(x)),
    "attention_bmm": held(
        lambda x, h: torch.bmm(torch.bmm(tokens(h), tokens(h).transpose(1, 2)).softmax(-1), tokens(x))
    ),
    "attention_einsum": held(
        lambda x, h: torch.einsum("nqk,nkc->nqc", torch.einsum("nqc,nkc->nqk", tokens(h), tokens(h)).softmax(-1), tokens(x))
    ),
    "attention_fused": held(lambda x, h: F.scaled_dot_product_attention(tokens(h), tokens(h), tokens(x))),
}  # fmt: skip
LINEAR = {
    "linear": itself(lambda x, w, b: F.linear(x, w, b), w=(3, 6), b=(3,)),
    "matmul_constant": itself(lambda x, w: x @ w, w=(6, 3)),
    "mm_constant": itself(lambda x, w: torch.mm(x.flatten(1), w), w=(96, 3)),
    "bmm_constant": itself(lambda x, w: torch.bmm(x.flatten(2), w.expand(x.shape[0], -1, -1)), w=(24, 3)),
    "mv_constant": itself(lambda x, w: torch.mv(x.flatten(1), w).unsqueeze(1), w=(96,)),
    "addmm": itself(lambda x, w, b: torch.addmm(b, x.flatten(1), w), w=(96, 3), b=(3,)),
    "baddbmm": itself(
        lambda x, w, b: torch.baddbmm(b, x.flatten(2), w.expand(x.shape[0], -1, -1)), w=(24, 3), b=(1, 1, 3)
    ),
    "einsum_constant": itself(lambda x, w: torch.einsum("nchw,cd->ndhw", x, w), w=(4, 3)),
    "einsum_permute": itself(lambda x: torch.einsum("nchw->nwch", x)),
    "times_constant": itself(lambda x, w: x * w, w=(4, 1, 1)),
    "over_constant": itself(lambda x, w: x / w, w=(4, 1, 1)),
    "negative": itself(lambda x: -x),
    "plus": itself(lambda x, w: x + w + x.flip(3), w=(4, 1, 1)),
    "minus": itself(lambda x, w: x.flip(2) - x - w, w=(4, 1, 1)),
    "minus_reversed": itself(lambda x: torch.rsub(x, x.flip(3), alpha=2)),
    "lerp": itself(lambda x: torch.lerp(x, x.flip(3), 0.3)),
    "mean": itself(lambda x: x.mean((2, 3))),
    "sum": itself(lambda x: x.sum(1)),
    "cumsum": itself(lambda x: x.cumsum(2)),
    "fold": itself(lambda x: F.fold(x.flatten(2), (5, 7), kernel_size=(2, 2)).flatten(2)),
    "amax": itself(lambda x: x.amax((2, 3))),
    "max": itself(lambda x: x.max(1).values),
    "padded_conv": itself(lambda x, w, b: F.conv2d(F.pad(x, (0, 2, 1, 0)), w, b), w=(3, 4, 2, 2), b=(3,)),
}

MOVEMENTS = {
    "reshape": lambda x: x.reshape(x.shape[0], -1, 4), "view": lambda x: x.view(x.shape[0], 8, -1),
    "view_as": lambda x: x.flatten(2).view_as(x), "reshape_as": lambda x: x.flatten(2).reshape_as(x),
    "unsqueeze": lambda x: x.unsqueeze(2), "squeeze": lambda x: x[:, :1].squeeze(1), "flatten": lambda x: x.flatten(2),
    "unflatten": lambda x: x.unflatten(1, (2, -1)), "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 3), "swapaxes": lambda x: x.swapaxes(2, 3), "swapdims": lambda x: x.swapdims(2, 3),
    "t": lambda x: x.flatten(1).t().t(), "numpy_T": lambda x: x.flatten(1).T.T,
    "matrix_H": lambda x: x.flatten(1).H.H, "mT": lambda x: x.mT, "mH": lambda x: x.mH, "adjoint": lambda x: x.adjoint(),
    "movedim": lambda x: x.movedim(1, -1), "moveaxis": lambda x: x.moveaxis(1, -1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2), "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2), "roll": lambda x: x.roll((1, -2), dims=(2, 3)),
    "flip": lambda x: x.flip(3), "fliplr": lambda x: x.fliplr(), "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "flipud": lambda x: x.transpose(0, 1).flipud().transpose(0, 1),
    "slice": lambda x: x[:, 1:, ::2, :-1], "narrow": lambda x: x.narrow(2, 1, 2), "select": lambda x: x.select(3, -2),
    "split": lambda x: torch.cat(x.split(2, dim=1)[::-1], dim=1), "chunk": lambda x: x.chunk(2, dim=3)[1],
    "split_with_sizes": lambda x: torch.cat(x.split([1, 3], dim=1)[::-1], dim=1),
    "unbind": lambda x: torch.cat(x.unbind(1)[::-1], dim=1), "tensor_split": lambda x: x.tensor_split(3, dim=2)[1],
    "unsafe_chunk": lambda x: x.unsafe_chunk(2, dim=3)[1], "unsafe_split": lambda x: x.unsafe_split(2, dim=1)[0],
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3), "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x), "broadcast_to": lambda x: x[:, :1].broadcast_to(x.shape),
    "repeat": lambda x: x.repeat(1, 2, 1, 3), "tile": lambda x: torch.tile(x, (2, 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1), "im2col": lambda x: F.unfold(x, 2, padding=1),
    "cat": lambda x: torch.cat([x, x[:, :1]], 1), "concat": lambda x: torch.concat([x, x], 2),
    "concatenate": lambda x: torch.concatenate([x, x], 3), "stack": lambda x: torch.stack([x, x.flip(1)], 2),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :, :2].flip(3), dim=2, start=1, end=3),
    "select_scatter": lambda x: x.select_scatter(x[:, 0], dim=1, index=2),
    "fill": lambda x: torch.cat([x, aten.fill(x, 2.0)], 1),
    "zero": lambda x: torch.cat([x, aten.zero(x)], 1),
    "where": lambda x: torch.where(MASK, x, 0.5), "masked_fill": lambda x: x.masked_fill(MASK, 2.5),
    "tril": lambda x: x.tril(), "triu": lambda x: x.triu(1), "pad_channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "constant_pad_nd": lambda x: aten.constant_pad_nd(x, [1, 2], 0.5),
    "index": lambda x: x[:, [0, 2, 2, 1]], "unsafe_index": lambda x: aten._unsafe_index(x, [None, torch.tensor([0, 2])]),
    "index_select": lambda x: x.index_select(2, torch.tensor([3, 0, 3])), "unfold": lambda x: x.unfold(3, 3, 2),
    "ravel": lambda x: torch.stack([x.ravel()]).view(x.shape), "unsafe_view": lambda x: aten._unsafe_view(x, [x.shape[0], 4, 24]),
}  # fmt: skip


ORDER = torch.tensor([2, 0, 3, 1])
PLACES = torch.tensor([0, 2, 2, 1, 3, 0])
GRID = F.affine_grid(torch.tensor([[[0.8, 0.1, 0.05], [-0.1, 0.9, 0.1]]]), [1, 4, 4, 6], align_corners=False)

# Elements that are chosen by the image itself, or written to places: gradient × input where the choice is a constant.
SELECTIONS = {
    "sort": lambda x: x.sort(1).values, "topk": lambda x: x.topk(2, 1).values,
    "kthvalue": lambda x: x.kthvalue(2, 3).values, "median": lambda x: x.median(1).values,
    "median_kept": lambda x: x.median(1, keepdim=True).values, "cummax": lambda x: x.cummax(3).values,
    "cummin": lambda x: x.cummin(2).values, "min": lambda x: x.min(1).values, "amin": lambda x: x.amin((2, 3)),
    "gather": lambda x: x.gather(1, x.argsort(1)[:, :2]), "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
    "take_along_dim_broadcast": lambda x: torch.take_along_dim(x, x[:, :1].argsort(3), 3),
    "index_computed": lambda x: x[torch.arange(x.shape[0]), x.mean((2, 3)).argmax(1)],
    "where_computed": lambda x: torch.where(x > x.flip(1), x, x.flip(2)),
    "masked_fill_computed": lambda x: x.masked_fill(x > x.flip(1), 0.5),
    "scatter": lambda x: x.scatter(3, PLACES[:2].expand(x.shape[0], 4, 4, 2), x[..., 2:4]),
    "scatter_value": lambda x: x.scatter(3, PLACES[:2].expand(x.shape[0], 4, 4, 2), 0.5),
    "scatter_add": lambda x: x.scatter_add(3, PLACES.expand(x.shape[0], 4, 4, 6), x.flip(1)),
    "index_add": lambda x: torch.zeros_like(x).index_add(3, PLACES, x, alpha=2),
    "index_copy": lambda x: x.index_copy(1, ORDER[:2], x[:, 2:]),
    "index_put": lambda x: aten.index_put(x, [None, ORDER[:2]], x[:, 2:]),
    "max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "grid_sampler": lambda x: F.grid_sample(x, GRID.to(x).expand(x.shape[0], -1, -1, -1), align_corners=False),
    "grid_sampler_nearest": lambda x: F.grid_sample(
        x, GRID.to(x).expand(x.shape[0], -1, -1, -1), mode="nearest", padding_mode="border", align_corners=True
    ),
    "maximum_of_two": lambda x: torch.maximum(x, x.flip(1)), "fmax": lambda x: torch.fmax(x, x.flip(1)),
    "minimum_of_two": lambda x: torch.minimum(x, x.flip(1)), "fmin": lambda x: torch.fmin(x, x.flip(1)),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:, :1])[1],
}  # fmt: skip


def square(x, c=0.0):
    """(x - c)², of which one factor is a constant: a power is an activation."""
    return (x - c) * (x - c).detach()


def variance(op, x):
    return square(x, x.mean((2, 3), keepdim=True)).sum((2, 3)) / 23


def deviation(op, x):
    v = variance(op, x)
    return v * (v.rsqrt()).detach()


DISTANCES = {
    "cosine_similarity": Layer(
        lambda: Call(lambda x, c: F.cosine_similarity(x, c, dim=1), c=torch.randn(4, 1, 1)), SHAPE,
        lambda op, x: (x / x.norm(dim=1, keepdim=True).detach() * (op.c / op.c.norm(dim=0))).sum(1),
    ),
    "pairwise_distance": itself(lambda x, c: F.pairwise_distance(x, c.expand_as(x)), c=(6,)),
    "l1_loss": itself(lambda x, c: F.l1_loss(x, c.expand_as(x), reduction="none"), c=(6,)),
    "mse_loss": Layer(
        lambda: Call(lambda x, c: F.mse_loss(x, c.expand_as(x), reduction="none"), c=torch.randn(6)), SHAPE,
        lambda op, x: square(x, op.c),
    ),
    "bilinear": itself(lambda x, y, a: F.bilinear(x, y.expand_as(x), a), y=(6,), a=(3, 6, 6)),
    "var": Layer(lambda: Call(lambda x: x.var((2, 3))), SHAPE, variance),
    "var_mean": Layer(lambda: Call(lambda x: torch.var_mean(x, (2, 3))[0]), SHAPE, variance),
    "std": Layer(lambda: Call(lambda x: x.std((2, 3))), SHAPE, deviation),
    "std_mean": Layer(lambda: Call(lambda x: torch.std_mean(x, (2, 3))[0]), SHAPE, deviation),
    "vector_norm_1": itself(lambda x: torch.linalg.vector_norm(x, 1, dim=1)),
    "vector_norm_largest": itself(lambda x: torch.linalg.vector_norm(x, torch.inf, dim=1)),
    "logsumexp": itself(lambda x: x.logsumexp((1, 2))),
    "log_softmax": itself(lambda x: x.log_softmax(1)),
    "log_softmax_lowered": itself(lambda x: aten._log_softmax(x, 1, False)),
}  # fmt: skip


class Rows(nn.Module):
    """The last output of a recurrent layer, or of its cell in a loop, over the rows; gates are constants."""

    def __init__(self, made, in_a_loop=False, **options):
        super().__init__()
        layer = made(6, 3, batch_first=True, **options)
        self.inner = InLoops(layer) if in_a_loop else layer

    def forward(self, x):
        made = self.inner(x.mean(1))
        return (made[0] if isinstance(made, tuple) else made)[:, -1]

    def twin(self, x):
        rows = x.mean(1)
        if isinstance(self.inner, InLoops):
            return self.inner.held(rows)[:, -1]
        return unrolled(self.inner, rows, held=True)[0][:, -1]


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}


FUNCTIONS = {
    **{name: passes(function) for name, function in ACTIVATIONS.items()},
    **PRODUCTS,
    **LINEAR,
    **{name: itself(function) for name, function in (MOVEMENTS | SELECTIONS).items()},
    **DISTANCES,
    "max_unpool3d": Layer(
        lambda: Call(lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2)), (2, 4, 4, 4)
    ),
    **{
        f"{kind}_pad{d}d": Layer(
            lambda kind=kind, d=d: Call(
                lambda x: getattr(aten, f"{kind}_pad{d}d")(x, [1, 2, 0, 1, 2, 0][: 2 * d])
            ),
            (4, *SPACE[d]),
        )
        for kind in ("reflection", "replication")
        for d in (1, 2, 3)
    },
    "copy": Layer(
        lambda: Call(lambda x: torch.cat([x, aten.copy(x, x.flip(1))], 1)),
        SHAPE,
        lambda op, x: torch.cat([x, x.flip(1)], 1),
    ),
    **{
        name + "_cell" * in_a_loop: Layer(partial(Rows, made, in_a_loop, **options), SHAPE, Rows.twin)
        for name, (made, options) in RECURRENT.items()
        for in_a_loop in (False, True)
    },
}
