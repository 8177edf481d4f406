"""Predict scans: raw scans or DICOM series in one command, or cases that preprocess.py has prepared.

python scripts/inference.py --input scans --output masks --model results/04_best
python scripts/inference.py --data data/04_3d --dim 3 --fold 0 --model results/checkpoints --tta --save_preds
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import changed_options, parse, to_words, without_flags
from utils.config import FoldChoice, TaskNumber, default_root
from utils.errors import EXIT_OK, UserError, continues_with, run_cli
from utils.parts import PartOptions
from utils.slurm import SlurmJob, write_array

if TYPE_CHECKING:
    from inference.run import NetworkUse
    from inference.scan_run import ScanJob

MaskFormat = Literal["nii.gz", "nii", "nrrd", "mha", "png", "tif", "dicom-seg", "dicom-seg-labelmap"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Masks of raw scans: --input and --output, with --model."""

    input: Path | None = None
    """Scan (.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, .png, .tif), folder of scans (4D, or one file per channel:
    case_0000, ...), task folder with imagesTs, or DICOM: a folder or zip of one series or of many studies."""
    output: Path | None = None
    """Folder for the masks, on the grid of each scan."""
    output_format: MaskFormat | None = None
    """Format of the masks (default: that of the scan; .nii.gz for NIfTI and DICOM). dicom-seg and dicom-seg-labelmap
    need DICOM scans."""
    segment_codes: Path | None = None
    """dataset.json whose "segment_codes" say what the classes are in DICOM-SEG, such as {"liver": ["10200004", "SCT",
    "Liver"]}."""
    dicom_channels: tuple[str, ...] = ()
    """Which DICOM series of a study is which channel: for each channel of the model what its series is called, such as
    't1*' 't2*' 'flair*' (SeriesDescription), modality:PT or number:4; or a table (.csv)."""
    anonymous: bool = False
    """Call the scans scan_0001, scan_0002, ... in files, messages and records."""
    anonymous_map: Path | None = None
    """With --anonymous: JSON file that says which scan has which name, and keeps the names in later runs."""
    folds: tuple[int, ...] | None = None
    """Folds whose probabilities are averaged (default: all of the model)."""
    save_probabilities: bool = False
    """Also write <case>.npy: probabilities (K, z, y, x) float32 in the voxel order of the scan."""
    save_soft: tuple[str, ...] | None = None
    """Targets whose mean probability is also written as a map on the grid of the scan: soft_<target>/<case>.nii.gz;
    without a name all of them."""
    overwrite: bool = False
    """Predict all scans again, and replace masks of other origin or edited ones."""
    memory_gb: float | None = None
    """CPU memory that scans in flight may take together, in 10^9 bytes (default: half of what is free). With --slurm
    the memory of each job, of which they take half (default: the cluster's)."""
    postprocessing: bool = True
    """Apply the post-processing that find_best_configuration.py chose."""
    allow_unfinished: bool = False
    """Use trainings that were interrupted, and a cross-validation of which folds are missing, as they are."""
    status: bool = False
    """Say which parts of --output are done, running or lost, and predict nothing."""

    def __post_init__(self) -> None:
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise UserError(f"--memory_gb must be positive, got {self.memory_gb}")
        if self.anonymous_map is not None and not self.anonymous:
            raise UserError("--anonymous_map has no effect without --anonymous")
        if self.segment_codes is not None and not str(self.output_format).startswith("dicom-seg"):
            raise UserError("--segment_codes has no effect without --output_format dicom-seg or dicom-seg-labelmap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Masks and scores of cases that preprocess.py has prepared: --data, --fold and --dim, with --model."""

    data: Annotated[Path | None, tyro.conf.arg(aliases=("--prepared",))] = None
    """Preprocessed data: <task>_<dim>d, its val/ or test/, or the folder above."""
    fold: FoldChoice | None = None
    """Fold whose validation cases are predicted (the test/ folder is predicted whole)."""
    dim: Literal[2, 3] | None = None
    """Dimension of the U-Net."""
    task: TaskNumber | None = None
    """Task number; needed only where --data holds several tasks."""
    results: Path | None = None
    """Folder for predictions and logs (default: /results in the container, else results)."""
    logname: str | None = None
    """File name of the DLLogger lines (default: inference_log.json)."""
    save_preds: bool = False
    """Write the masks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Both ways: the model, and how its network is applied."""

    model: Annotated[Path | None, tyro.conf.arg(aliases=("--ckpt_path",))] = None
    """Raw scans: exported zip, checkpoint, folder of checkpoints (the best is taken), folder with fold_0, fold_1, ...,
    the folder of a decision.json (scripts/find_best_configuration.py), a model of nnU-Net v2, or the JSON file of a set
    of models. Prepared cases: checkpoint, or a folder of checkpoints."""
    batch_size: int | None = None
    """Windows (3D) or slices (2D) that go through the network together (default: 4; raw scans on a CPU: as many of
    them as fit in little memory)."""
    gpus: int | None = None
    """Number of GPUs (default: one if there is one; 0: CPU)."""
    amp: bool = False
    """Mixed precision."""
    compile: bool = False
    """Compile the network with torch.compile; worth its start-up with many or large scans."""
    tta: bool = False
    """Test-time augmentation: average over flips (default: as decision.json was scored, else off)."""
    overlap: float | None = None
    """Overlap of neighbouring windows (default: as decision.json was scored, else 0.5)."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weights of overlapping windows."""
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """Raw scans: what computes the networks. onnxruntime and openvino compute on the CPU, with the packages of
    pip install -e '.[onnx]' or '.[openvino]'; auto is torch."""
    report: bool = True
    """Write a page about the masks, report.html, beside them."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch_size must be at least 1, got {self.batch_size}")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UserError(f"--overlap must lie in [0, 1), got {self.overlap}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Predict masks, in one of two ways: of raw scans, in one command (--input, --output, --model), or of cases that
    preprocess.py has prepared (--data, --fold, --dim, --model).

    What the network looks like comes from the model.
    """

    raw_scans: ScanOptions = dataclasses.field(default_factory=ScanOptions)
    network: NetworkOptions = dataclasses.field(default_factory=NetworkOptions)
    prepared_cases: ShardOptions = dataclasses.field(default_factory=ShardOptions)
    cluster: PartOptions = dataclasses.field(default_factory=PartOptions)

    def __post_init__(self) -> None:
        if self.cluster.slurm is not None and self.raw_scans.overwrite:
            raise UserError("--overwrite and --slurm contradict each other: a requeued job would begin anew each time")


def main(argv: Sequence[str] | None = None) -> int:
    """Predict in the way that the flags ask for; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(InferenceOptions, words, prog="inference.py")
    scans, shards = (
        [f"--{name}" for name in changed_options(group, type(group)())]
        for group in (options.raw_scans, options.prepared_cases)
    )
    if scans and shards:
        raise UserError(
            f"{', '.join(scans)} (raw scans) and {', '.join(shards)} (preprocessed cases) are two ways to predict; "
            "leave out one group"
        )
    if not scans and not shards:
        raise UserError(
            "nothing to predict: give --input, --output and --model for raw scans, "
            "or --data, --fold, --dim and --model for preprocessed cases (see inference.py --help)"
        )
    if scans and options.raw_scans.status:
        _require([options.raw_scans], ("output",))
        assert options.raw_scans.output is not None, "it has been asked for"
        from inference.part_table import print_status

        return print_status(options.raw_scans.output)
    if scans:
        _require([options.raw_scans, options.network], ("input", "output", "model"))
        with continues_with("the same command (without --overwrite) continues; finished masks are kept"):
            said_tta = any(word.replace("-", "_") in ("__tta", "__no_tta") for word in words)
            job, use = _job(options, tta=options.network.tta if said_tta else None)
            if options.cluster.slurm is not None:
                return _write_jobs(job, use, options, words)
            return _predict_scans(job, use, report=options.network.report)
    _require([options.prepared_cases, options.network], ("data", "fold", "dim", "model"))
    return _predict_shards(options.prepared_cases, options.network)


def _require(groups: Sequence[Any], names: Sequence[str]) -> None:
    values = {name: value for group in groups for name, value in vars(group).items()}
    missing = [f"--{name}" for name in names if values[name] is None]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given, too (see inference.py --help)")


def _job(options: InferenceOptions, *, tta: bool | None) -> tuple[ScanJob, NetworkUse]:
    assert options.network.model is not None, "it has been asked for"
    # After --help.
    from inference.run import NetworkUse
    from inference.scan_run import ScanJob

    use = {name: value for name, value in vars(options.network).items() if name not in ("model", "tta", "report")}
    own = {name: value for name, value in vars(options.raw_scans).items() if name != "status"}
    return ScanJob(**own, model=options.network.model, part=options.cluster.own_part), NetworkUse(**use, tta=tta)


def _predict_scans(job: ScanJob, use: NetworkUse, *, report: bool) -> int:
    from inference.part_run import end_together
    from inference.run import predict_folder

    return end_together(predict_folder(job, use, report=report))


def _write_jobs(job: ScanJob, use: NetworkUse, options: InferenceOptions, words: Sequence[str]) -> int:
    from inference.run import unfinished_parts

    folder, count = options.cluster.slurm, options.cluster.parts
    assert folder is not None and count is not None, "both have been given"
    waiting = unfinished_parts(job, use, count)
    gpus = 1 if use.gpus is None else use.gpus
    own = without_flags(words, PartOptions, "memory_gb")
    command = (sys.executable, str(Path(__file__).resolve()), *own)
    memory_gb = None if job.memory_gb is None else math.ceil(job.memory_gb)
    write_array(
        folder, SlurmJob(name="predict", words=command, gpus=gpus, parts=tuple(waiting), num_parts=count),
        dataclasses.replace(options.cluster.resources(), memory_gb=memory_gb),
    )  # fmt: skip
    return EXIT_OK


def _predict_shards(options: ShardOptions, network: NetworkOptions) -> int:
    if network.engine not in ("auto", "torch"):
        raise UserError(f"--engine {network.engine} is for raw scans (--input, --output); prepared cases take torch")
    import main as entry

    own = {
        "exec_mode": "predict", "val_batch_size": network.batch_size or 4, "ckpt_path": network.model,
        "results": options.results or default_root("results"), "logname": options.logname or "inference_log.json",
    }  # fmt: skip
    words = [word for name, value in own.items() for word in (f"--{name}", str(value))]
    words += to_words(options, ("data", "task", "dim", "fold", "save_preds"))
    return entry.main([*words, *to_words(network, ("gpus", "overlap", "blend", "amp", "compile", "tta", "report"))])


if __name__ == "__main__":
    sys.exit(run_cli(main))
