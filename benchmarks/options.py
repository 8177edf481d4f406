"""The flags of scripts/benchmark.py, and in which mode each of them counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from utils.args import changed_options
from utils.config import CompileMode, Layout, TaskNumber, default_root
from utils.errors import UserError
from utils.task_number import normalise_task

LOADED, LEARNED = ("train", "data", "growth"), ("train", "compute")
NETWORK = ("train", "predict", "compute", "inference", "growth")
TRAINER, SCANS = ("train", "predict"), ("preprocess", "inference", "growth")
ALL = ("train", "predict", "preprocess", "data", "compute", "inference", "growth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """Attributes:
    modes: in which an option counts.
    of_main: for which of its modes main.py has a flag of that name, which gets the value.
    growth: whether --mode growth hands it on to each of its processes.
    of_noise: it says what the noise looks like, without --data.
    """

    modes: tuple[str, ...] = ALL
    of_main: tuple[str, ...] = ()
    growth: bool = True
    of_noise: bool = False


_FAST = Use(modes=(*TRAINER, "compute"), of_main=TRAINER)
_LOG = Use(modes=TRAINER, of_main=TRAINER, growth=False)
_HERE = Use(growth=False)
USES = {
    "mode": _HERE, "dim": Use(of_main=TRAINER), "task": Use(of_main=TRAINER),
    "gpus": Use(modes=("data", *NETWORK), of_main=TRAINER), "nodes": _LOG,
    "batch_size": Use(modes=("data", "train", "predict", "compute", "growth")),
    "amp": Use(modes=NETWORK, of_main=TRAINER), "precision": Use(modes=NETWORK, of_main=TRAINER),
    "layout": _FAST, "fused_norm": _FAST, "winograd": _FAST, "compile": _FAST, "compile_mode": _FAST,
    "deep_supervision": Use(modes=LEARNED, of_main=("train",)), "recipe": Use(modes=("data", *LEARNED, "growth")),
    "augment": Use(modes=LOADED, of_main=("train",)), "filters": Use(modes=NETWORK, of_main=TRAINER),
    "patch_size": Use(of_noise=True), "channels": Use(of_noise=True),
    "scale": Use(modes=("train", "predict", "data", "preprocess", "inference"), of_noise=True, growth=False),
    "scans": Use(modes=SCANS), "n_jobs": Use(modes=("preprocess",), growth=False),
    "train_batches": Use(modes=("compute", *LOADED), of_main=("train",)),
    "test_batches": Use(modes=("predict",), of_main=("predict",), growth=False),
    "warmup": Use(modes=(*LOADED, "predict", "compute"), of_main=TRAINER),
    "num_workers": Use(modes=("predict", *LOADED), of_main=TRAINER),
    "data": _HERE, "results": Use(of_main=TRAINER, growth=False), "logname": _LOG, "json": _HERE, "profile": _LOG,
}  # fmt: skip
"""Option -> its use: the one table of them. `data`, `mode`, `recipe` and `batch_size` reach main.py in other words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure one stage alone, or how its cost grows."""

    mode: Literal["train", "predict", "preprocess", "data", "compute", "inference", "growth"]
    """What to measure. train, predict: training steps, or the network on batches of patches, with their data pipeline.
    preprocess: scans to shards. data: the pipeline alone. compute: network, loss and optimiser alone on a batch that
    lies on the device. inference: raw scans to masks. growth: preprocess, data and inference at 1 to 8 times the
    voxels, each in a process of its own."""
    dim: Literal[2, 3]
    """Dimension of the U-Net."""
    task: TaskNumber | None = None
    """Task whose patch, channels and classes are used (default: 01, or the one that --data holds)."""
    gpus: int | None = None
    """Number of GPUs (default: one if there is one; 0: CPU)."""
    nodes: int = 1
    """Number of nodes."""
    batch_size: int = 2
    """Volumes (3D) or slices (2D) in a batch of each process."""
    amp: bool = False
    """Mixed precision."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numeric precision; auto follows --amp."""
    layout: Layout = "auto"
    """Memory layout (NDHWC is channels-last)."""
    fused_norm: Literal["auto", "off"] = "auto"
    """Instance norm and LeakyReLU as one operator."""
    winograd: Literal["auto", "on", "off"] = "auto"
    """On a CPU in fp32, 3x3x3 convolutions with half of the multiplications."""
    compile: bool = False
    """Compile network and loss with torch.compile."""
    compile_mode: CompileMode = "default"
    """Mode of torch.compile."""
    deep_supervision: bool = False
    """Train with losses on lower-resolution levels too."""
    recipe: Literal["reference", "paper", "nnunet"] = "reference"
    """Where the defaults of the training flags of main.py come from."""
    augment: Literal["reference", "nnunet", "none"] | None = None
    """Random changes of training patches (default: the recipe's)."""
    filters: tuple[int, ...] | None = None
    """Features of each level (default: as planned). With noise, fewer numbers make a U-Net of fewer levels."""
    patch_size: tuple[int, ...] | None = None
    """Noise: patch, two or three numbers (default: the task's)."""
    channels: int | None = None
    """Noise: image channels (default: the task's)."""
    scale: int = 1
    """Noise: how many times the usual voxels a volume has, a power of two; the patch stays."""
    scans: int | None = None
    """preprocess, inference: number of scans (default: 4 of noise, all of --data)."""
    n_jobs: int = 1
    """preprocess: processes, each on one scan."""
    train_batches: int = 150
    """Training batches (data, compute: batches), warm-up included."""
    test_batches: int = 150
    """Prediction batches, warm-up included."""
    warmup: int = 50
    """Batches before the measurement begins."""
    num_workers: int = 8
    """Threads of the data pipeline."""
    data: Path | None = None
    """Folder of preprocessed data (preprocess, inference: of TaskNN_Name with raw scans). Default: noise in a temporary
    folder."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder for the log."""
    logname: str = "perf.json"
    """File name of the DLLogger lines."""
    json: Path | None = None
    """File for the result (default: <results>/benchmark_<mode>_<dim>d.json)."""
    profile: bool = False
    """Also write a profiler trace of some steps."""

    def __post_init__(self) -> None:
        normalise_task(self)
        if self.mode not in TRAINER and ((self.gpus or 0) > 1 or self.nodes > 1):
            raise UserError(f"--mode {self.mode} measures one process; use --gpus 0 or 1 and no --nodes")
        if min(self.n_jobs, 1 if self.scans is None else self.scans) < 1:
            raise UserError("--n_jobs and --scans must be at least 1")
        if self.data is not None and self.mode == "growth":
            raise UserError("--mode growth makes scans of several sizes itself; leave out --data")
        if self.data is not None and self.task is None and self.mode in SCANS:
            raise UserError(f"--mode {self.mode} with --data needs --task, the number of the folder TaskNN_Name")

    @property
    def target(self) -> Path:
        """File for the result."""
        return self.json or self.results / f"benchmark_{self.mode}_{self.dim}d.json"


def ineffective(options: BenchmarkOptions) -> list[str]:
    """Options that differ from their default and do nothing in this mode."""
    changed = changed_options(options, BenchmarkOptions(mode=options.mode, dim=options.dim))
    mode = options.mode
    useless = {name: f"--mode {mode}" for name in changed if mode not in USES[name].modes}
    if options.data is not None:
        useless |= {name: "--data" for name in changed if USES[name].of_noise}
    return [f"--{name} has no effect with {reason}" for name, reason in useless.items()]
