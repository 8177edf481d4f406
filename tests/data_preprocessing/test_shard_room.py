from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.shard_room import require_shard_room, shard_bytes
from data_preprocessing.shards import shard_paths
from tests.tiny_task import make_task, write_scan
from utils.errors import UserError
from utils.files import read_json
from utils.schema import Fingerprint, Plan


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    task = make_task(tmp_path_factory.mktemp("task"))
    assert task.run("--nfolds", "2") == 0
    return task.results / "77_3d"


def read(folder):
    return read_json(Fingerprint, folder / "fingerprint.json"), read_json(Plan, folder / "plan.json")


def test_the_forecast_is_the_size_of_the_voxels(shards):
    fingerprint, plan = read(shards)
    for case, shape, spacing in zip(fingerprint.cases, fingerprint.shapes_after_crop, fingerprint.spacings_mm):
        paths = shard_paths(shards, case)
        headers = 2 * 128
        assert shard_bytes(shape, spacing, plan) == sum(p.stat().st_size for p in (paths.image, paths.label)) - headers


def test_shards_that_do_not_fit_are_refused_with_both_numbers(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.room.free_bytes", lambda folder: 2000)
    fingerprint, plan = read(shards)
    with pytest.raises(UserError, match=r"the shards of 3 cases need .* MB and 0\.00 MB are free"):
        require_shard_room(tmp_path / "new", fingerprint, plan)
    require_shard_room(shards, fingerprint, plan)  # They are there.


def test_preprocessing_says_it_before_it_writes(tmp_path, monkeypatch, capsys):
    task = make_task(tmp_path)
    monkeypatch.setattr("utils.room.free_bytes", lambda folder: 2000)
    assert task.run("--nfolds", "2") == 2
    assert "are free there" in capsys.readouterr().err
    assert not (task.results / "77_3d").exists()


@pytest.mark.parametrize("mode", ["val", "test"])
def test_preprocessing_says_it_of_scans_to_predict_too(tmp_path, monkeypatch, capsys, mode):
    task = make_task(tmp_path)
    assert task.run("--nfolds", "2") == 0
    monkeypatch.setattr("utils.room.free_bytes", lambda folder: 2000)
    assert task.run("--exec_mode", mode) == 2
    assert "are free there" in capsys.readouterr().err
    assert not (task.results / f"77_3d/{mode}").exists()


@pytest.mark.parametrize("voxel_mm", [1e-4, 1e6])
def test_preprocessing_names_the_case_whose_header_cannot_be(tmp_path, capsys, voxel_mm):
    task = make_task(tmp_path, num_cases=4)
    for name in ("imagesTr/scan2.nii.gz", "labelsTr/scan2.nii.gz"):
        scan = nib.load(task.folder / name)
        array = np.asanyarray(scan.dataobj)
        write_scan(task.folder / name, array, np.diag([voxel_mm, voxel_mm, voxel_mm, 1]))
    assert task.run("--nfolds", "2") == 2
    said = capsys.readouterr().err
    assert "1 of 4 cases" in said and "scan2: " in said and "wrong voxel size" in said and "GB" not in said
    assert not (task.results / "77_3d").exists()
