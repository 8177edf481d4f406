"""Train all folds of one or several configurations, and predict every training case with the fold that has not seen it.

python scripts/cross_validate.py --task 04 --configurations 2d 3d_fullres -- --epochs 200 --amp
python scripts/cross_validate.py --task 04 --configurations 3d_cascade_fullres --slurm jobs -- --epochs 200

Flags after `--` go to main.py. The same command again continues where the first was stopped.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse, task_name
from utils.config import default_root
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, continues_with, run_cli

if TYPE_CHECKING:
    from cross_validation.jobs import JobPlan
    from cross_validation.scheduler import Job, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidateOptions:
    """Train the folds of configurations and write out-of-fold predictions. Flags after -- go to main.py.

    Stopped at any point, the same command continues. Exit status 0: all runs are finished; 1: some failed.
    """

    task: str
    """Task number."""
    configurations: tuple[Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"], ...] = ("3d_fullres",)
    """What to train. 3d_cascade_fullres trains all folds of 3d_lowres first, unless they are finished."""
    folds: tuple[int, ...] | None = None
    """Folds to run (default: all)."""
    nfolds: int | None = None
    """Number of folds (default: those that preprocess.py made)."""
    data: Path = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder of the preprocessed data."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder in which <task>_<configuration> and <task>_cross_validation.json are made."""
    gpus: int | None = None
    """GPUs to use, each for one run at a time (default: all there are; 0: one run after the other on the CPU)."""
    slurm: Path | None = None
    """Folder for Slurm job scripts, one for each run, in place of running anything."""
    prepare: bool = False
    """Only make the data of 3d_cascade_fullres from finished folds of 3d_lowres (a job of --slurm)."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of each training predicts the cases that it has not seen, and later new scans. best was chosen
    by these very cases, so that its scores are too high. To change it trains nothing anew."""
    overwrite: bool = False
    """Remove earlier results of these runs and train anew; to continue such a command, leave this flag out."""

    def __post_init__(self) -> None:
        if not (self.task.isdecimal() and len(self.task) <= 3):
            raise UserError(f"--task must be a number such as 04, got {self.task!r}")
        if not self.configurations:
            raise UserError("--configurations must name at least one configuration")
        if self.nfolds is not None and self.nfolds < 2:
            raise UserError(f"--nfolds must be at least 2, got {self.nfolds}")
        if self.gpus is not None and self.gpus < 0:
            raise UserError(f"--gpus must not be negative, got {self.gpus}")
        if self.slurm is not None and self.overwrite:
            raise UserError("--overwrite and --slurm contradict each other: a requeued job would begin anew each time")
        if self.slurm is not None and (self.gpus or 0) > 1:
            raise UserError(f"--gpus {self.gpus} and --slurm contradict each other: each job is one run on one GPU")
        if self.prepare and (self.slurm is not None or self.overwrite):
            raise UserError("--prepare makes the cascade's data only; leave out --slurm and --overwrite")
        if self.prepare and "3d_cascade_fullres" not in self.configurations:
            raise UserError("--prepare needs --configurations 3d_cascade_fullres: no other data are made here")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = parse(CrossValidateOptions, words[:cut], prog="cross_validate.py")
    options = dataclasses.replace(options, task=task_name(options.task))
    passed = tuple(words[cut + 1 :])

    from cross_validation.fold_run import condemn, refuse_conflicts
    from cross_validation.jobs import RunSelection, check_passed, plan_jobs

    check_passed(passed)
    gpus = (None,) if options.slurm or options.prepare else find_gpus(options.gpus)
    nfolds = () if options.nfolds is None else ("--nfolds", str(options.nfolds))
    selection = RunSelection(
        task=options.task, configurations=options.configurations, folds=options.folds, data=options.data,
        results=options.results, overwrite=options.overwrite, checkpoint=options.checkpoint,
    )  # fmt: skip
    on_gpu = None if options.prepare else options.gpus != 0 if options.slurm else gpus[0] is not None
    plan = plan_jobs(selection, (*passed, *nfolds), several_gpus=len(gpus) > 1, on_gpu=on_gpu)
    if not options.prepare:
        for note in plan.notes:
            print(note)
        refuse_conflicts(plan.runs)
    if options.slurm is not None:
        return write_jobs(options, options.slurm, plan, passed)
    condemn(plan.runs)
    jobs = [dataclasses.replace(plan.cascade, after=())] if options.prepare else plan.jobs
    with continues_with("the same command continues; finished runs are kept"):
        outcomes = run_all(jobs, gpus, options.results)
    if not options.prepare:
        write_summary(options)
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed; the same command continues them:", file=sys.stderr)
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
    from utils.runtime import detect_machine

    there = detect_machine().num_gpus
    if wanted is not None and wanted > there:
        raise UserError(f"--gpus {wanted}: torch finds {there} GPU(s) on this machine; use --gpus {there}")
    # Names that the caller's own choice of devices has, such as those of a Slurm job.
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible[:there] if len(visible) >= there else [str(index) for index in range(there)]
    return tuple(names[:wanted]) or (None,)


