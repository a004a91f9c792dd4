"""Products of data, softmax, attention, LSTM and a small ViT against docs/rules.md, written out in numpy.

One image at a time, in float64, forwards and backwards by hand: nothing is shared with `lrp`, nor with `Trace`.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp
from helpers.checks import TERMS, Alone, agrees, explain_alone
from helpers.operations import Call

COMPOSITES = {"cp": lrp.Composite([]), "attnlrp": lrp.Composite([], attention="attnlrp")}

# ---------------------------------------------------------------------------------- docs/rules.md, literally


class Books:
    """The ledger's terms of one image; `largest`: the largest Σ|R| that entered an operation."""

    def __init__(self, eps=1e-6):
        self.eps, self.bias, self.epsilon, self.dropped, self.largest = eps, 0.0, 0.0, 0.0, 0.0

    def per(self, R, z):
        """R / s(z), with sgn(0) = +1; z = 0 drops R."""
        self.largest = max(self.largest, np.abs(R).sum())
        self.dropped += R[z == 0].sum()
        shared = (z != 0) & (R != 0)
        s = z + np.where(z >= 0, self.eps, -self.eps)
        q = np.divide(R, s, out=np.zeros(z.shape), where=shared)
        self.epsilon += (q * np.where(z >= 0, self.eps, -self.eps)).sum()
        return q

    def linear(self, a, w, b, R):
        """z = w a + b on the last axis."""
        b = np.zeros(len(w)) if b is None else b
        q = self.per(R, a @ w.T + b)
        self.bias += (q * b).sum()
        return a * (q @ w)

    def sum(self, x, y, R):
        q = self.per(R, x + y)
        return q * x, q * y

    def plus_constant(self, x, c, R):
        """A constant may be −inf: there p = 0, and no relevance arrives."""
        q = self.per(R, x + c)
        self.bias += (q * np.where(q == 0, 0.0, c)).sum()
        return q * x

    def times_constant(self, x, c, R):
        return self.per(R, x * c) * x * c

    def product(self, spec, a, b, R, shares=(0.5, 0.5)):
        """Z = einsum(a, b): R_a = a ⊙ (share R / s(Z)) bᵀ, and so for b."""
        (at_a, at_b), out = spec.split("->")[0].split(","), spec.split("->")[1]
        q = self.per(R, np.einsum(spec, a, b))
        for_a = a * np.einsum(f"{out},{at_b}->{at_a}", shares[0] * q, b)
        return for_a, b * np.einsum(f"{out},{at_a}->{at_b}", shares[1] * q, a)

    def softmax(self, x, axis, R):
        """R_i = x_i (R_i − p_i ΣR), 0 where x_i = −inf; Σ R_i (1 − x_i + Σ p_j x_j) is left for the bias."""
        p, x = softmax(x, axis), np.where(np.isinf(x), 0.0, x)
        self.bias += (R * (1 - x + (p * x).sum(axis, keepdims=True))).sum()
        return x * (R - p * R.sum(axis, keepdims=True))

    def attention(self, q, k, v, R, rule, scale=1.0, mask=None):
        """softmax(q kᵀ · scale + mask) v, all [heads, tokens, width]."""
        scores = np.einsum("hid,hjd->hij", q, k)
        seen = scores * scale + (0.0 if mask is None else mask)
        shares = {"cp": (0.0, 1.0), "attnlrp": (0.5, 0.5)}[rule]
        R_p, R_v = self.product("hij,hjd->hid", softmax(seen, -1), v, R, shares)
        if rule == "cp":
            return 0 * q, 0 * k, R_v
        R_s = self.softmax(seen, -1, R_p)
        if mask is not None:
            R_s = self.plus_constant(scores * scale, mask, R_s)
        if scale != 1.0:
            R_s = self.times_constant(scores, scale, R_s)
        return *self.product("hid,hjd->hij", q, k, R_s), R_v


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def array(x):
    return None if x is None else x.detach().double().numpy()


def placed(cut, R, shape):
    """Relevance of what `cut` takes out of an image of `shape`, back at its place."""
    relevance = np.zeros(int(np.prod(shape)))
    index = cut(torch.arange(relevance.size).reshape(1, *shape))[0]
    np.add.at(relevance, index.numpy().reshape(-1), R.reshape(-1))
    return relevance.reshape(shape)


