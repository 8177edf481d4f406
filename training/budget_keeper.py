"""Lets a training end when its time is over: the number of its steps follows what they take.

Rank 0 decides, the others follow. Where the end that is to be expected stays within the last twentieth of the budget,
nothing changes, so that a training that is repeated or continued makes the steps that were planned. Checkpoints hold
what was decided.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from models.callbacks import ScheduledValidations, as_ours
from models.schedules import StepRate
from training.budget_rules import AIM, EARLIEST, LATEST
from utils.files import from_dict, to_dict

CHECKS_PER_EPOCH, CHECKS = 5, 50
"""Looks at the clock in an epoch and, where epochs are few, in the training: at least so many."""
RECENT, RECENT_SHARE = 5, 0.1
"""Stretches between two checks whose mean pace counts: so many of the last ones, or more that make this share of the
planned steps."""
KNOWN_SHARE = 0.03
"""Share of the planned steps as which the pace counts that was measured before them."""
RECENT_EPOCHS = 10
"""The last epochs of which the mean time around an epoch counts: a single one is written to disk in a moment or late,
and all that are left are reckoned by it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of a step, of what is around an epoch, of a whole validation and one of patches, of a command's end."""

    step_s: float
    epoch_s: float
    validation_s: float
    patches_s: float
    end_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """How a training is divided.

    Attributes:
        per_epoch: steps in an epoch.
        every: epochs from one validation of whole cases to the next.
        only_last: whether no epoch but the last one is validated.
        limit: most steps, where the number of epochs was given.
    """

    per_epoch: int
    every: int
    only_last: bool
    limit: int | None = None


def seconds_left(step: int, total: int, pace: Pace, course: Course) -> float:
    """From `step` steps on to the end of the command, where the training ends after `total` of them."""
    return (total - step) * _step_and_share(pace, course) + pace.validation_s + pace.end_s


def total_for(step: int, left_s: float, pace: Pace, course: Course) -> int:
    """The number of steps with which the command ends after `left_s` more seconds; at least one more than made."""
    steps = math.floor((left_s - pace.validation_s - pace.end_s) / _step_and_share(pace, course))
    total = step + max(steps, 1)
    return total if course.limit is None else max(min(total, course.limit), step + 1)


def _step_and_share(pace: Pace, course: Course) -> float:
    """A step with its share of what comes once an epoch or once in some epochs."""
    around_s = pace.epoch_s
    if not course.only_last:
        around_s += pace.validation_s / course.every + pace.patches_s * (1 - 1 / course.every)
    return pace.step_s + around_s / course.per_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """What a keeper begins with: wall time of the command, steps that fit, what they take, how they are divided."""

    budget_s: float
    total: int
    pace: Pace
    course: Course


