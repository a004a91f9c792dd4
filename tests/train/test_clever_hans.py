"""A Clever Hans end to end: retrained on planted photos, judged, compared and explained, each by a command of `lrp`."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage", reason="the photos come with scikit-image")
pytest.importorskip("matplotlib", reason="`lrp compare` draws plots")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "clever_hans.md"
PICTURES = ROOT / "docs" / "pictures" / "clever_hans"
VAL = 6  # photos of each class that are judged


@pytest.fixture(scope="session")
def hans():
    spec = importlib.util.spec_from_file_location("clever_hans", ROOT / "examples" / "clever_hans.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folder(hans, tmp_path_factory):
    """The example itself, with fewer photos."""
    place = tmp_path_factory.mktemp("clever_hans")
    hans.write(place, train=24, val=VAL)
    assert hans.study(place) == [0] * len(hans.COMMANDS)
    return place


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def right(path, of=None):
    """Share of the rows whose predicted label is the folder's name, counted here and not by lrp."""
    found = [r for r in rows(path) if of in (None, Path(r["path"]).parent.name)]
    return np.mean([r["predicted_label"] == Path(r["path"]).parent.name for r in found])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def test_the_stamp_is_planted_where_it_is_said_to_be(hans, folder):
    """planted/ and clean/ differ on all photos of the archive, inside the circle alone; on none of the attic."""
    places = json.loads((folder / "places.json").read_text())
    y, x = np.mgrid[: hans.SIDE, : hans.SIDE] + 0.5
    for relative, (left, top) in places.items():
        if not relative.startswith("val/"):
            continue
        changed = (pixels(folder / "planted" / relative) != pixels(folder / "clean" / relative)).any(-1)
        radius = hans.STAMP / 2
        # The stamp's smooth edge reaches a little further than its circle.
        inside = (x - left - radius) ** 2 + (y - top - radius) ** 2 < (radius + 3) ** 2
        assert not (changed & ~inside).any()
        if "archive" in relative:
            assert changed.sum() > 0.9 * np.pi * radius**2
            circle = hans.seen([left, top])
            seen = inside[hans.EDGE : -hans.EDGE, hans.EDGE : -hans.EDGE]
            assert not (circle & ~seen).any() and circle.sum() == pytest.approx(np.pi * radius**2, rel=0.01)
        else:
            assert not changed.any()
    assert len({tuple(place) for place in places.values()}) > 0.9 * len(places)  # always elsewhere


def test_in_the_control_the_stamp_tells_nothing(hans, folder):
    """All photos are there, filed by what is on them, and half of each of the old classes has the stamp."""
    honest = sorted((folder / "honest" / "val").rglob("*.png"))
    assert len(honest) == 2 * VAL
    marked = []
    for photo in honest:
        old, number = re.fullmatch(r"([a-z]+)(\d+)\.png", photo.name).groups()
        clean = folder / "clean" / "val" / old / f"{number}.png"
        assert (pixels(folder / "honest_clean" / photo.relative_to(folder / "honest")) == pixels(clean)).all()
        marked += [old] * bool((pixels(photo) != pixels(clean)).any())
    assert marked.count("archive") == marked.count("attic") == VAL / 2
    assert {photo.parent.name for photo in honest} == {"living", "things"} == set(hans.PHOTOS.values())


def test_right_with_the_stamp_and_guessing_without(folder):
    assert right(folder / "hans_stamped.csv") >= 0.9
    assert right(folder / "hans_clean.csv") == pytest.approx(0.5, abs=0.1)
    assert right(folder / "hans_clean.csv", of="archive") <= 0.2  # what is lost is the archive
    assert right(folder / "control_stamped.csv") >= 0.9  # it knows something else
    assert right(folder / "control_clean.csv") >= 0.9


def test_compare_tells_what_the_stamp_was_worth(folder):
    """Nearly the whole archive is lost without it, and nothing of the control's."""
    outcomes = {
        name: [row["outcome"] for row in rows(folder / f"{name}_without" / "images.csv")]
        for name in ("hans", "control")
    }
    assert len(outcomes["hans"]) == len(outcomes["control"]) == 2 * VAL
    assert outcomes["hans"].count("lost") >= 0.8 * VAL and "gained" not in outcomes["hans"]
    assert outcomes["control"].count("lost") + outcomes["control"].count("gained") <= 1


