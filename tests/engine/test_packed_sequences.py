"""Packed sequences: each is explained as if it were alone and had no padding; what is no longer true then is refused."""

import threading
import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lrp
from helpers.recurrent import FEATURES, Begun, difference, gradient_times_input, sequences, unrolled
from lrp.engine.onnx.onnx_file import write_onnx

STEPS, HIDDEN = 4, 5
LENGTHS = torch.tensor([3, 4, 2])


def padded(n=3, steps=STEPS):
    """Sequences of `LENGTHS`, with zeros behind their ends."""
    return sequences(n, steps) * (torch.arange(steps) < LENGTHS[:n, None])[..., None]


# Where the lengths come from.


def from_x(model, x):
    return (x.abs().sum(-1) > 0).sum(1)


def from_a_buffer(model, x):
    return model.lengths


def from_a_list(model, x):
    return [3, 4, 2]


def all_the_same(model, x):
    return torch.full((len(x),), 3)


class Packs(Begun):
    """A recurrent layer over packed sequences.

    Args:
        reads: what counts: the last "states"; or of the outputs their "sum", the "largest", the "last", or all, "flat".
        lengths: (model, x) -> the lengths.
        total, value, sorted: for torch's functions.
    """

    def __init__(
        self, layer, reads="states", lengths=from_x, start="none", total=None, value=0.0, sorted=False
    ):
        super().__init__(layer, start)
        self.reads, self.of, self.total, self.value, self.sorted = reads, lengths, total, value, sorted
        self.register_buffer("lengths", LENGTHS.clone())

    def forward(self, x):
        first, lengths = self.layer.batch_first, self.of(self, x)
        steps = x if first else x.transpose(0, 1)
        packed = pack_padded_sequence(steps, lengths, batch_first=first, enforce_sorted=self.sorted)
        out, states = self.layer(packed, self.given(self.begin(x)))
        if self.reads == "states":
            return self.read(None, states if isinstance(states, tuple) else (states,))
        out, lengths = pad_packed_sequence(out, first, self.value, self.total)
        out = out if first else out.transpose(0, 1)
        if self.reads == "last":
            return out[torch.arange(len(out)), lengths - 1]
        return self.read(out, ())

    def read(self, out, states):
        if self.reads == "states":
            return torch.cat([s.transpose(0, 1).flatten(1) for s in states], 1)
        if self.reads == "last":
            return out[:, -1]
        return {"sum": lambda: out.sum(1), "largest": lambda: out.amax(1), "flat": lambda: out.flatten(1)}[
            self.reads
        ]()


class Alone(nn.Module):
    """The same for one sequence without padding, written out; `held`: its twin for LRP-0."""

    def __init__(self, packs, held=False):
        super().__init__()
        self.packs, self.held = packs, held

    def forward(self, x):
        packs = self.packs
        out, states = unrolled(packs.layer, x, packs.begin(x), self.held)
        if packs.reads == "flat":
            steps = packs.total or int(LENGTHS.max())
            out = nn.functional.pad(out, (0, 0, 0, steps - out.shape[1]), value=packs.value)
        return packs.read(out, states)


PACKED = {
    "gru": (lambda: nn.GRU(FEATURES, HIDDEN), {}),
    "gru_from_data": (lambda: nn.GRU(FEATURES, HIDDEN, batch_first=True), {"reads": "sum", "start": "data"}),
    "gru_both_ways": (lambda: nn.GRU(FEATURES, HIDDEN, 2, batch_first=True, bidirectional=True), {"reads": "flat", "total": 7}),
    "gru_fewer_steps": (lambda: nn.GRU(FEATURES, HIDDEN), {"reads": "flat", "total": STEPS}),
    "gru_largest": (lambda: nn.GRU(FEATURES, HIDDEN), {"reads": "largest", "value": -9.0}),
    "lstm_from_a_constant": (lambda: nn.LSTM(FEATURES, HIDDEN, bidirectional=True), {"start": "constant"}),
    "lstm_projected": (lambda: nn.LSTM(FEATURES, HIDDEN, batch_first=True, bidirectional=True, proj_size=2, bias=False), {"reads": "last"}),
    "rnn": (lambda: nn.RNN(FEATURES, HIDDEN, bidirectional=True), {"reads": "last"}),
    "rnn_relu": (lambda: nn.RNN(FEATURES, HIDDEN, nonlinearity="relu", batch_first=True), {"reads": "sum"}),
    "from_a_buffer": (lambda: nn.RNN(FEATURES, HIDDEN), {"lengths": from_a_buffer, "reads": "flat"}),
    "from_a_list": (lambda: nn.LSTM(FEATURES, HIDDEN), {"lengths": from_a_list}),
}  # fmt: skip


