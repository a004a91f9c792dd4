"""The notebooks run offline, one after the other, and both files of each say the same; results show themselves."""

import ast
import base64
import io
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lrp
from lrp.pictures import heatmap

pytest.importorskip("nbclient")
import nbformat

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "notebooks")]
import notebooks  # noqa: E402
import support  # noqa: E402

HOSTILE = ['<img src=x onerror="alert(1)">', "a & b </td>'\"", "\u202eevil", "🐈 <script>alert(1)</script>"]


# --- the notebooks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All notebooks executed in one folder, in their order: the folder, name -> notebook, name -> files there after it."""
    folder = tmp_path_factory.mktemp("notebooks")
    done, files = {}, {}
    with warnings.catch_warnings(), notebooks.kernel(folder) as manager:
        warnings.simplefilter("ignore")
        for name in notebooks.NAMES:
            done[name] = notebooks.execute(notebooks.written(name), manager)
            files[name] = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return folder, done, files


def test_the_eight_notebooks_are_there_and_each_has_both_files():
    names = {path.name.partition(".")[0] for path in notebooks.FOLDER.iterdir() if path.is_file()}
    names -= {"", "ruff", "support"}
    assert names == set(notebooks.NAMES)
    assert len(notebooks.NAMES) == 8
    assert not [name for name in notebooks.NAMES if notebooks.differing(name)]
    # Beside a file lrp.py, `import lrp` would find that file.
    found = subprocess.run(
        [sys.executable, "-c", "import lrp; print(lrp.__file__)"], cwd=notebooks.FOLDER, capture_output=True, text=True
    )  # fmt: skip
    assert Path(found.stdout.strip()).parent == Path(lrp.__file__).parent