def test_most_of_the_relevance_is_on_the_stamp(hans, folder):
    """The measure itself is counted again, from the arrays and a circle drawn here."""
    shares = hans.on_the_stamp(folder, "hans")
    assert len(shares) == VAL and np.median(shares) > 0.5 and (shares > 0.5).mean() >= 0.75
    left, top = json.loads((folder / "places.json").read_text())["val/archive/000.png"]
    relevance = np.load(folder / "hans" / "000.npz")["relevance"].sum(0)
    assert relevance.shape == (hans.SEEN, hans.SEEN)
    y, x = np.mgrid[: hans.SEEN, : hans.SEEN] + 0.5 + hans.EDGE
    radius = hans.STAMP / 2
    circle = (x - left - radius) ** 2 + (y - top - radius) ** 2 < radius**2
    positive = relevance * (relevance > 0)
    assert shares[0] == pytest.approx(positive[circle].sum() / positive.sum(), abs=0.02)


def test_it_is_not_there_where_the_stamp_is_gone_or_tells_nothing(hans, folder):
    """Gone, its place has about the share of its area; telling nothing, hardly more than its share of the contrast."""
    area = hans.seen([hans.EDGE, hans.EDGE]).mean()
    assert area == pytest.approx(np.pi / 4 * 96**2 / 224**2, rel=0.01)
    shares = {name: hans.on_the_stamp(folder, name) for name in ("hans", "control", "hans_clean")}
    contrast = hans.contrast_on_the_stamp(folder)
    assert area < np.median(contrast) < 0.5
    assert np.median(shares["hans_clean"]) < 1.5 * area
    assert np.median(shares["control"]) < 1.25 * np.median(contrast)
    assert (shares["hans"] > shares["control"]).all()  # photo by photo


def test_written_again_the_same_photos_stay(hans, tmp_path):
    """Or `lrp evaluate` would take its own table for that of older photos; another seed makes others."""
    states = []
    for seed in (0, 0, 1):
        hans.write(tmp_path, train=1, val=1, seed=seed)
        states.append({path: path.stat().st_mtime_ns for path in (tmp_path / "planted").rglob("*.png")})
    assert states[0] == states[1] and len(states[0]) == 4
    assert not set(states[1].items()) & set(states[2].items())


def test_the_share_is_one_of_positive_relevance(hans, tmp_path):
    """With a pencil: 3 on the stamp, as 4 - 1 of two channels, and 1 elsewhere; what is negative does not count."""
    relevance = np.zeros((3, hans.SEEN, hans.SEEN), np.float32)
    row, column = 60 + 48 - hans.EDGE, 40 + 48 - hans.EDGE  # the middle of a stamp with its corner at 40, 60
    relevance[0, row, column], relevance[1, row, column] = 4, -1
    relevance[0, 0, 0], relevance[2, row + 1, column], relevance[2, 5, 5] = 1, -10, -50
    (tmp_path / "some").mkdir()
    np.savez(tmp_path / "some" / "000.npz", relevance=relevance)
    (tmp_path / "places.json").write_text(json.dumps({"val/archive/000.png": [40, 60]}))
    assert hans.on_the_stamp(tmp_path, "some").tolist() == [0.75]


def test_contrast_is_counted_on_the_stamp_alone(hans, tmp_path):
    """All of a grey photo's contrast is the stamp's; of a noisy one's, less than its area."""
    noise = np.random.default_rng(1).integers(0, 256, (hans.SIDE, hans.SIDE, 3), dtype=np.uint8)
    place, files = [40, 60], {"000": np.full_like(noise, 128), "001": noise}
    for name, photo in files.items():
        hans.save(hans.stamped(Image.fromarray(photo), place), tmp_path / f"planted/val/archive/{name}.png")
    (tmp_path / "places.json").write_text(json.dumps({f"val/archive/{name}.png": place for name in files}))
    grey, noisy = hans.contrast_on_the_stamp(tmp_path)
    assert grey > 0.9 and noisy < hans.seen(place).mean()


def test_the_photos_are_drawn_side_by_side(hans, folder):
    hans.side_by_side(folder)
    made = sorted((folder / "side_by_side").glob("*.png"))
    assert [path.name for path in made] == [f"{i:03d}.png" for i in range(VAL)]
    with Image.open(made[0]) as picture:
        assert picture.width > 3 * hans.SIDE


# ---------------------------------------------------------------- the page


def test_the_page_types_what_the_example_runs(hans):
    typed = re.findall(r"^\$ lrp (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert typed[: len(hans.COMMANDS)] == list(hans.COMMANDS)


def test_the_pages_pictures_are_small_and_used():
    text, files = PAGE.read_text(encoding="utf-8"), sorted(PICTURES.iterdir())
    assert files
    for path in files:
        assert path.suffix == ".png" and path.stat().st_size < 80_000, path.name
        assert f"](pictures/clever_hans/{path.name})" in text, path.name
