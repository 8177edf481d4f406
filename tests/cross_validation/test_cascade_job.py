"""The data of a cascade's second stage: when they are current, and what is refused."""

from __future__ import annotations

import pytest

from cross_validation.cascade_job import CascadeData
from cross_validation.records import CaseRecord, FoldRecord, RunRequest, prediction_files
from cross_validation.scheduler import Command
from data_preprocessing.shards import list_cases
from utils.errors import UserError
from utils.files import write_json
from utils.schema import Fold


@pytest.fixture
def cascade(data, tmp_path) -> CascadeData:
    return CascadeData(task="77", data=data, results=tmp_path / "results")


def finish(cascade: CascadeData, fold: int, cases: list[str], *, checkpoint: str = "last", mask: str = "m") -> None:
    """A fold of the first stage that has predicted these cases."""
    folder = cascade.first / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    request = RunRequest(
        version=1, configuration="3d_lowres", fold=fold, num_folds=2, cases=Fold(train=(), val=tuple(cases)), plan="",
        options={},
    )  # fmt: skip
    write_json(request, folder / "options.json")
    records = tuple(CaseRecord(case=case, mask=mask, dice=(1.0,)) for case in cases)
    write_json(
        FoldRecord(
            version=1, request=request.digest, configuration="3d_lowres", fold=fold, num_folds=2, targets=("organ",),
            epochs=1, train_s=1.0, seconds=1.0, cases=records, checkpoint=checkpoint,
        ),
        folder / "done.json",
    )  # fmt: skip
    for path in (path for case in cases for path in prediction_files(cascade.first, case)):
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_masks_that_are_missing_are_named(cascade):
    finish(cascade, 0, ["scan0", "scan1"])
    assert cascade.missing_cases() == ["scan2", "scan3"] and not cascade.is_current()
    with pytest.raises(UserError, match=r"scan2\.nii\.gz"):
        next(cascade.steps(None))


def test_folds_of_different_checkpoints_are_refused(cascade):
    finish(cascade, 0, ["scan0", "scan1"])
    finish(cascade, 1, ["scan2", "scan3"], checkpoint="best")
    assert cascade.mixed_folds() == ["fold 0: last", "fold 1: best"]
    with pytest.raises(UserError, match="different checkpoints"):
        next(cascade.steps(None))


def test_data_are_made_once_and_anew_for_other_masks(cascade):
    finish(cascade, 0, list_cases(cascade.full))
    steps = cascade.steps(None)
    command = next(steps)
    assert isinstance(command, Command) and command.words[-2:] == ("--cascade", str(cascade.first / "out_of_fold"))
    # What preprocess.py leaves behind.
    cascade.shards.mkdir()
    (cascade.shards / "plan.json").touch()
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == "finished" and cascade.is_current()
    finish(cascade, 0, list_cases(cascade.full), mask="other")
    assert not cascade.is_current()


def test_a_command_that_made_nothing_is_an_error(cascade):
    finish(cascade, 0, list_cases(cascade.full))
    steps = cascade.steps(None)
    next(steps)
    with pytest.raises(UserError, match="was not made"):
        next(steps)
