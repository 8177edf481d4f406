"""Turn a folder of scans (NIfTI and dataset.json) into a plan and training-ready arrays.

python preprocess.py --task 04 --dim 3
python preprocess.py --task 04 --dim 3 --exec_mode test
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from utils.args import changed_options, parse
from utils.config import DEFAULT_FOLDS, PreparedFolder, default_root
from utils.errors import UserError, continues_with, run_cli
from utils.task_number import TaskNumber, normalise_task

if TYPE_CHECKING:
    from data_preprocessing.dataset.description_file import Dataset
    from data_preprocessing.runner import CaseStatus
    from utils.schema import Fingerprint, Plan
    from utils.workers import Workers

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

    @property
    def root(self) -> Path:
        """The folder of the plan and the training shards."""
        return self.results / f"{self.task}_{self.dim}d{'_lowres' if self.lowres else ''}"

    def given(self, *names: str) -> list[str]:
        """Those of the options that are not as by default."""
        changed = changed_options(self, Options(task=self.task))
        return [name for name in names if name in changed]

    @property
    def command(self) -> str:
        """What prepares the training cases that these options are about."""
        lowres = " --lowres" if self.lowres else ""
        return f"python preprocess.py --task {self.task} --dim {self.dim}{lowres}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status (1: some cases failed)."""
    start_s = time.monotonic()
    options = parse(Options, argv, prog="preprocess.py")
    if options.cascade is not None:
        return prepare_cascade(options, options.cascade)
    # Heavy imports wait until the options are known to be good.
    from data_preprocessing.outcome import report, write_record
    from data_preprocessing.outdated import load_current
    from utils.files import to_dict
    from utils.runs import require_writable
    from utils.throughput import num_cores
    from utils.workers import Workers

    shards = options.root if options.exec_mode == "training" else options.root / options.exec_mode
    dataset = load_current(shards, options.data, options.task, brats=options.brats)
    require_writable(options.root, dataset.folder)
    most = max(1, len(dataset.test if options.exec_mode == "test" else dataset.training))
    prepare = prepare_training if options.exec_mode == "training" else prepare_inference
    try:
        advice = "the same command (without --overwrite) continues; finished cases are kept"
        with continues_with(advice), Workers(min(options.n_jobs or num_cores(), most)) as workers:
            folder, statuses = prepare(options, dataset, workers)
    except OSError as error:
        raise UserError(
            f"{error.filename or options.root}: {error.strerror or error}; run the same command again"
        ) from None
    write_record(folder, to_dict(options), statuses, elapsed_s=time.monotonic() - start_s)
    return report(folder, statuses, verbose=options.verbose)


def prepare_cascade(options: Options, masks: Path) -> int:
    """Make the folder of a cascade's second stage from shards and the masks of the first stage."""
    from data_preprocessing.cascade import prepare_second_stage
    from data_preprocessing.outcome import report, write_record
    from utils.files import to_dict
    from utils.locks import folder_lock
    from utils.runs import prepare_folder
    from utils.throughput import num_cores
    from utils.workers import Workers

    start_s = time.monotonic()
    for name in options.given("data", "ohe", "brats", "nfolds", "splits", "group_by", *PLANNING):
        _warn(f"--{name} has no effect with --cascade: everything is as in {options.root}")
    if not (options.root / "plan.json").is_file():
        raise UserError(f"{options.root} holds no full-resolution shards; run first: {options.command}")
    folder = prepare_folder(options.root.with_name(f"{options.root.name}_cascade_fullres"), "--results")
    with folder_lock(folder), Workers(options.n_jobs or num_cores()) as workers:
        statuses = prepare_second_stage(options.root, masks, folder, workers, overwrite=options.overwrite)
    write_record(folder, to_dict(options), statuses, elapsed_s=time.monotonic() - start_s)
    return report(folder, statuses, verbose=options.verbose)


def prepare_training(options: Options, dataset: Dataset, workers: Workers) -> tuple[Path, list[CaseStatus]]:
    """Inspect, plan, split the cases into folds and write the training shards.

    Raises:
        UserError: there are no training cases, or some are faulty; nothing is written then.
    """
    from data_preprocessing.folders import TrainingFolder, fill_training
    from data_preprocessing.planning import resume
    from data_preprocessing.planning.fingerprint import combine
    from data_preprocessing.planning.splits import choose_splits
    from data_preprocessing.runner import inspect_cases
    from data_preprocessing.shard_room import require_shard_room
    from utils.runs import prepare_folder

    folder, cases = options.root, dataset.training
    if not cases:
        raise UserError(f"{dataset.folder}/dataset.json lists no training cases; there is nothing to plan from")
    make_plan = choose_planning(options, dataset)
    splits, warnings = choose_splits(
        [case.case for case in cases], nfolds=options.nfolds, path=options.splits, group_by=options.group_by
    )
    for message in warnings:
        _warn(message)
    inspection = resume.describe_sources(dataset)
    fingerprint = None
    if not options.overwrite:
        fingerprint = resume.stored_fingerprint(folder, inspection, relative_size=options.zscore == "nnunet")
    if fingerprint is None:
        fingerprint = combine(inspect_cases(dataset, cases, workers))
    content = TrainingFolder(
        cases=cases,
        automatic=make_plan(fingerprint),
        fingerprint=fingerprint,
        inspection=inspection,
        splits=splits,
        splits_asked_for=bool(options.splits or options.group_by),
    )
    if not folder.exists():
        require_shard_room(folder, fingerprint, content.automatic)
    prepare_folder(folder, "--results")
    return folder, fill_training(folder, content, workers, overwrite=options.overwrite)