FIXED = "the model can be captured for a fixed number of images only: each batch size is new, now 3."


@cache
def packs(name):
    torch.manual_seed(sum(map(ord, name)))
    layer, options = PACKED[name]
    return Packs(layer(), **options).double().eval()


@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences_are_each_alone(name):
    """Each as the layer written out over the steps that it has; nothing goes to the padding."""
    model, x = packs(name), padded(steps=6)  # all of them end before the last step
    explainer = lrp.Explainer(model, "gamma")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        e = explainer(x, 1)
    torch.testing.assert_close(e.logits, model(x).detach(), rtol=1e-12, atol=1e-12)
    alone = lrp.Explainer(Alone(model).eval(), "gamma")
    for i, length in enumerate(LENGTHS):
        expected = alone(x[i : i + 1, :length], 1).relevance[0]
        assert difference(e.relevance[i, :length], expected) <= 1e-9
        assert (e.relevance[i, length:] == 0).all()
    fixed = model.of in (from_a_list, from_a_buffer)
    assert explainer.prepare(x).captured.free_batch != fixed
    assert [str(w.message) for w in said] == fixed * [FIXED]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.filterwarnings("ignore:the model can be captured for a fixed number")
def test_zero_is_gradient_times_input(name):
    model, x = packs(name), padded(steps=6)
    e = lrp.Explainer(model, lrp.preset("epsilon", epsilon=0.0))(x, 1)
    for i, length in enumerate(LENGTHS):
        R = torch.zeros_like(e.logits[:1])
        R[0, 1] = e.logits[i, 1]
        expected = gradient_times_input(Alone(model, held=True), x[i : i + 1, :length], R)
        assert difference(e.relevance[i : i + 1, :length], expected) <= 1e-9
    assert e.health.ok, e.health.problems
    assert (e.ledger.totals["unexplained"].abs() <= 1e-9 * e.ledger.totals["largest"]).all()


@pytest.mark.parametrize("name", ["gru", "gru_both_ways", "lstm_projected"])
def test_any_number_of_images_in_any_order(name):
    model, x = packs(name), padded()
    explainer = lrp.Explainer(model, "epsilon_plus")
    whole = explainer(x, 1).relevance
    assert explainer.prepare(x).captured.free_batch
    for n in (1, 2):
        assert difference(explainer(x[:n], 1).relevance, whole[:n]) <= 1e-9
    for i in range(3):
        assert difference(explainer(x[i : i + 1], 1).relevance, whole[i : i + 1]) <= 1e-9
    assert difference(explainer(x.flip(0), 1).relevance, whole.flip(0)) <= 1e-9


class WithLengths(nn.Module):
    """Lengths are an input of their own."""

    def __init__(self, packs):
        super().__init__()
        self.packs = packs

    def forward(self, x, lengths):
        self.packs.of = lambda model, x: lengths.cpu()
        return self.packs(x)


def test_lengths_as_an_input():
    model, x = Packs(nn.GRU(FEATURES, HIDDEN)).double().eval(), padded()
    expected = lrp.explain(model, x, 1, "epsilon").relevance
    explainer = lrp.Explainer(WithLengths(model).eval(), "epsilon")
    e = explainer((x, LENGTHS), 1)
    relevance, none = e.relevance
    assert none is None and difference(relevance, expected) <= 1e-9 and e.health.ok
    relevance, _ = explainer({"x": x[:2], "lengths": LENGTHS[:2].int()}, 1).relevance.values()
    assert difference(relevance, expected[:2]) <= 1e-9
    relevance, _ = explainer((x, torch.tensor([3, 2, 1])), 1).relevance
    assert (relevance[1, 2:] == 0).all() and (relevance[1, :2] != 0).all()


