"""The engine as a whole: every architecture closes, errors word for word, printed forms, what users rely on."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import lrp
from helpers.gradient import is_gradient_times_input

ARCHITECTURES = (
    "vgg11", "alexnet", "squeezenet1_1", "resnet18", "resnext50_32x4d", "googlenet", "inception_v3", "densenet121",
    "mobilenet_v2", "mnasnet0_5",
)  # fmt: skip
CLIPPED = ("mobilenet_v2",)  # ReLU6: its gradient stops at 6, relevance passes


def with_statistics(model: nn.Module, size: int) -> nn.Module:
    """Signed batch-norm scales, and statistics measured on noise, so that signal reaches both ends."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                sign = torch.where(torch.rand(len(module.weight), generator=generator) < 0.2, -1.0, 1.0)
                module.weight.copy_((torch.rand(len(sign), generator=generator) + 0.5) * sign)
                module.bias.copy_(0.2 * torch.randn(len(sign), generator=generator))
            module.momentum = None
            module.reset_running_stats()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        model(torch.randn(8, 3, size, size, generator=generator))
    return model.eval()


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    size = {"inception_v3": 96, "alexnet": 96}.get(name, 64)
    options = (
        {"init_weights": False, "aux_logits": False, "transform_input": False}
        if name in ("googlenet", "inception_v3")
        else {}
    )
    if name == "shallow_densenet":  # norms before activations, which cannot be folded, as in the deep one
        model = torchvision.models.DenseNet(16, (2, 2, 2), 32, num_classes=10)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    return with_statistics(model, size).double(), torch.randn(2, 3, size, size, dtype=torch.float64)


@pytest.fixture(scope="module")
def architecture(request):
    """Built, and captured, once for all tests of it: pytest runs them one after the other."""
    return build(request.param)


def of(*names):
    return pytest.mark.parametrize("architecture", names, indirect=True)


def closes(model, x, composite):
    e = lrp.Explainer(model, composite)(x)
    assert e.health.ok, e.health.problems
    assert e.health.logit_error < 1e-12
    assert e.health.closing_error < 1e-9
    totals = e.ledger.totals
    bound = 1e-9 * torch.maximum(totals["start"].abs(), totals["largest"])
    assert (totals["unexplained"].abs() <= bound).all()
    assert e.relevance.shape == x.shape
    assert (e.relevance.abs().amax((1, 2, 3)) > 0).all()


@of(*ARCHITECTURES)
@pytest.mark.parametrize("preset", ["epsilon_alpha2_beta1", None])
def test_every_architecture_closes_at_every_node(architecture, preset):
    closes(*architecture, preset)


@of("resnet18", "shallow_densenet")
@pytest.mark.parametrize("preset", [p for p in lrp.composites() if p != "kaifishr"])
def test_every_preset_closes(architecture, preset):
    closes(*architecture, lrp.preset(preset, low=-3.0, high=3.0))


@pytest.mark.parametrize(
    ("architecture", "top_k"), [("vgg11", 0.3), ("alexnet", 0.0)], indirect=["architecture"]
)
def test_kaifishr_closes_where_it_fits(architecture, top_k):
    closes(*architecture, lrp.preset("kaifishr", top_k=top_k))


def test_kaifishr_says_where_it_does_not_fit():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(64, 5)).eval()
    with pytest.raises(lrp.CompositeError) as error:
        lrp.Explainer(model, "kaifishr")(X)
    assert str(error.value) == (
        "Proportional(window=(2, 2), epsilon=1e-05) at 1 (max_pool2d): it turns [6, 6] into [4, 4], and an average "
        "pool over 2 x 2 would give [3, 3]; use Proportional()."
    )


@of(*(name for name in ARCHITECTURES if name not in CLIPPED))
def test_zero_is_gradient_times_input(architecture):
    is_gradient_times_input(*architecture, 3)


