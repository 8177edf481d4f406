"""Job scripts for Slurm: one file for each run, and one that submits them all in order."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from utils.files import write_atomically
from utils.runs import prepare_folder

CPUS_PER_TASK = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A command as a job.

    Attributes:
        name: of the job and its file.
        words: the command.
        use_gpu: whether it asks for a GPU.
        after: names of the jobs that must have ended well before.
    """

    name: str
    words: tuple[str, ...]
    use_gpu: bool
    after: tuple[str, ...] = ()


def job_script(job: SlurmJob, *, folder: Path, working_folder: Path) -> str:
    """Text of a script that runs one command; every word reaches it as it is."""
    options = {"job-name": job.name, "output": f"{folder / job.name}.out", "ntasks": "1"}
    options |= {"cpus-per-task": str(CPUS_PER_TASK)} | ({"gres": "gpu:1"} if job.use_gpu else {})
    # A job that is requeued continues, and its output with it.
    options |= {"open-mode": "append"}
    lines = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]
    return "\n".join(["#!/bin/bash", *lines, "#SBATCH --requeue", "set -eu", f"cd {shlex.quote(str(working_folder))}",
                      f"exec {shlex.join(job.words)}", ""])  # fmt: skip


def submit_script(jobs: Sequence[SlurmJob], *, folder: Path) -> str:
    """Text of a script that submits jobs, each after those that it waits for.

    Its own arguments, such as --partition=gpu, go to each sbatch. A job that waits for one that failed is cancelled.
    """
    numbers = {job.name: number for number, job in enumerate(jobs)}
    lines = []
    for job in jobs:
        before = "".join(f":$job_{numbers[name]}" for name in job.after)
        waiting = f" --dependency=afterok{before} --kill-on-invalid-dep=yes" if job.after else ""
        lines.append(f'job_{numbers[job.name]}=$(submit "$@"{waiting} {shlex.quote(str(folder / f"{job.name}.sh"))})')
    # sbatch --parsable prints the job's number, and on some clusters ";" and the cluster's name.
    function = 'submit() { local printed; printed=$(sbatch --parsable "$@") || return; echo "${printed%%;*}"; }'
    return "\n".join(["#!/bin/bash", "set -eu", function, *lines, ""])


def write_job_scripts(folder: Path, jobs: Sequence[SlurmJob]) -> Path:
    """Write `<name>.sh` for each job and submit.sh; returns the latter. A job follows those that it waits for.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = prepare_folder(folder, "--slurm").absolute()
    for job in jobs:
        _write(folder / f"{job.name}.sh", job_script(job, folder=folder, working_folder=Path.cwd()))
    _write(folder / "submit.sh", submit_script(jobs, folder=folder))
    return folder / "submit.sh"


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
    os.chmod(path, 0o755)
