"""The progress bar of a terminal, with the epoch out of how many and the time that is left."""

from __future__ import annotations

import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from utils.pace import Pace


class EpochBar(RichProgressBar):
    """Lightning's bar, which says "epoch 5 of 30, 12 min left" where Lightning says "Epoch 4/29"."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()
        self._epoch_start_s = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_start_s = time.perf_counter()
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take in how long the epoch was, its validation included."""
        self._pace.add(time.perf_counter() - self._epoch_start_s)
        super().on_train_epoch_end(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning has no public name for it.
        max_epochs = self.trainer.max_epochs or 0
        return describe_epoch(current_epoch, max_epochs, self._pace.left(max_epochs - current_epoch))


def describe_epoch(epoch: int, max_epochs: int, left: str = "") -> str:
    """What a person reads of an epoch: "epoch 5 of 30, 12 min left".

    Args:
        epoch: counted from 0, as in the names of checkpoints.
        max_epochs: of the training.
        left: the time that is left, in words; empty if that is not known.
    """
    return f"epoch {epoch + 1} of {max_epochs}" + (f", {left}" if left else "")
