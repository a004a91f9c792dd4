"""fit_head.py: the oracle is scikit-learn's logistic regression, on features standardised by numpy."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrp.errors import TrainingError
from lrp.train.epochs import best_epoch
from lrp.train.fit_head import Fitted, HeadSettings, fit_head
from lrp.train.lbfgs import STRENGTHS, Data


class Tail(nn.Module):
    """One or several heads, averaged; as `lrp.train.heads.split_head` gives them."""

    def __init__(self, *heads: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        outputs = [head(values) for head, values in zip(self.heads, features, strict=True)]
        return torch.stack([o if o.dim() == 2 else o.relu().mean((2, 3)) for o in outputs]).mean(0)


def photos(
    classes: int = 3, size: int = 8, count: int = 90, apart: float = 0.9, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features of every scale and offset around a centre for each class, and labels."""
    generator = torch.Generator().manual_seed(100)
    centres = apart * torch.randn(classes, size, generator=generator)
    scale, offset = torch.logspace(-2, 2, size), torch.linspace(0, 50, size)
    generator.manual_seed(seed)
    labels = torch.arange(count) % classes
    features = centres[labels] + torch.randn(count, size, generator=generator)
    return features * scale + offset, labels


def fit(tail: nn.Module, settings: HeadSettings | None = None, **changes: Any) -> Fitted:
    x, y = photos()
    vx, vy = photos(seed=1, count=60)
    given = {"features": {"plain": (x,)}, "labels": y, "validation": {"plain": (vx,)}, "val_labels": vy}
    given |= changes
    return fit_head(tail, **given, settings=settings)


def linear(size: int = 8, classes: int = 3) -> Tail:
    return Tail(nn.Linear(size, classes))


def numbers(fitted: Fitted) -> list[dict[str, Any]]:
    """The history without what a clock measures."""
    return [{name: value for name, value in facts.items() if name != "seconds"} for facts in fitted.history]


# Right ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 0.1, 0.01])
def test_ends_where_logistic_regression_does(decay: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = photos()
    mirrored = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5)) * x.std(0) / 3
    states: list[dict[str, Any]] = []
    fitted = fit(
        linear(), HeadSettings(weight_decay=decay, patience=100),
        features={"plain": (x,), "mirrored": (mirrored,)}, on_state=states.append,
    )  # fmt: skip
    both, labels = np.concatenate([x, mirrored]).astype(float), np.concatenate([y, y])
    standard = (both - both.mean(0)) / both.std(0)
    oracle = linear_model.LogisticRegression(C=1 / (decay * len(both)), tol=1e-8, max_iter=10_000)
    oracle.fit(standard, labels)
    chances = oracle.predict_proba(standard)[np.arange(len(both)), labels]
    objective = -np.log(chances).mean() + decay / 2 * np.square(oracle.coef_).sum()
    assert fitted.history[-1]["objective"] == pytest.approx(objective, rel=1e-4)
    np.testing.assert_allclose(states[-1]["variables"]["heads.0.weight"], oracle.coef_, atol=0.02)
    assert fitted.weight_decay == decay


def test_the_layer_saved_is_a_plain_one_on_features_as_they_are() -> None:
    x, y = photos()
    tail, states = linear(), list[dict[str, Any]]()
    fitted = fit(tail, on_state=states.append)
    best = states[fitted.best_epoch]["variables"]
    double = x.double().numpy()
    standard = (double - double.mean(0)) / double.std(0)
    logits = standard @ best["heads.0.weight"].double().numpy().T + best["heads.0.bias"].double().numpy()
    np.testing.assert_allclose(tail((x,)).detach(), logits, atol=2e-3)
    accuracy = (logits.argmax(1) == y.numpy()).mean()
    assert fitted.history[fitted.best_epoch]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert type(tail.heads[0]) is nn.Linear and not tail.training


