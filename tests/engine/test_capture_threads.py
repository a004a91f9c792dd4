"""Explaining in several threads, and at many input sizes: nothing is harmed, nothing is computed twice, nothing piles up."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

import lrp
from lrp.engine import explainer as explainer_module

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*is deprecated", "ignore:the model is in train mode"
)
THREADS = 8


class Net(nn.Module):
    def __init__(self, seed=0, channels=8):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, channels, 3, bias=False), nn.BatchNorm2d(channels)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.linear = nn.Linear(channels, 5)
        self.calls = 0
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        self.calls += 1
        z = F.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        return self.linear(self.attention(z, z, z, need_weights=False)[0].mean(1))


def hooked(seed=0):
    model = Net(seed)
    weight_norm(model.linear)
    model.conv.register_forward_hook(lambda m, i, o: None)
    return model.eval()


def plain(seed=0):
    return Net(seed).eval()


def images(count=2, size=6):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def run_all(*works):
    """Run functions in as many threads, all at once; return their results, or raise the first error."""
    start, results, errors = threading.Barrier(len(works)), [None] * len(works), []

    def run(i):
        start.wait()
        try:
            results[i] = works[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    if errors:
        raise errors[0]
    return results


def state(model):
    """All that an explanation might have changed, by identity."""
    modules = [
        (p, type(m), m.training, list(m._forward_hooks), list(m._forward_pre_hooks))
        for p, m in model.named_modules()
    ]
    tensors = [
        (n, id(t), type(t), t._version) for n, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    return modules, tensors, sorted(model.__dict__)


def parts(e):
    return e.relevance, e.logits


def all_equal(results, expected):
    for result in results:
        for own, other in zip(result, expected, strict=True):
            assert torch.equal(own, other)


@pytest.mark.parametrize("make", [plain, hooked])
@pytest.mark.parametrize("training", [False, True])
def test_first_calls_of_one_model(make, training):
    expected = parts(lrp.Explainer(make())(images(), 1))
    for _ in range(3):
        model, explainer = make().train(training), lrp.Explainer(make())
        before = state(model)

        def own_explainer(model=model):
            return parts(lrp.Explainer(model)(images(), 1))

        def one_explainer(explainer=explainer):
            return parts(explainer(images(), 1))

        all_equal(run_all(*[own_explainer] * THREADS), expected)
        all_equal(run_all(*[one_explainer] * THREADS), expected)
        assert state(model) == before and model.calls == 0


def test_first_calls_of_different_models():
    models = [plain(i) if i % 2 else hooked(i) for i in range(THREADS)]
    before = [state(m) for m in models]
    results = run_all(*[lambda m=m: parts(lrp.Explainer(m)(images(), 1)) for m in models])
    assert [state(m) for m in models] == before
    for i, result in enumerate(results):
        all_equal([result], parts(lrp.Explainer(plain(i) if i % 2 else hooked(i))(images(), 1)))


def test_warm_calls_with_ledger_and_health():
    explainer, x = lrp.Explainer(plain()), images()
    expected = explainer(x, 1)

    def work():
        e, many = explainer(x, 1), explainer.many(x, [1, 2])
        assert e.health.ok, e.health.problems
        return e.relevance, e.logits, e.ledger.totals["input"], many.relevance[0]

    wanted = (expected.relevance, expected.logits, expected.ledger.totals["input"], expected.relevance)
    all_equal(run_all(*[work] * THREADS), wanted)


def test_weights_change_between_calls():
    """Each thread trains its own model and explains it; all use the same sizes."""

    def work(model):
        explainer, found = lrp.Explainer(model), []
        for step in range(3):
            found += parts(explainer(images(), 1))
            with torch.no_grad():
                model.conv.weight.mul_(1.5)
                model.linear.weight.data.add_(step)
        return found

    alone = [work(plain(i)) for i in range(THREADS)]
    models = [plain(i) for i in range(THREADS)]  # before the threads: the seed is the process's
    for result, expected in zip(run_all(*[lambda m=m: work(m) for m in models]), alone, strict=True):
        all_equal([result], expected)


@pytest.mark.parametrize("make", [plain, hooked])
def test_inference_goes_on_unharmed(make):
    """The same model, another one, and the fused attention that torch takes in inference, while models are captured."""
    model, other, x = make(), make(7), images(4)
    with torch.no_grad():
        expected, others = model(x), other(x)
    done = threading.Event()

    def infer(m, wanted):
        runs = 0
        with torch.no_grad():
            while not done.is_set() or runs < 5:
                assert torch.equal(m(x), wanted)
                runs += 1
        return runs

    def explain():
        try:
            for size in (6, 7, 8):
                assert lrp.Explainer(model)(images(2, size), 1).health.ok
                lrp.Explainer(make(size))(images(2, size), 1)
        finally:
            done.set()

    runs = run_all(explain, lambda: infer(model, expected), lambda: infer(other, others))
    assert all(count >= 5 for count in runs[1:])


class Failing(Net):
    def forward(self, x):
        z = super().forward(x)
        return z if z.sum() > 0 else -z


def test_everything_is_put_back_after_an_error():
    call, getattribute = nn.Module.__call__, nn.Module.__setattr__
    model = Failing().train()
    model.conv.register_forward_hook(lambda m, i, o: o * 2)
    before = state(model)

    def work():
        with pytest.raises(lrp.CaptureError):
            lrp.Explainer(model)(images())

    run_all(*[work] * 4)
    assert state(model) == before
    assert nn.Module.__call__ is call and nn.Module.__setattr__ is getattribute


# ---------------------------------------------------------------- many sizes


@pytest.fixture
def few_sizes(monkeypatch):
    """Only four sizes are kept, so that a test reaches the limit soon."""
    monkeypatch.setattr(explainer_module, "SIZES", 4)


def memory(prepared):
    """Bytes of all tensors of programs and graphs, each storage once."""
    held = {}
    for p in prepared:
        modules = [p.program().module, p.program(ledger=True).module]
        tensors = [t for m in modules for t in m.buffers()] + list(p.graph.constants.values())
        held.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors})
    return sum(held.values())


@pytest.mark.parametrize("composite", [None, "epsilon_plus", "epsilon_gamma_box"])
def test_many_sizes_hold_the_weights_once(composite, few_sizes):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1024, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 500),
    ).eval()  # fmt: skip
    given = lrp.preset(composite, low=-3, high=3) if composite == "epsilon_gamma_box" else composite
    explainer = lrp.Explainer(model, given)
    for size in range(6, 14):
        e = explainer(torch.randn(1, 3, size, 6), 1)
    assert e.health.ok, e.health.problems
    kept = list(explainer._prepared.values())
    assert len(kept) == len(explainer_module._CAPTURES[model]) == 4
    assert memory(kept) < 1.1 * memory(kept[-1:])


class Large(TorchDispatchMode):
    """Counts results as large as a weight."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if type(result) is torch.Tensor and result.device.type == "cpu" and result.numel() >= self.size:
            self.count += func._schema.returns[0].alias_info is None  # a view costs nothing
        return result


