"""The page of nnunet serve in a real browser: a scan is sent, its mask is shown, nobody else is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from inference.predictor import Predictor
from tests.report.browser import Browser
from tests.serving.service import running, save_calibrated, save_scan

pytestmark = pytest.mark.slow


def open_page(browser: Browser, url: str) -> None:
    browser.send("Page.navigate", url=url)
    browser.wait_for("document.readyState === 'complete' && location.protocol === 'http:'")


def choose(browser: Browser, *files: Path) -> None:
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    field = browser.send("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    browser.send("DOM.setFileInputFiles", nodeId=field, files=[str(path) for path in files])


def test_page_shows_the_mask_and_asks_nobody_else(tmp_path):
    predictor = Predictor.load(save_calibrated(tmp_path / "model"), device="cpu")
    scan = save_scan(tmp_path / "anna.nii.gz", (24, 20, 22))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    token = "a token of some length"
    with running(predictor, token) as client, Browser(tmp_path / "profile") as browser:
        open_page(browser, client.url)
        browser.wait_for("!document.querySelector('#token-row').hidden")
        browser.run(f"document.querySelector('#token').value = {json.dumps(token)}")
        browser.problems.clear()
        choose(browser, scan)
        browser.click("#predict")
        browser.wait_for("document.querySelector('#canvas').dataset.shown === '1'")
        rows = browser.run("[...document.querySelectorAll('#volumes tr')].map(row => row.innerText)")
        assert [row.split()[0] for row in rows] == ["anterior", "posterior"]
        record = json.loads(client.predict(scan.read_bytes(), answer="json")[1])
        assert [float(row.split()[-1]) for row in rows] == [round(e["volume_ml"], 3) for e in record["structures"]]
        assert browser.run("document.querySelector('#doubt').innerText").startswith(f"{record['doubt']['score']:.2f}, ")
        remarks = browser.run("[...document.querySelectorAll('#remarks li')].map(line => line.innerText)")
        assert remarks == record["doubt"]["remarks"] != []
        mask = "fetch(document.querySelector('#download').href).then(r => r.arrayBuffer()).then(b => b.byteLength)"
        assert browser.run(mask) == len(client.predict(scan.read_bytes())[1])
        assert not browser.problems
        choose(browser, broken)
        browser.click("#predict")
        browser.wait_for("document.querySelector('#state').className === 'bad'")
        assert "file 1 is not a NIfTI file" in browser.run("document.querySelector('#state').innerText")
        asked = [url for url in browser.requests if not url.startswith(("data:", "blob:", "about:"))]
    assert asked and all(url.startswith(client.url) for url in asked)
    assert not any("anna" in url for url in asked)