def test_history_says_what_the_tail_does() -> None:
    x, y = photos()
    vx, vy = photos(seed=1, count=60)
    tail = linear()
    with torch.no_grad():
        before = nn.functional.cross_entropy(tail((vx,)), vy).item()
    fitted = fit(tail, HeadSettings(label_smoothing=0.2))
    first, best = fitted.history[0], fitted.history[fitted.best_epoch]
    assert [facts["epoch"] for facts in fitted.history] == list(range(len(fitted.history)))
    assert first["val_loss"] == pytest.approx(before, rel=1e-3)
    with torch.no_grad():
        logits, seen = tail((vx,)), tail((x,))
    assert best["val_accuracy"] == pytest.approx((logits.argmax(1) == vy).float().mean().item())
    assert best["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, vy).item(), rel=1e-3)
    target = 0.8 * nn.functional.one_hot(y, 3) + 0.2 / 3
    assert best["loss"] == pytest.approx(-(target * seen.log_softmax(1)).sum(1).mean().item(), rel=1e-3)
    objectives = [facts["objective"] for facts in fitted.history]
    assert objectives == sorted(objectives, reverse=True) and objectives[-1] > fitted.history[-1]["loss"]


def test_scale_and_offset_of_features_do_not_matter() -> None:
    x, _ = photos()
    vx, _ = photos(seed=1, count=60)
    predicted = []
    for scale, offset in ((1.0, 0.0), (1000.0, 77.0)):
        tail = Tail(nn.Linear(8, 3, bias=True))
        nn.init.zeros_(tail.heads[0].weight)
        fit(tail, features={"plain": (x * scale + offset,)}, validation={"plain": (vx * scale + offset,)})
        predicted.append(tail((vx * scale + offset,)).softmax(1))
    torch.testing.assert_close(*predicted, atol=0.02, rtol=0)


def test_a_pointwise_convolution_is_trained_like_a_linear_layer() -> None:
    x, _ = photos()
    vx, _ = photos(seed=1, count=60)

    class Flat(Tail):
        def forward(self, features: tuple[Tensor, ...]) -> Tensor:
            return self.heads[0](features[0]).flatten(1)

    one, other = linear(), Flat(nn.Conv2d(8, 3, 1))
    assert torch.equal(one.heads[0].weight, other.heads[0].weight.flatten(1))
    fit(one)
    fit(
        other,
        features={"plain": (x[:, :, None, None],)},
        validation={"plain": (vx[:, :, None, None],)},
    )
    torch.testing.assert_close(one.heads[0].weight, other.heads[0].weight.flatten(1), atol=1e-3, rtol=1e-2)


def test_heads_that_are_averaged() -> None:
    x, _y = photos()
    vx, vy = photos(seed=1, count=60)
    tail, alone = Tail(nn.Linear(4, 3), nn.Linear(4, 3)), Tail(nn.Linear(4, 3))
    both = fit(tail, features={"plain": (x[:, :4], x[:, 4:])}, validation={"plain": (vx[:, :4], vx[:, 4:])})
    half = fit(alone, features={"plain": (x[:, :4],)}, validation={"plain": (vx[:, :4],)})
    best = both.history[both.best_epoch]["val_accuracy"]
    assert best > half.history[half.best_epoch]["val_accuracy"]
    predicted = tail((vx[:, :4], vx[:, 4:])).argmax(1)
    assert best == pytest.approx((predicted == vy).float().mean().item())


@pytest.mark.parametrize(
    "head",
    [
        nn.Conv2d(2, 3, 1),
        nn.Conv2d(2, 3, 2),
        nn.Conv2d(2, 3, 1, bias=False),
        nn.Conv2d(2, 3, 1, padding=1),
        nn.Conv2d(2, 4, 1, groups=2),
    ],
    ids=["squeezenet", "2x2", "no bias", "padded", "groups"],
)
def test_any_other_tail(head: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(60, 2, 4, 4, generator=generator) + 1
    labels = torch.arange(60) % 3
    maps[:, 0] += 2.0 * labels[:, None, None]
    tail = Tail(head)
    if head.bias is not None:
        nn.init.ones_(head.bias)  # so that no output begins where the ReLU is flat
    fitted = fit(
        tail, features={"plain": (maps,)}, labels=labels, validation={"plain": (maps,)}, val_labels=labels
    )
    best = fitted.history[fitted.best_epoch]
    assert best["val_accuracy"] > 0.6 and best["val_loss"] < fitted.history[0]["val_loss"]
    with torch.no_grad():
        loss = nn.functional.cross_entropy(tail((maps,)), labels).item()
    assert best["val_loss"] == pytest.approx(loss, rel=1e-4)


# The penalty ----------------------------------------------------------------------------------------------------


def test_the_penalty_suits_the_photos() -> None:
    noise = torch.randn(100, 60, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(100) % 2
    hopeless = fit(
        Tail(nn.Linear(60, 2)),
        features={"plain": (noise,)},
        labels=labels,
        validation={"plain": (noise,)},
        val_labels=labels,
    )
    x, y = photos(apart=0.9, count=600)
    easy = fit(linear(), features={"plain": (x,)}, labels=y)
    assert hopeless.weight_decay == STRENGTHS[0] and easy.weight_decay < 0.1


def test_the_penalty_is_chosen_without_validation_photos_and_makes_unseen_ones_likelier() -> None:
    x, y = photos(size=40, count=90, apart=0.3)
    fresh, labels = photos(size=40, count=600, apart=0.3, seed=9)
    losses, decays = {}, []
    for decay in (None, 1e-5):
        for seed in (1, 2):
            vx, vy = photos(size=40, count=60, apart=0.3, seed=seed)
            tail = linear(40)
            fitted = fit(
                tail, HeadSettings(weight_decay=decay, patience=100), features={"plain": (x,)}, labels=y,
                validation={"plain": (vx,)}, val_labels=vy,
            )  # fmt: skip
            decays.append(fitted.weight_decay)
            with torch.no_grad():
                losses[decay] = nn.functional.cross_entropy(tail((fresh,)), labels).item()
    assert decays[0] == decays[1] > 1e-3
    assert losses[None] < losses[1e-5]


def test_many_numbers_are_cross_validated_with_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    fit(linear(), advance=lambda done, total: steps.append(done))
    monkeypatch.setattr("lrp.train.lbfgs.LARGE", 100)
    fewer: list[int] = []
    fit(linear(), advance=lambda done, total: fewer.append(done))
    assert 0 < fewer.count(0) < steps.count(0) / 2


def test_chunks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(linear(), HeadSettings(weight_decay=0.1))
    monkeypatch.setattr("lrp.train.lbfgs.CHUNK", 56)
    pieces = fit(linear(), HeadSettings(weight_decay=0.1))
    assert pieces.history[-1]["objective"] == pytest.approx(whole.history[-1]["objective"], rel=1e-4)
    assert pieces.history[0]["val_loss"] == pytest.approx(whole.history[0]["val_loss"], rel=1e-5)


def test_some_photos_come_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrp.train.lbfgs.CHUNK", 56)
    x, y = photos()
    some = torch.tensor([80, 3, 3, 40, 7, 9, 60, 61, 62, 0])
    data = Data("training", [(x, x[:, :2]), (-x, x[:, :2])], y, torch.device("cpu")).of(some)
    chunks = [(*inputs, labels) for inputs, labels in data]
    assert len(data) == 10 and [len(labels) for *_, labels in chunks] == [5, 5]
    for found, expected in zip(map(torch.cat, zip(*chunks, strict=True)), (x, x[:, :2], y), strict=True):
        assert torch.equal(found, expected[some])


# Deterministic --------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_and_the_global_generator_is_left_alone() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        tail = linear()
        before = torch.get_rng_state()
        found.append((numbers(fit(tail)), tail.state_dict()))
        assert torch.equal(before, torch.get_rng_state())
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_the_seed_draws_the_folds() -> None:
    def places(seed: int) -> list[int]:
        steps: list[int] = []
        fit(linear(), HeadSettings(seed=seed), advance=lambda done, total: steps.append(done))
        return steps

    assert len({tuple(places(seed)) for seed in range(4)}) > 1


def test_resumed_from_any_epoch_it_ends_the_same() -> None:
    saved: list[bytes] = []

    def save(state: dict[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(state, file)
        saved.append(file.getvalue())

    undisturbed = linear()
    whole = fit(undisturbed, HeadSettings(label_smoothing=0.1), on_state=save)
    assert len(saved) == len(whole.history) > 5
    for epoch, state in enumerate(saved):
        told: list[int] = []
        tail = linear()
        again = fit(
            tail, HeadSettings(label_smoothing=0.1), state=torch.load(io.BytesIO(state), weights_only=True),
            on_epoch=lambda facts, told=told: told.append(facts["epoch"]),
        )  # fmt: skip
        assert told == list(range(epoch + 1, len(whole.history)))
        assert numbers(again) == numbers(whole)
        assert (again.best_epoch, again.weight_decay) == (whole.best_epoch, whole.weight_decay)
        for name, tensor in undisturbed.state_dict().items():
            assert torch.equal(tensor, tail.state_dict()[name]), (epoch, name)


def test_the_last_epoch_is_told_beside_the_best() -> None:
    """As the tail's own parameters: with them it does what the last epoch's facts say, and no longer the best one's."""
    vx, vy = photos(seed=1, count=60)
    vy = vy.roll(7)  # what is learned helps nothing there, so that the best epoch comes early
    tail = linear()
    fitted = fit(tail, HeadSettings(weight_decay=0.01), validation={"plain": (vx,)}, val_labels=vy)
    last = fitted.history[-1]
    assert fitted.best_epoch < last["epoch"] and fitted.last.keys() == dict(tail.named_parameters()).keys()

    def loss() -> float:
        return nn.functional.cross_entropy(tail((vx,)), vy).item()

    assert loss() == pytest.approx(fitted.history[fitted.best_epoch]["val_loss"], rel=1e-4)
    tail.load_state_dict(fitted.last)
    assert loss() == pytest.approx(last["val_loss"], rel=1e-4)
    assert abs(last["val_loss"] - fitted.history[fitted.best_epoch]["val_loss"]) > 0.1


def test_a_state_does_not_change_while_training_goes_on() -> None:
    states, texts = [], []

    def keep(state: dict[str, Any]) -> None:
        states.append(state)
        texts.append(repr(state))

    fit(linear(), on_state=keep)
    assert [repr(state) for state in states] == texts and len(states) > 5


def test_more_epochs_may_be_asked_for() -> None:
    states: list[dict[str, Any]] = []
    short = fit(linear(), HeadSettings(epochs=3), on_state=states.append)
    assert len(short.history) == 4
    longer = fit(linear(), HeadSettings(epochs=5), state=states[-1])
    assert numbers(longer) == numbers(fit(linear(), HeadSettings(epochs=5)))


# Stopping -------------------------------------------------------------------------------------------------------


def test_stops_when_patience_is_over_and_keeps_the_best() -> None:
    x, y = photos(size=40, count=60, apart=0.2)
    vx, vy = photos(size=40, count=60, apart=0.2, seed=8)
    tail = linear(40)
    fitted = fit(
        tail, HeadSettings(weight_decay=1e-4, patience=3), features={"plain": (x,)}, labels=y,
        validation={"plain": (vx,)}, val_labels=vy,
    )  # fmt: skip
    reached = [facts["val_accuracy"] for facts in fitted.history]
    assert len(fitted.history) - 1 == fitted.best_epoch + 3
    assert reached[fitted.best_epoch] == max(reached[1:]) > reached[-1]
    assert (tail((vx,)).argmax(1) == vy).float().mean().item() == pytest.approx(max(reached[1:]))


def test_best_is_the_highest_accuracy_then_the_lowest_loss_then_the_first() -> None:
    history = [
        {"epoch": epoch, "val_accuracy": accuracy, "val_loss": loss}
        for epoch, (accuracy, loss) in enumerate([(0.9, 0.1), (0.5, 3.0), (0.7, 2.0), (0.7, 1.0), (0.7, 1.0)])
    ]
    assert best_epoch(history) == 3 and best_epoch(history[:1]) == 0


def test_progress_and_epochs_are_told_in_order() -> None:
    told: list[Any] = []
    fitted = fit(
        linear(), HeadSettings(epochs=4, weight_decay=0.1), on_epoch=lambda facts: told.append(facts["epoch"]),
        on_state=lambda state: told.append(len(state["history"])),
        advance=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [0, 1, (0, 4), 1, 2, (1, 4), 2, 3, (1, 4), 3, 4, (1, 4), 4, 5, (1, 4)]
    assert len(fitted.history) == 5


# Edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "labels", "classes"),
    [
        (torch.tensor([[0.0], [0.1], [1.0], [1.1]]), [0, 0, 1, 1], 2),
        (torch.eye(5), [0, 1, 2, 3, 4], 5),
        (torch.eye(6)[:4], [0, 2, 4, 5], 6),
        (torch.tensor([[7.0, 0.0], [7.0, 1.0]] * 20), [0, 1] * 20, 2),
        (torch.tensor([[3.0, 4.0]]), [1], 2),
    ],
    ids=["1 feature", "one photo a class", "classes without a photo", "a constant feature", "one photo"],
)
def test_small_data(features: Tensor, labels: list[int], classes: int) -> None:
    tail, y = Tail(nn.Linear(features.shape[1], classes)), torch.tensor(labels)
    fitted = fit(
        tail, features={"plain": (features,)}, labels=y, validation={"plain": (features,)}, val_labels=y
    )
    assert fitted.history[fitted.best_epoch]["val_accuracy"] == 1.0
    assert (tail((features,)).argmax(1) == y).all()
    assert all(p.isfinite().all() for p in tail.parameters())


def test_layers_that_do_not_ask_for_a_gradient_are_trained() -> None:
    tail = linear()
    before = tail.heads[0].weight.clone()
    tail.requires_grad_(False)
    fit(tail)
    assert not torch.equal(before, tail.heads[0].weight) and not tail.heads[0].weight.requires_grad


# Refused --------------------------------------------------------------------------------------------------------

X, Y = photos()
SPOILT = X.clone()
SPOILT[3, 2], SPOILT[5, 0] = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": {"plain": (SPOILT,)}},
            "2 of 90 rows of features of the training photos hold NaN or infinite numbers: the model overflows on "
            "them; take other weights or another model.",
        ),
        (
            {"validation": {"plain": (SPOILT,)}, "val_labels": Y},
            "2 of 90 rows of features of the validation photos hold NaN or infinite numbers: the model overflows on "
            "them; take other weights or another model.",
        ),
        (
            {"labels": Y[:-1]},
            "expected a row of features for each label of the training photos, and at least one, got 89 and 90.",
        ),
        (
            {"validation": {"plain": (X[:0],)}, "val_labels": Y[:0]},
            "expected a row of features for each label of the validation photos, and at least one, got 0.",
        ),
        (
            {"features": {}},
            "expected a row of features for each label of the training photos, and at least one, got no features.",
        ),
        (
            {"labels": Y + 1},
            "expected labels from 0 to 2 for a head with 3 outputs, got 3 among those of the training photos.",
        ),
        (
            {"val_labels": Y[:60] - 1},
            "expected labels from 0 to 2 for a head with 3 outputs, got -1 among those of the validation photos.",
        ),
        (
            {"features": {"plain": (X[:, :5],)}},
            "the head does not take the features of the training photos, [[90, 5]]: they are of another model; "
            "compute them again.",
        ),
        (
            {"features": {"plain": (X.reshape(90, 1, 8),)}},
            "the head gives [90] for 90 photos: expected logits [N, K].",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    class Flat(Tail):
        def forward(self, features: tuple[Tensor, ...]) -> Tensor:
            logits = self.heads[0](features[0])
            return logits if logits.dim() == 2 else logits.sum((1, 2))

    tail = Flat(nn.Linear(8, 3))
    before = tail.heads[0].weight.clone()
    with pytest.raises(TrainingError) as caught:
        fit(tail, **changes)
    assert str(caught.value) == message
    assert torch.equal(before, tail.heads[0].weight)


def test_features_too_large_for_float32() -> None:
    tail = Tail(nn.Conv2d(1, 2, 2))  # nothing that could be standardised
    nn.init.constant_(tail.heads[0].weight, 2.0)
    maps = torch.full((4, 1, 2, 2), 3e38)
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.raises(TrainingError) as caught:
        fit(
            tail, features={"plain": (maps,)}, labels=labels, validation={"plain": (maps,)}, val_labels=labels
        )
    assert str(caught.value) == (
        "epoch 0: the loss is no number any more: the features have values too large for it; train the whole net "
        "instead (--train all)."
    )


def test_settings_out_of_range() -> None:
    with pytest.raises(TrainingError) as caught:
        HeadSettings(epochs=0, weight_decay=-1.0, label_smoothing=1.0, patience=0)
    assert str(caught.value) == (
        "settings of the head's training: epochs = 0, expected 1 or more; weight_decay = -1, expected 0 or more, or "
        "none; label_smoothing = 1, expected 0 to below 1; patience = 0, expected 1 or more."
    )


def test_a_state_of_another_run() -> None:
    states: list[dict[str, Any]] = []
    fit(linear(), HeadSettings(epochs=2), on_state=states.append)

    def refusal(tail: nn.Module, settings: HeadSettings, **changes: Any) -> str:
        with pytest.raises(TrainingError) as caught:
            fit(tail, settings, **changes)
        return str(caught.value)

    state = states[-1]
    assert refusal(linear(), HeadSettings(seed=3, label_smoothing=0.1), state=state) == (
        "the state to go on from is of another run: label_smoothing was 0.0, is 0.1; seed was 0, is 3; start over."
    )
    x, _y = photos(seed=4)
    assert refusal(linear(), HeadSettings(), state=state, features={"plain": (x,)}) == (
        "the state to go on from is of another run: the features have other means and deviations; start over."
    )
    assert refusal(linear(classes=4), HeadSettings(), state=state) == (
        "the state to go on from is of another run: the head was {'heads.0.weight': [3, 8], 'heads.0.bias': [3]}, "
        "is {'heads.0.weight': [4, 8], 'heads.0.bias': [4]}; start over."
    )
    assert refusal(linear(), HeadSettings(), state=state | {"format": 0}) == (
        "the state to go on from is of format 0, expected 1: it was made by another version of lrp; start over."
    )
