"""A preprocessed task for the tests of cross-validation, with a fake in place of main.py and preprocess.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cross_validation import cascade_job, fold_run
from tests.scripts.cross_validation import FAKE, Study
from tests.tiny_task import make_task, write_scan


@pytest.fixture(scope="session")
def crossval_shards(tmp_path_factory) -> Path:
    """Four cases in two folds, in 2D and 3D; for what the fake does, low resolution may look as full resolution."""
    task = make_task(tmp_path_factory.mktemp("task"), num_cases=4)
    assert task.run("--nfolds", "2") == 0 and task.run("--nfolds", "2", "--dim", "2") == 0
    shutil.copytree(task.results / "77_3d", task.results / "77_3d_lowres")
    label = nib.load(task.folder / "labelsTr/scan0.nii.gz")
    for kind, factor in (("label", 1), ("empty", 0)):
        mask = np.asanyarray(label.dataobj) * np.uint8(factor)
        write_scan(task.results / f"predictions/{kind}.nii.gz", mask, label.affine)
        np.save(task.results / f"predictions/{kind}.npy", np.stack([1 - mask.T, mask.T]).astype(np.float32))
    return task.results


@pytest.fixture
def study(crossval_shards, tmp_path, monkeypatch) -> Study:
    made = Study(tmp_path / "data", tmp_path)
    shutil.copytree(crossval_shards, made.data)
    monkeypatch.setenv("FAKE_CALLS", str(made.calls_file))
    monkeypatch.setattr(fold_run, "MAIN", FAKE)
    monkeypatch.setattr(cascade_job, "PREPROCESS", FAKE)
    return made
