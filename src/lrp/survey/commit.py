"""Which engine is measured: the git commit that last changed it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import lrp

ENGINE = Path(lrp.__file__).parent / "engine"
UNCOMMITTED = "+"  # the end of a commit's name when files of the engine differ from it


@cache
def engine_commit() -> str:
    """The commit that last changed the engine, shortened, with "+" if there are uncommitted changes; "" outside a checkout.

    Not the newest commit: documents, tests and the list of models change without the results.
    """
    commit = _git("log", "-1", "--abbrev=8", "--format=%h", "--", str(ENGINE)).strip()
    if not commit:
        return ""
    return commit + (UNCOMMITTED if _git("status", "--porcelain", "--", str(ENGINE)).strip() else "")


def _git(*arguments: str) -> str:
    """What git prints, run in the engine's folder; "" if it fails, or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ENGINE), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
