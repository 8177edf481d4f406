"""Which process of a run this is: told by the variables of what launched it (torchrun, Slurm's srun, Lightning)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from utils.errors import UserError

SPECIAL_STEPS = 0xFFFFFFF0
"""From here on, Slurm's numbers of steps mean its batch script or an interactive shell, which `srun` did not start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Which of several processes that somebody else started this one is, counted from 0, and how many there are.

    `local_rank` and `local_size` are among those of this machine; `by_srun`: Slurm did, else torchrun.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    by_srun: bool = False


def find_launch(variables: Mapping[str, str]) -> Launch | None:
    """Which process torchrun or srun made this one, from the variables that they set; None for one that is alone."""
    found = _started(variables)
    return None if found is None or found.size <= 1 or found.local_size < 1 else found


def find_ranks(variables: Mapping[str, str], devices: int) -> tuple[int, int]:
    """(global rank, local rank) of this process from the variables of its launcher; (0, 0) without one.

    torchrun and Slurm set both; Lightning's launcher sets LOCAL_RANK, and NODE_RANK is set by whoever starts the
    program on each node.
    """
    if (found := _started(variables)) is not None:
        return found.rank, found.local_rank
    local_rank = _number(variables, "LOCAL_RANK", 0)
    return _number(variables, "NODE_RANK", 0) * devices + local_rank, local_rank


def _started(variables: Mapping[str, str]) -> Launch | None:
    """What torchrun or srun say of this process; a `local_size` of 0: nothing. None where neither started it."""
    if "RANK" in variables and "LOCAL_RANK" in variables:
        return Launch(
            rank=_number(variables, "RANK", 0), size=_number(variables, "WORLD_SIZE", 1),
            local_rank=_number(variables, "LOCAL_RANK", 0), local_size=_number(variables, "LOCAL_WORLD_SIZE", 0),
        )  # fmt: skip
    if (size := slurm_tasks(variables)) <= 1:
        return None
    # Such as 4 or 4(x2),3.
    tasks = variables.get("SLURM_STEP_TASKS_PER_NODE", "").replace(",", "(").split("(")[0]
    return Launch(
        rank=_number(variables, "SLURM_PROCID", 0), size=size, local_rank=_number(variables, "SLURM_LOCALID", 0),
        local_size=int(tasks) if tasks.isdecimal() else size, by_srun=True,
    )  # fmt: skip


def slurm_tasks(variables: Mapping[str, str]) -> int:
    """How many processes `srun` started of this program; 1 where a batch script or a shell started it by itself.

    A batch script has the variables of the whole job, whatever its --ntasks, and yet it is one process.
    """
    if "LOCAL_RANK" in variables:
        return 1
    step = _number(variables, "SLURM_STEP_ID", _number(variables, "SLURM_STEPID", SPECIAL_STEPS))
    by_srun = step < SPECIAL_STEPS and "SLURM_PTY_PORT" not in variables
    if not by_srun and _number(variables, "SLURM_PROCID", 0) == 0:
        return 1
    return _number(variables, "SLURM_STEP_NUM_TASKS", _number(variables, "SLURM_NTASKS", 1))


def check_launch(variables: Mapping[str, str], *, devices: int, nodes: int) -> None:
    """Refuse a run that `srun` or torchrun started in another number of processes than it works with.

    Raises:
        UserError: each of them would do the whole work and write into the same folders, or wait for the others forever.
    """
    launch = find_launch(variables)
    if launch is not None and not launch.by_srun and (launch.size, launch.local_size) != (devices * nodes, devices):
        raise UserError(
            f"torchrun started {launch.size} processes, {launch.local_size} of them on this machine, and this run is "
            f"for {devices} on each of {nodes}; use torchrun --nnodes {nodes} --nproc-per-node {devices}, or ask for "
            "as many with --gpus (or --processes) and --nodes"
        )
    tasks = slurm_tasks(variables)
    if tasks == 1:
        return
    spread = _number(variables, "SLURM_STEP_NUM_NODES", _number(variables, "SLURM_NNODES", nodes))
    if (tasks, spread) != (devices * nodes, nodes):
        raise UserError(
            f"srun started {tasks} processes on {spread} node(s), and this run is for {devices} on each of {nodes}; "
            f"use srun --nodes={nodes} --ntasks-per-node={devices}, or ask for as many with --gpus (or --processes) "
            "and --nodes"
        )


def _number(variables: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(variables[name])
    except (KeyError, ValueError):
        return default
