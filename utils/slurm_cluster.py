"""Whether a Slurm cluster has what a job asks for, as far as `sinfo` knows."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from utils.errors import UserError
from utils.slurm_resources import USUAL_CPUS, SlurmResources, seconds_of

SINFO_S = 20
MANY = 2**31
"""Where a cluster has no limit."""


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
        longest_s = seconds_of(self.longest)
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
    fitting = _that_are_enough(fitting, resources, nodes)
    cpus = resources.cpus or _usual_cpus(fitting, nodes=nodes, tasks=tasks, of_default=resources.partition is None)
    return dataclasses.replace(resources, cpus=cpus)


def _that_last(kinds: Sequence[NodeKind], resources: SlurmResources) -> list[NodeKind]:
    """Those that give a job its time, which sbatch does not look at: it takes the job, and that waits for ever."""
    lasting = [kind for kind in kinds if kind.lasts(resources)]
    limits = {kind.partition: kind.longest for kind in kinds if kind not in lasting}
    said = ", ".join(f"{name} at most {limits[name]}" for name in sorted(limits))
    if not lasting:
        problem = f"--time {resources.time}: no job may take so long here: {said}"
        _refuse_or_warn(problem, resources, "less (a job whose time is over is queued again and goes on)")
    elif resources.partition is None and any(kind.is_default and kind.partition in limits for kind in kinds):
        others = ",".join(sorted({kind.partition for kind in lasting}))
        unless = ", unless the QOS lifts this limit" if resources.names_qos else ""
        print(f"warning: --time {resources.time}: {said}; submit with --partition={others}{unless}", file=sys.stderr)
    return list(kinds) if resources.names_qos else lasting


def _that_are_enough(kinds: Sequence[NodeKind], resources: SlurmResources, nodes: int) -> list[NodeKind]:
    """Those of partitions that give a job so many nodes: it is in one partition, and partitions may share nodes."""
    there: Counter[str] = Counter()
    for kind in kinds:
        there[kind.partition] += kind.count
    if (most := max(there.values())) < nodes:
        raise UserError(f"--nodes {nodes}: this cluster has {most} such node{'s' if most > 1 else ''}; ask for fewer")
    enough = [kind for kind in kinds if there[kind.partition] >= nodes]
    allowed = [kind for kind in enough if (kind.most_nodes or MANY) >= nodes]
    if not allowed:
        said = ", ".join(sorted({f"{kind.partition} at most {kind.most_nodes}" for kind in enough}))
        _refuse_or_warn(f"--nodes {nodes}: no job may have so many such nodes here: {said}", resources, "fewer")
    return enough if resources.names_qos else allowed


def _refuse_or_warn(problem: str, resources: SlurmResources, less: str) -> None:
    """Of what a partition's limits forbid; a QOS may lift them, and `sinfo` does not know whether it does."""
    if not resources.names_qos:
        raise UserError(
            f"{problem}. Ask for {less}, for another --partition, or for a QOS that lifts the limit "
            "(--sbatch=--qos=NAME)"
        )
    print(f"warning: {problem}; unless the QOS lifts this limit, the job waits for ever", file=sys.stderr)


def _usual_cpus(kinds: Sequence[NodeKind], *, nodes: int, tasks: int, of_default: bool) -> int:
    """`USUAL_CPUS`, or fewer where most of the partition's nodes that can hold the job have fewer for each task.

    So a few small nodes lower nothing and a few large ones raise nothing; as many nodes as the job has give the number.
    Of several partitions the default one counts if a job may go there unasked, else the one that gives the most.
    """
    kinds = [kind for kind in kinds if of_default and kind.is_default] or kinds
    usual = []
    for partition in {kind.partition for kind in kinds}:
        there: Counter[int] = Counter()
        for kind in (each for each in kinds if each.partition == partition):
            there[min(USUAL_CPUS, kind.cpus // tasks)] += kind.count
        enough = [cpus for cpus in there if sum(there[each] for each in there if each >= cpus) >= nodes]
        usual.append(max(enough, key=lambda cpus: (there[cpus], cpus)))
    return max(usual)


def _nodes() -> list[NodeKind]:
    """What `sinfo` knows; nothing where this machine has none or gets no answer."""
    if shutil.which("sinfo") is None:
        return []
    # Without --exact, unlike nodes of a partition are one line of the least that each of them has.
    words = ["sinfo", "--noheader", "--exact", "--all", "--format", "%P|%c|%m|%G|%D|%l|%s|%B"]
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
    """A number of sinfo; 0 of words."""
    return int(text) if text.strip().isdecimal() else 0
