"""Write constraints.txt with the versions installed now. `make constraints` upgrades them first."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """\
# What `make` installs, version by version; written by `make constraints` (tools/constraints.py) after an upgrade.
# Constraints install nothing by themselves: a package that another Python or system has no need of stays away.
# Every version here has files for Python 3.11 to 3.14. Left out are the parts of CUDA, and Triton: torch names
# theirs exactly, and they differ from one build of torch to the next. For the same reason versions stand without
# the label of a build ("+cpu").
"""
# Dependencies pinned by torch itself; and packages that lrp does not depend on: lrp itself and the installers.
LEFT_OUT = re.compile(r"(nvidia-.*|cuda-.*|triton|lrp|pip|setuptools|wheel)==")


def text(frozen: str) -> str:
    """constraints.txt for what `pip freeze` printed."""
    pinned = [line.partition("+")[0] for line in frozen.splitlines() if re.match(r"[\w.-]+==", line)]
    return HEAD + "".join(f"{line}\n" for line in pinned if not LEFT_OUT.match(line))


if __name__ == "__main__":
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    printed = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    (ROOT / "constraints.txt").write_text(text(printed), encoding="utf-8")
