"""The wheel, as somebody sees it who has not the repository: what is in it, and what mypy makes of its public names."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lrp

ROOT = Path(__file__).parents[2]

# A user's module. Each line that ends in "# wrong" is one that mypy must complain about.
USER = """\
from pathlib import Path

import torch

import lrp

model, preprocessing, class_names = lrp.load_model("efficientnet_lite0")
photo = lrp.open_photo(Path("cup.jpg"))
x = preprocessing(photo.pixels)[None]
explainer = lrp.Explainer(model, composite=lrp.preset("epsilon_plus"), class_names=class_names)
e = explainer(x, target=lrp.Contrast("espresso", "cup"))
reveal_type(explainer)
reveal_type(e)
reveal_type(e.relevance)
reveal_type(e.health.ok)
reveal_type(lrp.explain(model, x))
reveal_type(class_names)
names: list[str] = lrp.composites()
wanted = lrp.Composite([(lrp.family("conv") & ~lrp.first, lrp.Gamma(0.25)), (lrp.first, lrp.Flat())])
try:
    lrp.explain(torch.nn.Linear(2, 2), x, composite=wanted)
except lrp.LrpError as error:
    print(error)
lrp.Explainer(model, compsite=wanted)  # wrong
lrp.Gamma("a quarter")  # wrong
e.relevence  # wrong
lrp.Epsilom  # wrong
"""
REVEALED = [
    "lrp.engine.explainer.Explainer",
    "lrp.engine.results.explanation.Explanation",
    "Any",
    "bool",
    "lrp.engine.results.explanation.Explanation",
    "tuple[str, ...]",
]


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="it builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", ROOT, "--no-build-isolation", "--wheel-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site-packages")
    pip("install", wheel, "--target", folder)
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


def mypy(installed: Path, outside: Path, text: str) -> list[tuple[int, str, str]]:
    """(line, "error" or "note", message) of everything that mypy finds in a module that uses the installed package."""
    (outside / "user.py").write_text(text, encoding="utf-8")
    cache = ROOT / ".mypy_cache" / "wheel"  # kept: most of the time goes into torch
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", cache, "--no-pretty", "user.py"],
        cwd=outside, env=os.environ | {"PYTHONPATH": str(installed), "MYPYPATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^user\.py:(\d+): (error|note): (.*)$", done.stdout, flags=re.MULTILINE)
    return [(int(line), kind, message) for line, kind, message in found]


def type_of(message: str) -> str:
    """Of 'Revealed type is "builtins.bool"': bool."""
    return message.removeprefix("Revealed type is ").strip('"').replace("builtins.", "")


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == source
    assert {"lrp/py.typed", *(f"lrp/html_report/page.{kind}" for kind in ("html", "css", "js"))} <= inside
    assert {name.partition(".dist-info/")[2] for name in names - inside} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_a_user_of_the_wheel_gets_types(installed, outside):
    found = mypy(installed, outside, USER)
    wrong = [n for n, line in enumerate(USER.splitlines(), 1) if line.endswith("# wrong")]
    assert len(wrong) == 4
    assert sorted({line for line, kind, _ in found if kind == "error"}) == wrong, found
    revealed = [type_of(message) for _, _, message in found if message.startswith("Revealed")]
    assert revealed == REVEALED


def test_every_public_name_has_a_type(installed, outside):
    text = "import lrp\n" + "".join(f"reveal_type(lrp.{name})\n" for name in lrp.__all__)
    found = mypy(installed, outside, text)
    revealed = {line: type_of(message) for line, kind, message in found if kind == "note"}
    untyped = [name for line, name in enumerate(lrp.__all__, 2) if revealed.get(line, "Any") == "Any"]
    assert not untyped, f"lrp/__init__.py: its TYPE_CHECKING block lacks {', '.join(untyped)}"
