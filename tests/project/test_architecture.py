"""docs/architecture.md: its picture is what the imports say, and the functions it names are there."""

import importlib
import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"

_spec = importlib.util.spec_from_file_location("docs_architecture", ROOT / "tools" / "docs_architecture.py")
architecture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architecture)


def test_the_picture_is_what_the_imports_say(monkeypatch, tmp_path, capsys):
    assert architecture.main(["--check"]) == 0, "python tools/docs_architecture.py draws it anew"
    monkeypatch.setattr(architecture, "PICTURE", tmp_path / "architecture.svg")
    assert architecture.main(["--check"]) == 1
    message = "docs/architecture.svg is out of date: python tools/docs_architecture.py\n"
    assert capsys.readouterr().err == message
    assert architecture.main([]) == 0 == architecture.main(["--check"])


def test_every_package_is_in_the_picture_and_inside_it():
    picture = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    width, height = map(int, picture.get("viewBox").split()[2:])
    names = [text.text for text in picture.iter(f"{SVG}text") if text.get("class") == "name"]
    assert sorted(names) == sorted(architecture.components(CONTRIBUTING))
    for box in picture.iter(f"{SVG}rect"):
        left, top, wide, tall = (float(box.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert left >= 0 and top >= 0 and left + wide <= width and top + tall <= height
    assert "http" not in ElementTree.tostring(picture, encoding="unicode").replace(SVG[1:-1], "")


def test_arrows_and_words_together_are_the_imports():
    """None is lost, and none goes up."""
    components = architecture.components(CONTRIBUTING)
    plan = architecture.layout(components)
    level = {name: number for number, layer in enumerate(plan.layers) for name in layer}
    for name, component in components.items():
        arrows = {arrow[-1] for arrow in plan.arrows if arrow[0] == name}
        assert arrows.isdisjoint(plan.also[name])
        assert arrows | set(plan.also[name]) == component.imports
    for arrow in plan.arrows:
        levels = [level[name] for name in arrow]
        assert levels == list(range(levels[0], levels[-1] - 1, -1))


def component(name, *imports, lines=120):
    return architecture.Component(name, "what it holds", True, 2, lines, set(imports))


def test_layers_with_a_pencil():
    """c → b → a shows d → a and e → a already; g → a is shown by nothing else, skips a layer, and bends there."""
    components = [
        component("a"),
        component("b", "a"),
        component("c", "b"),
        component("d", "c", "a"),
        component("e", "a", "f"),
        component("f", "b"),
    ]
    plan = architecture.layout({r.name: r for r in components})
    assert [sorted(n for n in layer if n not in plan.bends) for layer in plan.layers] == [
        ["a"], ["b"], ["c", "f"], ["d", "e"],
    ]  # fmt: skip
    assert sorted((arrow[0], arrow[-1]) for arrow in plan.arrows) == [
        ("b", "a"), ("c", "b"), ("d", "c"), ("e", "f"), ("f", "b"),
    ]  # fmt: skip
    assert plan.also == {"a": [], "b": [], "c": [], "d": ["a"], "e": ["a"], "f": []}
    skipping = architecture.layout(
        {r.name: r for r in [*components[:3], component("g", "a", "h"), component("h", "i"), component("i")]}
    )
    (arrow,) = [arrow for arrow in skipping.arrows if (arrow[0], arrow[-1]) == ("g", "a")]
    assert len(arrow) == 3 and arrow[1] in skipping.bends


def test_crossings_are_counted_and_undone():
    hops = [("d", "a"), ("c", "b")]
    assert architecture.crossings([["a", "b"], ["c", "d"]], hops) == 1
    assert architecture.crossings([["a", "b"], ["d", "c"]], hops) == 0
    plan = architecture.layout(
        {r.name: r for r in (component("a"), component("b"), component("c", "b"), component("d", "a"))}
    )
    assert architecture.crossings(plan.layers, [tuple(arrow) for arrow in plan.arrows]) == 0


def test_imports_for_types_alone_are_none():
    text = """
from typing import TYPE_CHECKING
import lrp.storage.atomic
from lrp import errors
if TYPE_CHECKING:
    from lrp.engine import rules
else:
    import lrp.data
def later():
    from lrp.models.loading import load_model
"""
    assert architecture.imported(text) == {"storage", "errors", "data", "models"}


@pytest.mark.parametrize(("lines", "fits"), [(1000, True), (900, True), (700, False)])
def test_lines_are_compared_roughly(lines, fits):
    assert architecture.same("<text>about 1,000 lines</text>", f"<text>about {lines:,} lines</text>") == fits
    assert not architecture.same("<text>about 1,000 lines</text>", f"<b>about {lines:,} lines</b>")


def named():
    """The functions and classes in the page's tables."""
    return re.findall(
        r"`([a-z]+(?:\.\w+)+)`", "".join(line for line in PAGE.splitlines() if line.startswith("|"))
    )


@pytest.mark.parametrize("name", named())
def test_what_the_page_names_is_there(name):
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        if importlib.util.find_spec(f"lrp.{parts[0]}") and _is_module(parts[:split]):
            found = importlib.import_module(".".join(["lrp", *parts[:split]]))
            for part in parts[split:]:
                found = getattr(found, part)
            assert callable(found)
            return
    pytest.fail(f"no module of {name}")


def _is_module(parts):
    path = ROOT.joinpath("src", "lrp", *parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_the_page_names_the_whole_way():
    assert len(named()) >= 15
    assert {name.split(".")[0] for name in named()} == {"cli", "models", "pictures", "gallery", "engine"}
