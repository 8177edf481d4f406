"""A training over several machines: how a job of Slurm that has them starts its processes on all of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nodes:
    """Machines of each training, and the GPUs of each that it uses; 0: their CPUs, one process on each."""

    count: int = 1
    gpus: int = 1

    @property
    def processes(self) -> int:
        """On each machine."""
        return max(1, self.gpus)

    def start(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The command that starts a training on all machines of this job; they find each other at the first one."""
        if self.count == 1:
            return words
        # A step does not inherit the CPUs of its job's tasks.
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        srun = ["srun", f"--nodes={self.count}", f"--ntasks-per-node={self.processes}", "--kill-on-bad-exit=1"]
        srun += [f"--cpus-per-task={cpus}"] if cpus else []
        # Of a flag that is given twice the last one counts.
        return (*srun, *words, "--nodes", str(self.count), "--gpus", str(self.gpus))

    def require_job(self, variables: Mapping[str, str]) -> None:
        """Refuse several machines anywhere but in a job of Slurm that has them.

        Raises:
            UserError: this is no such job.
        """
        if self.count == 1:
            return
        there = variables.get("SLURM_JOB_NUM_NODES", variables.get("SLURM_NNODES", ""))
        if there != str(self.count):
            raise UserError(
                f"--nodes {self.count}: only a Slurm job of {self.count} nodes trains on so many, and this is "
                f"{f'one of {there}' if there else 'none'}; add --slurm FOLDER, which writes such jobs"
            )


ONE_NODE = Nodes()
