"""What every run leaves behind: DLLogger lines, a summary on the terminal, `run.json`."""

from __future__ import annotations

from typing import Any, Literal

from utils import runs
from utils.config import RunConfig
from utils.logger import open_logger
from utils.runtime import Runtime

METRICS: dict[str, tuple[str | None, Literal["MINIMIZE", "MAXIMIZE"] | None]] = {
    "train_loss": (None, "MINIMIZE"),
    "val_loss": (None, "MINIMIZE"),
    "dice": (None, "MAXIMIZE"),
    "learning_rate": (None, None),
    "epoch_s": ("s", None),
    "train_s": ("s", None),
    "items_per_second": ("volumes/s (3D) or slices/s (2D)", "MAXIMIZE"),
    "latency_mean_ms": ("ms", "MINIMIZE"),
    "latency_p90_ms": ("ms", "MINIMIZE"),
    "latency_p95_ms": ("ms", "MINIMIZE"),
    "latency_p99_ms": ("ms", "MINIMIZE"),
    "data_wait_share": ("share of time, 0..1", "MINIMIZE"),
    "flop_per_item": ("FLOP", None),
    "flop_per_second": ("FLOP/s", "MAXIMIZE"),
    "ceiling_flop_per_second": ("FLOP/s", None),
    "ceiling_share": ("share of the ceiling, 0..1", "MAXIMIZE"),
    "peak_memory_bytes": ("B", "MINIMIZE"),
}
"""Units and goals of the logged numbers; Dice lies in 0..1."""


class RunReport:
    """The record of one run; only the first process writes.

    Args:
        run: where results go.
        options: all options of the run, JSON-ready.
        runtime: the hardware of the run.
    """

    def __init__(self, run: RunConfig, options: dict[str, Any], runtime: Runtime) -> None:
        self._run, self._options, self._runtime = run, options, runtime
        # Before anything is written here.
        self._record = runs.record_path(run)
        if run.exec_mode == "train" and not run.benchmark and runtime.is_first_process:
            runs.outdate_page(run.results)
            if not run.resume_training:
                # Of the training before.
                (run.results / "validation.json").unlink(missing_ok=True)
        append = run.resume_training or self._record.name != runs.RECORD
        self.logger = open_logger(run.results / run.logname, enabled=runtime.is_first_process, append=append)
        for name, (unit, goal) in METRICS.items():
            self.logger.metadata(name, unit=unit, goal=goal)
        self.logger.log("PARAMETER", options | {"precision_used": runtime.precision})

    def __enter__(self) -> RunReport:
        return self

    def __exit__(self, *_: object) -> None:
        self.logger.close()

    def finish(self, outcome: dict[str, Any]) -> None:
        """Log and print what came out, and write the run's record into the results folder."""
        self.logger.log((), outcome)
        if not self._runtime.is_first_process:
            return
        for name, value in outcome.items():
            # The lines of the epochs count from 1.
            counted = " (counted from 0, as in the names of checkpoints)" if name == "best_epoch" else ""
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}{counted}")
        device = {"device": self._runtime.accelerator, "precision": self._runtime.precision}
        runs.write_run_record(
            self._record,
            options=self._options,
            environment=self._runtime.environment() | device,
            outcome=outcome,
        )
