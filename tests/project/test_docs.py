"""The documentation: it builds without a warning, needs no network, and what it says is so.

Every ```python block of README.md and docs/ is run, a page's blocks one after the other, in a folder with the demo's photos; a
```text block after it is what it prints, or how that begins if the block ends in a line of dots. Every `$ lrp` line is parsed
by the command line.
"""

import contextlib
import html.parser
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import lrp
from lrp.cli import app
from lrp.cli.demo import write_demo_photos
from lrp.engine.graph import registry, vocabulary

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CHROMIUM = shutil.which("chromium") or ""
# What a page's blocks speak of without making it.
GIVEN = {"README.md": {"hugging_face_model": torch.nn.Linear(2, 2)}}


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- the site


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the documentation is built by mkdocs-material")
    pytest.importorskip("mkdocstrings", reason="and its API page by mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


class Page(html.parser.HTMLParser):
    """The ids of a page, its equations, its links, and the addresses it loads by itself."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.loaded, self.links, self.equations = set(), [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        self.equations += tag == "math"
        if tag == "a":
            self.links += [found["href"]] if found.get("href") else []
        else:
            self.loaded += [
                found[name] for name in ("src", "href", "srcset", "data", "poster") if found.get(name)
            ]


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    pages = [*site.glob("*.html")]
    assert len(pages) == len(PAGES) + 1  # and 404.html
    for path in pages:
        outside = [
            a
            for a in Page(path.read_text()).loaded
            if re.match(r"(?i)\w+:|//", a) and not a.startswith("data:")
        ]
        assert not outside, (path.name, outside)
    for path in site.rglob("*.css"):
        assert not re.search(r"""(?i)(url\(|@import)\s*["']?(https?:)?//""", path.read_text()), path.name


@pytest.mark.slow
def test_links_lead_somewhere(site):
    """Also those that mkdocs does not know: of docstrings, of the theme, of HTML in the pages."""
    pages = {path.name: Page(path.read_text()) for path in site.glob("*.html") if path.name != "404.html"}
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            if re.match(r"\w+:", link):
                continue
            address, _, anchor = urllib.parse.unquote(link).partition("#")
            address = address.partition("?")[0]
            target = (site / address).resolve() if address else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{name}: {link}"
            if anchor and target.suffix == ".html":
                assert anchor in pages[target.name].ids, f"{name}: {link}"


@pytest.mark.slow
def test_equations_are_mathml(site):
    """As many as there are dollars: none was left as it was typed."""
    for path in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
        found = Page((site / f"{path.stem}.html").read_text())
        blocks = text.count("$$") // 2
        assert found.equations == blocks + text.replace("$$", "").count("$") // 2, path.name
    assert Page((site / "rules.html").read_text()).equations > 40


def test_an_equation_that_cannot_be_translated_fails_the_build():
    mathml = tool("docs_math")
    page = type("Page", (), {"file": type("File", (), {"src_uri": "rules.md"})})
    with pytest.raises(mathml.PluginError) as error:
        mathml.on_page_content(r'<span class="arithmatex">\(a \sparkle b\)</span>', page)
    assert str(error.value) == r"rules.md: latex2mathml knows no \sparkle in: a \sparkle b"


@pytest.mark.slow
def test_every_public_name_is_on_the_api_page(site):
    ids = Page((site / "api.html").read_text()).ids
    wanted = {f"lrp.{room}.{name}" for room, names in lrp._PACKAGES.items() for name in names}
    assert wanted == {i for i in ids if i in wanted}
    assert {name.rpartition(".")[2] for name in wanted} == set(lrp.__all__) - {"__version__"}


def test_every_rule_and_every_preset_is_explained():
    headings = " ".join(re.findall(r"^#+ (.*)$", (DOCS / "rules.md").read_text(), flags=re.MULTILINE))
    rules = {*lrp._PACKAGES["engine.rules"], *lrp._PACKAGES["engine.rules_beyond_affine"]}
    for name in rules - {"Rule", "AffineRule", "SumRule"}:  # those are bases, for rules of your own
        assert re.search(rf"\b{name}\b", headings), name
    presets = (DOCS / "presets.md").read_text()
    for name in lrp.composites():
        assert f"pictures/preset_{name}.png" in presets or f"<code>{name}</code>" in presets, name


def test_the_table_of_presets_is_what_they_do():
    """Its rules, given to a net that has one of each column, against those that the preset gives."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(36, 5),
    ).eval()  # fmt: skip
    columns = {"0": 1, "4": 2, "7": 3, "2": 4}  # module -> column
    table = re.findall(r"^\| `\w+` \|.*`.*$", (DOCS / "presets.md").read_text(), flags=re.MULTILINE)
    rows = {
        cells[0]: cells for cells in ([c.strip(" `") for c in line.strip("|").split("|")] for line in table)
    }
    assert set(rows) == set(lrp.composites())
    for name in lrp.composites():
        composite = lrp.preset(name, low=-1.0, high=1.0)
        lines = lrp.Explainer(net, composite).rules(torch.rand(2, 3, 10, 10)).lines
        for line in lines:
            if line.path in columns:
                # kaifishr's ε and ZBox's bounds stand in the words around the table
                got = re.sub(r"(, )?(bias=\w+|epsilon=1e-05|low.*high=[^,)]*)", "", line.rule)
                got = got.replace("epsilon=0.1", "0.1").replace("(, ", "(").replace("()", "")
                assert rows[name][columns[line.path]] == got, (name, line.path)
            if line.path == "4":
                bias = re.search(r"bias=(\w+)|$", line.rule)[1] or "absorb"
                assert rows[name][5].startswith(bias), name
            if line.op == "max_pool2d":
                pooled = (
                    "Proportional(window=(2, 2), epsilon=1e-05)" if name == "kaifishr" else "WinnerTakesAll"
                )
                assert line.rule == pooled, name
        assert (composite.seed == "softmax") == (name == "kaifishr")


def test_every_notebook_is_named():
    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "notebooks.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


# ---------------------------------------------------------------- what is generated


def test_the_commands_page_is_what_help_prints(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    commands = tool("docs_commands")
    text = (DOCS / "commands.md").read_text()
    assert text == commands.page(), "python tools/docs_commands.py writes it anew"
    listings = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    assert len(listings) == 1 + len(app.registered_commands)
    assert max(len(line) for listing in listings for line in listing.splitlines()) <= 88


def test_a_commands_page_out_of_date_is_told(tmp_path, monkeypatch, capsys):
    commands = tool("docs_commands")
    monkeypatch.setattr(commands, "PAGE", tmp_path / "commands.md")
    assert commands.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/commands.md is out of date: python tools/docs_commands.py\n"
    assert commands.main([]) == 0 == commands.main(["--check"])


def test_pictures_are_small_and_used():
    files = sorted(path for path in (DOCS / "pictures").rglob("*") if path.is_file())
    text = "".join(path.read_text() for path in PAGES)
    for path in files:
        name = path.relative_to(DOCS).as_posix()
        assert path.suffix == ".png" and path.stat().st_size < 200_000, name
        assert f"({name})" in text, f"{name} is on no page"
    assert sum(path.stat().st_size for path in files) < 1_500_000
    contents = {path.read_bytes() for path in files}
    assert len(contents) == len(files), "a picture is there twice"


@pytest.mark.slow
def test_pictures_are_those_that_lrp_makes(tmp_path, capsys):
    """A card and all drawings, made again: other machines round differently, so nearly the same suffices."""
    pytest.importorskip("skimage", reason="the photo comes with scikit-image")
    pictures = tool("docs_pictures")
    made = {"rule_zplus": pictures.card(pictures.explained(pictures.rule_composites()["zplus"]))}
    made |= {f"numbers_{name}": pictures.drawing(name) for name in pictures.DRAWINGS}
    for name, image in made.items():
        pictures.save(image, tmp_path / f"{name}.png", pictures.scale_palette())
        new, old = (np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), dtype=float)
                    for folder in (tmp_path, DOCS / "pictures"))  # fmt: skip
        assert new.shape == old.shape and np.abs(new - old).mean() < 0.5, name


# ---------------------------------------------------------------- what the pages say


def blocks(path, language):
    """(first line's number, code, what stands in a ```text block right after it) of each block."""
    pattern = rf"^```{language}\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    text = path.read_text()
    for found in re.finditer(pattern, text, flags=re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)) + 1, found[1], found[2]


SPOKEN = [path for path in (ROOT / "README.md", *PAGES) if next(blocks(path, "python"), None)]
SLOW = {"detectors.md"}  # large nets


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.name in SLOW else []) for path in SPOKEN],
    ids=lambda path: path.name,
)
def test_code_runs_and_prints_what_it_says(path, tmp_path, monkeypatch):
    pytest.importorskip("skimage", reason="the demo's photos come with scikit-image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # pages have code of the user's own
    assert vocabulary  # imported, so that what is put back is not empty
    monkeypatch.setattr(registry, "_VOCABULARY", dict(registry._VOCABULARY))  # pages teach it operations
    write_demo_photos(tmp_path / "input")
    names = dict(GIVEN.get(path.name, {}))
    for line, code, prints in blocks(path, "python"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile("\n" * (line - 1) + code, str(path), "exec"), names)
        if prints is not None:
            head = prints.removesuffix("...\n")
            got = said.getvalue()
            assert (got if head == prints else got[: len(head)]) == head, f"{path.name}, line {line}"


def test_pictures_of_signals_are_those_that_their_page_makes(tmp_path, capsys):
    """Other machines round differently, and a net that is trained differently has other relevance: nearly the same."""
    tool("docs_signals").main([str(tmp_path)])
    made = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in made] == ["clip.png", "row.png", "signal.png", "volume.png"]
    for path in made:
        assert path.stat().st_size < 60_000, path.name
        new, old = (np.asarray(Image.open(place).convert("RGB"), dtype=float)
                    for place in (path, DOCS / "pictures" / path.name))  # fmt: skip
        assert new.shape == old.shape and np.abs(new - old).mean() < 1, path.name