def check(e, x, R, literal, eps=1e-6):
    """`literal(books, image, R)` gives the image's relevance. Returns the books."""
    books = [Books(eps) for _ in x]
    for i, book in enumerate(books):
        agrees(e.relevance[i].numpy(), literal(book, array(x[i]), array(R[i])), f"relevance of image {i}")
        scale = max(book.largest, float(R[i].abs().sum()))
        for term in TERMS:
            agrees(float(e.ledger.totals[term][i]), getattr(book, term), f"{term} of image {i}", scale)
    assert e.health.ok, e.health.problems
    for row in e.ledger:
        assert (row.unexplained.abs() <= 1e-9 * (1 + R.abs().sum(1))).all(), row
    return books


def check_net(model, x, rule, literal):
    model = model.double().eval()
    R = torch.randn_like(model(x))
    e = lrp.Explainer(model, COMPOSITES[rule], dtype=torch.float64)(x, target=R)
    check(e, x, R, literal)
    return e


def row(e, rule):
    (found,) = [row for row in e.ledger if str(row.rule).startswith(rule)]
    return found


# ------------------------------------------------------------------------------------- products of data


def top(x):
    return x[:, :3]


def low(x):
    return x[:, 3:]


def heads_in_batch(a, b):
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, (-1, 3))


# x is [N, 6, 4, 4]; name: (product, what it takes from x, the product as an einsum)
PRODUCTS = {
    "at": (lambda a, b: a @ b, top, low, "hij,hjk->hik"),
    "matmul_transposed": (lambda a, b: torch.matmul(a, b.mT), top, low, "hij,hkj->hik"),
    "left_transposed": (lambda a, b: a.transpose(-2, -1).matmul(b), top, low, "hji,hjk->hik"),
    "bmm": (
        torch.bmm, lambda x: top(x).flatten(1, 2), lambda x: low(x).reshape(-1, 4, 12), "ij,jk->ik",
    ),
    "bmm_heads_in_batch": (heads_in_batch, top, low, "hij,hjk->hik"),
    "einsum_scores": (lambda a, b: torch.einsum("nhid,nhjd->nhij", a, b), top, low, "hid,hjd->hij"),
    "einsum_values": (lambda a, b: torch.einsum("nhij,nhjd->nihd", a, b), top, low, "hij,hjd->ihd"),
    "einsum_operator_order": (lambda a, b: torch.einsum("nhjk,nhij->nkhi", a, b), top, low, "hjk,hij->khi"),
    "einsum_two_axes": (lambda a, b: torch.einsum("nhij,nhjk->nik", a, b), top, low, "hij,hjk->ik"),
    "right_for_all_heads": (lambda a, b: a @ b[:, None], top, lambda x: x[:, 3], "hij,jk->hik"),
    "left_for_all_heads": (lambda a, b: a[:, None] @ b, lambda x: x[:, 0], low, "ij,hjk->hik"),
    "expanded": (
        lambda a, b: a @ b[:, None].expand(-1, 3, -1, -1), top, lambda x: x[:, 3], "hij,jk->hik",
    ),
    "einsum_for_all_heads": (
        lambda a, b: torch.einsum("nij,nhjk->nhik", a, b), lambda x: x[:, 5], top, "ij,hjk->hik",
    ),
    "vector": (lambda a, b: (a @ b[..., None])[..., 0], top, lambda x: x[:, 3:, 1], "hij,hj->hi"),
    "vector_left": (lambda a, b: (a[:, :, None] @ b).squeeze(2), lambda x: x[:, :3, 1], low, "hj,hjk->hk"),
    "gram": (lambda a, b: a @ b.mT, lambda x: x.flatten(2), lambda x: x.flatten(2), "ij,kj->ik"),
    "overlapping": (lambda a, b: a @ b, lambda x: x[:, :4], lambda x: x[:, 2:], "hij,hjk->hik"),
    "cut_in_width": (lambda a, b: a @ b.mT, lambda x: x[..., :2], lambda x: x[..., 2:], "hij,hkj->hik"),
}  # fmt: skip


def numbers(whole):
    x = torch.randint(-2, 3, (2, 6, 4, 4)) if whole else torch.randn(2, 6, 4, 4)
    return x.double()


