"""A model that returns more than logits, as one that returns its logits alone; detectors, which have none, are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lrp.errors import DETECTOR, ModelError


class Logits(nn.Module):
    """`model`, of whose results only the entry `key` is returned.

    Args:
        key: a key of the dictionary, or an attribute of the object, that the model returns.
    """

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W]; returns [N, K] or [N, K, *space]."""
        result = self.model(x)
        logits: Tensor = result[self.key] if isinstance(result, Mapping) else getattr(result, self.key)
        return logits


def key_of_logits(result: Any, name: str) -> str | None:
    """Where the logits are in what a model returned; None: it is the logits.

    Args:
        name: of the model, for messages.

    Raises:
        ModelError: boxes of a detector; no logits, or several entries that could be.
    """
    if isinstance(result, Tensor):
        return None
    parts = _entries(result)
    if any("boxes" in key for key in parts):
        raise ModelError(f"{name} {DETECTOR}")
    tensors = [key for key, part in parts.items() if isinstance(part, Tensor)]
    for key in ("logits", "out"):
        if key in tensors:
            return key
    if len(tensors) == 1 and not isinstance(result, tuple | list):
        return tensors[0]
    found = f"{type(result).__name__} of {', '.join(parts)}" if parts else type(result).__name__
    raise ModelError(
        f"{name} returns a {found}: expected a tensor of logits, [N, K] or [N, K, H, W], or an entry 'logits' or 'out' that is one."
    )


def _entries(result: Any) -> dict[str, Any]:
    """The entries of a dictionary or an object that are not None; of a list, those of its first item."""
    if isinstance(result, list | tuple):
        return _entries(result[0]) if len(result) and not isinstance(result[0], Tensor) else {}
    found = result if isinstance(result, Mapping) else getattr(result, "__dict__", {})
    return {str(key): part for key, part in found.items() if part is not None}