def test_efficientnet_lite_is_known():
    import timm

    torch.manual_seed(0)
    model = with_statistics(timm.create_model("tf_efficientnet_lite0", num_classes=10), 64).double()
    e = lrp.Explainer(model)(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert e.health.ok, e.health.problems


# ---------------------------------------------------------------- errors, word for word


class Erf(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.special.bessel_j0(self.conv(x)).mean((2, 3)))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def test_an_operation_without_a_rule_is_an_error_that_says_where():
    with pytest.raises(lrp.UnsupportedError) as error:
        lrp.Explainer(Erf().eval())(X)
    line = Erf.forward.__code__.co_firstlineno + 1
    assert str(error.value) == (
        "no rule for 1 of 4 operations:\n"
        f"  (model)   special_bessel_j0   [N, 4, 6, 6]   test_engine.py:{line}\n"
        'Give them one: Composite([(op("special_bessel_j0"), Pass())]); `lrp rules --known` lists what has one.'
    )


def test_a_rule_for_it_can_be_given():
    composite = lrp.Composite([(lrp.op("special_bessel_j0"), lrp.Pass())])
    e = lrp.Explainer(Erf().double().eval(), composite)(X.double())
    assert e.health.ok
    assert "special_bessel_j0" in [row.op for row in e.ledger]


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x.flatten(1)
        return -x.flatten(1)


def test_a_branch_on_pixels_cannot_be_captured_and_is_named():
    with pytest.raises(lrp.CaptureError) as error:
        lrp.Explainer(Branching().eval())(X)
    line = Branching.forward.__code__.co_firstlineno + 1
    text = str(error.value)
    assert text.startswith("Branching could not be captured for an input of shape [2, 3, 8, 8]")
    assert f"test_engine.py:{line}" in text
    assert text.endswith(
        "(torch.export must be able to follow the forward pass: no branch may depend on pixel values)."
    )
    assert "\n" not in text


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: lrp.Explainer("model"), lrp.LrpError, "Explainer takes a torch.nn.Module, got str."),
        (
            lambda: lrp.Explainer(small(), dtype=torch.float16), lrp.LrpError,
            "dtype=torch.float16: relevance is computed in torch.float32 or torch.float64; ε vanishes in less.",
        ),
        (
            lambda: lrp.Explainer(small(), precision="half"), lrp.LrpError,
            "precision='half': expected 'exact' or 'mixed'.",
        ),
        (
            lambda: lrp.Explainer(small(), seed="logits"), lrp.LrpError,
            "seed='logits': expected one of 'logit', 'one', 'softmax'.",
        ),
        (
            lambda: lrp.Explainer(small())([1, 2]), lrp.InputError,
            "images must be a torch.Tensor [N, C, H, W], or the inputs tensors in a tuple or a dictionary, got a list of 2.",
        ),
        (
            lambda: lrp.Explainer(small())(X.int()), lrp.InputError,
            "images must be a floating tensor [N, C, H, W], got torch.int32 of shape [2, 3, 8, 8].",
        ),
        (
            lambda: lrp.Explainer(small())(X[:0]), lrp.InputError,
            "the batch is empty: got shape [0, 3, 8, 8], expected at least one image.",
        ),
        (
            lambda: lrp.Explainer(small())(torch.where(X == X[1, 0, 0, 0], torch.nan, X)), lrp.InputError,
            "NaN or infinite pixels in image 1: every pixel must be finite.",
        ),
        (
            lambda: lrp.Explainer(small())(X, 5), lrp.TargetError,
            "target 5 is out of range: the model has 5 classes, 0 to 4.",
        ),
        (
            lambda: lrp.Explainer(small())(X, [1, 2, 3]), lrp.TargetError,
            "3 targets for 2 images: give one target, or one per image.",
        ),
        (
            lambda: lrp.Explainer(small())(X, torch.zeros(2, 4)), lrp.TargetError,
            "a start relevance must have shape [2, 5] (images, classes), got [2, 4].",
        ),
        (
            lambda: lrp.Explainer(small())(X, torch.full((2, 5), torch.nan)), lrp.TargetError,
            "the start relevance holds NaN or infinite values; every entry must be finite.",
        ),
        (
            lambda: lrp.Explainer(small())(X, "cat"), lrp.TargetError,
            "target 'cat' is a class name, and this explainer knows none: pass class_names=[...].",
        ),
        (
            lambda: lrp.Explainer(small())(X, 1.5), lrp.TargetError,
            "target 1.5 is a float: expected 'predicted', a class index, a class name, lrp.Contrast(a, b), "
            "one of these per image, or a start relevance [N, K].",
        ),
        (
            lambda: lrp.Explainer(small(), "epsilon_gamma_box"), lrp.CompositeError,
            "epsilon_gamma_box needs the range of the model's input, which a bare module does not tell: "
            'lrp.preset("epsilon_gamma_box", low=..., high=...) with the normalised values of a black and a white pixel.',
        ),
        (
            lambda: lrp.Explainer(small(), lrp.Composite([(lrp.path("1"), lrp.Gamma())]))(X), lrp.CompositeError,
            "Gamma(0.25) fits none of the 1 operations that path(1) matches, such as 1 (relu), family activation; "
            "it is defined for conv, layer_norm, linear, norm, pool, scale.",
        ),
        (
            lambda: lrp.Explainer(small(), lrp.Composite([(lrp.path("5.*"), lrp.Gamma())]))(X), lrp.CompositeError,
            "path(5.*) matches no operation; the nearest paths are 3, 2, 1.",
        ),
        (
            lambda: lrp.Explainer(small(), lrp.Composite([(lrp.path("3"), lrp.Pass())]))(X), lrp.CompositeError,
            "Pass at 3 (linear): it changes the shape from [N, 144] to [N, 5], and Pass hands relevance on "
            "element by element; use Epsilon().",
        ),
        (
            lambda: lrp.Composite([lrp.Flat()]), lrp.CompositeError,
            "Composite takes (predicate, rule) pairs, got Flat: for example "
            "Composite([(family('conv'), Gamma(0.25)), (first, Flat())]).",
        ),
        (
            lambda: lrp.preset("epsilon", top_k=2), lrp.CompositeError,
            "top_k=2: expected a fraction from 0 (off) to 1 of an image's elements.",
        ),
        (
            lambda: lrp.AlphaBeta(2, 2), lrp.RuleError,
            "AlphaBeta(alpha=2, beta=2): alpha - beta must be 1 and beta >= 0, for example AlphaBeta(2, 1) or "
            "AlphaBeta(1, 0).",
        ),
        (lambda: lrp.Gamma(-1.0), lrp.RuleError, "Gamma(gamma=-1.0): gamma must be >= 0; gamma=0 is LRP-ε."),
        (
            lambda: lrp.Epsilon(-1.0), lrp.RuleError,
            "Epsilon(epsilon=-1.0): epsilon must be a finite number >= 0; epsilon=0 divides by the denominator as it is.",
        ),
        (lambda: lrp.Zero(0.1), lrp.RuleError, "Zero(epsilon=0.1): Zero has no epsilon; use Epsilon(0.1)."),
        (lambda: lrp.ZPlus(bias="full"), lrp.RuleError, "ZPlus(bias='full'): bias must be 'absorb' or 'ignore'."),
        (lambda: lrp.ZBox(1.0, -1.0), lrp.RuleError, "ZBox(low=1.0, high=-1.0): low must not exceed high."),
    ],
)  # fmt: skip
def test_errors_word_for_word(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text


def test_alpha_minus_beta_is_not_compared_exactly():
    assert lrp.AlphaBeta(1.1, 0.1).alpha == 1.1  # 1.1 - 0.1 is not 1.0 in floating point


# ---------------------------------------------------------------- printed forms


def test_the_rules_table_as_printed():
    explainer = lrp.Explainer(small(), "epsilon_plus_flat")
    assert str(explainer.rules(X)) == (
        "composite: epsilon_plus_flat\n"
        "z⁺ in convolutions, ε in linear layers, flat first layer: smooth, class-focused.\n"
        "\n"
        "module  operation  output        rule     note\n"
        "0       conv2d     [N, 4, 6, 6]  Flat\n"
        "1       relu       [N, 4, 6, 6]  Pass\n"
        "2       flatten    [N, 144]      Move     input >= 0\n"
        "3       linear     [N, 5]        Epsilon  input >= 0"
    )


def test_the_ledger_prints_its_balance():
    e = lrp.Explainer(small().double(), "epsilon")(X.double(), 1)
    lines = str(e.ledger).splitlines()
    assert lines[0].split() == [
        "module",
        "operation",
        "rule",
        "in",
        "out",
        "bias",
        "ε",
        "dropped",
        "unexplained",
    ]
    assert lines[-1].startswith("start ") and " = input " in lines[-1]
    assert len(lines) == len(e.ledger) + 2


# ---------------------------------------------------------------- targets and seeds


def test_targets_agree_with_each_other():
    model = small().double()
    x = X.double()
    explainer = lrp.Explainer(model, "epsilon_plus", class_names=["ant", "bee", "cat", "dog", "elk"])
    logits = model(x).detach()
    start = torch.zeros(2, 5, dtype=torch.float64)
    start[:, 2] = logits[:, 2]
    by_index = explainer(x, 2).relevance
    for target in ("cat", [2, 2], ["cat", 2], torch.tensor([2, 2]), start, start.tolist(), start.numpy()):
        assert torch.allclose(explainer(x, target).relevance, by_index, rtol=1e-12, atol=1e-15)
    predicted = explainer(x, "predicted")
    assert predicted.target.tolist() == logits.argmax(1).tolist()
    contrast = explainer(x, lrp.Contrast("cat", "dog"))
    expected = by_index - explainer(x, 3).relevance
    assert torch.allclose(contrast.relevance, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(contrast.start.sum(1), logits[:, 2] - logits[:, 3])
    against = explainer(x, lrp.Contrast(0, "predicted"))
    assert torch.allclose(against.start.sum(1), logits[:, 0] - logits.amax(1))


class Column:
    """As a pandas column: entries under labels of their own, here from the last to the first."""

    def __init__(self, values):
        self.values = np.array(values, dtype=object if isinstance(values[0], str) else None)

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, label):
        return self.values[len(self.values) - 1 - label]

    def __iter__(self):
        return iter(self.values)


NAMES = ["ant", "bee", "cat", "dog", "elk"]
AS_DATA_COMES = {
    "array": lambda: np.array([3, 1]),
    "array_uint8": lambda: np.array([3, 1], np.uint8),
    "array_of_names": lambda: np.array(["dog", "bee"]),
    "array_of_names_as_objects": lambda: np.array(["dog", 1], dtype=object),
    "list_of_numpy_integers": lambda: [np.int64(3), np.int16(1)],
    "list_of_numpy_names": lambda: list(np.array(["dog", "bee"])),
    "list_of_torch_integers": lambda: list(torch.tensor([3, 1])),
    "tensor_of_int32": lambda: torch.tensor([3, 1], dtype=torch.int32),
    "column": lambda: Column([3, 1]),
    "column_of_names": lambda: Column(["dog", "bee"]),
    "tuple": lambda: ("dog", 1),
}


@pytest.mark.parametrize("name", AS_DATA_COMES)
def test_targets_as_data_comes(name):
    explainer = lrp.Explainer(small(), "epsilon_plus", class_names=NAMES)
    target, expected = AS_DATA_COMES[name](), explainer(X, [3, 1])
    assert torch.equal(explainer(X, target).relevance, expected.relevance)
    assert explainer(X, target).target.tolist() == [3, 1]
    assert torch.equal(explainer.many(X, [target, 0]).relevance[0], expected.relevance)
    # One target of the sequence for all images at a time.
    assert explainer.many(X, target).target.tolist() == [[3, 3], [1, 1]]


@pytest.mark.parametrize(
    "one", [np.int64(3), np.array(3), torch.tensor(3), np.str_("dog"), np.array("dog"), np.uint8(3)], ids=repr
)
def test_one_target_as_data_comes(one):
    explainer = lrp.Explainer(small(), "epsilon_plus", class_names=NAMES)
    assert torch.equal(explainer(X, one).relevance, explainer(X, 3).relevance)
    assert torch.equal(
        lrp.explain(small(), X, one, "epsilon_plus", class_names=NAMES).relevance, explainer(X, 3).relevance
    )
    assert (
        explainer(X, lrp.Contrast(one, 1)).start.argmax(1).tolist()
        == explainer(X, lrp.Contrast(3, 1)).start.argmax(1).tolist()
    )


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (np.array([1, 2, 3]), "3 targets for 2 images: give one target, or one per image."),
        (np.array([1, 7]), "target 7 is out of range: the model has 5 classes, 0 to 4."),
        (np.array([0.5, 1.5]), "a start relevance must have shape [2, 5] (images, classes), got [2]."),
        (np.zeros((2, 4)), "a start relevance must have shape [2, 5] (images, classes), got [2, 4]."),
        (np.zeros((2, 5, 1), int), "a start relevance must have shape [2, 5] (images, classes), got [2, 5, 1]."),
        (
            np.array([["ant", "bee"]]),
            "a target array of shape [1, 2] holds <U3: expected N class indices or names, or a start relevance [N, K].",
        ),
        (
            np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
            "a target array of shape [2] holds datetime64[D]: expected N class indices or names, or a start relevance [N, K].",
        ),
        (
            np.array([True, False]),
            "target True is a bool: expected 'predicted', a class index, a class name, lrp.Contrast(a, b), one of these per "
            "image, or a start relevance [N, K].",
        ),
        (
            [["ant"], ["bee"]],
            "nested targets must be a start relevance, numbers [N, K] with rows of one length, got [['ant'], ['bee']].",
        ),
        (
            [[1.0, 2.0], [1.0]],
            "nested targets must be a start relevance, numbers [N, K] with rows of one length, got [[1.0, 2.0], [1.0]].",
        ),
        (
            [torch.tensor(0.5), 1],
            "target 0.5 is a float: expected 'predicted', a class index, a class name, lrp.Contrast(a, b), one of these per "
            "image, or a start relevance [N, K].",
        ),
        (
            [torch.tensor([1]), 1],
            "target tensor([1]) is a Tensor: expected 'predicted', a class index, a class name, lrp.Contrast(a, b), one of "
            "these per image, or a start relevance [N, K].",
        ),
    ],
)  # fmt: skip
def test_targets_that_are_none(target, text):
    with pytest.raises(lrp.TargetError) as error:
        lrp.explain(small(), X, target, "epsilon_plus", class_names=NAMES)
    assert str(error.value) == text


