"""scripts/inference.py on raw scans: the masks of the long way, in one command, whatever happens to single scans."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import main
from data_preprocessing.planning.adapt import adapt_plan
from inference.predictor import Predictor
from inference.saved import read_probabilities
from inference.scan_run import ScanJob, ScanRun
from models.averaging import mean_of
from scripts import export_model, inference
from tests.conftest import PROJECT
from tests.models.builders import TWO_CLASSES, make_plan, make_stage, with_spacing
from tests.models.checkpoints import save_ours
from tests.tiny_task import make_task, write_scan
from utils.config import ModelConfig
from utils.errors import run_cli
from utils.files import read_json
from utils.schema import Plan


def predict(*words) -> int:
    return run_cli(lambda: inference.main([*map(str, words), "--gpus", "0"]))


def masks(folder):
    return {path.name: nib.load(path) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A preprocessed task, and a run's folder with a checkpoint of random weights for it."""
    task = make_task(tmp_path_factory.mktemp("task"), num_cases=6, shape=(14, 18, 16))
    assert task.run("--nfolds", "3") == 0
    plan = read_json(Plan, task.results / "77_3d/plan.json")
    small = adapt_plan(plan, ModelConfig(depth=2, filters=(4, 8, 8)), batch_size=None, brats=False)
    (task.results / "run/checkpoints").mkdir(parents=True)
    save_ours(task.results / "run/checkpoints/epoch=1-dice=0.5000.ckpt", small)
    return task


@pytest.fixture
def model(tmp_path):
    """Two folds of random weights, for scans of one channel."""
    plan = with_spacing(make_plan(make_stage((8, 8, 8)), TWO_CLASSES), (1.2, 1.0, 0.9))
    for fold in (0, 1):
        folder = tmp_path / f"model/fold_{fold}/checkpoints"
        folder.mkdir(parents=True)
        save_ours(folder / "last.ckpt", plan, seed=fold)
    return tmp_path / "model"


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        write_scan(tmp_path / f"scans/{name}.nii.gz", rng.uniform(1, 9, (12, 10, 14)).astype(np.float32))
    return tmp_path / "scans"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--tta", "--overlap", "0.25", "--blend", "constant")], ids=["plain", "options"])
def test_masks_are_those_of_preprocess_and_main(prepared, tmp_path, flags):
    long_way = ["--exec_mode", "predict", "--task", "77", "--data", str(prepared.results), "--results", str(tmp_path)]
    long_way += ["--fold", "0", "--ckpt_path", str(prepared.results / "run/checkpoints"), "--save_preds", *flags]
    assert main.main([*long_way, "--nfolds", "3", "--accelerator", "cpu", "--save_probabilities"]) == 0
    expected = masks(next(tmp_path.glob("preds_*")))
    words = [
        "--input",
        prepared.folder / "imagesTr",
        "--output",
        tmp_path / "masks",
        "--model",
        prepared.results / "run",
    ]
    assert predict(*words, *flags, "--save_probabilities") == 0
    found = masks(tmp_path / "masks")
    assert len(found) == 6 and len(expected) == 2
    for name, image in expected.items():
        assert len(np.unique(np.asarray(image.dataobj))) > 1
        np.testing.assert_array_equal(np.asarray(found[name].dataobj), np.asarray(image.dataobj))
        np.testing.assert_array_equal(found[name].affine, image.affine)
        array = name.replace(".nii.gz", ".npy")
        one, other = (np.load(folder / array) for folder in (next(tmp_path.glob("preds_*")), tmp_path / "masks"))
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_task_folder_means_its_unseen_scans(prepared, tmp_path):
    words = [
        "--input",
        prepared.folder,
        "--output",
        tmp_path / "masks",
        "--model",
        prepared.results / "run/checkpoints",
    ]
    assert predict(*words) == 0
    assert set(masks(tmp_path / "masks")) == {"unseen.nii.gz"}


@pytest.mark.slow
def test_mask_lies_on_the_scan_as_it_is_stored(model, tmp_path):
    affine = np.array([[0, -1.1, 0.1, 5], [0.9, 0, 0, -7], [0.05, 0, 2.0, 3], [0, 0, 0, 1]])
    array = np.random.default_rng(0).uniform(1, 9, (12, 10, 14)).astype(np.float32)
    write_scan(tmp_path / "in/a.nii.gz", array, affine)
    assert predict("--input", tmp_path / "in/a.nii.gz", "--output", tmp_path / "out", "--model", model) == 0
    scan, mask = nib.load(tmp_path / "in/a.nii.gz"), nib.load(tmp_path / "out/a.nii.gz")
    assert mask.shape == scan.shape and mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.header["sform_code"] == scan.header["sform_code"]