def test_another_size_folds_no_weights_again():
    model, counted = plain(), []
    original = explainer_module.Explainer._prepare

    def prepare(self, *args):
        with Large(model.conv.weight.numel()) as large:
            made = original(self, *args)
        counted.append(large.count)
        return made

    explainer = lrp.Explainer(model, "epsilon_plus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explainer_module.Explainer, "_prepare", prepare)
        first = explainer(images(), 1)
        second = explainer(images(size=9), 1)
        with torch.no_grad():
            model.conv.weight.mul_(2)
        explainer(images(), 1)
    assert counted[0] > 0 and counted[1] == 0 and counted[2] > 0
    fresh = lrp.Explainer(plain(), "epsilon_plus")(images(size=9), 1)
    assert torch.equal(second.relevance, fresh.relevance)
    assert torch.equal(first.relevance, lrp.Explainer(plain(), "epsilon_plus")(images(), 1).relevance)


def test_the_size_used_last_stays(few_sizes):
    explainer = lrp.Explainer(plain())
    for size in (6, 7, 8, 9, 6, 40):  # at the last one, 7 was not used for longest
        explainer(images(size=size))
    assert [p.graph.inputs[0].meta["shape"][2] for p in explainer._prepared.values()] == [8, 9, 6, 40]


def test_torch_keeps_nothing_of_the_sizes_that_went(few_sizes):
    """Neither the code of graphs nor the environments in which sizes were traced."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.fx.graph_module import _loader

    explainer, codes, environments = lrp.Explainer(plain()), [], []
    for size in range(6, 13):
        assert explainer(images(size=size)).health.ok
        gc.collect()
        codes.append(len(_loader.eval_cache))
        environments.append(sum(isinstance(o, ShapeEnv) for o in gc.get_objects()))
    assert codes[-1] == codes[-2] == codes[-3]
    assert environments[-1] <= environments[0]


def test_nothing_keeps_a_model_alive():
    model = plain()
    explainer = lrp.Explainer(model)
    assert explainer(images()).health.ok
    gone = weakref.ref(model)
    del model, explainer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_presets_and_types_share_one_model(dtype):
    """Shared tensors are those of the type and of the device that is explained in."""
    model, x = plain(), images()
    expected = {name: lrp.Explainer(plain(), name, dtype=dtype)(x, 1) for name in ("epsilon", "epsilon_plus")}
    for name in ("epsilon", "epsilon_plus", "epsilon"):
        for other in (torch.float32, torch.float64, dtype):
            e = lrp.Explainer(model, name, dtype=other)(x, 1)
        assert torch.equal(e.relevance, expected[name].relevance)
