"""Job scripts: words reach the command as they are, and jobs wait for those before them."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.slurm import SlurmJob, job_script, number_ranges, submit_script, write_array, write_job_scripts
from utils.slurm_resources import SlurmResources

FIRST = SlurmJob(name="3d_lowres_fold_0", words=("python", "main.py"), gpus=1)
SECOND = SlurmJob(name="cascade", words=("python", "a b.py", "$HOME"), gpus=0, after=(FIRST.name,))
ASKED = SlurmResources()


def test_a_job_asks_for_a_gpu_only_if_it_uses_one():
    scripts = [job_script(job, ASKED, folder=Path("/jobs"), working_folder=Path("/work")) for job in (FIRST, SECOND)]
    assert ["--gres=gpu:1" in script for script in scripts] == [True, False]
    assert all("#SBATCH --requeue\n" in script and "#SBATCH --open-mode=append\n" in script for script in scripts)
    assert "#SBATCH --output=/jobs/cascade.out\n" in scripts[1]


def test_every_word_and_folder_reaches_the_command_as_it_is():
    script = job_script(SECOND, ASKED, folder=Path("/jobs"), working_folder=Path("/my work"))
    lines = script.splitlines()
    assert shlex.split(lines[lines.index("set -eu") + 1]) == ["cd", "/my work"]
    assert shlex.split(lines[-3]) == ["python", "a b.py", "$HOME", "&"]


def test_a_script_asks_for_what_it_was_told_to():
    asked = SlurmResources(
        cpus=3, memory_gb=9, partition="big", time="2:00:00", account="us", further=("--qos=long --constraint=a100",)
    )
    script = job_script(FIRST, asked, folder=Path("/jobs"), working_folder=Path("/work"))
    words = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert words >= {"--cpus-per-task=3", "--mem=9G", "--partition=big", "--time=2:00:00", "--account=us"}
    assert "--qos=long --constraint=a100" in words


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpus": 0}, {"memory_gb": 0}, {"time": " "}, {"time": "2"}, {"time": "1:59"}, {"further": ("qos=long",)},
        {"partition": "a\n#SBATCH -x"},
    ],
)  # fmt: skip
def test_what_sbatch_would_not_understand_is_refused(wrong):
    with pytest.raises(UserError):
        SlurmResources(**wrong)


def test_jobs_are_submitted_after_those_that_they_wait_for(tmp_path):
    """An sbatch that notes its words and prints a number, as on a cluster that has a name."""
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\nwc -l < {tmp_path}/calls | sed "s/$/;here/"\n')
    sbatch.chmod(0o755)
    submit = write_job_scripts(tmp_path / "jobs", [FIRST, SECOND], ASKED)
    environment = os.environ | {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    subprocess.run([submit, "--partition=gpu"], env=environment, check=True)
    tested, submitted = np.split(np.array((tmp_path / "calls").read_text().splitlines()), 2)
    assert tested.tolist() == [f"--test-only --partition=gpu {tmp_path}/jobs/{job.name}.sh" for job in (FIRST, SECOND)]
    # The third and the fourth call.
    assert submitted.tolist() == [
        f"--parsable --partition=gpu {tmp_path}/jobs/3d_lowres_fold_0.sh",
        f"--parsable --partition=gpu --dependency=afterok:3 --kill-on-invalid-dep=yes {tmp_path}/jobs/cascade.sh",
    ]


def test_a_job_waits_for_all_that_are_named():
    third = SlurmJob(name="last", words=("true",), gpus=0, after=(FIRST.name, SECOND.name))
    assert "--dependency=afterok:$job_0:$job_1 " in submit_script([FIRST, SECOND, third], folder=Path("/jobs"))


def test_an_array_does_a_part_in_each_job(tmp_path):
    job = SlurmJob(name="predict", words=("python", "a b.py"), gpus=2, parts=(1, 2, 3, 7), num_parts=8)
    script = job_script(job, ASKED, folder=Path("/jobs"), working_folder=Path("/work"))
    words = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert words >= {"--array=1-3,7", "--output=/jobs/predict_%a.out", "--gres=gpu:2"}
    command = next(line for line in script.splitlines() if line.endswith(" &")).removesuffix(" &")
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s|' {command}"], env=os.environ | {"SLURM_ARRAY_TASK_ID": "7"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert printed.stdout == "python|a b.py|--part|7/8|"


def test_numbers_of_an_array_are_written_as_ranges():
    assert [number_ranges(numbers) for numbers in ((4,), (1, 2), (1, 3, 4, 5, 9))] == ["4", "1-2", "1,3-5,9"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("10:30", 630), ("2:00:01", 7201), ("1-2", 93600), ("1-2:30", 95400), ("1-02:30:15", 95415),
        ("UNLIMITED", math.inf), ("infinite", math.inf), ("-1", math.inf), ("0", math.inf), ("00:00:00", math.inf),
        ("soon", None),
    ],
)  # fmt: skip
def test_times_are_those_of_sbatch(text, seconds):
    assert SlurmResources(time=text).time_s == seconds


def test_an_array_waits_for_what_comes_before_it_and_says_which_parts_it_does(tmp_path, capsys):
    array = SlurmJob(name="predict", words=("python",), parts=(1, 2, 5), num_parts=6)
    write_array(tmp_path / "jobs", array, ASKED, before={"a job that inspects": FIRST})
    assert "a job that inspects and an array of 3 jobs in" in (said := capsys.readouterr().out)
    assert "for parts 1-2,5 of 6; submit: " in said
    assert "afterok:$job_0" in (tmp_path / "jobs/submit.sh").read_text()
    write_array(tmp_path / "none", dataclasses.replace(array, parts=()), ASKED)
    assert "all 6 parts are finished" in capsys.readouterr().out and not (tmp_path / "none").exists()
