"""Models in other forms than a module of one's own: scripts, graphs, exported programs, weights of other kinds."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn import functional as F

import lrp

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*quantize_per"
    ),
    pytest.mark.filterwarnings("ignore:the model is in train mode"),
]
PAIRS = {1: (nn.Conv1d, nn.BatchNorm1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d),
         3: (nn.Conv3d, nn.BatchNorm3d, nn.ConvTranspose3d)}  # fmt: skip


class Net(nn.Module):
    def __init__(self, dims: int = 2):
        super().__init__()
        torch.manual_seed(0)
        conv, norm, transposed = PAIRS[dims]
        self.conv, self.norm, self.back = conv(2, 4, 3), norm(4), transposed(4, 4, 2, stride=2)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.linear(F.relu(self.back(x)).flatten(2).mean(2))


def net(dims=2):
    return Net(dims).double().eval()


def images(dims=2, count=2):
    return torch.randn(count, 2, *[6] * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def inference_net(dims):
    with torch.inference_mode():
        return net(dims)


FORMS = {
    "jit.trace": lambda dims: torch.jit.trace(net(dims), images(dims)),
    "jit.script": lambda dims: torch.jit.script(net(dims)),
    "frozen script": lambda dims: torch.jit.freeze(torch.jit.script(net(dims))),
    "script in train mode": lambda dims: torch.jit.script(net(dims)).train(),
    "fx": lambda dims: torch.fx.symbolic_trace(net(dims)),
    "exported": lambda dims: export(net(dims), (images(dims),)),
    "exported for any batch": lambda dims: export(net(dims), (images(dims),), dynamic_shapes=({0: Dim("N")},)),
    "an exported program's module": lambda dims: export(net(dims), (images(dims),)).module(),
    "weights of inference mode": inference_net,
}  # fmt: skip


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_model_in_another_form_has_the_same_map(form, dims):
    # A frozen script has no parameters, which would tell the type.
    explainer = lrp.Explainer(FORMS[form](dims), dtype=torch.float64)
    plain = lrp.Explainer(net(dims))
    for count in (1, 2, 3):
        x = images(dims, count)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="the model is in train mode")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            e, expected = explainer(x, 1), plain(x, 1)
        torch.testing.assert_close(e.logits, expected.logits, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(e.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
        assert e.health.ok, e.health.problems


@pytest.mark.parametrize("form", ["jit.trace", "jit.script", "fx", "exported", "weights of inference mode"])
def test_changed_weights_count_in_every_form(form):
    model = FORMS[form](2)
    explainer, x = lrp.Explainer(model), images()
    before = explainer(x, 1)
    weights = model.state_dict["linear.weight"] if form == "exported" else model.linear.weight
    with torch.inference_mode(weights.is_inference()), torch.no_grad():
        weights.mul_(2)
    after = explainer(x, 1)
    bias = net().linear.bias.detach()
    torch.testing.assert_close(after.logits - bias, 2 * (before.logits - bias), rtol=1e-9, atol=1e-12)
    assert after.health.ok, after.health.problems


def test_modules_keep_their_paths_in_an_exported_program():
    table = lrp.Explainer(export(net(), (images(),))).rules(images())
    assert [line.path for line in table.lines if line.path != "(model)"] == ["conv", "back", "linear"]


class Adjacent(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]).to_sparse())


class SparseProduct(Adjacent):
    def forward(self, x):
        return torch.sparse.mm(self.adjacency, super().forward(x).t()).t()


class SparseOperator(Adjacent):
    def forward(self, x):
        return (self.adjacency @ super().forward(x).t()).t()


class DenseTwin(Net):
    def forward(self, x):
        return (torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=x.dtype) @ super().forward(x).t()).t()


class Coalescing(Adjacent):
    def forward(self, x):
        return super().forward(x) * self.adjacency.coalesce().values().sum()


@pytest.mark.parametrize(
    ("kind", "twin"), [(Adjacent, Net), (SparseProduct, DenseTwin), (SparseOperator, DenseTwin)]
)
def test_sparse_buffers(kind, twin):
    explainer, plain = (lrp.Explainer(make().double().eval()) for make in (kind, twin))
    for count in (1, 2, 3):
        x = images(count=count)
        e, expected = explainer(x, 1), plain(x, 1)
        torch.testing.assert_close(e.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
        assert e.health.ok, e.health.problems


def quantised():
    return torch.ao.quantization.quantize_dynamic(net().float(), {nn.Linear})


def lazy():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (quantised, "linear is a quantised Linear, whose weights are integers: explain the model from which it was made."),
        (lazy, "2 (LazyLinear) has no weights yet: call the model once, so that it makes them."),
        (Coalescing, "Coalescing could not be captured for an input of shape [2, 2, 6, 6] at test_capture_formats.py:"
                     f"{Coalescing.forward.__code__.co_firstlineno + 1}: adjacency is sparse, and a graph holds it as a "
                     "dense tensor: use it in products only."),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_said_in_one_sentence(model, text):
    with pytest.raises(lrp.CaptureError) as error:
        lrp.Explainer(model().eval())(images().float())
    assert str(error.value) == text


def test_a_script_inside_a_module():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = torch.jit.script(net()), nn.Parameter(torch.ones(3).double())

        def forward(self, x):
            return self.inner(x).flip(1)

    class Twin(Outer):
        def __init__(self):
            super().__init__()
            self.inner = net()

    x = images()
    e = lrp.Explainer(Outer().eval())(x, 1)
    assert e.health.ok, e.health.problems
    expected = lrp.Explainer(Twin().eval())(x, 1)
    torch.testing.assert_close(e.relevance, expected.relevance, rtol=1e-9, atol=1e-12)


def test_a_model_is_the_same_after_it_was_explained_in_any_form():
    for form in ("jit.trace", "jit.script", "fx"):
        model, x = FORMS[form](2), images()
        before = copy.deepcopy(model.state_dict())
        expected = model(x)
        assert lrp.Explainer(model)(x).health.ok
        assert torch.equal(model(x), expected)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
