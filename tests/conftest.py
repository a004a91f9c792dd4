"""Fixtures of all tests. Tests use one thread: for many small computations threads cost more time than they save."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.own_code import Directory, user_directory
from helpers.server import Server, serving

torch.set_num_threads(1)
# So that child processes can import the helpers.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
)


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on this machine."""
    with serving() as server:
        yield server


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    """A working directory with modules of the user's."""
    with user_directory(tmp_path, monkeypatch) as directory:
        yield directory
