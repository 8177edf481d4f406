"""From what a cross-validation is asked for to its jobs: preprocessed data, folds and flags, checked before any run.

Every fault that can be found without training is found here, and not after the first hours of it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from cross_validation.cascade_job import FIRST, FULL, SECOND, CascadeData
from cross_validation.flag_checks import check_filters, check_hardware, check_training, has_no_first_stage
from cross_validation.fold_run import FoldRun, RunFlags
from cross_validation.nodes import ONE_NODE, Nodes
from data_preprocessing.planning.adapt import read_folds
from data_preprocessing.planning.plan_file import read_plan
from data_preprocessing.shards import list_cases
from inference.decision import Checkpoint
from utils.args import SECOND_NAMES
from utils.config import RunConfig
from utils.configurations import CONFIGURATIONS
from utils.errors import UserError, list_problems
from utils.flag_roles import CROSS_VALIDATION_FLAGS, DECIDED_FLAGS, ineffective_options
from utils.schema import Fold

PREPROCESSING = {"2d": "--dim 2", FULL: "--dim 3", FIRST: "--dim 3 --lowres"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSelection:
    """Which runs: configurations times folds (None: all), their data and results, what predicts, on which machines."""

    task: str
    configurations: tuple[str, ...]
    folds: tuple[int, ...] | None
    data: Path
    results: Path
    overwrite: bool = False
    checkpoint: Checkpoint = "last"
    nodes: Nodes = ONE_NODE


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobPlan:
    """The runs in order, what makes the cascade's data, and what was added to what was asked for."""

    runs: tuple[FoldRun, ...]
    cascade: CascadeData | None = None
    notes: tuple[str, ...] = ()

    @property
    def jobs(self) -> list[FoldRun | CascadeData]:
        """Everything to do; the cascade's data come right before its runs."""
        second = [run for run in self.runs if run.cascade is not None]
        if self.cascade is None or not second:
            return list(self.runs)
        return [*(run for run in self.runs if run.cascade is None), self.cascade, *second]


def check_passed(passed: Sequence[str]) -> None:
    """Refuse flags of main.py that are not the user's to give here.

    Raises:
        UserError: there are any.
    """
    names = [word.removeprefix("--").split("=")[0].replace("-", "_") for word in passed if word.startswith("--")]
    fields = {name: SECOND_NAMES.get(name, name).removeprefix("no_") for name in names}
    taken = [name for name, field in fields.items() if field in CROSS_VALIDATION_FLAGS]
    if taken:
        given = ", ".join(f"--{name}" for name in taken)
        raise UserError(f"{given} cannot stand after --: cross_validate.py sets it, or has a flag for it before --")


def plan_jobs(
    selection: RunSelection, passed: Sequence[str], *, several_gpus: bool = False, on_gpu: bool | None = None
) -> JobPlan:
    """All runs that are asked for, configuration by configuration, a cascade's first stage before its second.

    Args:
        selection: which.
        passed: flags for main.py.
        several_gpus: whether runs go side by side.
        on_gpu: whether each run gets a GPU; None where nothing is trained here.

    Raises:
        UserError: preprocessed data or folds are missing or do not fit each other, or main.py would refuse the flags.
    """
    selection = dataclasses.replace(
        selection, configurations=tuple(dict.fromkeys(selection.configurations)), data=selection.data.absolute(),
        results=selection.results.absolute(),
    )  # fmt: skip
    named, notes = selection.configurations, []
    cascade = CascadeData(task=selection.task, data=selection.data, results=selection.results)
    needed = tuple(name for name in named if name != SECOND) + ((FULL, FIRST) if SECOND in named else ())
    _require_data(selection, tuple(dict.fromkeys(needed)))
    flags = {dim: RunFlags.of(passed, dim=dim, several_gpus=several_gpus) for dim in {_dim(name) for name in named}}
    for each in flags.values():
        _check_flags(each)
        if on_gpu is not None:
            check_hardware(each.train, on_gpu=on_gpu)
    check_filters({name: (_shards(selection, name), flags[_dim(name)]) for name in dict.fromkeys(needed)})
    folds = {name: _folds(selection, name, flags[_dim(name)]) for name in dict.fromkeys(needed)}
    chosen = {name: _choose(selection, name, folds[FULL if name == SECOND else name]) for name in named}
    if SECOND in named:
        _check_cascade(folds, list_cases(cascade.full))
        everything = tuple(range(len(folds[FIRST])))
        # A finished first stage that is not named is used as it is, whatever its options.
        if chosen.get(FIRST) != everything and (FIRST in named or cascade.missing_cases()):
            notes.append(f"{SECOND} needs the out-of-fold masks of all folds of {FIRST}; those are run first")
            chosen[FIRST] = everything
    for name in chosen:
        source, each = FULL if name == SECOND else name, flags[_dim(name)]
        shards = _shards(selection, source)
        check_training(
            each.train, each.plan(shards), shards, folds[source], first_stage_follows=name == SECOND
        )  # fmt: skip
    order = [name for name in (FIRST, *named) if name in chosen and name != SECOND]
    runs = [run for name in dict.fromkeys(order) for run in _runs(selection, name, chosen[name], flags[_dim(name)])]
    if SECOND not in named:
        return JobPlan(runs=tuple(runs), notes=tuple(notes))
    cascade = dataclasses.replace(cascade, after=tuple(run.name for run in runs if run.configuration == FIRST))
    runs += _runs(selection, SECOND, chosen[SECOND], flags[3], cascade)
    return JobPlan(runs=tuple(runs), cascade=cascade, notes=tuple(notes))


