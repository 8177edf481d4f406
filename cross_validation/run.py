"""A cross-validation as it is asked for: everything is checked, then run here or written as jobs for Slurm."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cross_validation import report
from cross_validation.doubt import write_calibrations
from cross_validation.fold_run import condemn, refuse_conflicts
from cross_validation.jobs import JobPlan, RunSelection, check_passed, plan_jobs
from cross_validation.scheduler import Job, Outcome, run_jobs
from cross_validation.slurm_jobs import write_jobs
from report.finishing import finish_cross_validation
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, continues_with
from utils.runs import PAGE, outdate_page
from utils.runtime import detect_machine
from utils.slurm_resources import SlurmResources


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """What is asked for.

    Attributes:
        selection: which runs, and where everything lies.
        passed: flags for main.py.
        nfolds: number of folds; None: those of the preprocessed data.
        gpus: number of GPUs; None: all there are; 0: the CPU.
        page: write one about all that is finished, at the end; the folds write none of their own.
    """

    selection: RunSelection
    passed: tuple[str, ...] = ()
    nfolds: int | None = None
    gpus: int | None = None
    page: bool = True

    def __post_init__(self) -> None:
        check_passed(self.passed)

    def plan(self, *, several_gpus: bool = False, on_gpu: bool | None = None) -> JobPlan:
        """The jobs, as `plan_jobs` makes them.

        Raises:
            UserError: flags or data that do not fit.
        """
        nfolds = () if self.nfolds is None else ("--nfolds", str(self.nfolds))
        return plan_jobs(self.selection, (*self.passed, *nfolds), several_gpus=several_gpus, on_gpu=on_gpu)


def cross_validate(asked: CrossValidation) -> int:
    """Run all folds on the devices of this machine; returns the exit status (1: some failed).

    Raises:
        UserError: anything that can be found out without training.
    """
    nodes = asked.selection.nodes
    nodes.require_job(os.environ)
    gpus = find_gpus(asked.gpus)
    if nodes.count > 1 and gpus[0] is not None:
        # One training has all of them.
        gpus = (",".join(name for name in gpus if name is not None),)
    plan = asked.plan(several_gpus=len(gpus) > 1, on_gpu=gpus[0] is not None)
    for note in plan.notes:
        print(note)
    refuse_conflicts(plan.runs)
    condemn(plan.runs)
    task, results = asked.selection.task, asked.selection.results
    if asked.page or any(run.record() is None for run in plan.runs):
        outdate_page(results, f"{task}_{PAGE}")
    outcomes = _run(plan.jobs, gpus, results)
    finished = report.write_summary(task, results)
    write_calibrations(task, asked.selection.data, results)
    if finished and asked.page:
        finish_cross_validation(results, task)
    return _status(outcomes)


def prepare_cascade(asked: CrossValidation) -> int:
    """Make the data of a cascade's second stage from its finished first stage; returns the exit status.

    Raises:
        UserError: as `cross_validate`.
    """
    plan = asked.plan()
    assert plan.cascade is not None, asked.selection.configurations
    return _status(_run([dataclasses.replace(plan.cascade, after=())], (None,), asked.selection.results))


def write_slurm(asked: CrossValidation, folder: Path, resources: SlurmResources) -> int:
    """Write job scripts in place of running anything; returns the exit status.

    Raises:
        UserError: as `cross_validate`, or the folder cannot be written to.
    """
    on_gpu = asked.gpus != 0
    plan = asked.plan(on_gpu=on_gpu)
    for note in plan.notes:
        print(note)
    refuse_conflicts(plan.runs)
    write_jobs(
        folder, plan, asked.selection, asked.passed, nfolds=asked.nfolds, on_gpu=on_gpu, resources=resources,
        page=asked.page,
    )  # fmt: skip
    return EXIT_OK


def _run(jobs: Sequence[Job], gpus: Sequence[str | None], results: Path) -> list[Outcome]:
    with continues_with("the same command continues; finished runs are kept"):
        return run_all(jobs, gpus, results)


def _status(outcomes: Sequence[Outcome]) -> int:
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        print(f"{len(failed)} of {len(outcomes)} runs failed; the same command continues them:", file=sys.stderr)
        for outcome in failed:
            print(f"  - {outcome.job.name}: {outcome.error}", file=sys.stderr)
    return EXIT_PARTIAL if failed else EXIT_OK


def find_gpus(wanted: int | None) -> tuple[str | None, ...]:
    """What CUDA_VISIBLE_DEVICES is set to for each run that goes side by side; (None,) is the CPU.

    Raises:
        UserError: there are fewer GPUs than wanted.
    """
    if wanted == 0:
        return (None,)
    there = detect_machine().num_gpus
    if wanted is not None and wanted > there:
        raise UserError(f"--gpus {wanted}: torch finds {there} GPU(s) on this machine; use --gpus {there}")
    # Names that the caller's own choice of devices has, such as those of a Slurm job.
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible[:there] if len(visible) >= there else [str(index) for index in range(there)]
    return tuple(names[:wanted]) or (None,)


def run_all(jobs: Sequence[Job], gpus: Sequence[str | None], results: Path) -> list[Outcome]:
    """Run everything, with a line for each job that has ended; what interrupts this program ends the commands, too."""
    place = "on the CPU" if gpus[0] is None else f"on {len(gpus)} GPU(s)"
    logs = jobs[0].log if len(jobs) == 1 else results / "*" / "fold_*" / jobs[0].log.name
    print(f"{len(jobs)} run{'s' if len(jobs) > 1 else ''} {place}; what they print: {logs}", flush=True)
    reported, live = 0, sys.stdout.isatty()
    # On a terminal the last line shows what runs; it is written over.
    clear = "\r\x1b[K" if live else ""

    def tell(outcome: Outcome) -> None:
        nonlocal reported
        reported += 1
        print(f"{clear}[{reported}/{len(jobs)}] {report.describe(outcome)}", flush=True)

    def watch(lines: list[str]) -> None:
        text = "  |  ".join(lines)[: shutil.get_terminal_size().columns - 1]
        print(f"{clear}{text}", end="", flush=True)

    return run_jobs(
        jobs, gpus, report=tell, notice=lambda text: print(f"{clear}{text}", flush=True),
        watch=watch if live else lambda lines: None,
    )  # fmt: skip
