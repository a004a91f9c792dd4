"""A small disk, for tests of a full disk."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(size: str = "64k") -> Iterator[Path]:
    """A tmpfs of that size, unmounted afterwards; skips the test if it cannot be mounted (not root, not Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no small disk: a tmpfs cannot be mounted here ({error})")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)
