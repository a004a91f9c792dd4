"""Models of several inputs, and of inputs that are no images: relevance in their structure, held ones, ids, dimensions."""

import collections

import pytest
import torch
from torch import Tensor, nn

import lrp

torch.manual_seed(0)
N, C, SIDE, FEATURES, LENGTH = 3, 3, 8, 6, 7
IMAGE = torch.randn(N, C, SIDE, SIDE, dtype=torch.float64)
META = torch.randn(N, FEATURES, dtype=torch.float64)
MASK = torch.rand(N, 1, SIDE, SIDE) > 0.3
IDS = torch.randint(0, 10, (N, LENGTH))
PRESETS = [name for name in lrp.composites() if "box" not in name and name != "deep_taylor"]
ZERO = lrp.preset("epsilon", epsilon=1e-12)  # of a net with ReLU: gradient x input, biases apart


class Net(nn.Module):
    """An image, a table row, a mask of pixels, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.row, self.words = nn.Conv2d(C, 4, 3), nn.Linear(FEATURES, 4), nn.Embedding(10, 4)
        self.head = nn.Linear(12, 5)

    def forward(
        self, image: Tensor, meta: Tensor, mask: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        if mask is not None:
            image = image * mask
        seen = self.conv(image).relu().mean((2, 3))
        text = torch.zeros_like(seen) if ids is None else self.words(ids).mean(1)
        return self.head(torch.cat([seen, self.row(meta).relu(), text], 1))


def net() -> Net:
    torch.manual_seed(1)
    return Net().double().eval()


def gradient_times_input(model: nn.Module, inputs: list[Tensor], call, target: int) -> list[Tensor]:
    """By autograd alone."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(call(*leaves)[:, target].sum(), leaves)
    return [g * x for g, x in zip(gradients, inputs, strict=True)]


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= 1e-9 * max(float(b.abs().max()), 1.0)


WAYS = {
    "a tuple": lambda e, **k: e((IMAGE, META, MASK), **k).relevance,
    "a list": lambda e, **k: e([IMAGE, META, MASK], **k).relevance,
    "a dictionary": lambda e, **k: tuple(
        e({"image": IMAGE, "meta": META, "mask": MASK}, **k).relevance.values()
    ),
    "a mapping": lambda e, **k: tuple(
        e(collections.UserDict({"image": IMAGE, "meta": META, "mask": MASK}), **k).relevance.values()
    ),
    "by name": lambda e, **k: tuple(e(image=IMAGE, meta=META, mask=MASK, **k).relevance.values()),
    "one, others by name": lambda e, **k: tuple(e(IMAGE, meta=META, mask=MASK, **k).relevance.values()),
}


@pytest.mark.parametrize("way", WAYS)
def test_several_inputs_are_gradient_times_input(way):
    model = net()
    image, meta, mask = WAYS[way](lrp.Explainer(model, ZERO), target=2)
    expected = gradient_times_input(model, [IMAGE, META], lambda a, b: model(a, b, MASK), 2)
    close(image, expected[0])
    close(meta, expected[1])
    assert mask is None


@pytest.mark.parametrize("preset", PRESETS)
def test_the_ledger_closes_with_several_inputs(preset):
    e = lrp.Explainer(net(), preset)((IMAGE, META, MASK, IDS))
    assert e.health.ok, e.health
    totals = e.ledger.totals
    parts = [totals[f"input {name}"] for name in ("image", "meta", "ids")]
    close(sum(parts), totals["input"])
    own = [r.flatten(1).sum(1) for r in e.relevance if r is not None]
    for part, mine in zip(parts, own, strict=True):
        close(part, mine)
    assert float(totals["unexplained"].abs().max()) < 1e-9
    assert "input meta" in e.health.shares and "input meta" in str(e.health) and "meta " in str(e.ledger)


