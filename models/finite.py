"""Ending a training whose numbers are not finite any more, before a checkpoint is made of them."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from models.callbacks import as_ours
from utils.errors import UserError

CHECK_BATCHES = 10
"""Batches between two looks at what the device has counted: reading a number makes a GPU wait."""
SKIPPED_BATCHES = 10
"""Losses in a row that may be infinite in fp16, where a step with such gradients is left out and the scale reduced."""
LEAST_SCALE = 2.0**-10
"""Of the losses in fp16. Begun at 65536 and halved with each step that is left out, it falls below this if nearly all
of them are."""

_ADVICE = (
    "No checkpoint was made of this epoch. Try a lower --learning_rate, --gradient_clip_val 12, or --precision fp32; "
    "--resume_training goes on from the last whole epoch."
)


class EndWhereNotFinite(Callback):
    """Ends a training after a few batches whose loss, gradient or weights are infinite or not numbers.

    A gradient that is not finite makes weights, and so the next loss, that are not. Losses are counted on the device;
    weights are looked at once an epoch, after its last batch and before validation and checkpoints.

    Raises:
        UserError: in every process, as soon as one of them has such numbers.
    """

    def __init__(self) -> None:
        self._in_a_row = torch.zeros(())
        self._most_in_a_row = torch.zeros(())

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Count anew."""
        self._most_in_a_row = torch.zeros(())

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the loss, and look at the count every few batches and at the epoch's end."""
        loss = outputs["loss"].detach()
        self._in_a_row = torch.where(loss.isfinite(), 0.0, self._in_a_row.to(loss.device) + 1)
        self._most_in_a_row = torch.maximum(self._most_in_a_row.to(loss.device), self._in_a_row)
        last = trainer.is_last_batch
        # On one CPU reading costs nothing.
        every = 1 if loss.device.type == "cpu" and trainer.world_size == 1 else CHECK_BATCHES
        if not last and (batch_idx + 1) % every:
            return
        skips = trainer.precision == "16-mixed"
        bad_loss = self._most_in_a_row > (SKIPPED_BATCHES if skips else 0)
        bad_weights = ~weights_are_finite(module).to(loss.device) if last else torch.zeros_like(bad_loss)
        if skips and _scale(trainer) < LEAST_SCALE:
            bad_loss = torch.ones_like(bad_loss)
        # Together, so that no process waits for one that has ended.
        found = as_ours(module).reduce_sum(torch.stack([bad_loss, bad_weights]).float())
        if found.any():
            raise UserError(_message(trainer.current_epoch, batch_idx, batch, in_loss=bool(found[0])))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look at the loss of the validation cases: weights may be finite, and all that comes of them not."""
        found = as_ours(module).last_validation
        if found is None or trainer.sanity_checking or trainer.precision == "16-mixed":
            return
        # It is that of all processes, so all of them end.
        if not math.isfinite(found.loss):
            raise UserError(
                f"training ended in epoch {trainer.current_epoch + 1}: the loss of its validation cases is infinite or "
                f"not a number (NaN). {_ADVICE}"
            )


def weights_are_finite(module: nn.Module) -> Tensor:
    """Whether all weights and buffers are finite, a bool where they lie."""
    tensors = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def _scale(trainer: pl.Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _message(epoch: int, batch_index: int, batch: Any, *, in_loss: bool) -> str:
    what = "the loss or its gradients are" if in_loss else "weights of the network are"
    place = f"epoch {epoch + 1}, at batch {batch_index + 1}"
    message = f"training ended in {place}: {what} infinite or not a number (NaN). "
    if not batch["image"].isfinite().all():
        return message + (
            "The images of this batch hold such values already: find them with scripts/verify_dataset.py, "
            "and run preprocess.py again. No checkpoint was made of this epoch."
        )
    return message + _ADVICE
