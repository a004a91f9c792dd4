"""Which operations are known to work, and in how many dimensions they have been tried.

known_operations.json names, for each operation, the cases of the tests that run it: `tools/known_operations.py` writes
it from the table that these tests run, and a test fails where it differs from the table or from what is registered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from lrp.engine.graph import vocabulary as vocabulary  # registers it
from lrp.engine.graph.registry import registered

TRIED = Path(__file__).with_name("known_operations.json")
REWRITTEN = "rewritten as others"


class Known(NamedTuple):
    """An operation that tests have run.

    Attributes:
        name: as `lrp rules` and errors print it.
        families: of its rules; or `REWRITTEN`, where the graph holds other operations in its place.
        dimensions: of the images that it was tried on: 1 for sequences, 2 for photos, 3 for volumes and video.
    """

    name: str
    families: str
    dimensions: tuple[int, ...]


def known_operations() -> list[Known]:
    """Every operation that the tests have run, by name."""
    tried: dict[str, dict[str, list[str]]] = json.loads(TRIED.read_text(encoding="utf-8"))
    families = registered()
    return [
        Known(name, families.get(name, REWRITTEN), tuple(int(d) for d in cases))
        for name, cases in sorted(tried.items())
    ]
