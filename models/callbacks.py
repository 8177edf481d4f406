"""What happens around the epochs: reports, validations when they are due, signals."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from models.case_scores import CASE_SCORES, gather_counts, is_best, write_case_scores
from models.nn_unet import NNUnet
from models.progress import describe_epoch
from utils.errors import interrupt_run, raise_lost_interrupt
from utils.figures import EpochRecord, write_progress
from utils.files import from_dict, to_dict
from utils.logger import NullLogger, RunLogger
from utils.pace import Pace
from utils.validation_schedule import ValidationSchedule

DRAWING_SHARE = 0.02
"""Of the time of a training, at most so much for the picture of its curves."""


def as_ours(module: pl.LightningModule) -> NNUnet:
    """The module as what it is; Lightning hands any module to a callback, and its types know no other."""
    return cast(NNUnet, module)


class EpochReport(Callback):
    """One line and one logger record per epoch, and `progress.png`; the history survives a resume.

    Line and picture count epochs from 1, records and checkpoints' names from 0; the line says how long the rest takes.
    A picture takes about a second of a slow machine, which epochs of a few seconds do not have: it is drawn after an
    epoch where it takes no more than `DRAWING_SHARE` of the time, and when the training ends.
    """

    def __init__(
        self, logger: RunLogger | NullLogger, figure: Path, target_names: tuple[str, ...], cases: tuple[str, ...] = ()
    ) -> None:
        self.logger, self.figure, self.target_names, self.cases = logger, figure, target_names, cases
        self.history: list[EpochRecord] = []
        self._epoch_start_s = time.perf_counter()
        self._learning_rate = 0.0
        # Of this process: an earlier one may have run on another machine.
        self._pace = Pace()
        self._drawn = 0
        self._draw_again_s = -math.inf

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the epoch's clock and note its learning rate, which schedules change before the epoch's end."""
        self._epoch_start_s = time.perf_counter()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        as_ours(module).last_validation = None

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Record the epoch in every process (checkpoints hold the history); only the first one writes."""
        ours = as_ours(module)
        found = ours.last_validation
        validation, patches = (found, None) if found is None or found.whole else (None, found)
        record = EpochRecord(
            epoch=trainer.current_epoch,
            train_loss=ours.mean_train_loss(),
            val_loss=validation.loss if validation else None,
            val_dice=validation.dice if validation else (),
            mean_dice=validation.mean_dice if validation else None,
            learning_rate=self._learning_rate,
            seconds=time.perf_counter() - self._epoch_start_s,
            patch_loss=patches.loss if patches else None,
            patch_dice=patches.mean_dice if patches else None,
        )
        self.history.append(record)
        self._pace.add(record.seconds)
        # The same in all processes, as the pooled Dice is.
        best = bool(self.cases) and is_best(record, self.history)
        counts = gather_counts(ours, self.cases) if best else {}
        if not trainer.is_global_zero:
            return
        print(self._line(record, trainer.max_epochs or 0), flush=True)
        data: dict[str, float | None] = {"train_loss": record.train_loss, "learning_rate": record.learning_rate}
        data["epoch_s"] = record.seconds
        if found:
            data |= found.summary(self.target_names)
        self.logger.log(record.epoch, data)
        if time.monotonic() >= self._draw_again_s:
            self._draw()
        if best:
            write_case_scores(self.figure.with_name(CASE_SCORES), record, self.target_names, counts)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw what was not drawn; a training that is stopped has no time for that."""
        if trainer.is_global_zero and len(self.history) > self._drawn:
            self._draw()

    def _draw(self) -> None:
        begin_s = time.monotonic()
        write_progress(self.figure, self.history, self.target_names)
        end_s = time.monotonic()
        self._drawn, self._draw_again_s = len(self.history), end_s + (end_s - begin_s) / DRAWING_SHARE

    def summary(self) -> dict[str, Any]:
        """Epochs, seconds of all of them (those before a resume included), and the best validation."""
        outcome: dict[str, Any] = {"epochs": len(self.history), "train_s": sum(r.seconds for r in self.history)}
        validated = [(r.mean_dice, r) for r in self.history if r.mean_dice is not None and math.isfinite(r.mean_dice)]
        if validated:
            best_dice, best = max(validated, key=lambda scored: scored[0])
            outcome |= {"best_dice": best_dice, "best_epoch": best.epoch}
            outcome |= {f"best_dice_{name}": value for name, value in zip(self.target_names, best.val_dice)}
        return outcome

    def _line(self, record: EpochRecord, max_epochs: int) -> str:
        parts = [describe_epoch(record.epoch, max_epochs), f"train loss {record.train_loss:.4f}"]
        if record.mean_dice is not None:
            each = ", ".join(f"{name} {value:.4f}" for name, value in zip(self.target_names, record.val_dice))
            parts += [f"val loss {record.val_loss:.4f}", f"dice {record.mean_dice:.4f} ({each})"]
        if record.patch_dice is not None:
            parts += [f"patches: val loss {record.patch_loss:.4f}, dice {record.patch_dice:.4f}"]
        parts += [f"lr {record.learning_rate:.2e}", f"{record.seconds:.1f} s"]
        return "  ".join([*parts, *filter(None, [self._pace.left(max_epochs - record.epoch - 1)])])

    def state_dict(self) -> dict[str, Any]:
        """The history as plain values."""
        return {"history": [to_dict(record) for record in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the history of a checkpoint."""
        self.history = [from_dict(EpochRecord, record, source="checkpoint") for record in state["history"]]


class ScheduledValidations(Callback):
    """Validation of whole cases, of patches, or none, as the schedule has it for the epoch."""

    def __init__(self, schedule: ValidationSchedule) -> None:
        self.schedule = schedule

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Switch validation off or on for the epoch that begins, and tell the module what it will be shown."""
        kind = self.schedule.kind(trainer.current_epoch)
        trainer.limit_val_batches = 0.0 if kind == "none" else 1.0
        as_ours(module).shown_patches = kind == "patches"

    def follow(self, trainer: pl.Trainer, module: pl.LightningModule, *, last_epoch: int, only_last: bool) -> None:
        """Let loader and module keep to the schedule of a training that now ends after another epoch.

        Args:
            trainer: of the training.
            module: that it trains.
            last_epoch: counted from 0.
            only_last: whether nothing is scored before it.
        """
        skipped = last_epoch if only_last else min(self.schedule.skipped, last_epoch)
        self.schedule = dataclasses.replace(self.schedule, last_epoch=last_epoch, skipped=skipped)
        data = getattr(trainer, "datamodule", None)
        if data is not None:
            data.schedule = self.schedule
        self.on_train_epoch_start(trainer, module)


class OwnSignals(Callback):
    """SIGTERM ends a run as Ctrl-C does; Lightning would go on to the next batch and wait there for other processes."""

    def on_sanity_check_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Lightning has just put its handlers in place."""
        self._take_back()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The same for a run that checks no validation case first."""
        self._take_back()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The same for a run that only validates."""
        self._take_back()

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The same for a run that predicts."""
        self._take_back()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """An interrupt that was lost in the batch before ends the run here."""
        raise_lost_interrupt()

    def on_validation_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """The same between the cases of a validation."""
        raise_lost_interrupt()

    def on_predict_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """The same between cases that are predicted."""
        raise_lost_interrupt()

    @staticmethod
    def _take_back() -> None:
        # A program that does not end by signals in this way (a notebook) keeps what Lightning does.
        if interrupt_run in getattr(signal.getsignal(signal.SIGTERM), "signal_handlers", ()):
            signal.signal(signal.SIGTERM, interrupt_run)