@pytest.mark.parametrize(("eps", "whole"), [(None, False), (0.25, True), (0.0, True)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_halves(name, eps, whole):
    torch.manual_seed(1)
    function, cut_a, cut_b, spec = PRODUCTS[name]
    model = Alone(Call(function), lambda x: (cut_a(x), cut_b(x)))
    x = numbers(whole)
    R = torch.randn_like(model(x))
    rule = None if eps is None else lrp.Halves(epsilon=eps)
    e = explain_alone(model, rule, x, R, lrp.family("matmul"))

    def literal(books, image, R):
        a, b = (cut(torch.from_numpy(image)[None])[0].numpy() for cut in (cut_a, cut_b))
        z = np.einsum(spec, a, b)
        R_a, R_b = books.product(spec, a, b, R.reshape(z.shape))
        return placed(cut_a, R_a, image.shape) + placed(cut_b, R_b, image.shape)

    books = check(e, x, R, literal, 1e-6 if eps is None else eps)
    for term in TERMS:
        booked = getattr(row(e, "Halves"), term).numpy()
        agrees(booked, [getattr(book, term) for book in books], term, R.abs().sum())
    if whole and name != "gram":
        assert any(book.dropped for book in books)


HIDDEN = np.triu(np.ones((4, 4), bool), 1)
# name: what becomes of softmax(a), [N, 3, 4, 4], before it is multiplied with b
ATTENDED = {
    "itself": lambda p: p,
    "transposed": lambda p: p.transpose(-1, -2),
    "permuted_twice": lambda p: p.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "reshaped": lambda p: p.reshape(-1, 12, 4).view(-1, 3, 4, 4),
    "sliced": lambda p: p[:, :, :2],
    "dropout": nn.Dropout(0.5),
    "clamped": lambda p: p.clamp(0.1, 0.6),
    "filled_afterwards": lambda p: p.masked_fill(torch.from_numpy(HIDDEN), 0.0),
    "where": lambda p: torch.where(torch.from_numpy(HIDDEN), 0.0, p),
    "one_head_for_all": lambda p: p[:, :1].expand(-1, 3, -1, -1),
    "joined": lambda p: torch.cat([p[:, 2:], p[:, :2]], 1),
    "stacked": lambda p: torch.stack(p.unbind(1)[::-1], 1),
    "masked_and_renormalised": lambda p: (
        p * torch.ones(4, 4).tril() / (p * torch.ones(4, 4).tril()).sum(-1, keepdim=True)
    ),
    "by_its_columns": lambda p: p / p.sum(-2, keepdim=True),
    "plus_epsilon_renormalised": lambda p: (p + 1e-3) / (p + 1e-3).sum(-1, keepdim=True),
}


class Weighted(nn.Module):
    """softmax(a), on its way through `function`, times b; from the left, or b times it."""

    def __init__(self, function, side="left"):
        super().__init__()
        if isinstance(function, nn.Module):
            self.between = function
        self.function, self.side = function, side

    def forward(self, x):
        p, b = self.function(top(x).softmax(-1)), low(x)
        return (p @ b if self.side == "left" else b.mT @ p.mT).flatten(1)


class TalkingHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, p):
        return self.mix(p.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


ATTENDED["talking_heads"] = TalkingHeads()
ATTENDED["talking_heads_conv"] = nn.Conv2d(3, 3, 1, bias=False)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("eps", [None, 0.25])
@pytest.mark.parametrize("name", ATTENDED)
def test_values(name, side, eps):
    """However it went on: what a softmax gave is a constant, the values get all, bᵀ pᵀ too."""
    torch.manual_seed(2)
    model = Weighted(ATTENDED[name], side).double().eval()
    x = numbers(whole=False)
    x[0, 4, :, 2] = 0.0  # so some outputs are exactly 0
    R = torch.randn_like(model(x))
    rules = [] if eps is None else [(lrp.family("matmul"), lrp.Values(epsilon=eps))]
    e = lrp.Explainer(model, lrp.Composite(rules), dtype=torch.float64)(x, target=R)

    def literal(books, image, R):
        with torch.no_grad():
            p = model.function(torch.from_numpy(image)[None, :3].softmax(-1))[0].numpy()
        spec = "hij,hjk->hik" if side == "left" else "hij,hjk->hki"
        R = R.reshape(np.einsum(spec, p, image[3:]).shape)
        _, R_b = books.product(spec, p, image[3:], R, (0.0, 1.0))
        return np.concatenate([0 * image[:3], R_b])

    books = check(e, x, R, literal, 1e-6 if eps is None else eps)
    assert (e.relevance[:, :3] == 0).all()
    assert books[0].dropped != 0 == books[1].dropped
    agrees(row(e, "Values").epsilon.numpy(), [book.epsilon for book in books], "ε", R.abs().sum())


@pytest.mark.parametrize("rule", ["halves, constant", "values, taylor", "halves, taylor"])
def test_named_rules_of_attention(rule):
    """Half for a softmax that is a constant is booked under bias; Values leave it nothing to hand on."""
    torch.manual_seed(3)
    product, soft = rule.split(", ")
    of_matmul = {"halves": lrp.Halves(epsilon=0.25), "values": lrp.Values(epsilon=0.25)}[product]
    of_softmax = {"constant": lrp.Constant(), "taylor": lrp.SoftmaxTaylor()}[soft]
    model = Weighted(lambda p: p).double().eval()
    x, R = numbers(whole=False), torch.randn(2, 48).double()
    rules = [(lrp.family("matmul"), of_matmul), (lrp.family("softmax"), of_softmax)]
    e = lrp.Explainer(model, lrp.Composite(rules), dtype=torch.float64)(x, target=R)

    def literal(books, image, R):
        a, b = image[:3], image[3:]
        shares = (0.5, 0.5) if product == "halves" else (0.0, 1.0)
        R_p, R_b = books.product("hij,hjk->hik", softmax(a, -1), b, R.reshape(3, 4, 4), shares)
        if soft == "constant":
            books.bias += R_p.sum()
        return np.concatenate([0 * a if soft == "constant" else books.softmax(a, -1, R_p), R_b])

    check(e, x, R, literal, eps=0.25)


# --------------------------------------------------------------------------------------------- softmax

MASK = np.where(HIDDEN, -np.inf, np.arange(16.0).reshape(4, 4) / 8 - 1)
# name: (function of [N, 6, 4, 4], axis of an image, what is −inf, what is added)
SOFTMAXES = {
    "last": (lambda x: x.softmax(-1), -1, None, None),
    "functional": (lambda x: F.softmax(x, dim=2), 1, None, None),
    "channels": (lambda x: torch.softmax(x, 1), 0, None, None),
    "module": (nn.Softmax(dim=1), 0, None, None),
    "filled": (lambda x: x.masked_fill(torch.from_numpy(HIDDEN), -torch.inf).softmax(-1), -1, HIDDEN, None),
    "filled_channels": (
        lambda x: x.masked_fill((torch.arange(6) > 3)[:, None, None], -torch.inf).softmax(1),
        0, np.arange(6)[:, None, None] > 3, None,
    ),
    "added": (lambda x: (x + torch.from_numpy(MASK)).softmax(-1), -1, None, MASK),
}  # fmt: skip


@pytest.mark.parametrize("rule", [None, lrp.Constant(), lrp.SoftmaxTaylor(), "attnlrp"], ids=str)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax(name, rule):
    torch.manual_seed(4)
    function, axis, hidden, added = SOFTMAXES[name]
    taylor = not isinstance(rule, lrp.Constant)  # without a rule of its own: nothing else reaches the image
    model = Alone(Call(function)).double().eval()
    x, R = 2 * numbers(whole=False), torch.randn(2, 96).double()
    named = [] if rule in (None, "attnlrp") else [(lrp.family("softmax"), rule)]
    composite = COMPOSITES["attnlrp"] if rule == "attnlrp" else lrp.Composite(named)
    e = lrp.Explainer(model, composite, dtype=torch.float64)(x, target=R)
    of_softmax = []

    def literal(books, image, R):
        R = R.reshape(image.shape)
        z = image if hidden is None else np.where(hidden, -np.inf, image)
        z = z if added is None else z + added
        if not taylor:
            books.bias += R.sum()
            of_softmax.append(books.bias)
            return np.zeros(image.shape)
        R = books.softmax(z, axis, R)
        of_softmax.append(books.bias)
        return R if added is None else books.plus_constant(image, added, R)

    check(e, x, R, literal)
    booked = row(e, "SoftmaxTaylor" if taylor else "Constant").bias.numpy()
    agrees(booked, of_softmax, "bias of the softmax", R.abs().sum())
    if hidden is not None:
        assert (e.relevance[:, torch.from_numpy(hidden | np.zeros((6, 4, 4), bool))] == 0).all()


# ------------------------------------------------------------------------------------------- attention

SEEN = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).bool()
PER_HEAD = torch.stack([SEEN, SEEN.T])
FLOATS = (torch.arange(9.0).reshape(3, 3).double() - 4) / 5


def as_added(seen):
    return torch.zeros(seen.shape).double().masked_fill(~seen, -torch.inf)


# name: (heads of q and of k, v; options; the mask as it is added)
SDPA = {
    "plain": ((2, 2), {}, None),
    "scale": ((2, 2), {"scale": 0.7}, None),
    "scale_negative": ((2, 2), {"scale": -1.3}, None),
    "bool_mask": ((2, 2), {"attn_mask": SEEN}, as_added(SEEN)),
    "bool_mask_per_head": ((2, 2), {"attn_mask": PER_HEAD}, as_added(PER_HEAD)),
    "float_mask": ((2, 2), {"attn_mask": FLOATS}, FLOATS),
    "float_mask_inf": ((2, 2), {"attn_mask": FLOATS + as_added(SEEN)}, FLOATS + as_added(SEEN)),
    "causal": ((2, 2), {"is_causal": True}, as_added(torch.ones(3, 3).tril().bool())),
    "causal_scale": ((2, 2), {"is_causal": True, "scale": 0.4}, as_added(torch.ones(3, 3).tril().bool())),
    "grouped": ((4, 2), {"enable_gqa": True}, None),
    "grouped_one": ((3, 1), {"enable_gqa": True, "attn_mask": SEEN}, as_added(SEEN)),
}


@pytest.mark.parametrize("rule", COMPOSITES)
@pytest.mark.parametrize("name", SDPA)
def test_scaled_dot_product_attention(name, rule):
    torch.manual_seed(5)
    (queries, others), options, mask = SDPA[name]

    def attend(x):
        q, k, v = x.split([queries, others, others], 1)
        return F.scaled_dot_product_attention(q, k, v, **options)

    def literal(books, image, R):
        q, k, v = np.split(image, [queries, queries + others])
        k, v = (np.repeat(part, queries // others, 0) for part in (k, v))
        scale = options.get("scale", 0.5)  # width 4
        R_q, R_k, R_v = books.attention(q, k, v, R.reshape(q.shape), rule, scale, array(mask))
        R_k, R_v = (part.reshape(others, -1, 3, 4).sum(1) for part in (R_k, R_v))
        return np.concatenate([R_q, R_k, R_v])

    x = torch.randn(2, queries + 2 * others, 3, 4).double()
    e = check_net(Alone(Call(attend)), x, rule, literal)
    assert (e.relevance[:, :-others] == 0).all() == (rule == "cp")


class MultiHead(nn.Module):
    """x + MultiheadAttention(x) on the pixels of [N, 6, 2, 2] as tokens."""

    def __init__(self, batch_first=True, weights=False, mask=None, queries=4, bias=True):
        super().__init__()
        self.attn = nn.MultiheadAttention(6, 2, batch_first=batch_first, bias=bias)
        for name, p in self.attn.named_parameters():
            if "bias" in name:
                nn.init.normal_(p)
        self.weights, self.mask, self.queries = weights, mask, queries

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens if self.attn.batch_first else tokens.transpose(0, 1)
        query = tokens
        if self.queries < 4:
            query = tokens[:, : self.queries] if self.attn.batch_first else tokens[: self.queries]
        y = self.attn(query, tokens, tokens, need_weights=self.weights, attn_mask=self.mask)[0] + query
        return (y if self.attn.batch_first else y.transpose(0, 1)).flatten(1)

    def literal(self, books, image, R, rule):
        tokens, L = image.reshape(6, 4).T, self.queries
        w, w_out = array(self.attn.in_proj_weight), array(self.attn.out_proj.weight)
        b, b_out = array(self.attn.in_proj_bias), array(self.attn.out_proj.bias)
        b = np.zeros(18) if b is None else b
        inputs = (tokens[:L], tokens, tokens)
        ws, bs = np.split(w, 3), np.split(b, 3)

        def heads(a):
            return a.reshape(len(a), 2, 3).transpose(1, 0, 2)

        def merged(a):
            return a.transpose(1, 0, 2).reshape(-1, 6)

        q, k, v = (heads(x @ w.T + b) for x, w, b in zip(inputs, ws, bs, strict=True))
        mask = None if self.mask is None else array(as_added(~self.mask))
        added = 0 if mask is None else mask
        y = merged(softmax(q @ k.transpose(0, 2, 1) * 3**-0.5 + added, -1) @ v)
        R_y, R_query = books.sum(y @ w_out.T + (0 if b_out is None else b_out), tokens[:L], R.reshape(L, 6))
        R_y = heads(books.linear(y, w_out, b_out, R_y))
        # With the weights PyTorch scales the queries, not the scores: the same function, and the same relevance.
        R_q, R_k, R_v = books.attention(q, k, v, R_y, rule, 3**-0.5, mask)
        relevance = np.zeros((4, 6))
        relevance[:L] += R_query
        for part, x, w, b in zip((R_q, R_k, R_v), inputs, ws, bs, strict=True):
            relevance[: len(x)] += books.linear(x, w, b, merged(part))
        return relevance.T.reshape(6, 2, 2)


MULTIHEAD = {
    "batch_first": {},
    "batch_second": {"batch_first": False},
    "weights": {"weights": True},
    "weights_batch_second": {"weights": True, "batch_first": False},
    "no_bias": {"bias": False},
    "mask": {"mask": torch.ones(4, 4).triu(1).bool()},
    "mask_weights": {"mask": torch.ones(4, 4).triu(1).bool(), "weights": True},
    "other_queries": {"queries": 2},
    "other_queries_batch_second": {"queries": 1, "batch_first": False},
}


@pytest.mark.parametrize("rule", COMPOSITES)
@pytest.mark.parametrize("name", MULTIHEAD)
def test_multihead_attention(name, rule):
    torch.manual_seed(6)
    model = MultiHead(**MULTIHEAD[name])
    x = torch.randn(2, 6, 2, 2).double()
    check_net(model, x, rule, lambda books, image, R: model.literal(books, image, R, rule))


# ------------------------------------------------------------------------------------------------ LSTM


def lstm(xs, w, u, b, d):
    """Forwards from a zero state. Returns h of every step, and the way back: (books, R of every h) -> R of xs."""
    n, steps, hs, h, c = u.shape[1], [], [], None, None
    for x in xs:
        recurrent = (0 if h is None else u @ h) + d
        i, f, g, o = np.split(w @ x + b + recurrent, 4)
        i, f, o, g = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
        kept = 0 * g if c is None else f * c
        steps.append((x, h, recurrent, kept, i * g))
        c = kept + i * g
        h = o * np.tanh(c)
        hs.append(h)

    def back(books, R_hs):
        R_xs, R_h, R_c = [None] * len(xs), np.zeros(n), np.zeros(n)
        for t in reversed(range(len(xs))):
            x, h, recurrent, kept, new = steps[t]
            R_c = R_c + R_h + R_hs[t]  # σ(o) tanh(c): all to tanh(c), and on to c
            R_c, R_g = books.sum(kept, new, R_c)  # σ(f) c and σ(i) tanh(g): all to c and to g
            R_gates = np.concatenate([0 * R_g, 0 * R_g, R_g, 0 * R_g])
            if h is None:  # the first step adds a constant, the recurrent bias
                R_x = books.plus_constant(w @ x + b, recurrent, R_gates)
                R_h = np.zeros(n)
            else:
                R_x, R_r = books.sum(w @ x + b, recurrent, R_gates)
                R_h = books.linear(h, u, d, R_r)
            R_xs[t] = books.linear(x, w, b, R_x)
        return R_xs

    return hs, back


class Rows(nn.Module):
    """The four rows of [N, 1, 4, 5], one after another; all outputs, or the last one."""

    def __init__(self, last=False, **options):
        super().__init__()
        self.lstm, self.last = nn.LSTM(5, 3, **options), last

    def forward(self, x):
        x = x[:, 0]
        y = self.lstm(x)[0] if self.lstm.batch_first else self.lstm(x.transpose(0, 1))[0].transpose(0, 1)
        return y[:, -1] if self.last else y.flatten(1)

    def literal(self, books, image, R):
        rows, ways = list(image[0]), 1 + self.lstm.bidirectional
        all_back = []
        for layer in range(self.lstm.num_layers):
            hs, backs = [], []
            for way in range(ways):
                suffix, order = f"_l{layer}" + "_reverse" * way, slice(None, None, -1 if way else 1)
                w, u, b, d = (
                    array(getattr(self.lstm, f"{name}{suffix}", None))
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                b, d = (np.zeros(12) if p is None else p for p in (b, d))
                h, back = lstm(rows[order], w, u, b, d)
                hs.append(h[order])
                backs.append((back, order))
            rows = [np.concatenate(at_one_step) for at_one_step in zip(*hs, strict=True)]
            all_back.append(backs)
        if self.last:
            R = np.concatenate([np.zeros((3, R.size)), R[None]])
        R = list(R.reshape(4, -1))
        for backs in reversed(all_back):
            by_way = []
            for way, (back, order) in enumerate(backs):
                own = [r[3 * way : 3 * way + 3] for r in R]
                by_way.append(back(books, own[order])[order])
            R = [sum(parts) for parts in zip(*by_way, strict=True)]
        return np.stack(R)[None]


LSTMS = {
    "batch_first": {"batch_first": True},
    "batch_second": {},
    "last": {"batch_first": True, "last": True},
    "no_bias": {"bias": False},
    "both_ways": {"batch_first": True, "bidirectional": True},
    "both_ways_last": {"bidirectional": True, "last": True},
    "two_layers": {"num_layers": 2, "batch_first": True},
    "two_layers_both_ways": {"num_layers": 2, "bidirectional": True},
    "two_layers_both_ways_no_bias": {"num_layers": 2, "bidirectional": True, "bias": False},
}


@pytest.mark.parametrize("name", LSTMS)
def test_lstm(name):
    torch.manual_seed(7)
    model = Rows(**LSTMS[name])
    e = check_net(model, torch.randn(2, 1, 4, 5).double(), "cp", model.literal)
    assert (e.relevance.abs().amax((1, 3)) > 1e-6).all()  # every row matters


# ------------------------------------------------------------------------------------------- small ViT


class Block(nn.Module):
    def __init__(self, width, fused):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(width, 2, bias=False, batch_first=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 12, bias=False), nn.GELU(), nn.Linear(12, width, bias=False)
        )
        self.weights = not fused

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=self.weights)[0]
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    def __init__(self, fused=True, width=8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2, bias=False)
        self.blocks = nn.Sequential(Block(width, fused), Block(width, fused))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, 5, bias=False)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(1))


