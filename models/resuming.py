"""What a checkpoint remembers of its training: whether that can be continued, and whether a score of it is fair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from models.checkpoint import CheckpointContents, check_fits
from models.schedules import build_scheduler
from utils.args import Config
from utils.config import ModelConfig
from utils.errors import list_problems
from utils.files import to_dict
from utils.optim_config import OptimConfig
from utils.runs import checkpoint_folder
from utils.schema import Fold, Plan
from utils.training_record import TrainingRecord, data_changes, fold_changes, named, option_changes, training_options
from utils.training_state import TrainingState, write_training_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCases:
    """The cases of a fold, and for each a digest of what its shard was made from (`shards.shard_stamps`)."""

    fold: Fold
    stamps: dict[str, str]


def take_notes(
    config: Config, plan: Plan, cases: TrainingCases, *, processes: int, start: CheckpointContents | None,
    resume: CheckpointContents | None,
) -> tuple[TrainingNotes, list[str]]:  # fmt: skip
    """What the checkpoints of a training will say of it, and warnings.

    Args:
        config: of the run.
        plan: adapted to it.
        cases: those of the fold.
        processes: data-parallel ones.
        start: whose weights a new training begins from.
        resume: the checkpoint from which a training is continued.

    Raises:
        UserError: `resume` is of a training with other cases or options.
    """
    record = TrainingRecord(
        fold=config.run.fold,
        cases=cases.fold,
        earlier=earlier_cases(start, plan),
        options=training_options(config, batch_size=plan.stage.batch_size),
        processes=processes,
        data=cases.stamps,
    )
    folder = checkpoint_folder(config.run)
    if resume is None:
        warnings = [] if start is None else flattered_scores(start, cases.fold.val, plan)
        if record.fold == "all":
            warnings.append("--fold all validates on cases that are trained on: its Dice says nothing about new ones")
        return TrainingNotes(record, folder, config.optim), warnings
    warnings = check_resumable(resume, record, plan, config.model)
    return TrainingNotes(record, folder, config.optim, resumed=resume), warnings


def check_resumable(
    contents: CheckpointContents, record: TrainingRecord, plan: Plan, model: ModelConfig
) -> list[str]:  # fmt: skip
    """Refuse to continue a training with other cases, options or another network.

    Args:
        contents: the checkpoint to continue from.
        record: what is asked for now.
        plan: adapted to the flags.
        model: options of the network.

    Returns:
        Warnings.

    Raises:
        UserError: anything differs; all differences are named.
    """
    check_fits(contents, plan, model=model)
    stored, path = contents.training, contents.path
    changed = option_changes(contents.options, record.options)
    if stored is not None:
        changed = fold_changes(stored, record.fold, record.cases) + data_changes(stored, record.data) + changed
    if changed:
        raise list_problems(
            f"--resume_training continues {path}, and this is another training than that one:",
            changed,
            advice="Either give the flags and folds that it was begun with (--max_epochs may grow), or begin a new "
            f"training from its weights: --ckpt_path {path} in place of --resume_training, and another --results.",
        )
    if stored is None:
        return [
            f"{path} was written by an earlier version and does not say on which cases and with which options it was "
            "trained; give the same fold and flags as then"
        ]
    if stored.processes != record.processes:
        return [
            f"{path} was trained by {stored.processes} processes, now there are {record.processes}, each with its own "
            "batch: a step sees another number of patches"
        ]
    return []


def flattered_scores(contents: CheckpointContents, cases: Sequence[str], plan: Plan) -> list[str]:
    """What to say where cases are to be scored from which the weights of a checkpoint have learned.

    Args:
        contents: the checkpoint.
        cases: training cases of the data set, to be scored.
        plan: of the data set.
    """
    if contents.training is None:
        return [f"{contents.path} does not say on which cases it was trained; scores of those are flattered"]
    if contents.plan is None or contents.plan.task != plan.task:
        return []
    seen = sorted(contents.training.seen & set(cases))
    if not seen:
        return []
    return [
        f"{contents.path} (fold {contents.training.fold}) was trained on {named(seen)} of the {len(cases)} to be "
        "scored; scores of cases that a network was trained on say nothing about new ones"
    ]


def earlier_cases(start: CheckpointContents | None, plan: Plan) -> tuple[str, ...]:
    """Cases of the plan's data set from which the weights that a training starts from have learned."""
    if start is None or start.training is None or start.plan is None or start.plan.task != plan.task:
        return ()
    return tuple(sorted(start.training.seen))


class TrainingNotes(Callback):
    """Puts the record of a training into its checkpoints, and keeps `training.json` beside them.

    A resumed training that may now take more epochs gets the schedule of one that was begun so: its learning rate goes
    on where that one would be, not at the end of the shorter one.

    Args:
        record: of this training.
        folder: of the checkpoints.
        optim: optimiser, schedule and number of epochs.
        resumed: the checkpoint that it continues from.
    """

    def __init__(
        self, record: TrainingRecord, folder: Path, optim: OptimConfig, resumed: CheckpointContents | None = None
    ) -> None:
        if resumed is not None:
            earlier = () if resumed.training is None else resumed.training.earlier
            record = dataclasses.replace(record, earlier=earlier)
        self._record, self._folder, self._optim = record, folder, optim
        before = None if resumed is None else resumed.options.get("max_epochs")
        self._is_longer = before is not None and before != optim.max_epochs

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Say that the training goes on."""
        if self._is_longer:
            restart_schedule(trainer, self._optim)
        self._write(trainer, trainer.current_epoch, finished=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Say how far it is."""
        self._write(trainer, trainer.current_epoch + 1, finished=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:  # fmt: skip
        """Note cases and options, as plain values."""
        checkpoint["training"] = to_dict(self._record)

    def finish(self, trainer: pl.Trainer) -> None:
        """Say that it has come to its end, by the number of epochs or earlier; call it after `fit` has returned."""
        self._write(trainer, trainer.current_epoch, finished=True)

    def _write(self, trainer: pl.Trainer, epochs: int, *, finished: bool) -> None:
        if trainer.is_global_zero:
            state = TrainingState(
                fold=self._record.fold, epochs=epochs, max_epochs=trainer.max_epochs or 0, finished=finished
            )
            # The checkpoints of an earlier training, which were here, may have been moved since this one was set up.
            self._folder.mkdir(parents=True, exist_ok=True)
            write_training_state(self._folder, state)


def restart_schedule(trainer: pl.Trainer, optim: OptimConfig) -> None:
    """Bring a schedule that follows the number of epochs to where it is after as many epochs of `optim`."""
    if optim.scheduler not in ("cosine", "poly", "wsd"):
        return
    [scheduler] = [config.scheduler for config in trainer.lr_scheduler_configs]
    # Stepped from the beginning, so that the rates are those of an uninterrupted training to the last bit.
    rehearsal = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=optim.learning_rate)
    steps = optim.max_epochs * int(trainer.num_training_batches) if optim.moves_by_step else 0
    fresh = build_scheduler(rehearsal, optim, steps=steps)
    assert fresh is not None
    for _ in range(scheduler.last_epoch):
        rehearsal.step()
        fresh.step()
    scheduler.load_state_dict(fresh.state_dict())
    for group in trainer.optimizers[0].param_groups:
        group["lr"] = rehearsal.param_groups[0]["lr"]
