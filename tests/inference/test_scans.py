"""What --input may be, and which files make a case."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from inference.scans import find_scans, unread_scans
from utils.errors import UserError
from utils.nifti import read_image


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
    (tmp_path / "a.jpg").write_text("")
    for path, reason in (
        (tmp_path, "holds no scan"),
        (tmp_path / "a.jpg", "is no scan"),
        (tmp_path / "x", "not exist"),
    ):
        with pytest.raises(UserError, match=reason):
            find_scans(path, 1)


def test_endings_in_capitals_and_odd_names_are_scans(tmp_path):
    touch(tmp_path, "a.nii.gz", "line\nbreak.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.NII.GZ")
    assert named(find_scans(tmp_path, 1)) == {"a": ["a.NII.GZ"], "line\nbreak": ["line\nbreak.nii.gz"]}
    assert named(find_scans(tmp_path / "a.NII.GZ", 1)) == {"a": ["a.NII.GZ"]}


def test_a_link_that_leads_nowhere_is_a_case_that_fails_later(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (scan,) = find_scans(tmp_path, 1)
    with pytest.raises(UserError, match=r"a\.nii\.gz does not exist \(a link to .*gone"):
        read_image(scan.images)


def test_what_is_not_read_is_named(tmp_path):
    touch(tmp_path, "a.nii.gz")
    touch(tmp_path / "inner", "c.nii.gz")
    assert unread_scans(tmp_path) == ["inner/ (a folder with 1 scans, such as c.nii.gz)"]
    assert unread_scans(tmp_path / "a.nii.gz") == []
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(UserError, match="left out: inner/"):
        find_scans(tmp_path, 1)


@pytest.mark.parametrize("names", [("a_0000", "a_0001"), ("a_0000", "a_0001", "a_0002", "a_0003")], ids=len)
def test_further_channels_are_a_problem_for_a_model_of_one(tmp_path, names):
    touch(tmp_path, *(f"{name}.nii.gz" for name in names), "b_0000.nii.gz", "c_0001.nii.gz", "d.nii.gz")
    scans = {scan.case: scan for scan in find_scans(tmp_path, 1)}
    assert set(scans) == {"a", "b", "c_0001", "d"}
    assert "_0000, _0001" in scans["a"].problem and "the model takes one" in scans["a"].problem
    assert [scans[case].problem for case in ("b", "c_0001", "d")] == [None] * 3
