"""The phantom is a sound task, the same for each seed, and no easy one."""

from __future__ import annotations

import dataclasses
import filecmp
import stat

import numpy as np
import pytest

from data_preprocessing.dataset.checks import check_case
from data_preprocessing.dataset.description_file import load_dataset
from data_preprocessing.dataset.phantom import FIELD_OF_VIEW_MM, LABELS, make_case, write_phantom
from utils.errors import UserError
from utils.nifti import read_image, read_label


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_the_task_is_complete_and_sound(tmp_path):
    folder = write_phantom(tmp_path / "new", num_train=3, num_test=2, seed=1)
    dataset = load_dataset(tmp_path / "new", "00")
    assert dataset.folder == folder and dataset.labels.names == LABELS
    assert [case.case for case in dataset.training + dataset.test] == [f"phantom_{n:03d}" for n in range(5)]
    for case in dataset.training:
        assert check_case(case, read_image(case.images), read_label(case.label), dataset) == []
    for case in dataset.test:
        label = folder / "labelsTs" / case.images[0].name
        assert check_case(case, read_image(case.images), read_label(label), dataset) == []


@pytest.mark.slow
def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path):
    first, again, other = (
        write_phantom(tmp_path / name, num_train=2, num_test=1, seed=seed) for name, seed in zip("abc", (5, 5, 6))
    )
    assert files_of(first) == files_of(again) == files_of(other)
    assert filecmp.cmpfiles(first, again, files_of(first), shallow=False)[0] == files_of(first)
    assert not filecmp.cmpfiles(first, other, files_of(first), shallow=False)[0]


@pytest.mark.slow
def test_the_files_hold_what_was_drawn_on_its_grid(tmp_path):
    folder = write_phantom(tmp_path, num_train=4, num_test=0, seed=2)
    for number in range(4):
        drawn, name = make_case(2, number), f"phantom_{number:03d}.nii.gz"
        image = read_image([folder / "imagesTr" / name])
        np.testing.assert_array_equal(image.array[0], drawn.image)
        np.testing.assert_array_equal(read_label(folder / "labelsTr" / name).array, drawn.label)
        assert dataclasses.replace(image.geometry, forms=None) == drawn.geometry
        extent_mm = np.array(drawn.image.shape) * image.spacing_mm
        np.testing.assert_allclose(extent_mm, FIELD_OF_VIEW_MM, rtol=0.08)


@pytest.mark.slow
def test_spacing_and_orientation_vary_and_each_structure_is_in_each_case():
    cases = [make_case(3, number) for number in range(8)]
    assert len({case.geometry.affine for case in cases}) == 8
    assert all((np.bincount(case.label.ravel(), minlength=4) > 150).all() for case in cases)
    assert all((case.image >= 0).all() and (case.image[0, 0, 0] == 0) for case in cases)


def test_no_threshold_separates_the_organ():
    case = make_case(0, 0)
    organ = case.label == 1
    low, high = np.percentile(case.image[organ], (5, 95))
    found = (case.image >= low) & (case.image <= high)
    assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) < 0.8
    inside, around = case.image[organ].mean(), case.image[(case.label == 0) & (case.image > 0)].mean()
    assert inside > 1.3 * around


def test_a_task_that_is_there_is_left_alone(tmp_path):
    folder = write_phantom(tmp_path, num_train=1, num_test=0)
    before = (folder / "dataset.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="is there already"):
        write_phantom(tmp_path, num_train=1, num_test=0)
    assert (folder / "dataset.json").stat().st_mtime_ns == before


def test_nothing_is_left_of_a_task_that_failed_and_others_may_read_one_that_did_not(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("data_preprocessing.dataset.phantom.write_volume", fail)
        with pytest.raises(UserError, match="No space left"):
            write_phantom(tmp_path, num_train=1, num_test=0)
    assert list(tmp_path.iterdir()) == []
    folder = write_phantom(tmp_path, num_train=1, num_test=0)
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / "imagesTr").stat().st_mode)
