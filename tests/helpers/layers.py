"""Layers in one, two and three dimensions, with every option: what they are made of, and what LRP-0 makes of them.

One table: the tests of `tests/engine/test_known_operations.py` run each of its lines end to end, and
`tools/known_operations.py` writes which operations these lines hold, for `lrp rules --known`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layer:
    """make: the layer; shape: of its input, [C, *space]; twin: (layer, x) -> the same output, written so that
    gradient × input is LRP-0: scales computed from the data are detached. None: the layer itself, piecewise linear.

    matrix: whether the layer alone is affine, and its rules are compared with a dense matrix.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    twin: Callable | None = None
    matrix: bool = False

    @property
    def dimensions(self) -> int:
        return len(self.shape) - 1


SPACE = {1: (7,), 2: (5, 6), 3: (3, 5, 4)}
CHANNELS = 4
FOR_ANY = (1, 2, 3)


def table(lines, dimensions=FOR_ANY, twin=None, matrix=False):
    """name -> (class's name with `{d}` for the dimension, arguments, options); one entry for each dimension."""
    made = {}
    for d in dimensions:
        for name, (kind, arguments, options) in lines.items():
            layer = getattr(nn, kind.format(d=d))

            def make(layer=layer, arguments=arguments, options=options, d=d):
                filled = [a(d) if callable(a) else a for a in arguments]
                return layer(*filled, **{k: v(d) if callable(v) else v for k, v in options.items()})

            made[f"{name}_{d}d"] = Layer(make, (CHANNELS, *SPACE[d]), twin, matrix)
    return made


def line(kind, *arguments, **options):
    return kind, arguments, options


def per_side(*values):
    """One value per spatial dimension: the last d of three."""
    return lambda d: tuple(values[-d:])


def pads(*values):
    """(before, after) for each spatial dimension, beginning with the last."""
    return lambda d: tuple(values[: 2 * d])


# ------------------------------------------------------------------------------------------------- pools

MAX_POOLS = table({
    "max_pool": line("MaxPool{d}d", 2),
    "max_pool_overlap": line("MaxPool{d}d", 3, 2, 1),
    "max_pool_dilated": line("MaxPool{d}d", 2, 1, dilation=2),
    "max_pool_dilated_padded": line("MaxPool{d}d", 2, 2, 1, dilation=2),
    "max_pool_ceil": line("MaxPool{d}d", 2, 2, ceil_mode=True),
    "max_pool_ceil_padded": line("MaxPool{d}d", 3, 2, 1, ceil_mode=True),
    "max_pool_sides": line("MaxPool{d}d", per_side(1, 3, 2), stride=per_side(1, 1, 2)),
    "adaptive_max_pool": line("AdaptiveMaxPool{d}d", 3),
    "adaptive_max_pool_global": line("AdaptiveMaxPool{d}d", 1),
    "adaptive_max_pool_upwards": line("AdaptiveMaxPool{d}d", 8),
}) | table({"adaptive_max_pool_one_side": line("AdaptiveMaxPool{d}d", per_side(None, 2, None))}, (2, 3))  # fmt: skip


class FixedFractions(nn.Module):
    """A fractional max pool whose windows do not change from call to call."""

    def __init__(self, d):
        super().__init__()
        self.pool = F.fractional_max_pool2d if d == 2 else F.fractional_max_pool3d
        self.size = (2, 3, 2)[-d:]
        self.register_buffer("samples", torch.rand(1, CHANNELS, d))

    def forward(self, x):
        samples = self.samples.expand(x.shape[0], -1, -1)
        return self.pool(x, (2,) * len(self.size), output_size=self.size, _random_samples=samples)


FRACTIONAL = {
    f"fractional_max_pool_{d}d": Layer(lambda d=d: FixedFractions(d), (CHANNELS, *[6] * d)) for d in (2, 3)
}

