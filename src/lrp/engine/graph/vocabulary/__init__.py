"""The operations that have a rule, one module per kind of algebra; importing this registers all of them."""

from lrp.engine.graph.vocabulary import attention, elementwise, layers, movement, norms, pools, selection

__all__ = ["attention", "elementwise", "layers", "movement", "norms", "pools", "selection"]
