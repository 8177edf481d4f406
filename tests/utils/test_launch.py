from __future__ import annotations

import pytest

from utils.errors import UserError
from utils.launch import Launch, check_launch, find_launch, find_ranks, slurm_tasks

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


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (BATCH, None),
        (TORCHRUN, Launch(rank=5, size=8, local_rank=1, local_size=4)),
        # A process that Lightning started of a run is none that does a part.
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, None),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (
            SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            Launch(rank=3, size=4, local_rank=1, local_size=2, by_srun=True),
        ),
    ],
)
def test_who_started_several_processes_is_known(variables, found):
    assert find_launch(variables) == found


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        (TORCHRUN, (5, 1)),
        # Of a launcher that says no more than this.
        ({"RANK": "3", "LOCAL_RANK": "1"}, (3, 1)),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "NODE_RANK": "1"}, (0, 0)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "1"}, (3, 1)),
        ({"LOCAL_RANK": "x"}, (0, 0)),
        (SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, (3, 1)),
    ],
)
def test_ranks_are_those_of_the_launch(variables, ranks):
    assert find_ranks(variables, devices=2) == ranks
    launch = find_launch(variables)
    assert launch is None or (launch.rank, launch.local_rank) == ranks


def test_torchrun_in_as_many_processes_as_the_run_has_is_fine():
    check_launch(TORCHRUN, devices=4, nodes=2)
    check_launch(TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"}, devices=1, nodes=1)


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (8, 1), (1, 8), (4, 1)])
def test_torchrun_in_another_number_of_processes_is_refused_with_the_right_one(devices, nodes):
    with pytest.raises(UserError, match=f"--nnodes {nodes} --nproc-per-node {devices}, or ask"):
        check_launch(TORCHRUN, devices=devices, nodes=nodes)