def test_sequences_that_are_sorted_already():
    model, x = Packs(nn.GRU(FEATURES, HIDDEN), sorted=True).double().eval(), padded()[[1, 0, 2]]
    other = Packs(model.layer).double().eval()
    assert difference(lrp.explain(model, x, 1).relevance, lrp.explain(other, x, 1).relevance) <= 1e-9
    with pytest.raises(lrp.CaptureError) as error:
        lrp.explain(model, x.flip(0))
    assert str(error.value).startswith(
        "Packs itself fails on an input of shape [3, 4, 3]: RuntimeError: `lengths` array must be sorted in decreasing order"
    )


def test_one_length_for_all_is_a_net_of_so_many_steps():
    """Constant lengths: the padded result has as many steps as the longest, as torch's has."""
    model = Packs(nn.GRU(FEATURES, HIDDEN), "flat", all_the_same).double().eval()
    x = sequences(2, STEPS)
    assert model(x).shape == (2, 3 * HIDDEN)
    e = lrp.explain(model, x, 1, "epsilon")
    shorter = Packs(model.layer, "flat", from_x).double().eval()
    assert difference(e.relevance[:, :3], lrp.explain(shorter, x[:, :3], 1, "epsilon").relevance) <= 1e-9
    assert (e.relevance[:, 3:] == 0).all() and e.health.ok


def test_a_buffer_of_lengths_that_changes():
    """Its values decide what the graph is: the model is captured again."""
    model, x = Packs(nn.GRU(FEATURES, HIDDEN), lengths=from_a_buffer).double().eval(), sequences(3, STEPS)
    explainer = lrp.Explainer(model, "epsilon")
    with pytest.warns(UserWarning, match="a fixed number of images"):
        before = explainer(x, 1).relevance
    model.lengths.copy_(torch.tensor([1, 2, 4]))
    after = explainer(x, 1)
    assert (before[0, 1:3] != 0).all() and (after.relevance[0, 1:] == 0).all()
    torch.testing.assert_close(after.logits, model(x).detach(), rtol=1e-12, atol=1e-12)


class Steps(Packs):
    """Something done to the packed data, step by step; or to all of it."""

    def __init__(self, do):
        super().__init__(nn.GRU(FEATURES, HIDDEN, batch_first=True))
        self.do = do

    def forward(self, x):
        packed = pack_padded_sequence(x, from_x(self, x), batch_first=True, enforce_sorted=False)
        return self.do(self, x, packed)


def layer_of_data(model, x, packed):
    _, *rest = packed
    return model.layer(PackedSequence(3 * torch.tanh(packed.data), *rest).to(x.device))[1][0]


def test_what_is_done_to_each_step():
    model, x = Steps(layer_of_data).double().eval(), padded()
    plain = Packs(model.layer, lengths=from_x).eval()
    plain.forward = lambda x: Packs.forward(plain, 3 * torch.tanh(x))
    assert difference(lrp.explain(model, x, 1).relevance, lrp.explain(plain, x, 1).relevance) <= 1e-9


def outputs_of(model, packed):
    return pad_packed_sequence(model.layer(packed)[0], batch_first=True)[0]


BEYOND = (
    "Steps packs sequences, and its logits are not those of padded ones ({}): give pad_packed_sequence a total_length=, "
    "and apply to a packed sequence's data only what acts on each step alone."
)
SIZES = (
    "Steps could not be captured for an input of shape [3, 4, 3] at test_packed_sequences.py:{}: {}the batch_sizes of a packed "
    "sequence are used, which depend on values: use the lengths from which it was made (torch.export must be able to "
    "follow the forward pass)."
)


