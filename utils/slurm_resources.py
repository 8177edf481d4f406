"""What a Slurm job asks for."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path

from utils.errors import UserError

USUAL_CPUS = 8
NOTICE_S = 120
"""How long before a job's time is over it is told, and stops and is queued again."""
ENDLESS = ("unlimited", "infinite", "-1")
"""Times without an end, in small letters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmResources:
    """What each job asks for; None leaves it to the cluster.

    Attributes:
        cpus: CPUs of a job; None: `USUAL_CPUS`, or as many as most nodes have.
        memory_gb: memory of a job.
        partition, time, account: as sbatch takes them.
        further: other options of sbatch, lines such as "--constraint=a100 --qos=long".
    """

    cpus: int | None = None
    memory_gb: int | None = None
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    further: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cpus", "memory_gb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")
        for text in (self.partition, self.time, self.account, *self.further):
            if text is not None and ("\n" in text or not text.strip()):
                raise UserError(f"{text!r} is no option of sbatch: it has to be one line that says something")
        for text in self.further:
            if not text.startswith("-"):
                raise UserError(f"--sbatch takes options of sbatch such as --sbatch=--constraint=a100, got {text!r}")
        if self.time_s is not None and self.time_s <= NOTICE_S:
            raise UserError(
                f"--time {self.time}: a job stops {NOTICE_S} s before its time is over, and is then queued again; give "
                "it more (hours:minutes:seconds)"
            )

    @property
    def time_s(self) -> float | None:
        """Seconds of `time`; None where it is left to the cluster, or is no time."""
        return None if self.time is None else seconds_of(self.time)

    @property
    def names_qos(self) -> bool:
        """Whether a QOS is asked for, which may lift a partition's limits of time and nodes."""
        words = [word for text in self.further for word in text.split()]
        return bool(os.environ.get("SBATCH_QOS")) or any(re.match("--qo|-q", word) for word in words)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the flags that are not left to the cluster."""
        values: dict[str, object] = {"cpus": self.cpus, "memory_gb": self.memory_gb}
        values |= {"partition": self.partition, "time": self.time}
        values |= {"account": self.account, "sbatch": self.further or None}
        return tuple(f"--{name}" for name, value in values.items() if value is not None)

    def options(self, *, gpus: int) -> dict[str, str]:
        """Long options of sbatch and their values, for a job with so many GPUs on each node."""
        values = {
            "cpus-per-task": str(self.cpus or USUAL_CPUS),
            "gres": f"gpu:{gpus}" if gpus else None,
            "mem": f"{self.memory_gb}G" if self.memory_gb else None,
            "partition": self.partition,
            "time": self.time,
            "account": self.account,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Jobs for Slurm, written in place of running anything."""

    slurm: Path | None = None
    """Folder for Slurm job scripts and submit.sh, which submits them, in place of running anything."""
    cpus: int | None = None
    """CPUs of each Slurm job (default: 8, or as many as most nodes have)."""
    partition: str | None = None
    """Slurm partition."""
    time: str | None = None
    """Longest time of a Slurm job, such as 12:00:00. Before it is over the job is queued again, and then continues."""
    account: str | None = None
    """Slurm account."""
    sbatch: str | None = None
    """Further options of sbatch for each Slurm job, such as --sbatch="--constraint=a100 --qos=long"."""

    def __post_init__(self) -> None:
        if self.slurm is None and self.resources().given:
            raise UserError(f"{', '.join(self.resources().given)}: only Slurm jobs have this; add --slurm FOLDER")

    def resources(self) -> SlurmResources:
        """What each Slurm job asks for."""
        return SlurmResources(
            cpus=self.cpus, partition=self.partition, time=self.time, account=self.account,
            further=() if self.sbatch is None else (self.sbatch,),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmJobOptions(SlurmOptions):
    """Jobs for Slurm, written in place of running anything."""

    memory_gb: int | None = None
    """Memory of each Slurm job, in GB (default: the cluster's)."""

    def resources(self) -> SlurmResources:
        """What each Slurm job asks for."""
        return dataclasses.replace(super().resources(), memory_gb=self.memory_gb)


def seconds_of(text: str) -> float | None:
    """Of a time as Slurm writes it: minutes, m:s, h:m:s, days-h, days-h:m or days-h:m:s; None of anything else.

    Endless are 0 and some words.
    """
    if text.strip().lower() in ENDLESS:
        return math.inf
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        return None
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is None and len(numbers) < 3:
        # Without days and hours.
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or math.inf
