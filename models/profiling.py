"""What `--profile` does: the PyTorch profiler over some steps, a trace and a table in the results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from utils.files import write_atomically

MAX_WARMUP, MAX_STEPS = 3, 5


class StepProfiler(Callback):
    """Profiles up to five steps of a run, training or prediction, after up to three that warm up.

    Writes `trace_<rank>.json` (open it in Perfetto or chrome://tracing) and `operators_<rank>.txt`, the operators
    sorted by their own time, into `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._profiler: profile | None = None

    def _begin(self, trainer: pl.Trainer, num_steps: int) -> None:
        warmup = min(MAX_WARMUP, num_steps // 2)
        activities = [ProfilerActivity.CPU]
        if trainer.strategy.root_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=warmup, active=min(MAX_STEPS, num_steps - warmup), repeat=1),
            on_trace_ready=lambda result: self._write(result, trainer.global_rank),
        )
        self._profiler.start()

    def _write(self, result: profile, rank: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        result.export_chrome_trace(str(self.folder / f"trace_{rank}.json"))
        sort_by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = result.key_averages().table(sort_by=sort_by, row_limit=40)
        write_atomically(self.folder / f"operators_{rank}.txt", lambda file: file.write(table.encode()))

    def _end(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin with the first training step."""
        self._begin(trainer, int(trainer.num_training_batches))

    def on_train_batch_end(self, *_: Any) -> None:
        """One training step is over."""
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The profile is over."""
        self._end()

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin with the first case."""
        self._begin(trainer, int(sum(trainer.num_predict_batches)))

    def on_predict_batch_end(self, *_: Any) -> None:
        """One case is over."""
        if self._profiler is not None:
            self._profiler.step()

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The profile is over."""
        self._end()