def run_all(jobs: Sequence[Job], gpus: Sequence[str | None], results: Path) -> list[Outcome]:
    """Run everything, with one line for each job that has ended; Ctrl-C and SIGTERM end the commands, too."""
    from cross_validation.scheduler import run_jobs

    place = "on the CPU" if gpus[0] is None else f"on {len(gpus)} GPU(s)"
    logs = jobs[0].log if len(jobs) == 1 else results / "*" / "fold_*" / jobs[0].log.name
    print(f"{len(jobs)} run{'s' if len(jobs) > 1 else ''} {place}; what they print: {logs}", flush=True)
    reported, live = 0, sys.stdout.isatty()
    # On a terminal the last line shows what runs; it is written over.
    clear = "\r\x1b[K" if live else ""

    def report(outcome: Outcome) -> None:
        nonlocal reported
        reported += 1
        print(f"{clear}[{reported}/{len(jobs)}] {describe(outcome)}", flush=True)

    def watch(lines: list[str]) -> None:
        text = "  |  ".join(lines)[: shutil.get_terminal_size().columns - 1]
        print(f"{clear}{text}", end="", flush=True)

    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        watching = {"watch": watch} if live else {}
        return run_jobs(jobs, gpus, report=report, notice=lambda text: print(f"{clear}{text}", flush=True), **watching)
    finally:
        signal.signal(signal.SIGTERM, before)


def describe(outcome: Outcome) -> str:
    """One job as a line: configuration, fold, state, Dice, seconds."""
    from cross_validation.fold_run import FoldRun
    from cross_validation.records import mean_dice

    parts = [f"{outcome.job.name}: {outcome.state}"]
    record = outcome.job.record() if isinstance(outcome.job, FoldRun) and not outcome.error else None
    if record is not None:
        scores = mean_dice(record.cases, record.targets)
        parts += [f"Dice {scores.mean_dice:.4f}"] if scores else []
        parts.append(f"{record.epochs} epochs")
    parts.append(f"{outcome.seconds:.0f} s")
    return ", ".join([*parts, *(outcome.error.splitlines()[:1])])


def write_summary(options: CrossValidateOptions) -> None:
    """The table and its JSON file, of everything that is finished in --results, earlier runs included."""
    from cross_validation.records import finished_records, summary
    from utils.configurations import CONFIGURATIONS
    from utils.files import write_json

    found = {name: finished_records(options.results / f"{options.task}_{name}") for name in CONFIGURATIONS}
    records = [summary(name, folds) for name, folds in found.items() if folds]
    if not records:
        return
    path = options.results / f"{options.task}_cross_validation.json"
    write_json({"version": 1, "task": options.task, "configurations": records}, path)
    for record in records:
        print(_row(record))
        if record["without_label"]:
            print(f"{record['configuration']}: cases without a label file: {', '.join(record['without_label'])}")
    print(f"mean Dice over out-of-fold cases; Dice of each fold: {path}")


def _row(record: dict[str, Any]) -> str:
    number = len(record["folds"])
    numbers = {"mean": record["mean_dice"], **record["dice"]}
    scores = "  ".join(f"{name} {'-' if value is None else format(value, '.4f')}" for name, value in numbers.items())
    folds = f"{number}/{number + len(record['missing_folds'])} folds, {record['cases']} cases"
    return f"{record['configuration']:<20}{folds:<24}{scores}"


def write_jobs(options: CrossValidateOptions, folder: Path, plan: JobPlan, passed: Sequence[str]) -> int:
    """Write the job scripts of all runs that are not finished, and submit.sh."""
    from cross_validation.fold_run import FoldRun
    from cross_validation.slurm import SlurmJob, write_job_scripts

    values = {"task": options.task, "data": options.data.absolute(), "results": options.results.absolute()}
    values |= {} if options.nfolds is None else {"nfolds": options.nfolds}
    values |= {"checkpoint": options.checkpoint}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    program = (sys.executable, str(Path(__file__).resolve()), *words, "--configurations")
    on_gpu, tail = options.gpus != 0, ("--", *passed) if passed else ()
    jobs: dict[str, SlurmJob] = {}
    for job in plan.jobs:
        if isinstance(job, FoldRun):
            if job.record() is not None:
                continue
            what = (job.configuration, "--folds", str(job.fold), "--gpus", "1" if on_gpu else "0")
        elif not any(run.cascade and run.record() is None for run in plan.runs):
            continue
        else:
            what = ("3d_cascade_fullres", "--prepare")
        name = f"{options.task}_{job.name.replace(' ', '_')}"
        # What is finished needs no job, and nobody waits for it.
        after = tuple(jobs[each].name for each in job.after if each in jobs)
        use_gpu = on_gpu and isinstance(job, FoldRun)
        jobs[job.name] = SlurmJob(name=name, words=(*program, *what, *tail), use_gpu=use_gpu, after=after)
    submit = write_job_scripts(folder, list(jobs.values()))
    print(f"{len(jobs)} job scripts in {folder} (finished runs have none); submit them: {submit}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
