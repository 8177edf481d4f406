"""A training ends when its time is over, on a clock that moves with its steps; resumed, it keeps plan and time."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.nn_unet import NNUnet
from tests.main_runs import TINY_NETWORK, checkpoint, history, outcome, train, weights
from tests.tiny_task import Task, make_folds
from training.budget import Decision
from training.budget_keeper import BudgetKeeper, BudgetPlan, Course, Pace, seconds_left, total_for

PACE = Pace(step_s=1.0, epoch_s=0.0, validation_s=2.0, patches_s=0.0, end_s=3.0)
COURSE = Course(per_epoch=4, every=6, only_last=True)
# 24 steps, the validation and the end: 29 of 30 s.
PLAN = BudgetPlan(budget_s=30, total=24, pace=PACE, course=COURSE)
OPTIONS = {
    "max_epochs": 6, "batches_per_epoch": 4, "patience": 0, "scheduler": "cosine",
    "schedule_by": "step", "learning_rate": 0.01, "validate_every": 6, "skip_first_n_eval": 5, "augment": "none",
}  # fmt: skip
FLAGS = (*TINY_NETWORK, "--nfolds", "3", "--budget", "30s", "--no_report", "--ema", "0.9")


def made_up_trainer() -> SimpleNamespace:
    """What a keeper looks at and changes."""
    return SimpleNamespace(
        global_step=0, should_stop=False, fit_loop=SimpleNamespace(), lr_scheduler_configs=[],
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )  # fmt: skip


def test_what_is_left_by_hand():
    assert seconds_left(10, 24, PACE, COURSE) == 14 + 2 + 3
    often = Course(per_epoch=4, every=2, only_last=False)
    pace = Pace(step_s=1, epoch_s=1, validation_s=2, patches_s=4, end_s=3)
    # Of an epoch: 4 steps, 1 s around it, half of a validation, half of one by patches.
    assert seconds_left(10, 14, pace, often) == 4 + 1 + 1 + 2 + 2 + 3


@pytest.mark.parametrize("left_s", [0.0, 5.9, 6.0, 17.5, 100.0])
def test_the_total_is_the_largest_that_ends_in_time_and_at_least_a_step(left_s):
    total = total_for(10, left_s, PACE, COURSE)
    assert total >= 11
    assert total == 11 or seconds_left(10, total, PACE, COURSE) <= left_s
    assert seconds_left(10, total + 1, PACE, COURSE) > left_s


@pytest.mark.slow
def test_a_slow_start_costs_its_time_and_no_more(task, tmp_path, keep):
    clock = Clock(lambda step: 9.0 if step == 1 else 1.0)
    keep(clock)
    assert train(task, tmp_path, *FLAGS) == 0
    changes = checkpoint(tmp_path)["callbacks"]["BudgetKeeper"]["changes"]
    # 8 of 24 steps are lost; if the first one counted, 9 s a step would leave 3.
    assert {change["to"] for change in changes} <= {15, 16, 17}
    assert used_s(tmp_path, clock) <= 30 and clock.steps in (15, 16, 17)


def test_long_epochs_are_not_trained_blindly():
    course = Course(per_epoch=2000, every=1, only_last=True)
    keeper = BudgetKeeper(BudgetPlan(budget_s=600, total=500, pace=PACE, course=course), 0.0)
    assert keeper._interval == 10


def test_a_given_number_of_epochs_is_never_exceeded():
    course = Course(per_epoch=4, every=6, only_last=True, limit=20)
    assert total_for(10, 100, PACE, course) == 20


class Clock:
    """Moves by `step_s(number of the step)` with every training step, and by 2 s with a whole validation."""

    def __init__(self, step_s=lambda step: 1.0) -> None:
        self.now_s, self.steps, self.step_s = 0.0, 0, step_s

    def __call__(self) -> float:
        return self.now_s

    def move(self) -> None:
        self.steps += 1
        self.now_s += self.step_s(self.steps)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return make_folds(tmp_path_factory.mktemp("task"))


@pytest.fixture
def keep(monkeypatch):
    """Let trainings run by a clock of steps and by `PLAN`."""
    real_step, real_end = NNUnet.training_step, NNUnet.on_validation_epoch_end

    def use(clock: Clock) -> None:
        def step(self, batch, batch_index):
            clock.move()
            return real_step(self, batch, batch_index)

        def validated(self):
            real_end(self)
            clock.now_s += 0 if self.trainer.sanity_checking else 2

        monkeypatch.setattr(NNUnet, "training_step", step)
        monkeypatch.setattr(NNUnet, "on_validation_epoch_end", validated)
        monkeypatch.setattr("training.budget.BudgetKeeper", functools.partial(_started_at_0, clock))
        decision = Decision(options=OPTIONS, plan=PLAN, lines=("what was chosen",))
        monkeypatch.setattr("training.budget.decide", lambda config, started_s, width_of: decision)

    return use


def _started_at_0(clock: Clock, plan: BudgetPlan, started_s: float) -> BudgetKeeper:
    return BudgetKeeper(plan, 0.0, clock)


def used_s(results: Path, clock: Clock) -> float:
    return clock.now_s + PACE.end_s


@pytest.mark.slow
def test_at_a_steady_pace_the_plan_stays_and_only_the_last_epoch_is_validated(task, tmp_path, keep, capsys):
    clock = Clock()
    keep(clock)
    assert train(task, tmp_path, *FLAGS) == 0
    assert "what was chosen" in capsys.readouterr().out
    assert (clock.steps, used_s(tmp_path, clock)) == (24, 29)
    assert [record["mean_dice"] is not None for record in history(tmp_path)] == [False] * 5 + [True]
    found = outcome(tmp_path)
    assert (found["budget_s"], found["steps"], found["plan_changes"]) == (30, 24, 0)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_change_of_pace_changes_the_number_of_steps_and_not_the_end(task, tmp_path, keep, factor):
    clock = Clock(lambda step: 1.0 if step <= 9 else factor)
    keep(clock)
    assert train(task, tmp_path, *FLAGS) == 0
    assert 0.9 * 30 <= used_s(tmp_path, clock) <= 30
    assert (clock.steps > 24) == (factor < 1) and clock.steps != 24
    records = history(tmp_path)
    assert records[-1]["mean_dice"] is not None and all(record["mean_dice"] is None for record in records[:-1])
    # The rate falls to its end all the same.
    [state] = checkpoint(tmp_path)["lr_schedulers"]
    assert state["_last_lr"][0] < 0.01 * 0.01 and state["lr_lambdas"][0]["total"] == clock.steps
    assert len(checkpoint(tmp_path)["callbacks"]["BudgetKeeper"]["changes"]) >= 1


@pytest.mark.slow
def test_a_pace_that_collapses_ends_the_epoch_at_once_with_its_validation(task, tmp_path, keep):
    clock = Clock(lambda step: 1.0 if step <= 5 else 12.0)
    keep(clock)
    assert train(task, tmp_path, *FLAGS) == 0
    assert clock.steps == 8 and history(tmp_path)[-1]["mean_dice"] is not None


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_uninterrupted_training(task, tmp_path, keep, monkeypatch):
    pace = [1.0] * 6 + [1.5] * 100

    def run(results: Path, clock: Clock, *flags: str) -> int:
        keep(clock)
        return train(task, results, *FLAGS, *flags)

    whole = Clock(lambda step: pace[step])
    assert run(tmp_path / "whole", whole) == 0

    def killed(step: int) -> float:
        if step == 15:
            raise KeyboardInterrupt
        return pace[step]

    broken = Clock(killed)
    assert run(tmp_path / "broken", broken) == 130
    before = checkpoint(tmp_path / "broken")["callbacks"]["BudgetKeeper"]
    assert before["changes"]
    # Another process, much later: three epochs of four steps are done.
    rest = Clock(lambda step: pace[step + 12])
    rest.now_s = 1000.0
    assert run(tmp_path / "broken", rest, "--resume_training") == 0
    assert rest.steps == whole.steps - 12
    ours, theirs = (checkpoint(tmp_path / name) for name in ("broken", "whole"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, theirs[key][name]) for name, value in ours[key].items())
    keeper = {name: both["callbacks"]["BudgetKeeper"] for name, both in (("ours", ours), ("theirs", theirs))}
    assert keeper["ours"]["changes"] == keeper["theirs"]["changes"]
    assert keeper["ours"]["used_s"] == pytest.approx(keeper["theirs"]["used_s"])
    # Once more, with nothing to do.
    shutil.copytree(tmp_path / "broken", tmp_path / "again", dirs_exist_ok=True)
    again = Clock()
    assert run(tmp_path / "broken", again, "--resume_training") == 0
    assert again.steps == 0
    assert all(
        torch.equal(value, weights(tmp_path / "again")[name]) for name, value in weights(tmp_path / "broken").items()
    )


def test_steps_and_epochs_that_take_longer_now_and_then_change_no_plan():
    """Every tenth epoch writes pictures and a checkpoint; steps differ by a fifth. It all was measured on average."""
    course = Course(per_epoch=10, every=100, only_last=True)
    pace = Pace(step_s=0.25, epoch_s=0.14, validation_s=5, patches_s=0, end_s=5)
    total = total_for(0, 0.975 * 300, pace, course)
    random = np.random.default_rng(0)
    now_s = [0.0]
    keeper = BudgetKeeper(BudgetPlan(budget_s=300, total=total, pace=pace, course=course), 0.0, lambda: now_s[0])
    trainer = made_up_trainer()
    keeper.on_train_start(trainer, None)
    for epoch in range(200):
        keeper.on_train_epoch_start(trainer, None)
        for _ in range(course.per_epoch):
            if trainer.should_stop:
                break
            now_s[0] += 0.25 * random.uniform(0.8, 1.2)
            trainer.global_step += 1
            keeper.on_train_batch_end(trainer, None)
        keeper.on_train_epoch_end(trainer, None)
        now_s[0] += 0.5 if epoch % 10 == 9 else 0.1
        if trainer.should_stop:
            break
    assert keeper.changes == [] and keeper.summary()["steps"] == trainer.global_step == total


def test_what_the_first_epoch_loads_at_its_end_is_not_expected_again():
    """Here it takes as long as 16 steps, and 0.1 s later on."""
    course = Course(per_epoch=3, every=100, only_last=True)
    pace = Pace(step_s=1.0, epoch_s=0.3, validation_s=2, patches_s=0, end_s=5)
    total = total_for(0, 0.975 * 150, pace, course)
    now_s = [0.0]
    keeper = BudgetKeeper(BudgetPlan(budget_s=150, total=total, pace=pace, course=course), 0.0, lambda: now_s[0])
    trainer = made_up_trainer()
    keeper.on_train_start(trainer, None)
    totals = []
    while not trainer.should_stop:
        keeper.on_train_epoch_start(trainer, None)
        for _ in range(course.per_epoch):
            now_s[0] += 1.0
            trainer.global_step += 1
            keeper.on_train_batch_end(trainer, None)
            totals.append(keeper.total)
        keeper.on_train_epoch_end(trainer, None)
        now_s[0] += 16.0 if trainer.global_step == course.per_epoch else 0.1
    # The 16 s are gone; the steps that they would have been are.
    assert total - 20 <= min(totals) and trainer.global_step >= total - 20
    assert now_s[0] + 2 + 5 <= 150


def test_what_is_recorded_is_what_was_made_where_a_training_ends_before_its_plan():
    keeper = BudgetKeeper(PLAN, 0.0, lambda: 10.0)
    trainer = made_up_trainer()
    keeper.on_train_start(trainer, None)
    trainer.global_step = 7
    keeper.on_train_batch_end(trainer, None)
    assert keeper.summary()["steps"] == 7
