"""From what is asked for to runs in order; no run begins here."""

from __future__ import annotations

import json

import pytest

from cross_validation.jobs import RunSelection, check_passed, plan_jobs
from utils.errors import UserError


@pytest.fixture
def selection(data, tmp_path):
    return RunSelection(
        task="77", configurations=("3d_fullres",), folds=None, data=data, results=tmp_path / "results"
    )  # fmt: skip


def replaced(selection, **changes):
    return RunSelection(**(vars(selection) | changes))


def test_all_folds_in_order_each_in_a_folder_of_its_own(selection, tmp_path):
    plan = plan_jobs(selection, ("--epochs", "2"))
    assert [job.name for job in plan.jobs] == ["3d_fullres fold 0", "3d_fullres fold 1"]
    assert plan.runs[1].folder == tmp_path / "results/77_3d_fullres/fold_1" and plan.notes == ()
    assert not (tmp_path / "results").exists()


def test_a_cascade_brings_its_first_stage_and_its_data_before_it(selection):
    plan = plan_jobs(replaced(selection, configurations=("3d_cascade_fullres",), folds=(1,)), ())
    names = [job.name for job in plan.jobs]
    assert names == ["3d_lowres fold 0", "3d_lowres fold 1", "3d_cascade_fullres data", "3d_cascade_fullres fold 1"]
    assert plan.jobs[2].after == tuple(names[:2]) and plan.jobs[3].after == (names[2],)
    assert "needs the out-of-fold masks" in plan.notes[0]


def test_only_what_is_asked_for_is_overwritten(selection):
    plan = plan_jobs(replaced(selection, configurations=("3d_cascade_fullres",), folds=(1,), overwrite=True), ())
    assert {run.configuration: run.overwritten for run in plan.runs} == {"3d_lowres": (), "3d_cascade_fullres": (1,)}


def test_a_configuration_that_is_named_twice_runs_once(selection):
    assert len(plan_jobs(replaced(selection, configurations=("3d_fullres", "3d_fullres")), ()).runs) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("folds", "said"), [((2,), "got 2: there are 2 folds"), ((), "got none")])
def test_folds_that_are_not_there_are_refused(selection, folds, said):
    with pytest.raises(UserError, match=said):
        plan_jobs(replaced(selection, folds=folds), ())


def test_missing_data_names_the_command_that_makes_it(selection):
    with pytest.raises(UserError, match=r"2d: .*plan.json is missing; run: python preprocess.py --task 77 --dim 2"):
        plan_jobs(replaced(selection, configurations=("2d",)), ())


def test_filters_of_several_configurations_are_told_with_the_levels_of_each(selection, data):
    path = data / "77_3d/plan.json"
    plan = json.loads(path.read_text())
    stage = plan["stage"]
    more = {name: [*stage[name], stage[name][-1]] for name in ("kernels", "filters")}
    more["strides"] = [*stage["strides"], [1, 1, 1]]
    more["decoder_kernels"] = []
    path.write_text(json.dumps(plan | {"stage": stage | more}))
    levels, given = len(stage["strides"]) + 1, ["8"] * len(stage["strides"])
    both = replaced(selection, configurations=("3d_fullres", "3d_lowres"))
    with pytest.raises(UserError) as error:
        plan_jobs(both, ("--filters", *given))
    message = str(error.value)
    assert "too few for 3d_fullres:" in message
    assert f"3d_fullres has {levels} levels" in message and f"3d_lowres has {levels - 1} levels" in message


@pytest.mark.parametrize("word", ["--fold", "--no_save_ckpt", "--save-preds", "--gpus=0", "--nfolds", "--prepared"])
def test_flags_of_the_command_itself_are_not_passed_on(word):
    with pytest.raises(UserError, match="cannot stand after --"):
        check_passed((word,))


def test_flags_of_a_training_are_passed_on():
    check_passed(("--epochs", "3", "--splits", "s.json", "--affinity", "disabled"))


def test_a_config_file_may_not_decide_what_each_step_decides(selection, tmp_path):
    (tmp_path / "c.json").write_text('{"save_ckpt": false}')
    with pytest.raises(UserError, match="must not set save_ckpt"):
        plan_jobs(selection, ("--config", str(tmp_path / "c.json")))
