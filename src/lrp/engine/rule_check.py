"""Rules compared with a dense matrix, on a given model: what `Explainer.check` does.

For some outputs of every affine operation, autograd computes the row of its matrix from the operation that the model
itself calls, and the rule's equation is evaluated over that row, in float64, element by element. None of this shares
code with the explanation program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.affine import Affine, Branch, Flow, Site, total
from lrp.engine.graph.algebra import Matrix, Step
from lrp.engine.graph.canonical import Graph
from lrp.engine.graph.ops import Operation
from lrp.engine.graph.reached import reached
from lrp.engine.program import Builder
from lrp.engine.rules import AffineRule

LIMIT = 1e-9  # tolerance in float64, relative to the largest relevance
OUTPUTS = 12  # compared per operation


@dataclass(frozen=True)
class Checked:
    """The result for one operation.

    `difference`: between its relevance and the equation's, relative to the largest; None where there is no matrix to compare
    with: operations that are not affine, rules that pass relevance on unchanged, and a relative ε. `unexplained`: the
    relevance that its account does not explain, relative to Σ|R|. `broken`: the declared properties that do not hold.
    """

    path: str
    op: str
    rule: str
    difference: float | None
    unexplained: float
    broken: str

    @property
    def ok(self) -> bool:
        return (self.difference or 0.0) <= LIMIT and self.unexplained <= LIMIT and not self.broken


@dataclass(frozen=True)
class RuleCheck:
    """What `Explainer.check` found, one row for each operation that relevance reaches."""

    rows: list[Checked]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        against = sum(row.difference is not None for row in self.rows)
        lines = [
            f"{len(self.rows)} operations checked, {against} of them against a dense matrix: "
            + ("all match their equations" if self.ok else f"{sum(not row.ok for row in self.rows)} differ")
        ]
        for row in self.rows:
            if row.ok:
                continue
            found = (
                []
                if (row.difference or 0) <= LIMIT
                else [f"relevance differs by {row.difference:.1e} of the largest"]
            )
            if row.unexplained > LIMIT:
                found.append(f"{row.unexplained:.1e} of the relevance is unexplained")
            if row.broken:
                found.append(row.broken)
            lines.append(f"  {row.path or '(model)'} ({row.op}, {row.rule}): {'; '.join(found)}")
        return "\n".join(lines)

    __repr__ = __str__


def check_rules(graph: Graph, builder: Builder, inputs: Sequence[Tensor]) -> RuleCheck:
    """Check every operation that relevance reaches.

    Args:
        builder: the builder of the graph's programs, in float64.
        inputs: of one image, float64.
    """
    random = torch.Generator().manual_seed(0)
    values = _values(graph, inputs)
    arrives = reached(graph, builder.rules)
    return RuleCheck(
        [_checked(builder, o, values, random) for node, o in graph.operations.items() if node in arrives]
    )


def _values(graph: Graph, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """The value of every node, for these inputs."""
    values: dict[fx.Node, Any] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.fx.nodes:
        if node.op == "get_attr":
            values[node] = graph.constants[str(node.target)]
        elif node.op == "call_function":
            values[node] = _called(node, values)
    return values


def _called(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    target: Any = node.target
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(dict(node.kwargs), values.__getitem__)
    return target(*args, **kwargs)


def _checked(
    builder: Builder, operation: Operation, values: dict[fx.Node, Any], random: torch.Generator
) -> Checked:
    rule: Any = builder.rules[operation.node]
    site = builder.site(operation, values, builder.speed)
    z = values[operation.node]
    first = z[0] if isinstance(z, (tuple, list)) else z
    relevance, indices = _relevance(first, getattr(site, "zero_below", False), random)
    shapes = operation.node.meta.get("shapes") or [None]
    outputs = [relevance, *[None] * (len(shapes) - 1)]
    inputs = [values[n] for n in operation.data]

    def read(argument: Any) -> Any:
        return values[argument] if isinstance(argument, fx.Node) else argument

    flow = operation.algebra.hand_down(Step(rule, inputs, z, outputs, read, site))
    difference = None
    comparable = (
        isinstance(operation.algebra, Matrix) and not rule.moves and not getattr(rule, "relative", False)
    )
    if comparable and len(
        indices
    ):  # none: relevance is 0 at all outputs, as below a ReLU that gives 0 everywhere
        expected = _expected(rule, operation, site, values, relevance, indices)
        received = flow.relevance[0]
        assert isinstance(received, Tensor)
        difference = float((received - expected).abs().max() / expected.abs().max().clamp(min=1e-300))
    return Checked(
        operation.path, operation.name, str(rule), difference, _unexplained(flow, relevance),
        "; ".join(_broken(rule, operation, flow, inputs)),
    )  # fmt: skip


def _relevance(z: Tensor, positive_only: bool, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random relevance at a few outputs, 0 at the others; and the flat indices of these outputs."""
    flat = z.reshape(-1)
    candidates = torch.nonzero(
        flat > 0 if positive_only else torch.ones_like(flat, dtype=torch.bool)
    ).flatten()
    indices = candidates[torch.randperm(len(candidates), generator=random)[:OUTPUTS]]
    relevance = torch.zeros_like(flat)
    relevance[indices] = torch.randn(len(indices), generator=random, dtype=torch.float64).to(flat)
    return relevance.reshape(z.shape), indices


