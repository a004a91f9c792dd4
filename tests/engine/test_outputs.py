"""Any output: functions of it, one number per image, logits for each place, several heads, embeddings."""

import pytest
import torch
from torch import Tensor, nn

import lrp

ZERO = lrp.preset("epsilon", epsilon=1e-12)  # of a net with ReLU: gradient x input, biases apart
RANDOM = torch.Generator().manual_seed(0)
PRESETS = [name for name in lrp.composites() if "box" not in name and name != "deep_taylor"]
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def images(dims: int = 2, n: int = 3) -> Tensor:
    return torch.randn(n, 3, *[8] * dims, dtype=torch.float64, generator=RANDOM)


def dense_net(dims: int = 2, classes: int = 4) -> nn.Module:
    """Logits for each place."""
    torch.manual_seed(1)
    conv = CONV[dims]
    return nn.Sequential(conv(3, 6, 3, padding=1), nn.ReLU(), conv(6, classes, 1)).double().eval()


class Several(nn.Module):
    """A dictionary, as segmentation and multi-task nets return it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.row = dense_net(), nn.Linear(4, 2, dtype=torch.float64)
        self.eval()

    def forward(self, x: Tensor) -> dict:
        out = self.dense(x)
        pooled = out.mean((2, 3))
        return {"out": out, "heads": [pooled, self.row(pooled)], "age": pooled.sum(1)}


def gradient_times_input(x: Tensor, value) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(value(leaf).sum(), leaf)[0] * x


def close(a: Tensor, b: Tensor, limit: float = 1e-9) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= limit * max(float(b.abs().max()), 1.0)


# ---------------------------------------------------------------- functions of the output


def test_a_function_of_the_output_is_traced_with_it():
    model, x = Several(), images()
    e = lrp.Explainer(model, ZERO, output=lambda out: out["out"].mean((2, 3)))(x, 2)
    close(e.relevance, gradient_times_input(x, lambda x: model(x)["out"].mean((2, 3))[:, 2]))
    close(e.logits, model(x)["out"].mean((2, 3)).detach())
    assert e.health.ok
    close(e.relevance, lrp.Explainer(model, ZERO, output=("heads", 0))(x, 2).relevance)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_function_is_as_a_model_that_ends_in_it(preset):
    class Ends(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            out = self.model(x)
            return torch.stack([out["heads"][0].amax(1), out["age"] * 2], 1)

    model, x = Several(), images()
    ours = lrp.Explainer(
        model, preset, output=lambda o: torch.stack([o["heads"][0].amax(1), o["age"] * 2], 1)
    )(x)
    close(ours.relevance, lrp.Explainer(Ends(model).eval(), preset)(x).relevance)


def test_ordinal_hierarchical_and_deep_supervision():
    model, x = Several(), images()
    ordinal = lrp.Explainer(model, ZERO, output=lambda o: o["heads"][0].sum(1))(
        x
    )  # the sum of K - 1 thresholds
    close(ordinal.relevance, gradient_times_input(x, lambda x: model(x)["heads"][0].sum(1)))
    coarse = lrp.Explainer(
        model,
        ZERO,
        output=lambda o: torch.stack([o["heads"][0][:, :2].sum(1), o["heads"][0][:, 2:].sum(1)], 1),
    )
    fine = lrp.Explainer(model, ZERO, output=("heads", 0))
    close(
        coarse(x, 1).relevance, fine.many(x, [2, 3]).relevance.sum(0)
    )  # a super-class is the sum of its classes
    supervised = lrp.Explainer(model, ZERO, output=lambda o: (o["heads"][0][:, :2] + o["heads"][1]) / 2)(x, 0)
    close(
        supervised.relevance,
        gradient_times_input(x, lambda x: (model(x)["heads"][0][:, 0] + model(x)["heads"][1][:, 0]) / 2),
    )
    assert supervised.health.ok


def test_each_label_on_its_own():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Sigmoid()).double().eval()
    x = images()
    with pytest.warns(UserWarning, match="the model ends in a sigmoid: its input, the logits, is explained"):
        each = lrp.Explainer(model, ZERO).many(x, range(5))
    for k in range(5):
        close(each.relevance[k], gradient_times_input(x, lambda x, k=k: model[:2](x)[:, k]))
    assert "probability" in each[1]._repr_html_()


def test_the_probability_of_a_label_is_its_sigmoid():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Sigmoid()).double().eval()
    x = images(n=1)
    explainer = lrp.Explainer(model, ZERO)
    explainer._warned = {"the model ends in a sigmoid: its input, the logits, is explained."}
    assert f"{100 * float(model(x)[0, 1].detach()):.3g} %" in explainer(x, 1)._repr_html_()


def test_one_number_keeps_its_sign():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1, bias=False), nn.Flatten(0)).double().eval()  # [N]
    x = images()
    e = lrp.Explainer(model, ZERO)(x)
    assert e.logits.shape == (3, 1)
    close(e.relevance.flatten(1).sum(1), model(x).detach())  # negative where the output is
    assert bool((model(x) < 0).any()) and bool((model(x) > 0).any())
    for i, value in enumerate(model(x).tolist()):
        word = "positive" if value > 0 else "negative"
        assert f"image {i}: output {value:.4g} ({word})" in str(e)
        assert any(f"image {i}: the output is {word}" in note for note in e.health.notes)


# ---------------------------------------------------------------- logits for each place


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_targets_of_places(dims, n):
    model, x = dense_net(dims), images(dims, n)
    explainer = lrp.Explainer(model, ZERO)
    logits = model(x).detach()
    winner = torch.nn.functional.one_hot(logits.argmax(1), 4).movedim(-1, 1)
    mask = torch.rand(n, *[8] * dims, generator=RANDOM) < 0.4
    place = (1, *[3] * dims)
    weights = torch.randn(logits.shape, dtype=torch.float64, generator=RANDOM)
    wanted = {
        "class": (2, lambda z: z[:, 2]),
        "predicted": ("predicted", lambda z: z * winner),
        "place": (place, lambda z: z[(slice(None), *place)]),
        "predicted at a place": (
            ("predicted", *place[1:]),
            lambda z: (z * winner)[(slice(None), slice(None), *place[1:])],
        ),
        "mask": (mask, lambda z: z * winner * mask.unsqueeze(1)),
        "region predicted": (lrp.Region(1), lambda z: z[:, 1] * winner[:, 1]),
        "region and mask": (lrp.Region(1, where=mask), lambda z: z[:, 1] * mask),
        "one mask for all": (lrp.Region(3, where=mask[0].numpy()), lambda z: z[:, 3] * mask[0]),
        "everything predicted": (lrp.Region("predicted"), lambda z: z * winner),
        "contrast": (lrp.Contrast(0, 1), lambda z: z[:, 0] - z[:, 1]),
        "start relevance": (logits * weights, lambda z: z * weights),
        "one for each": (
            [lrp.Region(i % 4) for i in range(n)],
            lambda z: torch.stack([z[i, i % 4] * winner[i, i % 4] for i in range(n)]),
        ),
    }
    for name, (target, value) in wanted.items():
        e = explainer(x, target)
        expected = gradient_times_input(x, lambda x, value=value: value(model(x)))
        assert float((e.relevance - expected).abs().max()) < 1e-8 * max(float(expected.abs().max()), 1), name
        close(
            e.start.flatten(1).sum(1),
            value(logits).double().flatten(1).sum(1)
            if n and value(logits).dim() > 1
            else value(logits).double(),
        )
        assert e.health.ok, (name, e.health)
    many = explainer.many(x, [t for t, _ in wanted.values()])
    assert torch.equal(many.relevance[0], explainer(x, 2).relevance)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "kaifishr"])  # which starts from the softmax
def test_regions_of_a_partition_sum_to_the_whole(preset):
    model, x = dense_net(), images()
    explainer = lrp.Explainer(model, preset)
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[:, :3] = True
    parts = explainer.many(x, [lrp.Region(2, where=left), lrp.Region(2, where=~left)])
    close(parts.relevance.sum(0), explainer(x, 2).relevance)
    classes = explainer.many(x, [lrp.Region(k) for k in range(4)])
    close(classes.relevance.sum(0), explainer(x).relevance)


def test_the_class_of_a_region_is_named():
    explainer = lrp.Explainer(dense_net(), class_names=["sky", "tree", "road", "car"])
    x = images(n=1)
    e = explainer(x, lrp.Region("road", where=torch.ones(8, 8)))
    assert e.target.tolist() == [2] and "road at 64 places" in e._repr_html_()
    assert torch.equal(e.relevance, explainer(x, 2).relevance)
    assert "class 2 at 64 places" in repr(e)


def test_a_softmax_over_classes_at_every_place():
    model, x = dense_net(), images()
    with pytest.warns(UserWarning, match="the model ends in a softmax"):
        e = lrp.Explainer(nn.Sequential(model, nn.Softmax(1)).eval(), ZERO)(x, 1)
    close(e.relevance, lrp.Explainer(model, ZERO)(x, 1).relevance)
    assert e.health.ok


def test_segmentation_of_torchvision():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    e = lrp.Explainer(model, output="out", dtype=torch.float64)(x, lrp.Region("predicted"))
    assert e.logits.shape == (2, 5, 64, 64) and e.relevance.shape == x.shape and e.health.ok, e.health


# ---------------------------------------------------------------- embeddings


def embedding_net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 7)).double().eval()


def test_similarity_is_the_cosine():
    model, x, other = embedding_net(), images(), images()
    explainer = lrp.Explainer(model, ZERO)
    z, w = model(x).detach(), model(other).detach()
    cosine = torch.cosine_similarity(z, w)
    expected = gradient_times_input(x, lambda x: (model(x) * w).sum(1) / (z.norm(dim=1) * w.norm(dim=1)))
    for to in (other, w):
        e = explainer(x, lrp.Similarity(to=to))
        close(e.start.sum(1), cosine)
        close(e.relevance, expected)
        assert e.health.ok and "similarity" in e._repr_html_()
    back = explainer(other, lrp.Similarity(to=x))
    close(back.start.sum(1), cosine)
    for to in (other[:1], w[0], w[:1]):
        close(explainer(x, lrp.Similarity(to=to)).start.sum(1), torch.cosine_similarity(z, w[:1]))
    both = explainer.many(x, [lrp.Similarity(to=other), 0])
    close(both.relevance[0], expected)
    one = explainer(x[1:2], lrp.Similarity(to=other[1:2]))
    close(one.relevance, expected[1:2])


# ---------------------------------------------------------------- what cannot be

DENSE = images(n=2)
BAD = {
    "a place outside": (
        lambda: lrp.Explainer(dense_net())(DENSE, (1, 3, 8)),
        "target (1, 3, 8): expected (class, *position) with a position within [8, 8].",
    ),
    "a region of logits without places": (
        lambda: lrp.Explainer(embedding_net())(DENSE, lrp.Region(1)),
        "target Region(class_=1, where='predicted') names places, and this model gives one logit per class, [N, K], without places.",
    ),
    "a mask of another size": (
        lambda: lrp.Explainer(dense_net())(DENSE, lrp.Region(1, where=torch.ones(4, 4))),
        "Region(where=...): expected 'predicted' or a mask [8, 8] or [2, 8, 8], got [4, 4].",
    ),
    "a word": (
        lambda: lrp.Explainer(dense_net())(DENSE, lrp.Region(1, where="left")),
        "Region(where=...): expected 'predicted' or a mask [8, 8] or [2, 8, 8], got 'left'.",
    ),
    "a start of another size": (
        lambda: lrp.Explainer(dense_net())(DENSE, torch.ones(2, 4)),
        "a start relevance must have shape [2, 4, 8, 8] (images, classes, *space), and a mask of places [2, 8, 8], got [2, 4].",
    ),
    "no such class": (
        lambda: lrp.Explainer(dense_net())(DENSE, lrp.Region(9)),
        "target 9 is out of range: the model has 4 classes, 0 to 3.",
    ),
    "another embedding": (
        lambda: lrp.Explainer(embedding_net())(DENSE, lrp.Similarity(to=torch.ones(5))),
        "Similarity(to=...): an embedding of shape [5] for embeddings [2, 7]: expected [7], [1, 7] or [2, 7].",
    ),
    "an embedding of length 0": (
        lambda: lrp.Explainer(embedding_net())(DENSE, lrp.Similarity(to=torch.zeros(7))),
        "Similarity(to=...): an embedding of length 0 has no direction.",
    ),
    "a function that gives no tensor": (
        lambda: lrp.Explainer(embedding_net(), output=lambda out: {"z": out})(DENSE),
        "the function output= returns several outputs, 'z' [2, 7], not one tensor of logits [N, K].",
    ),
    "one number for all": (
        lambda: lrp.Explainer(embedding_net(), output=lambda out: out.sum())(DENSE),
        "the model returns a tensor of shape []; logits [N, K] or [N, K, *space] are expected.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_word_for_word(case):
    call, text = BAD[case]
    with pytest.raises(lrp.LrpError) as caught:
        call()
    assert str(caught.value) == text
