"""Masks of unseen cases: scored against their labels, gathered, and taken away again."""

from __future__ import annotations

import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from cross_validation.out_of_fold import discard, gather, score_cases
from data_preprocessing.planning.plan_file import read_plan
from data_preprocessing.shards import read_meta
from utils.errors import UserError

CASES = ("scan0", "scan1")


@pytest.fixture
def predictions(data, tmp_path):
    """The label itself of scan0, nothing of scan1."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for case, factor in zip(CASES, (1, 0)):
        label = nib.load(read_meta(data / "77_3d", case).label)
        mask = np.asanyarray(label.dataobj) * np.uint8(factor)
        nib.save(nib.Nifti1Image(mask, label.affine), folder / f"{case}.nii.gz")
        np.save(folder / f"{case}.npy", np.stack([1 - mask.T, mask.T]).astype(np.float32))
    return folder


def test_the_label_itself_scores_one_and_nothing_scores_zero(data, predictions):
    records = score_cases(data / "77_3d", predictions, CASES, read_plan(data / "77_3d"))
    assert [record.dice for record in records] == [(1.0,), (0.0,)]
    assert records[0].mask != records[1].mask


def test_all_masks_that_do_not_fit_are_named(data, predictions):
    for case in CASES:
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), predictions / f"{case}.nii.gz")
    with pytest.raises(UserError) as error:
        score_cases(data / "77_3d", predictions, CASES, read_plan(data / "77_3d"))
    assert all(case in str(error.value) for case in CASES)


def test_a_case_whose_label_file_is_gone_has_no_score(data, predictions, monkeypatch):
    meta = data / "77_3d/scan0.json"
    meta.write_text(meta.read_text().replace("labelsTr", "elsewhere"))
    monkeypatch.setattr("cross_validation.out_of_fold.label_changes", lambda meta: [])
    assert score_cases(data / "77_3d", predictions, CASES, read_plan(data / "77_3d"))[0].dice == ()


def test_gathered_files_are_one_with_those_of_the_fold_and_can_be_taken_away(data, predictions, tmp_path):
    model = tmp_path / "model"
    gather(model, predictions, CASES, read_plan(data / "77_3d"))
    names = {f"{case}{end}" for case in CASES for end in (".npy", ".nii.gz")}
    assert {path.name for path in (model / "out_of_fold").iterdir()} == names | {"plan.json"}
    assert os.path.samefile(model / "out_of_fold/scan0.npy", predictions / "scan0.npy")
    discard(model, CASES[:1])
    assert {path.name for path in (model / "out_of_fold").iterdir()} == {"scan1.npy", "scan1.nii.gz", "plan.json"}
    assert (predictions / "scan0.npy").is_file()
    shutil.rmtree(model / "out_of_fold")
    discard(model, CASES)
