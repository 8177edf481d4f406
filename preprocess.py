"""Turn a folder of scans (NIfTI and dataset.json) into a plan and training-ready arrays.

python preprocess.py --task 04 --dim 3
python preprocess.py --task 04 --dim 3 --exec_mode test
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.args import parse, without_flags
from utils.errors import EXIT_OK, UserError, continues_with, run_cli
from utils.parts import PartJobOptions
from utils.preprocess_options import PLANNING, Options

if TYPE_CHECKING:
    from data_preprocessing.dataset.description_file import Dataset
    from data_preprocessing.runner import CaseStatus
    from utils.schema import Fingerprint, Plan
    from utils.workers import Workers


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status (1: some cases failed)."""
    start_s = time.monotonic()
    options = parse(Options, argv, prog="preprocess.py", doc=__doc__)
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
    if options.jobs.slurm is not None:
        return write_part_jobs(options, options.jobs.slurm, dataset, sys.argv[1:] if argv is None else argv)
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
    if options.jobs.inspect:
        return EXIT_OK
    if options.jobs.part is None or (folder / options.mark).is_file():
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
    from data_preprocessing.part_jobs import shared_fingerprint
    from data_preprocessing.planning import resume
    from data_preprocessing.planning.fingerprint import combine
    from data_preprocessing.planning.plan_table import plan_table
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
    fingerprint, relative_size = None, options.zscore == "nnunet"
    if options.jobs.inspect or options.jobs.part:
        fingerprint = shared_fingerprint(folder, dataset, workers, relative_size=relative_size)
    elif not options.overwrite:
        fingerprint = resume.stored_fingerprint(folder, inspection, relative_size=relative_size)
    if options.jobs.inspect and fingerprint:
        print(plan_table(make_plan(fingerprint)))
        return folder, []
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
    return folder, fill_training(folder, content, workers, overwrite=options.overwrite, part=options.jobs.own_part)


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
    own = cases if options.jobs.own_part is None else options.jobs.own_part.own(cases)
    stale = [case for case in own if case.case not in current]
    sizes = inspect_cases(dataclasses.replace(dataset, labels=plan.labels), stale, workers)
    require_shard_room(folder, sizes, plan, labelled=options.exec_mode == "val")
    prepare_folder(folder, "--results")
    return folder, fill_inference(
        folder, cases, plan, workers, overwrite=options.overwrite, part=options.jobs.own_part
    )  # fmt: skip


def write_part_jobs(options: Options, scripts: Path, dataset: Dataset, words: Sequence[str]) -> int:
    """Write a Slurm array that does the parts which have something to do; returns the exit status."""
    from data_preprocessing.part_jobs import parts_to_do, planned, write_jobs

    training, count = options.exec_mode == "training", options.jobs.parts or 1
    cases = dataset.test if options.exec_mode == "test" else dataset.training
    folder = options.root if training else options.root / options.exec_mode
    plan = planned(folder, dataset, choose_planning(options, dataset)) if training else _stored_plan(options, dataset)
    command = (sys.executable, str(Path(__file__).resolve()), *without_flags(words, PartJobOptions))
    parts = parts_to_do(folder, cases, plan, count, options.mark)
    write_jobs(scripts, command, parts, count, options.jobs.resources(), inspect=training and plan is None)
    return EXIT_OK


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
