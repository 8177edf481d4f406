"""Job scripts: every word arrives as it is, and jobs wait for those before them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cross_validation.slurm import SlurmJob, job_script, submit_script, write_job_scripts
from utils.errors import UserError

ODD = "a b'c\"$HOME;#"


def test_a_script_runs_its_command_word_by_word(tmp_path):
    (tmp_path / "odd folder").mkdir()
    words = (sys.executable, "-c", "import sys, os; print(sys.argv[1:], os.getcwd())", ODD)
    text = job_script(
        SlurmJob(name="n", words=words, use_gpu=True), folder=tmp_path, working_folder=tmp_path / "odd folder"
    )
    run = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=True)
    assert run.stdout == f"{[ODD]} {tmp_path / 'odd folder'}\n"
    assert "#SBATCH --gres=gpu:1" in text and f"#SBATCH --output={tmp_path}/n.out" in text


def test_a_run_on_the_cpu_asks_for_no_gpu(tmp_path):
    assert "gres" not in job_script(
        SlurmJob(name="n", words=("true",), use_gpu=False), folder=tmp_path, working_folder=tmp_path
    )


def test_jobs_wait_for_the_numbers_of_those_before_them(tmp_path):
    jobs = [SlurmJob(name=name, words=("true",), use_gpu=False, after=after)
            for name, after in (("one", ()), ("two", ()), ("three", ("one", "two")))]  # fmt: skip
    submit = write_job_scripts(tmp_path / "jobs", jobs)
    (tmp_path / "sbatch").write_text('#!/bin/bash\necho "$@" >> calls\nwc -l < calls | xargs -I N echo "N;cluster"\n')
    (tmp_path / "sbatch").chmod(0o755)
    subprocess.run([submit, "--partition=p"], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [Path(call[-1]).name for call in calls] == ["one.sh", "two.sh", "three.sh"]
    assert "--dependency=afterok:1:2" in calls[2] and not any("dependency" in word for word in calls[1])
    assert all("--partition=p" in call for call in calls)


def test_no_job_is_submitted_twice():
    text = submit_script([SlurmJob(name="a", words=(), use_gpu=False)], folder=Path("jobs"))
    assert text.count("jobs/a.sh") == 1


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "jobs").touch()
    with pytest.raises(UserError, match="--slurm"):
        write_job_scripts(tmp_path / "jobs", [])