@pytest.mark.parametrize("preset", [None, "epsilon_plus", "gamma", "epsilon_alpha2_beta1"])
def test_each_image_alone(preset):
    explainer = lrp.Explainer(net(), preset)
    whole = explainer((IMAGE, META, MASK, IDS), 1).relevance
    for n in range(N):
        for size in (1, 2):
            part = explainer(tuple(t[n : n + size] for t in (IMAGE, META, MASK, IDS)), 1).relevance
            for ours, all_ in zip(part, whole, strict=True):
                if ours is not None:
                    close(ours, all_[n : n + size])


def test_a_single_input_is_as_before():
    model = nn.Sequential(nn.Conv2d(C, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double().eval()
    one = lrp.Explainer(model)(IMAGE, 2).relevance
    (in_tuple,) = lrp.Explainer(model)((IMAGE,), 2).relevance
    named = lrp.Explainer(model)({"input": IMAGE}, 2).relevance["input"]
    assert torch.equal(one, in_tuple) and torch.equal(one, named)


def test_held_inputs_are_constants():
    model = net()
    e = lrp.Explainer(model, ZERO, held=("meta",))((IMAGE, META), 0)
    assert e.relevance[1] is None and list(e.ledger.totals).count("input meta") == 0
    close(e.relevance[0], gradient_times_input(model, [IMAGE], lambda a: model(a, META), 0)[0])
    by_number = lrp.Explainer(model, ZERO, held=1)((IMAGE, META), 0)
    assert torch.equal(by_number.relevance[0], e.relevance[0])
    assert e.health.ok


def test_a_held_scale_is_as_a_constant_of_the_model():
    class Scaled(nn.Module):
        def __init__(self, scale: Tensor | None) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.conv, self.scale = nn.Conv2d(C, 4, 3, dtype=torch.float64), scale

        def forward(self, image: Tensor, scale: Tensor | None = None) -> Tensor:
            return (self.conv(image) * (self.scale if scale is None else scale)).relu().mean((2, 3))

    scale = torch.rand(N, 4, 1, 1, dtype=torch.float64) + 0.5
    for preset in PRESETS:
        given = lrp.Explainer(Scaled(None), preset, held="scale")((IMAGE, scale), 0).relevance[0]
        alone = [
            lrp.Explainer(Scaled(scale[n : n + 1]), preset)(IMAGE[n : n + 1], 0).relevance for n in range(N)
        ]
        # ε stands at the product, not at the convolution that a constant scale is folded into
        assert float((given - torch.cat(alone)).abs().max()) < 1e-6, preset


# ---------------------------------------------------------------- ids


def test_relevance_of_ids_ends_at_their_embedding():
    model = net()
    e = lrp.Explainer(model, ZERO)((IMAGE, META, None, IDS), 3)
    vectors = model.words(IDS).detach()

    def from_vectors(vectors: Tensor) -> Tensor:
        seen = model.conv(IMAGE).relu().mean((2, 3))
        return model.head(torch.cat([seen, model.row(META).relu(), vectors.mean(1)], 1))

    (expected,) = gradient_times_input(model, [vectors], from_vectors, 3)
    close(e.relevance[3], expected.sum(-1))
    close(e.at("words"), expected)
    assert e.relevance[2] is None


def test_a_net_of_ids_alone():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(8 * LENGTH, 4)).double().eval()
    e = lrp.Explainer(model, ZERO)(IDS, 1)
    (expected,) = gradient_times_input(model, [model[0](IDS).detach()], model[1:], 1)
    close(e.relevance, expected.sum(-1))
    assert e.health.ok and repr(e).startswith("Explanation(3 images [7]")


def test_ids_that_are_held():
    e = lrp.Explainer(net(), held=("ids",))((IMAGE, META, None, IDS))
    assert e.relevance[3] is None and e.health.ok


@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
def test_a_text_classifier_of_hugging_face(attention):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    ids = torch.randint(1, 50, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    e = lrp.Explainer(model, "attnlrp" if attention == "attnlrp" else None)(
        {"input_ids": ids, "attention_mask": mask}
    )
    assert e.relevance["input_ids"].shape == (2, 6) and e.relevance["attention_mask"] is None
    assert e.health.ok, e.health
    assert float(e.relevance["input_ids"][1, 4:].abs().max()) < 1e-12  # what is masked gets nothing
    assert float(e.relevance["input_ids"][1, :4].abs().min()) > 0
    whole = e.at("bert.embeddings.word_embeddings")
    close(whole.sum(-1), e.relevance["input_ids"])
    shorter = lrp.Explainer(model, "attnlrp" if attention == "attnlrp" else None)(
        {"input_ids": ids[1:, :4], "attention_mask": mask[1:, :4]}
    )
    close(shorter.relevance["input_ids"], e.relevance["input_ids"][1:, :4])


# ---------------------------------------------------------------- structure and dimensions


def test_nested_inputs():
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, batch: dict, flags: tuple) -> Tensor:
            pictures, (scale, double) = batch["pictures"], flags
            z = self.net(pictures[0] + pictures[1], batch["row"]) * scale
            return z * 2 if double else z

    model = Nested()
    other = torch.randn_like(IMAGE)
    e = lrp.Explainer(model, ZERO)(({"pictures": [IMAGE, other], "row": META}, (0.5, True)), 1)
    batch, flags = e.relevance
    assert flags == (0.5, True) and isinstance(batch["pictures"], list)

    def call(a: Tensor, b: Tensor, row: Tensor) -> Tensor:
        return model({"pictures": [a, b], "row": row}, (0.5, True))

    expected = gradient_times_input(model, [IMAGE, other, META], call, 1)
    for ours, its in zip([*batch["pictures"], batch["row"]], expected, strict=True):
        close(ours, its)
    held = lrp.Explainer(model, ZERO, held=("batch.pictures.1",))(
        ({"pictures": [IMAGE, other], "row": META}, (0.5, True)), 1
    )
    assert held.relevance[0]["pictures"][1] is None
    all_held = lrp.Explainer(model, ZERO, held=("batch.pictures",))(
        ({"pictures": [IMAGE, other], "row": META}, (0.5, True)), 1
    )
    assert all_held.relevance[0]["pictures"] == [None, None]


def test_another_dimension_counts_the_images():
    torch.manual_seed(4)
    model = nn.LSTM(4, 5, batch_first=False).double().eval()
    x = torch.randn(6, N, 4, dtype=torch.float64)  # [L, N, C]

    def last(out: tuple[Tensor, ...]) -> Tensor:
        return out[0][-1]

    e = lrp.Explainer(model, ZERO, output=last, batch_dim=1)(x, 2)
    assert e.relevance.shape == x.shape and e.health.ok
    first = nn.LSTM(4, 5, batch_first=True).double().eval()
    first.load_state_dict(model.state_dict())
    expected = lrp.Explainer(first, ZERO, output=lambda out: out[0][:, -1])(x.transpose(0, 1).contiguous(), 2)
    close(e.relevance, expected.relevance.transpose(0, 1))
    for n in range(N):
        close(
            lrp.Explainer(model, ZERO, output=last, batch_dim=1)(x[:, n : n + 1], 2).relevance,
            e.relevance[:, n : n + 1],
        )
    many = lrp.Explainer(model, ZERO, output=last, batch_dim=1).many(x, [0, 2])
    close(many.relevance[1], e.relevance)


def test_an_input_for_all_images():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, image: Tensor, meta: Tensor, grid: Tensor) -> Tensor:
            return self.net(image + grid, meta)

    grid = torch.randn(C, SIDE, SIDE, dtype=torch.float64)
    explainer = lrp.Explainer(Shifted(), ZERO, batch_dim={"grid": None})
    e = explainer((IMAGE, META, grid), 0)
    assert e.relevance[2] is None and e.health.ok
    expected = gradient_times_input(
        explainer.model, [IMAGE, META], lambda a, b: explainer.model(a, b, grid), 0
    )
    close(e.relevance[0], expected[0])
    close(explainer((IMAGE[:1], META[:1], grid), 0).relevance[1], expected[1][:1])