@pytest.mark.slow
def test_folds_are_averaged_and_saved_probabilities_can_be(model, scans, tmp_path):
    common = ["--input", scans, "--model", model, "--save_probabilities"]
    assert predict(*common, "--output", tmp_path / "both") == 0
    for fold in (0, 1):
        assert predict(*common, "--output", tmp_path / f"only{fold}", "--folds", fold) == 0
    for case in "abc":
        members = [read_probabilities(tmp_path / f"only{fold}", case) for fold in (0, 1)]
        together = read_probabilities(tmp_path / "both", case).values
        assert together.dtype == np.float32 and together.shape == (3, 14, 10, 12)
        np.testing.assert_allclose(together, mean_of([member.values for member in members]), rtol=1e-5, atol=1e-6)
        mask = np.asarray(nib.load(tmp_path / f"both/{case}.nii.gz").dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(together.argmax(axis=0), mask)


@pytest.mark.slow
def test_existing_masks_are_kept_unless_overwritten(model, scans, tmp_path, capsys):
    words = ["--input", scans, "--output", tmp_path / "out", "--model", model]
    assert predict(*words) == 0
    before = (tmp_path / "out/b.nii.gz").stat()
    assert predict(*words) == 0
    assert "0 written, 3 kept" in capsys.readouterr().out
    assert (tmp_path / "out/b.nii.gz").stat().st_mtime_ns == before.st_mtime_ns
    assert predict(*words, "--overwrite") == 0
    assert (tmp_path / "out/b.nii.gz").stat().st_mtime_ns != before.st_mtime_ns
    # Probabilities that are still missing make a case unfinished.
    capsys.readouterr()
    assert predict(*words, "--save_probabilities") == 0
    assert "3 written, 0 kept" in capsys.readouterr().out
    assert predict(*words) == 0
    assert "0 written, 3 kept" in capsys.readouterr().out


@pytest.mark.slow
def test_broken_scans_are_listed_and_the_others_written(model, scans, tmp_path, capsys):
    (scans / "b.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes()[:300])
    (scans / "no_scan.nii.gz").write_bytes(b"text")
    write_scan(scans / "nan.nii.gz", np.full((12, 10, 14), np.nan, np.float32))
    write_scan(scans / "four.nii.gz", np.ones((12, 10, 14, 2), np.float32))
    write_scan(scans / "metres.nii.gz", np.ones((12, 10, 14), np.float32), np.diag([1000.0, 1000.0, 1000.0, 1.0]))
    words = ["--input", scans, "--output", tmp_path / "out", "--model", model, "--save_probabilities"]
    assert predict(*words) == 1
    captured = capsys.readouterr()
    assert set(masks(tmp_path / "out")) == {"a.nii.gz", "c.nii.gz"}
    for name, reason in (
        ("b", "truncated"),
        ("no_scan", ""),
        ("nan", "NaN"),
        ("four", "2 channels"),
        ("metres", "wrong voxel size"),
    ):
        line = next(line for line in captured.err.splitlines() if line.startswith(f"  - {name}:"))
        assert reason in line
    outcome = json.loads((tmp_path / "out/run.json").read_text())["outcome"]
    assert outcome["written"] == 2 and set(outcome["failed"]) == {"b", "no_scan", "nan", "four", "metres"}
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_missing_channel_stops_its_case_alone(tmp_path, capsys):
    save_ours(tmp_path / "last.ckpt", make_plan(num_channels=2))
    for name in ("a_0000", "a_0001", "b_0000"):
        write_scan(tmp_path / f"in/{name}.nii.gz", np.random.default_rng(0).uniform(1, 9, (9, 9, 9)))
    assert predict("--input", tmp_path / "in", "--output", tmp_path / "out", "--model", tmp_path / "last.ckpt") == 1
    assert set(masks(tmp_path / "out")) == {"a.nii.gz"}
    assert "_0000 to _0001" in capsys.readouterr().err


@pytest.mark.slow
def test_exported_model_gives_equal_masks_in_an_empty_folder(model, scans, tmp_path):
    words = ["--input", str(scans), "--gpus", "0"]
    assert predict(*words[:2], "--output", tmp_path / "here", "--model", model) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    exporting = ["--model", str(model), "--output", str(elsewhere / "model.zip")]
    assert run_cli(lambda: export_model.main(exporting)) == 0
    for path in model.rglob("*.ckpt"):
        path.unlink()
    script = str(PROJECT / "scripts/inference.py")
    command = [sys.executable, script, *words, "--output", "masks", "--model", "model.zip"]
    subprocess.run(command, cwd=elsewhere, check=True, env=os.environ | {"PYTHONPATH": ""}, capture_output=True)
    expected, found = masks(tmp_path / "here"), masks(elsewhere / "masks")
    assert found.keys() == expected.keys() and len(found) == 3
    for name, image in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name].dataobj), np.asarray(image.dataobj))