def test_the_picture_of_a_region_is_the_one_that_its_page_makes(tmp_path, capsys):
    pytest.importorskip("skimage", reason="the photo comes with scikit-image")
    tool("docs_region").main([str(tmp_path)])
    new, old = (np.asarray(Image.open(folder / "region.png").convert("RGB"), dtype=float)
                for folder in (tmp_path, DOCS / "pictures"))  # fmt: skip
    assert new.shape == old.shape and np.abs(new - old).mean() < 1


def test_most_pages_have_code():
    assert {"README.md", "getting_started.md", "rules.md", "presets.md", "own_model.md"} <= {
        p.name for p in SPOKEN
    }


def command_lines():
    for path in (ROOT / "README.md", *PAGES):
        for line, code, _ in blocks(path, "console"):
            for number, text in enumerate(code.splitlines(), line):
                if text.startswith("$ lrp "):
                    yield pytest.param(text[2:], id=f"{path.name}:{number}")


@pytest.mark.parametrize("text", list(command_lines()))
def test_command_lines_are_understood(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # files that must be there are made
    _, name, *arguments = shlex.split(text, comments=True)
    for argument in arguments:
        if argument.endswith(".csv"):
            Path(argument).touch()
    root = typer.main.get_command(app)
    command = root.get_command(None, name)
    assert command is not None, f"no command {name}"
    command.make_context(f"lrp {name}", arguments)  # raises for an unknown option or value


# ---------------------------------------------------------------- in a browser


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_pages_work_without_a_network(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for path in sorted(site.glob("*.html")):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"{path.name} is too wide"
            )
        page.goto((site / "rules.html").as_uri())
        sizes = page.eval_on_selector_all("math", "all => all.map(m => m.getBoundingClientRect().width)")
        assert len(sizes) > 40 and min(sizes) > 3
        page.set_viewport_size({"width": 1600, "height": 900})
        page.goto((site / "index.html").as_uri())
        # Typed, not filled in: the page listens to keys.
        page.locator("input.md-search__input").press_sequentially("AlphaBeta")
        page.wait_for_selector(".md-search-result__item a", timeout=60_000)
        results = page.eval_on_selector_all(".md-search-result__item a", "all => all.map(a => a.href)")
        browser.close()
    assert any("rules.html" in link for link in results)
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert not complaints
