"""What is captured is what the user calls: with the hooks that change values, without those that look, whatever mode is on."""

import collections
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune, spectral_norm, weight_norm

import lrp

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*is deprecated", "ignore:the model is in train mode"
)


class Net(nn.Module):
    """A small net for N = 1, 2 or 3 dimensions."""

    def __init__(self, dims=2):
        super().__init__()
        torch.manual_seed(0)
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 4, 3)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(F.relu(self.conv(x)).flatten(2).mean(2))


def net(dims=2):
    return Net(dims).double().eval()


def images(dims=2, count=2):
    return torch.randn(count, 2, *[6] * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_twin(model, dims=2):
    """A net without hooks whose weights are those that the other computes with."""
    model(images(dims))  # its hooks compute them
    twin = net(dims)
    with torch.no_grad():
        for own, other in ((twin.conv, model.conv), (twin.linear, model.linear)):
            own.weight.copy_(other.weight)
            own.bias.copy_(other.bias)
    return twin


def same(e, other):
    torch.testing.assert_close(e.logits, other.logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(e.relevance, other.relevance, rtol=1e-9, atol=1e-12)


def healthy(e):
    assert e.health.ok, e.health.problems


# ---------------------------------------------------------------- torch's own hooks

REPARAMETRISATIONS = {
    "weight norm": lambda m: weight_norm(m),
    "weight norm of all": lambda m: weight_norm(m, dim=None),
    "spectral norm": lambda m: spectral_norm(m),
    "pruned at random": lambda m: prune.random_unstructured(m, "weight", 0.4),
    "pruned twice": lambda m: prune.l1_unstructured(
        prune.random_unstructured(m, "weight", 0.3), "weight", 0.3
    ),
    "pruned channels": lambda m: prune.ln_structured(m, "weight", 0.5, n=2, dim=0),
    "parametrised weight norm": lambda m: nn.utils.parametrizations.weight_norm(m),
    "parametrised spectral norm": lambda m: nn.utils.parametrizations.spectral_norm(m),
}


def reparametrised(name, dims=2):
    model = Net(dims)
    REPARAMETRISATIONS[name](model.conv)
    REPARAMETRISATIONS[name](model.linear)
    return model.double().eval()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", REPARAMETRISATIONS)
def test_reparametrised_weights_count_as_they_are(name, dims):
    model, x = reparametrised(name, dims), images(dims)
    with torch.no_grad():
        for parameter in model.parameters():  # the weight that a hook left behind is stale now
            parameter.add_(0.1 * torch.randn_like(parameter))
    e = lrp.Explainer(model)(x, 1)
    torch.testing.assert_close(e.logits, model(x).detach(), rtol=1e-9, atol=1e-12)
    healthy(e)
    same(e, lrp.Explainer(plain_twin(model, dims))(x, 1))


def test_loaded_weights_count():
    """The smallest case of the report: the weight in the module is that of before loading."""
    trained, model = (weight_norm(nn.Linear(4, 2, dtype=torch.float64)) for _ in range(2))
    model.load_state_dict(trained.state_dict())
    x = torch.randn(3, 4, dtype=torch.float64)
    e = lrp.Explainer(model)(x, 0)
    plain = nn.Linear(4, 2, dtype=torch.float64)
    plain.load_state_dict({"weight": trained.weight, "bias": trained.bias})
    same(e, lrp.Explainer(plain)(x, 0))
    healthy(e)


@pytest.mark.parametrize("name", REPARAMETRISATIONS)
def test_a_training_step_counts(name):
    model, x = reparametrised(name), images()
    explainer = lrp.Explainer(model)
    before = explainer(x, 1).relevance
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    model.train()
    F.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    optimiser.step()
    model.eval()
    after = explainer(x, 1)
    assert (after.relevance - before).abs().max() > 1e-4
    same(after, lrp.Explainer(plain_twin(model))(x, 1))
    healthy(after)


def test_a_norm_of_ones_own_that_sets_the_weight_in_a_hook():
    """Weights of mean 0, made by a hook in front of each call from a parameter of another name."""
    model, x = net(), images()
    weight = model.conv.weight
    del model.conv.weight
    model.conv.raw = nn.Parameter(weight.detach())
    model.conv.weight = weight.detach()

    def centre(module, _):
        module.weight = module.raw - module.raw.mean((1, 2, 3), keepdim=True)

    model.conv.register_forward_pre_hook(centre)
    e = lrp.Explainer(model)(x, 1)
    healthy(e)
    same(e, lrp.Explainer(plain_twin(model))(x, 1))
    with torch.no_grad():
        model.conv.raw.mul_(2)
    same(lrp.Explainer(model)(x, 1), lrp.Explainer(plain_twin(model))(x, 1))


# ---------------------------------------------------------------- hooks that change values


def in_place(module, received, output):
    output.mul_(0.5)


class Halved(Net):
    """What the hooks below make of `Net`."""

    def forward(self, x):
        return self.linear(F.relu(0.5 * self.conv(x)).flatten(2).mean(2))


def halved():
    return Halved().double().eval()


CHANGING = {
    "forward hook": lambda m: m.conv.register_forward_hook(lambda mod, i, o: 0.5 * o),
    "with keywords": lambda m: m.conv.register_forward_hook(lambda mod, i, k, o: 0.5 * o, with_kwargs=True),
    "in place": lambda m: m.conv.register_forward_hook(in_place),
    "a closure": lambda m: m.conv.register_forward_hook((lambda factor: lambda mod, i, o: factor * o)(0.5)),
    "always called": lambda m: m.conv.register_forward_hook(lambda mod, i, o: 0.5 * o, always_call=True),
    "before and after": lambda m: [
        m.conv.register_forward_pre_hook(lambda mod, i: (i[0].clone(),)),
        m.conv.register_forward_hook(lambda mod, i, o: o * 0.5),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGING)
def test_a_hook_that_changes_values_is_part_of_the_function(name):
    model, x = net(), images()
    CHANGING[name](model)
    e = lrp.Explainer(model, "epsilon")(x, 1)
    healthy(e)
    same(e, lrp.Explainer(halved(), "epsilon")(x, 1))


def test_what_one_hook_notes_and_another_adds():
    """A skip connection made of two hooks: the first only looks."""
    model, x, seen = net(), images(), []
    model.conv.register_forward_hook(lambda m, i, o: seen.append(o))
    model.linear.register_forward_pre_hook(lambda m, i: (i[0] + seen.pop().flatten(2).amax(2),))

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            z = self.net.conv(x)
            return self.net.linear(F.relu(z).flatten(2).mean(2) + z.flatten(2).amax(2))

    e = lrp.Explainer(model)(x, 1)
    healthy(e)
    assert seen == []
    same(e, lrp.Explainer(Same().eval())(x, 1))


def test_a_hook_for_every_module():
    handle = torch_module.register_module_forward_hook(
        lambda m, i, o: 0.5 * o if isinstance(m, nn.Conv2d) else None
    )
    try:
        e = lrp.Explainer(net())(images(), 1)
        healthy(e)
    finally:
        handle.remove()
    same(e, lrp.Explainer(halved())(images(), 1))


def test_a_hook_that_comes_or_goes_is_noticed():
    model, x = net(), images()
    explainer = lrp.Explainer(model)
    without = explainer(x, 1)
    handle = CHANGING["forward hook"](model)
    same(explainer(x, 1), lrp.Explainer(halved())(x, 1))
    handle.remove()
    same(explainer(x, 1), without)


def through_numpy(module, received, output):
    return torch.from_numpy(output.numpy() * 2)


def by_data(module, received, output):
    output.data = output.data * 2


@pytest.mark.parametrize(("hook", "at"), [(through_numpy, "conv"), (through_numpy, ""), (by_data, "conv")])
def test_a_hook_that_cannot_be_followed_is_named(hook, at):
    model = net()
    model.get_submodule(at).register_forward_hook(hook)
    with torch.no_grad():
        model(images())
    with pytest.raises(lrp.CaptureError) as error:
        lrp.Explainer(model)(images())
    text = str(error.value)
    where = at or "the model"
    assert text.startswith(
        f"Net could not be captured: the forward hook of {where} changes values in a way that torch.export cannot "
        "follow: "
    )
    assert text.endswith(". Remove it, or compute the same in forward().") and "\n" not in text


# ---------------------------------------------------------------- hooks that only look

SEEN = []
TABLE: dict[nn.Module, object] = {}
COUNT = 0


def note_globally(module, received, output):
    global COUNT
    COUNT += 1
    SEEN.append(output)
    TABLE[module] = output


class Recorder:
    def __init__(self):
        self.last, self.all = None, []

    def note(self, module, received, output):
        self.last = output
        self.all.append(float(output.sum()))

    def __call__(self, module, received, output):
        self.note(module, received, output)


def test_hooks_that_look_see_nothing_of_an_explanation():
    model, x = net(), images()
    plain = lrp.Explainer(net())(x, 1)
    seen, counter, recorder, callable_one = [], collections.Counter(), Recorder(), Recorder()
    names = {m: n for n, m in model.named_modules()}
    model.conv.register_forward_hook(lambda m, i, o: seen.append(o.numpy()))
    model.conv.register_forward_hook(lambda m, i, o: counter.update([names[m]]))
    model.conv.register_forward_hook(lambda m, i, o: o)
    model.linear.register_forward_pre_hook(lambda m, i: seen.append(float(i[0].sum())))
    model.linear.register_forward_hook(recorder.note)
    model.linear.register_forward_hook(callable_one)
    model.register_forward_hook(note_globally)
    hooks = {m: (dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()}
    e = lrp.Explainer(model)(x, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        healthy(e)
    same(e, plain)
    assert not seen and not counter and not recorder.all and recorder.last is None and not callable_one.all
    assert not SEEN and not TABLE and COUNT == 0
    assert hooks == {m: (dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()}
    with torch.no_grad():
        model(x)
    assert len(seen) == 2 and counter == {"conv": 1} and len(recorder.all) == 1


def test_a_hook_that_removes_itself_stays():
    model, calls = net(), []

    def once(module, received):
        calls.append(1)
        handle.remove()

    handle = model.conv.register_forward_pre_hook(once)
    healthy(lrp.Explainer(model)(images()))
    assert len(model.conv._forward_pre_hooks) == 1 and calls == []


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_a_call_changes_nothing(dtype):
    model, x = net().float(), images().float()
    expected = lrp.Explainer(model)(x, 1)
    health = expected.health
    for warm in (False, True):
        explainer = lrp.Explainer(model)
        if warm:
            explainer(x, 1)
        with torch.autocast("cpu", dtype):
            e = explainer(x, 1)
            many = explainer.many(x, [1, 2])
            ledger, found = e.ledger, e.health
        assert e.logits.dtype == e.relevance.dtype == torch.float32
        assert torch.equal(e.relevance, expected.relevance) and torch.equal(e.logits, expected.logits)
        assert torch.equal(many.relevance[0], expected.relevance)
        assert torch.equal(ledger.totals["input"], expected.ledger.totals["input"])
        assert found.ok and found.closing_error == health.closing_error


def test_inference_mode_around_a_call_changes_nothing():
    model, x = net(), images()
    expected = lrp.Explainer(net())(x, 1)
    explainer = lrp.Explainer(model)
    with torch.inference_mode():
        first = explainer(images(), 1)
        healthy(first)
    same(first, expected)
    same(explainer(x, 1), expected)
    assert not first.relevance.is_inference()


# ---------------------------------------------------------------- what the forward pass itself writes


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.calls, self.started, self.last, self.history, self.height = 0, False, (), [], 0
        self.scale = 1.0

    def forward(self, x):
        self.calls += 1
        self.started = True
        self.last = tuple(x.shape[2:])
        self.height = x.shape[2]
        self.history.append(x.shape)
        self.features = self.conv(x)
        return self.linear(F.relu(self.features).flatten(2).mean(2)) * self.scale


class Plain(Net):
    def forward(self, x):
        return super().forward(x) * 1.0


def captures(monkeypatch):
    from lrp.engine import explainer

    made, original = [], explainer.capture
    monkeypatch.setattr(explainer, "capture", lambda *a, **k: made.append(1) or original(*a, **k))
    return made


def test_a_counter_is_no_changed_weight(monkeypatch):
    made = captures(monkeypatch)
    model, x = Counting().double().eval(), images()
    explainer = lrp.Explainer(model)
    e = explainer(x, 1)
    assert (model.calls, model.started, model.last, model.history, model.height) == (0, False, (), [], 0)
    assert "features" not in model.__dict__
    model(x)
    model(F.pad(x, (1, 1, 1, 1)))
    healthy(e)
    assert model.calls == 2
    explainer(x, 1), lrp.Explainer(model, "epsilon")(x, 1)
    assert len(made) == 1
    same(e, lrp.Explainer(Plain().double().eval())(x, 1))
    before = explainer(x, 1)
    model.scale = 3.0  # the user's change, not the forward pass's
    after = explainer(x, 1)
    assert len(made) == 3
    torch.testing.assert_close(after.logits, 3 * before.logits)
    with pytest.raises(lrp.LedgerError):
        _ = before.health
