from __future__ import annotations

import os

import pytest

from utils import affinity
from utils.affinity import CpuTopology, choose_cores, has_cpus_of_its_own, read_topology

# Two sockets of four cores with two threads each: core c has the logical CPUs c and c + 8.
TWO_SOCKETS = CpuTopology(
    sockets=(((0, 8), (1, 9), (2, 10), (3, 11)), ((4, 12), (5, 13), (6, 14), (7, 15))), gpu_sockets=(0, 0, 1, 1)
)


@pytest.mark.parametrize(
    ("mode", "shares"),
    [
        ("socket", [{0, 1, 2, 3, 8, 9, 10, 11}] * 2 + [{4, 5, 6, 7, 12, 13, 14, 15}] * 2),
        ("single", [{0}, {0}, {4}, {4}]),
        ("single_unique", [{0}, {1}, {4}, {5}]),
        ("socket_unique_interleaved", [{0, 8, 2, 10}, {1, 9, 3, 11}, {4, 12, 6, 14}, {5, 13, 7, 15}]),
        ("socket_unique_continuous", [{0, 8, 1, 9}, {2, 10, 3, 11}, {4, 12, 5, 13}, {6, 14, 7, 15}]),
        ("disabled", [set(range(16))] * 4),
    ],
)
def test_each_mode_pins_as_it_is_named(mode, shares):
    assert [choose_cores(mode, TWO_SOCKETS, rank, 4) for rank in range(4)] == shares


def test_gpus_on_one_socket_share_that_socket():
    topology = CpuTopology(sockets=TWO_SOCKETS.sockets, gpu_sockets=(1, 1))
    shares = [choose_cores("socket_unique_continuous", topology, rank, 2) for rank in range(2)]
    assert shares == [{4, 12, 5, 13}, {6, 14, 7, 15}]


def test_unknown_neighbours_share_the_sockets_evenly():
    topology = CpuTopology(sockets=TWO_SOCKETS.sockets)
    assert [min(choose_cores("socket", topology, rank, 4)) for rank in range(4)] == [0, 0, 4, 4]
    assert choose_cores("socket_unique_interleaved", topology, 0, 1) == {0, 1, 2, 3, 8, 9, 10, 11}


@pytest.mark.parametrize("mode", ["single_unique", "socket_unique_interleaved", "socket_unique_continuous"])
def test_with_more_processes_than_cores_nobody_is_left_without(mode):
    topology = CpuTopology(sockets=(((0,), (1,)),))
    shares = [choose_cores(mode, topology, rank, 5) for rank in range(5)]
    assert all(shares) and set().union(*shares) == {0, 1}


def fake_sys(folder):
    files = {
        "devices/system/node/node0/cpulist": "0-1,4-5\n",
        "devices/system/node/node1/cpulist": "2-3,6-7\n",
        "devices/system/node/node2/cpulist": "\n",
        "bus/pci/devices/0000:3b:00.0/numa_node": "1\n",
        "bus/pci/devices/0000:af:00.0/numa_node": "-1\n",
    } | {f"devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n" for i in range(8)}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_topology_is_read_from_sys(tmp_path):
    topology = read_topology(set(range(8)), ["0000:3b:00.0"], system=fake_sys(tmp_path))
    assert topology == CpuTopology(sockets=(((0, 4), (1, 5)), ((2, 6), (3, 7))), gpu_sockets=(1,))


def test_cpus_that_a_container_hides_are_left_out(tmp_path):
    topology = read_topology({2, 3, 6}, ["0000:3b:00.0"], system=fake_sys(tmp_path))
    assert topology == CpuTopology(sockets=(((2, 6), (3,)),), gpu_sockets=(0,))


@pytest.mark.parametrize("gpu", ["0000:af:00.0", "0000:ff:00.0"])
def test_a_gpu_of_unknown_socket_is_no_error(tmp_path, gpu):
    assert read_topology(set(range(8)), [gpu], system=fake_sys(tmp_path)).gpu_sockets == ()


def test_a_machine_without_sys_is_one_socket(tmp_path):
    assert read_topology({0, 1}, [], system=tmp_path) == CpuTopology(sockets=(((0,), (1,)),))


