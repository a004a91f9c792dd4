"""Models as users bring them: outputs, heads, wrappers, types, layouts, sizes; and what cannot be explained, said."""

import collections
import dataclasses
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp


class Net(nn.Module):
    """A small net; `end` makes what it returns out of its logits."""

    def __init__(self, end=lambda z: z, channels=3, outputs=5):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, outputs)
        self.end = end

    def forward(self, x):
        return self.end(self.linear(F.relu(self.norm(self.conv(x))).mean((2, 3))))


torch.manual_seed(1)
X = torch.randn(2, 3, 16, 16)


@dataclasses.dataclass
class Both:
    logits: torch.Tensor
    features: torch.Tensor


class Plain:
    def __init__(self, scores):
        self.scores, self.name = scores, "plain"


Named = collections.namedtuple("Named", "first second")


def expected(target=2):
    return lrp.explain(Net().eval(), X, target).relevance


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- which output

OUTPUTS = {
    "tensor": (lambda z: z, None),
    "logits in a dict": (lambda z: {"features": z * 2, "logits": z}, None),
    "logits in a dataclass": (lambda z: Both(z, z * 2), None),
    "the only tensor": (lambda z: (z, None), None),
    "a list of one": (lambda z: [z], None),
    "an object's only tensor": (Plain, None),
    "by index": (lambda z: (z * 2, z), 1),
    "by negative index": (lambda z: (z * 2, z), -1),
    "by key": (lambda z: {"a": z * 2, "b": z}, "b"),
    "by attribute": (lambda z: Named(z * 2, z), "second"),
    "down a path": (lambda z: {"out": (z * 2, [z])}, ("out", 1, 0)),
    "not the logits": (lambda z: {"logits": z * 2, "b": z}, "b"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output(name):
    end, output = OUTPUTS[name]
    e = lrp.Explainer(Net(end).eval(), output=output)(X, 2)
    same(e.relevance, expected())
    assert e.health.ok, e.health.problems


@pytest.mark.parametrize(
    ("end", "output", "text"),
    [
        (
            lambda z: (z, z[:, :3]), None,
            "the model returns several outputs, 0 [2, 5], 1 [2, 3]: say which holds the logits, for example "
            "Explainer(model, output=0).",
        ),
        (
            lambda z: {"a": z, "b": z}, "c",
            "output='c': the model returns several outputs, 'a' [2, 5], 'b' [2, 5].",
        ),
        (lambda z: (z, z), 2, "output=2: the model returns several outputs, 0 [2, 5], 1 [2, 5]."),
        (
            lambda z: {"a": (z, z)}, "a",
            "output='a' is several outputs, 0 [2, 5], 1 [2, 5], not one tensor of logits [N, K].",
        ),
        (
            lambda z: z.sum(), None,
            "the model returns a tensor of shape []; logits [N, K] or [N, K, *space] are expected.",
        ),
    ],
)  # fmt: skip
def test_output_that_is_not_there(end, output, text):
    with pytest.raises(lrp.CaptureError) as error:
        lrp.Explainer(Net(end).eval(), output=output)(X)
    assert str(error.value) == text


# ---------------------------------------------------------------- heads

HEADS = {
    "softmax": lambda z: z.softmax(-1),
    "log_softmax": lambda z: F.log_softmax(z, 1),
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_taken_off_and_that_is_said_once(head):
    explainer = lrp.Explainer(Net(HEADS[head]).eval())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        e, _ = explainer(X, 2), explainer(X, 1)
    assert [str(w.message) for w in said] == [
        f"the model ends in a {head}: its input, the logits, is explained."
    ]
    same(e.relevance, expected())
    same(e.logits, Net().eval()(X).detach())
    assert e.health.ok, e.health.problems


@pytest.mark.filterwarnings("ignore:no relevance reached the input")
def test_a_softmax_before_the_end_stays():
    constant = lrp.Composite([(lrp.family("softmax"), lrp.Constant())])
    e = lrp.Explainer(Net(lambda z: z.softmax(1) * 3).eval(), constant)(X)
    assert e.health.ok
    assert e.relevance.abs().max() == 0  # a softmax is a constant: all of it is the bias's
    assert float(e.health.shares["bias"][0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "end", [lambda z: z[:, 0], lambda z: z[:, :1], lambda z: z[:, :1].sigmoid().squeeze(1)]
)
@pytest.mark.filterwarnings("ignore:the model ends in a sigmoid")
def test_one_logit(end):
    """Explained is the logit itself, with its sign: [N, 1] whatever shape the model gives it."""
    e = lrp.Explainer(Net(end).eval())(X)
    assert e.logits.shape == (2, 1) and e.target.tolist() == [0, 0]
    same(e.relevance, expected(0))
    assert e.health.ok, e.health.problems


@pytest.mark.filterwarnings("ignore:the model ends in a sigmoid")
def test_several_labels_at_once():
    """A start of ones on two labels is the sum of their maps."""
    explainer = lrp.Explainer(Net(torch.sigmoid).eval())
    start = explainer(X, 0).logits * torch.tensor([[0.0, 1, 0, 1, 0]])
    same(explainer(X, start).relevance, explainer(X, 1).relevance + explainer(X, 3).relevance)


# ---------------------------------------------------------------- wrappers, types, layouts, sizes


def test_wrapped_for_several_devices_or_compiled():
    for wrapped in (nn.DataParallel(Net().eval()), torch.compile(Net().eval())):
        explainer = lrp.Explainer(wrapped)
        e = explainer(X, 2)
        same(e.relevance, expected())
        assert "conv" in [line.path for line in explainer.rules().lines]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(dtype):
    model = Net().eval().to(dtype)
    e = lrp.Explainer(model)(X.to(dtype), 2)
    raised = Net().eval()
    raised.load_state_dict(model.state_dict())
    assert e.relevance.dtype == torch.float32
    same(e.relevance, lrp.explain(raised, X.to(dtype).float(), 2).relevance)
    assert e.health.ok, e.health.problems


def test_casts_inside_are_followed_in_the_explainers_type():
    def end(z):
        return F.softmax(z.half(), -1, dtype=torch.float32).to(torch.bfloat16).float() * z.double().float()

    e = lrp.Explainer(Net(end).eval(), dtype=torch.float64)(X.double(), 2)
    assert e.relevance.dtype == torch.float64 and torch.isfinite(e.relevance).all()
    assert e.health.closing_error < 1e-9


def test_channels_last():
    model = Net().eval().to(memory_format=torch.channels_last)
    same(lrp.explain(model, X.contiguous(memory_format=torch.channels_last), 2).relevance, expected())


def test_a_buffer_of_another_type():
    class Scaled(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x):
            return super().forward((x * self.scale).to(x.dtype))

    e = lrp.explain(Scaled().eval(), X, 2)
    assert e.health.ok, e.health.problems
    torch.testing.assert_close(
        e.relevance, lrp.explain(Net().eval(), X * 2, 2).relevance, rtol=1e-3, atol=1e-5
    )


def test_several_input_sizes_and_batch_sizes_in_a_row():
    explainer = lrp.Explainer(Net().eval())
    for shape in [(2, 3, 16, 16), (1, 3, 16, 24), (5, 3, 16, 16), (3, 3, 9, 40), (2, 3, 16, 16)]:
        x = torch.randn(shape)
        e = explainer(x)
        assert e.relevance.shape == shape and e.health.ok, e.health.problems
        same(e.relevance, lrp.explain(Net().eval(), x).relevance)


def test_greyscale():
    model = Net(channels=1).eval()
    e = lrp.explain(model, X[:, :1])
    assert e.relevance.shape == (2, 1, 16, 16) and e.health.ok


class Caching(Net):
    """Makes a table for the input's size in its forward pass, as some of timm's models do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)
        self.calls, self.seen = 0, {}

    def forward(self, x):
        self.calls += 1
        self.seen[x.shape[-1]] = x[:1] + 1
        if self.table.shape[0] != x.shape[-1]:
            self.table = torch.linspace(0, 1, x.shape[-1])[:, None].expand(-1, 2).clone()
        return super().forward(x * self.table[:, 0])


def test_what_a_forward_pass_writes_on_its_model_is_taken_off_again():
    model = Caching().eval()
    e = lrp.explain(model, X)
    assert e.health.ok, e.health.problems
    assert model.table.shape == (1, 1) and model.calls == 0 and model.seen == {}
    again = lrp.explain(model, X)
    model(X)  # the model's own run makes its table: no weight has changed
    model.calls = 0
    assert again.health.ok


# ---------------------------------------------------------------- what cannot be explained


class Looping(nn.Module):
    def forward(self, x):
        while x.sum() > 1:
            x = x / 2
        return x.flatten(1)


class Indexing(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, : int(x.max())]


@pytest.mark.parametrize("model", [Looping(), Indexing()], ids=["loop", "size"])
def test_control_flow_on_pixels_names_the_line(model):
    with pytest.raises(lrp.CaptureError) as error:
        lrp.Explainer(model.eval())(X.abs())
    line = type(model).forward.__code__.co_firstlineno + 1
    text = str(error.value)
    assert text.startswith(
        f"{type(model).__name__} could not be captured for an input of shape [2, 3, 16, 16] at "
    )
    assert f"test_user_models.py:{line}" in text and "\n" not in text
    assert text.endswith(
        "(torch.export must be able to follow the forward pass: no branch may depend on pixel values)."
    )


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: lrp.explain(Net().eval(), X[:, :1]), lrp.InputError,
            "the images have 1 channels, shape [2, 1, 16, 16], and the model's first convolution, conv, takes 3: "
            "x must be [N, 3, H, W].",
        ),
        (
            lambda: lrp.explain(Net().eval(), X[..., :2]), lrp.CaptureError,
            "Net itself fails on an input of shape [2, 3, 16, 2]: RuntimeError: Calculated padded input size per "
            "channel: (16 x 2). Kernel size: (3 x 3). Kernel size can't be greater than actual input size",
        ),
        (
            lambda: lrp.Explainer(Net().eval(), class_names=["cat", "dog", "cow", "hen", "eel"])(X, "dgo"),
            lrp.TargetError,
            "no class 'dgo': did you mean 'dog' (1)? A name or an index from 0 to 4 is expected.",
        ),
        (
            lambda: lrp.explain(
                nn.Sequential(nn.AvgPool2d(4), nn.Flatten()).eval(), X, 0,
                lrp.Composite([(lrp.first, lrp.ZBox(-1, 1))]),
            ), lrp.CompositeError,
            "custom: ZBox(low=-1.0, high=1.0) needs a first conv or linear, and the image reaches none in this model.",
        ),
        (
            lambda: lrp.explain(Net(lambda z: z * z.flip(1)).eval(), X, 0,
                                lrp.Composite([(lrp.family("product"), lrp.SignalTakesAll())])),
            lrp.CompositeError,
            "SignalTakesAll at model (mul): the graph does not show which operand is the signal; use Halves() or "
            "SignalTakesAll(signal=0 or 1).",
        ),
        (lambda: lrp.SignalTakesAll(2), lrp.RuleError, "SignalTakesAll(signal=2): signal must be 0, 1 or None."),
        (
            lambda: lrp.Composite([], attention="full"), lrp.CompositeError,
            "attention='full': expected 'cp' or 'attnlrp'.",
        ),
        (
            lambda: lrp.register("mylib::op", family="activations"), lrp.RuleError,
            "register(family='activations'): the families are conv, linear, norm, layer_norm, pool, scale, sum, "
            "product, matmul, softmax, maxpool, activation, movement.",
        ),
    ],
)  # fmt: skip
def test_errors_word_for_word(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text


# ---------------------------------------------------------------- operations of one's own


@torch.library.custom_op("lrp_tests::swap_halves", mutates_args=())
def swap_halves(x: torch.Tensor) -> torch.Tensor:
    return torch.cat(x.chunk(2, 1)[::-1], 1)


@swap_halves.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("lrp_tests::snake", mutates_args=())
def snake(x: torch.Tensor) -> torch.Tensor:
    return x + x.sin() ** 2


@snake.register_fake
def _(x):
    return torch.empty_like(x)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(swap_halves(snake(self.conv(x))).mean((2, 3)))


def test_an_operation_of_ones_own_is_refused_until_it_is_registered():
    model = Own().eval().double()
    x = X.double()
    with pytest.raises(lrp.UnsupportedError) as error:
        lrp.explain(model, x, 2)
    line = Own.forward.__code__.co_firstlineno + 1
    assert str(error.value) == (
        "no rule for 2 of 5 operations:\n"
        f"  (model)   lrp_tests::snake         [N, 4, 14, 14]   test_user_models.py:{line}\n"
        f"  (model)   lrp_tests::swap_halves   [N, 4, 14, 14]   test_user_models.py:{line}\n"
        'Give them one: Composite([(op("lrp_tests::snake"), Pass())]), the others one with `lrp.register`; '
        "`lrp rules --known` lists what has one."
    )
    lrp.register("lrp_tests::snake", family="activation")

    @lrp.register("lrp_tests::swap_halves", family="movement")
    def _(op):
        return lrp.Movement(lambda r: [torch.cat(r[0].chunk(2, 1)[::-1], 1)])

    e = lrp.Explainer(model, "epsilon")(x, 2)
    assert e.health.ok, e.health.problems

    class Alone(nn.Module):
        def forward(self, x):
            return swap_halves(snake(x)).flatten(1)

    start = torch.arange(8.0).reshape(1, 8).double()
    e = lrp.explain(Alone().eval(), torch.randn(1, 4, 1, 2).double(), start)
    assert e.relevance.flatten().tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


# ---------------------------------------------------------------- Hugging Face

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "image_size": 32, "patch_size": 8, "num_labels": 5}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
HUGGING_FACE = {
    "ViT": SMALL,
    "DeiT": SMALL,
    "Beit": SMALL,
    "Dinov2": {k: v for k, v in SMALL.items() if k != "intermediate_size"},
    "ResNet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "ConvNext": {**STAGES, "num_stages": 2, "patch_size": 4},
    "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2],
             "window_size": 4, "num_labels": 5},
}  # fmt: skip


@pytest.mark.parametrize("kind", HUGGING_FACE)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hugging_face_image_classifiers(kind, attention):
    transformers = pytest.importorskip("transformers")
    if attention == "sdpa" and kind in ("ResNet", "ConvNext", "Swin"):
        pytest.skip("has no attention of several kinds")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**HUGGING_FACE[kind])
    config._attn_implementation = attention
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        own = model(x).logits
    e = lrp.Explainer(model, "cp_lrp")(x)
    torch.testing.assert_close(e.logits, own, rtol=1e-4, atol=1e-5)
    assert e.health.ok, e.health.problems
    assert e.relevance.abs().max() > 0
