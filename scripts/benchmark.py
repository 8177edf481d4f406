"""Measure throughput and latency of training or prediction; without --data on volumes of noise, made on the spot.

python scripts/benchmark.py --mode train --gpus 1 --dim 3 --batch_size 2 --amp
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main as entry
from utils.args import parse
from utils.config import CompileMode, Layout, default_root
from utils.errors import run_cli

DATA_VARIABLE = "NNUNET_BENCHMARK_DATA"
"""Where the noise lies: processes that Lightning starts for further devices find what the first one wrote."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure throughput and latency of training or prediction."""

    mode: Literal["train", "predict"]
    """What to measure: training steps with their data pipeline, or the network on batches of patches."""
    dim: Literal[2, 3]
    """Dimension of the U-Net."""
    task: str | None = None
    """Task whose patch, channels and classes are used (default: 01, or the one that --data holds)."""
    gpus: int | None = None
    """Number of GPUs (default: one if there is one; 0: CPU)."""
    nodes: int = 1
    """Number of nodes."""
    batch_size: int = 2
    """Volumes (3D) or slices (2D) in a batch of each process."""
    amp: bool = False
    """Mixed precision."""
    layout: Layout = "auto"
    """Memory layout (NDHWC is channels-last)."""
    fused_norm: Literal["auto", "off"] = "auto"
    """Instance norm and LeakyReLU as one operator."""
    compile: bool = False
    """Compile network and loss with torch.compile."""
    compile_mode: CompileMode = "default"
    """Mode of torch.compile."""
    deep_supervision: bool = False
    """Train with losses on lower-resolution levels too."""
    train_batches: int = 150
    """Training batches, warm-up included."""
    test_batches: int = 150
    """Prediction batches, warm-up included."""
    warmup: int = 50
    """Batches before the measurement begins."""
    num_workers: int = 8
    """Threads of the data pipeline."""
    data: Path | None = None
    """Folder of preprocessed data (default: noise in a temporary folder)."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder for the log."""
    logname: str = "perf.json"
    """File name of the DLLogger lines."""
    json: Path | None = None
    """File for the result (default: <results>/benchmark_<mode>_<dim>d.json)."""
    profile: bool = False
    """Also write a profiler trace of some steps."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run main.py's benchmark in this process; returns its exit status."""
    options = parse(BenchmarkOptions, argv, prog="benchmark.py")
    if options.data is not None:
        return _measure(options, options.data)
    if DATA_VARIABLE in os.environ:
        return _measure(options, Path(os.environ[DATA_VARIABLE]))
    from data_preprocessing.synthetic import write_benchmark_shards

    with tempfile.TemporaryDirectory(prefix="nnunet-benchmark-") as folder:
        write_benchmark_shards(Path(folder), task=(options.task or "01").zfill(2), dim=options.dim)
        os.environ[DATA_VARIABLE] = folder
        try:
            return _measure(options, Path(folder))
        finally:
            del os.environ[DATA_VARIABLE]


def _measure(options: BenchmarkOptions, data: Path) -> int:
    words = ["--benchmark", "--exec_mode", options.mode, "--data", str(data)]
    names = ("task", "dim", "gpus", "nodes", "warmup", "num_workers", "results", "logname")
    names += ("layout", "fused_norm", "compile_mode")
    batches = "train_batches" if options.mode == "train" else "test_batches"
    for name in (*names, batches):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    words += ["--batch_size" if options.mode == "train" else "--val_batch_size", str(options.batch_size)]
    flags = ["amp", "compile", "profile", *(["deep_supervision"] if options.mode == "train" else [])]
    words += [f"--{name}" for name in flags if getattr(options, name)]
    status = entry.main(words)
    target = options.json or options.results / f"benchmark_{options.mode}_{options.dim}d.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.results / "run.json", target)
    return status


if __name__ == "__main__":
    sys.exit(run_cli(main))