def test_signals_and_volumes():
    for dims, conv in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        torch.manual_seed(5)
        model = (
            nn.Sequential(conv(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4**dims, 3)).double().eval()
        )
        x = torch.randn(2, 2, *[6] * dims, dtype=torch.float64)
        e = lrp.Explainer(model, ZERO)(x, 1)
        close(e.relevance, gradient_times_input(model, [x], model, 1)[0])
        assert e.health.ok


def test_a_changed_input_has_no_ledger():
    meta = META.clone()
    e = lrp.Explainer(net())((IMAGE, meta))
    meta += 1
    with pytest.raises(
        lrp.LedgerError, match=r"^the images were written to after they were explained: explain them again\.$"
    ):
        _ = e.ledger


# ---------------------------------------------------------------- what cannot be

BAD = {
    "wrong structure": (
        lambda: lrp.Explainer(net())((IMAGE, META, MASK, IDS, IDS)),
        "Net takes (image, meta, mask, ids), got a tuple of 5: too many positional arguments.",
    ),
    "missing key": (
        lambda: lrp.Explainer(net())({"image": IMAGE, "mask": MASK}),
        "Net takes (image, meta, mask, ids), got {'image', 'mask'}: missing a required argument: 'meta'.",
    ),
    "unknown key": (
        lambda: lrp.Explainer(net())({"image": IMAGE, "row": META}),
        "Net takes (image, meta, mask, ids), got {'image', 'row'}: missing a required argument: 'meta'.",
    ),
    "one of two": (
        lambda: lrp.Explainer(net())((IMAGE,)),
        "Net takes (image, meta, mask, ids), got a tuple of 1: missing a required argument: 'meta'.",
    ),
    "held that is not there": (
        lambda: lrp.Explainer(net(), held=("masks",))((IMAGE, META)),
        "held='masks': there is no such input; the inputs are image, meta.",
    ),
    "all held": (
        lambda: lrp.Explainer(net(), held=(0, 1))((IMAGE, META)),
        "all inputs are held, or hold integers of which no embedding is taken: image, meta; relevance needs one of floating "
        "numbers or ids.",
    ),
    "numbers of images": (
        lambda: lrp.Explainer(net())((IMAGE, META[:2])),
        "the inputs have different numbers of images: image 3, meta 2; dimension 0 counts them, or what batch_dim= says.",
    ),
    "no dimension": (
        lambda: lrp.Explainer(net())((IMAGE, META, torch.tensor(1.0, dtype=torch.float64))),
        "input mask of shape [] has no dimension 0 for the images: give it one, or say batch_dim={'mask': None} if it is the same "
        "for all images.",
    ),
    "no images at all": (
        lambda: lrp.Explainer(net(), batch_dim=None)((IMAGE, META)),
        "batch_dim=None for every input: at least one must count the images.",
    ),
    "numpy": (
        lambda: lrp.Explainer(net())((IMAGE, META.numpy())),
        "input meta is a numpy ndarray, where a torch.Tensor is expected: torch.as_tensor(...).",
    ),
    "nothing": (
        lambda: lrp.Explainer(net())(),
        "Net takes (image, meta, mask, ids), got nothing: missing a required argument: 'image'.",
    ),
    "NaN": (
        lambda: lrp.Explainer(net())((IMAGE, META / 0)),
        "NaN or infinite values in input meta: every value must be finite.",
    ),
    "empty": (
        lambda: lrp.Explainer(net())((IMAGE[:0], META[:0])),
        "the batch is empty: got shape [0, 3, 8, 8], expected at least one image.",
    ),
    "fails": (
        lambda: lrp.Explainer(net())((IMAGE, META[:, :2])),
        "Net itself fails on inputs of shapes image [3, 3, 8, 8], meta [3, 2]: RuntimeError: mat1 and mat2 shapes cannot be "
        "multiplied (3x2 and 6x4)",
    ),
    "ZBox of two inputs": (
        lambda: lrp.Explainer(net(), lrp.preset("deep_taylor", low=-3.0, high=3.0))((IMAGE, META)),
        "deep_taylor: ZBox(low, high) holds for one image, and 2 inputs have a first layer: choose another preset, or give "
        "ZBox to one layer by its path.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_word_for_word(case):
    call, text = BAD[case]
    with pytest.raises(lrp.LrpError) as caught:
        call()
    assert str(caught.value) == text
