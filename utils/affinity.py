"""Pinning each GPU's process to CPU cores near that GPU, so that its threads do not move between sockets.

A socket here is what shares memory (a NUMA node); a physical core has one or more hardware
threads, its siblings.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config import Affinity

SYSTEM = Path("/sys")
ALLOWED_CPUS = "NNUNET_ALLOWED_CPUS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CpuTopology:
    """Logical CPUs by socket and physical core: `sockets[s][c]` are the siblings of core c, in rising order.

    `gpu_sockets[r]` is the socket next to the GPU of local process r; empty where that is unknown, and then
    the sockets are shared out evenly.
    """

    sockets: tuple[tuple[tuple[int, ...], ...], ...]
    gpu_sockets: tuple[int, ...] = ()


def choose_cores(mode: Affinity, topology: CpuTopology, local_rank: int, local_world_size: int) -> set[int]:
    """Logical CPUs for one process of this machine.

    `socket`: all of its GPU's socket. `single`: the first one of it. `single_unique`: one thread of a core
    that is no other process's. `socket_unique_interleaved` and `socket_unique_continuous`: an equal share of
    the socket's cores with their siblings, shared out in turn or in blocks. `disabled`: all there are. Shares
    are disjoint as long as a socket has as many cores as processes.
    """
    assert 0 <= local_rank < local_world_size
    everything = {cpu for socket in topology.sockets for core in socket for cpu in core}
    if mode == "disabled":
        return everything
    homes = [_home(topology, rank, local_world_size) for rank in range(local_world_size)]
    socket = topology.sockets[homes[local_rank]]
    place, sharers = homes[:local_rank].count(homes[local_rank]), homes.count(homes[local_rank])
    if mode == "socket":
        return {cpu for core in socket for cpu in core}
    if mode == "single":
        return {socket[0][0]}
    if mode == "single_unique":
        return {socket[place % len(socket)][0]}
    if mode == "socket_unique_interleaved":
        share = socket[place::sharers]
    else:
        share = socket[place * len(socket) // sharers : (place + 1) * len(socket) // sharers]
    return {cpu for core in share or (socket[place % len(socket)],) for cpu in core}


def pin_cpu(affinity: Affinity, local_rank: int, local_world_size: int) -> None:
    """Pin this process, and the threads that it starts later, to cores near its GPU.

    Where the launcher has bound each process to CPUs of its own (srun --cpu-bind, mpirun --bind-to), these are not
    divided again: the process keeps them all, or one of them with `single` and `single_unique`.
    Call it before data pipelines start their threads. Where the operating system cannot pin, nothing happens.
    """
    if affinity == "disabled" or not hasattr(os, "sched_setaffinity"):
        return
    # Lightning starts the other processes from the first one, which is pinned by then: they inherit its cores,
    # and with this variable the ones that it had before.
    stored = _cpu_list(os.environ.get(ALLOWED_CPUS, ""))
    inherited = stored or os.sched_getaffinity(0)
    gpus = gpu_addresses(local_world_size)
    if not stored and local_world_size > 1 and has_cpus_of_its_own(inherited, os.environ, system=SYSTEM):
        if not affinity.startswith("single"):
            return
        gpus, local_rank, local_world_size = gpus[local_rank : local_rank + 1], 0, 1
    else:
        os.environ[ALLOWED_CPUS] = ",".join(map(str, sorted(inherited)))
    topology = read_topology(inherited, gpus, system=SYSTEM)
    os.sched_setaffinity(0, choose_cores(affinity, topology, local_rank, local_world_size))


def has_cpus_of_its_own(mine: set[int], variables: Mapping[str, str], *, system: Path = SYSTEM) -> bool:
    """Whether the launcher has bound this process to CPUs that no other process of the run may use.

    Nobody says so, and a process sees only its own CPUs. A task of srun is bound where it may use fewer than its job
    has on this machine, or than the machine has; a process of another launcher where it may use fewer than the
    launcher's agent, which hands down its own CPUs to processes that it does not bind. In doubt it is bound: CPUs that
    are divided twice leave a process an eighth of what it was given.

    Args:
        mine: CPUs of this process.
        variables: of its environment.
        system: where /sys is.
    """
    if not _is_started_from_outside(variables):
        return False
    if not _is_slurm_task(variables):
        agent = _cpus_of(os.getppid())
        return agent is not None and mine < agent
    of_job = variables.get("SLURM_CPUS_ON_NODE", "")
    if of_job.isdigit():
        return len(mine) < int(of_job)
    online = system / "devices/system/cpu/online"
    return not online.exists() or mine != _cpu_list(online.read_text())


def _is_slurm_task(variables: Mapping[str, str]) -> bool:
    # Processes that torchrun starts in a task of srun have both; theirs are torchrun's.
    return "LOCAL_RANK" not in variables and "SLURM_PROCID" in variables and variables.get("SLURM_NTASKS", "1") != "1"


def _cpus_of(pid: int) -> set[int] | None:
    try:
        return os.sched_getaffinity(pid)
    except OSError:
        return None


def _is_started_from_outside(variables: Mapping[str, str]) -> bool:
    """Whether somebody else than Lightning starts the processes: torchrun, MPI's launchers, or srun."""
    return ("RANK" in variables and "LOCAL_RANK" in variables) or _is_slurm_task(variables)


def read_topology(allowed: set[int], gpus: list[str], *, system: Path = SYSTEM) -> CpuTopology:
    """Read sockets and siblings of the allowed logical CPUs from Linux's /sys.

    Args:
        allowed: logical CPUs that this process may use.
        gpus: PCI addresses (0000:3b:00.0) of the GPUs, by local rank.
        system: where /sys is; a folder like it in tests.
    """
    lists = system.glob("devices/system/node/node*/cpulist")
    nodes = {int(p.parent.name.removeprefix("node")): _cpu_list(p.read_text()) & allowed for p in lists}
    numbers = sorted(node for node, cpus in nodes.items() if cpus)
    groups = [nodes[number] for number in numbers] or [allowed]
    homes = [_number(system / "bus/pci/devices" / gpu / "numa_node") for gpu in gpus]
    known = [numbers.index(home) for home in homes if home in numbers]
    return CpuTopology(
        sockets=tuple(_cores(cpus, system) for cpus in groups),
        # Half an answer is none.
        gpu_sockets=tuple(known) if len(known) == len(homes) else (),
    )


def gpu_addresses(count: int) -> list[str]:
    """PCI addresses of the first `count` GPUs, or an empty list where torch cannot tell."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.device_count() < count:
        return []
    # torch's annotations do not know the addresses.
    cards: list[Any] = [torch.cuda.get_device_properties(index) for index in range(count)]
    if not all(hasattr(card, "pci_bus_id") for card in cards):
        return []
    return [f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0" for card in cards]


def _home(topology: CpuTopology, rank: int, local_world_size: int) -> int:
    if rank < len(topology.gpu_sockets):
        return topology.gpu_sockets[rank]
    return rank * len(topology.sockets) // local_world_size


def _cores(cpus: set[int], system: Path) -> tuple[tuple[int, ...], ...]:
    cores = set()
    for cpu in cpus:
        siblings = system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        # A container may hide a sibling from us.
        cores.add(tuple(sorted(_cpu_list(siblings.read_text()) & cpus)) if siblings.exists() else (cpu,))
    return tuple(sorted(cores))


def _cpu_list(text: str) -> set[int]:
    """`0-2,8` as {0, 1, 2, 8}."""
    ranges = [part.split("-") for part in text.strip().split(",") if part]
    return {cpu for first, *last in ranges for cpu in range(int(first), int((last or [first])[0]) + 1)}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
