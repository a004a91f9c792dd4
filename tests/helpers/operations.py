"""Every affine operation that has a rule: its constructor, input shape, matrix, and the rules it is tested with.

The operations of a plain convolutional net are tested with every rule, the others with `SOME`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helpers import oracle
from helpers.rules import CONSTANT_RULES, ELEMENTWISE_RULES, RULES, SUM_RULES


@dataclass(frozen=True)
class Case:
    """An operation, its input shape [C, H, W], the function that makes its arguments from the input, and its matrix."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    matrix: Callable[[nn.Module], oracle.Affine]
    prepare: Callable = lambda x: (x,)  # must not change the order of the elements
    before: Callable = lambda x: x  # applied before and
    after: Callable = lambda z: z  # after the operation: only activations, which do not change relevance
    rules: tuple[str, ...] = tuple(RULES)


class Call(nn.Module):
    """A function as a module, which gives it a path."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, *inputs):
        return self.function(*inputs, **dict(self.named_parameters()))


def plain(make, *shape, view=None, **options):
    """A module whose matrix `oracle.of_module` computes; `view`: its input's shape, if not `shape`."""
    if view is not None:
        options["prepare"] = lambda x: (x.reshape(x.shape[0], *view),)
    return Case(make, shape, lambda op: oracle.of_module(op, view or shape), **options)


def called(make, *shape, connected=None, bias=None, **options):
    """A linear function of x; its matrix is measured with unit vectors."""
    prepare = options.get("prepare", lambda x: (x,))

    def matrix(op):
        return oracle.affine(lambda x: op(*prepare(x)), shape, None if bias is None else bias(op), connected)

    return Case(make, shape, matrix, **options)


def uneven(norm: nn.Module) -> nn.Module:
    """Random statistics and scales, with some negative scales, as after training."""
    with torch.no_grad():
        norm.weight.copy_(torch.randn_like(norm.weight) + 0.1)
        norm.bias.copy_(0.5 * torch.randn_like(norm.bias))
        norm.running_mean.copy_(0.5 * torch.randn_like(norm.running_mean))
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.3)
    return norm


def normed(layer, norm):
    return nn.Sequential(layer, uneven(norm))


def normed_matrix(shape, view=None):
    def matrix(op):
        first = oracle.of_module(op[0], view or shape)
        with torch.no_grad():
            out = op[0](torch.zeros(1, *(view or shape)).double()).shape[1:]
        return oracle.scaled(first, *oracle.batch_norm(op[1], out))

    return matrix


def norm_alone(op):
    scale, shift = oracle.batch_norm(op, (3, 4, 4))
    return oracle.Affine(np.diag(scale), shift, np.eye(len(scale), dtype=bool))


class PaddedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 2, 1, 0)))


def padded_matrix(op):
    def padded(weight):
        return lambda x: F.conv2d(F.pad(x, (0, 2, 1, 0)), weight, stride=2)

    weight = op.conv.weight
    return oracle.affine(
        padded(weight), (3, 5, 5), oracle.spread(op.conv.bias, (4, 2, 3)), padded(torch.ones_like(weight))
    )