def test_what_depends_on_the_longest_sequence_is_refused():
    """Not by a guess: what the model returns for the images at hand is compared."""
    mean = lrp.Explainer(Steps(lambda model, x, packed: outputs_of(model, packed).mean(1)).double().eval())
    flat = lrp.Explainer(Steps(lambda model, x, packed: outputs_of(model, packed).flatten(1)).double().eval())
    x = padded()
    assert mean(x).health.ok and flat(x).health.ok  # the longest has all steps
    shorter = x[[0, 2]]
    for explain in (mean, lambda x: mean.many(x, [0, 1])):
        with pytest.raises(lrp.CaptureError) as error:
            explain(shorter)
        own, all_steps = mean.model(shorter).detach(), mean.model(x)[[0, 2]].detach()
        apart = float((own - all_steps).abs().max() / own.abs().max())
        assert str(error.value) == BEYOND.format(f"by up to {apart:.1e} of the largest")
    with pytest.raises(lrp.CaptureError) as error:
        flat(shorter)
    assert str(error.value) == BEYOND.format("15 of an image, not 20")


def line_of(function):
    return function.__code__.co_firstlineno + 1


def total_of_sizes(model, x, packed):
    return model.layer(packed)[1][0] * packed.batch_sizes.sum()


def last_size(model, x, packed):
    return model.layer(packed)[1][0] * packed.batch_sizes[-1]


def more_sizes(model, x, packed):
    return model.layer(packed)[1][0] * torch.add(packed.batch_sizes, 1).sum()


@pytest.mark.parametrize(("do", "what"), [(total_of_sizes, "sum: "), (last_size, ""), (more_sizes, "")])
def test_batch_sizes_are_refused(do, what):
    with pytest.raises(lrp.CaptureError) as error:
        lrp.explain(Steps(do).double().eval(), padded())
    assert str(error.value) == SIZES.format(line_of(do), what)


def test_a_sequence_of_no_steps_is_the_models_own_error():
    x = padded()
    x[1] = 0
    with pytest.raises(lrp.CaptureError) as error:
        lrp.explain(packs("gru"), x)
    assert str(error.value) == (
        "Packs itself fails on an input of shape [3, 4, 3]: RuntimeError: Length of all samples has to be greater than 0, "
        "but found an element in 'lengths' that is <= 0"
    )


def test_a_file_cannot_compare(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(lrp.ExportError) as error:
        write_onnx(
            lrp.Explainer(packs("gru"), dtype=torch.float32), padded().float(), tmp_path / "packs.onnx"
        )
    assert str(error.value) == (
        "the model packs sequences, and each explanation of it is compared with what the model returns, which a file cannot do."
    )


# ---------------------------------------------------------------- what a capture replaces


class WithAnotherThread(Packs):
    """Packs, and has another thread pack meanwhile."""

    def forward(self, x):
        made = []
        thread = threading.Thread(target=lambda: made.append(elsewhere()))
        thread.start()
        thread.join()
        assert made == [elsewhere.expected]
        return super().forward(x)


def elsewhere():
    """What packing gives: its sizes, and the sum of a layer's outputs."""
    torch_x = torch.ones(2, 3, 1)
    packed = pack_padded_sequence(torch_x, [1, 3], batch_first=True, enforce_sorted=False)
    layer = nn.GRU(1, 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.5)
        return packed.batch_sizes.tolist(), packed.sorted_indices.tolist(), float(layer(packed)[0].data.sum())


def test_other_threads_pack_as_before():
    elsewhere.expected = elsewhere()
    model = WithAnotherThread(nn.GRU(FEATURES, HIDDEN)).double().eval()
    assert lrp.explain(model, padded(), 1).health.ok


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_put_back(fails):
    def replaced():
        return [nn.RNNBase.check_forward_args, nn.LSTM.check_forward_args]

    before = replaced()
    if fails:
        with pytest.raises(lrp.CaptureError):
            lrp.explain(Steps(last_size).double().eval(), padded())
    else:
        lrp.explain(packs("lstm_projected"), padded())
    assert replaced() == before
    packed = pack_padded_sequence(padded(), LENGTHS, batch_first=True, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 3, 2, 1] and packed.sorted_indices.tolist() == [1, 0, 2]
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        nn.GRU(FEATURES, HIDDEN).double()(packed, torch.zeros(1, 3, HIDDEN + 1).double())
