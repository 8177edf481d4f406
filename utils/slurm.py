"""Job scripts for Slurm: one file for each run, and one that submits them all in order."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from utils.files import write_atomically
from utils.runs import prepare_folder
from utils.slurm_cluster import fit_to_cluster
from utils.slurm_resources import NOTICE_S, SlurmResources

MOST_RESTARTS = 100
"""A job that has been queued again so often does not get on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A command as a job.

    Attributes:
        name: of the job and its file.
        words: the command.
        gpus: that it asks for, on each node.
        after: names of the jobs that must have ended well before.
        nodes: that it has; the command starts on the first one, and `srun` in it on all.
        tasks: that `srun` may start on each of several nodes, each with the CPUs of the job.
        parts: those of `num_parts` that a job array does, one each: its command gets `--part I/N`; none: a single job.
        num_parts: N.
    """

    name: str
    words: tuple[str, ...]
    gpus: int = 0
    after: tuple[str, ...] = ()
    nodes: int = 1
    tasks: int = 1
    parts: tuple[int, ...] = ()
    num_parts: int = 0


# SIGTERM comes where a job is preempted or cancelled: Slurm queues the former again by itself. SIGUSR1 comes before
# the time is over, after which Slurm would queue nothing. bash sees a signal only while it waits.
RUN = f"""stop() {{ kill -TERM "$child" 2>/dev/null || true; wait "$child" || true; }}
later() {{
  stop
  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {MOST_RESTARTS} ]; then
    echo "queued again {MOST_RESTARTS} times and not done: give it more time (--time)" >&2
    exit 1
  fi
  echo "the time is over; queued again to go on" >&2
  scontrol requeue "$SLURM_JOB_ID"
  exit 1
}}
trap 'stop; exit 143' TERM
trap later USR1
{{command}} &
child=$!
wait "$child"
"""


def job_script(job: SlurmJob, resources: SlurmResources, *, folder: Path, working_folder: Path) -> str:
    """Text of a script that runs one command; every word reaches it as it is.

    What ends before its time is over, or is preempted, is queued again and then continues.
    """
    output = f"{folder / job.name}{'_%a' if job.parts else ''}.out"
    options = {"job-name": job.name, "output": output}
    several = {"nodes": str(job.nodes), "ntasks-per-node": str(job.tasks)}
    options |= {"ntasks": "1"} if job.nodes == 1 else several
    options |= {"array": number_ranges(job.parts)} if job.parts else {}
    options |= resources.options(gpus=job.gpus)
    # A job that is requeued continues, and its output with it.
    options |= {"open-mode": "append", "signal": f"B:USR1@{NOTICE_S}"}
    lines = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]
    lines += [f"#SBATCH {text}" for text in (*resources.further, "--requeue")]
    part = f' --part "$SLURM_ARRAY_TASK_ID"/{job.num_parts}' if job.parts else ""
    run = RUN.replace("{command}", shlex.join(job.words) + part)
    return "\n".join(["#!/bin/bash", *lines, "set -eu", f"cd {shlex.quote(str(working_folder))}", run])


def number_ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as sbatch's --array takes them: 1-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def submit_script(jobs: Sequence[SlurmJob], *, folder: Path) -> str:
    """Text of a script that submits jobs, each after those that it waits for.

    Its own arguments, such as --partition=gpu, go to each sbatch. Nothing is submitted where the cluster could never
    run one of the jobs. A job that waits for one that failed is cancelled.
    """
    numbers = {job.name: number for number, job in enumerate(jobs)}
    files = [shlex.quote(str(folder / f"{job.name}.sh")) for job in jobs]
    tests = [f'can_run {file} "$@"' for file in files]
    lines = []
    for job, file in zip(jobs, files):
        before = "".join(f":$job_{numbers[name]}" for name in job.after)
        waiting = f" --dependency=afterok{before} --kill-on-invalid-dep=yes" if job.after else ""
        lines.append(f'job_{numbers[job.name]}=$(submit "$@"{waiting} {file})')
    test = """can_run() {
  local file=$1 said; shift
  said=$(sbatch --test-only "$@" "$file" 2>&1) && return
  printf '%s\\n%s\\n' "$said" "nothing was submitted: the cluster refuses what $file asks for (#SBATCH lines)" >&2
  exit 2
}"""
    # sbatch --parsable prints the job's number, and on some clusters ";" and the cluster's name.
    function = 'submit() { local printed; printed=$(sbatch --parsable "$@") || return; echo "${printed%%;*}"; }'
    return "\n".join(["#!/bin/bash", "set -eu", test, function, *tests, *lines, ""])


def write_job_scripts(folder: Path, jobs: Sequence[SlurmJob], resources: SlurmResources) -> Path:
    """Write `<name>.sh` for each job and submit.sh; returns the latter. A job follows those that it waits for.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = prepare_folder(folder, "--slurm").absolute()
    for job in jobs:
        _write(folder / f"{job.name}.sh", job_script(job, resources, folder=folder, working_folder=Path.cwd()))
    _write(folder / "submit.sh", submit_script(jobs, folder=folder))
    return folder / "submit.sh"


def write_array(
    folder: Path, job: SlurmJob, resources: SlurmResources, *, before: Mapping[str, SlurmJob] = MappingProxyType({})
) -> None:
    """Write the script of a job array and submit.sh, and say so; or that none of its parts is left to do.

    Args:
        folder: for the scripts.
        job: the array, with the parts that are not finished.
        resources: what each job asks for.
        before: jobs that the array waits for, by what each is.

    Raises:
        UserError: the folder cannot be written to, or the cluster has nothing that the jobs could run on.
    """
    if not job.parts:
        print(f"all {job.num_parts} parts are finished; there is nothing to submit")
        return
    job = dataclasses.replace(job, after=tuple(each.name for each in before.values()))
    submit = write_job_scripts(folder, [*before.values(), job], fit_to_cluster(resources, gpus=job.gpus))
    what = " and ".join([*before, f"an array of {len(job.parts)} jobs"])
    print(f"{what} in {folder}, for parts {number_ranges(job.parts)} of {job.num_parts}; submit: {submit}")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
    os.chmod(path, 0o755)  # noqa: S103 (others of a cluster may read and submit them, not change them)
