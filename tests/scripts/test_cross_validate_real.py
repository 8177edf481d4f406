"""scripts/cross_validate.py with the real main.py: two folds of tiny scans from shards to an ensemble's member."""

from __future__ import annotations

import numpy as np
import pytest

from inference.configuration import read_configuration
from inference.saved import read_probabilities
from tests.scripts.cross_validation import Study
from tests.tiny_task import make_task
from utils.nifti import read_label

NETWORK = ("--depth", "1", "--filters", "4", "8", "--learning_rate", "0.01", "--num_workers", "1")


@pytest.mark.slow
def test_two_folds_end_in_a_model_and_out_of_fold_masks(tmp_path):
    task = make_task(tmp_path, num_cases=4, shape=(14, 18, 16))
    assert task.run("--nfolds", "2") == 0
    study = Study(task.results, tmp_path / "study")
    assert study.run("--", "--max_epochs", "2", *NETWORK) == 0
    folder = study.results / "77_3d_fullres"
    for case in ("scan0", "scan1", "scan2", "scan3"):
        member = read_probabilities(folder / "out_of_fold", case)
        mask = read_label(folder / f"out_of_fold/{case}.nii.gz").array
        np.testing.assert_array_equal(member.values.argmax(axis=0), mask)
    assert [fold.fold for fold in read_configuration(folder).folds] == [0, 1]
    assert [fold["epochs"] for fold in study.summary()["3d_fullres"]["folds"]] == [2, 2]
