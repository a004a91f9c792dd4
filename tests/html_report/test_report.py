"""`lrp report`, the half in Python: what stands in the file, against the tables and the maps themselves."""

import base64
import html.parser
import json
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

import lrp
from helpers.reporting import CLASSES, SIDE, document, study, tiny
from lrp.cli import main
from lrp.html_report.select import select_classes_for_maps, select_for_maps, select_to_show
from lrp.html_report.write import write_report


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = study(tmp_path_factory.mktemp("study"))
    return found, write_report(
        found.tables[0],
        found.folder / "r.html",
        galleries=found.galleries[:1],
        command="lrp report 'a <i>.csv'",
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    found = study(tmp_path_factory.mktemp("study2"))
    written = write_report(
        found.tables[0], found.folder / "r.html", retrained=found.tables[1], galleries=found.galleries
    )
    return found, written


def test_counts_are_those_of_the_table(made):
    found, written = made
    cells, d = found.cells(), document(written.path)
    counted = [c for c in cells if c["status"] == "ok"]
    right = sum(c["correct"] == "True" for c in counted)
    (model,) = d["models"]
    assert (model["total"], model["counted"], model["unreadable"], model["unmatched"]) == (12, 10, 1, 1)
    assert (model["top1"]["successes"], model["top1"]["n"]) == (right, 10)
    assert sum(model["histogram"]["right"]) == right and sum(model["histogram"]["wrong"]) == 10 - right
    matrix = model["matrix"]
    for t, p, count in zip(matrix["rows"], matrix["cols"], matrix["counts"], strict=True):
        true, predicted = d["classes"][t], d["classes"][p]
        assert count == sum(c["true_label"] == true and c["predicted_label"] == predicted for c in counted)
    assert sum(matrix["counts"]) == 10
    for c in model["classes"]:
        assert c["support"] == sum(x["true_label"] == d["classes"][c["class"]] for x in counted)


def test_rows_are_those_of_the_table(made):
    found, written = made
    cells, d = found.cells(), document(written.path)
    rows, by = d["rows"], d["rows"]["by"][0]
    assert rows["path"] == [c["path"] for c in cells] and rows["status"] == [c["status"] for c in cells]
    assert rows["error"] == [c["error"] for c in cells]
    for i, c in enumerate(cells):
        assert (d["classes"][rows["true"][i]] if rows["true"][i] >= 0 else "") == c["true_label"]
        assert (d["classes"][by["predicted"][i]] if by["predicted"][i] >= 0 else "") == c["predicted_label"]
        assert by["correct"][i] == {"True": 1, "False": 0, "": -1}[c["correct"]]
        top = {d["classes"][k]: p for k, p in by["top5"][i]}
        assert top == pytest.approx(json.loads(c["top5"]) if c["top5"] else {}, abs=1e-9)
        assert bool(rows["thumb"][i]) == (c["status"] != "unreadable")


def unpacked(entry):
    q = np.frombuffer(zlib.decompress(base64.b64decode(entry["data"])), np.int8).astype(float)
    return (np.sign(q) * entry["scale"] * (q / 127) ** 2).reshape(entry["height"], entry["width"])


def test_maps_are_those_of_the_explainer(made):
    found, written = made
    d = document(written.path)
    assert written.explained == len(d["images"]) == 10  # every one that counts
    gallery = found.galleries[0]
    for image in d["images"]:
        path, row = Path(d["rows"]["path"][image["row"]]), found.rows[0][image["row"]]
        x = gallery.loaded.preprocessing(lrp.open_photo(path).pixels)[None]
        wanted = list(dict.fromkeys([row.predicted_label, row.true_label, *row.top5]))[:2]
        assert [d["classes"][m["class"]] for m in image["maps"]] == wanted
        for entry in image["maps"]:
            e = gallery.explainer(x, CLASSES.index(d["classes"][entry["class"]]))
            relevance = e.relevance[0].double().sum(0).numpy()
            assert entry["sum"] == pytest.approx(relevance.sum(), abs=1e-9)
            assert entry["positive"] == pytest.approx(relevance[relevance > 0].sum())
            assert (entry["height"], entry["width"], entry["block"]) == (SIDE, SIDE, 1)
            assert abs(unpacked(entry) - relevance).max() <= abs(relevance).max() / 127
            assert entry["logit"] == pytest.approx(float(e.logits[0, e.target[0]]))
            assert entry["health"]["ok"] and sum(entry["shares"].values()) == pytest.approx(1, abs=1e-4)
        width, height = lrp.open_photo(path).pixels.shape[1::-1]
        left, top, right, bottom = image["maps"][0]["box"]
        assert (right - left) * width == pytest.approx((bottom - top) * height, rel=0.02)  # a square is seen


def test_two_models(both):
    found, written = both
    d = document(written.path)
    a, b = ({c["path"]: c for c in found.cells(i)} for i in (0, 1))
    outcome = {
        ("True", "True"): "right",
        ("False", "True"): "gained",
        ("True", "False"): "lost",
        ("False", "False"): "wrong",
    }
    expected = [outcome.get((a[p]["correct"], b[p]["correct"]), "") for p in d["rows"]["path"]]
    assert d["comparison"]["outcome"] == expected
    overall = d["comparison"]["overall"]
    assert [overall[k] for k in ("both_right", "gained", "lost", "both_wrong")] == [
        expected.count(k) for k in ("right", "gained", "lost", "wrong")
    ]
    for image in d["images"]:
        assert {m["model"] for m in image["maps"]} == {0, 1}
        classes = [[m["class"] for m in image["maps"] if m["model"] == i] for i in (0, 1)]
        assert classes[0] == classes[1] and classes[0][0] == d["rows"]["true"][image["row"]]


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text.append(text)


def test_hostile_names_stay_text_and_nothing_is_fetched(made):
    _found, written = made
    text = written.path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert [t for t, _ in tags.found if t == "script"] == ["script"] * 2 and not any(
        t == "img" for t, _ in tags.found
    )
    assert not any(
        key.startswith("on") or key in ("src", "style") for _, attributes in tags.found for key in attributes
    )
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//)""", text) and "@import" not in text
    policy = next(a["content"] for t, a in tags.found if a.get("http-equiv"))
    assert (
        policy.startswith("default-src 'none'; img-src data: blob:; style-src 'sha256-")
        and "unsafe" not in policy
    )
    assert "a <i>.csv" in "".join(tags.text)  # the title, as text


def test_same_input_same_bytes(made, monkeypatch):
    found, _ = made
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one, two = (
        write_report(found.tables[0], found.folder / name, galleries=found.galleries[:1]).path
        for name in ("1.html", "2.html")
    )
    assert one.read_bytes() == two.read_bytes()
    assert ["Made on", "2023-11-14 22:13 UTC"] in document(one)["made"]


def test_it_keeps_to_its_size(made):
    found, written = made
    explained, blocks = [], []
    for room in (0.29, 0.28, 0.27, 0.26, 0.2, 0.1):
        small = write_report(
            found.tables[0], found.folder / "s.html", galleries=found.galleries[:1], max_mb=room
        )
        assert small.bytes <= room * 1e6
        d = document(small.path)
        explained.append(small.explained)
        blocks.append(d["images"][0]["maps"][0]["block"] if d["images"] else None)
        said = f"Of 10 explained photos, {small.explained} are here: there was no room for more (--max-mb)."
        assert (said in " ".join(small.notes)) == (small.explained < 10)
        for image, whole in zip(d["images"], document(written.path)["images"], strict=False):
            for one, other in zip(image["maps"], whole["maps"], strict=True):
                assert one["sum"] == other["sum"]  # whatever the resolution
    assert explained == sorted(explained, reverse=True) and 0 < explained[-1] < 10 and len(set(blocks)) > 1, (
        explained,
        blocks,
    )


def test_no_room_at_all(made):
    found, _written = made
    place = found.folder / "none.html"
    with pytest.raises(
        lrp.LrpError,
        match=r"the report is 0\.\d MB without any picture, and --max-mb allows 0\.01: list fewer photos \(--rows\), or allow more\.",
    ):
        write_report(found.tables[0], place, max_mb=0.01)
    assert not place.exists()


def test_fewer_rows_are_listed_and_that_is_said(made):
    found, _ = made
    few = write_report(found.tables[0], found.folder / "few.html", rows=5, explain=2)
    d = document(few.path)
    assert few.rows == len(d["rows"]["path"]) == 5 and d["models"][0]["total"] == 12
    assert "5 of 12 photos are listed, mistakes first; all numbers are of all photos." in few.notes


def test_photos_that_are_gone(made, tmp_path):
    found, _ = made
    table = tmp_path / "moved.csv"
    table.write_text(
        found.tables[0].read_text(encoding="utf-8").replace(str(found.folder), "/nowhere"), encoding="utf-8"
    )
    gone = write_report(table, tmp_path / "r.html", galleries=found.galleries[:1])
    assert gone.missing == 11 and gone.explained == 0
    assert re.match(
        r"11 of 12 photos are not where the table says, the first is /nowhere/photos/.*; --root says where the data is now\.",
        gone.notes[0],
    )
    back = write_report(table, tmp_path / "r.html", galleries=found.galleries[:1], root=found.folder)
    assert back.missing == 0 and back.explained == 10


def test_what_cannot_be_written_leaves_what_was_there(made, tmp_path):
    found, _ = made
    place = tmp_path / "folder.html"
    place.mkdir()
    with pytest.raises(lrp.LrpError, match=re.escape(f"{place}: cannot be written: ")):
        write_report(found.tables[0], place)
    assert list(tmp_path.iterdir()) == [place]


def test_a_softmax_start_is_refused(made, tmp_path):
    found, _ = made
    with pytest.raises(lrp.CompositeError, match="expected rules that explain one class"):
        write_report(found.tables[0], tmp_path / "r.html", galleries=[tiny(0, seed="softmax")])


def test_what_is_explained():
    P = lrp_row
    rows = {
        r.path: r
        for r in [P("w1", False, 0.4), P("w2", False, 0.9), *(P(f"r{i}", True, i / 10) for i in range(1, 8))]
    }
    assert select_for_maps(rows, 20) == ["w2", "w1", "r1", "r7", "r2", "r6", "r3", "r5", "r4"]
    assert select_for_maps(rows, 4) == ["w2", "w1", "r1", "r7"]
    many = {f"w{i}": P(f"w{i}", False, 0.5) for i in range(20)} | {"r": P("r", True, 0.9)}
    assert len(select_for_maps(many, 8)) == 8 and select_for_maps(many, 8)[-1] == "r"
    assert select_to_show(["a", "b", "c", "d", "e"], {"e"}, ["c"], 3) == ["a", "c", "e"]
    assert select_classes_for_maps([P("w", False, 0.5)]) == ["x", "y"] and select_classes_for_maps(
        [P("r", True, 0.5)]
    ) == ["x", "z"]


def lrp_row(path, correct, confidence):
    from lrp.study.predictions import Prediction

    return Prediction(
        path, "x" if correct else "y", "x", confidence, confidence, correct, top5={"x": confidence, "z": 0.1}
    )


def test_the_command(made, tmp_path, capsys):
    found, _ = made
    assert main(["report", str(found.tables[0]), "-o", str(tmp_path / "r.html"), "--explain", "0"]) == 0
    size = os.path.getsize(tmp_path / "r.html") / 1e6
    assert (
        capsys.readouterr().out
        == f"12 photos, 0 with heatmaps, {size:.1f} MB: open {tmp_path / 'r.html'} in a browser\n"
    )
    assert main(["report", str(found.tables[0]), "-o", str(tmp_path / "r.html"), "--model", "nonesuch"]) == 1
