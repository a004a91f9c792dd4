"""Runs a checker on the Python files that changed since the branch left main: `python tools/changed.py ruff check`.

Changed means committed on this branch, staged, edited or new. mypy checks only files below src/, as in pyproject.toml.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed() -> list[str]:
    """The changed files, relative to the project's folder; without deleted ones."""
    (base,) = git("merge-base", "HEAD", "main") or git("merge-base", "HEAD", "origin/main") or ["HEAD"]
    names = git("diff", "--name-only", base) + git("ls-files", "--others", "--exclude-standard")
    return sorted({name for name in names if name.endswith(".py") and (ROOT / name).exists()})


def main(checker: str, *options: str) -> int:
    files = [name for name in changed() if checker != "mypy" or name.startswith("src/")]
    if not files:
        print(f"{checker}: nothing has changed")
        return 0
    command = [Path(sys.executable).with_name(checker), *options, *files]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