def choose_planning(options: Options, dataset: Dataset) -> Callable[[Fingerprint], Plan]:
    """How a plan is made from the fingerprint.

    Raises:
        UserError: there is no such preset, or no such plan to follow.
    """
    from data_preprocessing.planning.follow import follow_plan
    from data_preprocessing.planning.planner import PlanOptions, make_plan, plan_source

    if isinstance(options.plan, Path):
        from inference.followed import read_followed

        for name in options.given("planner", "gpu_memory_gb", "zscore"):
            _warn(f"--{name} has no effect on a plan that follows another; use --plan auto")
        followed = read_followed(options.plan, dataset.channels, dim=options.dim, lowres=options.lowres)
        return lambda fingerprint: follow_plan(followed, dataset, fingerprint, mask_channel=options.ohe)
    planning = PlanOptions(
        source=options.plan, planner=options.planner, gpu_memory_gb=options.gpu_memory_gb, lowres=options.lowres,
        zscore=options.zscore,
    )  # fmt: skip
    if plan_source(dataset, planning) == "preset":
        for name in options.given("gpu_memory_gb", "zscore"):
            _warn(f"--{name} has no effect on a preset; use --plan auto")
    return lambda fingerprint: make_plan(
        dataset, fingerprint, dim=options.dim, mask_channel=options.ohe, options=planning
    )  # fmt: skip


def prepare_inference(options: Options, dataset: Dataset, workers: Workers) -> tuple[Path, list[CaseStatus]]:
    """Write shards of the training cases (val) or of the test scans (test) by the stored plan, into a sub-folder.

    Raises:
        UserError: there is no plan, it was made for other data, cases are missing or faulty, or the shards surely need
            more room than the disk has.
    """
    from data_preprocessing.folders import fill_inference
    from data_preprocessing.runner import current_cases, inspect_cases
    from data_preprocessing.shard_room import require_shard_room
    from utils.runs import prepare_folder

    plan = _stored_plan(options, dataset)
    cases = dataset.training if options.exec_mode == "val" else dataset.test
    if not cases:
        section = "training" if options.exec_mode == "val" else "test"
        raise UserError(f"{dataset.folder}/dataset.json lists no {section} cases for --exec_mode {options.exec_mode}")
    folder = options.root / options.exec_mode
    current = set() if options.overwrite else current_cases(cases, plan, folder)
    stale = [case for case in cases if case.case not in current]
    sizes = inspect_cases(dataclasses.replace(dataset, labels=plan.labels), stale, workers)
    require_shard_room(folder, sizes, plan, labelled=options.exec_mode == "val")
    prepare_folder(folder, "--results")
    return folder, fill_inference(folder, cases, plan, workers, overwrite=options.overwrite)


def _stored_plan(options: Options, dataset: Dataset) -> Plan:
    from utils.files import read_json
    from utils.schema import Plan

    path = options.root / "plan.json"
    command = options.command
    if not path.is_file():
        raise UserError(f"{path} does not exist; prepare the training cases first: {command}")
    plan = read_json(Plan, path)
    here = (dataset.task, dataset.channels, dataset.labels.names, dataset.labels.values)
    planned = (plan.task, tuple(c.name for c in plan.channels), plan.labels.names, plan.labels.values)
    for what, value, expected in zip(("task", "channels", "label names", "label values"), here, planned):
        if value != expected:
            raise UserError(f"{dataset.folder} has {what} {value}, but {path} was made for {expected}")
    if options.brats and not plan.labels.regions:
        raise UserError(f"{path} was made without --brats; leave it out, or plan again: {command} --brats")
    if options.ohe and not plan.mask_channel:
        raise UserError(f"{path} was made without --ohe; leave it out, or plan again: {command} --ohe")
    for name in options.given("nfolds", "splits", "group_by", *PLANNING):
        _warn(f"--{name} has no effect with --exec_mode {options.exec_mode}: plan and folds are of the training cases")
    return plan


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_cli(main))
