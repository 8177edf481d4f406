"""From probabilities on the preprocessed grid to a written and scored mask."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.case_restorer import CaseRestorer
from data_preprocessing.shards import read_meta
from tests.tiny_task import make_task
from utils.errors import UserError
from utils.files import read_json
from utils.schema import Plan


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    task = make_task(tmp_path_factory.mktemp("task"))
    assert task.run("--nfolds", "2") == 0
    return task.results / "77_3d"


def restorer(shards, **options) -> CaseRestorer:
    return CaseRestorer(folder=shards, plan=read_json(Plan, shards / "plan.json"), **options)


def certain(shards, case: str) -> np.ndarray:
    """Probabilities that are sure of the label."""
    label = np.load(shards / f"{case}_y.npy")[0]
    return np.stack([label == k for k in range(2)]).astype(np.float32)


def test_certain_probabilities_give_the_label_file_back(shards, tmp_path):
    counts = restorer(shards, output=tmp_path).restore("scan0", [certain(shards, "scan0")])
    meta = read_meta(shards, "scan0")
    written, label = nib.load(tmp_path / "scan0.nii.gz"), nib.load(meta.label)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(label.dataobj))
    assert counts.tolist() == [[np.count_nonzero(np.asanyarray(label.dataobj)), 0, 0]]
    assert [path.name for path in tmp_path.iterdir()] == ["scan0.nii.gz"]


def test_probabilities_lie_in_the_voxel_order_of_the_file(shards, tmp_path):
    restorer(shards, output=tmp_path, save_probabilities=True).restore("scan1", [certain(shards, "scan1")])
    probabilities = np.load(tmp_path / "scan1.npy")
    mask = np.asanyarray(nib.load(tmp_path / "scan1.nii.gz").dataobj)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(probabilities.argmax(axis=0).transpose(2, 1, 0), mask)


def test_without_an_output_folder_nothing_is_written_but_scored(shards):
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    empty = np.zeros_like(certain(shards, "scan2"))
    empty[0] = 1
    counts = restorer(shards).restore("scan2", [empty])
    assert counts[0, 0] == 0 and counts[0, 2] > 0
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_labels_that_are_needed_are_found_missing_before_the_work(tmp_path):
    task = make_task(tmp_path)
    assert task.run("--nfolds", "2") == 0
    restoring = restorer(task.results / "77_3d")
    cases = ("scan0", "scan1", "scan2")
    restoring.require_labels(cases)
    labels = [Path(read_meta(restoring.folder, case).label) for case in cases]
    labels[0].unlink()
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), labels[1])
    labels[2].write_bytes(b"no scan")
    with pytest.raises(UserError, match="3 of 3 cases cannot be scored") as caught:
        restoring.require_labels(cases)
    for part in (f"{labels[0]} does not exist", "has (5, 4, 3) voxels, its scan had", "scan2", "preprocess.py"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"has shape .* run preprocess\.py again"):
        restoring.restore("scan1", [certain(restoring.folder, "scan1")])
