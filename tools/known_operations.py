"""src/lrp/engine/results/known_operations.json from the tables that the tests run, tests/helpers/known.py.

python tools/known_operations.py    # two minutes
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.known import tried
from lrp.engine.results.known import TRIED


def as_text(content: dict[str, dict[str, list[str]]]) -> str:
    """JSON with one operation a line, so that a change of one shows as one line."""
    lines = [f" {json.dumps(name)}: {json.dumps(cases)}" for name, cases in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TRIED.write_text(as_text(tried()), encoding="utf-8")