@pytest.mark.slow
def test_memory_is_forecast_and_a_budget_changes_no_mask(model, scans, tmp_path, capsys):
    words = ["--input", scans, "--model", model]
    assert predict(*words, "--output", tmp_path / "free") == 0
    assert "memory: at most" in capsys.readouterr().out
    assert predict(*words, "--output", tmp_path / "tight", "--memory_gb", "0.000001") == 0
    for name, image in masks(tmp_path / "free").items():
        np.testing.assert_array_equal(image.dataobj, nib.load(tmp_path / "tight" / name).dataobj)


@pytest.mark.slow
def test_several_devices_share_the_scans(model, scans, tmp_path):
    job = ScanJob(
        input=scans, output=tmp_path / "two", model=model, folds=None, save_probabilities=False, overwrite=False,
        memory_gb=None,
    )  # fmt: skip
    # Two networks on the CPU stand for two GPUs.
    status, outcome = ScanRun(job, [Predictor.load(model, device="cpu") for _ in range(2)]).run()
    assert status == 0 and outcome["written"] == 3
    assert predict("--input", scans, "--output", tmp_path / "one", "--model", model) == 0
    for name, image in masks(tmp_path / "one").items():
        np.testing.assert_array_equal(image.dataobj, nib.load(tmp_path / "two" / name).dataobj)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "nothing to predict"),
        (("--input", "x", "--ckpt_path", "y"), "--output must be given"),
        (("--save_preds", "--overwrite"), "two ways"),
        (("--input", "x"), "--output, --model must be given"),
        (("--data", "x", "--dim", "3"), "--fold, --model must be given"),
        (("--input", "x", "--output", "out", "--model", "nowhere"), "nowhere does not exist"),
        (("--input", "x", "--output", "out", "--model", "MODEL"), "--input x does not exist"),
        (("--input", "SCANS", "--output", "SCANS", "--model", "MODEL"), "folder of the scans"),
        (("--input", "SCANS", "--output", "SCANS/a.nii.gz", "--model", "MODEL"), "cannot be written to"),
        (("--input", "SCANS", "--output", "out", "--model", "MODEL", "--folds", "7"), "fold_7"),
        (("--input", "SCANS", "--output", "out", "--model", "MODEL", "--memory_gb", "0"), "--memory_gb"),
        (("--input", "SCANS", "--output", "out", "--model", "MODEL", "--batch_size", "0"), "--batch_size"),
        (("--input", "SCANS", "--output", "out", "--model", "MODEL", "--overlap", "1"), "--overlap"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_in_status_2_with_the_reason(words, reason, model, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("MODEL", str(model)).replace("SCANS", str(scans)) for word in words]
    assert predict(*words) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_mask_carries_both_orientations_of_its_scan(model, tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).uniform(1, 9, (12, 10, 14)).astype(np.float32), None)
    image.set_sform(np.diag([-1.1, 0.9, 1.3, 1]), 2, update_affine=False)
    image.set_qform(np.diag([0.7, -0.8, 0.9, 1]), 1, update_affine=False)
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in/a.nii.gz")
    assert predict("--input", tmp_path / "in", "--output", tmp_path / "out", "--model", model) == 0
    scan, mask = (nib.load(tmp_path / f"{name}/a.nii.gz").header for name in ("in", "out"))
    for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x"):
        np.testing.assert_array_equal(mask[field], scan[field], err_msg=field)


@pytest.mark.slow
def test_odd_files_are_predicted_or_named(model, scans, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (scans / "b.nii.gz").rename(scans / "b.NII.GZ")
    write_scan(scans / "plane.nii.gz", rng.uniform(1, 9, (12, 10)).astype(np.float32))
    outside = rng.uniform(1, 9, (12, 10, 14)).astype(np.float32)
    outside[0] = np.nan
    write_scan(scans / "nan.nii.gz", outside)
    write_scan(scans / "inner/d.nii.gz", outside)
    for channel in range(2):
        write_scan(scans / f"two_000{channel}.nii.gz", rng.uniform(1, 9, (12, 10, 14)).astype(np.float32))
    assert predict("--input", scans, "--output", tmp_path / "out", "--model", model) == 1
    assert {name.split(".")[0] for name in masks(tmp_path / "out")} == {"a", "b", "c", "plane", "nan"}
    printed = capsys.readouterr().err
    assert "inner/" in printed and "nan.nii.gz: 140 NaN or infinite intensities are taken as 0" in printed
    assert "two: " in printed and "the model takes one" in printed
