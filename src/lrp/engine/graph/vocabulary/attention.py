"""Matrix products of data with data, einsum, and softmax."""

from __future__ import annotations

import string
from typing import Any

import torch

from lrp.engine.affine import Affine
from lrp.engine.graph.algebra import Bilinear, Movement, Softmax
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.registry import register
from lrp.engine.graph.shapes import Shape, sum_to_shape


@register(
    "softmax",
    "_softmax",
    "_safe_softmax",
    family="softmax",
    nonnegative="always",
    gate="squashed",
    allocates=True,
)
def _softmax(op: Operation) -> Softmax:
    return Softmax(op["dim"] % len(op.shape))


def _two_factors(op: Operation) -> bool:
    """Whether both factors depend on the image or at least on the batch, and are matrices or stacks of them."""
    factors = list(op.arguments)[:2]
    ranks = [len(op.arguments[name].meta["shape"]) for name in factors]
    return min(ranks) >= 2 and not any(op.is_constant(name) for name in factors)


@register("matmul", "mm", "bmm", family="matmul", when=_two_factors, nonnegative="kept", allocates=True)
def _matmul(op: Operation) -> Bilinear:
    left, right = list(op.arguments.values())[:2]
    shapes: tuple[Shape, Shape] = (left.meta["shape"], right.meta["shape"])
    lead = op.shape[:-2]

    def to_left(s: Any, other: Any) -> Any:
        return sum_to_shape(s @ other.mT, (*lead, *shapes[0][-2:]), shapes[0])

    def to_right(s: Any, other: Any) -> Any:
        return sum_to_shape(other.mT @ s, (*lead, *shapes[1][-2:]), shapes[1])

    return Bilinear((left, right), (to_left, to_right), _weights(op), len(op.shape), op.data)


def _weights(op: Operation) -> int | None:
    return None if op.signal is None else 1 - op.signal


# ---------------------------------------------------------------- einsum


def _subscripts(op: Operation) -> tuple[list[str], str]:
    """The operands' letters and the result's; "..." and a result that is not given are replaced by letters."""
    left, arrow, out = op["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        out = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    unused = [c for c in string.ascii_letters if c not in op["equation"]]
    ranks = [
        len(v.meta["shape"]) - len(t.replace("...", ""))
        for v, t in zip(op.arguments["tensors"], terms, strict=True)
    ]
    longest = max((n for n, t in zip(ranks, terms, strict=True) if "..." in t), default=0)
    spelled = unused[:longest]

    def plain(term: str, n: int) -> str:
        return term.replace("...", "".join(spelled[longest - n :]))

    return [plain(t, n) for t, n in zip(terms, ranks, strict=True)], plain(out, longest)


def _plain(op: Operation, operands: int) -> bool:
    """Whether every index occurs once in an operand, none is summed within one, none is of two sizes."""
    tensors = op.arguments["tensors"]
    if len(tensors) != operands:
        return False
    terms, out = _subscripts(op)
    sizes_of: dict[str, set[Any]] = {}
    for value, term in zip(tensors, terms, strict=True):
        for letter, size in zip(term, value.meta["shape"], strict=True):
            sizes_of.setdefault(letter, set()).add(size)
    others = [set(out).union(*(set(t) for j, t in enumerate(terms) if j != i)) for i in range(len(terms))]
    return all(len(set(t)) == len(t) and set(t) <= others[i] for i, t in enumerate(terms)) and all(
        len(found) == 1 for found in sizes_of.values()
    )


def _einsum_of_data(op: Operation) -> bool:
    return _plain(op, 2)


@register("einsum", family="matmul", when=_einsum_of_data)
def _einsum(op: Operation) -> Bilinear:
    (first, second), out = _subscripts(op)
    operands = tuple(op.arguments["tensors"])

    def to_first(s: Any, other: Any) -> Any:
        return torch.einsum(f"{out},{second}->{first}", s, other)

    def to_second(s: Any, other: Any) -> Any:
        return torch.einsum(f"{out},{first}->{second}", s, other)

    return Bilinear((operands[0], operands[1]), (to_first, to_second), _weights(op), len(op.shape), op.data)


def _einsum_with_constant(op: Operation) -> bool:
    constants = [v for v in op.arguments["tensors"] if v.op == "get_attr"]
    return _plain(op, 2) and len(op.data) == 1 and len(constants) == 1


@register("einsum", family="linear", when=_einsum_with_constant)
def _einsum_linear(op: Operation) -> Affine:
    terms, out = _subscripts(op)
    tensors = op.arguments["tensors"]
    index = 0 if op.is_data(tensors[0]) else 1
    a_term, w_term = terms[index], terms[1 - index]
    weight = op["tensors"][1 - index]

    def forward(a: Any, w: Any) -> Any:
        return torch.einsum(f"{a_term},{w_term}->{out}", a, w)

    def adjoint(s: Any, w: Any) -> Any:
        return torch.einsum(f"{out},{w_term}->{a_term}", s, w)

    return Affine(forward, adjoint, weight)


@register("einsum", family="movement", when=lambda op: _plain(op, 1))
def _einsum_permute(op: Operation) -> Movement:
    (term,), out = _subscripts(op)
    return Movement(lambda r: [torch.einsum(f"{out}->{term}", r[0])])
