"""Train one fold with the usual settings: batch 2 in 3D and 64 in 2D (unless --budget chooses), checkpoints kept.

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
from utils.args import parse, to_words
from utils.config import PreparedFolder, TaskNumber, default_root
from utils.errors import run_cli

EPOCHS = 600


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train one fold with the usual settings."""

    gpus: int
    """Number of GPUs (0: CPU)."""
    fold: int
    """Fold number."""
    dim: Literal[2, 3]
    """Dimension of the U-Net."""
    task: TaskNumber = "01"
    """Task number."""
    data: PreparedFolder = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder of the preprocessed data."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder for logs and checkpoints."""
    logname: str = "train_log.json"
    """File name of the DLLogger lines."""
    recipe: Literal["reference", "paper", "nnunet"] = "reference"
    """Where the defaults of the training flags of main.py come from."""
    epochs: int | None = None
    """Number of epochs to train (default: 600, or the recipe's, or what fits --budget)."""
    budget: str | None = None
    """Wall time from start to end, such as 10m or 8h; what is not given is chosen to fit."""
    learning_rate: float | None = None
    """Learning rate (default: the recipe's; reference: 0.0008)."""
    augment: Literal["reference", "nnunet", "none"] | None = None
    """Random changes of training patches (default: the recipe's)."""
    filters: tuple[int, ...] | None = None
    """Features of each level (default: as planned)."""
    amp: bool = False
    """Mixed precision."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numeric precision; auto follows --amp."""
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
    # A budget chooses what is not given, and here nobody has given it.
    batch = ["--batch_size", str(batch_size)] if options.budget is None else []
    if options.epochs is None and options.recipe == "reference" and options.budget is None:
        options = dataclasses.replace(options, epochs=EPOCHS)
    words = ["--exec_mode", "train", "--save_ckpt", *to_words(options, [f.name for f in dataclasses.fields(options)])]
    return entry.main([*words, *batch, "--val_batch_size", str(val_batch_size)])


if __name__ == "__main__":
    sys.exit(run_cli(main))
