"""What shows in one scan, and what shows only when all lie side by side."""

from __future__ import annotations

import dataclasses
import gzip

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.dataset.description_file import load_dataset, read_description
from data_preprocessing.dataset.findings import Finding, findings_table
from data_preprocessing.dataset.verification import (
    CaseSurvey,
    check_listing,
    compare_cases,
    find_duplicates,
    label_counts,
    survey_cases,
)
from tests.tiny_task import SHAPE_XYZ, Task, make_task, write_scan
from utils.workers import Workers


@pytest.fixture
def task(tmp_path) -> Task:
    return make_task(tmp_path)


def surveys_of(task: Task, **options: float) -> list[CaseSurvey]:
    with Workers(1) as workers:
        return survey_cases(load_dataset(task.data, "77"), workers, **options)


def found(task: Task) -> list[tuple[str, str, bool]]:
    """(case, what it is about, is it a remark) of everything that is found."""
    description = read_description(task.data, "77")
    surveys = surveys_of(task)
    findings = [f for survey in surveys for f in survey.findings]
    findings += [*compare_cases(surveys, description.dataset), *check_listing(description)]
    return [(f.case, f.kind, f.is_remark) for f in findings]


def rng_scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 100, SHAPE_XYZ).astype(np.float32)


def repair_test_scan(task: Task) -> None:
    """The tiny task's test scan is the last training image."""
    write_scan(task.folder / "imagesTs/unseen.nii.gz", rng_scan(99))


def test_a_sound_data_set_has_no_findings(task):
    repair_test_scan(task)
    assert found(task) == []


def test_what_was_read_of_a_scan(task):
    write_scan(task.folder / "imagesTr/scan0.nii.gz", np.full(SHAPE_XYZ, -300, np.int16), np.diag([-1, 2, 3, 1]))
    write_scan(task.folder / "labelsTr/scan0.nii.gz", np.ones(SHAPE_XYZ, np.uint8), np.diag([-1, 2, 3, 1]))
    survey = surveys_of(task)[0]
    assert (survey.case, survey.section, survey.label_counts) == ("scan0", "training", {1: 10 * 14 * 12})
    assert (survey.scan.shape, survey.scan.spacing_mm) == (SHAPE_XYZ[::-1], (3, 2, 1))
    assert (survey.scan.orientation, survey.scan.minima, survey.scan.is_whole) == ("LAS", (-300,), (True,))


def test_an_image_under_two_names_is_a_problem_and_says_where(task):
    findings = find_duplicates(surveys_of(task))
    assert [(f.case, f.section) for f in findings] == [("unseen", "test")]
    assert findings[0].message == "its image has the same voxels as that of case scan2"


def test_a_copy_in_another_type_and_orientation_is_a_duplicate(task):
    repair_test_scan(task)
    whole = np.rint(rng_scan(5))
    write_scan(task.folder / "imagesTr/scan0.nii.gz", whole.astype(np.int16))
    write_scan(task.folder / "imagesTr/scan1.nii.gz", whole[::-1], np.diag([-1, 1, 1, 1]))
    write_scan(task.folder / "labelsTr/scan1.nii.gz", np.ones(SHAPE_XYZ, np.uint8), np.diag([-1, 1, 1, 1]))
    findings = find_duplicates(surveys_of(task))
    assert [f.message for f in findings] == ["its image has the same voxels as that of case scan0; their labels differ"]


def test_equal_labels_alone_are_no_duplicates_and_empty_scans_are_not_each_others(task):
    repair_test_scan(task)
    for name in ("scan0", "scan1"):
        write_scan(task.folder / f"imagesTr/{name}.nii.gz", np.zeros(SHAPE_XYZ, np.float32))
    assert found(task) == [("scan0", "intensities", False), ("scan1", "intensities", False)]


def test_named_labels_that_no_case_has_are_a_remark(task):
    repair_test_scan(task)
    task.describe(labels={"0": "background", "1": "organ", "2": "tumour"})
    assert found(task) == [("", "labels", True)]


def test_mixed_orientations_are_a_remark(task):
    repair_test_scan(task)
    write_scan(task.folder / "imagesTs/unseen.nii.gz", rng_scan(9), np.diag([-1, 1, 1, 1]))
    assert found(task) == [("", "orientation", True)]


def test_voxels_unlike_the_others_are_a_remark(task):
    write_scan(task.folder / "imagesTs/unseen.nii.gz", rng_scan(9), np.diag([1, 1, 17, 1]))
    assert found(task) == [("unseen", "spacing", True)]


