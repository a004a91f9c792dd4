"""Relevance inside the model: read, replaced, masked. Against a net cut in two at the place, and by its own identities."""

import pytest
import torch
from torch import Tensor, nn

import lrp

IMAGE = torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PRESETS = [name for name in lrp.composites() if "box" not in name and name != "deep_taylor"]
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Block(nn.Module):
    def __init__(self, width: int, dims: int = 2) -> None:
        super().__init__()
        self.conv, self.act = CONV[dims](width, width, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.conv(x))


class Net(nn.Module):
    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(CONV[dims](3, 6, 3), nn.ReLU())
        self.layer1, self.layer2 = Block(6, dims), Block(6, dims)
        self.head = nn.Linear(6, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.layer1(self.stem(x)))

    def behind(self, z: Tensor) -> Tensor:
        return self.head(self.layer2(z).flatten(2).mean(2))


class Rest(nn.Module):
    """The part of the net behind layer1, as a net of its own."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return self.net.behind(z)


def close(a: Tensor, b: Tensor, limit: float = 1e-9) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= limit * max(float(b.abs().max()), 1.0)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("preset", ["epsilon", "gamma", "epsilon_plus", "epsilon_alpha2_beta1"])
def test_relevance_inside_is_that_of_the_rest_of_the_net(preset, dims):
    """Behind layer1 the net is a net of its own, whose map is the relevance at layer1's output."""
    net = Net(dims)
    x = torch.randn(2, 3, *[12] * dims, dtype=torch.float64)
    inside = lrp.Explainer(net, preset)(x, 1).at("layer1")
    z = net.layer1(net.stem(x)).detach()
    rest = lrp.Explainer(Rest(net), preset)(z, 1).relevance
    if preset in ("epsilon", "gamma"):  # the others have another rule for a net's first layer or for signs
        close(inside, rest)
    assert inside.shape == z.shape


@pytest.mark.parametrize("preset", PRESETS)
def test_the_masks_of_a_partition_sum_to_the_whole(preset):
    explainer = lrp.Explainer(Net(), preset)
    whole = explainer(IMAGE, 2)
    masks = torch.eye(6, dtype=torch.float64).reshape(6, 6, 1, 1)
    parts = explainer.many(IMAGE, [2], through=[{"layer1": mask} for mask in masks])
    assert parts.relevance.shape == (6, *IMAGE.shape)
    close(parts.relevance.sum(0), whole.relevance)
    places = torch.arange(100).reshape(10, 10) < 37
    halves = explainer.many(IMAGE, [2], through=[{"layer1": places}, {"layer1": ~places}])
    close(halves.relevance.sum(0), whole.relevance)
    each = torch.rand(3, 6, 10, 10, dtype=torch.float64)
    for single, all_ in ((explainer(IMAGE, 2, through={"layer1": each}), each), (parts[4], masks[4])):
        assert single.health.ok, single.health
        close(single.at("layer1"), whole.at("layer1") * all_)


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_starting_inside_goes_on_from_there(preset, optimise):
    explainer = lrp.Explainer(Net(), preset, optimise=optimise)
    whole = explainer(IMAGE, 2, at=["layer1", "layer2"])
    again = explainer(IMAGE, start={"layer1": whole.at("layer1")})
    close(again.relevance, whole.relevance)
    assert again.health.ok, again.health
    close(again.ledger.totals["start"], whole.at("layer1").flatten(1).sum(1))
    masked = explainer(IMAGE, start={"layer1": whole.at("layer1")}, through={"stem": torch.zeros(6, 1, 1)})
    assert not masked.relevance.any() and masked.health.ok


@pytest.mark.parametrize("preset", PRESETS)
def test_a_start_where_outputs_are_negative(preset):
    """Relevance given at a convolution's output stays, even where the ReLU behind it gives 0."""
    net, random = Net(), torch.Generator().manual_seed(2)
    start = torch.randn(3, 6, 10, 10, dtype=torch.float64, generator=random)
    fast = lrp.Explainer(net, preset)(IMAGE, start={"layer1.conv": start})
    plain = lrp.Explainer(net, preset, optimise=False)(IMAGE, start={"layer1.conv": start})
    close(fast.relevance, plain.relevance)
    assert fast.health.ok and plain.health.ok


