"""What is written about folds: when one is finished, when it is another run, and what its scores mean."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from cross_validation.records import (
    CaseRecord,
    FoldRecord,
    RunRequest,
    differences,
    finished_records,
    mask_digest,
    mean_dice,
    plan_digest,
    prediction_files,
    read_record,
    summary,
)
from inference.fold_folders import DONE, REQUEST
from tests.data_preprocessing.builders import make_plan
from utils.files import write_json
from utils.schema import Fold

REQUESTED = RunRequest(
    version=1, configuration="3d_fullres", fold=0, num_folds=2, cases=Fold(train=("b",), val=("a",)), plan="p",
    options={"amp": False, "max_epochs": 5}, data={"a": "1", "b": "2"},
)  # fmt: skip
CASE_A = CaseRecord(case="a", mask="m", dice=(1.0, None))


def record(request: RunRequest = REQUESTED, **changes) -> FoldRecord:
    made = FoldRecord(
        version=1, request=request.digest, configuration="3d_fullres", fold=0, num_folds=2,
        targets=("organ", "lesion"), epochs=5, train_s=1.0, seconds=2.0, cases=(CASE_A,), checkpoint="last",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.fixture
def fold(tmp_path):
    """A finished fold's folder."""
    folder = tmp_path / "fold_0"
    folder.mkdir()
    write_json(REQUESTED, folder / REQUEST)
    write_json(record(), folder / DONE)
    for path in prediction_files(tmp_path, "a"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    "change", [{"fold": 1}, {"plan": "q"}, {"options": {"amp": True}}, {"previous": "m"}, {"data": None}], ids=str
)
def test_a_request_s_digest_changes_with_everything(change):
    assert dataclasses.replace(REQUESTED, **change).digest != REQUESTED.digest


def test_a_plan_s_digest_changes_with_all_but_its_reasons():
    plan = make_plan()
    assert plan_digest(dataclasses.replace(plan, reasons={"spacing": "told in other words"})) == plan_digest(plan)
    assert plan_digest(make_plan(patch=(4, 4, 8))) != plan_digest(plan)


def test_a_mask_s_digest_is_that_of_earlier_versions():
    # Of the bytes 0 1 2, by sha256sum.
    assert mask_digest(np.array([[[0, 1, 2]]], np.uint8)) == "ae4b3280e56e2faf"


def test_a_fold_is_finished_while_its_files_are_there_and_fulfil_the_request(fold):
    assert read_record(fold) == read_record(fold, REQUESTED.digest) == record()
    assert finished_records(fold.parent) == [record()]
    assert read_record(fold, "another") is None
    prediction_files(fold.parent, "a")[0].unlink()
    assert read_record(fold) is None and finished_records(fold.parent) == []


def test_a_record_that_is_not_whole_says_nothing(fold):
    (fold / DONE).write_text('{"version": 1')
    assert read_record(fold) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"amp": True, "max_epochs": 5}}, ["--amp was False, now it is True"]),
        ({"options": {"amp": False, "max_epochs": 5, "new": 1}}, []),
        ({"num_folds": 3}, ["there were 2 folds, now there are 3"]),
        ({"cases": Fold(train=("a",), val=("b",))}, ["the fold had other cases"]),
        ({"plan": "q"}, ["the plan of the preprocessed data was another one"]),
        ({"previous": "m"}, ["the first stage of the cascade predicted other masks"]),
        ({"data": {"a": "9", "b": "2"}}, ["the preprocessed data of 1 cases have changed since: a"]),
        ({"data": None}, []),
        ({"data": {"a": "1", "c": "3"}}, []),
    ],
    ids=str,
)
def test_another_run_is_told_by_what_differs(change, said):
    assert differences(REQUESTED, dataclasses.replace(REQUESTED, **change)) == said


def test_other_folds_of_a_run_may_have_other_cases():
    other = dataclasses.replace(REQUESTED, fold=1, cases=Fold(train=("a",), val=("b",)))
    assert differences(REQUESTED, other, same_fold=False) == []


def test_a_target_that_is_nowhere_and_a_case_without_label_are_left_out_of_the_mean():
    """organ: (1 + 0.5) / 2; lesion: 0.2 alone; the mean of both."""
    cases = [CASE_A, CaseRecord(case="b", mask="m", dice=(0.5, 0.2)), CaseRecord(case="c", mask="m", dice=())]
    found = mean_dice(cases, ("organ", "lesion"))
    assert found.dice == (0.75, 0.2) and found.mean_dice == pytest.approx(0.475)


def test_a_target_of_no_case_is_nan_and_cases_without_labels_have_no_mean():
    found = mean_dice([CASE_A], ("organ", "lesion"))
    assert math.isnan(found.dice[1]) and found.mean_dice == 1.0
    assert mean_dice([CaseRecord(case="c", mask="m", dice=())], ("organ",)) is None


def test_the_summary_names_missing_folds_and_cases_without_label():
    second = record(fold=2, num_folds=4, cases=(CaseRecord(case="c", mask="m", dice=()),), checkpoint=None)
    found = summary("3d_fullres", [record(num_folds=4), second])
    assert (found["cases"], found["missing_folds"], found["without_label"]) == (2, [1, 3], ["c"])
    # An earlier version, which did not say it, took the best checkpoint.
    assert [fold["checkpoint"] for fold in found["folds"]] == ["last", "best"]
    assert found["folds"][1]["mean_dice"] is None
