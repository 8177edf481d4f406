"""Ensembles of configurations on many scans: interrupted, with broken scans, with little disk."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from inference.configuration_predictor import ConfigurationPredictor
from inference.decision import PostProcessing
from inference.predictor import Predictor
from tests.models.checkpoints import save_ours
from tests.scripts.trained import PLANS, decide, masks, predict, train, write_scans
from tests.tiny_task import write_scan


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans")


def interrupt_at(number: int):
    """`ConfigurationPredictor.stream`, interrupted when it is called for the time `number`."""
    stream, calls = ConfigurationPredictor.stream, []

    def interrupted(self, prepared, *rest):
        calls.append(prepared)
        if len(calls) == number:
            raise KeyboardInterrupt
        return stream(self, prepared, *rest)

    return interrupted


@pytest.mark.slow
def test_scans_are_predicted_by_an_ensemble_with_a_cascade_and_go_on_after_a_kill(tmp_path, scans, monkeypatch, capsys):
    train(tmp_path, "2d", "3d_lowres", "3d_cascade_fullres", folds=(0,))
    best = decide(tmp_path, "2d", "3d_cascade_fullres", post=PostProcessing(foreground=True))
    words = ["--input", scans, "--model", best, "--output", tmp_path / "masks", "--save_probabilities"]

    with monkeypatch.context() as patched:
        # The second scan's cascade, after three calls for the first scan and one for this one's 2d.
        patched.setattr(ConfigurationPredictor, "stream", interrupt_at(5))
        assert predict(*words) == 130
    # What is finished is finished, with the probabilities; of the rest nothing is left.
    assert sorted(masks(tmp_path / "masks")) == ["a.nii.gz"] and (tmp_path / "masks/a.npy").is_file()
    said = capsys.readouterr().out
    # Nothing is wrong with the scan.
    assert "[2/2] b: interrupted" in said and "failed" not in said
    assert predict(*words) == 0
    assert "1 written, 1 kept" in capsys.readouterr().out
    assert not list((tmp_path / "masks").glob(".*"))
    predictor = Predictor.load(best, device="cpu")
    for name, mask in masks(tmp_path / "masks").items():
        prediction = predictor.predict_file(scans / name)
        np.testing.assert_array_equal(mask.T, prediction.mask)
    record = json.loads((tmp_path / "masks/run.json").read_text())
    assert record["outcome"]["written"] == 1 and (tmp_path / "masks/a.npy").is_file()
    assert predict(*words) == 0
    record = json.loads((tmp_path / "masks/run.json").read_text())
    assert record["outcome"] == {"scans": 2, "written": 0, "kept": 2, "failed": {}}


@pytest.mark.slow
def test_nothing_is_taken_from_a_killed_run_of_other_weights_or_scans(tmp_path, scans, monkeypatch):
    train(tmp_path, "2d", "3d_fullres", folds=(0,))
    words = ["--input", scans, "--model", decide(tmp_path, "2d", "3d_fullres"), "--output", tmp_path / "masks"]

    with monkeypatch.context() as patched:
        patched.setattr(ConfigurationPredictor, "stream", interrupt_at(4))
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


@pytest.mark.slow
def test_a_disk_without_room_for_the_sum_fails_the_scan(tmp_path, scans, monkeypatch, capsys):
    train(tmp_path, "2d", "3d_fullres", folds=(0,))
    words = ["--input", scans, "--model", decide(tmp_path, "2d", "3d_fullres")]
    # Three classes, four bytes: room for one scan, however many configurations there are; then for none.
    needed = 3 * 4 * 12 * 10 * 14
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert predict(*words, "--output", tmp_path / "little") == 0
    capsys.readouterr()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert predict(*words, "--output", tmp_path / "none") == 1
    printed = capsys.readouterr().err
    assert "2 of 2 scans could not be predicted:" in printed and "the probabilities of a need 0.02 MB" in printed
    assert not masks(tmp_path / "none")


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
            ".tmp-0123456789abcdef.ckpt", "mine.txt", ".mine", "a.nii.gz", "b.nii.gz", "masks.json", "report.html",
            "run.json", "a.doubt.json", "b.doubt.json", "doubt.csv",
        }  # fmt: skip
