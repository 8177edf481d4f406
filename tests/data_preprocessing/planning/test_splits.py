"""Folds by patient and from files, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_preprocessing.dataset.description_file import make_splits
from data_preprocessing.planning.adapt import read_fold
from data_preprocessing.planning.splits import find_groups, read_splits, split_folds, split_groups
from utils.errors import UserError
from utils.files import write_json
from utils.schema import FORMAT_VERSION, Fold, Splits

# Patients of 4, 3, 2, 2 and 1 visits.
VISITS = {"ann": 4, "bob": 3, "cid": 2, "dot": 2, "eve": 1}
CASES = [f"{patient}_visit{number}" for patient, count in VISITS.items() for number in range(count)]
PATIENT = "(.+)_visit"


def patients_of(cases: tuple[str, ...]) -> set[str]:
    return {case.split("_")[0] for case in cases}


def test_groups_are_what_the_group_of_the_pattern_says():
    assert find_groups(["b2", "a1", "b1"], "([a-z])") == {"a": ["a1"], "b": ["b1", "b2"]}


@pytest.mark.parametrize("nfolds", [2, 3, 4, 5])
def test_no_patient_is_trained_and_validated_on(nfolds):
    splits = split_folds(CASES, nfolds, PATIENT)
    assert len(splits.folds) == nfolds
    for fold in splits.folds:
        assert fold.train and fold.val
        assert not patients_of(fold.train) & patients_of(fold.val)
        assert sorted((*fold.train, *fold.val)) == sorted(CASES)
    assert sorted(case for fold in splits.folds for case in fold.val) == sorted(CASES)


def test_folds_are_as_even_as_whole_patients_allow():
    # 4, 3 and 2 open the folds; 2 joins the 2, 1 joins the 3.
    folds = split_folds(CASES, 3, PATIENT).folds
    assert sorted(len(fold.val) for fold in folds) == [4, 4, 4]
    assert {"ann"} in [patients_of(fold.val) for fold in folds]


def test_the_order_of_the_cases_changes_nothing():
    assert split_folds(CASES, 3, PATIENT) == split_folds(CASES[::-1], 3, PATIENT)


def test_patients_of_one_size_are_not_split_by_the_alphabet():
    groups = {f"{index:02d}": [f"{index:02d}_0"] for index in range(20)}
    first = [int(case[:2]) for case in split_groups(groups, 2).folds[0].val]
    assert len(first) == 10 and first != list(range(0, 20, 2))


def test_without_a_pattern_the_plain_rule_counts():
    assert split_folds(CASES, 5) == make_splits(CASES, 5)


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [("(", "not a regular expression"), (".+", "has 0 groups"), ("(.)(.)", "has 2 groups")],
)
def test_a_pattern_without_one_group_is_refused(pattern, complaint):
    with pytest.raises(UserError, match=complaint):
        find_groups(CASES, pattern)


def test_all_names_that_the_pattern_does_not_fit_are_listed():
    with pytest.raises(UserError) as error:
        find_groups(["ann_visit0", "phantom", "_visit1", "test"], "(.*)_visit")
    assert str(error.value).splitlines()[1:-1] == ["  - _visit1", "  - phantom", "  - test"]


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(UserError, match="5 patients cannot make 6 folds"):
        split_folds(CASES, 6, PATIENT)


def write(folder: Path, content: object) -> Path:
    path = folder / "folds.json"
    path.write_text(json.dumps(content))
    return path


FOLDS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]


def test_both_formats_of_files_are_read(tmp_path):
    theirs = read_splits(write(tmp_path, FOLDS), "abc")
    ours = read_splits(write(tmp_path, {"version": FORMAT_VERSION, "folds": FOLDS}), "abc")
    assert theirs == ours
    assert theirs.folds == (Fold(train=("a", "b"), val=("c",)), Fold(train=("c",), val=("a", "b")))


def test_folds_may_leave_cases_out_and_share_their_validation_cases(tmp_path):
    official = {"train": ["a"], "val": ["b"]}
    assert len(read_splits(write(tmp_path, [official, official]), "abc").folds) == 2


def test_everything_that_is_wrong_with_a_file_is_listed(tmp_path):
    path = write(
        tmp_path,
        [{"train": ["a", "b", "z"], "val": ["b"]}, {"train": ["a", "a"], "val": []}, {"train": [], "val": ["y"]}],
    )
    with pytest.raises(UserError) as error:
        read_splits(path, "abc")
    assert str(path) in str(error.value)
    assert str(error.value).splitlines()[1:-1] == [
        "  - fold 0: z in train is no training case",
        "  - fold 0: b is in train and in val",
        "  - fold 1: val is empty",
        "  - fold 1: a is 2 times in train",
        "  - fold 2: train is empty",
        "  - fold 2: y in val is no training case",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "there is no fold"),
        ([{"train": ["a"]}], "val"),
        ([{"train": ["a"], "val": ["b"], "test": ["c"]}], "test"),
        ([["a", "b"]], r"folds\[0\]"),
        ({"folds": FOLDS}, "version"),
        ({"version": 99, "folds": FOLDS}, "version 99"),
        ("folds", "mapping"),
    ],
)
def test_malformed_folds_are_refused(tmp_path, content, complaint):
    with pytest.raises(UserError, match=complaint):
        read_splits(write(tmp_path, content), "abc")


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read as JSON: No such file"):
        read_splits(tmp_path / "nowhere.json", "abc")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_splits(tmp_path / "text.json", "abc")


@pytest.fixture
def patient_wise(tmp_path) -> Path:
    write_json(split_folds(CASES, 3, PATIENT), tmp_path / "splits.json")
    return tmp_path


@pytest.fixture
def plain(tmp_path) -> Path:
    write_json(make_splits(CASES, 3), tmp_path / "splits.json")
    return tmp_path


def test_stored_folds_are_used_however_many_they_are(patient_wise):
    expected = split_folds(CASES, 3, PATIENT)
    assert read_fold(patient_wise, 2) == read_fold(patient_wise, 2, nfolds=3) == expected.folds[2]


def test_plain_folds_are_made_anew_in_another_number(plain):
    assert read_fold(plain, 4, nfolds=5) == make_splits(CASES, 5).folds[4]


def test_other_folds_are_not_thrown_away_for_another_number(patient_wise):
    with pytest.raises(UserError, match="3 folds that are not split by the plain rule"):
        read_fold(patient_wise, 0, nfolds=5)


def test_a_pattern_and_a_file_win_over_stored_folds(plain):
    assert read_fold(plain, 4, group_by=PATIENT) == split_folds(CASES, 5, PATIENT).folds[4]
    assert read_fold(plain, 1, group_by=PATIENT, nfolds=2) == split_folds(CASES, 2, PATIENT).folds[1]
    path = plain / "own.json"
    path.write_text(json.dumps([{"train": CASES[:3], "val": CASES[3:5]}]))
    assert read_fold(plain, 0, splits=path).val == tuple(CASES[3:5])


def test_a_fold_that_is_not_there_is_refused(plain):
    with pytest.raises(UserError, match=r"--fold must lie in 0\.\.2, got 3"):
        read_fold(plain, 3)


def test_stored_folds_that_validate_on_their_training_are_refused(tmp_path):
    fold = Fold(train=("a", "b"), val=("b",))
    write_json(Splits(version=FORMAT_VERSION, folds=(fold,)), tmp_path / "splits.json")
    with pytest.raises(UserError, match="b is in train and in val"):
        read_fold(tmp_path, 0)


def test_a_mark_of_the_encoding_does_not_matter(tmp_path):
    folds = [{"train": ["a"], "val": ["b"]}]
    (tmp_path / "splits.json").write_text(json.dumps(folds), encoding="utf-8-sig")
    assert read_splits(tmp_path / "splits.json", ["a", "b"]).folds == (Fold(train=("a",), val=("b",)),)


@pytest.mark.parametrize("groups", [{}, {"p": ["p1", "p2"]}], ids=len)
def test_less_than_two_patients_say_what_to_do(groups):
    with pytest.raises(UserError, match=r"patients that --group_by tells apart: .* Add labelled cases"):
        split_groups(groups, 2)
