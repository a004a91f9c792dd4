"""One function written in several ways: the maps must be equal. To add a pair is one line of a table.

SPELLINGS: forms of z, what a small convolution made of the image, [N, 4, 6, 6]; a form's result is flattened and goes into
one linear layer. TOKENS: forms of t, [N, 9, 8]. WHOLE: forms of the image itself, [N, 3, 6, 6], which return logits.
A form also takes its parameters, which all forms of a line share: `p("w", 4, 1, 1)` is a random tensor of that shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from helpers.recurrent_forms import RECURRENT

Form = Callable[[torch.Tensor, Any], torch.Tensor]


class Parameters(nn.Module):
    """Random tensors by name, the same in every form of a line; `positive` ones lie between 0.5 and 1.5."""

    def __call__(self, name: str, *shape: int, positive: bool = False) -> torch.Tensor:
        if not hasattr(self, name):
            generator = torch.Generator().manual_seed(sum(map(ord, name)) + 100 * len(shape))
            made = torch.rand if positive else torch.randn
            value = made(shape, generator=generator, dtype=torch.float64) + 0.5 * positive
            if not positive and len(shape) == 1:  # both signs in every vector
                value = value.abs() * torch.tensor([1.0, -1.0]).repeat(shape[0])[: shape[0]]
            self.register_parameter(name, nn.Parameter(value))
        return getattr(self, name)


class Written(nn.Module):
    """A net around one form of a function."""

    def __init__(self, form: Form, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.kind, self.p = form, kind, Parameters()
        if isinstance(form, nn.Module):
            self.inner = form
        if kind != "whole":
            self.stem = nn.Conv2d(3, 4, 3, padding=1).double()
            self.tokens = nn.Conv2d(3, 8, 2, 2).double()
        self.register_buffer("head", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "whole":
            return self.form(x, self.p)
        z = self.stem(x) if self.kind == "picture" else self.tokens(x).flatten(2).transpose(1, 2)
        out = self.form(z, self.p).reshape(len(x), -1)
        return out if not len(self.head) else F.linear(out, self.head)

    def ready(self, x: torch.Tensor) -> Written:
        """With its parameters, of which a first run asks for the shapes, and its last layer."""
        with torch.no_grad():
            width = self(x).shape[1]
            if self.kind != "whole":
                generator = torch.Generator().manual_seed(1)
                self.head = torch.randn(5, width, generator=generator, dtype=torch.float64) / width**0.5
        return self.eval()


def forms_of(line: tuple[Form, ...], kind: str, x: torch.Tensor, dtype: torch.dtype) -> list[nn.Module]:
    return [copy.deepcopy(Written(form, kind).double().ready(x.double())).to(dtype) for form in line]


# ---------------------------------------------------------------- parts


class Norm(nn.Module):
    """conv, then a norm of torch."""

    def __init__(self, cls: type[nn.Module], after: bool, **options: Any) -> None:
        super().__init__()
        self.cls, self.after, self.options = cls, after, options

    def forward(self, z: torch.Tensor, p: Any) -> torch.Tensor:
        z = conv(z, p) if self.after else z.relu()
        if self.cls is nn.BatchNorm2d:
            return F.relu(F.batch_norm(z, *statistics(p), p("w", 4), p("b", 4), eps=1e-3))
        return F.relu(
            F.instance_norm(z, *statistics(p), p("w", 4), p("b", 4), use_input_stats=False, eps=1e-3)
        )


def statistics(p: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return p("m", 4).detach(), p("v", 4, positive=True).detach()


def conv(z: torch.Tensor, p: Any, **options: Any) -> torch.Tensor:
    return F.conv2d(z, p("k", 4, 4, 3, 3) / 3, p("kb", 4), padding=1, **options)


def frozen(z: torch.Tensor, p: Any) -> torch.Tensor:
    """As torchvision's FrozenBatchNorm2d computes it."""
    w, b, m, v = (t.reshape(1, -1, 1, 1) for t in (p("w", 4), p("b", 4), p("m", 4), p("v", 4, positive=True)))
    scale = w * (v + 1e-3).rsqrt()
    return z * scale + (b - m * scale)