def test_a_process_started_by_a_pinned_one_sees_all_cores(tmp_path, monkeypatch):
    """Lightning's first process is pinned when it starts the second, which inherits its cores."""
    allowed = {0, 1, 2, 3, 4, 5, 6, 7}
    monkeypatch.setattr(affinity, "SYSTEM", fake_sys(tmp_path))
    monkeypatch.setattr(affinity, "gpu_addresses", lambda count: ["0000:3b:00.0"] * count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: (allowed.clear(), allowed.update(cpus)))
    monkeypatch.setenv(affinity.ALLOWED_CPUS, "")
    shares = []
    for rank in range(2):
        affinity.pin_cpu("socket_unique_interleaved", rank, 2)
        shares.append(set(allowed))
    assert shares == [{2, 6}, {3, 7}]


SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "8"}
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "3"}


@pytest.fixture
def process(monkeypatch, tmp_path):
    """A process of a machine with CPUs 0..127, of which it may use some; returns what it is pinned to, or None."""

    def pin(mode, rank, *, mine, variables, agent=frozenset(range(128)), sharers=8):
        pinned = []
        (tmp_path / "devices/system/cpu").mkdir(parents=True, exist_ok=True)
        (tmp_path / "devices/system/cpu/online").write_text("0-127\n")
        monkeypatch.setattr(affinity, "SYSTEM", tmp_path)
        monkeypatch.setattr(affinity, "gpu_addresses", lambda count: [])
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(agent if pid else mine))
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: pinned.append(cpus))
        monkeypatch.delenv(affinity.ALLOWED_CPUS, raising=False)
        for name in ("RANK", "LOCAL_RANK", *SLURM, "SLURM_CPUS_ON_NODE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        affinity.pin_cpu(mode, rank, sharers)
        # It must not be handed down as what all processes may use.
        assert pinned == [] or len(pinned) == 1
        return pinned[0] if pinned else None

    return pin


def own_of(rank):
    return set(range(16 * rank, 16 * rank + 16))


@pytest.mark.parametrize("mode", ["socket", "socket_unique_interleaved", "socket_unique_continuous"])
@pytest.mark.parametrize("variables", [SLURM, SLURM | {"SLURM_CPUS_ON_NODE": "128"}, TORCHRUN], ids=str)
def test_cpus_that_the_launcher_has_bound_are_not_divided_again(process, mode, variables):
    assert [process(mode, rank, mine=own_of(rank), variables=variables) for rank in range(8)] == [None] * 8


@pytest.mark.parametrize("mode", ["single", "single_unique"])
def test_a_bound_process_that_wants_one_core_takes_one_of_its_own(process, mode):
    assert [process(mode, rank, mine=own_of(rank), variables=SLURM) for rank in (0, 5)] == [{0}, {80}]


@pytest.mark.parametrize(
    ("variables", "mine", "agent"),
    [
        (SLURM, range(128), range(128)),
        # The job has 16 CPUs of this machine, and its tasks are not bound.
        (SLURM | {"SLURM_CPUS_ON_NODE": "16"}, range(16), range(128)),
        # A container has 16 CPUs, and so has torchrun in it.
        (TORCHRUN, range(16), range(16)),
        (TORCHRUN | SLURM, range(16), range(16)),
        # Lightning starts the processes itself.
        ({}, range(16), range(128)),
    ],
    ids=str,
)
def test_cpus_that_processes_share_are_divided(process, variables, mine, agent):
    call = {"mine": set(mine), "variables": variables, "agent": set(agent)}
    shares = [process("socket_unique_continuous", rank, **call) for rank in range(8)]
    assert set().union(*shares) == set(mine) and sum(map(len, shares)) == len(mine)


def test_one_process_alone_is_pinned_as_ever(process):
    assert process("socket", 0, mine={3, 4}, variables=SLURM, sharers=1) == {3, 4}


def test_an_agent_that_cannot_be_asked_binds_nothing(monkeypatch):
    def refuse(pid):
        raise ProcessLookupError

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    assert not has_cpus_of_its_own({0}, TORCHRUN)