def _unexplained(flow: Flow, relevance: Tensor) -> float:
    sent = sum((float(total(r)) for r in flow.relevance if r is not None), start=0.0)
    lost = float(flow.bias) + float(flow.epsilon) + float(flow.dropped)
    return abs(float(total(relevance)) - sent - lost) / max(float(relevance.abs().sum()), 1e-300)


def _broken(rule: Any, operation: Operation, flow: Flow, inputs: list[Any]) -> Iterator[str]:
    """The declared properties of a rule that its relevance does not have."""
    if float(flow.wrong_sign) > 1e-12:
        yield f"{float(flow.wrong_sign):.1e} of Σ|D| has another sign than a Branch declares"
    if rule.in_proportion:
        for a, r in zip(inputs, flow.relevance, strict=True):
            if r is not None and bool((r[(a == 0).expand_as(r)] != 0).any()):
                yield "in_proportion is true, and inputs of 0 get relevance"


# ---------------------------------------------------------------- the equation, over dense rows


def _expected(
    rule: Any,
    operation: Operation,
    site: Site,
    values: dict[fx.Node, Any],
    relevance: Tensor,
    indices: Tensor,
) -> Tensor:
    """Relevance at the input, by the rule's equation, row by row."""
    a = values[operation.data[0]]
    rows, read_masks, offsets = _rows(operation, values, indices)
    flat, r = a.reshape(-1), relevance.reshape(-1)[indices]
    z = values[operation.node].reshape(-1)[indices]
    # A rule with an equation of its own: run it on the matrix.
    if type(rule).through_affine is not AffineRule.through_affine:
        dense = Affine(lambda a, w: a @ w.t(), lambda s, w: s @ w, rows, offsets)
        flow = rule.through_affine(dense, Site(str(operation)), flat[None], z[None], r[None])
        return flow.relevance[0].reshape(a.shape)
    if rule.bias == "ignore":
        z, offsets = z - offsets, torch.zeros_like(offsets)
    parts = {"a": a, "a+": a.clamp(min=0), "a-": a.clamp(max=0), "1": torch.ones_like(a)}
    if any(part in ("low", "high") for branch in rule.branches() for part, _ in branch.terms):
        assert site.bounds is not None
        low, high = site.bounds(a)
        parts |= {"low": -low.expand_as(a), "high": -high.expand_as(a)}
    received = torch.zeros_like(flat)
    for k in range(len(indices)):
        for branch in rule.branches():
            if _applies(branch, float(z[k])):
                received += float(r[k]) * _share(branch, rule, parts, rows[k], read_masks[k], offsets[k])
    return received.reshape(a.shape)


def _applies(branch: Branch, z: float) -> bool:
    return branch.where is None or (z > 0 if branch.where == "z > 0" else z < 0)


def _share(
    branch: Branch, rule: Any, parts: dict[str, Tensor], row: Tensor, read_mask: Tensor, offset: Tensor
) -> Tensor:
    terms = [parts[part].reshape(-1) * version(row) * read_mask for part, version in branch.terms]
    d = float(sum(float(term.sum()) for term in terms))
    if branch.bias is not None and rule.bias != "ignore":
        d += float(branch.bias(offset[None])[0])
    if d == 0:
        return torch.zeros_like(row)
    sign = branch.sign or (1 if d > 0 else -1)
    return branch.factor * sum(terms, start=torch.zeros_like(row)) / (d + sign * rule.epsilon)


def _rows(operation: Operation, values: dict[fx.Node, Any], indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(matrix rows of these outputs; a mask of the inputs that each reads; the constant that is added)."""
    node, source = operation.node, operation.data[0]
    algebra: Any = operation.algebra

    def run(a: Tensor, ones: bool = False) -> Tensor:
        if algebra.fixed is None:  # the weights are computed from the input, and treated as constants
            affine = algebra.at(values[source], *(values[node] for node in algebra.reads))
            return affine.forward(a, affine.weight)
        given = {name: _value(v, values) for name, v in operation.arguments.items()}
        env = {**values, source: a}
        weight = operation.arguments.get("weight")
        if ones and isinstance(weight, fx.Node) and isinstance(given["weight"], Tensor):
            env[weight] = torch.ones_like(given["weight"])
        return _called(node, env)

    def jacobian(ones: bool) -> tuple[Tensor, Tensor]:
        a = values[source].detach().clone().requires_grad_()
        with torch.enable_grad():
            z = run(a, ones).reshape(-1)
            rows = [torch.autograd.grad(z[k], a, retain_graph=True)[0].reshape(-1) for k in indices.tolist()]
        return torch.stack(rows), z.detach()[indices]

    rows, _ = jacobian(False)
    read, _ = jacobian(True)
    z = values[node].reshape(-1)[indices]
    return rows, (read != 0).to(rows), z - rows @ values[source].reshape(-1)


def _value(argument: Any, values: dict[fx.Node, Any]) -> Any:
    return values[argument] if isinstance(argument, fx.Node) else argument
