"""The flags of scripts/compare_peers.py."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from benchmarks.peers.stages import choose
from utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare CPU seconds, wall seconds and peak memory with the peers that are installed."""

    stages: tuple[str, ...] = ()
    """What to compare: stages (preprocess, loader_reference, loader_nnunet, step, sliding, predict, accuracy) or single
    cases of them such as step/batch_2 (default: all but accuracy)."""
    peers_python: Path = Path(sys.executable)
    """Interpreter of the environment that has the peers (default: this one)."""
    sides: tuple[str, ...] = ()
    """Sides to run; results of the others stay as they are in --json (default: all of a stage)."""
    repetitions: int = 3
    """Times that every side does the work, in turn."""
    more: bool = False
    """Keep the runs that --json has of the same work, and add to them, with further seeds (default: replace them)."""
    quick: bool = False
    """Little work, to see that everything runs; the numbers mean nothing."""
    threads: int = 2
    """Threads of every side (loaders: one)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network on both sides; bf16 is fast on CPUs that compute in it."""
    data: Path | None = None
    """preprocess, predict, accuracy: task folder of MR scans with one channel, such as Task04_Hippocampus; it is only
    read (default: a made-up task)."""
    scans: int = 0
    """preprocess, predict: number of scans (0: all of the task; predict: all of the validation part of fold 0)."""
    model: Path | None = None
    """predict: model of this program, trained on fold 0, whose weights all sides use (default: random weights)."""
    seconds: float = 531.0
    """accuracy: wall time of a training (with one thread, nnU-Net's CPU time); repetitions differ in their seed."""
    batch_size: int = 1
    """accuracy: batch size of the peer; on two cores 1 takes it further than 2 in nine minutes."""
    max_epochs: int | None = None
    """accuracy: epochs of this program's training (default: as many as fit, found out before)."""
    our_flags: str = ""
    """Further flags of main.py for this program's side of step and accuracy, written with an equals sign:
    --our_flags="--layout NDHWC"."""
    json: Path | None = None
    """Results, to which other stages may be added later, with a table in the .md file beside (default:
    benchmarks/results/compare_peers_cpu.json; with --quick: none)."""

    def __post_init__(self) -> None:
        for name in ("repetitions", "threads", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.seconds > 0 or self.scans < 0:
            raise UserError(f"--seconds must be positive and --scans not negative, got {self.seconds}, {self.scans}")
        try:
            choose(self.stages)
        except ValueError as error:
            raise UserError(f"--stages: {error}") from None
