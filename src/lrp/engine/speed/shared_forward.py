"""A program in two halves, so that several targets share the forward pass and every denominator."""

from __future__ import annotations

from torch import fx


def split_at_shared_forward(module: fx.GraphModule, inputs: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """(*inputs) -> kept, which does not depend on the target, and (*arguments, *kept) -> outputs.

    Args:
        inputs: how many of the program's arguments are the model's inputs.
    """
    arguments = [node for node in module.graph.nodes if node.op == "placeholder"][inputs:]
    late = set(arguments)
    for node in module.graph.nodes:
        if any(n in late for n in node.all_input_nodes):
            late.add(node)
    kept = [
        node for node in module.graph.nodes
        if node not in late and node.op != "get_attr" and any(user in late for user in node.users)
    ]  # fmt: skip
    first, second = fx.Graph(), fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node not in late:
            made[node] = first.node_copy(node, lambda n: made[n])
    first.output(tuple(made[node] for node in kept))
    first.eliminate_dead_code()
    rest = {node: second.placeholder(node.name) for node in [*arguments, *kept]}
    for node in module.graph.nodes:
        if node.op == "get_attr" or (node in late and node not in rest):
            rest[node] = second.node_copy(node, lambda n: rest[n])
    second.eliminate_dead_code()
    return fx.GraphModule(module, first), fx.GraphModule(module, second)