def _dim(name: str) -> int:
    return 2 if name == "2d" else 3


def _shards(selection: RunSelection, name: str) -> Path:
    return selection.data / f"{selection.task}_{CONFIGURATIONS[name]}"


def _require_data(selection: RunSelection, names: Sequence[str]) -> None:
    problems = []
    for name in names:
        shards = _shards(selection, name)
        if not (shards / "plan.json").is_file():
            command = f"python preprocess.py --task {selection.task} {PREPROCESSING[name]} --results {selection.data}"
            if name == FIRST and has_no_first_stage(_shards(selection, FULL)):
                raise UserError(
                    f"this data set needs no cascade: by {_shards(selection, FULL) / 'plan.json'} a patch of {FULL} "
                    f"shows so much of a scan that there is no {FIRST}; leave out {FIRST} and {SECOND}, train {FULL}"
                )
            problems.append(f"{name}: {shards / 'plan.json'} is missing; run: {command}")
    if problems:
        raise list_problems("preprocessed data is missing:", problems, advice="Then give this command again.")


def _check_flags(flags: RunFlags) -> None:
    config = flags.train
    for name in DECIDED_FLAGS:
        if getattr(config.run, name) != getattr(RunConfig(), name):
            raise UserError(f"--config {config.config} must not set {name}: cross_validate.py decides that")
    idle = {message.split()[0] for message in ineffective_options(flags.predict)}
    for message in ineffective_options(config):
        if message.split()[0] in idle:
            print(f"warning: {message}", file=sys.stderr)


def _folds(selection: RunSelection, name: str, flags: RunFlags) -> tuple[Fold, ...]:
    run, shards = flags.train.run, _shards(selection, name)
    dim = read_plan(shards).stage.dim
    if dim != _dim(name):
        raise UserError(f"{shards} was preprocessed for --dim {dim}, not --dim {_dim(name)}")
    flags.plan(shards)
    return read_folds(shards, nfolds=run.nfolds, splits=run.splits, group_by=run.group_by)


def _choose(selection: RunSelection, name: str, folds: Sequence[Fold]) -> tuple[int, ...]:
    chosen = sorted(set(range(len(folds)) if selection.folds is None else selection.folds))
    unknown = [fold for fold in chosen if not 0 <= fold < len(folds)]
    if unknown or not chosen:
        wrong = ", ".join(map(str, unknown)) or "none"
        raise UserError(
            f"--folds must lie in 0..{len(folds) - 1} for {name}, got {wrong}: there are {len(folds)} folds"
        )
    return tuple(chosen)


def _check_cascade(folds: dict[str, tuple[Fold, ...]], cases: Sequence[str]) -> None:
    """Refuse folds with which the second stage would see masks that are not out-of-fold, or none.

    Raises:
        UserError: the folds of the two stages differ, or leave training cases without a prediction.
    """
    if folds[FIRST] != folds[FULL]:
        raise UserError(
            f"{FIRST} and {FULL} have different folds, and a cascade needs the same; run preprocess.py for both with "
            "the same --nfolds, --splits or --group_by"
        )
    missing = sorted(set(cases) - {case for fold in folds[FIRST] for case in fold.val})
    if missing:
        raise list_problems(
            "these cases are validated on in no fold, so there is no out-of-fold mask of them for the cascade:",
            missing, advice="Make folds that validate on every case (--splits, --group_by or --nfolds).",
        )  # fmt: skip


def _runs(
    selection: RunSelection, name: str, chosen: Sequence[int], flags: RunFlags, cascade: CascadeData | None = None
) -> list[FoldRun]:
    # What is run for the cascade without being asked for is continued, not overwritten.
    asked_for = chosen if selection.folds is None else selection.folds
    overwritten = tuple(asked_for) if selection.overwrite and name in selection.configurations else ()
    return [
        FoldRun(
            task=selection.task,
            configuration=name,
            fold=fold,
            dim=_dim(name),
            shards=_shards(selection, name),
            folder=selection.results / f"{selection.task}_{name}" / f"fold_{fold}",
            flags=flags,
            checkpoint=selection.checkpoint,
            overwritten=overwritten,
            cascade=cascade,
            after=() if cascade is None else (cascade.name,),
            nodes=selection.nodes,
        )
        for fold in chosen
    ]
