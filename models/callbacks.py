"""What happens around the epochs: reports, checkpoints that are whole or absent, timing, writing predictions."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from models.metrics import DiceAccumulator
from models.nn_unet import NNUnet
from utils.errors import interrupt_run
from utils.figures import EpochRecord, write_progress
from utils.files import from_dict, to_dict, write_atomically
from utils.logger import RunLogger
from utils.room import require_room
from utils.runs import LAST_CHECKPOINT
from utils.throughput import LatencyRecorder, synchronize


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name only when they are complete, and are read as plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary name beside `path`, then rename."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict:
        """Read tensors and plain values to the host; code in the file is refused."""
        return torch.load(path, map_location="cpu", weights_only=True)


def checkpoint_callbacks(folder: Path, patience: int) -> list[Callback]:
    """The checkpoint of the best validation Dice, `last.ckpt` after each epoch, and early stopping on that Dice."""
    shared = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(
        filename="epoch={epoch}-dice={dice:.4f}", auto_insert_metric_name=False, monitor="dice", mode="max", **shared
    )
    # After the best one, so that what it says of the best is true. (Lightning's save_last skips epochs that are not.)
    last = ModelCheckpoint(filename=Path(LAST_CHECKPOINT).stem, **shared)
    return [CheckpointRoom(folder), best, last, *early_stopping(patience)]


class CheckpointRoom(Callback):
    """Finds out before the first step that the checkpoints of a training do not fit on the disk.

    Three of them lie there at the same time: the best, the last, and the one that is being written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Compare the size of weights and optimizer with what is free."""
        weights = sum(p.nbytes for p in module.parameters())
        # SGD keeps one moment of each weight, Adam two.
        moments = max((1 if isinstance(o, torch.optim.SGD) else 2 for o in trainer.optimizers), default=0)
        missing = max(1, 3 - len(list(self.folder.glob("*.ckpt"))))
        require_room(self.folder, weights * (1 + moments) * missing, "checkpoints")


def early_stopping(patience: int) -> list[Callback]:
    """Stop when `patience` validations in a row have not improved the mean Dice; never with patience 0.

    Patience counts validations, so epochs that skip validation use none of it.
    """
    shared = {"strict": False, "check_on_train_epoch_end": False}
    return [EarlyStopping(monitor="dice", mode="max", patience=patience, **shared)] if patience else []


class EpochReport(Callback):
    """One line, one logger record and one `progress.png` per epoch; the history survives a resume."""

    def __init__(self, logger: RunLogger, figure: Path, target_names: tuple[str, ...]) -> None:
        self.logger, self.figure, self.target_names = logger, figure, target_names
        self.history: list[EpochRecord] = []
        self._epoch_start_s = time.perf_counter()
        self._learning_rate = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: NNUnet) -> None:
        """Start the epoch's clock and note its learning rate, which schedules change before the epoch's end."""
        self._epoch_start_s = time.perf_counter()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        module.last_validation = None

    def on_train_epoch_end(self, trainer: pl.Trainer, module: NNUnet) -> None:
        """Record the epoch in every process (checkpoints hold the history); only the first one writes."""
        validation = module.last_validation
        record = EpochRecord(
            epoch=trainer.current_epoch,
            train_loss=module.mean_train_loss(),
            val_loss=validation.loss if validation else None,
            val_dice=validation.dice if validation else (),
            mean_dice=validation.mean_dice if validation else None,
            learning_rate=self._learning_rate,
            seconds=time.perf_counter() - self._epoch_start_s,
        )
        self.history.append(record)
        if not trainer.is_global_zero:
            return
        print(_line(record, self.target_names), flush=True)
        data = {"train_loss": record.train_loss, "learning_rate": record.learning_rate, "epoch_s": record.seconds}
        if validation:
            data |= {"val_loss": record.val_loss, "dice": record.mean_dice}
            data |= {f"dice_{name}": value for name, value in zip(self.target_names, record.val_dice)}
        self.logger.log(record.epoch, data)
        write_progress(self.figure, self.history, self.target_names)

    def summary(self) -> dict[str, Any]:
        """Epochs, seconds of all of them (those before a resume included), and the best validation."""
        outcome: dict[str, Any] = {"epochs": len(self.history), "train_s": sum(r.seconds for r in self.history)}
        validated = [record for record in self.history if record.mean_dice is not None]
        if validated:
            best = max(validated, key=lambda record: record.mean_dice)
            outcome |= {"best_dice": best.mean_dice, "best_epoch": best.epoch}
            outcome |= {f"best_dice_{name}": value for name, value in zip(self.target_names, best.val_dice)}
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """The history as plain values."""
        return {"history": [to_dict(record) for record in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the history of a checkpoint."""
        self.history = [from_dict(EpochRecord, record, source="checkpoint") for record in state["history"]]