class BudgetKeeper(Callback):
    """Keeps the end of a command at the end of its budget.

    Args:
        plan: for a new training; a resumed one goes on with what its checkpoint holds.
        started_s: start of the command on the clock. The time of a resumed training goes on from what its checkpoint
            has used, once it trains again.
        clock: in seconds.
    """

    def __init__(self, plan: BudgetPlan, started_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.total, self.pace = plan, plan.total, plan.pace
        self.changes: list[dict[str, float]] = []
        self._clock, self._start_s = clock, started_s
        self._resumed_at_s: float | None = None
        self._stretches = [self._known()]
        self._around_s: list[float] = []
        self._made = 0
        self._mark: tuple[float, int] | None = None
        self._batch_end_s: float | None = None
        self._is_warm = self._has_ended_one = False
        self._validation_s = self._validation_start_s = 0.0

    @property
    def used_s(self) -> float:
        """Seconds of the budget that are used."""
        return self._clock() - self._start_s

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:  # fmt: skip
        """Lightning looks at the number of epochs before the rest of the state is asked for."""
        self.load_state_dict(checkpoint["callbacks"][self.state_key])
        trainer.fit_loop.max_epochs = self._epochs

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Correct the plan by what the start has taken; a resumed training goes on with its own."""
        # What ends by its time has no least number of epochs.
        trainer.fit_loop.min_epochs = 0
        self._made = trainer.global_step
        if self._resumed_at_s is None:
            self._check(trainer, module)
        else:
            self._start_s = self._clock() - self._resumed_at_s
        self._apply(trainer, module)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Note how long it took from the last step of the epoch before, without its validation.

        After the first epoch of a process it takes longer: what writes and draws is loaded then.
        """
        now_s = self._clock()
        if self._batch_end_s is not None and self._has_ended_one:
            around_s = now_s - self._batch_end_s - self._validation_s
            self._around_s = [*self._around_s[1 - RECENT_EPOCHS :], around_s]
            self.pace = dataclasses.replace(self.pace, epoch_s=statistics.mean(self._around_s))
        self._has_ended_one = self._batch_end_s is not None
        self._mark, self._validation_s = (now_s, trainer.global_step), 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Look at the clock some times in an epoch, and end the training after its last step."""
        self._batch_end_s, self._made = self._clock(), trainer.global_step
        step = self._made
        if not self._is_warm:
            # The first step starts the loader and prepares kernels: its time is gone, and says nothing of the others.
            self._is_warm, self._mark = True, (self._batch_end_s, step)
        elif step % self._interval == 0 and self._mark is not None:
            before_s, steps = self._mark
            if step > steps:
                self._stretches = self._recent((self._batch_end_s - before_s, step - steps))
            self._mark = self._batch_end_s, step
            self._measure()
            self._check(trainer, module)
        if step >= self.total:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin to time a validation."""
        self._validation_start_s = self._clock()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Know what a validation really takes; what comes before the first epoch is one of a single case."""
        if trainer.sanity_checking:
            return
        self._validation_s = self._clock() - self._validation_start_s
        kind = "patches_s" if as_ours(module).shown_patches else "validation_s"
        self.pace = dataclasses.replace(self.pace, **{kind: self._validation_s})

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look at the clock before the checkpoint is written."""
        self._check(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """What was decided and measured, as plain values."""
        decided = {"total": self.total, "made": self._made, "changes": [dict(change) for change in self.changes]}
        return decided | {"plan": to_dict(self.plan), "pace": to_dict(self.pace), "used_s": self.used_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the plan of a checkpoint and the rest of its time."""
        self.plan = from_dict(BudgetPlan, state["plan"], source="checkpoint")
        self.pace = from_dict(Pace, state["pace"], source="checkpoint")
        self.total, self.changes, self._resumed_at_s = state["total"], list(state["changes"]), state["used_s"]
        self._stretches = [self._known()]
        # A training that was at its end makes no step more; checkpoints of earlier versions do not count them.
        self._made = state.get("made", self.total)

    def summary(self) -> dict[str, Any]:
        """Numbers for the record of the run."""
        return {"budget_s": self.plan.budget_s, "steps": self._made, "plan_changes": len(self.changes)}

    @property
    def _interval(self) -> int:
        """Steps from one look at the clock to the next."""
        return max(1, min(self.plan.course.per_epoch // CHECKS_PER_EPOCH, self.plan.total // CHECKS))

    @property
    def _epochs(self) -> int:
        return math.ceil(self.total / self.plan.course.per_epoch)

    def _known(self) -> tuple[float, int]:
        """What was measured before counts like some of the steps, so that the first few change no plan."""
        steps = max(math.floor(KNOWN_SHARE * self.plan.total), 1)
        return self.pace.step_s * steps, steps

    def _recent(self, stretch: tuple[float, int]) -> list[tuple[float, int]]:
        """The stretches that count, with a new one."""
        stretches = [*self._stretches, stretch]
        while len(stretches) > RECENT and sum(n for _, n in stretches[1:]) >= RECENT_SHARE * self.plan.total:
            stretches.pop(0)
        return stretches

    def _measure(self) -> None:
        seconds, steps = (sum(part) for part in zip(*self._stretches))
        self.pace = dataclasses.replace(self.pace, step_s=seconds / steps)

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step = trainer.global_step
        total = self.total if step >= self.total else self._decide(step)
        total = trainer.strategy.broadcast(total)
        if total != self.total:
            self.changes.append({"step": step, "used_s": round(self.used_s, 3), "from": self.total, "to": total})
            self.total = total
            self._apply(trainer, module)

    def _decide(self, step: int) -> int:
        budget_s, used_s, course = self.plan.budget_s, self.used_s, self.plan.course
        end_s = used_s + seconds_left(step, self.total, self.pace, course)
        if EARLIEST * budget_s <= end_s <= LATEST * budget_s:
            return self.total
        return total_for(step, AIM * budget_s - used_s, self.pace, course)

    def _apply(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Let epochs, validations and learning rate follow the number of steps."""
        trainer.fit_loop.max_epochs = self._epochs
        for callback in getattr(trainer, "callbacks", ()):
            if isinstance(callback, ScheduledValidations):
                only_last = self.plan.course.only_last
                callback.follow(trainer, module, last_epoch=self._epochs - 1, only_last=only_last)
        for config in trainer.lr_scheduler_configs:
            for rate in getattr(config.scheduler, "lr_lambdas", ()):
                if isinstance(rate, StepRate) and rate.total != self.total:
                    rate.change_total(trainer.global_step, self.total)
