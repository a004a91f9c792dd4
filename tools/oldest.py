"""Print the lowest versions that pyproject.toml allows, as constraints for pip: `make test-oldest` installs them."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
NAME = re.compile(r"[\w.-]+")
LOWEST = re.compile(r"(?:>=|==)\s*([\w.]+)")


def lowest(requirements: list[str]) -> Iterator[str]:
    """name==version of each; raises for one without a lower bound, because no lowest version can be tested."""
    for requirement in requirements:
        name, version = NAME.match(requirement), LOWEST.search(requirement)
        if name is None or version is None:
            raise SystemExit(
                f"pyproject.toml: {requirement!r} has no lower bound; write {requirement}>=VERSION"
            )
        yield f"{name[0]}=={version[1]}"


def constraints(pyproject: Path = PYPROJECT) -> list[str]:
    """One line for every package that lrp or one of its extras requires."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return sorted({line for group in groups for line in lowest(group)})


if __name__ == "__main__":
    print(*constraints(), sep="\n")
