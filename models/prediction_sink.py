"""Predicted cases on their way from the network to a file and a score, in a thread beside it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from models.callbacks import as_ours
from models.metrics import DiceAccumulator
from utils.errors import UserError
from utils.pipeline import SlabQueue


class PredictionSink(Callback):
    """Hands the slabs of each predicted case to a function in a thread, so that writing overlaps the network.

    A few slabs wait: a slow disk slows prediction down instead of filling the memory. `consume` takes the case's name
    and its probabilities as slabs (K, d, H, W) float32; it returns (T, 3) counts where the case could be scored, else
    None. A case that it cannot write or read for is reported, and the others go on.

    Attributes:
        num_failed: cases of all processes that failed, once the run is over.
        reasons: case -> why it failed, of this process.
    """

    def __init__(
        self, consume: Callable[[str, Iterator[np.ndarray]], np.ndarray | None], dice: DiceAccumulator
    ) -> None:
        self.consume, self.dice = consume, dice
        self.num_failed = 0
        self.reasons: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: list[tuple[str, Future]] = []

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Compute one case, slab by slab."""
        case, slabs = outputs
        while len(self._pending) >= 2:
            self._collect()
        waiting: SlabQueue = SlabQueue()
        self._pending.append((case, self._pool.submit(self._consume, case, waiting)))
        waiting.fill(lambda: map(Tensor.numpy, slabs))

    def _consume(self, case: str, waiting: SlabQueue) -> np.ndarray | None:
        try:
            return self.consume(case, iter(waiting))
        finally:
            waiting.abandon()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the last cases and pool scores and failures of all processes; our own mistakes are raised here."""
        while self._pending:
            self._collect()
        self._pool.shutdown()
        module = as_ours(pl_module)
        self.dice.merge(module.reduce_sum)
        self.num_failed = round(module.reduce_sum(torch.tensor(float(self.num_failed))).item())

    def summary(self, target_names: tuple[str, ...]) -> dict[str, float]:
        """Mean Dice and Dice per target of the cases that could be scored; empty where none could."""
        per_target = self.dice.compute().tolist()
        if all(math.isnan(value) for value in per_target):
            return {}
        return {"dice": self.dice.mean(), **{f"dice_{name}": value for name, value in zip(target_names, per_target)}}

    def _collect(self) -> None:
        case, future = self._pending.pop(0)
        try:
            counts = future.result()
        except (UserError, OSError) as error:
            self.num_failed += 1
            self.reasons[case] = _reason(error)
            print(f"error: {case} could not be predicted: {_reason(error)}", file=sys.stderr, flush=True)
            return
        if counts is not None:
            self.dice.add(torch.from_numpy(counts))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no thread behind."""
        self._pool.shutdown(cancel_futures=True)


def _reason(error: UserError | OSError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