def by_definition(z: torch.Tensor, p: Any) -> torch.Tensor:
    w, b, m, v = (t.reshape(-1, 1, 1) for t in (p("w", 4), p("b", 4), p("m", 4), p("v", 4, positive=True)))
    return (z - m) / (v + 1e-3).sqrt() * w + b


def folded_norm(p: Any, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer of [N, 4 * 36] with the norm in front of it in its weights."""
    scale = p("w", 4) / (p("v", 4, positive=True) + 1e-3).sqrt()
    factor, shift = (v.repeat_interleave(36) for v in (scale, p("b", 4) - p("m", 4) * scale))
    return weight * factor, bias + weight @ shift


def fused(z: torch.Tensor, p: Any) -> torch.Tensor:
    """The convolution with the norm's factors in its weights."""
    scale = p("w", 4) / (p("v", 4, positive=True) + 1e-3).sqrt()
    weight = p("k", 4, 4, 3, 3) / 3 * scale.reshape(-1, 1, 1, 1)
    return F.conv2d(z, weight, (p("kb", 4) - p("m", 4)) * scale + p("b", 4), padding=1)


def heads(t: torch.Tensor, p: Any) -> list[torch.Tensor]:
    """q, k, v, [N, 2, 9, 4]."""
    qkv = F.linear(t, p("qkv", 24, 8) / 3, p("qkvb", 24))
    return [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in qkv.chunk(3, -1)]


def joined(t: torch.Tensor, p: Any) -> torch.Tensor:
    return F.linear(t.transpose(1, 2).flatten(2), p("o", 8, 8) / 3, p("ob", 8))


def written_attention(t: torch.Tensor, p: Any, scale: str = "after") -> torch.Tensor:
    q, k, v = heads(t, p)
    if scale == "query":
        return joined((q * 0.5 @ k.mT).softmax(-1) @ v, p)
    if scale == "both":
        return joined(((q * 0.5**0.5) @ (k * 0.5**0.5).transpose(-2, -1)).softmax(-1) @ v, p)
    if scale == "divided":
        return joined((q @ k.transpose(-2, -1) / 2.0).softmax(-1) @ v, p)
    return joined((q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1) @ v, p)


def torch_attention(t: torch.Tensor, p: Any) -> torch.Tensor:
    return joined(F.scaled_dot_product_attention(*heads(t, p)), p)


def multihead(t: torch.Tensor, p: Any) -> torch.Tensor:
    """torch's own layer, called as nn.MultiheadAttention calls it."""
    t = t.transpose(0, 1)
    made, _ = F.multi_head_attention_forward(
        t, t, t, 8, 2, p("qkv", 24, 8) / 3, p("qkvb", 24), None, None, False, 0.0, p("o", 8, 8) / 3, p("ob", 8),
        training=False, need_weights=False,
    )  # fmt: skip
    return made.transpose(0, 1)


def unit(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(1e-8)


INDEX = torch.tensor([0, 2, 2, 1, 3, 0])
GRID = F.affine_grid(
    torch.tensor([[[0.8, 0.1, 0.05], [-0.1, 0.9, 0.1]]], dtype=torch.float64),
    [1, 4, 6, 6],
    align_corners=False,
)


def gathered(z: torch.Tensor, p: Any) -> torch.Tensor:
    matrix = torch.zeros(6, 6, dtype=z.dtype)
    matrix[torch.arange(6), INDEX] = 1
    return F.linear(z, matrix)


def summed_at(z: torch.Tensor, p: Any) -> torch.Tensor:
    return torch.stack([z[..., INDEX == k].sum(-1) for k in range(6)], -1)


def low_rank(t: torch.Tensor, p: Any) -> torch.Tensor:
    return F.linear(t, p("l", 8, 8), p("lb", 8)) + 0.5 * F.linear(F.linear(t, p("a", 2, 8)), p("c", 8, 2))


def merged(t: torch.Tensor, p: Any) -> torch.Tensor:
    return F.linear(t, p("l", 8, 8) + 0.5 * p("c", 8, 2) @ p("a", 2, 8), p("lb", 8))


def low_rank_conv(z: torch.Tensor, p: Any) -> torch.Tensor:
    update = F.conv2d(F.conv2d(z, p("a", 2, 4, 3, 3), padding=1), p("c", 4, 2, 1, 1))
    return (conv(z, p) + update * 2.0).relu()


def merged_conv(z: torch.Tensor, p: Any) -> torch.Tensor:
    weight = p("k", 4, 4, 3, 3) / 3 + 2 * torch.einsum(
        "or,rchw->ochw", p("c", 4, 2, 1, 1)[..., 0, 0], p("a", 2, 4, 3, 3)
    )
    return F.conv2d(z, weight, p("kb", 4), padding=1).relu()


def of_halves(f: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Form:
    """A function of the two halves of the channels."""
    return lambda z, p: f(z[:, :2], z[:, 2:])


def after_pool(f: Callable[[torch.Tensor, Any], torch.Tensor]) -> Form:
    return lambda z, p: f(z.relu().mean((2, 3)), p)


# ---------------------------------------------------------------- the tables

SPELLINGS: dict[str, tuple[Form, ...]] = {
    # rectifiers
    "relu": (
        lambda z, p: F.relu(z),
        lambda z, p: torch.where(z > 0, z, 0.0),
        lambda z, p: torch.where(z > 0, z, torch.zeros_like(z)),
        lambda z, p: torch.where(0 < z, z, torch.tensor(0.0, dtype=z.dtype)),
        lambda z, p: torch.where(z < 0, 0.0, z),
        lambda z, p: torch.where(~(z > 0), 0.0, z),
        lambda z, p: z * (z > 0),
        lambda z, p: (z >= 0).to(z.dtype) * z,
        lambda z, p: z.masked_fill(z < 0, 0),
        lambda z, p: torch.max(z, torch.zeros_like(z)),
        lambda z, p: torch.maximum(torch.tensor(0.0, dtype=z.dtype), z),
        lambda z, p: z.clamp(min=0),
        lambda z, p: z.clamp_min(0),
        lambda z, p: F.threshold(z, 0, 0),
    ),
    "leaky_relu": (
        lambda z, p: F.leaky_relu(z, 0.1),
        lambda z, p: torch.where(z > 0, z, 0.1 * z),
        lambda z, p: torch.where(z <= 0, z * 0.1, z),
        lambda z, p: torch.maximum(z, z * 0.1),
    ),
    "relu6": (lambda z, p: F.relu6(z), lambda z, p: z.clamp(0, 6), lambda z, p: F.hardtanh(z, 0.0, 6.0)),
    "gate": (
        lambda z, p: F.silu(z),
        lambda z, p: F.silu(z, inplace=True),
    ),
    # maxima
    "maximum": (
        of_halves(lambda a, b: torch.stack([a, b], 2).amax(2)),
        of_halves(torch.maximum),
        of_halves(torch.max),
        of_halves(torch.fmax),
        of_halves(lambda a, b: torch.stack([a, b], -1).max(-1).values),
    ),
    "minimum": (
        of_halves(lambda a, b: torch.stack([a, b], 2).amin(2)),
        of_halves(torch.minimum),
        of_halves(torch.min),
        of_halves(lambda a, b: torch.stack([a, b], 2).min(2).values),
    ),
    "maxout": (
        lambda z, p: z.unflatten(1, (2, 2)).amax(2),
        lambda z, p: torch.maximum(z[:, ::2], z[:, 1::2]),
        lambda z, p: z.unflatten(1, (2, 2)).max(2)[0],
    ),
    # scales and shifts
    "batch_norm_after_conv": (
        Norm(nn.BatchNorm2d, True),
        lambda z, p: frozen(conv(z, p), p).relu(),
        lambda z, p: by_definition(conv(z, p), p).relu(),
        lambda z, p: fused(z, p).relu(),
        Norm(nn.InstanceNorm2d, True),
    ),
    "batch_norm_alone": (
        Norm(nn.BatchNorm2d, False),
        lambda z, p: frozen(z.relu(), p).relu(),
        lambda z, p: by_definition(z.relu(), p).relu(),
        Norm(nn.InstanceNorm2d, False),
    ),
    "conv_without_bias_and_bias": (
        lambda z, p: conv(z, p).relu(),
        lambda z, p: (F.conv2d(z, p("k", 4, 4, 3, 3) / 3, padding=1) + p("kb", 4).reshape(-1, 1, 1)).relu(),
    ),
    "transposed_conv_and_norm": (
        lambda z, p: F.conv_transpose2d(
            z, p("t", 4, 2, 2, 2) * (p("w", 4) / (p("v", 4, positive=True) + 1e-5).sqrt()).reshape(2, 1, 2, 1, 1).expand(2, 2, 2, 1, 1).reshape(4, 2, 1, 1), stride=2, groups=2
        ).relu(),
        lambda z, p: F.batch_norm(
            F.conv_transpose2d(z, p("t", 4, 2, 2, 2), stride=2, groups=2), torch.zeros(4, dtype=z.dtype),
            p("v", 4, positive=True).detach(), p("w", 4), None,
        ).relu(),
    ),
    "layer_scale": (
        lambda z, p: z + F.conv2d(z.relu(), p("k", 4, 4, 1, 1) * p("w", 4).reshape(-1, 1, 1, 1)),
        lambda z, p: z + p("w", 4).reshape(-1, 1, 1) * F.conv2d(z.relu(), p("k", 4, 4, 1, 1)),
        lambda z, p: z + F.conv2d(z.relu(), p("k", 4, 4, 1, 1)).mul(p("w", 4).reshape(1, 4, 1, 1)),
    ),
    "layer_scale_behind_a_permutation": (
        lambda z, p: z + F.linear(z.permute(0, 2, 3, 1).relu(), p("k", 4, 4) * p("w", 4)[:, None]).permute(0, 3, 1, 2),
        lambda z, p: z + p("w", 4).reshape(-1, 1, 1) * F.linear(z.permute(0, 2, 3, 1).relu(), p("k", 4, 4)).permute(0, 3, 1, 2),
    ),
    "scaled_branch": (
        lambda z, p: z + 0.3 * conv(z.relu(), p),
        lambda z, p: z + F.conv2d(z.relu(), 0.3 * (p("k", 4, 4, 3, 3) / 3), 0.3 * p("kb", 4), padding=1),
        lambda z, p: torch.add(z, conv(z.relu(), p), alpha=0.3),
    ),
    "scale_before_conv": (
        lambda z, p: F.conv2d(z.relu() * p("w", 4).reshape(-1, 1, 1), p("k", 4, 4, 3, 3), padding=1).relu(),
        lambda z, p: F.conv2d(z.relu(), p("k", 4, 4, 3, 3) * p("w", 4).reshape(1, -1, 1, 1), padding=1).relu(),
        lambda z, p: F.conv2d(z.relu() / (1 / p("w", 4).reshape(-1, 1, 1)), p("k", 4, 4, 3, 3), padding=1).relu(),
    ),
    # layers
    "pointwise": (
        lambda z, p: F.conv2d(z, p("k", 5, 4, 1, 1), p("kb", 5)).relu(),
        lambda z, p: F.linear(z.permute(0, 2, 3, 1), p("k", 5, 4, 1, 1)[..., 0, 0], p("kb", 5)).permute(0, 3, 1, 2).relu(),
        lambda z, p: F.conv1d(z.flatten(2), p("k", 5, 4, 1, 1)[..., 0], p("kb", 5)).unflatten(2, (6, 6)).relu(),
        lambda z, p: (F.linear(z.flatten(2).mT, p("k", 5, 4, 1, 1)[..., 0, 0]) + p("kb", 5)).mT.unflatten(2, (6, 6)).relu(),
        lambda z, p: (z.permute(0, 2, 3, 1) @ p("k", 5, 4, 1, 1)[..., 0, 0].t() + p("kb", 5)).permute(0, 3, 1, 2).relu(),
    ),
    "whole_window": (
        lambda z, p: F.conv2d(z.relu(), p("k", 7, 4, 6, 6), p("kb", 7)).flatten(1).relu(),
        lambda z, p: F.linear(z.relu().flatten(1), p("k", 7, 4, 6, 6).flatten(1), p("kb", 7)).relu(),
        lambda z, p: (z.relu().flatten(1) @ p("k", 7, 4, 6, 6).flatten(1).t() + p("kb", 7)).relu(),
    ),
    "one_position": (
        lambda z, p: F.conv2d(z.relu().mean((2, 3), keepdim=True), p("k", 7, 4, 1, 1), p("kb", 7)).flatten(1).relu(),
        lambda z, p: F.linear(z.relu().mean((2, 3)), p("k", 7, 4, 1, 1).flatten(1), p("kb", 7)).relu(),
        lambda z, p: F.linear(F.adaptive_avg_pool2d(z.relu(), 1).squeeze(), p("k", 7, 4, 1, 1).flatten(1), p("kb", 7)).relu(),
    ),
    "depthwise": (
        lambda z, p: F.conv2d(z, p("k", 4, 1, 3, 3), p("kb", 4), padding=1, groups=4).relu(),
        lambda z, p: torch.cat(
            [F.conv2d(z[:, i : i + 1], p("k", 4, 1, 3, 3)[i : i + 1], p("kb", 4)[i : i + 1], padding=1) for i in range(4)], 1
        ).relu(),
        lambda z, p: torch.stack(
            [F.conv2d(c, k[None], b[None], padding=1)[:, 0] for c, k, b in zip(z.split(1, 1), p("k", 4, 1, 3, 3), p("kb", 4), strict=True)], 1
        ).relu(),
    ),
    "padded": (
        lambda z, p: F.conv2d(z, p("k", 4, 4, 3, 3), padding=1),
        lambda z, p: F.conv2d(F.pad(z, (1, 1, 1, 1)), p("k", 4, 4, 3, 3)),
        lambda z, p: F.conv2d(z, p("k", 4, 4, 3, 3), padding="same"),
    ),
    "norm_before_a_flattening": (
        lambda z, p: F.linear(z.relu().flatten(1), *folded_norm(p, p("l", 5, 144) / 12, p("lb", 5))).relu(),
        lambda z, p: F.linear(frozen(z.relu(), p).flatten(1), p("l", 5, 144) / 12, p("lb", 5)).relu(),
        lambda z, p: F.conv2d(frozen(z.relu(), p), (p("l", 5, 144) / 12).unflatten(1, (4, 6, 6)), p("lb", 5)).flatten(1).relu(),
    ),
    "norm_before_an_average_of_windows": (
        lambda z, p: F.conv2d(F.avg_pool2d(frozen(z.relu(), p), 2), p("k", 3, 4, 3, 3) / 3).relu(),
        lambda z, p: F.conv2d(frozen(F.avg_pool2d(z.relu(), 2), p), p("k", 3, 4, 3, 3) / 3).relu(),
        lambda z, p: F.conv2d(frozen(F.adaptive_avg_pool2d(z.relu(), 3), p), p("k", 3, 4, 3, 3) / 3).relu(),
    ),
    "pointwise_before_a_whole_window": (
        lambda z, p: F.conv2d(F.conv2d(z, p("k", 5, 4, 1, 1)).relu(), p("c", 7, 5, 6, 6) / 9).flatten(1).relu(),
        lambda z, p: F.linear(F.conv2d(z, p("k", 5, 4, 1, 1)).relu().flatten(1), (p("c", 7, 5, 6, 6) / 9).flatten(1)).relu(),
    ),
    "low_rank_update_of_a_conv": (merged_conv, low_rank_conv),
    "norm_before_an_average": (
        lambda z, p: F.linear(frozen(z.relu(), p).mean((2, 3)), p("l", 5, 4), p("lb", 5)).relu(),
        lambda z, p: F.linear(frozen(z.relu().mean((2, 3), keepdim=True), p).flatten(1), p("l", 5, 4), p("lb", 5)).relu(),
        lambda z, p: F.linear(by_definition(F.adaptive_avg_pool2d(z.relu(), 1), p).squeeze(), p("l", 5, 4), p("lb", 5)).relu(),
    ),
    # pools
    "global_pool": (
        lambda z, p: z.relu().mean((2, 3)),
        lambda z, p: F.adaptive_avg_pool2d(z.relu(), 1).flatten(1),
        lambda z, p: F.avg_pool2d(z.relu(), 6)[:, :, 0, 0],
        lambda z, p: z.relu().flatten(2).mean(2),
        lambda z, p: z.relu().mean((2, 3)).squeeze(),
        lambda z, p: F.adaptive_avg_pool2d(z.relu(), 1).squeeze(),
    ),
    "lp_pool": (
        lambda z, p: F.lp_pool2d(z.relu(), 2, 2),
        lambda z, p: (F.avg_pool2d(z.relu().pow(2), 2) * 4).relu().pow(0.5),
    ),
    "max_unpool": (
        lambda z, p: F.max_unpool2d(*F.max_pool2d(z, 2, return_indices=True), 2),
        lambda z, p: F.max_unpool2d(*F.max_pool2d(z, 2, return_indices=True), 2, output_size=(6, 6)),
    ),
    # selections
    "sorted": (
        lambda z, p: z.sort(1).values,
        lambda z, p: z.topk(4, 1, largest=False).values,
        lambda z, p: z.gather(1, z.argsort(1)),
        lambda z, p: torch.take_along_dim(z, z.argsort(1), 1),
    ),
    "largest": (
        lambda z, p: z.topk(1, 1).values,
        lambda z, p: z.amax(1, keepdim=True),
        lambda z, p: z.gather(1, z.argmax(1, keepdim=True)),
        lambda z, p: z.kthvalue(4, 1, keepdim=True).values,
    ),
    "indexed": (
        lambda z, p: z[..., INDEX],
        lambda z, p: z.index_select(3, INDEX),
        lambda z, p: z.gather(3, INDEX.expand(len(z), 4, 6, 6)),
    ),
    "summed_at_indices": (
        lambda z, p: torch.zeros_like(z).index_add(3, INDEX, z),
        lambda z, p: torch.zeros_like(z).scatter_add(3, INDEX.expand(len(z), 4, 6, 6), z),
    ),
    "written_at_indices": (
        lambda z, p: torch.zeros_like(z).index_copy(3, torch.tensor([1, 0, 3, 2, 5, 4]), z),
        lambda z, p: torch.zeros_like(z).scatter(3, torch.tensor([1, 0, 3, 2, 5, 4]).expand(len(z), 4, 6, 6), z),
        lambda z, p: z[..., torch.tensor([1, 0, 3, 2, 5, 4])],
    ),
    "row_of_each_image": (
        lambda z, p: z[:, :, 2],
        lambda z, p: z[torch.arange(len(z)), :, 2],
        lambda z, p: z.narrow(2, 2, 1).squeeze(2),
    ),
    "grid": (
        lambda z, p: F.grid_sample(z, GRID.to(z).expand(len(z), -1, -1, -1), align_corners=False),
        lambda z, p: F.grid_sample(z, GRID.to(z).repeat(len(z), 1, 1, 1), align_corners=False),
    ),
    # sizes with the batch in them
    "halves_of_a_double_batch": (
        lambda z, p: conv(z, p).relu() - conv(z.flip(3), p).relu(),
        lambda z, p: (lambda y: y[: len(z)] - y[len(z) :])(conv(torch.cat([z, z.flip(3)]), p).relu()),
        lambda z, p: (lambda y: torch.sub(*y.chunk(2)))(conv(torch.cat([z, z.flip(3)]), p).relu()),
        lambda z, p: (lambda y: y[: z.shape[0]] - y[-z.shape[0] :])(conv(torch.cat([z, z.flip(3)]), p).relu()),
        lambda z, p: (lambda y: y[0] - y[1])(conv(torch.cat([z, z.flip(3)]), p).relu().unflatten(0, (2, -1))),
    ),
    # moments, distances
    "std": (
        lambda z, p: torch.cat([z.mean((2, 3)), z.var((2, 3)).sqrt()], 1),
        lambda z, p: torch.cat([z.mean((2, 3)), z.std((2, 3))], 1),
        lambda z, p: torch.cat(torch.std_mean(z, (2, 3))[::-1], 1),
        lambda z, p: (lambda v, m: torch.cat([m, v.sqrt()], 1))(*torch.var_mean(z, (2, 3))),
    ),
    "cosine_similarity": (
        after_pool(lambda f, p: (unit(f[:, None], -1) * unit(p("c", 6, 4), -1)).sum(-1)),
        after_pool(lambda f, p: F.cosine_similarity(f[:, None], p("c", 6, 4), dim=-1)),
    ),
    "pairwise_distance": (
        after_pool(lambda f, p: torch.linalg.vector_norm(f - p("c", 4) + 1e-6, dim=1)),
        after_pool(lambda f, p: F.pairwise_distance(f, p("c", 4).expand(len(f), -1))),
    ),
    "mse": (
        after_pool(lambda f, p: ((f - p("c", 4)) ** 2)),
        after_pool(lambda f, p: F.mse_loss(f, p("c", 4).expand_as(f), reduction="none")),
        after_pool(lambda f, p: (f - p("c", 4)).square()),
    ),
    "bilinear": (
        after_pool(lambda f, p: F.bilinear(f, f.flip(1), p("a", 5, 4, 4), p("ab", 5))),
        after_pool(
            lambda f, p: (F.linear(f, p("a", 5, 4, 4).mT.reshape(20, 4)).unflatten(1, (5, 4)) @ f.flip(1)[..., None])[..., 0] + p("ab", 5)
        ),
    ),
    "log_softmax": (
        after_pool(lambda f, p: f.log_softmax(1)),
        after_pool(lambda f, p: f - f.logsumexp(1, keepdim=True)),
    ),
    # blends
    "blend": (
        lambda z, p: (lambda w: (1 - w) * z.relu() + w * z.flip(3))(conv(z, p).sigmoid()),
        lambda z, p: (lambda w: w * z.flip(3) + z.relu() * (1 - w))(conv(z, p).sigmoid()),
        lambda z, p: (lambda w, x: x + w * (z.flip(3) - x))(conv(z, p).sigmoid(), z.relu()),
        lambda z, p: (lambda w, x: x - w * (x - z.flip(3)))(conv(z, p).sigmoid(), z.relu()),
        lambda z, p: (lambda w, x: (z.flip(3) - x) * (1 - w) + x)((-conv(z, p)).sigmoid(), z.relu()),
        lambda z, p: torch.lerp(z.relu(), z.flip(3), conv(z, p).sigmoid()),
        lambda z, p: (lambda w, x: torch.addcmul(x, w, z.flip(3) - x))(conv(z, p).sigmoid(), z.relu()),
    ),
    "blend_by_a_constant": (
        lambda z, p: 0.7 * z.relu() + 0.3 * z.flip(3),
        lambda z, p: (lambda x: x + 0.3 * (z.flip(3) - x))(z.relu()),
        lambda z, p: torch.lerp(z.relu(), z.flip(3), 0.3),
        lambda z, p: torch.lerp(z.relu(), z.flip(3), torch.tensor(0.3, dtype=z.dtype)),
    ),
    # comparisons carry nothing
    "sign_as_a_gate": (
        lambda z, p: z * z.detach().sign(),
        lambda z, p: z * torch.sign(z),
    ),
}  # fmt: skip

TOKENS: dict[str, tuple[Form, ...]] = {
    "patches": (  # no other operation mixes positions
        lambda t, p: F.conv1d(F.conv1d(t.mT, p("l", 8, 8)[..., None]).relu(), p("c", 3, 8, 9) / 9)[..., 0],
        lambda t, p: F.linear(F.linear(t, p("l", 8, 8)).relu().mT.flatten(1), (p("c", 3, 8, 9) / 9).flatten(1)),
    ),
    "attention": (
        written_attention,
        torch_attention,
        multihead,
        lambda t, p: written_attention(t, p, "query"),
        lambda t, p: written_attention(t, p, "both"),
        lambda t, p: written_attention(t, p, "divided"),
    ),
    **RECURRENT,
    "scaled_values": (
        lambda t, p: (lambda q, k, v: joined((q @ k.mT).softmax(-1) @ v * 2.5, p))(*heads(t, p)),
        lambda t, p: (lambda q, k, v: joined(2.5 * (q @ k.mT).softmax(-1) @ v, p))(*heads(t, p)),
        lambda t, p: (lambda q, k, v: joined((q @ k.mT).softmax(-1) @ (v / 0.4), p))(*heads(t, p)),
    ),
    "low_rank_update": (merged, low_rank),
    "token_layer": (
        lambda t, p: F.linear(t, p("l", 8, 8), p("lb", 8)).relu(),
        lambda t, p: F.conv1d(t.mT, p("l", 8, 8)[..., None], p("lb", 8)).mT.relu(),
        lambda t, p: (t @ p("l", 8, 8).mT + p("lb", 8)).relu(),
        lambda t, p: torch.addmm(p("lb", 8), t.reshape(-1, 8), p("l", 8, 8).t()).reshape(t.shape).relu(),
    ),
    "token_scale": (
        lambda t, p: t + F.linear(t.relu(), p("l", 8, 8) * p("w", 8)[:, None], p("lb", 8) * p("w", 8)),
        lambda t, p: t + p("w", 8) * F.linear(t.relu(), p("l", 8, 8), p("lb", 8)),
    ),
    "norm_behind_a_flattening": (
        lambda t, p: F.linear(t, p("l", 8, 8) * p("w", 8)[:, None], p("lb", 8) * p("w", 8) + p("b", 8)).relu(),
        lambda t, p: (F.linear(t, p("l", 8, 8), p("lb", 8)).flatten(0, 1) * p("w", 8) + p("b", 8)).reshape(t.shape).relu(),
        lambda t, p: (F.linear(t, p("l", 8, 8), p("lb", 8)) * p("w", 8) + p("b", 8)).relu(),
    ),
    "class_token": (
        lambda t, p: torch.cat([p("cls", 1, 1, 8).expand(len(t), -1, -1), t], 1),
        lambda t, p: torch.cat([p("cls", 1, 1, 8).repeat(len(t), 1, 1), t], 1),
    ),
}  # fmt: skip

MEAN, STD = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))


def plain(x: torch.Tensor, p: Any) -> torch.Tensor:
    """The bare net."""
    y = F.conv2d(x, p("c1", 6, 3, 3, 3) / 3, p("b1", 6), padding=1).relu()
    y = F.conv2d(y, p("c2", 4, 6, 3, 3) / 4, p("b2", 4)).relu()
    return F.linear(y.mean((2, 3)), p("l", 5, 4), p("lb", 5))


def channels(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return v.to(x).reshape(1, -1, 1, 1)


# The image goes through one of these, and then into the bare net; what is explained is compared with the bare net's
# map of the normalised image.
NORMALISED: dict[str, Form] = {
    "in_the_model": lambda x, p: (x - channels(MEAN, x)) / channels(STD, x),
    "in_place": lambda x, p: x.clone().sub_(channels(MEAN, x)).div_(channels(STD, x)),
    "factor_and_shift": lambda x, p: x * (1 / channels(STD, x)) + channels(-MEAN / STD, x),
    "addcmul": lambda x, p: torch.addcmul(channels(-MEAN / STD, x), x, 1 / channels(STD, x)),
    "batch_norm": lambda x, p: F.batch_norm(x, MEAN.to(x), (STD**2).to(x), eps=0.0),
    "channel_by_channel": lambda x, p: torch.cat(
        [(x[:, i : i + 1] - float(MEAN[i])) / float(STD[i]) for i in range(3)], 1
    ),
    "stacked": lambda x, p: torch.stack([(x[:, i] - float(MEAN[i])) / float(STD[i]) for i in range(3)], 1),
    "channels_last": lambda x, p: ((x.permute(0, 2, 3, 1) - MEAN.to(x)) / STD.to(x)).permute(0, 3, 1, 2),
}