AVERAGE_POOLS = table({
    "avg_pool": line("AvgPool{d}d", 2),
    "avg_pool_overlap": line("AvgPool{d}d", 3, 2, 1),
    "avg_pool_not_counted": line("AvgPool{d}d", 3, 2, 1, count_include_pad=False),
    "avg_pool_ceil": line("AvgPool{d}d", 2, 2, ceil_mode=True),
    "avg_pool_ceil_padded": line("AvgPool{d}d", 3, 2, 1, ceil_mode=True),
    "avg_pool_ceil_not_counted": line("AvgPool{d}d", 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg_pool_sides": line("AvgPool{d}d", per_side(1, 3, 2), stride=per_side(1, 1, 2)),
    "adaptive_avg_pool": line("AdaptiveAvgPool{d}d", 3),
    "adaptive_avg_pool_uneven": line("AdaptiveAvgPool{d}d", per_side(2, 3, 4)),
    "adaptive_avg_pool_global": line("AdaptiveAvgPool{d}d", 1),
    "adaptive_avg_pool_divides": line("AdaptiveAvgPool{d}d", per_side(3, 1, 2)),
    "adaptive_avg_pool_upwards": line("AdaptiveAvgPool{d}d", 8),
}, matrix=True) | table({
    "avg_pool_divisor": line("AvgPool{d}d", 2, divisor_override=3),
    "avg_pool_divisor_padded": line("AvgPool{d}d", 3, 2, 1, divisor_override=5),
    "adaptive_avg_pool_one_side": line("AdaptiveAvgPool{d}d", per_side(None, 2, None)),
}, (2, 3), matrix=True)  # fmt: skip

# ------------------------------------------------------------------------------------------ convolutions

CONVOLUTIONS = table({
    "conv": line("Conv{d}d", 4, 3, 3, padding=1),
    "conv_no_bias": line("Conv{d}d", 4, 3, 2, bias=False),
    "conv_rows_left_over": line("Conv{d}d", 4, 3, 2, stride=3),
    "conv_sides": line("Conv{d}d", 4, 3, per_side(1, 3, 2), stride=per_side(2, 1, 2), padding=per_side(1, 2, 0)),
    "conv_dilated": line("Conv{d}d", 4, 3, 2, dilation=2, padding=1),
    "conv_groups": line("Conv{d}d", 4, 6, 3, padding=1, groups=2),
    "conv_depthwise": line("Conv{d}d", 4, 8, 3, padding=1, groups=4),
    "conv_same": line("Conv{d}d", 4, 3, 3, padding="same"),
    "conv_same_even": line("Conv{d}d", 4, 3, 2, padding="same"),
    "conv_same_dilated": line("Conv{d}d", 4, 3, per_side(1, 3, 2), padding="same", dilation=3),
    "conv_same_groups": line("Conv{d}d", 4, 4, 2, padding="same", groups=4),
    "conv_valid": line("Conv{d}d", 4, 3, 2, padding="valid", stride=2),
    "conv_transpose": line("ConvTranspose{d}d", 4, 3, 2, stride=2),
    "conv_transpose_no_bias": line("ConvTranspose{d}d", 4, 3, 3, padding=1, bias=False),
    "conv_transpose_output_padding": line("ConvTranspose{d}d", 4, 3, 3, stride=2, padding=1, output_padding=1),
    "conv_transpose_groups": line("ConvTranspose{d}d", 4, 6, 3, stride=2, groups=2),
    "conv_transpose_depthwise": line("ConvTranspose{d}d", 4, 4, 2, stride=2, groups=4),
    "conv_transpose_dilated": line("ConvTranspose{d}d", 4, 3, 2, dilation=2, padding=1),
    "conv_transpose_dilated_output_padding": line(
        "ConvTranspose{d}d", 4, 3, 2, dilation=3, stride=2, output_padding=2, padding=1
    ),
    "conv_transpose_sides": line(
        "ConvTranspose{d}d", 4, 3, per_side(1, 3, 2), stride=per_side(2, 1, 3), output_padding=per_side(1, 0, 2)
    ),
}, matrix=True)  # fmt: skip

# Two operations: a pad that copies, and a convolution, whose rule sees the copies apart.
CONVOLUTIONS |= table({
    "conv_reflect": line("Conv{d}d", 4, 3, 3, padding=1, padding_mode="reflect"),
    "conv_replicate": line("Conv{d}d", 4, 3, 3, padding=2, padding_mode="replicate"),
    "conv_circular": line("Conv{d}d", 4, 3, 3, padding=1, padding_mode="circular"),
    "conv_same_circular": line("Conv{d}d", 4, 3, 2, padding="same", padding_mode="circular"),
})  # fmt: skip


# ------------------------------------------------------------------------------------------------- norms


def normalised(x, dims, eps, centred=True):
    """(x − mean) / σ, with σ a constant."""
    x = x - x.mean(dims, keepdim=True) if centred else x
    return x / (x.square().mean(dims, keepdim=True) + eps).sqrt().detach()


def rescaled(op, x):
    """γ x + β per channel."""
    if op.weight is None:
        return x
    across = (-1, *[1] * (x.dim() - 2))
    return x * op.weight.view(across) + op.bias.view(across)


def by_instance(op, x):
    return rescaled(op, normalised(x, list(range(2, x.dim())), op.eps))


def by_group(op, x):
    apart = x.unflatten(1, (op.num_groups, -1))
    return rescaled(op, normalised(apart, list(range(2, apart.dim())), op.eps).flatten(1, 2))


def by_layer(op, x):
    z = normalised(x, list(range(-len(op.normalized_shape), 0)), op.eps)
    return z if op.weight is None else z * op.weight + (0 if op.bias is None else op.bias)


def by_rms(op, x):
    return normalised(x, list(range(-len(op.normalized_shape), 0)), op.eps, centred=False) * op.weight


def by_neighbours(op, x):
    """x over a power of the mean square of the neighbouring channels, which is a constant."""
    return x * (op(x) / x.masked_fill(x == 0, 1.0)).detach()


NORMS = (
    table({
        "batch_norm": line("BatchNorm{d}d", 4),
        "batch_norm_eps": line("BatchNorm{d}d", 4, eps=0.1),
        "batch_norm_no_affine": line("BatchNorm{d}d", 4, affine=False),
    })
    | table({
        "instance_norm": line("InstanceNorm{d}d", 4),
        "instance_norm_affine": line("InstanceNorm{d}d", 4, affine=True, eps=1e-3),
    }, twin=by_instance)
    | table({
        "group_norm": line("GroupNorm", 2, 4),
        "group_norm_one_group": line("GroupNorm", 1, 4),
        "group_norm_no_affine": line("GroupNorm", 4, 4, affine=False, eps=1e-3),
    }, twin=by_group)
    | table({
        "layer_norm": line("LayerNorm", lambda d: SPACE[d]),
        "layer_norm_last": line("LayerNorm", lambda d: SPACE[d][-1], bias=False),
        "layer_norm_no_affine": line("LayerNorm", lambda d: (CHANNELS, *SPACE[d]), elementwise_affine=False),
    }, twin=by_layer)
    | table({"rms_norm": line("RMSNorm", lambda d: SPACE[d], eps=1e-3)}, twin=by_rms)
    | table({
        "local_response_norm": line("LocalResponseNorm", 2, alpha=0.5, k=2.0),
        "local_response_norm_uneven": line("LocalResponseNorm", 3, alpha=0.5, beta=0.5),
    }, twin=by_neighbours)
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- pads

PADS = table({
    "zero_pad": line("ZeroPad{d}d", pads(1, 2, 0, 1, 2, 0)),
    "constant_pad": line("ConstantPad{d}d", pads(1, 2, 0, 1, 2, 0), 0.5),
    "constant_pad_below_zero": line("ConstantPad{d}d", pads(0, 2, 1, 1, 0, 1), -1.5),
    "crop": line("ConstantPad{d}d", pads(-1, -2, 0, -1, -1, 0), 0.0),
    "crop_and_pad": line("ConstantPad{d}d", pads(-1, 2, 1, -1, 0, -1), 0.7),
    "reflection_pad": line("ReflectionPad{d}d", pads(2, 1, 1, 2, 1, 2)),
    "replication_pad": line("ReplicationPad{d}d", pads(2, 1, 0, 2, 1, 3)),
    "circular_pad": line("CircularPad{d}d", pads(2, 1, 0, 2, 1, 2)),
})  # fmt: skip

# -------------------------------------------------------------------------------------------- upsampling


def linear_mode(d):
    return {1: "linear", 2: "bilinear", 3: "trilinear"}[d]


UPSAMPLING = table({
    "nearest": line("Upsample", scale_factor=2),
    "nearest_size": line("Upsample", per_side(4, 7, 9)),
    "nearest_down": line("Upsample", per_side(2, 3, 3)),
    "nearest_factor": line("Upsample", scale_factor=1.7),
    "nearest_factor_recomputed": line("Upsample", scale_factor=1.7, recompute_scale_factor=True),
    "nearest_exact": line("Upsample", scale_factor=1.7, mode="nearest-exact"),
    "nearest_exact_down": line("Upsample", per_side(2, 3, 4), mode="nearest-exact"),
    "linear": line("Upsample", scale_factor=2, mode=linear_mode),
    "linear_corners": line("Upsample", per_side(4, 7, 9), mode=linear_mode, align_corners=True),
    "linear_factor": line("Upsample", scale_factor=1.7, mode=linear_mode),
    "linear_factor_corners": line("Upsample", scale_factor=1.7, mode=linear_mode, align_corners=True),
    "linear_factor_recomputed": line("Upsample", scale_factor=1.7, mode=linear_mode, recompute_scale_factor=True),
    "linear_down": line("Upsample", per_side(2, 3, 4), mode=linear_mode),
    "linear_factors": line("Upsample", scale_factor=per_side(1.0, 0.5, 1.3), mode=linear_mode),
}, matrix=True) | table({
    "bicubic": line("Upsample", scale_factor=2, mode="bicubic"),
    "bicubic_corners": line("Upsample", (6, 8), mode="bicubic", align_corners=True),
    "bicubic_factor": line("Upsample", scale_factor=1.7, mode="bicubic"),
    "bicubic_down": line("Upsample", (3, 4), mode="bicubic"),
}, (2,), matrix=True)  # fmt: skip


class Antialiased(nn.Module):
    def __init__(self, mode, **options):
        super().__init__()
        self.options = {"mode": mode, "antialias": True, **options}

    def forward(self, x):
        return F.interpolate(x, **self.options)


# With its corners aligned, an output of zero inputs is 1e-18 rather than 0, and ε takes what a matrix drops.
UPSAMPLING |= {
    f"{mode}_antialias{name}": Layer(
        lambda mode=mode, options=options: Antialiased(mode, **options),
        (4, 5, 6),
        matrix="corners" not in name,
    )
    for mode in ("bilinear", "bicubic")
    for name, options in {
        "": {"size": (3, 2)},
        "_up": {"size": (7, 9)},
        "_factor": {"scale_factor": 0.6},
        "_corners": {"size": (3, 4), "align_corners": True},
    }.items()
}

# --------------------------------------------------------------------------------- others per dimension

OTHERS = table({
    "dropout": line("Dropout{d}d", 0.5),
    "flatten_space": line("Flatten", 2),
    "unflatten": line("Unflatten", 1, (2, 2)),
    "prelu_channels": line("PReLU", 4),
})  # fmt: skip


LAYERS = MAX_POOLS | FRACTIONAL | AVERAGE_POOLS | CONVOLUTIONS | NORMS | PADS | UPSAMPLING | OTHERS
