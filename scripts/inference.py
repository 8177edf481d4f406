"""Predict preprocessed cases with a checkpoint.

python scripts/inference.py --data data/04_3d/val --dim 3 --fold 0 --ckpt_path results/checkpoints --tta --save_preds
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
class InferenceOptions:
    """Predict preprocessed cases with a checkpoint; network options come from the checkpoint."""

    data: Path
    """Preprocessed data: <task>_<dim>d, its val/ or test/, or the folder above."""
    fold: int
    """Fold whose validation cases are predicted (the test/ folder is predicted whole)."""
    dim: Literal[2, 3]
    """Dimension of the U-Net."""
    ckpt_path: Path
    """Checkpoint, or a folder of checkpoints of which the best is taken."""
    task: str | None = None
    """Task number; needed only where --data holds several tasks."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder for predictions and logs."""
    logname: str = "inference_log.json"
    """File name of the DLLogger lines."""
    batch_size: int = 4
    """Windows (3D) or slices (2D) that go through the network together."""
    gpus: int | None = None
    """Number of GPUs (default: one if there is one; 0: CPU)."""
    amp: bool = False
    """Mixed precision."""
    tta: bool = False
    """Test-time augmentation: average over flips."""
    save_preds: bool = False
    """Write the masks."""
    overlap: float = 0.5
    """Overlap of neighbouring windows."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weights of overlapping windows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run main.py's prediction in this process; returns its exit status."""
    options = parse(InferenceOptions, argv, prog="inference.py")
    words = ["--exec_mode", "predict", "--val_batch_size", str(options.batch_size)]
    names = ("data", "task", "results", "logname", "dim", "fold", "ckpt_path", "gpus", "overlap", "blend")
    for name in names:
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    words += [f"--{name}" for name in ("amp", "tta", "save_preds") if getattr(options, name)]
    return entry.main(words)


if __name__ == "__main__":
    sys.exit(run_cli(main))
