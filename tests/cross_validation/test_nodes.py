"""Trainings over several machines, as jobs of Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from cross_validation.nodes import ONE_NODE, Nodes
from utils import slurm_cluster
from utils.errors import UserError
from utils.slurm import SlurmJob, job_script
from utils.slurm_cluster import NodeKind, fit_to_cluster
from utils.slurm_resources import SlurmResources


def test_a_training_on_one_machine_is_started_as_it_is():
    assert ONE_NODE.start(("python", "main.py")) == ("python", "main.py")
    ONE_NODE.require_job({})


def test_srun_starts_a_process_for_each_gpu_of_all_machines(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    words = Nodes(count=2, gpus=4).start(("python", "main.py", "--gpus", "1"))
    assert words == (
        "srun", "--nodes=2", "--ntasks-per-node=4", "--kill-on-bad-exit=1", "--cpus-per-task=7",
        "python", "main.py", "--gpus", "1", "--nodes", "2", "--gpus", "4",
    )  # fmt: skip
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert Nodes(count=2, gpus=0).start(("x",))[:5] == (
        "srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "x",
    )  # fmt: skip


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_NUM_NODES": "1"}])
def test_several_machines_are_those_of_a_job(variables):
    Nodes(count=2).require_job({"SLURM_JOB_NUM_NODES": "2"})
    with pytest.raises(UserError, match="only a Slurm job of 2 nodes"):
        Nodes(count=2).require_job(variables)


def test_a_job_asks_for_its_machines_and_their_gpus():
    job = SlurmJob(name="fold", words=("x",), gpus=4, nodes=2, tasks=4)
    script = job_script(job, SlurmResources(cpus=8), folder=Path("/jobs"), working_folder=Path("/work"))
    lines = set(script.splitlines())
    asked = ("nodes=2", "ntasks-per-node=4", "gres=gpu:4", "cpus-per-task=8")
    assert {f"#SBATCH --{text}" for text in asked} <= lines
    assert "#SBATCH --ntasks=1" not in lines


def test_more_machines_than_there_are_and_too_many_cpus_for_their_processes_are_refused(monkeypatch):
    kinds = [NodeKind(partition="gpu", cpus=16, memory_mb=8000, extras="gpu:4", count=2)]
    kinds += [NodeKind(partition="all", cpus=16, memory_mb=8000, extras="gpu:4", count=2)]
    monkeypatch.setattr(slurm_cluster, "_nodes", lambda: kinds)
    # Sixteen CPUs for four processes.
    assert fit_to_cluster(SlurmResources(), gpus=4, nodes=2, tasks=4).cpus == 4
    with pytest.raises(UserError, match="--nodes 3: this cluster has 2 such nodes"):
        fit_to_cluster(SlurmResources(), gpus=4, nodes=3, tasks=4)
    with pytest.raises(UserError, match="no node of this cluster has 32 CPUs, 4 GPUs"):
        fit_to_cluster(SlurmResources(cpus=8), gpus=4, nodes=2, tasks=4)