def _line(record: EpochRecord, target_names: tuple[str, ...]) -> str:
    parts = [f"epoch {record.epoch}", f"train loss {record.train_loss:.4f}"]
    if record.mean_dice is not None:
        each = ", ".join(f"{name} {value:.4f}" for name, value in zip(target_names, record.val_dice))
        parts += [f"val loss {record.val_loss:.4f}", f"dice {record.mean_dice:.4f} ({each})"]
    return "  ".join([*parts, f"lr {record.learning_rate:.2e}", f"{record.seconds:.1f} s"])


class SkipFirstValidations(Callback):
    """No validation in the first `count` epochs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Switch validation off or on for the epoch that begins."""
        trainer.limit_val_batches = 0.0 if trainer.current_epoch < self.count else 1.0


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

    @staticmethod
    def _take_back() -> None:
        # A program that does not end by signals in this way (a notebook) keeps what Lightning does.
        if interrupt_run in getattr(signal.getsignal(signal.SIGTERM), "signal_handlers", ()):
            signal.signal(signal.SIGTERM, interrupt_run)


class BenchmarkTimer(Callback):
    """Times each training or prediction batch, the device synchronised before every reading of the clock."""

    def __init__(self, recorder: LatencyRecorder) -> None:
        self.recorder = recorder
        self._start_s = self._waited_s = 0.0

    def _begin(self, module: pl.LightningModule) -> None:
        synchronize(module.device)
        self._start_s = time.perf_counter()

    def _arrive(self, module: pl.LightningModule) -> None:
        synchronize(module.device)
        self._waited_s = time.perf_counter() - self._start_s

    def _end(self, module: pl.LightningModule) -> None:
        synchronize(module.device)
        now_s = time.perf_counter()
        self.recorder.add(now_s - self._start_s, waited_s=self._waited_s)
        # The next interval begins here, so that time spent waiting for data counts.
        self._start_s = now_s

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin with the first batch's loading."""
        self._begin(module)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """The batch is on the device, which has waited for it since the end of the step before."""
        self._arrive(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """One training step, from the end of the step before."""
        self._end(module)

    def on_predict_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin with the first batch's loading."""
        self._begin(module)

    def on_predict_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """The batch is on the device."""
        self._arrive(module)

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """One prediction batch, from the end of the batch before."""
        self._end(module)


class PredictionSink(Callback):
    """Hands each predicted case to a function in a thread, so that restoring and writing overlap the network.

    At most two cases wait: a slow disk slows prediction down instead of filling the memory. `consume` takes the case's
    name and its probabilities (K, D, H, W) float32; it returns (T, 3) counts where the case could be scored, else None.
    """

    def __init__(self, consume: Callable[[str, np.ndarray], np.ndarray | None], dice: DiceAccumulator) -> None:
        self.consume, self.dice = consume, dice
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: list[Future] = []

    def on_predict_batch_end(self, trainer: pl.Trainer, module: NNUnet, outputs: Any, *_: Any) -> None:
        """Queue one case."""
        case, probabilities = outputs
        while len(self._pending) >= 2:
            self._collect()
        self._pending.append(self._pool.submit(self.consume, case, probabilities.numpy()))

    def on_predict_end(self, trainer: pl.Trainer, module: NNUnet) -> None:
        """Wait for the last cases and pool the scores of all processes; an error of any case is raised here."""
        while self._pending:
            self._collect()
        self._pool.shutdown()
        self.dice.merge(module.reduce_sum)

    def summary(self, target_names: tuple[str, ...]) -> dict[str, float]:
        """Mean Dice and Dice per target of the cases that could be scored; empty where none could."""
        per_target = self.dice.compute().tolist()
        if all(math.isnan(value) for value in per_target):
            return {}
        return {"dice": self.dice.mean(), **{f"dice_{name}": value for name, value in zip(target_names, per_target)}}

    def _collect(self) -> None:
        counts = self._pending.pop(0).result()
        if counts is not None:
            self.dice.add(torch.from_numpy(counts))

    def on_exception(self, trainer: pl.Trainer, module: NNUnet, exception: BaseException) -> None:
        """Leave no thread behind."""
        self._pool.shutdown(cancel_futures=True)
