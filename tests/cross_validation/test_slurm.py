"""Job scripts: words reach the command as they are, and jobs wait for those before them."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from cross_validation.slurm import SlurmJob, job_script, submit_script, write_job_scripts

FIRST = SlurmJob(name="3d_lowres_fold_0", words=("python", "main.py"), use_gpu=True)
SECOND = SlurmJob(name="cascade", words=("python", "a b.py", "$HOME"), use_gpu=False, after=(FIRST.name,))


def test_a_job_asks_for_a_gpu_only_if_it_uses_one():
    scripts = [job_script(job, folder=Path("/jobs"), working_folder=Path("/work")) for job in (FIRST, SECOND)]
    assert ["--gres=gpu:1" in script for script in scripts] == [True, False]
    assert all("#SBATCH --requeue\n" in script and "#SBATCH --open-mode=append\n" in script for script in scripts)
    assert "#SBATCH --output=/jobs/cascade.out\n" in scripts[1]


def test_every_word_and_folder_reaches_the_command_as_it_is():
    script = job_script(SECOND, folder=Path("/jobs"), working_folder=Path("/my work"))
    lines = [shlex.split(line) for line in script.splitlines() if not line.startswith("#")]
    assert lines == [["set", "-eu"], ["cd", "/my work"], ["exec", "python", "a b.py", "$HOME"]]


def test_jobs_are_submitted_after_those_that_they_wait_for(tmp_path):
    """An sbatch that notes its words and prints a number, as on a cluster that has a name."""
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\nwc -l < {tmp_path}/calls | sed "s/$/;here/"\n')
    sbatch.chmod(0o755)
    submit = write_job_scripts(tmp_path / "jobs", [FIRST, SECOND])
    environment = os.environ | {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    subprocess.run([submit, "--partition=gpu"], env=environment, check=True)
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"--parsable --partition=gpu {tmp_path}/jobs/3d_lowres_fold_0.sh",
        f"--parsable --partition=gpu --dependency=afterok:1 --kill-on-invalid-dep=yes {tmp_path}/jobs/cascade.sh",
    ]


def test_a_job_waits_for_all_that_are_named():
    third = SlurmJob(name="last", words=("true",), use_gpu=False, after=(FIRST.name, SECOND.name))
    assert "--dependency=afterok:$job_0:$job_1 " in submit_script([FIRST, SECOND, third], folder=Path("/jobs"))
