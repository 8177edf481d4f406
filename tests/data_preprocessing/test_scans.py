"""What --input may be, and which files make a case."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.scans import find_scans
from utils.errors import UserError


def touch(folder, *names, shape=(2, 3, 4)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), folder / name)


def named(scans):
    return {scan.case: [path.name for path in scan.images] for scan in scans}


def test_single_file_is_one_case(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    assert named(find_scans(tmp_path / "a.nii.gz", 1)) == {"a": ["a.nii.gz"]}


def test_folder_gives_its_files_sorted_and_nothing_else(tmp_path):
    touch(tmp_path, "b.nii", "a.nii.gz")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._a.nii.gz").write_text("")
    touch(tmp_path / "inner", "c.nii.gz")
    assert named(find_scans(tmp_path, 1)) == {"a": ["a.nii.gz"], "b": ["b.nii"]}


@pytest.mark.parametrize("described", [True, False])
def test_task_folder_means_its_test_images(tmp_path, described):
    touch(tmp_path / "imagesTs", "a.nii.gz")
    touch(tmp_path / "imagesTr", "b.nii.gz")
    if described:
        (tmp_path / "dataset.json").write_text("{}")
    assert named(find_scans(tmp_path, 1)) == {"a": ["a.nii.gz"]}


def test_one_channel_loses_the_ending_of_its_number(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "b_0017.nii.gz")
    assert named(find_scans(tmp_path, 1)) == {"a": ["a_0000.nii.gz"], "b_0017": ["b_0017.nii.gz"]}


def test_files_of_one_channel_each_are_grouped(tmp_path):
    touch(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    expected = {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]}
    assert named(find_scans(tmp_path, 2)) == expected
    assert named(find_scans(tmp_path / "b_0001.nii.gz", 2)) == {"b": expected["b"]}


def test_4d_files_are_cases_whatever_their_number(tmp_path):
    touch(tmp_path, "scan_0007.nii.gz", "plain.nii.gz", shape=(2, 3, 4, 2))
    assert set(named(find_scans(tmp_path, 2))) == {"scan_0007", "plain"}
    assert named(find_scans(tmp_path / "scan_0007.nii.gz", 2)) == {"scan_0007": ["scan_0007.nii.gz"]}


def test_missing_channel_is_a_problem_of_its_case_alone(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0002.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    scans = {scan.case: scan for scan in find_scans(tmp_path, 2)}
    assert scans["b"].problem is None
    assert "_0000, _0002 of a" in scans["a"].problem and "_0000 to _0001" in scans["a"].problem


def test_damaged_file_is_a_case_that_fails_later(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    (tmp_path / "b_0000.nii.gz").write_bytes(b"damaged")
    assert set(named(find_scans(tmp_path, 2))) == {"a", "b_0000"}


def test_two_files_of_one_case_are_refused(tmp_path):
    touch(tmp_path, "a.nii.gz", "a.nii")
    with pytest.raises(UserError, match="several files"):
        find_scans(tmp_path, 1)


def test_nothing_to_predict_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("")
    for path, reason in ((tmp_path, "no NIfTI"), (tmp_path / "a.png", "not a NIfTI"), (tmp_path / "x", "not exist")):
        with pytest.raises(UserError, match=reason):
            find_scans(path, 1)
