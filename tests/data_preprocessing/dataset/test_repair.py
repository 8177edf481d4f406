"""A repaired copy is sound, says what it changed, and leaves its source alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.dataset.description_file import load_dataset, read_description
from data_preprocessing.dataset.findings import problems_of
from data_preprocessing.dataset.repair import CaseRepair, write_repaired_copy
from data_preprocessing.dataset.verification import compare_cases, survey_cases
from data_preprocessing.runner import Workers
from tests.tilted import NOISE, save_tilted, tilted
from tests.tiny_task import SHAPE_XYZ, Task, make_task, write_scan
from utils.errors import UserError
from utils.nifti import read_image, read_label


@pytest.fixture
def task(tmp_path) -> Task:
    made = make_task(tmp_path)
    write_scan(made.folder / "imagesTs/unseen.nii.gz", np.full(SHAPE_XYZ, 7.5, np.float32))
    return made


def repair(task: Task, target: Path) -> dict[str, CaseRepair]:
    """Repairs by case; what was written is checked to be sound."""
    before = {path: path.read_bytes() for path in task.data.rglob("*") if path.is_file()}
    description = read_description(task.data, "77")
    with Workers(1) as workers:
        surveys = survey_cases(description.dataset, workers)
        repairs = write_repaired_copy(description, surveys, target, workers)
        dataset = load_dataset(target, "77")
        surveys = survey_cases(dataset, workers)
    findings = [*(f for survey in surveys for f in survey.findings), *compare_cases(surveys, dataset)]
    assert problems_of(findings) == []
    assert {path: path.read_bytes() for path in task.data.rglob("*") if path.is_file()} == before
    kept = [repair.files.case for repair in repairs if not repair.left_out]
    assert kept == [case.case for case in (*dataset.training, *dataset.test)]
    return {repair.files.case: repair for repair in repairs}


def description_of(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "copy/Task77_Tiny"


def test_sound_cases_are_copied_byte_by_byte(task, target):
    repairs = repair(task, target)
    assert not any(r.changes or r.left_out for r in repairs.values())
    for path in ("imagesTr/scan1.nii.gz", "labelsTr/scan1.nii.gz", "imagesTs/unseen.nii.gz"):
        assert (target / path).read_bytes() == (task.folder / path).read_bytes()
    content = description_of(target)
    assert (content["numTraining"], content["numTest"]) == (3, 1)
    assert content["labels"] == {"0": "background", "1": "organ"}


def test_nan_and_infinity_become_zero(task, target):
    image = np.full((*SHAPE_XYZ, 1), 3, np.float32)
    image[0, 0, :3, 0] = np.nan, np.inf, -np.inf
    write_scan(task.folder / "imagesTr/scan1.nii.gz", image, np.diag([-2, 2, 2, 1]))
    write_scan(task.folder / "labelsTr/scan1.nii.gz", np.ones(SHAPE_XYZ, np.uint8), np.diag([-2, 2, 2, 1]))
    assert repair(task, target)["scan1"].changes == ("image: 3 NaN or infinite intensities set to 0",)
    repaired = nib.load(target / "imagesTr/scan1.nii.gz")
    assert np.array_equal(repaired.affine, np.diag([-2, 2, 2, 1]))
    assert np.array_equal(repaired.get_fdata(), np.nan_to_num(image[..., 0], nan=0, posinf=0, neginf=0))


def test_channels_stay_channels(task, target):
    task.describe(modality={"0": "a", "1": "b"}, test=[])
    rng = np.random.default_rng(0)
    for index in range(3):
        image = rng.uniform(1, 2, (*SHAPE_XYZ, 2)).astype(np.float32)
        image[index, 0, 0, 1] = np.nan
        write_scan(task.folder / f"imagesTr/scan{index}.nii.gz", image)
    repair(task, target)
    repaired = read_image([target / "imagesTr/scan2.nii.gz"]).array
    assert repaired.shape == (2, *SHAPE_XYZ[::-1]) and repaired[1, 0, 0, 2] == 0 and repaired[0, 0, 0, 2] > 0
    assert np.array_equal(repaired[0], image[..., 0].T)


def test_a_label_elsewhere_gets_the_geometry_of_its_image(task, target):
    label = np.zeros(SHAPE_XYZ, np.int16)
    label[1, 2, 3] = 1
    affine = np.eye(4)
    affine[:3, 3] = 7, 0, 0
    write_scan(task.folder / "labelsTr/scan0.nii.gz", label, affine)
    changes = repair(task, target)["scan0"].changes
    assert len(changes) == 1 and "geometry copied from the image (7 mm away before)" in changes[0]
    repaired = nib.load(target / "labelsTr/scan0.nii.gz")
    assert np.array_equal(repaired.affine, np.eye(4)) and np.array_equal(repaired.get_fdata(), label)


def test_a_label_stored_in_another_orientation_is_turned_and_not_mirrored(task, target):
    label = np.zeros(SHAPE_XYZ, np.uint8)
    label[1, 2, 3] = 1
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = SHAPE_XYZ[0] - 1
    write_scan(task.folder / "labelsTr/scan0.nii.gz", label[::-1], affine)
    assert repair(task, target)["scan0"].changes == ("label: stored in the orientation of its image",)
    assert np.array_equal(nib.load(target / "labelsTr/scan0.nii.gz").get_fdata(), label)


def test_labels_that_are_nearly_whole_are_rounded(task, target):
    label = np.zeros(SHAPE_XYZ, np.float32)
    label[0, 0, :3] = 0.9995, 1.0005, 1
    label[1, 0, 0] = np.nan
    write_scan(task.folder / "labelsTr/scan0.nii.gz", label)
    changes = repair(task, target)["scan0"].changes
    assert changes == ("label: 1 NaN or infinite values set to 0", "label: 2 values rounded to whole numbers")
    assert read_label(target / "labelsTr/scan0.nii.gz").array.sum() == 3


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ({"0": "background", "1": "organ"}, {"0": "background", "1": "organ", "9": "label_9"}),
        ({"0": "background", "1": "label_9"}, {"0": "background", "1": "label_9", "9": "label_9_"}),
        ({"background": 0, "organ": 1, "ignore": 2}, {"background": 0, "organ": 1, "label_9": 9, "ignore": 2}),
    ],
)
def test_labels_without_a_name_get_one(task, target, labels, named):
    task.describe(labels=labels)
    write_scan(task.folder / "labelsTr/scan0.nii.gz", np.full(SHAPE_XYZ, 9, np.uint8))
    assert repair(task, target)["scan0"].changes == ("label: values 9 named in dataset.json",)
    content = description_of(target)
    assert list(content["labels"].items()) == list(named.items())


def test_regions_get_a_region_for_a_value_without_a_name(task, target):
    task.describe(labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    write_scan(task.folder / "labelsTr/scan0.nii.gz", np.full(SHAPE_XYZ, 9, np.uint8))
    repair(task, target)
    assert load_dataset(target, "77").labels.target_names == ("whole", "core", "label_9")


def test_what_cannot_be_repaired_is_left_out_with_its_reason(task, target):
    (task.folder / "imagesTr/scan0.nii.gz").write_bytes(b"no scan")
    write_scan(task.folder / "labelsTr/scan1.nii.gz", np.zeros((3, 3, 3), np.uint8))
    repairs = repair(task, target)
    assert "not a NIfTI" in repairs["scan0"].left_out or "cannot be read" in repairs["scan0"].left_out
    assert "has shape (3, 3, 3)" in repairs["scan1"].left_out
    assert description_of(target)["numTraining"] == 1
    assert sorted(path.name for path in (target / "imagesTr").iterdir()) == ["scan2.nii.gz"]


@pytest.mark.parametrize("value", [0.5, 300.0, -1.0])
def test_labels_with_other_values_are_not_guessed_at(task, target, value):
    write_scan(task.folder / "labelsTr/scan0.nii.gz", np.full(SHAPE_XYZ, value, np.float32))
    assert repair(task, target)["scan0"].left_out


def test_missing_files_leave_their_case_out(task, target):
    (task.folder / "labelsTr/scan2.nii.gz").unlink()
    assert "does not exist" in repair(task, target)["scan2"].left_out


def test_the_first_of_cases_with_the_same_voxels_or_name_is_kept(task, target):
    image = (task.folder / "imagesTr/scan0.nii.gz").read_bytes()
    (task.folder / "imagesTr/scan1.nii.gz").write_bytes(image)
    listed = task.description()["training"]
    task.describe(training=[*listed, listed[0]])
    description = read_description(task.data, "77")
    with Workers(1) as workers:
        surveys = survey_cases(description.dataset, workers)
        repairs = write_repaired_copy(description, surveys, target, workers)
    assert [repair.left_out for repair in repairs] == [
        "", "its image has the same voxels as that of case scan0, and so has its label", "",
        "an earlier case has the same name", "",
    ]  # fmt: skip


def test_a_twin_is_kept_where_the_first_cannot_be(task, target):
    (task.folder / "imagesTr/scan1.nii.gz").write_bytes((task.folder / "imagesTr/scan0.nii.gz").read_bytes())
    (task.folder / "labelsTr/scan0.nii.gz").write_bytes(b"no label")
    repairs = repair(task, target)
    assert repairs["scan0"].left_out and not repairs["scan1"].left_out


def test_a_file_for_each_channel_stays_one(tmp_path, target):
    folder = tmp_path / "data/Dataset077_Tiny"
    rng = np.random.default_rng(0)
    for case in "ab":
        for channel in range(2):
            write_scan(folder / f"imagesTr/{case}_000{channel}.nii.gz", rng.uniform(1, 2, SHAPE_XYZ))
        write_scan(folder / f"labelsTr/{case}.nii.gz", np.ones(SHAPE_XYZ, np.uint8))
    spoiled = np.ones(SHAPE_XYZ, np.float32)
    spoiled[0] = np.nan
    write_scan(folder / "imagesTr/b_0001.nii.gz", spoiled)
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    assert repair(Task(tmp_path / "data", tmp_path), target)["b"].changes
    assert description_of(target)["training"][1] == {
        "image": ["./imagesTr/b_0000.nii.gz", "./imagesTr/b_0001.nii.gz"], "label": "./labelsTr/b.nii.gz",
    }  # fmt: skip
    assert read_image([target / "imagesTr/b_0001.nii.gz"]).array[0, 0, 0, 0] == 0


def test_nothing_is_written_where_no_case_is_left(task, target):
    for path in (task.folder / "imagesTr").iterdir():
        path.write_bytes(b"no scan")
    task.describe(test=[])
    description = read_description(task.data, "77")
    with Workers(1) as workers, pytest.raises(UserError, match="none of the 3 cases"):
        write_repaired_copy(description, survey_cases(description.dataset, workers), target, workers)
    assert not target.parent.exists()


def test_one_value_for_each_class_is_rounded_and_several_are_not(task, target):
    label = np.zeros(SHAPE_XYZ, np.float32)
    label[3:6, 3:7, 2:5] = 0.996
    write_scan(task.folder / "labelsTr/scan0.nii.gz", label)
    label = label.copy()
    label[3] = np.where(label[3] > 0, np.float32(0.98), 0)
    write_scan(task.folder / "labelsTr/scan1.nii.gz", label)
    repairs = repair(task, target)
    assert repairs["scan0"].changes == ("label: 36 values rounded to whole numbers",)
    assert "are not whole numbers" in repairs["scan1"].left_out
    assert read_label(target / "labelsTr/scan0.nii.gz").array.sum() == 36


def test_a_rounded_label_near_45_degrees_lies_on_its_image(task, target):
    rng = np.random.default_rng(1)
    image = rng.uniform(1, 9, (10, 10, 10)).astype(np.float32)
    label = (image > 5).astype(np.float32) * np.float32(0.9999)
    save_tilted(task.folder / "imagesTr/scan0.nii.gz", image, tilted((0, 1), NOISE))
    save_tilted(task.folder / "labelsTr/scan0.nii.gz", label, tilted((0, 1), -NOISE))
    assert repair(task, target)["scan0"].changes[0].endswith("rounded to whole numbers")
    stored = nib.load(target / "labelsTr/scan0.nii.gz")
    np.testing.assert_array_equal(stored.get_fdata() == 1, image > 5)


def test_a_case_that_cannot_have_its_name_is_not_in_the_copy(task, target):
    for kind in ("images", "labels"):
        (task.folder / f"{kind}Tr/scan1.nii.gz").rename(task.folder / f"{kind}Tr/plan.nii.gz")
    listed = json.loads((task.folder / "dataset.json").read_text())["training"]
    listed[1] = {"image": "imagesTr/plan.nii.gz", "label": "labelsTr/plan.nii.gz"}
    task.describe(training=listed)
    assert "a case cannot be called 'plan'" in read_description(task.data, "77").findings[0].message
    assert set(repair(task, target)) == {"scan0", "scan2", "unseen"}
