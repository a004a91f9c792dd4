"""lrp.explain_folder: photos in, files out, one result for each file found."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import lrp
from helpers.small_models import NAMES, small_model, write_photos
from lrp.cli import main
from lrp.gallery import formats
from lrp.gallery.gallery import Gallery
from lrp.gallery.request import Request
from lrp.gallery.results import Result, result_picture_paths
from lrp.pictures import heatmap
from lrp.pictures.photos import find_photos


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


def test_one_result_for_each_file_as_it_is_done(photos):
    Path("photos/cat/notes.txt").write_text("no photo")
    done = []
    results = lrp.explain_folder(
        "photos", "out", small_model(), advance=lambda n, total: done.append((n, total))
    )
    assert not Path("out").exists()  # nothing is explained before a result is taken
    assert isinstance(next(results), Result)
    assert done == [(1, 5)]
    rest = list(results)
    assert [r.status for r in rest] == ["ok", "skipped", "ok", "ok"] and done == [(1, 5)] * 5
    assert rest[1].error.startswith("expected a JPEG")
    assert [str(r.output) for r in rest if r.output] == ["out/cat/1.png", "out/dog/0.png", "out/dog/1.png"]


def test_paths_may_be_one_or_several_as_text_or_paths(photos):
    for paths in (str(photos[0]), photos[0], [str(photos[0])], (photos[0],)):
        (result,) = lrp.explain_folder(paths, "out", tuple(small_model()))
        assert result.path == photos[0] and result.status in ("ok", "kept")


def test_it_is_what_the_command_writes(photos, monkeypatch, capsys):
    monkeypatch.setattr("lrp.models.loading.load_model", lambda name, **_: small_model())
    told = [
        "explain",
        "photos",
        "-o",
        "a",
        "--composite",
        "epsilon_gamma_box",
        "--bias",
        "ignore",
        "--epsilon",
        "0.01",
    ]
    told += [
        "--target",
        "predicted,true",
        "--style",
        "both",
        "--percentile",
        "98",
        "--shared-scale",
        "--size",
        "20",
    ]
    assert main([*told, "--save", "npz", "--save", "heatmap", "--save", "npz", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    options = lrp.ExplainOptions(
        "epsilon_gamma_box", "ignore", 0.01, style="both", percentile=98.0, shared_scale=True, size=20,
        save=("png", "npz", "heatmap"),
    )  # fmt: skip
    results = list(lrp.explain_folder("photos", "b", "efficientnet_lite0", "predicted,true", options))
    for line, result in zip(lines, results, strict=True):
        assert line == result.to_dict() | {"output": line["output"]}
    files = sorted(p.relative_to("a") for p in Path("a").rglob("*.*"))
    assert len(files) == 3 * len(photos)
    assert all(Path("a", file).read_bytes() == Path("b", file).read_bytes() for file in files)
    # And again, nothing is made.
    again = lrp.explain_folder("photos", "a", "efficientnet_lite0", "predicted,true", options)
    assert {r.status for r in again} == {"kept"}


def test_targets(photos):
    def panels(target):
        (result,) = lrp.explain_folder(photos[0], "out", small_model(), target)
        facts = result.facts
        return [p["title"].partition("  ")[0] for p in facts["panels"] or [{"title": facts["target"]}]]

    assert panels("owl") == panels(2) == ["owl"]
    assert panels(["dog", 2]) == panels("dog,owl") == ["dog", "owl"]
    assert panels([lrp.Contrast("dog", "owl"), "true"]) == ["dog, not owl", "cat"]
    assert panels(np.int64(2)) == panels(np.str_("owl")) == panels(torch.tensor(2)) == ["owl"]
    assert (
        panels(np.array(["dog", "owl"]))
        == panels(np.array([1, 2]))
        == panels(torch.tensor([1, 2]))
        == ["dog", "owl"]
    )
    assert panels([np.uint8(1), lrp.Contrast(np.int64(1), torch.tensor(2))]) == ["dog", "dog, not owl"]
    assert panels(Request("own", (1, 0), titles=("a", "b"))) == ["dog", "cat"]
    for wrong, message in (
        (1.5, "target: expected text, an index, a Contrast, or a list of these, got float."),
        (np.array([0.5, 1]), "target: expected text, an index, a Contrast, or a list of these, got float."),
        ([], "request '[]': expected parts or a count, got 0 parts and count=0."),
    ):
        with pytest.raises(lrp.TargetError) as error:
            lrp.explain_folder(photos[0], "out", small_model(), wrong)
        assert str(error.value) == message
    with pytest.raises(lrp.TargetError, match="no class 'parrot'"):
        lrp.explain_folder(photos[0], "out", small_model(), [lrp.Contrast("parrot", 1)])


def test_what_cannot_be_is_an_error_of_the_call_itself(photos):
    Path("empty").mkdir()
    for paths, message in (
        ("empty", "no files below empty."),
        (["nothing", "none"], "expected a photo or a folder of photos, found nothing at: nothing, none"),
    ):
        with pytest.raises(lrp.ImageError) as error:
            lrp.explain_folder(paths, "out", small_model())
        assert str(error.value) == message
    with pytest.raises(lrp.OptionError, match="device cuda:99: "):
        lrp.explain_folder("photos", "out", small_model(), options=lrp.ExplainOptions(device="cuda:99"))
    with pytest.raises(lrp.ModelError, match="got int"):
        lrp.explain_folder("photos", "out", 3)


def test_a_composite_of_ones_own_is_part_of_the_fingerprint(photos):
    def status(rule):
        composite = lrp.Composite([(lrp.family("conv"), rule)], name="mine")
        (one,) = lrp.explain_folder(photos[0], "out", small_model(), options=lrp.ExplainOptions(composite))
        return one.status

    assert [status(rule) for rule in (lrp.ZPlus(), lrp.ZPlus(), lrp.Epsilon(), lrp.Epsilon())] == [
        "ok", "kept", "ok", "kept",
    ]  # fmt: skip


# ---------------------------------------------------------------- formats


def explained(photo, model=None, **options):
    return next(
        lrp.explain_folder(photo, "out", model or small_model(), "dog", lrp.ExplainOptions(**options))
    )


@pytest.mark.parametrize("shape", [(7,), (2, 40), (3, 5, 4), (1, 6, 5, 4), (2, 3, 16, 5, 4)])
def test_arrays_keep_the_dimensions_of_relevance(shape, tmp_path):
    """Relevance of signals and volumes, also of several targets, is written as it is: in the order the model takes."""
    relevance = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    arrays = {"relevance": relevance, "logits": np.arange(3.0), "fingerprint": np.array("f")}
    made = SimpleNamespace(sheet=SimpleNamespace(arrays=arrays))
    npz = formats.FORMATS["npz"]
    npz.write(made, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as saved:
        assert set(saved) == set(arrays)
        assert saved["relevance"].dtype == np.float32 and saved["relevance"].shape == shape
        assert (saved["relevance"] == relevance).all()
    assert npz.fingerprint(tmp_path / "a.npz") == "f"


def test_the_heatmap_alone_is_transparent_where_there_is_nothing(photos):
    model = small_model()
    result = explained(photos[0], model, save=("png", "heatmap", "npz"))
    image = Image.open("out/0.heatmap.png")
    assert image.mode == "RGBA" and image.size == (32, 24)
    seen = np.load("out/0.npz")["relevance"].sum(0)
    values = model.preprocessing.geometry.to_photo(seen, 24, 32)
    rgba = np.asarray(image).astype(float)
    assert np.isnan(values).any() and (rgba[..., 3][np.isnan(values)] == 0).all()
    limit = heatmap.heatmap_scale([values])
    share = np.abs(np.nan_to_num(values)) / limit
    np.testing.assert_allclose(rgba[..., 3], np.rint(255 * np.minimum(share, 1) ** 0.7), atol=1)
    strong = share > 0.3
    assert (rgba[..., 0] > rgba[..., 2])[strong & (values > 0)].all()
    assert (rgba[..., 2] > rgba[..., 0])[strong & (values < 0)].all()
    assert heatmap.read_heatmap_metadata("out/0.heatmap.png") == {
        "fingerprint": heatmap.read_heatmap_metadata(result.output)["fingerprint"]
    }


def test_zero_is_transparent_and_the_limit_opaque():
    image = np.asarray(heatmap.transparent_heatmap([np.array([[0.0, 2.0, -5.0, np.nan]])] * 2, 2.0))
    assert image.shape == (1, 9, 4)  # side by side, with a gap between
    assert image[0, :, 3].tolist() == [0, 255, 255, 0, 0, 0, 255, 255, 0]
    assert (image[0, 1, :3] == heatmap.PALETTE[-1]).all() and (image[0, 2, :3] == heatmap.PALETTE[0]).all()


def test_several_heatmaps_stand_side_by_side_on_the_scale_of_the_picture(photos):
    options = lrp.ExplainOptions(save=("heatmap", "png"), shared_scale=True)
    results = list(lrp.explain_folder("photos", "out", small_model(), ["cat", "owl"], options))
    for result in results:
        assert Image.open(result.output.with_suffix(".heatmap.png")).size == (32 + 1 + 32, 24)
    alphas = [np.asarray(Image.open(r.output.with_suffix(".heatmap.png")))[..., 3].max() for r in results]
    assert max(alphas) == 255 > min(alphas)  # one scale for all photos


def test_a_result_is_kept_only_while_all_its_files_are_there(photos):
    save = ("png", "npz", "heatmap")
    assert [explained(photos[0], save=save).status for _ in range(2)] == ["ok", "kept"]
    for name in ("0.npz", "0.heatmap.png", "0.png"):
        Path("out", name).unlink()
        assert [explained(photos[0], save=save).status for _ in range(2)] == ["ok", "kept"], name
    Path("out/0.heatmap.png").write_bytes(Path("out/0.heatmap.png").read_bytes()[:-5])
    assert explained(photos[0], save=save).status == "ok"
    assert explained(photos[0]).status == "kept"  # what is not asked for may be there or not


def test_without_a_picture_nothing_is_kept(photos):
    for _ in range(2):
        result = explained(photos[0], save=("npz",))
        assert result.status == "ok" and result.output == Path("out/0.npz")
    assert [p.name for p in Path("out").iterdir()] == ["0.npz"]


def test_the_picture_is_written_last(photos, monkeypatch):
    written = []
    for name, one in list(formats.FORMATS.items()):
        spy = one._replace(
            write=lambda made, path, name=name, write=one.write: (written.append(name), write(made, path))
        )
        monkeypatch.setitem(formats.FORMATS, name, spy)
    explained(photos[0], save=("png", "heatmap", "npz"))
    assert written == ["heatmap", "npz", "png"]


def test_a_format_of_ones_own_is_one_function(photos, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", formats.FORMATS)
    known = dict(formats.FORMATS)
    try:

        @formats.output_format(
            "txt", ".txt", fingerprint=lambda path: path.read_text() if path.exists() else None
        )
        def write_text(made, path):
            assert made.pixels.shape == (24, 32, 3) and made.panels[0].relevance.shape == (24, 32)
            path.write_text(made.sheet.fingerprint)

        save = ("png", "txt")
        assert [explained(photos[0], save=save).status for _ in range(2)] == ["ok", "kept"]
        Path("out/0.txt").unlink()
        assert explained(photos[0], save=save).status == "ok"
    finally:
        formats.FORMATS.clear()
        formats.FORMATS.update(known)


def test_no_photo_is_written_over_by_any_format():
    suffixes = [one.suffix for one in formats.FORMATS.values()]
    folder = Path("same")
    folder.mkdir(exist_ok=True)
    try:
        for name in ("a.jpg", "a.heatmap.png", "a.npz"):
            (folder / name).touch()
        found = find_photos([folder])
        places = result_picture_paths(found, folder, suffixes)
        files = [place.with_suffix(suffix) for place in places for suffix in suffixes]
        assert len(set(files)) == len(files) and not {f.path for f in found} & set(files)
        # By the picture's name alone, as without the others: only what is a photo's is taken.
        assert [p.name for p in result_picture_paths(found, folder)] == [
            "a.heatmap.png.png",
            "a.png",
            "a.npz.png",
        ]
    finally:
        for name in ("a.jpg", "a.heatmap.png", "a.npz"):
            (folder / name).unlink()
        folder.rmdir()


def test_one_function_makes_a_model_ready():
    options = lrp.ExplainOptions("epsilon_plus", precision="mixed", size=8)
    loaded = small_model()
    gallery = Gallery.of(loaded, options, "owl")
    assert (
        gallery.loaded.preprocessing == loaded.preprocessing.with_size(8) == gallery.explainer.preprocessing
    )
    assert gallery.explainer.precision == "mixed" and gallery.explainer.class_names == NAMES
    assert gallery.request == Request("owl", (2,)) and gallery.options is options
    assert (
        gallery.identity["composite"] == ["epsilon_plus", None, None, 0.0] and gallery.identity["model"] == ""
    )
