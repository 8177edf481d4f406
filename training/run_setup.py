"""What a run of main.py works with, found and checked before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_preprocessing.planning.adapt import adapt_plan, mirror_along, read_fold
from data_preprocessing.planning.plan_file import read_plan
from data_preprocessing.readiness import require_same_labels, run_cases
from data_preprocessing.shards import corrected_labels
from models.checkpoint import CheckpointContents, check_fits, flips_remark, read_checkpoint
from models.resuming import flattered_scores
from utils import runs
from utils.args import Config
from utils.config import RunConfig
from utils.errors import UserError
from utils.locks import folder_lock
from utils.runtime import Runtime, configure_backends, resolve_hardware, seed_everything
from utils.schema import Fold, Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What every mode needs: the shards, how the network looks, the cases of the fold, the device."""

    shards: runs.ShardFolder
    plan: Plan
    fold: Fold
    cases: tuple[str, ...]
    """What this run looks at: the cases of the fold, its validation cases, or all test scans."""
    runtime: Runtime


def prepare(config: Config) -> Setup:
    """Find shards and device; nothing is written.

    Raises:
        UserError: anything that does not exist or does not fit.
    """
    runtime = resolve_hardware(config.hardware)
    shards = runs.find_shards(config.run)
    plan = read_plan(shards.root)
    if plan.stage.dim != config.run.dim:
        raise UserError(f"{shards.root} was preprocessed for --dim {plan.stage.dim}, not --dim {config.run.dim}")
    plan, run = mirror_along(_adapted(plan, config), config.loader.mirror_axes), config.run
    fold = read_fold(shards.root, run.fold, nfolds=run.nfolds, splits=run.splits, group_by=run.group_by)
    cases = run_cases(shards, plan, fold, scored=run.exec_mode != "train" and not run.benchmark)
    if _reads_labels(config):
        require_same_labels(shards, cases, plan)
    configure_backends(runtime)
    seed_everything(run.seed)
    runtime.pin(config.hardware.affinity)
    return Setup(shards=shards, plan=plan, fold=fold, cases=cases, runtime=runtime)


def _reads_labels(config: Config) -> bool:
    """Whether a run begins to learn from the shards' labels, or scores against them."""
    run = config.run
    if run.benchmark or run.exec_mode == "predict":
        return False
    return not (run.resume_training if run.exec_mode == "train" else config.inference.invert_resampled_y)


def with_network(setup: Setup, config: Config) -> Setup:
    """The same data and device for a network or batches of other sizes."""
    return dataclasses.replace(setup, plan=_adapted(setup.plan, config))


def _adapted(plan: Plan, config: Config) -> Plan:
    return adapt_plan(plan, config.model, batch_size=config.loader.batch_size, brats=config.labels.brats)


def prepare_scoring(config: Config) -> tuple[Setup, Config, CheckpointContents]:
    """As `prepare`, with the network of `--ckpt_path`: its plan and its options replace those of the flags.

    A checkpoint of the NVIDIA reference holds no plan; the shards' plan and the flags describe it.
    """
    path = runs.find_checkpoint(config.run.ckpt_path)
    setup, stored = prepare(config), read_checkpoint(path)
    check_fits(stored, setup.plan)
    warnings = [] if setup.shards.is_test else flattered_scores(stored, setup.cases, setup.plan)
    remark = flips_remark(stored.path, mirrored=stored.mirrored, plan=stored.plan)
    warnings += [remark] if config.inference.tta and remark is not None else []
    warn(setup, warnings)
    if stored.plan is not None and stored.model is not None:
        setup = dataclasses.replace(setup, plan=stored.plan)
        config = dataclasses.replace(config, model=stored.model)
    runs.prepare_folder(config.run.results, "--results")
    return setup, config, stored


@contextlib.contextmanager
def training_folder(run: RunConfig, runtime: Runtime, *, resume: Path | None) -> Iterator[Path]:
    """The folder of a training's checkpoints; until the block ends no other training writes there or into `--results`.

    Checkpoints of an earlier training are moved aside, unless it is continued.

    Raises:
        UserError: another training writes there, or nothing can be written.
    """
    runs.prepare_folder(run.results, "--results")
    folder = runs.prepare_folder(runs.checkpoint_folder(run), "--ckpt_store_dir")
    with contextlib.ExitStack() as held:
        # One that waited would begin hours later, and move aside what the first one has trained.
        for each in {run.results.resolve(), folder.parent.resolve()} if runtime.is_first_process else ():
            held.enter_context(folder_lock(each, wait=False))
        if runtime.is_first_process and resume is None:
            kept = runs.set_aside(folder, run.results / runs.RECORD, keep_folder=not run.save_ckpt)
            if kept is not None:
                print(f"the checkpoints of an earlier run were moved to {kept}")
        yield folder


def remarks(config: Config, setup: Setup, resume: Path | None) -> list[str]:
    """What to say of a training's options and data: features of levels that there are not, what is not read."""
    filters, levels = config.model.filters or (), len(setup.plan.stage.filters)
    extra = " ".join(map(str, filters[levels:]))
    found = [f"--filters: the U-Net has {levels} levels, so {extra} at the end is left out"] if extra else []
    return found + _of_resuming(config.run, setup, resume)


def _of_resuming(run: RunConfig, setup: Setup, resume: Path | None) -> list[str]:
    if resume is None:
        return []
    changed = corrected_labels(setup.shards.cases, setup.cases)
    found = [f"the training goes on with {len(changed)} labels as they were, {changed[0]}"] if changed else []
    if run.ckpt_path is None:
        return found
    return [f"--ckpt_path {run.ckpt_path} is not read: --resume_training continues {resume}", *found]


def warn(setup: Setup, messages: Sequence[str]) -> None:
    """Say what may surprise, once for all processes."""
    for message in messages if setup.runtime.is_first_process else ():
        print(f"warning: {message}", file=sys.stderr)
