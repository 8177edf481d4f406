"""What preprocess.py is asked for."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from utils.args import changed_options
from utils.config import DEFAULT_FOLDS, PreparedFolder, TaskNumber, default_root
from utils.errors import UserError
from utils.parts import PartJobOptions
from utils.task_number import normalise_task

PLANNING = ("plan", "planner", "gpu_memory_gb", "zscore")
"""Options that only a plan from the training cases' fingerprint asks for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Turn a folder of scans (NIfTI and dataset.json) into a plan and training-ready arrays."""

    task: TaskNumber
    """Task number, such as 04: the folder TaskNN_Name. The Medical Segmentation Decathlon uses 01 to 10."""
    dim: Literal[2, 3] = 3
    """Dimension of the U-Net that the arrays are for."""
    exec_mode: Literal["training", "val", "test"] = "training"
    """training: plan, folds and training cases. val, test: training cases or test scans, by the training plan."""
    data: Path = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder above TaskNN_Name, or that folder itself. It is only read."""
    results: PreparedFolder = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder in which <task>_<dim>d is made (--lowres: <task>_3d_lowres); the --data of all that follows."""
    n_jobs: int | None = None
    """Processes that work at the same time, each on one case (default: one for each CPU core)."""
    plan: Literal["auto", "preset"] | Path | None = None
    """auto: by nnU-Net v2's rules. preset: the NVIDIA reference's numbers (default: preset for the ten MSD tasks). A
    path: as another data set, by its nnUNetPlans.json or plan.json, or by that of a model to train on."""
    planner: Literal["default", "resenc_m", "resenc_l", "resenc_xl"] = "default"
    """Which of nnU-Net v2's planners makes an automatic plan. resenc_*: residual encoders, for GPUs of about 8, 24 and
    40 GB (implies --plan auto)."""
    gpu_memory_gb: float | None = None
    """GPU memory that an automatic plan fills with patch and batch, in GB (default: 8; resenc_l 24, resenc_xl 40)."""
    zscore: Literal["nonzero", "nnunet"] = "nonzero"
    """Voxels of which an automatic plan takes z-scores. nonzero: each channel's own non-zero ones; nnunet: nnU-Net v2's
    rule, all within the crop, or those of a mask where cropping takes away a quarter of the scans or more."""
    lowres: bool = False
    """3D: prepare the low-resolution stage, for scans of which the patch covers less than 25 %."""
    cascade: Path | None = None
    """3D: folder of masks <case>.nii.gz that 3d_lowres predicted of cases it has not seen. Prepares the cascade's
    second stage, <task>_3d_cascade_fullres, from <task>_3d."""
    ohe: bool = False
    """Append a channel that marks the non-zero voxels."""
    brats: bool = False
    """Plan for the overlapping BraTS regions (whole tumour, tumour core, enhancing tumour)."""
    nfolds: int = DEFAULT_FOLDS
    """Number of cross-validation folds."""
    splits: Path | None = None
    """JSON file of the folds: a splits.json of this program, or nnU-Net's splits_final.json."""
    group_by: str | None = None
    """Regular expression with one group that finds the patient in a case's name, such as '(.+)_visit'; cases are split
    so that no patient is in two folds."""
    overwrite: bool = False
    """Plan and make everything anew; otherwise an edited plan.json is kept, and so are finished cases."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=("-v",))] = False
    """Print a line for each case."""
    jobs: PartJobOptions = dataclasses.field(default_factory=PartJobOptions)

    def __post_init__(self) -> None:
        normalise_task(self)
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--n_jobs must be at least 1, got {self.n_jobs}")
        if self.nfolds < 2:
            raise UserError(f"--nfolds must be at least 2, got {self.nfolds}")
        if self.gpu_memory_gb is not None and not 0 < self.gpu_memory_gb < math.inf:
            raise UserError(f"--gpu_memory_gb must be positive, got {self.gpu_memory_gb}")
        if self.lowres and self.dim == 2:
            raise UserError("--lowres is for --dim 3; a 2D U-Net sees whole slices")
        if self.cascade is not None and (self.dim == 2 or self.lowres or self.exec_mode != "training"):
            raise UserError("--cascade is for --dim 3 and --exec_mode training, without --lowres")
        if self.splits is not None and self.group_by is not None:
            raise UserError("--splits and --group_by both make the folds; give one of them")
        if self.jobs.inspect and self.exec_mode != "training":
            raise UserError("--inspect is about the training cases; leave out --exec_mode")
        if self.jobs != PartJobOptions() and (self.overwrite or self.cascade is not None):
            raise UserError("--part, --slurm and --inspect continue what is there; leave out --overwrite and --cascade")

    @property
    def root(self) -> Path:
        """The folder of the plan and the training shards."""
        return self.results / f"{self.task}_{self.dim}d{'_lowres' if self.lowres else ''}"

    def given(self, *names: str) -> list[str]:
        """Those of the options that are not as by default."""
        changed = changed_options(self, Options(task=self.task))
        return [name for name in names if name in changed]

    @property
    def mark(self) -> str:
        """The file that says that the folder of shards is ready."""
        return "plan.json" if self.exec_mode == "training" else "cases.json"

    @property
    def command(self) -> str:
        """What prepares the training cases that these options are about."""
        lowres = " --lowres" if self.lowres else ""
        return f"python preprocess.py --task {self.task} --dim {self.dim}{lowres}"