@pytest.mark.parametrize("fused", [True, False])
def test_vit_without_biases_conserves(fused):
    """Identity: with ε = 0 nothing is lost; a batch is its images; linear in the start."""
    torch.manual_seed(8)
    model = SmallViT(fused).double().eval()
    explain = lrp.Explainer(model, lrp.preset("cp_lrp", epsilon=0.0), dtype=torch.float64)
    x = torch.randn(4, 3, 4, 6).double()
    with torch.no_grad():
        logits = model(x)
    for target in range(5):
        e = explain(x, target=logits * F.one_hot(torch.tensor(target), 5))
        reached, largest = e.relevance.sum((1, 2, 3)), e.ledger.totals["largest"]
        assert ((reached - logits[:, target]).abs() <= 1e-9 * logits[:, target].abs().clamp(min=1)).all()
        for term in TERMS:
            assert (torch.as_tensor(e.ledger.totals[term]).abs() <= 1e-12 * torch.as_tensor(largest)).all()
        for row in e.ledger:
            assert (row.bias == 0).all(), row
        assert e.health.ok, e.health.problems
    same = explain(x, target=4)
    agrees(same.relevance.numpy(), e.relevance.numpy(), "the start is the target's logit")
    R, other = torch.randn(2, 4, 5).double()
    whole = explain(x, target=R).relevance
    for i in range(4):
        alone = explain(x[i : i + 1], target=R[i : i + 1]).relevance[0]
        assert (whole[i] - alone).abs().max() <= 1e-10 * alone.abs().max()
    mixed = explain(x, target=2 * R - 3 * other).relevance
    parts = 2 * whole - 3 * explain(x, target=other).relevance
    assert (mixed - parts).abs().max() <= 1e-10 * parts.abs().max()