def test_a_pair_whose_cells_differ_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    for name in notebooks.NAMES:
        (tmp_path / f"{name}.nb.py").write_bytes((ROOT / "notebooks" / f"{name}.nb.py").read_bytes())
        (tmp_path / f"{name}.ipynb").write_bytes((ROOT / "notebooks" / f"{name}.ipynb").read_bytes())
    assert notebooks.main(["--check"]) == 0
    script = tmp_path / "tour.nb.py"
    script.write_text(script.read_text().replace("## 5. The ledger", "## 5. The book"))
    (tmp_path / "lrp.ipynb").unlink()
    assert notebooks.main(["--check"]) == 1
    assert capsys.readouterr().out == (
        "the two files differ: lrp, tour; `python tools/notebooks.py` writes the .ipynb anew.\n"
    )


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_kept_notebook_says_what_it_shows_and_is_small_and_tidy(name):
    text = notebooks.kept(name).read_text()
    kept = nbformat.reads(text, as_version=4)
    nbformat.validate(kept)
    first = kept.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\n\n[A-Z].+\.", first.source, re.DOTALL)
    assert "of an offline run (`LRP_OFFLINE=1`)" in first.source
    [parameters] = [cell for cell in kept.cells if "parameters" in cell.metadata.get("tags", [])]
    set_here = set(re.findall(r"^([A-Z]+) = ", parameters.source, re.MULTILINE))
    assert {"MODEL", "DATA", "SIZE"} <= {"MODEL" if key == "MODELS" else key for key in set_here}
    assert "vgg19" in parameters.source
    assert " MB" in parameters.source  # what is downloaded
    outputs = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert any(set(output.get("data", {})) & {"image/png", "image/jpeg", "text/html"} for output in outputs)
    assert any("Offline (LRP_OFFLINE=1): efficientnet_lite0" in o.get("text", "") for o in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert len(text.encode()) < notebooks.LARGEST
    assert str(Path(__file__).parents[2]) not in text
    assert set(kept.metadata) <= {"jupytext", "kernelspec"}
    assert not re.search(r"/home/|/root/|/tmp/|site-packages|0x[0-9a-f]{6}|execution\"", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_runs_offline(run, name):
    _, done, _ = run
    outputs = [output for cell in done[name].cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [o for o in outputs if o.output_type == "error"]
    # Of the same kinds as those kept: the kept ones are of this support.
    kept = nbformat.read(notebooks.kept(name), as_version=4)
    kinds = [[sorted(o.get("data", {"": ""})) for o in c.get("outputs", [])] for c in done[name].cells]
    assert kinds == [[sorted(o.get("data", {"": ""})) for o in c.get("outputs", [])] for c in kept.cells]


@pytest.mark.slow
def test_each_notebook_finds_what_an_earlier_one_wrote(run):
    _, done, files = run
    assert "vgg19_results_original.csv" in files["vgg19_evaluation_csv"]
    assert "vgg19_results_original.csv" not in files["accuracy_check_imagewoof"]
    before, after = files["vgg19_evaluation_csv"], files["analysis_confidence_score_original"]
    copied = {name for name in after - before if name.startswith("input/")}
    assert copied
    for name in copied:  # each of them explained, at the same place
        assert Path("output", *Path(name).parts[1:]).with_suffix(".png").as_posix() in files["lrp"] - after
    new = files["vgg19_retrain_imagenette"] - files["vgg_error_analysis_original"]
    assert {"vgg19_results_retrained.csv", "efficientnet_lite0_imagenette.pth"} <= new
    for name in (
        "analysis_confidence_score_original",
        "vgg_error_analysis_original",
        "vgg19_retrain_imagenette",
    ):
        text = "".join(o.get("text", "") for c in done[name].cells for o in c.get("outputs", []))
        assert "vgg19_results_original.csv is there." in text


@pytest.mark.slow
def test_numbers_shown_are_those_of_the_tables(run):
    """Counted here from the CSV's text."""
    folder, done, _ = run

    def said(name):
        return "".join(o.get("text", "") for c in done[name].cells for o in c.get("outputs", []))

    counts = {}
    for kind in ("original", "retrained"):
        lines = (folder / f"vgg19_results_{kind}.csv").read_text().splitlines()[1:]
        counts[kind] = sum(line.split(",")[5] == "True" for line in lines), len(lines)
    right, total = counts["original"]
    assert f"{total} files, {total} of them predicted, {right} correctly" in said("vgg19_evaluation_csv")
    assert f"{total} images, {total - right} mistakes" in said("vgg_error_analysis_original")
    assert f"{100 * right / total:.1f} %" in said("vgg19_retrain_imagenette")
    right, total = counts["retrained"]
    assert f"vgg19_results_retrained.csv: {right} of {total} are right" in said("vgg19_retrain_imagenette")


@pytest.mark.slow
def test_the_weights_load_into_the_plain_architecture(run):
    import timm

    folder, _, _ = run
    state = torch.load(folder / "efficientnet_lite0_imagenette.pth", weights_only=True)
    timm.create_model("tf_efficientnet_lite0", num_classes=len(support.SOURCES)).load_state_dict(state)


# --- what the notebooks need ------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "meant"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_offline_is_asked_for_by_the_environment(monkeypatch, capsys, value, meant):
    monkeypatch.delenv("LRP_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("LRP_OFFLINE", value)
    assert support.offline() is meant
    assert support.models(["alexnet", "vgg19"]) == (["efficientnet_lite0"] if meant else ["alexnet", "vgg19"])
    instead = (
        "Offline (LRP_OFFLINE=1): efficientnet_lite0, which comes in a package, instead of alexnet, vgg19.\n"
    )
    assert capsys.readouterr().out == (instead if meant else "")


def test_with_a_network_the_data_set_is_downloaded(monkeypatch, tmp_path, capsys):
    asked = []

    def download_data(*place, say):
        asked.append(place)
        say("so many bytes")
        return tmp_path / "there"

    monkeypatch.delenv("LRP_OFFLINE", raising=False)
    monkeypatch.setattr(lrp, "download_data", download_data)
    assert support.photos("imagewoof", "160px", tmp_path) == tmp_path / "there"
    assert asked == [("imagewoof", "160px", tmp_path)]
    assert capsys.readouterr().out == "so many bytes\n"


SOURCES = [*(ROOT / "notebooks").glob("*.nb.py"), ROOT / "notebooks" / "support.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_notebooks_use_the_public_api_alone(path):
    """`import lrp` and names in lrp.__all__; of others' packages what they like."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("lrp.")]
            assert not [a.name for a in node.names if a.name == "lrp" and a.asname]
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.module.partition(".")[0] != "lrp"
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "lrp"}
    assert used and used <= set(lrp.__all__)
    # Nor what is private of anything.
    private = re.compile(r"_(?!_)")
    assert not [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and private.match(n.attr)]


def test_stated_sizes_are_those_that_are_downloaded():
    from lrp.data.imagenette import ARCHIVES
    from lrp.models.catalogue import model_names

    megabytes = {entry.name: entry.megabytes for entry in model_names()}
    for name in notebooks.NAMES:
        text = notebooks.script(name).read_text()
        for data in ("imagenette", "imagewoof"):
            if f'DATA = "{data}"' in text:
                sizes = {size: ARCHIVES[data, size].size for size in ("full", "320px", "160px")}
                assert (
                    f'SIZE = "320px"  # {sizes["320px"] / 1e6:.0f} MB to download; "160px" is {sizes["160px"] / 1e6:.0f} MB, '
                    f'"full" {sizes["full"] / 1e9:.1f} GB'
                ) in text
        if 'MODEL = "vgg19"' in text:
            assert f"{megabytes['vgg19']:.0f} MB" in text.partition('MODEL = "vgg19"')[2].partition("\n")[0]
        else:
            first, *others, last = [f"{megabytes[m]:.0f}" for m in ("alexnet", "vgg16", "vgg19", "resnet50")]
            assert f"downloaded once: {', '.join([first, *others])} and {last} MB" in text


def test_the_photos_made_are_the_same_each_time(tmp_path):
    a, b = (support.made(tmp_path / name, seed=3) for name in ("a", "b"))
    c = support.made(tmp_path / "c", seed=4)
    files = sorted(path.relative_to(a) for path in a.rglob("*.jpg"))
    assert len(files) == len(support.SOURCES) * sum(support.COUNTS.values())
    assert sorted(path.relative_to(b) for path in b.rglob("*.jpg")) == files
    assert all((a / file).read_bytes() == (b / file).read_bytes() for file in files)
    assert any((a / file).read_bytes() != (c / file).read_bytes() for file in files)
    assert len({(a / file).read_bytes() for file in files}) == len(files)
    data = lrp.DataSet.open(a)
    assert data.splits == ("val", "train")
    assert set(data.categories) == set(support.SOURCES.values())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    # What is there stays as it is.
    (a / files[0]).write_bytes(b"mine")
    support.made(a, seed=3)
    assert (a / files[0]).read_bytes() == b"mine"
    assert sorted(path.relative_to(a) for path in a.rglob("*.jpg")) == files


def test_photos_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(lrp.DataError) as error:
        support.made(tmp_path / "file" / "data")
    assert str(error.value) == f"{tmp_path}/file/data: cannot be written: File exists."
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(lrp.ImageError) as missing:
        support.made(tmp_path / "data")
    assert str(missing.value) == (
        "coffee.png comes with skimage.data, which is not there: pip install 'lrp[demo,study]'."
    )
    assert not (tmp_path / "data").exists()


def test_progress_counts_each_step_from_its_beginning(monkeypatch, capsys):
    monkeypatch.delenv("LRP_OFFLINE", raising=False)
    advance = support.progress("evaluating")
    for done in (0, 1, 0, 1):
        advance(done, 2)
    advance(3, 4, "training, loss 0.3")
    advance(1, 4, "training, loss 0.2")
    shown = capsys.readouterr().out
    assert [line.rstrip(" ") for line in shown.split("\r")] == [
        "", "evaluating: 0 %", "evaluating: 50 %", f"{'evaluating: 100 %':<60}\n", "training, loss 0.3: 75 %",
        f"{'training, loss 0.2: 100 %':<60}\n",
    ]  # fmt: skip
    # Each covers the one before it.
    assert {len(line.rstrip("\n")) for line in shown.split("\r")[1:]} == {60}
    monkeypatch.setenv("LRP_OFFLINE", "1")
    support.progress("evaluating")(1, 1)
    assert capsys.readouterr().out == ""


def test_pictures_are_shown_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for given in (tmp_path / "noise.png", str(tmp_path / "noise.png"), Image.fromarray(noise)):
        shown = support.show(given, width=400)._repr_mimebundle_()
        [(kind, content)] = shown.items()
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (kind, image.format, image.size) == ("image/jpeg", "JPEG", (400, 120))
    small = support.show(Image.fromarray(noise[:20, :30]))
    assert Image.open(io.BytesIO(small.content)).size == (30, 20)  # never enlarged
    from lrp.pictures.figures import new_figure

    figure = support.show(new_figure(9, 2), width=300)
    assert figure.kind == "image/png"
    assert Image.open(io.BytesIO(figure.content)).width == 300


# --- results show themselves ------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements with their attributes, and the text outside them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "\n".join(self.words)

    def images(self):
        sources = [attributes["src"] for tag, attributes in self.elements if tag == "img"]
        prefix = "data:image/png;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source[len(prefix) :]))) for source in sources]


def net(classes=4, channels=3):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes)
    )
    return model.eval()


def explained(names=None, images=2, target="predicted", channels=3, **settings):
    x = torch.randn(images, channels, 6, 6, generator=torch.Generator().manual_seed(1))
    return lrp.Explainer(net(channels=channels), class_names=names, **settings)(x, target)


def test_an_explanation_shows_photo_heatmap_target_and_health():
    e = explained(["ant", "bee", "cat", "dog"], composite="epsilon")
    page = Page(e._repr_html_())
    pictures = page.images()
    assert [p.size for p in pictures] == [(6, 6)] * 4
    for i in range(2):
        # The photo: the input from its least to its greatest value.
        x = e._images[i].double().numpy()
        wanted = np.rint((x - x.min()) / (x.max() - x.min()) * 255).transpose(1, 2, 0)
        assert np.abs(np.asarray(pictures[2 * i].convert("RGB"), float) - wanted).max() <= 1
        # The heatmap: its colours, of which a PNG holds every other.
        r = e.relevance[i].sum(0).double().numpy()
        limit = np.percentile(np.abs(r), 99.5)
        step = 1.01 * np.abs(np.diff(heatmap.PALETTE.astype(float), axis=0)).max(1)
        seen = np.asarray(pictures[2 * i + 1].convert("RGB"), float)
        assert np.abs(seen - heatmap.heatmap_colours(r, limit).astype(float)).max() <= 2 * step.max()
        # The words.
        target = int(e.target[i])
        chance = 100 * float(e.logits[i].double().softmax(0)[target])
        assert f"red speaks for it, blue against; deepest from {limit:.2g} per pixel on" in page.text
        start, reached = float(e.start[i].sum()), float(r.sum())
        name = ["ant", "bee", "cat", "dog"][target]
        assert f"{name} (probability {chance:.3g} %)" in page.text
        assert (
            f"{reached:.3g} of {start:.3g} logits ({100 * reached / start:.3g} %) reached the pixels"
            in page.text
        )
    assert page.text.count("health: ok") == 2


def test_zero_relevance_is_the_middle_of_the_colours():
    e = explained(composite="epsilon", images=1)
    e.relevance.zero_()
    e.relevance[0, 0, 0, 0] = 1.0
    heat = np.asarray(Page(e._repr_html_()).images()[1].convert("RGB"))
    assert (heat[0, 0] == heatmap.PALETTE[-2]).all()
    assert (heat[1:] == heatmap.PALETTE[255]).all()


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        (2, {}, "cat (probability "),
        (lrp.Contrast(0, 3), {}, "ant, not dog"),
        (lrp.Contrast("bee", "ant"), {}, "bee, not ant"),
        (torch.tensor([[0.0, 2.0, -3.0, 0.0]]), {}, "a start relevance at 2 classes, most at bee"),
        ("predicted", {"seed": "softmax"}, "the softmax of all classes"),
    ],
)  # fmt: skip
def test_what_was_asked_is_said(target, settings, words):
    e = explained(["ant", "bee", "cat", "dog"], images=1, target=target, **settings)
    assert words in Page(e._repr_html_()).text


def test_a_contrast_with_the_predicted_class_names_it():
    names = ["ant", "bee", "cat", "dog"]
    winner = int(explained(names, images=1).target[0])
    other = names[(winner + 1) % 4]
    e = explained(names, images=1, target=lrp.Contrast(other, "predicted"))
    assert f"{other}, not {names[winner]}" in Page(e._repr_html_()).text


def test_names_are_text_whatever_they_hold():
    for target, name in enumerate(HOSTILE):
        e = explained(HOSTILE, images=1, target=target)
        html = e._repr_html_()
        page = Page(html)
        assert f"{name} (probability " in page.text
        assert {tag for tag, _ in page.elements} <= {"div", "table", "tr", "td", "img", "b", "small"}
        assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
        assert not re.search(r"https?:", html)


def test_colours_are_left_to_the_page():
    for html in (explained()._repr_html_(), rules_of(net())._repr_html_()):
        assert not re.search(r"(?<![-\w])(color|background)[\w-]*:", html)
        assert "#" not in html.replace("&#x27;", "")


def test_of_many_images_the_first_are_shown_and_health_waits():
    e = explained(images=6)
    page = Page(e._repr_html_())
    assert len(page.images()) == 8
    assert "... and 2 more images" in page.text
    assert page.text.count("health: not computed for so many images; ask for e.health") == 4
    assert "ledger" not in e.__dict__  # nothing was computed for it
    assert e.health.ok
    assert Page(e._repr_html_()).text.count("health: ok") == 4
    assert "more images" not in Page(explained(images=4)._repr_html_()).text


def test_several_explanations_share_their_photo():
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    several = lrp.Explainer(net()).many(x, targets=[0, 1, 2, 3, 0])
    page = Page(several._repr_html_())
    assert len(page.images()) == 2 * (1 + 4)
    assert "... and 1 more explanations of each" in page.text
    assert re.findall(r"class \d", page.text) == ["class 0", "class 1", "class 2", "class 3"] * 2


def test_what_is_no_photo_is_shown_by_its_heatmap_alone():
    assert len(Page(explained(channels=5, images=1)._repr_html_()).images()) == 1
    assert len(Page(explained(channels=1, images=1)._repr_html_()).images()) == 2


def test_a_signal_is_shown_by_one_picture_below_its_words():
    net = nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 3)).eval()
    x = torch.randn(6, 2, 20, generator=torch.Generator().manual_seed(1))
    html = lrp.Explainer(net).many(x, [0, 1])._repr_html_()
    page = Page(html)
    assert len(page.images()) == 4 * 2 and "... and 2 more signals" in page.text
    assert page.text.count("reached the samples") == 8 and "pixel" not in page.text
    styles = [attributes["style"] for tag, attributes in page.elements if tag == "img"]
    assert set(styles) == {"max-width: 100%"}
    assert not re.search(r"(?<![-\w])(color|background)[\w-]*:", html)


def test_an_explanation_that_is_not_right_says_so():
    e = explained(images=1)
    e.relevance[0, 0, 0, 0] = torch.nan
    page = Page(e._repr_html_())
    assert "NOT TRUSTWORTHY" in page.text
    assert "not finite: relevance or logits hold NaN or infinite values" in page.text
    heat = np.asarray(page.images()[1].convert("RGB"))
    assert (heat[0, 0] == heatmap.heatmap_colours(np.full((1, 1), np.nan), 1.0)[0, 0]).all()
    e = explained(images=1)
    with torch.no_grad():
        next(e._explainer.model.parameters()).mul_(2)
    assert "health: unknown: the model's weights changed after the explanation" in Page(e._repr_html_()).text


def rules_of(model):
    explainer = lrp.Explainer(model)
    return explainer.rules(torch.zeros(1, 3, 6, 6))


def test_the_rules_are_a_table():
    table = rules_of(net())
    page = Page(table._repr_html_())
    tags = [tag for tag, _ in page.elements]
    assert tags.count("tr") == 1 + len(table)
    assert tags.count("td") == 5 * len(table)
    for line in table.lines:
        assert all(cell in page.words or not cell for cell in line)
    assert table.composite in page.text
    assert table.reason in page.text


def test_a_table_of_rules_escapes_its_cells():
    from lrp.engine.results.rules_table import Line, RulesTable

    table = RulesTable(HOSTILE[0], HOSTILE[3], [Line(*HOSTILE, "x")])
    page = Page(table._repr_html_())
    assert all(name in page.words for name in HOSTILE)
    assert "script" not in [tag for tag, _ in page.elements]
    assert "img" not in [tag for tag, _ in page.elements]
