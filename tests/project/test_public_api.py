"""What `import lrp` offers: every name is there for people, editors and type checkers, and none hides a package."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lrp

VERBS = (
    "accuracy", "compare", "confidence", "download_data", "draw", "evaluate", "explain_folder", "export", "mistakes", "report",
    "retrain",
)  # fmt: skip


def test_every_name_is_there_and_listed_once():
    names = [name for room in lrp._PACKAGES.values() for name in room]
    assert len(set(names)) == len(names)
    assert set(dir(lrp)) == {*names, "__version__"} == set(lrp.__all__)
    for room, inside in lrp._PACKAGES.items():
        module = importlib.import_module(f"lrp.{room}")
        for name in inside:
            value = getattr(lrp, name)
            assert value is getattr(module, name)
            # Where it is made, so that the API page and tracebacks call it by one name.
            assert getattr(value, "__module__", module.__name__) == module.__name__, name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(lrp.__file__).read_text())
    (block,) = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen: dict[str, list[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names:
            assert alias.asname == alias.name  # or it would not count as public
            seen.setdefault(node.module.removeprefix("lrp."), []).append(alias.name)
    assert {room: sorted(names) for room, names in seen.items()} == {
        room: sorted(names) for room, names in lrp._PACKAGES.items()
    }


def test_no_name_is_also_a_module_of_lrp():
    """`import lrp.report` would replace the function `lrp.report` by the module."""
    modules = {module.name for module in pkgutil.iter_modules(lrp.__path__)}
    assert {"engine", "study", "errors"} <= modules
    assert not modules & set(lrp.__all__)


def test_no_two_classes_or_functions_share_a_public_name():
    """Of one name, there is one thing: `lrp.errors` are exceptions, and a model's wrong rows are `mistakes`."""
    from lrp.study import folder

    assert not hasattr(folder, "errors") and not hasattr(folder, "Errors")
    root = Path(lrp.__file__).parent
    for gone in ("notebook.py", "study/why.py", "html_report/explain.py", "cli/table_model.py"):
        assert not (root / gone).exists()


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_says_what_each_argument_is(name):
    verb = getattr(lrp, name)
    text = inspect.getdoc(verb) or ""
    assert "Args:" in text and re.match(r"[A-Z].+\.", text)
    missing = [p for p in inspect.signature(verb).parameters if not re.search(rf"\b{p}\b", text)]
    assert not missing


def test_what_needs_no_torch_loads_none():
    code = "import lrp, sys; lrp.confidence, lrp.mistakes, lrp.compare, lrp.report, lrp.draw, lrp.read_predictions, lrp.DataSet"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_an_unknown_name():
    with pytest.raises(AttributeError) as error:
        lrp.errorss  # noqa: B018
    assert str(error.value) == "module 'lrp' has no attribute 'errorss'"
