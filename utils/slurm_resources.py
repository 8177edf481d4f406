"""What a Slurm job asks for, and whether the cluster has it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

USUAL_CPUS = 8
SINFO_S = 20
NOTICE_S = 120
"""How long before a job's time is over it is told, and stops and is queued again."""
MANY = 2**31
"""Where a cluster has no limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmResources:
    """What each job asks for; None leaves it to the cluster.

    Attributes:
        cpus: CPUs of a job; None: `USUAL_CPUS`, or as many as a node has.
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
    def time_s(self) -> int | None:
        """Seconds of `time`; None where it is left to the cluster, is without a limit, or is no time."""
        return None if self.time is None else _seconds(self.time)

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
    """CPUs of each Slurm job (default: 8, or as many as a node has)."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Nodes of one kind as `sinfo` names them: partition, CPUs, memory in MB, GPUs or other extras, and how many.

    Of the partition: whether jobs that name none go there, a job's longest time ("infinite": any), its most nodes.
    """

    partition: str
    cpus: int
    memory_mb: int
    extras: str
    count: int = 1
    is_default: bool = False
    longest: str = "infinite"
    most_nodes: int | None = None

    def gives(self, resources: SlurmResources, *, gpus: int, tasks: int = 1) -> bool:
        """Whether such a node can hold a job, or its share of one."""
        return (
            self.cpus >= (resources.cpus or 1) * tasks
            and self.memory_mb >= 1024 * (resources.memory_gb or 0)
            and self.gpus >= gpus
        )

    def lasts(self, resources: SlurmResources) -> bool:
        """Whether a job there may take as long as it asks for."""
        longest_s = _seconds(self.longest)
        return longest_s is None or resources.time_s is None or resources.time_s <= longest_s

    @property
    def gpus(self) -> int:
        """GPUs of such a node, of all types: `gpu:a100:4(S:0-1)` is four, `gpu` alone one."""
        entries = [entry.partition("(")[0].split(":") for entry in self.extras.split(",")]
        return sum(int(words[-1]) if words[-1].isdecimal() else 1 for words in entries if words[0] == "gpu")

    def __str__(self) -> str:
        """For people."""
        extras = "" if self.extras in ("", "(null)") else f", {self.extras}"
        return f"{self.partition}: {self.cpus} CPUs, {self.memory_mb // 1024} GB{extras}"


def fit_to_cluster(resources: SlurmResources, *, gpus: int, nodes: int = 1, tasks: int = 1) -> SlurmResources:
    """The same with a number of CPUs that the cluster has, where this machine can ask it; else as they are.

    Args:
        resources: what each job asks for.
        gpus: that it asks for, too, on each node.
        nodes: that it asks for.
        tasks: on each of several nodes, each with its CPUs.

    Raises:
        UserError: the partition does not exist, or could never run such a job; it would wait for ever.
    """
    kinds = _nodes()
    if not kinds:
        return resources
    known = sorted({kind.partition for kind in kinds})
    if resources.partition is not None:
        asked = resources.partition.split(",")
        if missing := [name for name in asked if name not in known]:
            raise UserError(f"there is no partition {', '.join(missing)} on this cluster; it has {', '.join(known)}")
        kinds = [kind for kind in kinds if kind.partition in asked]
    kinds = _that_last(kinds, resources)
    fitting = [kind for kind in kinds if kind.gives(resources, gpus=gpus, tasks=tasks)]
    if not fitting:
        wanted = [
            f"{resources.cpus * tasks} CPUs" if resources.cpus else "",
            f"{gpus} GPUs" if gpus > 1 else "a GPU" if gpus else "",
        ]
        wanted.append(f"{resources.memory_gb} GB" if resources.memory_gb else "")
        raise UserError(
            f"no node of this cluster has {', '.join(filter(None, wanted))}; there are "
            f"{'; '.join(sorted(set(map(str, kinds))))}. Ask for less (--cpus, --memory_gb, --gpus 0) or for another "
            "--partition"
        )
    # Partitions may share nodes: the largest one counts.
    there = max(
        min(sum(kind.count for kind in fitting if kind.partition == each.partition), each.most_nodes or MANY)
        for each in fitting
    )
    if there < nodes:
        raise UserError(f"--nodes {nodes}: this cluster has {there} such node{'s' if there > 1 else ''}; ask for fewer")
    cpus = resources.cpus or min(USUAL_CPUS, max(kind.cpus for kind in fitting) // tasks)
    return dataclasses.replace(resources, cpus=cpus)


def _that_last(kinds: Sequence[NodeKind], resources: SlurmResources) -> list[NodeKind]:
    """Those that give a job its time, which sbatch does not look at: it takes the job, and that waits for ever."""
    lasting = [kind for kind in kinds if kind.lasts(resources)]
    limits = {kind.partition: kind.longest for kind in kinds if kind not in lasting}
    said = ", ".join(f"{name} at most {limits[name]}" for name in sorted(limits))
    if not lasting:
        raise UserError(
            f"--time {resources.time}: no job may take so long here: {said}. Ask for less (a job whose time is over is "
            "queued again and goes on) or for another --partition"
        )
    if resources.partition is None and any(kind.is_default and kind.partition in limits for kind in kinds):
        others = ",".join(sorted({kind.partition for kind in lasting}))
        print(f"warning: --time {resources.time}: {said}; submit with --partition={others}", file=sys.stderr)
    return lasting


def _nodes() -> list[NodeKind]:
    """What `sinfo` knows; nothing where this machine has none or gets no answer."""
    if shutil.which("sinfo") is None:
        return []
    words = ["sinfo", "--noheader", "--format", "%P|%c|%m|%G|%D|%l|%s|%B"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=SINFO_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split("|") for line in answer.stdout.splitlines() if answer.returncode == 0]
    return [_node_kind(row) for row in rows if len(row) == 8]


def _node_kind(row: Sequence[str]) -> NodeKind:
    """Of a line of sinfo: a star marks the default partition; no limits are "1-infinite" nodes, "UNLIMITED" CPUs."""
    name, cpus, memory_mb, extras, count, longest, job_size, most_cpus = row
    return NodeKind(
        partition=name.rstrip("*"), is_default=name.endswith("*"), extras=extras, count=_number(count),
        cpus=min(_number(cpus), _number(most_cpus) or MANY), memory_mb=_number(memory_mb), longest=longest,
        most_nodes=_number(job_size.rpartition("-")[2]) or None,
    )  # fmt: skip


def _number(text: str) -> int:
    """The number of `64` or `64+`, as sinfo writes nodes of several sizes; 0 of words."""
    digits = text.strip().rstrip("+")
    return int(digits) if digits.isdigit() else 0


def _seconds(text: str) -> int | None:
    """Of a time as Slurm writes it: minutes, m:s, h:m:s, days-h, days-h:m or days-h:m:s; None of anything else."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        return None
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is None and len(numbers) < 3:
        # Without days and hours.
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
