"""The report in a real browser: Debian's Chromium, driven by Playwright."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import lrp
from helpers.reporting import CLASSES, SIDE, document, study
from lrp.html_report.write import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    found = study(tmp_path_factory.mktemp("study"))
    return found, write_report(
        found.tables[0], found.folder / "r.html", galleries=found.galleries[:1], explain=8
    ).path


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    found = study(tmp_path_factory.mktemp("study2"))
    return found, write_report(
        found.tables[0], found.folder / "r.html", retrained=found.tables[1], galleries=found.galleries
    ).path


@pytest.fixture
def opened(browser):
    """Opens a report; afterwards nothing may have been asked for, refused, thrown, or run that a name held."""
    contexts = []

    def open_(path: Path, at: str = "", width: int = 1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        page = context.new_page()
        wrong = []
        page.on(
            "console",
            lambda m: (
                wrong.append(m.text)
                if m.type in ("error", "warning") and "getImageData" not in m.text
                else None
            ),
        )
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("dialog", lambda d: (wrong.append("a dialog"), d.dismiss()))
        page.on(
            "request",
            lambda r: (
                wrong.append(r.url) if not r.url.startswith((path.as_uri(), "data:", "blob:")) else None
            ),
        )
        contexts.append((context, page, wrong))
        page.goto(path.as_uri() + at)
        page.locator("main h2").first.wait_for()
        return page

    yield open_
    for context, page, wrong in contexts:
        assert wrong == []
        assert "owned" not in page.title() and page.locator("main img[src='x']").count() == 0
        context.close()


def counted(found, which=0):
    return [c for c in found.cells(which) if c["status"] == "ok"]


def test_overview_says_what_the_table_says(single, opened):
    _found, path = single
    page, rows = opened(path), counted(single[0])
    right = sum(c["correct"] == "True" for c in rows)
    assert page.locator("#top1-0").inner_text() == f"{100 * right / len(rows):.1f} %"
    assert page.locator("#counts-0").inner_text().startswith(f"{right} of {len(rows)} right (95 %: ")
    for name in CLASSES:  # as text, whatever it looks like
        assert page.get_by_text(name, exact=True).count() > 0
    page.get_by_role("link", name="1 photo could not be read").click()
    assert page.locator("#found").inner_text() == "1 photo of 12"


def test_matrix_leads_to_its_photos(single, opened):
    found, path = single
    page = opened(path, "#confusion")
    d = document(path)
    buttons = page.locator(".matrix button")
    expected = {}
    for c in counted(found):
        key = c["true_label"], c["predicted_label"]
        expected[key] = expected.get(key, 0) + 1
    assert buttons.count() == len(expected)
    for i in range(buttons.count()):
        cell = buttons.nth(i)
        key = tuple(d["classes"][int(cell.get_attribute(f"data-{side}"))] for side in ("true", "predicted"))
        assert int(cell.inner_text()) == expected[key]
    (true, predicted), count = max(expected.items(), key=lambda item: item[1])
    place = [d["classes"].index(label) for label in (true, predicted)]
    page.locator(f'.matrix button[data-true="{place[0]}"][data-predicted="{place[1]}"]').click()
    assert page.locator("#found").inner_text() == f"{count} photo{'s' * (count > 1)} of 12"
    titles = {page.locator(".tile").nth(i).get_attribute("title").splitlines()[0] for i in range(count)}
    assert titles == {
        c["path"] for c in counted(found) if (c["true_label"], c["predicted_label"]) == (true, predicted)
    }
    page.go_back()
    assert page.locator(".matrix").count() == 1


def test_filters_sort_and_the_address(single, opened):
    found, path = single
    page = opened(path, "#photos")
    page.locator("select[name=result]").select_option("wrong")
    wrong = [c for c in counted(found) if c["correct"] == "False"]
    assert page.locator("#found").inner_text() == f"{len(wrong)} photos of 12"
    page.locator("select[name=sort]").select_option("surest")
    page.wait_for_timeout(100)
    order = sorted(wrong, key=lambda c: -float(c["predicted_confidence"]))
    tiles = sorted(
        (int(t.get_attribute("data-place")), t.get_attribute("title").splitlines()[0])
        for t in page.locator(".tile").all()
    )
    assert [name for _, name in tiles] == [c["path"] for c in order]
    middle = 100 * float(order[len(order) // 2]["predicted_confidence"])
    page.locator("input[name=low]").fill(f"{middle:.4f}")
    above = [c for c in wrong if 100 * float(c["predicted_confidence"]) >= float(f"{middle:.4f}")]
    assert page.locator("#found").inner_text().split()[0] == str(len(above))
    again = opened(path, "#" + page.url.partition("#")[2])  # the address is the view
    assert again.locator("#found").inner_text() == page.locator("#found").inner_text()
    page.get_by_role("link", name="clear").click()
    page.locator("input[name=q]").type("<B ONCLICK")
    assert page.locator("#found").inner_text() == "3 photos of 12"  # 00, 05 and 10
    assert page.evaluate("document.activeElement.name") == "q"


def test_keyboard(single, opened):
    _found, path = single
    page = opened(path, "#photos")
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("Enter")
    title = page.locator("#photo-title").inner_text
    names = document(path)["rows"]["file"]
    assert title().split() == names[1].split()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(50)
    assert title().split() == names[2].split()
    page.keyboard.press("Escape")
    page.wait_for_timeout(50)
    assert page.locator("#found").inner_text() == "12 photos of 12"


def relevance(found, path, row, label, which=0):
    gallery = found.galleries[which]
    photo = lrp.open_photo(document(path)["rows"]["path"][row]).pixels
    e = gallery.explainer(gallery.loaded.preprocessing(photo)[None], CLASSES.index(label))
    return e.relevance[0].double().sum(0).numpy(), float(e.logits[0, e.target[0]]), photo.shape[:2]


def inside(values, shape, rectangle):
    """The relevance of the pixels in a rectangle, given in parts of the photo: summed one by one."""
    height, width = shape
    scale = 36 / min(height, width)  # the shorter side becomes 36, and the middle 32 x 32 is seen
    left, top = round((int(width * scale) - SIDE) / 2), round((int(height * scale) - SIDE) / 2)
    edges = [rectangle[0] * int(width * scale) - left, rectangle[1] * int(height * scale) - top,
             rectangle[2] * int(width * scale) - left, rectangle[3] * int(height * scale) - top]  # fmt: skip
    total = 0.0
    for i in range(SIDE):
        for j in range(SIDE):
            across = max(0, min(j + 1, edges[2]) - max(j, edges[0]))
            down = max(0, min(i + 1, edges[3]) - max(i, edges[1]))
            total += across * down * values[i, j]
    return total


def test_a_dragged_rectangle_says_its_share(single, opened):
    found, path = single
    d = document(path)
    image = d["images"][0]
    page = opened(path, f"#photo?row={image['row']}")
    page.wait_for_function("document.querySelector('#stage-0 canvas').getAttribute('aria-label')")
    frame = page.locator("#stage-0").bounding_box()

    def at(x, y):
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    page.mouse.move(*at(0.3, 0.35))
    page.mouse.down()
    page.mouse.move(*at(0.5, 0.5), steps=3)
    page.mouse.move(*at(0.65, 0.7), steps=3)
    page.mouse.up()
    drawn = [
        float(page.locator(f"input[name={side}]").input_value()) / 100
        for side in ("left", "top", "right", "bottom")
    ]
    assert drawn == pytest.approx([0.3, 0.35, 0.65, 0.7], abs=0.005)
    # Typed, so that the edges are exact.
    for side, value in zip(("left", "top", "right", "bottom"), (30, 35, 65, 70), strict=True):
        page.locator(f"input[name={side}]").fill(str(value))
    label = d["classes"][image["maps"][0]["class"]]
    values, logit, shape = relevance(found, path, image["row"], label)
    expected, whole = inside(values, shape, (0.3, 0.35, 0.65, 0.7)), values.sum()
    page.wait_for_timeout(150)
    assert float(page.locator("#reading-0").get_attribute("data-sum")) == pytest.approx(
        expected, abs=0.01 * np.abs(values).sum()
    )
    words = page.locator("#reading-0").inner_text().replace("−", "-")
    share, part, total, has = map(float, re.fullmatch(
        r"(-?[\d.]+) % of the relevance: \+?(-?[\d.e-]+) of (-?[\d.e-]+) logits that reached the pixels; the class has (-?[\d.e-]+)\.", words
    ).groups())  # fmt: skip
    assert total == pytest.approx(whole, rel=0.006) and has == pytest.approx(logit, rel=0.006)
    assert part == pytest.approx(expected, abs=0.01 * np.abs(values).sum())
    assert share == pytest.approx(100 * part / total, rel=0.02, abs=0.1)


def test_the_contrast_is_the_difference(single, opened):
    _, path = single
    d = document(path)
    image = next(i for i in d["images"] if len(i["maps"]) == 2)
    page = opened(path, f"#photo?row={image['row']}")
    for side, value in zip(("left", "top", "right", "bottom"), (0, 0, 100, 100), strict=True):
        page.locator(f"input[name={side}]").fill(str(value))
    sums = []
    for choice in range(3):
        page.locator("#choose-map input").nth(choice).check()
        page.wait_for_timeout(250)
        sums.append(float(page.locator("#reading-0").get_attribute("data-sum")))
    for got, entry in zip(sums, image["maps"], strict=False):
        assert got == pytest.approx(entry["sum"], rel=1e-6)  # of everything, the sum is exact
    assert sums[2] == pytest.approx(sums[0] - sums[1], rel=1e-6)
    assert "blue speaks against it" in page.locator("#choose-map").inner_text()


def test_the_pixel_under_the_pointer(single, opened):
    found, path = single
    d = document(path)
    image = d["images"][0]
    page = opened(path, f"#photo?row={image['row']}")
    page.wait_for_timeout(300)
    frame = page.locator("#stage-0").bounding_box()
    box, entry = image["maps"][0]["box"], image["maps"][0]
    i, j = 12, 20
    x, y = box[0] + (j + 0.5) / SIDE * (box[2] - box[0]), box[1] + (i + 0.5) / SIDE * (box[3] - box[1])
    page.mouse.move(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"])
    values, *_ = relevance(found, path, image["row"], d["classes"][entry["class"]])
    words = page.locator("#pointer-0").inner_text().replace("−", "-")
    got = float(re.fullmatch(r"this pixel: \+?(-?[\d.e-]+) logits", words)[1])
    assert got == pytest.approx(values[i, j], abs=np.abs(values).max() / 60)


def test_what_is_drawn(single, opened):
    """The canvas shows red where relevance is largest, and the photo in the other looks."""
    found, path = single
    d = document(path)
    image = d["images"][0]
    page = opened(path, f"#photo?row={image['row']}")
    page.wait_for_timeout(300)
    values, *_ = relevance(found, path, image["row"], d["classes"][image["maps"][0]["class"]])
    i, j = np.unravel_index(values.argmax(), values.shape)
    box = image["maps"][0]["box"]
    x, y = box[0] + (j + 0.5) / SIDE * (box[2] - box[0]), box[1] + (i + 0.5) / SIDE * (box[3] - box[1])
    pixel = "([x, y]) => [...document.querySelector('#stage-0 canvas').getContext('2d').getImageData(x, y, 1, 1).data]"
    size = page.evaluate("(c => [c.width, c.height])(document.querySelector('#stage-0 canvas'))")
    at = [int(x * size[0]), int(y * size[1])]
    red = page.evaluate(pixel, at)
    assert red[0] > red[2] + 60
    page.locator("#opacity").fill("0")
    page.wait_for_timeout(200)
    grey = page.evaluate(pixel, at)
    assert max(grey[:3]) - min(grey[:3]) < 12  # the photo alone, without colour
    page.locator("#choose-look input").nth(2).check()
    page.wait_for_timeout(200)
    assert page.locator("#original img").is_visible()


def test_two_models_side_by_side(double, opened):
    found, path = double
    page = opened(path)
    a, b = ({c["path"]: c["correct"] for c in found.cells(i)} for i in (0, 1))
    gained = sum(a[p] == "False" and b[p] == "True" for p in a)
    assert page.locator("#change-gained").inner_text() == f"{gained} gained: only B right"
    page.locator("#change-gained").click()
    assert page.locator("#found").inner_text().split()[0] == str(gained)
    row = document(path)["images"][0]["row"]
    page = opened(path, f"#photo?row={row}")
    page.wait_for_timeout(400)
    assert page.locator(".stage canvas").count() == 2
    captions = page.locator("figure:has(.stage) figcaption").all_inner_texts()
    assert captions[0].startswith("A: ") and captions[1].startswith("B: ")
    assert "one scale for all maps" in page.locator(".scalebar").inner_text()


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(double, opened, width, scheme, tmp_path):
    _, path = double
    row = document(path)["images"][0]["row"]
    for view in ("overview", "confusion", "photos", f"photo?row={row}", "problems", "made"):
        page = opened(path, f"#{view}", width, color_scheme=scheme)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
        assert page.locator("html").get_attribute("data-theme") == scheme
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button,input,select,a')].filter(n => !(n.innerText||n.ariaLabel||n.title||n.labels?.length)).length"
        )
        assert unnamed == 0, view
        if folder := os.environ.get("LRP_SCREENSHOTS"):
            name = view.partition("?")[0]
            page.screenshot(path=f"{folder}/{name}_{width}_{scheme}.png", full_page=True)


def test_problems_and_how_it_was_made(single, opened):
    _, path = single
    page = opened(path, "#problems")
    text = page.locator("main").inner_text()
    assert "not a <b>picture</b>" in text and "its folder names no class of the model" in text
    page.goto(path.as_uri() + "#made")
    assert (
        "tiny, weights 00ff" in page.locator("main").inner_text()
        and lrp.__version__ in page.locator("main").inner_text()
    )


def test_thousands_of_rows_do_not_stall(tmp_path, opened):
    from lrp.study.predictions import Prediction, write_predictions

    rows = [
        Prediction(f"/no/{i}.jpg", "a", "ab"[i % 2], 0.5 + i % 500 / 1000, 0.5, i % 2 == 0, top5={"a": 0.5})
        for i in range(4000)
    ]
    write_predictions(tmp_path / "t.csv", rows)
    path = write_report(tmp_path / "t.csv", tmp_path / "r.html").path
    page = opened(path, "#photos")
    page.wait_for_timeout(100)
    assert page.locator("#found").inner_text() == "4,000 photos of 4,000"
    assert page.locator(".tile").count() < 150  # only those in sight exist
    page.locator(".tile").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.place") == "3999"
    assert page.locator(".tile").count() < 150
