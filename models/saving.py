"""Checkpoints that are whole or absent, which of them are kept, and when a training that gets no better stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO

from models.callbacks import as_ours
from utils.files import write_atomically
from utils.room import require_room
from utils.runs import LAST_CHECKPOINT


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name only when they are complete, and are read as plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary name beside `path`, then rename."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict:
        """Read tensors and plain values into the CPU's memory; code in the file is refused."""
        return torch.load(path, map_location="cpu", weights_only=True)


def checkpoint_callbacks(folder: Path, patience: int, every: int = 1) -> list[Callback]:
    """The checkpoint of the best validation Dice, `last.ckpt` after each epoch, and early stopping on that Dice."""
    shared: dict[str, Any] = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = BestCheckpoint(
        filename="epoch={epoch}-dice={dice:.4f}", auto_insert_metric_name=False, monitor="dice", mode="max", **shared
    )
    # After the best one, so that what it says of the best is true. (Lightning's save_last skips epochs that are not.)
    last = MovableCheckpoint(filename=Path(LAST_CHECKPOINT).stem, **shared)
    return [CheckpointRoom(folder), best, last, *early_stopping(patience, every)]


class CheckpointRoom(Callback):
    """Finds out before the first step that the checkpoints of a training do not fit on the disk.

    Three of them lie there at the same time: the best, the last, and the one that is being written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Compare the size of weights and optimizer with what is free."""
        weights = sum(p.nbytes for p in module.parameters())
        # SGD keeps one moment of each weight, Adam two; an average is as large.
        moments = max((1 if isinstance(o, torch.optim.SGD) else 2 for o in trainer.optimizers), default=0)
        copies = 1 + moments + any(isinstance(each, WeightAveraging) for each in getattr(trainer, "callbacks", ()))
        require_room(self.folder, weights * copies * max(1, 3 - len(list(self.folder.glob("*.ckpt")))), "checkpoints")


def early_stopping(patience: int, every: int = 1) -> list[Callback]:
    """Stop when `patience` epochs, one in `every` of them validated, have not improved the mean Dice; never with 0.

    Validations of cases without a target, and epochs at the beginning that skip validation, use no patience.
    """
    shared: dict[str, Any] = {"strict": False, "check_on_train_epoch_end": False}
    validations = math.ceil(patience / every)
    return [DiceStopping(monitor="dice", mode="max", patience=validations, **shared)] if patience else []


class MovableCheckpoint(ModelCheckpoint):
    """Knows its files again where their folder was moved before a training goes on there."""

    @property
    def state_key(self) -> str:
        """Lightning's own, so that a resumed training finds what was best."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was best, if its file is here; Lightning would warn, and leave an earlier best file behind."""
        here = Path(str(self.dirpath))
        best = Path(state_dict["best_model_path"]).name
        if state_dict.get("dirpath") == self.dirpath or not best or not (here / best).is_file():
            super().load_state_dict({**state_dict, "dirpath": self.dirpath} if not best else state_dict)
            return
        files = {"best_model_path": str(here / best), "dirpath": self.dirpath}
        files |= {name: self._moved(state_dict.get(name, "")) for name in ("kth_best_model_path", "last_model_path")}
        best_k = {self._moved(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict({**state_dict, **files, "best_k_models": best_k})

    def _moved(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else ""


class BestCheckpoint(MovableCheckpoint):
    """Leaves out epochs whose validation has shown no target, or patches only: a Dice of nothing is no best one."""

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the epoch where its Dice is the best so far."""
        if _can_be_judged(module):
            super().on_train_epoch_end(trainer, module)


class DiceStopping(EarlyStopping):
    """A validation that has shown no target, or patches only, uses no patience, and does not end the training."""

    @property
    def state_key(self) -> str:
        """Lightning's own, so that a resumed training finds how patient it was."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Judge the validation's Dice."""
        if _can_be_judged(module):
            super().on_validation_end(trainer, module)


def _can_be_judged(module: pl.LightningModule) -> bool:
    validation = as_ours(module).last_validation
    # Lightning keeps the Dice of an epoch before where this one has none.
    return validation is not None and validation.whole and validation.has_target
