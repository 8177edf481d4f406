"""What a fold has been asked for and what came out of it, as files."""

from __future__ import annotations

import dataclasses

import pytest

from cross_validation.records import (
    CaseRecord,
    FoldRecord,
    RunRequest,
    differences,
    finished_records,
    mean_dice,
    prediction_files,
    read_record,
    summary,
)
from utils.files import write_json
from utils.schema import Fold

REQUEST = RunRequest(
    version=1, configuration="2d", fold=0, num_folds=2, cases=Fold(train=("b",), val=("a",)), plan="p",
    options={"tta": False, "max_epochs": 5}, data={"a": "1", "b": "1"},
)  # fmt: skip
CASES = (CaseRecord(case="a", mask="m", dice=(0.5, None)), CaseRecord(case="b", mask="m", dice=(1.0, 0.25)))


def record_of(request: RunRequest, cases: tuple[CaseRecord, ...] = CASES[:1]) -> FoldRecord:
    return FoldRecord(
        version=1, request=request.digest, configuration="2d", fold=request.fold, num_folds=2, targets=("organ", "x"),
        epochs=3, train_s=1.0, seconds=2.0, cases=cases, checkpoint="last",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A finished fold 0 of one case."""
    (tmp_path / "fold_0").mkdir()
    write_json(REQUEST, tmp_path / "fold_0/options.json")
    write_json(record_of(REQUEST), tmp_path / "fold_0/done.json")
    for path in prediction_files(tmp_path, "a"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_a_fold_is_finished_with_its_record_and_its_files(folder):
    assert read_record(folder / "fold_0") == finished_records(folder)[0] == record_of(REQUEST)
    prediction_files(folder, "a")[1].unlink()
    assert read_record(folder / "fold_0") is None and finished_records(folder) == []


def test_another_request_finds_no_record(folder):
    other = dataclasses.replace(REQUEST, options={"tta": True, "max_epochs": 5})
    assert read_record(folder / "fold_0", other.digest) is None
    assert read_record(folder / "fold_0", REQUEST.digest) is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"tta": True, "max_epochs": 5}}, "--tta was False, now it is True"),
        ({"num_folds": 3}, "there were 2 folds, now there are 3"),
        ({"cases": Fold(train=("a",), val=("b",))}, "the fold had other cases"),
        ({"plan": "q"}, "the plan of the preprocessed data was another one"),
        ({"previous": "m"}, "the first stage of the cascade predicted other masks"),
        ({"data": {"a": "2", "b": "1"}}, "the preprocessed data of 1 cases have changed since: a"),
    ],
)
def test_each_difference_is_named(change, said):
    assert differences(REQUEST, dataclasses.replace(REQUEST, **change)) == [said]


def test_what_one_side_does_not_say_is_no_difference():
    newer = dataclasses.replace(REQUEST, options={**REQUEST.options, "new_flag": 1}, data=None)
    assert differences(REQUEST, newer) == []


def test_means_leave_out_targets_that_a_case_lacks_and_cases_without_label():
    found = mean_dice([*CASES, CaseRecord(case="c", mask="m", dice=())], ("organ", "x"))
    assert found is not None and found.dice == (0.75, 0.25) and found.mean_dice == 0.5
    assert mean_dice([CaseRecord(case="c", mask="m", dice=())], ("organ", "x")) is None


def test_a_summary_names_folds_that_are_missing_and_cases_without_label():
    record = summary("2d", [record_of(REQUEST, (CASES[0], CaseRecord(case="c", mask="m", dice=())))])
    assert (record["cases"], record["mean_dice"], record["missing_folds"]) == (2, 0.5, [1])
    assert record["without_label"] == ["c"] and record["dice"]["organ"] == 0.5
    assert record["folds"][0]["checkpoint"] == "last"
