"""Runs tests against a mutated copy of the package, each in a fork of a process that has already imported torch.

As a program it reads lines of JSON, [folder of the copy, test], and answers each with [exit status, printed output].
The parent process never imports `lrp`: each fork imports it from its copy.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import oracle_data  # noqa: F401 (with all that the oracle imports)

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "-q", "-x", "-o", "addopts=", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:logging",
    "-p", "no:unraisableexception",
)  # fmt: skip
SECONDS = 300


def warm() -> None:
    """Import the modules that a capture imports lazily. It computes no gradient: then a fork could not use autograd."""
    torch.set_num_threads(1)
    batch = {0: torch.export.Dim("N", min=1)}
    model = nn.Sequential(nn.Conv2d(3, 2, 2), nn.ReLU())
    with torch.no_grad():
        torch.export.export(model, (torch.zeros(2, 3, 4, 4),), dynamic_shapes=(batch,), strict=False)


def run(folder: str, test: str) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        if not (child := os.fork()):
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            signal.alarm(SECONDS)
            sys.path.insert(0, folder)
            import lrp

            copied = Path(lrp.__file__).is_relative_to(folder)
            status = pytest.main([*OPTIONS, test]) if copied else 99
            sys.stdout.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def serve(answers: Any) -> None:
    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # importing plugins takes longer than a test
    warm()
    assert "lrp" not in sys.modules
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.stdout)