def test_many_is_each_alone():
    model, x = small().double(), X.double()
    explainer = lrp.Explainer(model, "epsilon_alpha2_beta1")
    start = torch.randn(2, 5, dtype=torch.float64)
    targets = [0, "predicted", [1, 4], lrp.Contrast(1, 2), start]
    many = explainer.many(x, targets)
    assert many.relevance.shape == (5, *x.shape) and len(many) == 5
    for one, target in zip(many, targets, strict=True):
        alone = explainer(x, target)
        assert torch.allclose(one.relevance, alone.relevance, rtol=1e-10, atol=1e-13)
        assert one.target.tolist() == alone.target.tolist()
        assert one.health.ok


def test_seeds():
    model, x = small().double(), X.double()
    logits = model(x)
    assert torch.allclose(
        lrp.explain(model, x, 1, "epsilon", seed="one").start, F.one_hot(torch.tensor([1, 1]), 5).double()
    )
    softmax = lrp.explain(model, x, 1, "epsilon", seed="softmax")
    assert torch.allclose(softmax.start, logits.softmax(1))
    given = torch.randn(2, 5, dtype=torch.float64)
    for seed in ("logit", "one", "softmax"):
        assert torch.equal(lrp.explain(model, x, given, "epsilon", seed=seed).start, given)
    assert lrp.Explainer(model, "kaifishr").seed == "softmax"
    lowest = int(logits[0].argmin())
    assert logits[0, lowest] < 0
    notes = lrp.explain(model, x[:1], lowest, "epsilon", seed="one").health.notes
    assert (
        "seed 'one' on a negative logit turns the signs around: what speaks for the class looks negative"
        in notes
    )
    highest = int(logits[0].argmax())
    assert not any(
        "turns the signs" in n for n in lrp.explain(model, x[:1], highest, "epsilon", seed="one").health.notes
    )


