"""Building the Lightning Trainer of a run: devices, callbacks, checkpoints, loggers."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from models.benchmark_timer import BenchmarkTimer
from models.callbacks import OwnSignals, ScheduledValidations
from models.finite import EndWhereNotFinite
from models.launcher import OwnDDP
from models.profiling import StepProfiler
from models.progress import EpochBar
from models.saving import AtomicCheckpointIO
from utils.config import RunConfig
from utils.launch import slurm_tasks
from utils.optim_config import OptimConfig
from utils.runtime import Runtime
from utils.validation_schedule import ValidationSchedule

EXPECTED_WARNINGS = (
    # Lightning 2.6 asks torch 2.13 the old way; nothing that a user could change.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # True of epochs that skip validation, and meant so.
    r"`ModelCheckpoint\(monitor='dice'\)` could not find the monitored key",
    # True of a resumed run; a new one starts in a folder of its own.
    r"Checkpoint directory .* exists and is not empty",
    # The module has summed over processes before it logs.
    r"It is recommended to use `self.log\(.*sync_dist=True",
    # Whether Slurm starts the processes is decided in utils/launch.py; one process beside an unused srun is fine.
    r"The `srun` command is available on your system but is not used",
)


def build_trainer(
    runtime: Runtime,
    *,
    callbacks: list[Callback],
    optim: OptimConfig | None = None,
    schedule: ValidationSchedule | None = None,
    loggers: Sequence[Logger] = (),
    sync_batchnorm: bool = False,
) -> pl.Trainer:
    """A Trainer for one run.

    Args:
        runtime: devices, precision and processes.
        callbacks: what happens around epochs and batches; checkpoints are written only by a checkpoint callback.
        optim: number of epochs and gradient clipping; None where nothing is trained.
        schedule: which epochs of a training are validated; None validates none.
        loggers: where training curves go.
        sync_batchnorm: batch normalisation over all processes.
    """
    training: dict[str, Any] = {}
    if optim is not None:
        training = {
            "max_epochs": optim.max_epochs,
            "min_epochs": min(optim.min_epochs, optim.max_epochs),
            "gradient_clip_val": optim.gradient_clip_val or None,
            "log_every_n_steps": 1,
            # A run without any validation does not ask for validation cases.
            "limit_val_batches": 0.0 if schedule is None or schedule.is_empty else 1.0,
        }
        validations = [] if schedule is None else [ScheduledValidations(schedule)]
        callbacks = [*validations, EndWhereNotFinite(), *callbacks]
    on_terminal = sys.stdout.isatty()
    # Lightning's remarks on hardware and its advertisements; warnings still show.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    timers = [callback for callback in callbacks if isinstance(callback, BenchmarkTimer)]
    return pl.Trainer(
        accelerator=runtime.accelerator,
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        strategy=_strategy(runtime),
        precision=runtime.precision,
        callbacks=[*callbacks, OwnSignals(), *([EpochBar()] if on_terminal else [])],
        enable_progress_bar=on_terminal,
        logger=list(loggers) or False,
        plugins=[AtomicCheckpointIO(), cluster_environment()],
        # Under Slurm, Lightning would load a checkpoint of any program that it finds in this folder.
        default_root_dir=os.devnull,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        enable_model_summary=False,
        profiler=timers[0].profiler if timers else None,
        sync_batchnorm=sync_batchnorm,
        # The loaders hand the cases to the processes themselves.
        use_distributed_sampler=False,
        # One validation case before the first epoch: a mistake there shows at once and not after hours.
        num_sanity_val_steps=1,
        **training,
    )


class SrunEnvironment(SLURMEnvironment):
    """Processes that `srun` started; utils/launch.py has checked that they are as many as the run works with."""

    def __init__(self) -> None:
        # A job that is requeued begins anew, or goes on with --resume_training.
        super().__init__(auto_requeue=False)

    @staticmethod
    def _validate_srun_variables() -> None:
        """Lightning's own check refuses --ntasks, which is as good as --ntasks-per-node."""

    def world_size(self) -> int:
        """Processes of this step, which may have fewer than its job."""
        return slurm_tasks(os.environ)

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Nothing is left to check."""


def cluster_environment() -> ClusterEnvironment:
    """Who starts the processes of this run; Lightning's guess takes a batch script for `srun`."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SrunEnvironment() if slurm_tasks(os.environ) > 1 else LightningEnvironment()


def profiler_callbacks(run: RunConfig) -> list[Callback]:
    """With `--profile`, a callback that writes a trace into the results folder."""
    return [StepProfiler(run.results / "profile")] if run.profile else []


def _strategy(runtime: Runtime) -> str | OwnDDP:
    if runtime.strategy == "auto":
        return "auto"
    # Gradients live in the communication buckets: one copy of all gradients less.
    return OwnDDP(process_group_backend=runtime.backend, gradient_as_bucket_view=True)