def test_odd_scans_are_remarked_on(task):
    for name, shape in (("scan0", SHAPE_XYZ), ("scan1", (10, 14, 1)), ("scan2", SHAPE_XYZ)):
        image = rng_scan(0)[..., : shape[2]] + float(name[-1])
        write_scan(task.folder / f"imagesTr/{name}.nii.gz", image if name != "scan2" else np.full(shape, 3.0))
        write_scan(task.folder / f"labelsTr/{name}.nii.gz", np.full(shape, name != "scan0", np.uint8))
    repair_test_scan(task)
    assert found(task) == [("scan0", "labels", True), ("scan1", "shape", True), ("scan2", "intensities", True)]


def test_wrong_counts_and_files_that_no_case_uses_are_remarks(task):
    repair_test_scan(task)
    task.describe(numTraining=4, numTest=1)
    write_scan(task.folder / "imagesTr/spare.nii.gz", rng_scan(1))
    findings = check_listing(read_description(task.data, "77"))
    assert [f.kind for f in findings] == ["description", "file"] and all(f.is_remark for f in findings)
    assert "numTraining 4" in findings[0].message and "spare.nii.gz" in findings[1].message


def test_a_broken_image_does_not_hide_the_faults_of_its_label(task):
    (task.folder / "imagesTr/scan0.nii.gz").write_bytes(b"no scan")
    write_scan(task.folder / "labelsTr/scan0.nii.gz", np.full(SHAPE_XYZ, 9, np.uint8))
    survey = surveys_of(task)[0]
    assert [f.kind for f in survey.findings] == ["file", "labels"]
    assert survey.scan is None and survey.label_counts == {9: 10 * 14 * 12}


def test_the_tolerance_is_in_millimetres(task):
    affine = np.eye(4)
    affine[0, 3] = 0.5
    write_scan(task.folder / "labelsTr/scan0.nii.gz", np.ones(SHAPE_XYZ, np.uint8), affine)
    assert [f.kind for f in surveys_of(task)[0].findings] == ["grid"]
    assert surveys_of(task, tolerance_mm=0.6)[0].findings == ()


def test_label_values_are_counted():
    array = np.array([[[0, 0], [5, -1]], [[5, 5], [0, 5]]], np.int16)
    assert label_counts(array) == {-1: 1, 0: 3, 5: 4}


def test_the_table_has_problems_first_and_paths_within_the_folder(tmp_path):
    remark = Finding(kind="labels", message="unused", is_remark=True)
    problem = Finding(kind="file", message=f"{tmp_path}/imagesTs/a.nii is gone", case="a", section="test")
    assert findings_table([remark, problem], tmp_path).splitlines() == [
        "         case      about   finding",
        "problem  a (test)  file    imagesTs/a.nii is gone",
        "remark   all       labels  unused",
    ]
    assert not dataclasses.replace(problem).is_remark


@pytest.mark.slow
def test_real_tasks_have_no_problems(real_data):
    for task, kinds in (("53", []), ("63", ["orientation", "spacing"])):
        with Workers(1) as workers:
            dataset = load_dataset(real_data, task)
            surveys = survey_cases(dataset, workers)
        findings = [*(f for s in surveys for f in s.findings), *compare_cases(surveys, dataset)]
        assert [f.kind for f in findings] == kinds and all(f.is_remark for f in findings)


def test_two_orientations_of_one_scan_are_remarked(task):
    repair_test_scan(task)
    path = task.folder / "imagesTr/scan1.nii.gz"
    image = nib.load(path)
    image.set_qform(np.diag([-1, 1, 1, 1]), 1, update_affine=False)
    image.set_sform(np.eye(4), 2, update_affine=False)
    nib.save(image, path)
    assert found(task) == [("scan1", "orientation", True)]
    (finding,) = surveys_of(task)[1].findings
    assert "qform and sform" in finding.message and "18 mm apart" in finding.message


def test_another_unit_is_remarked(task):
    repair_test_scan(task)
    path = task.folder / "imagesTs/unseen.nii.gz"
    image = nib.load(path)
    image.header["xyzt_units"] = 1
    nib.save(image, path)
    texts = [finding.message for survey in surveys_of(task) for finding in survey.findings]
    assert len(texts) == 1 and texts[0].endswith("is in metres: its voxels are 1000 x 1000 x 1000 mm (S, A, R)")


def test_labels_that_are_all_empty_are_a_problem(task):
    for index in range(3):
        write_scan(task.folder / f"labelsTr/scan{index}.nii.gz", np.zeros(SHAPE_XYZ, np.uint8))
    assert ("", "labels", False) in found(task)
    write_scan(task.folder / "labelsTr/scan0.nii.gz", np.ones(SHAPE_XYZ, np.uint8))
    assert ("", "labels", False) not in found(task)


def test_a_missing_voxel_size_is_a_problem(task):
    path = task.folder / "imagesTr/scan1.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[80:92], content[252:256] = bytes(12), bytes(4)
    path.write_bytes(gzip.compress(content))
    assert ("scan1", "file", False) in found(task)
