"""The ledger: where relevance went, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrp.engine.graph.tracing.inputs import Inputs
from lrp.engine.graph.writer import TERMS, Program
from lrp.engine.request import Request

LEAST = 1e-30  # below this Σ|R| float32 is too imprecise for an account to close, and it need not


@dataclass(frozen=True)
class Row:
    """One operation's account. All but the names are [N], float64, in units of the start relevance.

    `unexplained` = relevance_in − relevance_out − bias − epsilon − dropped: rounding, or a wrong rule.
    `absolute` is Σ|R| entering. `wrong_sign` is the part of Σ|D| whose sign is not the one that the rule declares for its
    denominators D, from 0 to 1: more than a rounding error shows a wrong rule, even if its account closes.
    """

    path: str
    op: str
    rule: str
    relevance_in: Tensor
    absolute: Tensor
    relevance_out: Tensor
    bias: Tensor
    epsilon: Tensor
    dropped: Tensor
    wrong_sign: Tensor

    @property
    def unexplained(self) -> Tensor:
        return self.relevance_in - self.relevance_out - self.bias - self.epsilon - self.dropped

    @property
    def closing_error(self) -> Tensor:
        """|unexplained| as a fraction of the Σ|R| entering, or of `LEAST` if that is larger."""
        return self.unexplained.abs() / self.absolute.clamp(min=LEAST)


@dataclass(frozen=True)
class Ledger:
    """One row per operation, in order of execution; `totals` for the whole.

    Attributes:
        totals: [N] each: "start", "input" (what reached the pixels; of several inputs, also "input NAME" of each), "bias",
            "epsilon", "dropped", "unexplained" = start − input − bias − epsilon − dropped, "largest" (largest Σ|R| of a node).
        logits: [N, K], of each image alone: the ledger is computed one image at a time.
    """

    rows: list[Row]
    totals: dict[str, Tensor]
    logits: Tensor

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __str__(self) -> str:
        return self.table()

    def table(self, image: int = 0) -> str:
        """The account of one image, as text."""
        head = ("module", "operation", "rule", "in", "out", "bias", "ε", "dropped", "unexplained")
        lines = [head] + [
            (r.path or "(model)", r.op, r.rule)
            + tuple(
                f"{float(v[image]):.4g}"
                for v in (r.relevance_in, r.relevance_out, r.bias, r.epsilon, r.dropped, r.unexplained)
            )
            for r in self.rows
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(
                c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        t = {name: float(v[image]) for name, v in self.totals.items()}
        each = ", ".join(
            f"{name.removeprefix('input ')} {v:.6g}" for name, v in t.items() if name.startswith("input ")
        )
        return "\n".join(text) + (
            f"\nstart {t['start']:.6g} = input {t['input']:.6g}{f' ({each})' if each else ''} + bias {t['bias']:.6g} + ε {t['epsilon']:.6g} "
            f"+ dropped {t['dropped']:.6g} + unexplained {t['unexplained']:.2g}"
        )


def ledger_of_each_image(
    program: Program, rules: Sequence[str], inputs: Inputs, request: Request, together: bool = False
) -> Ledger:
    """Run a ledger program one image at a time: a sum over the whole batch is then that of one image, whatever its shape.

    Args:
        rules: the name of the rule of each of the program's rows.
        inputs: N images, in the program's dtype.
        request: for N images.
        together: run it on all images, with relevance at one of them, where the model takes no other number of images.
    """
    tables, alone, ends = [], [], []
    for i in range(len(inputs)):
        own = request.only(i) if together else request.image(i)
        images = inputs if together else inputs.images(i, i + 1)
        *relevance, logits, start, table = program(*images.tensors, *own.arguments)
        tables.append(table)
        alone.append(logits[i : i + 1] if together else logits)
        begun = own.inner_starts or [start]
        total = [v.sum(dtype=torch.float64) for v in relevance]
        ends.append(
            [sum(v.sum(dtype=torch.float64) for v in begun), sum(v.abs().sum() for v in relevance), *total]
        )
    book = torch.stack(tables, dim=-1).cpu()  # [rows, terms, N]
    begun_at, spread, *arrived = torch.tensor(ends, dtype=torch.float64).t()
    rows = [
        Row(o.path, o.name, rule, **dict(zip(TERMS, account, strict=True)))
        for o, rule, account in zip(program.rows, rules, book, strict=True)
    ]
    lost = {name: book[:, TERMS.index(name)].sum(0) for name in ("bias", "epsilon", "dropped")}
    absolute = book[:, TERMS.index("absolute")]
    reached = torch.stack(arrived).sum(0) if arrived else torch.zeros_like(begun_at)
    each = {f"input {inputs.names[i]}": part for i, part in zip(program.inputs, arrived, strict=True)}
    totals = {
        "start": begun_at,
        "input": reached,
        **(each if len(each) > 1 else {}),
        **lost,
        "unexplained": begun_at - reached - lost["bias"] - lost["epsilon"] - lost["dropped"],
        "largest": torch.maximum(absolute.amax(0), spread) if len(absolute) else spread,
    }
    return Ledger(rows, totals, torch.cat(alone))
