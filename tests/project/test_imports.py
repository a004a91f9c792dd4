"""Which package may import which: the tables of CONTRIBUTING.md, read from there and held against the imports."""

import ast
import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.core
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lrp"
NAME = re.compile(r"`([\w.*]+)`")


def tables() -> list[list[list[str]]]:
    """The tables of CONTRIBUTING.md, as rows of cells, without their heads."""
    found: list[list[list[str]]] = [[]]
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [rows[2:] for rows in found if rows]


PACKAGES, ENGINE = tables()


def modules() -> dict[str, Path]:
    """Dotted name below `lrp` -> file; of a package, its `__init__.py`."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in ("", "__main__"):
            found[name] = path
    return found


MODULES = modules()


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether importing the file imports it) for each import, of ours without the leading "lrp."."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n for n in inner if n.removeprefix("lrp.") in MODULES] or [node.module]
        for name in names:
            own = name.removeprefix("lrp.") if name.startswith("lrp.") else f":{name}"
            found.append((own, node.col_offset == 0))
    return found


def ours(name: str) -> set[str]:
    """The modules of ours that a module names, wherever in it; those for types alone do not count."""
    return {n for n, _ in imports(MODULES[name]) if not n.startswith(":") and n in MODULES} - {name}


def allowed() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """(package -> packages, module -> packages that it alone may import besides)."""
    general, special = {}, {}
    for package, _, may in PACKAGES:
        (own,) = NAME.findall(package)
        first, *rest = may.split(";")
        general[own] = set(NAME.findall(first))
        for exception in rest:
            alone, _, others = exception.partition(" alone:")
            assert others, f"CONTRIBUTING.md, {package}: {exception!r} should read `module` alone: `package`"
            special[f"{own}.{NAME.findall(alone)[0]}"] = set(NAME.findall(others))
    return general, special


def test_every_module_has_its_place_in_the_table():
    rows = {NAME.findall(row[0])[0] for row in PACKAGES}
    assert {name.split(".")[0] for name in MODULES} == rows


@pytest.mark.parametrize("name", sorted(n for n in MODULES if not n.startswith("cli")))
def test_packages_import_what_the_table_allows(name):
    general, special = allowed()
    package = name.split(".")[0]
    may = general[package] | special.get(name, set()) | {package}
    wrong = {other for other in ours(name) if other.split(".")[0] not in may}
    assert not wrong, f"{name} imports {sorted(wrong)}; CONTRIBUTING.md allows {package} only {sorted(may)}"


def test_the_directions_have_no_circle():
    general, _ = allowed()
    for package, others in general.items():
        for other in others:
            assert package not in general[other], f"{package} and {other} may import each other"


def test_nothing_imports_the_command_line():
    assert not [n for n in MODULES if not n.startswith("cli") and any(o.startswith("cli") for o in ours(n))]


def layers() -> tuple[dict[str, int], dict[str, list[str]]]:
    """(module of the engine -> its row, module -> patterns of what it may import in its own row)."""
    place, besides = {}, {}
    for number, (names, _, extra) in enumerate(ENGINE):
        for pattern in NAME.findall(names):
            for name in MODULES:
                if fnmatchcase(name, f"engine.{pattern}"):
                    assert name not in place, f"{name} stands twice in the engine's table"
                    place[name], besides[name] = number, [f"engine.{p}" for p in NAME.findall(extra)]
    return place, besides


INNER = [n for n in MODULES if n.startswith("engine.") and MODULES[n].name != "__init__.py"]


@pytest.mark.parametrize("name", sorted(INNER))
def test_the_engine_is_built_from_the_equations_up(name):
    place, besides = layers()
    assert name in place, f"{name} has no row in the engine's table"
    for other in ours(name) & set(INNER):
        fits = place[other] < place[name] or any(fnmatchcase(other, p) for p in besides[name])
        assert fits, f"{name} imports {other}, which CONTRIBUTING.md does not place above it"


TORCH = ("engine", "models", "gallery", "train", "survey")


def test_torch_stays_where_models_run():
    for name, path in MODULES.items():
        at_import = {n for n, direct in imports(path) if direct}
        if name.split(".")[0] not in TORCH and name != "study.evaluate":
            assert ":torch" not in at_import, name


def test_only_capture_uses_torch_export():
    """`isolation` corrects a setting of it."""
    users = {n for n, p in MODULES.items() if any(m.startswith(":torch.export") for m, _ in imports(p))}
    assert users == {"engine.graph.capture", "engine.graph.tracing.isolation"}


def test_a_package_says_in_two_lines_what_it_is_and_imports_nothing():
    packages = {
        n: p
        for n, p in MODULES.items()
        if p.name == "__init__.py" and n not in ("cli", "engine.graph.vocabulary")
    }
    for name, path in packages.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        text = ast.get_docstring(tree)
        assert len(tree.body) == 1 and text, f"{name}/__init__.py holds more than its docstring"
        assert len([line for line in text.splitlines() if line]) <= 2, f"{name}: {text}"


def test_packages_stay_small():
    for name in {n.rpartition(".")[0] for n in MODULES if "." in n}:
        inside = [n for n, p in MODULES.items() if n.rpartition(".")[0] == name and p.name != "__init__.py"]
        assert len(inside) <= 16, f"{name} has {len(inside)} modules"


TESTS = ROOT / "tests"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_a_test(path):
    """What tests share lies in tests/helpers; processes that a test starts import that too."""
    tests = {p.stem for p in TESTS.rglob("*.py") if "helpers" not in p.parts}
    text = path.read_text(encoding="utf-8")
    named = {name.removeprefix(":").split(".")[-1] for name, _ in imports(path)}
    # And in the programs that are written as text.
    named |= set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    assert not named & tests, (
        f"{path.name} imports {sorted(named & tests)}: move what they share to tests/helpers"
    )


def test_no_two_tests_of_one_file_have_one_name():
    """The second would hide the first."""
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if getattr(node, "name", "").startswith("test")]
        assert len(names) == len(set(names)), path