# ---------------------------------------------------------------- the ledger notices


class Mixing(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.conv, self.mix, self.linear = nn.Conv2d(3, 4, 3), mix, nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.mix(F.relu(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("mix", [lambda y: y.flip(0), lambda y: y.softmax(0), lambda y: y / y.max()])
def test_images_that_change_each_other_are_said(mix):
    torch.manual_seed(5)
    explainer = lrp.Explainer(Mixing(mix).eval())
    x = torch.randn(3, 3, 8, 8)
    (problem,) = explainer(x).health.problems
    change = re.fullmatch(
        r"the images of a batch change each other's logits, by (\S+) of the largest \(limit 1e-03\): "
        r"explain them one at a time",
        problem,
    )
    assert change and float(change[1]) > 0.01
    assert explainer(x[:1]).health.ok
    assert lrp.Explainer(Mixing(nn.Identity()).eval())(x).health.ok


def test_a_norm_over_the_batch_is_refused():
    def norm(y):
        return F.layer_norm(y.permute(1, 2, 3, 0), (y.shape[0],)).permute(3, 0, 1, 2)

    with pytest.raises(
        lrp.UnsupportedError, match=r"no rule for 1 of 7 operations:\n.*layer_norm.*\[4, 6, 6, N\]"
    ):
        lrp.explain(Mixing(norm).eval(), torch.randn(3, 3, 8, 8))


def test_a_wrong_rule_shows_in_the_ledger(monkeypatch):
    model, x = small().double(), X.double()
    rule = lrp.ZPlus()
    original = type(rule).through_affine

    def wrong(self, op, site, a, z, relevance):
        flow = original(self, op, site, a, z, relevance)
        return flow._replace(relevance=tuple(r * 1.001 for r in flow.relevance))

    monkeypatch.setattr(type(rule), "through_affine", wrong)
    health = lrp.Explainer(model, "epsilon_plus")(x, 0).health
    assert not health.ok
    assert health.problems == [p for p in health.problems if "0 (conv2d, ZPlus) does not close" in p]


def test_a_ledger_of_changed_weights_or_images_is_refused():
    model, x = small(), X.clone()
    e = lrp.Explainer(model, "epsilon")(x)
    with torch.no_grad():
        model[0].weight.mul_(1.1)
    with pytest.raises(lrp.LedgerError) as error:
        _ = e.ledger
    assert (
        str(error.value) == "the model's weights changed after the explanation: explain again for a ledger."
    )
    e = lrp.Explainer(model, "epsilon")(x)
    x.add_(1)
    with pytest.raises(lrp.LedgerError) as error:
        _ = e.health
    assert str(error.value) == "the images were written to after they were explained: explain them again."


def test_capture_is_shared_by_explainers_of_one_model_but_not_with_another_stride(monkeypatch):
    from lrp.engine import explainer

    counted = []
    original = explainer.capture
    monkeypatch.setattr(explainer, "capture", lambda *a: counted.append(1) or original(*a))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for preset in ("epsilon", "epsilon_plus"):
        lrp.Explainer(model, preset)(X)
    assert len(counted) == 1
    model[0].stride = (2, 2)
    e = lrp.Explainer(model, "epsilon")(X)
    assert len(counted) == 2 and e.health.ok


def test_train_mode_is_said_once_and_put_back():
    model = small().train()
    explainer = lrp.Explainer(model, "epsilon")
    with pytest.warns(
        UserWarning, match="the model is in train mode: it is explained in eval mode, and left as it was"
    ):
        explainer(X)
    assert all(m.training for m in model.modules())


def test_compiled_program_gives_the_same():
    pytest.importorskip("torch._inductor")
    model = small()
    plain = lrp.Explainer(model, "epsilon_plus_flat")(X, 1)
    compiled = lrp.Explainer(model, "epsilon_plus_flat", compile=True)(X, 1)
    assert torch.allclose(plain.relevance, compiled.relevance, rtol=1e-4, atol=1e-7)