def test_gradient_times_input_from_inside():
    net, explainer = Net(), lrp.Explainer(Net(), "epsilon")
    explainer = lrp.Explainer(net, lrp.preset("epsilon", epsilon=1e-12))
    x = IMAGE.clone().requires_grad_()
    z = net.layer1(net.stem(x))
    weights = torch.randn(z.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((z * weights).sum(), x)
    e = explainer(IMAGE, start={"layer1": (z * weights).detach()})
    close(e.relevance, gradient * IMAGE, 1e-7)


def test_two_starts_add():
    explainer = lrp.Explainer(Net(), "gamma")
    e = explainer(IMAGE, 0, at=("layer1", "layer2"))
    r1, r2 = torch.rand_like(e.at("layer1")), torch.rand_like(e.at("layer2"))
    both = explainer(IMAGE, start={"layer1": r1, "layer2": r2})
    apart = (
        explainer(IMAGE, start={"layer1": r1}).relevance + explainer(IMAGE, start={"layer2": r2}).relevance
    )
    close(both.relevance, apart)
    close(both.ledger.totals["start"], r1.flatten(1).sum(1) + r2.flatten(1).sum(1))
    assert both.health.ok and set(both.start) == {"layer1", "layer2"}


def test_many_masks_share_one_forward_pass():
    calls = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.lrp_tests.counted(x)

    library = torch.library.Library("lrp_tests", "FRAGMENT")
    library.define("counted(Tensor x) -> Tensor")
    library.impl("counted", lambda x: calls.append(1) or x.clone(), "CPU")
    library.impl("counted", lambda x: x.clone(), "Meta")
    lrp.register("lrp_tests::counted", family="activation")
    model = nn.Sequential(Counted(), Net())
    explainer = lrp.Explainer(model, "epsilon")
    explainer.many(IMAGE, [0], through=[{"1.layer1": torch.ones(1)}])
    del calls[:]
    explainer.many(IMAGE, [0], through=[{"1.layer1": torch.full((6, 1, 1), float(i))} for i in range(5)])
    assert len(calls) == 1


def test_from_the_same_pass_or_later():
    explainer = lrp.Explainer(Net())
    same = explainer(IMAGE, 1, at=("layer1", "layer2.conv"))
    later = explainer(IMAGE, 1)
    for name in ("layer1", "layer2.conv"):
        assert torch.equal(same.at(name), later.at(name))
    many = explainer.many(IMAGE, [1, 2], at="layer1")
    assert torch.equal(many[0].at("layer1"), same.at("layer1"))
    explainer.model.head.weight.data.mul_(2)
    with pytest.raises(
        lrp.LedgerError,
        match=r"^the model's weights changed after the explanation: explain again for the relevance inside\.$",
    ):
        later.at("stem")


def test_each_image_alone():
    explainer = lrp.Explainer(Net(), "gamma")
    mask, start = torch.rand(3, 6, 10, 10), torch.rand(3, 6, 10, 10)
    together = explainer(IMAGE, through={"layer1": mask})
    begun = explainer(IMAGE, start={"layer2": start})
    for n in range(3):
        close(
            explainer(IMAGE[n : n + 1], through={"layer1": mask[n : n + 1]}).relevance,
            together.relevance[n : n + 1],
        )
        close(
            explainer(IMAGE[n : n + 1], start={"layer2": start[n : n + 1]}).relevance,
            begun.relevance[n : n + 1],
        )
        close(together.ledger.totals["input"][n], together.relevance[n].sum())


def test_names():
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
            self.same, self.cut, self.head = Same(), Cut(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.act(self.norm(self.conv(x)))
            a, b = self.cut(self.act(self.same(z) - 0.1))
            return self.head(torch.cat([a, b * 2], 1).mean((2, 3)) + z.mean((2, 3)))

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :2], x[:, 2:]

    explainer = lrp.Explainer(Several().double().eval(), "epsilon")
    e = explainer(IMAGE)
    assert e.at("conv").shape == (3, 4, 10, 10)
    assert torch.equal(e.at("conv"), e.at("norm"))  # the norm is part of the convolution
    first, second = e.at("cut[0]"), e.at("cut[1]")
    close(torch.cat([first, second], 1), e.at("act#2"))
    for row in e.ledger:
        text = f"{row.path or 'model'} ({row.op})"
        if text not in ("model (mean)", "model (add)", "cut (slice)", "act (relu)"):
            assert e.at(text).shape[0] == 3, text
    assert e.at("model (mean)#1").shape == e.at("model (mean)#2").shape == (3, 4)
    said = {
        "act": "'act' has 2 outputs: say 'act#1', 'act#2'.",
        "cut": "'cut' has 2 outputs: say 'cut[0]', 'cut[1]'.",
        "same": "'same' has no relevance of its own: its output is that of act, which others read, too.",
        "konv": "'konv' is no module or operation that relevance passes; the nearest are 'conv', 'conv (conv2d)', 'norm'.",
    }
    for name, text in said.items():
        with pytest.raises(lrp.InputError) as caught:
            e.at(name)
        assert str(caught.value) == text


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_every_block_of_an_architecture(name):
    """Relevance is conserved from block to block, but for what biases and ε take: a cut of the net has all of it."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    kwargs = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **kwargs).eval()
    x = torch.randn(2, 3, 64, 64)
    explainer = lrp.Explainer(model, "epsilon_plus", dtype=torch.float64)
    e = explainer(x, 3)
    blocks = {
        "resnet18": ["layer1", "layer2", "layer3", "layer4", "layer2.0", "layer2.1"],
        "mobilenet_v3_small": [f"features.{i}" for i in range(13)],
        "googlenet": ["inception3a", "inception4b", "inception5b"],
    }[name]
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(b).register_forward_hook(lambda m, i, out, b=b: found.update({b: out}))
        for b in blocks
    ]
    model(x)
    for handle in handles:
        handle.remove()
    for block in blocks:
        assert e.at(block).shape == found[block].shape, block
        again = explainer(x, start={block: e.at(block)})
        close(again.relevance, e.relevance, 1e-7)  # nothing passes the block by


BAD = {
    "start of another shape": (
        {"start": {"layer1": torch.zeros(3, 6, 9, 9)}},
        "start={'layer1': ...} has shape [3, 6, 9, 9], and the output there is [3, 6, 10, 10].",
    ),
    "mask that does not broadcast": (
        {"through": {"layer1": torch.zeros(6)}},
        "through={'layer1': ...} has shape [6], and does not broadcast to the output there, [3, 6, 10, 10]: channels are [C, 1, 1].",
    ),
    "no such path": (
        {"through": {"layer9": torch.zeros(6, 1, 1)}},
        "'layer9' is no module or operation that relevance passes; the nearest are 'layer2', 'layer1', 'layer2.act'.",
    ),
    "no dictionary": (
        {"start": torch.zeros(3)},
        "start= takes a dictionary, module -> tensor, got Tensor.",
    ),
    "not finite": (
        {"through": {"layer1": torch.full((6, 1, 1), float("nan"))}},
        "through={'layer1': ...} holds NaN or infinite values; every entry must be finite.",
    ),
    "at": (
        {"at": ["layer9"]},
        "'layer9' is no module or operation that relevance passes; the nearest are 'layer2', 'layer1', 'layer2.act'.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_word_for_word(case):
    arguments, text = BAD[case]
    with pytest.raises(lrp.InputError) as caught:
        lrp.Explainer(Net())(IMAGE, **arguments)
    assert str(caught.value) == text


def test_masks_and_targets_of_another_number():
    with pytest.raises(lrp.InputError) as caught:
        lrp.Explainer(Net()).many(IMAGE, [0, 1, 2], through=[{"layer1": torch.ones(1)}] * 2)
    assert str(caught.value) == "3 targets and 2 masks: give one for each, or one for all."