def dyadic(module: nn.Module) -> nn.Module:
    """Weights from {-1, -1/2, 0, 1/2, 1}: on whole numbers every sum is exact, and many are exactly 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape) / 2)
    return module


def halves(x):
    return tuple(x.chunk(2, dim=1))


def constant(op, spread_to=(3, 4, 4)):
    return op.c.detach().expand(1, *spread_to).numpy()


OPERATIONS = {
    "linear": plain(lambda: nn.Linear(6, 5), 6, 1, 1, view=(6,)),
    "linear_no_bias": plain(lambda: nn.Linear(6, 5, bias=False), 6, 1, 1, view=(6,)),
    "linear_exact": plain(lambda: dyadic(nn.Linear(6, 40)), 6, 1, 1, view=(6,)),
    "linear_on_tokens": Case(
        lambda: nn.Linear(4, 3),
        (3, 2, 4),
        lambda op: oracle.Affine(
            np.kron(np.eye(6), op.weight.detach().numpy()),
            np.tile(op.bias.detach().numpy(), 6),
            np.kron(np.eye(6), np.ones((3, 4))) != 0,
        ),
    ),
    "linear_batch_norm": Case(
        lambda: normed(nn.Linear(6, 5), nn.BatchNorm1d(5)),
        (6, 1, 1),
        normed_matrix((6, 1, 1), (6,)),
        prepare=lambda x: (x.flatten(1),),
    ),
    "conv2d": plain(lambda: nn.Conv2d(3, 4, 3, padding=1), 3, 4, 4),
    "conv2d_exact": plain(lambda: dyadic(nn.Conv2d(3, 4, 2)), 3, 4, 4),
    "conv2d_no_bias": plain(lambda: nn.Conv2d(3, 4, 3, bias=False), 3, 4, 4),
    "conv2d_rows_left_over": plain(lambda: nn.Conv2d(2, 3, 3, stride=3), 2, 5, 4),
    "conv2d_stride_padding": plain(lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(2, 1)), 2, 5, 4),
    "conv2d_dilation": plain(lambda: nn.Conv2d(2, 3, 2, dilation=3, padding=1), 2, 5, 5),
    "conv2d_groups": plain(lambda: nn.Conv2d(4, 6, 2, groups=2), 4, 3, 3),
    "conv2d_depthwise": plain(lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), 3, 4, 4),
    "conv2d_window_all_padding": plain(lambda: nn.Conv2d(2, 3, 1, padding=1), 2, 3, 3),
    "conv2d_same": plain(lambda: nn.Conv2d(2, 3, (2, 3), padding="same"), 2, 3, 4),
    "conv2d_batch_norm": Case(
        lambda: normed(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (3, 4, 4), normed_matrix((3, 4, 4))
    ),
    "conv2d_no_bias_batch_norm": Case(
        lambda: normed(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)),
        (4, 4, 4),
        normed_matrix((4, 4, 4)),
    ),
    "conv1d": plain(lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), 3, 1, 7, view=(3, 7)),
    "conv3d": plain(
        lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=(0, 1, 0)), 4, 3, 3, view=(2, 2, 3, 3)
    ),
    "conv_transpose1d": plain(lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1), 3, 1, 4, view=(3, 4)),
    "conv_transpose2d": plain(
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), 4, 3, 2
    ),
    "conv_transpose3d": plain(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), 4, 2, 2, view=(2, 2, 2, 2)),
    "pad_then_conv2d": Case(PaddedConv, (3, 5, 5), padded_matrix),
    "batch_norm": Case(lambda: uneven(nn.BatchNorm2d(3)), (3, 4, 4), norm_alone, after=F.relu,
                       rules=tuple(ELEMENTWISE_RULES)),
    # inputs provably >= 0, for which an engine may skip half of a sign-splitting rule
    "linear_after_relu": Case(
        lambda: nn.Linear(6, 5), (6, 1, 1), lambda op: oracle.of_module(op, (6,)),
        prepare=lambda x: (x.flatten(1),), before=F.relu,
    ),
    "conv2d_after_relu": plain(lambda: nn.Conv2d(3, 4, 3, padding=1), 3, 4, 4, before=F.relu),
    "conv2d_batch_norm_after_relu": Case(
        lambda: normed(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (3, 4, 4), normed_matrix((3, 4, 4)),
        before=F.relu,
    ),
    "pad_then_conv2d_after_relu": Case(PaddedConv, (3, 5, 5), padded_matrix, before=F.relu),
    "batch_norm_after_relu": Case(
        lambda: uneven(nn.BatchNorm2d(3)), (3, 4, 4), norm_alone, before=F.relu, after=F.relu
    ),
    "avg_pool2d_after_relu": plain(lambda: nn.AvgPool2d(3, 2, 1), 2, 5, 5, before=F.relu),
    "add_after_relu": called(
        lambda: Call(torch.add), 4, 3, 2, prepare=halves, before=F.relu, rules=tuple(SUM_RULES)
    ),
    "avg_pool2d": plain(lambda: nn.AvgPool2d(2), 2, 4, 5),
    "avg_pool2d_overlap_padding": plain(lambda: nn.AvgPool2d(3, 2, 1), 2, 5, 5),
    "avg_pool2d_padding_not_counted": plain(lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), 2, 5, 5),
    "avg_pool2d_ceil": plain(lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), 2, 4, 6),
    "avg_pool2d_ceil_not_counted": plain(
        lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), 2, 3, 5
    ),
    "avg_pool2d_divisor": plain(lambda: nn.AvgPool2d(2, divisor_override=3), 2, 4, 4),
    "adaptive_avg_pool2d": plain(lambda: nn.AdaptiveAvgPool2d(2), 2, 4, 6),
    "adaptive_avg_pool2d_global": plain(lambda: nn.AdaptiveAvgPool2d(1), 3, 3, 2),
    "adaptive_avg_pool2d_uneven": plain(lambda: nn.AdaptiveAvgPool2d((3, 2)), 2, 5, 3),
    "adaptive_avg_pool2d_upwards": plain(lambda: nn.AdaptiveAvgPool2d(5), 2, 2, 3),
    "mean_positions": called(lambda: Call(lambda x: x.mean((2, 3))), 3, 2, 3),
    "mean_channels": called(lambda: Call(lambda x: x.mean(1)), 3, 2, 3),
    "mean_keepdim": called(lambda: Call(lambda x: x.mean(-1, keepdim=True)), 3, 2, 3),
    "sum_positions": called(lambda: Call(lambda x: x.sum((2, 3))), 3, 2, 3),
    "upsample_nearest": called(lambda: Call(lambda x: F.interpolate(x, scale_factor=2.0)), 2, 2, 3),
    "upsample_bilinear": called(
        lambda: Call(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")), 2, 2, 3
    ),
    "times_constant": called(lambda: Call(lambda x, c: x * c, c=torch.randn(1, 3, 1, 1)), 3, 2, 2,
                             rules=tuple(ELEMENTWISE_RULES)),
    "matmul_constant": called(lambda: Call(lambda x, c: x @ c, c=torch.randn(4, 3)), 2, 3, 4),
    "times_number": called(lambda: Call(lambda x: x * -1.5), 2, 2, 2),
    "divided_by_number": called(lambda: Call(lambda x: x / -1.5), 2, 2, 2),
    "plus_constant": Case(
        lambda: Call(lambda x, c: x + c, c=torch.randn(1, 3, 1, 1)),
        (3, 4, 4),
        lambda op: oracle.Affine(np.eye(48), constant(op).reshape(-1), np.eye(48, dtype=bool)),
        rules=CONSTANT_RULES,
    ),
    "add": called(lambda: Call(torch.add), 4, 3, 2, prepare=halves, rules=tuple(SUM_RULES)),
    "subtract": called(lambda: Call(torch.sub), 4, 3, 2, prepare=halves, rules=tuple(SUM_RULES)),
    "add_scaled": called(lambda: Call(lambda x, y: torch.add(x, y, alpha=2)), 4, 3, 2, prepare=halves,
                         rules=tuple(SUM_RULES)),
    "add_broadcast": called(
        lambda: Call(lambda x, y: x + y), 4, 3, 1, prepare=lambda x: (x[:, :3, :, :], x[:, 3:, :, :]),
        rules=tuple(SUM_RULES),
    ),
    "subtract_exact": called(lambda: Call(torch.sub), 4, 3, 2, prepare=halves, rules=tuple(SUM_RULES)),
    "mean_exact": called(lambda: Call(lambda x: x.mean((2, 3))), 6, 2, 2),
}  # fmt: skip
