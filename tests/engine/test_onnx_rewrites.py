"""Steps rewritten for ONNX: against torch's own, for every kind of window."""

import itertools

import pytest
import torch
from torch import nn

import lrp
from lrp.engine.onnx.rewrites import average_pool_back_for_onnx, rewrite_for_onnx

CHOICES = list(
    itertools.product((1, 2, 3), (1, 2, 3), (0, 1), (False, True), (False, True), (None, 5), ((7, 8), (9, 6)))
)


@pytest.mark.parametrize(
    ("side", "stride", "padding", "ceil_mode", "include_pad", "divisor", "size"),
    [c for c in CHOICES if c[2] <= c[0] // 2],
)
def test_what_an_average_pool_hands_back(side, stride, padding, ceil_mode, include_pad, divisor, size):
    torch.manual_seed(0)
    for dims in (2, 3):
        windows = ([side] * dims, [stride] * dims, [padding] * dims, ceil_mode, include_pad, divisor)
        a = torch.randn(2, 3, *[*size, 5][:dims], dtype=torch.float64, requires_grad=True)
        z = (nn.functional.avg_pool2d if dims == 2 else nn.functional.avg_pool3d)(a, *windows)
        s = torch.randn_like(z)
        expected = torch.autograd.grad(z, a, s)[0]
        found = average_pool_back_for_onnx(s, a.detach(), *windows)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_sides_may_differ():
    torch.manual_seed(0)
    windows = ([3, 2], [1, 2], [1, 0], True, False, None)
    a = torch.randn(2, 4, 6, 9, dtype=torch.float64, requires_grad=True)
    z = nn.functional.avg_pool2d(a, *windows)
    s = torch.randn_like(z)
    torch.testing.assert_close(
        average_pool_back_for_onnx(s, a.detach(), *windows),
        torch.autograd.grad(z, a, s)[0],
        rtol=0,
        atol=1e-14,
    )


def test_a_program_is_the_same_and_has_no_such_step_left():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    explainer = lrp.Explainer(model.eval(), "epsilon_plus")
    x = torch.randn(2, 3, 14, 14)
    expected = explainer(x, 1).relevance
    module = explainer.program.module
    steps = {node.target for node in module.graph.nodes}
    rewritten = rewrite_for_onnx(module)
    assert torch.ops.aten.avg_pool2d_backward in steps
    assert torch.ops.aten.avg_pool2d_backward not in {node.target for node in rewritten.graph.nodes}
    start = torch.zeros(2, 5).index_fill_(1, torch.tensor(1), 1)
    found = rewritten(x, torch.zeros(2, 5), start, torch.zeros(2, 1))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert {node.target for node in module.graph.nodes} == steps  # the explainer's own is as it was
