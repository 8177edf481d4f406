"""What the flags of main.py mean: frozen groups of options, checked when they are built.

Each group is what one part of the program asks for; nothing below the entry files sees a group it does not use.
Help texts are the docstrings under the fields (read by tyro, see utils/args.py).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from utils.errors import UserError, require
from utils.task_number import normalise_task

Affinity = Literal[
    "socket", "single", "single_unique", "socket_unique_interleaved", "socket_unique_continuous", "disabled"
]

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Layout = Literal["auto", "NCDHW", "NDHWC"]
LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]
FoldChoice = int | Literal["all"]

TaskNumber = Annotated[str, tyro.conf.arg(metavar="NN")]
"""For a field of options, which calls `normalise_task` when it is built."""
PreparedFolder = Annotated[Path, tyro.conf.arg(aliases=("--prepared",))]
"""Folder of preprocessed data: `--results` of preprocess.py and `--data` of all that follows have a name in common."""

DEFAULT_FOLDS = 5


def default_root(name: Literal["data", "results"]) -> Path:
    """`/data` or `/results` where they exist (the container), else the folder of that name under the working one."""
    mounted = Path("/") / name
    return mounted if mounted.is_dir() else Path(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to do, with which data, and where results go."""

    exec_mode: Literal["train", "evaluate", "predict"] = "train"
    """Train, score a checkpoint on the fold's validation cases, or predict."""
    data: PreparedFolder = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder that holds preprocessed shards (<task>_<dim>d), or that folder itself, or its val/ or test/."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder for logs and predictions."""
    ckpt_store_dir: Path | None = None
    """Folder in which the checkpoints folder is made (default: the results folder)."""
    logname: str = "logs.json"
    """File name of the DLLogger lines inside the results folder."""
    logger: tuple[LoggerName, ...] = ("tensorboard",)
    """Where training curves go besides the DLLogger lines; wandb and mlflow are extras (docs/how-to/train.md)."""
    task: TaskNumber | None = None
    """Task number, two digits. The Medical Segmentation Decathlon uses 01 to 10."""
    dim: Literal[2, 3] = 3
    """Dimension of the U-Net."""
    fold: FoldChoice = 0
    """Cross-validation fold, counted from 0; all: train on every case, and validate on those of fold 0 among them."""
    nfolds: int | None = None
    """Number of cross-validation folds (default: those that preprocess.py made; 5 with --group_by)."""
    splits: Path | None = None
    """JSON file of folds to use in place of those that preprocess.py made: this program's splits.json or nnU-Net's
    splits_final.json."""
    group_by: str | None = None
    """Regular expression with one group that finds the patient in a case's name, such as '(.+)_visit'; cases are split
    so that no patient is in two folds."""
    seed: int = 1
    """Seed of weights, order of cases, patches and augmentations."""
    ckpt_path: Annotated[Path | None, tyro.conf.arg(aliases=("--model",))] = None
    """Checkpoint to start from (train; a model of nnU-Net v2 or an exported zip, too) or to use (evaluate, predict)."""
    resume_training: bool = False
    """Continue from checkpoints/last.ckpt with optimiser, schedule, epoch and best score."""
    save_ckpt: bool = True
    """Save last.ckpt after each epoch and the checkpoint of the best validation Dice."""
    report: bool = True
    """Write a page about the training or the masks, report.html."""
    benchmark: bool = False
    """Measure throughput and latency in place of training or predicting for a result."""
    train_batches: int = 0
    """Limit of batches an epoch, for benchmarks (0: all)."""
    test_batches: int = 0
    """Limit of prediction batches, for benchmarks (0: all)."""
    warmup: int = 5
    """Batches (with --benchmark) that are run before the measurement begins."""
    profile: bool = False
    """Run the PyTorch profiler over some training or prediction steps and write a trace into the results folder."""

    def __post_init__(self) -> None:
        require(self.nfolds is None or self.nfolds >= 2, f"--nfolds must be at least 2, got {self.nfolds}")
        # The number of folds of a file is known when it is read.
        require(self.fold == "all" or self.fold >= 0, f"--fold must not be negative, got {self.fold}")
        if self.nfolds is not None and self.fold != "all":
            require(self.fold < self.nfolds, f"--fold must lie in 0..{self.nfolds - 1}, got {self.fold}")
        require(self.splits is None or self.group_by is None, "--splits and --group_by both make the folds; give one")
        normalise_task(self)
        for name in ("train_batches", "test_batches", "warmup", "seed"):
            require(getattr(self, name) >= 0, f"--{name} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Devices, numeric precision and processes."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: one GPU where there is one, else the CPU."""
    gpus: int | None = None
    """Number of GPUs on each node; 0 means CPU. More than there are is an error (default: 1 if there is one)."""
    nodes: int = 1
    """Number of nodes."""
    processes: int = 1
    """Data-parallel processes on a machine without GPUs (gloo)."""
    amp: bool = False
    """Mixed precision: bf16 where the device computes in it, else fp16 with loss scaling on a GPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numeric precision; auto follows --amp."""
    layout: Layout = "auto"
    """Memory layout of activations and weights (NDHWC is channels-last). auto: NDHWC on a CPU where no layer copies it
    back (instance norm that is fused, or batch norm), else NCDHW; on a GPU nobody has measured it yet."""
    fused_norm: Literal["auto", "off"] = "auto"
    """Instance norm and LeakyReLU as one operator that keeps NDHWC. auto: with NDHWC; off: torch's own."""
    winograd: Literal["auto", "on", "off"] = "auto"
    """On a CPU in fp32, 3x3x3 convolutions with half of the multiplications (Winograd's F(4, 3)). auto: with NDHWC,
    on CPUs whose vector units are AVX2, or AVX512 in two halves (AMD Zen 4)."""
    compile: bool = False
    """Compile network and loss with torch.compile: training step and prediction."""
    compile_mode: CompileMode = "default"
    """Mode of torch.compile. reduce-overhead: CUDA graphs; max-autotune: also searches for the fastest kernels."""
    sync_batchnorm: bool = False
    """Synchronise batch normalisation over processes (with --norm batch)."""
    affinity: Affinity = "socket_unique_interleaved"
    """How CPU cores are pinned to the process of each GPU; no effect without a GPU."""
    num_workers: int = 8
    """Threads of the data pipeline, at most as many as there are CPU cores."""

    def __post_init__(self) -> None:
        require(self.gpus is None or self.gpus >= 0, f"--gpus must not be negative, got {self.gpus}")
        require(self.nodes >= 1, f"--nodes must be at least 1, got {self.nodes}")
        require(self.processes >= 1, f"--processes must be at least 1, got {self.processes}")
        require(self.num_workers >= 1, f"--num_workers must be at least 1, got {self.num_workers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are drawn."""

    batch_size: int | None = None
    """Patches in a training batch, of each process (default: the plan's; 2 in 3D)."""
    val_batch_size: int = 4
    """Windows (3D) or slices (2D) that go through the network together in validation and prediction."""
    nvol: int = 2
    """2D: volumes that fill a batch; each training case gives batch_size / nvol slices an epoch (0: each slice of a
    batch comes from a volume of its own, as in nnU-Net)."""
    data2d_dim: Literal[2, 3] = 3
    """2D: 3 if a training item is a volume from which slices are drawn, 2 if it is a single-slice image."""
    oversampling: float = 0.4
    """Probability that a patch is centred on a foreground voxel."""
    augment: Literal["reference", "nnunet", "none"] = "reference"
    """Random changes of training patches: the NVIDIA reference's, those of nnU-Net v2 (rotation, scaling in both
    directions, low resolution and gamma too; in plane for anisotropic patches), or none."""
    mirror_axes: tuple[Literal["S", "A", "R", "none"], ...] = ("S", "A", "R")
    """Axes of a scan (superior, anterior, right) that training and test-time augmentation flip, or none. Leave out R
    where labels tell left from right."""
    elastic_probability: float = 0.0
    """Probability that a training patch is deformed elastically as well (nnU-Net v1: 0.2, v2: 0)."""
    batches_per_epoch: int = 0
    """Training batches in an epoch of each process, cases in turn (0: as many as hold every case once)."""

    def __post_init__(self) -> None:
        require(
            0 <= self.elastic_probability <= 1,
            f"--elastic_probability must lie in 0..1, got {self.elastic_probability}",
        )
        mirrored = self.mirror_axes
        if not mirrored or len({*mirrored}) < len(mirrored) or ("none" in mirrored and len(mirrored) > 1):
            raise UserError(f"--mirror_axes must be different ones of S, A and R, or none, got {' '.join(mirrored)}")
        require(self.batch_size is None or self.batch_size >= 1, "--batch_size must be at least 1")
        require(self.val_batch_size >= 1, "--val_batch_size must be at least 1")
        require(self.nvol >= 0, "--nvol must not be negative")
        require(0 <= self.oversampling <= 1, f"--oversampling must lie in 0..1, got {self.oversampling}")
        require(self.batches_per_epoch >= 0, "--batches_per_epoch must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network beyond what the plan says."""

    norm: Literal["instance", "batch", "group"] = "instance"
    """Normalisation layer."""
    negative_slope: float = 0.01
    """Slope of LeakyReLU for negative values."""
    res_block: Annotated[bool, tyro.conf.arg(aliases=("--residual",))] = False
    """Residual blocks in the encoder."""
    depth: int | None = None
    """Largest number of strided levels (default: as planned)."""
    min_fmap: int | None = None
    """Smallest feature map that pooling may leave along an axis, in voxels (default: as planned, 4)."""
    filters: tuple[int, ...] | None = None
    """Features of each level (default: as planned)."""
    deep_supervision: bool = False
    """Losses also on the lower-resolution decoder levels."""
    deep_supr_num: int = 2
    """Number of those levels (0: all but the coarsest, as in nnU-Net v2)."""

    def __post_init__(self) -> None:
        require(0 <= self.negative_slope < 1, f"--negative_slope must lie in [0, 1), got {self.negative_slope}")
        require(self.depth is None or self.depth >= 1, "--depth must be at least 1")
        require(self.min_fmap is None or self.min_fmap >= 1, "--min_fmap must be at least 1")
        require(all(features >= 1 for features in self.filters or ()), "--filters must be at least 1")
        require(self.deep_supr_num >= 0, "--deep_supr_num must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What the network predicts beyond what the plan says."""

    brats: bool = False
    """Train and score the overlapping BraTS regions (whole tumour, tumour core, enhancing tumour)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Prediction of whole scans."""

    tta: bool = False
    """Test-time augmentation: average over flips along all spatial axes."""
    overlap: float = 0.5
    """Overlap of neighbouring windows, as a share of the patch."""
    blend: Annotated[Literal["gaussian", "constant"], tyro.conf.arg(aliases=("--blend_mode",))] = "gaussian"
    """Weights of overlapping windows."""
    save_preds: bool = False
    """Write a NIfTI mask for each case, and (--save_probabilities) the probabilities."""
    save_probabilities: bool = False
    """With --save_preds, also write <case>.npy with the probabilities (K, z, y, x) in the voxel order of the scan."""
    invert_resampled_y: bool = False
    """Score validation in the scan's own grid, the grid of the exported masks."""

    def __post_init__(self) -> None:
        require(0 <= self.overlap < 1, f"--overlap must lie in [0, 1), got {self.overlap}")
