"""A page in a real browser: it opens from disk, asks for nothing, shows the clicked case, and masks where they are."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from report.palette import COLOURS, rgb
from report.views import Room
from report.writing import write_report
from tests.report import folders
from tests.report.browser import Browser, find_browser

WHERE = "document.getElementById('view-where').textContent"
CANVAS = "document.getElementById('view-canvas')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    find_browser()
    with Browser(tmp_path_factory.mktemp("profile"), width=800, height=640) as opened:
        yield opened


def choose(browser, identifier: str, value: str, event: str = "input") -> None:
    browser.run(f"(() => {{ const it = document.getElementById('{identifier}'); it.value = '{value}'; "
                f"it.dispatchEvent(new Event('{event}', {{bubbles: true}})); }})()")  # fmt: skip


def picture(browser) -> np.ndarray:
    """Pixels (H, W, 3) of the canvas."""
    browser.run(f"{CANVAS}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    x, y, width, height = browser.run(f"(() => {{ const b = {CANVAS}.getBoundingClientRect(); "
                                      "return [b.x, b.y, b.width, b.height]; })()")  # fmt: skip
    whole = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB")).astype(int)
    return whole[round(y) : round(y + height), round(x) : round(x + width)]


def extent(inside: np.ndarray) -> list[int]:
    """First and last row and column of pixels that are not strays."""
    rows, columns = (np.flatnonzero(inside.sum(axis=axis) > 5) for axis in (1, 0))
    return [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]


def place_of_the_mask(pixels: np.ndarray) -> list[float]:
    """Extent of the first structure's colour as shares of the scan's extent: from the top, from the left."""
    coloured = np.abs(pixels - rgb(COLOURS[0])).max(axis=-1) < 12
    top, bottom, left, right = extent(pixels.sum(axis=-1) > 30)
    found = np.array(extent(coloured), float) - [top, top, left, left]
    return (found / [bottom - top, bottom - top, right - left, right - left]).tolist()


@pytest.mark.slow
def test_page_in_a_browser(browser, tmp_path):
    folder = folders.make_scored(tmp_path)
    folders.write_volume(tmp_path / "data/imagesTr/plain_0001.nii.gz", folders.scan(2) // 50)
    written = write_report(folder)
    browser.requests.clear()
    browser.open(written.path)
    browser.run("document.getElementById('viewer').scrollIntoView()")
    browser.wait_for(f"{CANVAS}.dataset.shown === '0' || {CANVAS}.dataset.failed")
    assert browser.run(f"{CANVAS}.dataset.failed") is None
    assert browser.run("document.querySelector('tr.shown').textContent").startswith("plain")

    # A click anywhere on the row of the other case.
    browser.click("tr[data-shows='1'] td:last-child")
    browser.wait_for(f"{CANVAS}.dataset.shown === '1'")
    assert browser.run("document.querySelector('tr.shown').textContent").startswith(folders.EVIL)
    assert browser.run("document.getElementById('view-case').selectedOptions[0].textContent").startswith(folders.EVIL)

    choose(browser, "view-planes", "axial")
    choose(browser, "view-opacity", "100")
    # The mask has x from 4 to 10 of 20 (right is right) and y from 4 to 18 of 24 (anterior is above).
    np.testing.assert_allclose(place_of_the_mask(picture(browser)), [6 / 24, 20 / 24, 4 / 20, 10 / 20], atol=0.03)
    browser.click("input[value=label]")
    np.testing.assert_allclose(place_of_the_mask(picture(browser)), [6 / 24, 20 / 24, 6 / 20, 12 / 20], atol=0.03)
    browser.click("input[value=none]")
    assert not (np.abs(picture(browser) - rgb(COLOURS[0])).max(axis=-1) < 12).any()

    # The second channel, which one scan has; the crosshair stays where it was.
    choose(browser, "view-case", "0", "change")
    browser.wait_for(f"{CANVAS}.dataset.shown === '0' && {CANVAS}.dataset.channel === '0'")
    where = browser.run(WHERE)
    choose(browser, "view-channel", "1", "change")
    browser.wait_for(f"{CANVAS}.dataset.channel === '1'")
    assert re.sub("intensity.*", "", browser.run(WHERE)) == re.sub("intensity.*", "", where) != where
    first, second = (float(re.search(r"intensity ([\d.]+)", text)[1]) for text in (where, browser.run(WHERE)))
    assert second < 3 < 80 < first
    choose(browser, "view-case", "1", "change")
    browser.wait_for(f"{CANVAS}.dataset.shown === '1'")
    assert browser.run(f"{CANVAS}.dataset.channel") == "0"

    # By keyboard: from the second row's button to the first one's, and there Enter.
    browser.run("document.querySelector(\"tr[data-shows='1'] .show\").focus()")
    browser.press("ArrowUp")
    browser.press("Enter")
    browser.wait_for(f"{CANVAS}.dataset.shown === '0'")

    assert [address for address in browser.requests if not address.startswith(("data:", "blob:"))] == [
        written.path.as_uri()
    ]
    assert browser.problems == []


@pytest.mark.slow
def test_a_row_of_the_doubt_table_opens_the_viewer_at_that_scan(browser, tmp_path):
    folder = folders.make_predicted(tmp_path)
    folders.write_doubt(folder, "large", 2.5, True)
    folders.write_doubt(folder, folders.EVIL, 0.5, False)
    browser.open(write_report(folder).path)
    browser.click("#doubt tr[data-shows='2'] td:last-child")
    browser.wait_for(f"{CANVAS}.dataset.shown === '2' || {CANVAS}.dataset.failed")
    # That the viewer came into sight by this click must not bring its first case after all.
    browser.run("new Promise(done => setTimeout(done, 500))")
    marked = "[...document.querySelectorAll('tr.shown')].map(row => row.cells[0].textContent)"
    assert browser.run(marked) == [browser.run("document.querySelector('#doubt tr.shown th').textContent")] * 2
    assert browser.run(f"{CANVAS}.getBoundingClientRect().top < innerHeight")
    assert browser.problems == []


@pytest.mark.slow
def test_tables_sort_and_search(browser, tmp_path):
    browser.open(write_report(folders.make_cross_validation(tmp_path)).path)
    rows = "[...document.querySelectorAll('#all-cases tbody tr')]"
    texts = f"{rows}.filter(row => !row.hidden).map(row => row.cells[0].textContent + ' ' + row.cells[1].textContent)"
    assert browser.run(texts)[0] == "case_00 0.800"
    browser.click("#all-cases thead th:nth-child(2) button")
    browser.click("#all-cases thead th:nth-child(2) button")
    assert browser.run(texts)[0].endswith("0.850")
    assert browser.run("document.querySelector('#all-cases th:nth-child(2)').ariaSort") == "descending"
    assert browser.problems == []


@pytest.mark.slow
def test_search_hides_the_other_rows(browser, tmp_path):
    folder = folders.make_predicted(tmp_path)
    for number in range(10):
        folders.write_volume(folder / f"more_{number}.nii.gz", folders.block(slice(2, 5)))
    browser.open(write_report(folder, Room(viewer_cases=0)).path)
    browser.run("(() => { const it = document.querySelector('.search'); it.value = 'MORE_7'; "
                "it.dispatchEvent(new Event('input')); })()")  # fmt: skip
    shown = "[...document.querySelectorAll('#scans tbody tr:not([hidden]) th')].map(cell => cell.textContent)"
    assert browser.run(shown) == ["more_7"] and browser.run("document.querySelector('.hits').textContent") == "1 of 13"
