"""How long batches take in a benchmark, and for how much of it the device has none to work on."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler

from utils.throughput import LatencyRecorder, synchronize

FETCHES = ("train_dataloader_next", "predict_next")
"""What Lightning calls the fetching of a batch when it tells a profiler of it."""


class BenchmarkTimer(Callback):
    """Times each training or prediction batch, the device synchronised before every reading of the clock.

    A batch takes from the end of the one before to its own. The device waits for data from when a batch is asked for
    until it is there; what Lightning and other callbacks do between batches is no waiting.
    """

    def __init__(self, recorder: LatencyRecorder) -> None:
        self.recorder = recorder
        self._start_s = self._asked_s = self._waited_s = 0.0
        self.profiler = FetchProfiler(self)
        """Of the trainer, which says by it when batches are asked for."""

    def ask(self) -> None:
        """A batch is asked for now."""
        self._asked_s = time.perf_counter()

    def _begin(self, module: pl.LightningModule) -> None:
        synchronize(module.device)
        self._start_s = time.perf_counter()

    def _arrive(self, module: pl.LightningModule) -> None:
        synchronize(module.device)
        self._waited_s = time.perf_counter() - max(self._asked_s, self._start_s)

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
        """The batch is on the device."""
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


class FetchProfiler(Profiler):
    """Tells a timer when Lightning asks a loader for a batch, and profiles nothing."""

    def __init__(self, timer: BenchmarkTimer) -> None:
        super().__init__()
        self._timer = timer

    def start(self, action_name: str) -> None:
        """Something begins."""
        if action_name.endswith(FETCHES):
            self._timer.ask()

    def stop(self, action_name: str) -> None:
        """Something ends."""
