"""Where relevance goes that only moves: with its element, through reshapes, cuts, copies and activations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
from helpers import oracle_data
from helpers.checks import TERMS, Alone, agrees, explain_alone, total
from helpers.operations import Call
from helpers.vocabulary import grid

MASK = torch.tensor(
    [[True, False, True, True, False, True]] * 2 + [[False, True, True, False, True, True]] * 2
)


def with_channel_set(x, value):
    x = x.clone()
    x[:, :1] = value
    return x


def in_windows(function):
    """Partition [N, 4, 4, 6] into 2 × 3 windows (N · windows first), move inside each, put together again."""

    def move(x):
        N, C, H, W = x.shape
        windows = (
            x.view(N, C, 2, H // 2, 2, W // 2).permute(0, 2, 4, 3, 5, 1).reshape(N * 4, H // 2, W // 2, C)
        )
        y = function(windows).view(N, 2, 2, H // 2, W // 2, C)
        return y.permute(0, 5, 1, 3, 2, 4).reshape(N, C, H, W)

    return move


def tokens_second(function):
    """The images as the second axis: [tokens, N, C]."""
    return lambda x: function(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0)


def in_place(x):
    y = x.clone()
    y[:, :, 1:3, ::2] = x[:, :, 2:, 1::2]
    return y


# of x [N, 4, 4, 6]; what is written as a constant has a share of its own: it is booked under bias
MOVEMENTS = {
    "reshape": lambda x: x.reshape(x.shape[0], -1, 4),
    "flatten": lambda x: x.flatten(2),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 3),
    "transpose_contiguous": lambda x: x.transpose(1, 3).contiguous(),
    "movedim": lambda x: x.movedim(1, -1),
    "swapaxes": lambda x: x.swapaxes(2, 3),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(-1),
    "slice": lambda x: x[:, 1:, ::2, :-1],
    "slice_ellipsis": lambda x: x[..., None, 2:4],
    "narrow": lambda x: x.narrow(2, 1, 2),
    "select": lambda x: x.select(3, -2),
    "select_channel": lambda x: x[:, 2],
    "one_position": lambda x: x[:, :, 1, 2],
    "split": lambda x: torch.cat(x.split([1, 3], dim=1)[::-1], dim=1),
    "chunk": lambda x: x.chunk(2, dim=3)[1],
    "tensor_split": lambda x: torch.cat(x.tensor_split(3, dim=2)[1:], 2),
    "unbind": lambda x: torch.cat(x.unbind(1)[::-1], dim=1),
    "unbind_first_of_three": lambda x: x.reshape(x.shape[0], 3, -1).permute(1, 0, 2).unbind(0)[1],
    "cat": lambda x: torch.cat([x, x[:, :1], x], dim=1),
    "cat_positions": lambda x: torch.cat([x[:, :, :2], x.flip(3)], dim=2),
    "stack": lambda x: torch.stack([x, x], dim=2),
    "stack_flipped": lambda x: torch.stack([x, x.flip(1)], dim=2),
    "zero_pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "crop_by_pad": lambda x: F.pad(x, (-1, 1, 0, -1)),
    "channel_pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "reflect": lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"),
    "replicate": lambda x: F.pad(x, (2, 1, 0, 2), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 1, 2, 0), mode="circular"),
    "roll": lambda x: x.roll((1, -2), dims=(2, 3)),
    "roll_one": lambda x: torch.roll(x, 3, 1),
    "flip": lambda x: x.flip(3),
    "flip_two": lambda x: x.flip((1, 2)),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "expand_new_axis": lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "tile": lambda x: torch.tile(x, (2, 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "index": lambda x: x[:, [0, 2, 2, 1]],
    "index_two": lambda x: x[:, :, [0, 3, 1], [5, 0, 0]],
    "index_apart": lambda x: x[:, torch.tensor([0, 3]), :, torch.tensor([1, 1])].transpose(0, 1),
    "index_matrix": lambda x: x.flatten(2)[:, :, torch.tensor([[0, 23], [7, 7]])],
    "index_select": lambda x: x.index_select(2, torch.tensor([3, 0, 3])),
    "gather": lambda x: x.gather(3, torch.arange(6).flip(0).clamp(max=3).expand(x.shape[0], 4, 4, 6)),
    "masked_by_index": lambda x: x.flatten(2)[:, :, MASK.flatten()],
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "channel_shuffle_by_view": lambda x: x.view(-1, 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
    "unfold": lambda x: F.unfold(x, 2),
    "unfold_stride_padding": lambda x: F.unfold(x, (3, 2), stride=2, padding=1, dilation=(1, 2)),
    "tensor_unfold": lambda x: x.unfold(3, 3, 2),
    "tensor_unfold_twice": lambda x: x.unfold(2, 2, 2).unfold(3, 3, 3),
    "clone": lambda x: x.clone().contiguous(),
    "dropout": lambda x: F.dropout2d(F.dropout(x, 0.5, training=False), training=False),
    "identity": nn.Identity(),
    "to": lambda x: x.to(torch.float64).to(memory_format=torch.channels_last),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3),
    "masked_fill": lambda x: x.masked_fill(MASK, 0.0),
    "masked_fill_number": lambda x: x.masked_fill(~MASK, -2.5),
    "where": lambda x: torch.where(MASK, x, 0.5),
    "where_other": lambda x: torch.where(MASK, x.flip(1), x),
    "where_constants": lambda x: torch.where(MASK, torch.linspace(-1, 1, 6, dtype=x.dtype), x),
    "set_channel": lambda x: with_channel_set(x, x[:, 2:3]),
    "set_channel_constant": lambda x: with_channel_set(x, 0.5),
    "set_channel_tensor": lambda x: with_channel_set(x, torch.linspace(0, 1, 6, dtype=x.dtype)),
    "set_strided": in_place,
    "slice_scatter": lambda x: x.slice_scatter(x[:, :, :2].flip(3), dim=2, start=1, end=3),
    "select_scatter": lambda x: x.select_scatter(x[:, 0], dim=1, index=2),
    "coordinates": lambda x: torch.cat([x, grid(x).expand(x.shape[0], 1, -1, -1)], dim=1),
    "cat_zeros": lambda x: torch.cat([x, torch.zeros_like(x[:, :2])], dim=1),
    "cat_new_zeros": lambda x: torch.cat([x.new_zeros(x.shape[0], 1, 4, 6), x], dim=1),
    "windows": in_windows(lambda w: w),
    "windows_flipped": in_windows(lambda w: w.flip(1)),
    "windows_cut": in_windows(lambda w: torch.cat([w[:, 1:], w[:, :1]], 1).transpose(1, 2).reshape(w.shape)),
    "windows_by_heads": in_windows(
        lambda w: w.reshape(-1, 6, 2, 2).permute(0, 2, 1, 3).flip(2).transpose(1, 2).reshape(w.shape)
    ),
    "tokens_second": tokens_second(lambda y: y),
    "tokens_second_cut": tokens_second(lambda y: y[3:].flip(0)),
    "tokens_second_merged": tokens_second(lambda y: y.reshape(-1, 4).flip(1).view(24, -1, 4)),
    "tokens_second_heads": tokens_second(
        lambda y: y.reshape(24, -1, 2).transpose(0, 1).flip(2).transpose(0, 1).reshape(24, -1, 4)
    ),
}  # fmt: skip


# What the engine does not do yet, and says so; where the test of it fails, take it out of here: it is tested then.
REFUSED = {"index_apart"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name):
    with pytest.raises((lrp.UnsupportedError, lrp.CaptureError), match="no rule for"):
        explain_alone(Alone(Call(MOVEMENTS[name])), None, torch.randn(2, 4, 4, 6).double(), None)


@pytest.mark.parametrize("name", [name for name in MOVEMENTS if name not in REFUSED])
def test_relevance_moves_with_its_element(name):
    torch.manual_seed(14)
    move = MOVEMENTS[name]
    x = torch.randn(2, 4, 4, 6).double()
    R = torch.randn_like(move(x).flatten(1))
    e = explain_alone(Alone(Call(move)), None, x, R)
    came_from = oracle_data.measured(move, (4, 4, 6)).weight
    for i in range(2):
        relevance = came_from.T @ R[i].numpy()
        agrees(e.relevance[i].reshape(-1).numpy(), relevance, name)
        took = {"bias": float(R[i].sum()) - relevance.sum(), "epsilon": 0.0, "dropped": 0.0}
        for term, value in took.items():
            agrees(total(e.ledger, term, i), value, term, float(R[i].abs().sum()))
    assert e.health.ok, e.health.problems


# -------------------------------------------------------------------------------------------- activations

ACTIVATIONS = {
    str(module): module
    for module in (
        nn.ELU(), nn.ELU(0.5), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.Softplus(),
        nn.Softplus(beta=2.0, threshold=1.0), nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.SELU(), nn.CELU(0.7),
        nn.PReLU(), nn.PReLU(4), nn.LeakyReLU(0.2), nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.Softsign(),
        nn.LogSigmoid(), nn.Hardshrink(), nn.Threshold(0.1, -0.3), nn.SiLU(inplace=True), nn.ELU(inplace=True),
        nn.Hardswish(inplace=True), nn.Softshrink(), nn.ReLU(inplace=True), nn.Hardtanh(),
    )
} | {
    "exp": torch.exp, "log1p_abs": lambda x: torch.log1p(x.abs()), "sqrt_abs": lambda x: x.abs().sqrt(),
    "cube": lambda x: torch.pow(x, 3), "square": torch.square, "square_by_power": lambda x: x**2,
    "abs": torch.abs, "clamp": lambda x: x.clamp(-0.5, 0.8), "clamp_min": lambda x: torch.clamp_min(x, -0.1),
    "clamp_max": lambda x: x.clamp(max=0.3), "erf": torch.erf, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "expm1": torch.expm1, "sin": torch.sin, "cos": torch.cos, "rsqrt_abs": lambda x: torch.rsqrt(x.abs()),
    "log_abs": lambda x: torch.log(x.abs()), "root": lambda x: x.abs() ** 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_passes(name):
    torch.manual_seed(15)
    x, R = torch.randn(3, 4, 2, 3).double(), torch.randn(3, 24).double()
    activation = ACTIVATIONS[name]
    e = explain_alone(
        Alone(activation if isinstance(activation, nn.Module) else Call(activation)), None, x.clone(), R
    )
    assert torch.equal(e.relevance.flatten(1), R)
    assert all(total(e.ledger, term, i) == 0 for term in TERMS for i in range(3))
