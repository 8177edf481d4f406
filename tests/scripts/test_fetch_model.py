"""scripts/fetch_model.py: a model is there whole and checked, or not at all. scripts/info.py: what it is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference import fetching
from inference.archive import load_model, read_archive
from inference.fetching import fetch_model
from scripts import export_model, info
from scripts import fetch_model as command
from tests.file_server import ONCE, FileServer, serving
from tests.models.builders import make_plan
from tests.models.checkpoints import save_ours
from utils.errors import UserError, run_cli


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "runs/fold_0").mkdir(parents=True)
    save_ours(tmp_path / "runs/fold_0/last.ckpt", make_plan())
    words = ["--model", tmp_path / "runs", "--output", tmp_path / "liver.zip", "--note", "made for a test"]
    assert export_model.main([*map(str, words)]) == 0
    return tmp_path / "liver.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NNUNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


@pytest.fixture
def server(model) -> Iterator[FileServer]:
    with serving(model.read_bytes(), "/models/liver%20one.zip") as server:
        yield server


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(source: object, sha256: str | None = None, most_bytes: int = 10**9) -> Path:
    return fetch_model(str(source), sha256=sha256, most_bytes=most_bytes, report=lambda *_: None, patience=ONCE)[0]


def test_a_model_from_a_server_lies_in_the_cache_and_is_not_fetched_again(server, model, cache):
    path = fetch(server.url, digest(model))
    assert path.parent == cache and path.name == f"liver_one-{digest(model)}.zip"
    assert path.read_bytes() == model.read_bytes()
    assert fetch(server.url, f"SHA256:{digest(model).upper()}") == path and server.spans == [None]
    path.write_bytes(b"damaged since")
    assert fetch(server.url, digest(model)).read_bytes() == model.read_bytes()


def test_a_model_that_is_there_is_read_once(server, model, monkeypatch):
    path, read = fetch(server.url, digest(model)), []
    monkeypatch.setattr(fetching, "_sha256", lambda file: read.append(file) or digest(file))
    assert fetch(server.url, digest(model)) == path and read == [path]


def test_a_transfer_that_broke_off_is_continued(server, model, cache):
    server.cuts = [500]
    with pytest.raises(UserError, match="run the same command again"):
        fetch(server.url, digest(model))
    assert fetch(server.url, digest(model)).read_bytes() == model.read_bytes()
    assert server.spans == [None, "bytes=500-"]


def test_a_model_that_was_replaced_between_two_tries_is_not_stitched_together(server, model, cache):
    server.cuts, server.state = [500], {"ETag": '"first"'}
    with pytest.raises(UserError, match="run the same command again to continue"):
        fetch(server.url)
    words = [
        "--model",
        model.parent / "runs",
        "--output",
        model.with_name("b.zip"),
        "--note",
        "another of the same size",
    ]
    assert export_model.main([*map(str, words)]) == 0
    server.content, server.state = model.with_name("b.zip").read_bytes(), {"ETag": '"second"'}
    assert fetch(server.url).read_bytes() == server.content
    assert server.asked == [(None, None), ("bytes=500-", '"first"')] and len(list(cache.iterdir())) == 1


def test_a_stream_without_a_length_that_ends_early_is_no_model(server, cache):
    server.cuts, server.says_length = [500], False
    with pytest.raises(UserError, match=r"is no model: it "):
        fetch(server.url)
    assert not list(cache.iterdir())


def test_of_two_at_once_one_fetches_and_the_other_takes_what_is_there(server, model, cache):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch(server.url, digest(model)), range(2))
    assert first == second and first.read_bytes() == model.read_bytes()
    assert server.spans == [None] and list(cache.iterdir()) == [first]


def test_a_full_disk_is_said_and_leaves_nothing(model, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"No space left on device; make room, or set NNUNET_CACHE"):
        fetch(model)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_model_from_a_file(model, cache, form, capsys):
    assert run_cli(lambda: command.main([form.format(model)])) == 0
    said = capsys.readouterr().out
    assert digest(model) in said and "not compared" in said
    [path] = cache.glob("*.zip")
    assert read_archive(path).plan.dataset == "Task04_Test" and str(path) in said


REFUSED = [
    (lambda m: (m, "0" * 64, 10**9), "not 0000"),
    (lambda m: (m, "abc", 10**9), "64 hexadecimal digits"),
    (lambda m: (m, None, 1000), "raise --max_gb"),
    (lambda m: (m.with_name("nothing.zip"), None, 10**9), "cannot be read"),
    (lambda m: (m.parent, None, 10**9), "cannot be read"),
    (lambda m: ("ftp://example.org/m.zip", None, 10**9), "ftp:// is not fetched from"),
    (lambda m: (f"file://elsewhere{m}", None, 10**9), "another machine"),
    (lambda m: (m.parent / "runs/fold_0/last.ckpt", None, 10**9), "is no model"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused_leaves_nothing(model, cache, make, message):
    source, sha256, most = make(model)
    with pytest.raises(UserError, match=message):
        fetch(source, sha256, most)
    assert not cache.exists() or not list(cache.iterdir())


def test_what_a_server_sends_is_limited_and_checked(server, model, cache):
    for sha256, most, message in ((None, 1000, "raise --max_gb"), ("0" * 64, 10**9, "SHA-256")):
        with pytest.raises(UserError, match=message):
            fetch(server.url, sha256, most)
        assert not list(cache.iterdir())


def test_info_shows_the_card_of_the_zip(model, capsys):
    assert info.main([str(model)]) == 0
    said = capsys.readouterr().out
    for part in (
        "Task04_Test",
        "fold_0",
        "anterior = 1, posterior = 2",
        "made for a test",
        "8x8x8 voxels",
        "not known",
    ):
        assert part in said
    assert info.main([str(model), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["channels"] == ["MRI 0"] and "Apache" in card["licence"]
    # Without a card, as zips of earlier versions are, and for what is no zip.
    assert info.main([str(model.parent / "runs")]) == 0
    assert "Task04_Test" in capsys.readouterr().out
    assert run_cli(lambda: info.main([str(model.with_name("nothing.zip"))])) == 2


@pytest.mark.slow
def test_the_card_has_the_dice_of_the_decision(tmp_path, capsys):
    from tests.scripts.trained import decide, train

    best = decide(train(tmp_path, "3d_fullres"), "3d_fullres")
    words = ["--model", best, "--output", tmp_path / "m.zip"]
    assert export_model.main([*map(str, words)]) == 0
    assert load_model(tmp_path / "m.zip").plan.dataset == "Task04_Test"
    capsys.readouterr()
    assert info.main([str(tmp_path / "m.zip")]) == 0
    assert "2d 0.5000" in capsys.readouterr().out
