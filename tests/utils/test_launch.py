from __future__ import annotations

import pytest

from utils.errors import UserError
from utils.launch import check_launch, find_ranks, slurm_tasks

BATCH = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
SRUN = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("variables", "tasks"),
    [
        ({}, 1),
        (BATCH, 1),
        (BATCH | {"SLURM_STEP_ID": str(0xFFFFFFFB)}, 1),
        (BATCH | {"SLURM_NTASKS_PER_NODE": "4"}, 1),
        (SRUN, 4),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, 1),
        (SRUN | {"SLURM_PTY_PORT": "5"}, 1),
        (SRUN | {"LOCAL_RANK": "1"}, 1),
        (BATCH | {"SLURM_PROCID": "3"}, 4),
        (BATCH | {"SLURM_NTASKS": "many", "SLURM_STEP_ID": "0"}, 1),
    ],
)
def test_only_srun_starts_several_processes(variables, tasks):
    assert slurm_tasks(variables) == tasks


def test_a_batch_script_is_the_first_process_whatever_its_ntasks():
    assert find_ranks(BATCH, devices=2) == (0, 0)
    assert find_ranks(SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, devices=2) == (3, 1)


def test_srun_in_as_many_processes_as_the_run_has_is_fine():
    check_launch(SRUN, devices=2, nodes=2)
    check_launch(BATCH, devices=1, nodes=1)


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (4, 1), (2, 1), (1, 2)])
def test_srun_in_another_number_of_processes_is_refused_with_the_right_one(devices, nodes):
    with pytest.raises(UserError, match=f"--nodes={nodes} --ntasks-per-node={devices}, or ask"):
        check_launch(SRUN, devices=devices, nodes=nodes)
