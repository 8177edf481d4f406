"""Predictions of a fold: scored against the scans' labels, gathered beside those of other folds, taken away again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cross_validation.out_of_fold import discard, gather, score_cases
from cross_validation.records import prediction_files
from data_preprocessing.planning.plan_file import read_plan
from tests.tiny_task import Task, make_task, write_scan
from utils.errors import UserError


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory) -> Task:
    task = make_task(tmp_path_factory.mktemp("task"), num_cases=2)
    assert task.run("--nfolds", "2") == 0
    return task


@pytest.fixture
def predictions(preprocessed, tmp_path) -> Path:
    """Of scan0 the label itself, of scan1 nothing."""
    folder = tmp_path / "predictions"
    for number in range(2):
        label = nib.load(preprocessed.folder / f"labelsTr/scan{number}.nii.gz")
        mask = np.asanyarray(label.dataobj) * np.uint8(number == 0)
        write_scan(folder / f"scan{number}.nii.gz", mask, label.affine)
        np.save(folder / f"scan{number}.npy", np.zeros(1))
    return folder


def test_masks_are_scored_against_the_scans_labels(preprocessed, predictions):
    shards = preprocessed.results / "77_3d"
    records = score_cases(shards, predictions, ["scan0", "scan1"], read_plan(shards))
    assert [(record.case, record.dice) for record in records] == [("scan0", (1.0,)), ("scan1", (0.0,))]
    assert records[0].mask != records[1].mask


def test_all_masks_that_cannot_be_scored_are_named(preprocessed, predictions):
    shards = preprocessed.results / "77_3d"
    (predictions / "scan0.nii.gz").write_bytes(b"damaged")
    (predictions / "scan1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"(?s)cannot be scored.*scan0.*scan1"):
        score_cases(shards, predictions, ["scan0", "scan1"], read_plan(shards))


def test_a_label_that_changed_after_the_training_scores_nothing(predictions, tmp_path):
    task = make_task(tmp_path / "changed", num_cases=2)
    assert task.run("--nfolds", "2") == 0
    shutil.copy(predictions / "scan1.nii.gz", task.folder / "labelsTr/scan0.nii.gz")
    shards = task.results / "77_3d"
    with pytest.raises(UserError, match="other labels than those that the networks learned from"):
        score_cases(shards, predictions, ["scan0"], read_plan(shards))


def test_gathered_files_take_no_room_and_only_the_named_cases_are_discarded(preprocessed, predictions, tmp_path):
    folder = tmp_path / "configuration"
    gather(folder, predictions, ["scan0", "scan1"], read_plan(preprocessed.results / "77_3d"))
    for case in ("scan0", "scan1"):
        assert all(os.path.samefile(path, predictions / path.name) for path in prediction_files(folder, case))
    discard(folder, ["scan0", "never there"])
    assert {path.name for path in (folder / "out_of_fold").iterdir()} == {"plan.json", "scan1.npy", "scan1.nii.gz"}
    assert len(list(predictions.iterdir())) == 4
