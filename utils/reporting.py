"""What every run leaves behind: DLLogger lines, a summary on the terminal, `run.json`."""

from __future__ import annotations

from typing import Any

from utils import runs
from utils.config import RunConfig
from utils.logger import NullLogger, RunLogger, open_logger
from utils.runtime import Runtime

METRICS = {
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
    "peak_memory_bytes": ("B", "MINIMIZE"),
}
"""Units and goals of the logged numbers; Dice lies in 0..1."""


def start_log(run: RunConfig, options: dict[str, Any], runtime: Runtime) -> RunLogger | NullLogger:
    """Open the run's log and record its options; only the first process writes one."""
    logger = open_logger(run.results / run.logname, enabled=runtime.is_first_process, append=run.resume_training)
    for name, (unit, goal) in METRICS.items():
        logger.metadata(name, unit=unit, goal=goal)
    logger.log("PARAMETER", options | {"precision_used": runtime.precision})
    return logger


def finish_run(
    run: RunConfig,
    options: dict[str, Any],
    runtime: Runtime,
    *,
    logger: RunLogger | NullLogger,
    outcome: dict[str, Any],
) -> None:
    """Log and print what came out, and write `run.json` into the results folder."""
    logger.log((), outcome)
    logger.close()
    if not runtime.is_first_process:
        return
    for name, value in outcome.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    runs.write_run_record(
        run.results / "run.json",
        options=options,
        environment=runtime.environment() | {"device": runtime.accelerator, "precision": runtime.precision},
        outcome=outcome,
    )
