"""Branches and sizes that depend on constants alone are evaluated; those that depend on pixels are refused in one line."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
from lrp.errors import CaptureError


def images(count=2):
    return torch.rand(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Convolution, rectifier, mean, linear; `before` and `after` are done to the image and the logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.register_buffer("flag", torch.tensor([0.0, 1, 2]))
        self.register_buffer("count", torch.tensor(2))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]), persistent=False)
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.plain = torch.tensor([1.0, 0.0])

    def before(self, x):
        return x

    def after(self, z):
        return z

    def forward(self, x):
        return self.after(self.linear(F.relu(self.conv(self.before(x))).mean((2, 3))))


def any_of_a_buffer(self, z):
    return z * 2 if (self.flag == 0).any() else z


def comparison_of_sums(self, z):
    total = torch.zeros(3, dtype=z.dtype)
    total += self.flag.to(z.dtype)
    total[0] = 5
    return z * 2 if total.sum() > 7 else z


def number_from_a_buffer(self, z):
    return z * self.count.item()


def size_from_a_buffer(self, z):
    return F.pad(z[:, : int(self.count)], (0, 1)) * 2


def index_from_a_buffer(self, z):
    return z[:, [int(self.count), 0, 1]] * 2


def list_from_a_buffer(self, z):
    return z * self.flag.tolist()[2]


def mask_as_index(self, z):
    return F.pad(z[:, self.mask], (0, 1)) * 2


def indices_of_a_mask(self, z):
    return F.pad(z[:, self.mask.nonzero()[:, 0]], (0, 1)) * 2


def equal(self, z):
    return z * 2 if torch.equal(self.flag, torch.arange(3.0, dtype=self.flag.dtype)) else z


def close(self, z):
    return z * 2 if torch.allclose(self.flag, self.flag + 1e-12) else z


def contains(self, z):
    return z * 2 if 2.0 in self.flag else z


def parameter(self, z):
    return z * 2 if self.factor > 1 else z


def tensor_that_is_no_buffer(self, z):
    return z * 2 if (self.plain == 0).any() else z


def new_tensor(self, z):
    return z * 2 if z.new_tensor([1.0, 2.0]).sum() > 2 else z


def numpy(self, z):
    return z * float(self.flag.numpy()[2])


def loop(self, z):
    for _ in range(int(self.count)):
        z = z + z.detach() * 0
    return z * 2


def causal_mask(self, z):
    mask = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)
    if mask.any():
        z = z.masked_fill(mask[2], 0.0)
    return z * 2


BRANCHES = {
    any_of_a_buffer: lambda z: z * 2,
    comparison_of_sums: lambda z: z * 2,
    number_from_a_buffer: lambda z: z * 2,
    size_from_a_buffer: lambda z: F.pad(z[:, :2], (0, 1)) * 2,
    index_from_a_buffer: lambda z: z[:, [2, 0, 1]] * 2,
    list_from_a_buffer: lambda z: z * 2,
    mask_as_index: lambda z: F.pad(z[:, [0, 2]], (0, 1)) * 2,
    indices_of_a_mask: lambda z: F.pad(z[:, [0, 2]], (0, 1)) * 2,
    equal: lambda z: z * 2,
    close: lambda z: z * 2,
    contains: lambda z: z * 2,
    parameter: lambda z: z * 2,
    tensor_that_is_no_buffer: lambda z: z * 2,
    new_tensor: lambda z: z * 2,
    numpy: lambda z: z * 2,
    causal_mask: lambda z: z.masked_fill(torch.zeros(3, dtype=torch.bool), 0.0) * 2,
}


def with_end(end):
    return type("Branching", (Net,), {"after": end})().double().eval()


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda f: f.__name__)
def test_a_branch_on_a_constant_is_evaluated(branch):
    twin = with_end(lambda self, z: BRANCHES[branch](z))
    explainer, other = lrp.Explainer(with_end(branch)), lrp.Explainer(twin)
    for count in (1, 2, 3):
        e, expected = explainer(images(count), 1), other(images(count), 1)
        torch.testing.assert_close(e.logits, twin(images(count)).detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(e.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
        assert e.health.ok, e.health.problems


def test_normalize_inside_a_model():
    transforms = pytest.importorskip("torchvision.transforms")

    class Normalizing(Net):
        def __init__(self):
            super().__init__()
            self.normalize = transforms.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])

        def before(self, x):
            return self.normalize(x)

    class Plain(Net):
        def before(self, x):
            mean, std = (
                torch.tensor(v, dtype=x.dtype)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
            )
            return (x - mean) / std

    model, plain = Normalizing().double().eval(), Plain().double().eval()
    for count in (1, 2, 3):
        e = lrp.Explainer(model)(images(count), 1)
        torch.testing.assert_close(e.logits, plain(images(count)).detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            e.relevance, lrp.Explainer(plain)(images(count), 1).relevance, rtol=1e-9, atol=1e-12
        )
        assert e.health.ok, e.health.problems


CHANGES = {
    "a buffer": (any_of_a_buffer, lambda m: m.flag.fill_(1)),
    "a buffer by data": (any_of_a_buffer, lambda m: m.flag.data.fill_(1)),
    "another buffer": (any_of_a_buffer, lambda m: setattr(m, "flag", torch.ones(3).double())),
    "a parameter": (parameter, lambda m: m.factor.data.fill_(0.5)),
    "a number": (number_from_a_buffer, lambda m: m.count.fill_(1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_value_is_another_branch(name):
    branch, change = CHANGES[name]
    model = with_end(branch)
    explainer, x = lrp.Explainer(model), images()
    twice = explainer(x, 1)
    change(model)
    once = explainer(x, 1)
    torch.testing.assert_close(once.logits, model(x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(twice.logits, 2 * once.logits, rtol=1e-12, atol=1e-12)
    assert once.health.ok, once.health.problems


def test_the_same_branch_needs_no_new_capture(monkeypatch):
    from lrp.engine import explainer as module

    made, original = [], module.capture
    monkeypatch.setattr(module, "capture", lambda *a, **k: made.append(1) or original(*a, **k))
    model = with_end(any_of_a_buffer)
    explainer = lrp.Explainer(model)
    explainer(images())
    with torch.no_grad():
        model.conv.weight.mul_(2)
    explainer(images())
    assert len(made) == 1


def test_nothing_of_the_model_is_written_while_it_is_evaluated():
    class Writing(Net):
        def after(self, z):
            self.flag += 1
            return z * 2 if (self.count == 2).all() else z

    model = Writing().double().eval()
    e = lrp.Explainer(model)(images())
    assert e.health.ok, e.health.problems
    assert model.flag.tolist() == [0, 1, 2]


# ---------------------------------------------------------------- branches on pixels


def on_features(self, z):
    return z if bool((z > 0).all()) else -z


def on_both(self, z):
    return z if (z.sum() + self.flag.sum()) > 0 else -z


def size_of_pixels(self, z):
    return z[:, : int(z.max())]


def detections(self, z):
    keep = z[:, 0] > 0
    return z[keep][:, :3]


FORBIDDEN = [on_features, on_both, size_of_pixels, detections]


@pytest.mark.parametrize("branch", FORBIDDEN, ids=lambda f: f.__name__)
def test_a_branch_on_pixels_is_one_line_and_nothing_is_printed(branch, capfd):
    model = with_end(branch)
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with pytest.raises(CaptureError) as error:
                lrp.Explainer(model)(images())
    finally:
        logging.root.removeHandler(handler)
    text = str(error.value)
    assert "\n" not in text and "test_capture_constants.py:" in text
    assert text.endswith(
        "(torch.export must be able to follow the forward pass: no branch may depend on pixel values)."
    )
    printed = capfd.readouterr()
    assert printed.out == printed.err == "" and not said and not records


def test_a_detector_is_one_line_and_nothing_is_printed(capfd):
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    with pytest.raises(lrp.LrpError) as error:
        lrp.Explainer(model)(torch.rand(1, 3, 64, 64))
    assert "\n" not in str(error.value)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
