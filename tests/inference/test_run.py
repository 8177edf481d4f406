"""Ensembles of configurations on many scans: interrupted, with broken scans, with little disk."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from inference.decision import PostProcessing
from inference.predictor import Predictor
from inference.run import in_portions
from tests.models.checkpoints import save_ours
from tests.scripts.trained import PLANS, decide, masks, predict, train, write_scans
from tests.tiny_task import write_scan


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans")


@pytest.mark.slow
def test_scans_are_predicted_by_an_ensemble_with_a_cascade_and_go_on_after_a_kill(tmp_path, scans, monkeypatch):
    train(tmp_path, "2d", "3d_lowres", "3d_cascade_fullres", folds=(0,))
    best = decide(tmp_path, "2d", "3d_cascade_fullres", post=PostProcessing(foreground=True))
    words = ["--input", scans, "--model", best, "--output", tmp_path / "masks", "--save_probabilities"]

    def die(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("inference.run.saved_classes", die)
        assert predict(*words) == 130
    [hidden] = (tmp_path / "masks").glob(".ensemble-*")
    assert {path.name for path in hidden.iterdir()} == {"2d", "3d_cascade_fullres"}
    assert predict(*words) == 0
    assert not hidden.exists()
    predictor = Predictor.load(best, device="cpu")
    for name, mask in masks(tmp_path / "masks").items():
        prediction = predictor.predict_file(scans / name)
        np.testing.assert_array_equal(mask.T, prediction.mask)
    record = json.loads((tmp_path / "masks/run.json").read_text())
    assert record["outcome"]["written"] == 2 and (tmp_path / "masks/a.npy").is_file()
    assert predict(*words) == 0
    record = json.loads((tmp_path / "masks/run.json").read_text())
    assert record["outcome"] == {"scans": 2, "written": 0, "kept": 2, "failed": {}}


@pytest.mark.slow
def test_nothing_is_taken_from_a_killed_run_of_other_weights_or_scans(tmp_path, scans, monkeypatch):
    train(tmp_path, "2d", "3d_fullres", folds=(0,))
    words = ["--input", scans, "--model", decide(tmp_path, "2d", "3d_fullres"), "--output", tmp_path / "masks"]

    def die(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("inference.run.saved_classes", die)
        assert predict(*words) == 130
    # The decision's folder stays as it was; a member is trained again, and a scan is replaced.
    save_ours(tmp_path / "04_2d/fold_0/checkpoints/last.ckpt", PLANS["2d"], seed=77)
    image = np.random.default_rng(9).uniform(1, 9, (12, 10, 14)).astype(np.float32)
    write_scan(scans / "a.nii.gz", image)
    assert predict(*words) == 0
    predictor = Predictor.load(tmp_path / "04_best", device="cpu")
    for name, mask in masks(tmp_path / "masks").items():
        np.testing.assert_array_equal(mask.T, predictor.predict_file(scans / name).mask)


@pytest.mark.slow
def test_one_broken_scan_does_not_stop_the_ensemble(tmp_path, scans, capsys):
    train(tmp_path, "2d", "3d_fullres", folds=(0,))
    (scans / "c.nii.gz").write_bytes(b"no image")
    best = decide(tmp_path, "2d", "3d_fullres")
    assert predict("--input", scans, "--model", best, "--output", tmp_path / "masks") == 1
    assert "c.nii.gz" in capsys.readouterr().err and set(masks(tmp_path / "masks")) == {"a.nii.gz", "b.nii.gz"}


@pytest.mark.parametrize(
    ("limit", "portions"),
    [(10, [[3, 4, 2], [9, 1], [1]]), (1, [[3], [4], [2], [9], [1], [1]]), (99, [[3, 4, 2, 9, 1, 1]])],
)
def test_portions_hold_no_more_than_the_limit_or_one_scan(limit, portions):
    assert in_portions([3, 4, 2, 9, 1, 1], lambda size: size, limit) == portions
    assert in_portions([], lambda size: size, limit) == []


@pytest.mark.slow
def test_little_disk_changes_no_mask_and_too_little_fails_the_scan(tmp_path, scans, monkeypatch, capsys):
    train(tmp_path, "2d", "3d_fullres", folds=(0,))
    words = ["--input", scans, "--model", decide(tmp_path, "2d", "3d_fullres")]
    assert predict(*words, "--output", tmp_path / "much") == 0
    # Two configurations, three classes, four bytes: room for one scan at a time, then for none.
    needed = 2 * 3 * 4 * 12 * 10 * 14
    usage = shutil.disk_usage(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert predict(*words, "--output", tmp_path / "little") == 0
    assert capsys.readouterr().out.count("2d:") == 2
    for name, mask in masks(tmp_path / "much").items():
        np.testing.assert_array_equal(mask, masks(tmp_path / "little")[name])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert predict(*words, "--output", tmp_path / "none") == 1
    assert "of disk" in capsys.readouterr().err and not masks(tmp_path / "none")


@pytest.mark.slow
def test_what_killed_runs_left_is_removed_and_what_others_own_is_not(tmp_path, scans):
    train(tmp_path, "2d", "3d_fullres", folds=(0,))
    out = tmp_path / "masks"
    (out / ".ensemble-old/2d").mkdir(parents=True)
    for name in (".tmp-0123456789abcdef.npy", ".tmp-x.gz", ".tmp-0123456789abcdef.ckpt", "mine.txt", ".mine"):
        (out / name).write_bytes(b"left")
    words = ["--input", scans, "--output", out]
    for model in (decide(tmp_path, "2d", "3d_fullres"), tmp_path / "04_2d"):
        (out / ".ensemble-old/2d").mkdir(parents=True, exist_ok=True)
        assert predict(*words, "--model", model) == 0
        assert {path.name for path in out.iterdir()} == {
            ".tmp-0123456789abcdef.ckpt", "mine.txt", ".mine", "a.nii.gz", "b.nii.gz", "masks.json", "run.json"
        }  # fmt: skip
