"""Train one fold with the usual settings: batch 2 in 3D and 64 in 2D, checkpoints kept.

python scripts/train.py --task 04 --gpus 1 --fold 0 --dim 3 --amp
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main as entry
from utils.args import parse
from utils.config import default_root
from utils.errors import run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train one fold with the usual settings."""

    gpus: int
    """Number of GPUs (0: CPU)."""
    fold: int
    """Fold number."""
    dim: Literal[2, 3]
    """Dimension of the U-Net."""
    task: str = "01"
    """Task number."""
    data: Path = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder of the preprocessed data."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder for logs and checkpoints."""
    logname: str = "train_log.json"
    """File name of the DLLogger lines."""
    epochs: int = 600
    """Number of epochs to train."""
    learning_rate: float = 8e-4
    """Learning rate."""
    amp: bool = False
    """Mixed precision."""
    tta: bool = False
    """Test-time augmentation, used by evaluate and predict; training validates without it."""
    deep_supervision: bool = False
    """Losses also on lower-resolution decoder levels."""
    resume_training: bool = False
    """Continue from the last checkpoint."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run main.py's training in this process; returns its exit status."""
    options = parse(TrainOptions, argv, prog="train.py")
    batch_size, val_batch_size = (2, 4) if options.dim == 3 else (64, 64)
    words = ["--exec_mode", "train", "--save_ckpt"]
    for name in ("task", "data", "results", "logname", "dim", "fold", "gpus", "epochs", "learning_rate"):
        words += [f"--{name}", str(getattr(options, name))]
    words += ["--batch_size", str(batch_size), "--val_batch_size", str(val_batch_size)]
    words += [f"--{name}" for name in ("amp", "tta", "deep_supervision", "resume_training") if getattr(options, name)]
    return entry.main(words)


if __name__ == "__main__":
    sys.exit(run_cli(main))
