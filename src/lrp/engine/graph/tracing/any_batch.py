"""One graph for any number of images, from the graphs for two numbers: where `torch.export` takes the number for a constant.

`len(x)`, `int(x.shape[0])` and `for image in x` make it one. Whatever differs between the two graphs must be the same
multiple of the number of images in both; else the graph holds for one number only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from lrp.engine.graph.shapes import Batch
from lrp.engine.graph.tracing.captured import Captured

# Chosen so that a half, a remainder or a limit of the number of images is not the same multiple of both.
FIRST, SECOND = 3, 8


class Differs(Exception):
    """The graphs are not the same for any number of images."""


def generalise(first: Captured, second: Captured) -> Captured:
    """The graph of FIRST images, with a `Batch` for every size that the graph of SECOND images shows to grow with them.

    Args:
        first, second: captured for FIRST and SECOND images; the first one is changed.

    Raises:
        Differs: they differ in more than that.
    """
    ours, theirs = list(first.graph.nodes), list(second.graph.nodes)
    if len(ours) != len(theirs) or first.parameters != second.parameters:
        raise Differs
    if first.constants.keys() != second.constants.keys() or not all(
        _equal(value, second.constants[name]) for name, value in first.constants.items()
    ):
        raise Differs
    index = {node: i for i, node in enumerate(ours)}
    other_index = {node: i for i, node in enumerate(theirs)}
    counted: dict[int, fx.Node] = {}  # times -> the node that computes this many times the number of images

    def number(times: int) -> fx.Node:
        if times not in counted:
            image = next(n for n in ours if n.meta.get("batched"))
            after = counted.get(1, image)
            with first.graph.inserting_after(after):
                if times == 1:
                    made = first.graph.call_function(torch.ops.aten.sym_size.int, (image, 0))
                else:
                    made = first.graph.call_function(_times, (number(1), times))
            known = {key: image.meta[key] for key in ("path", "module", "source", "inside")}
            made.meta = {**known, "shape": None, "shapes": [], "dtype": None, "size": Batch(times)}
            counted[times] = made
        return counted[times]

    def merged(mine: Any, its: Any) -> Any:
        if isinstance(mine, fx.Node) or isinstance(its, fx.Node):
            if not isinstance(mine, fx.Node) or index.get(mine) != other_index.get(its):
                raise Differs
            return mine
        if isinstance(mine, (list, tuple)) and isinstance(its, (list, tuple)) and len(mine) == len(its):
            return type(mine)(merged(a, b) for a, b in zip(mine, its, strict=True))
        if isinstance(mine, dict) and isinstance(its, dict) and mine.keys() == its.keys():
            return {key: merged(value, its[key]) for key, value in mine.items()}
        if type(mine) is int and type(its) is int and mine != its:
            return number(_multiple(mine, its))
        if type(mine) is not type(its) or mine != its:
            raise Differs
        return mine

    number(1)
    for node, other in zip(ours, theirs, strict=True):
        if (node.op, node.target) != (other.op, other.target):
            raise Differs
        node.args, node.kwargs = merged(node.args, other.args), merged(node.kwargs, other.kwargs)
        for key in ("shape", "shapes"):
            node.meta[key] = _sizes(node.meta.get(key), other.meta.get(key))
    for times in sorted(counted, key=lambda t: t == 1):
        if not counted[times].users:
            first.graph.erase_node(counted[times])
    first.free_batch = True
    return first


def _times(images: int, times: int) -> int:
    return images * times


def _multiple(a: int, b: int) -> int:
    times, rest = divmod(a, FIRST)
    if rest or b != times * SECOND:
        raise Differs
    return times


def _sizes(mine: Any, its: Any) -> Any:
    if isinstance(mine, (list, tuple)) and isinstance(its, (list, tuple)):
        if len(mine) != len(its):
            raise Differs
        return type(mine)(_sizes(a, b) for a, b in zip(mine, its, strict=True))
    if mine == its:
        return mine
    if isinstance(mine, int) and isinstance(its, int):
        return Batch(_multiple(mine, its))
    raise Differs


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
