"""The unfinished runs of a cross-validation as jobs for Slurm: each is scripts/cross_validate.py for one of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cross_validation.fold_run import FoldRun
from cross_validation.jobs import JobPlan, RunSelection
from cross_validation.nodes import Nodes
from utils.configurations import CASCADE
from utils.slurm import SlurmJob, write_job_scripts
from utils.slurm_cluster import fit_to_cluster
from utils.slurm_resources import SlurmResources

CROSS_VALIDATE = Path(__file__).resolve().parents[1] / "scripts/cross_validate.py"


def write_jobs(
    folder: Path, plan: JobPlan, selection: RunSelection, passed: Sequence[str], *, nfolds: int | None, on_gpu: bool,
    resources: SlurmResources,
    page: bool = True,
) -> None:  # fmt: skip
    """Write the job scripts of all runs that are not finished, and submit.sh, and say so.

    Raises:
        UserError: the folder cannot be written to, or the cluster has nothing that the jobs could run on.
    """
    resources = fit_to_cluster(
        resources, gpus=selection.nodes.gpus if on_gpu else 0, nodes=selection.nodes.count,
        tasks=selection.nodes.processes,
    )  # fmt: skip
    values = {"task": selection.task, "data": selection.data.absolute(), "results": selection.results.absolute()}
    values |= {} if nfolds is None else {"nfolds": nfolds}
    values |= {"checkpoint": selection.checkpoint}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    words += [] if page else ["--no_report"]
    program = (sys.executable, str(CROSS_VALIDATE), *words, "--configurations")
    tail = ("--", *passed) if passed else ()
    jobs: dict[str, SlurmJob] = {}
    for job in plan.jobs:
        what: tuple[str, ...]
        if isinstance(job, FoldRun):
            if job.record() is not None:
                continue
            what = (job.configuration, "--folds", str(job.fold), "--gpus", str(job.nodes.gpus if on_gpu else 0))
            what += ("--nodes", str(job.nodes.count)) if job.nodes.count > 1 else ()
        elif not any(run.cascade and run.record() is None for run in plan.runs):
            continue
        else:
            what = (CASCADE, "--prepare")
        name = f"{selection.task}_{job.name.replace(' ', '_')}"
        # What is finished needs no job, and nobody waits for it.
        after = tuple(jobs[each].name for each in job.after if each in jobs)
        nodes = job.nodes if isinstance(job, FoldRun) else Nodes(gpus=0)
        jobs[job.name] = SlurmJob(
            name=name, words=(*program, *what, *tail), gpus=nodes.gpus if on_gpu else 0, after=after,
            nodes=nodes.count, tasks=nodes.processes,
        )  # fmt: skip
    submit = write_job_scripts(folder, list(jobs.values()), resources)
    print(f"{len(jobs)} job scripts in {folder} (finished runs have none); submit them: {submit}")
