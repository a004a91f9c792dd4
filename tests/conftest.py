"""One thread: the tests are many and small, and threads would wait for each other more than they compute."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.server import Server, serving

torch.set_num_threads(1)
# Child processes import the helpers too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
)


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on this machine."""
    with serving() as server:
        yield server
