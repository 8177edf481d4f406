"""What the nodes of a cluster can give, read from the words of `sinfo`, against what a job asks for."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest

from utils import slurm_cluster
from utils.errors import UserError
from utils.slurm_cluster import NodeKind, fit_to_cluster
from utils.slurm_resources import SlurmResources

SINFO = """cpu*|8|16000|(null)|4|1:00:00|1-infinite|UNLIMITED
gpu|64|512000|gpu:a100:4|3|2-00:00:00|1-2|16
"""
MIXED = """mixed*|8|16000|(null)|4|infinite|1-infinite|UNLIMITED
mixed*|128|1000000|gpu:8|2|infinite|1-infinite|UNLIMITED
mixed*|4|64000|(null)|1|infinite|1-infinite|UNLIMITED
small|2|4000|(null)|20|infinite|1-infinite|UNLIMITED
small|4|4000|(null)|3|infinite|1-infinite|UNLIMITED
small|64|4000|(null)|1|infinite|1-infinite|UNLIMITED
small|128|4000|(null)|1|infinite|1-infinite|UNLIMITED
"""


@pytest.fixture(autouse=True)
def _no_qos_of_this_machine(monkeypatch):
    monkeypatch.delenv("SBATCH_QOS", raising=False)


def sinfo(monkeypatch, text: str = SINFO) -> list[str]:
    """A cluster that answers so; the words that it is asked with."""
    asked: list[str] = []
    answer = subprocess.CompletedProcess([], 0, stdout=text, stderr="")
    monkeypatch.setattr(slurm_cluster.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm_cluster.subprocess, "run", lambda words, **named: asked.extend(words) or answer)
    return asked


@pytest.mark.parametrize(
    "asked",
    [
        {"cpus": 64}, {"memory_gb": 200}, {"cpus": 128, "memory_gb": 900, "gpus": 8, "nodes": 2},
        {"cpus": 8, "nodes": 6}, {"memory_gb": 60, "nodes": 3}, {"cpus": 16, "tasks": 8, "nodes": 2},
    ],
)  # fmt: skip
def test_each_kind_of_node_of_a_partition_counts(monkeypatch, asked):
    words = sinfo(monkeypatch, MIXED)
    numbers = {name: asked.pop(name) for name in ("gpus", "nodes", "tasks") if name in asked}
    resources = SlurmResources(partition="mixed", **asked)
    fitted = fit_to_cluster(resources, **{"gpus": 0, **numbers})
    assert fitted == dataclasses.replace(resources, cpus=asked.get("cpus", fitted.cpus)) and fitted.cpus
    assert {"--exact", "--all"} <= set(words)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"cpus": 129},
            "no node of this cluster has 129 CPUs; there are mixed: 128 CPUs, 976 GB, gpu:8; mixed: 4 CPUs",
        ),
        ({"cpus": 8, "nodes": 7}, "--nodes 7: this cluster has 6 such nodes"),
        ({"cpus": 9, "nodes": 3}, "--nodes 3: this cluster has 2 such nodes"),
        ({"memory_gb": 200, "nodes": 3}, "--nodes 3: this cluster has 2 such nodes"),
        # Each is there, and not in one node.
        ({"cpus": 64, "memory_gb": 900, "gpus": 9}, "no node of this cluster has 64 CPUs, 9 GPUs, 900 GB"),
        ({"cpus": 16, "tasks": 9}, "no node of this cluster has 144 CPUs"),
    ],
)
def test_one_kind_of_node_has_to_give_all_and_be_there_often_enough(monkeypatch, asked, message):
    sinfo(monkeypatch, MIXED)
    numbers = {"gpus": 0} | {name: asked.pop(name) for name in ("gpus", "nodes", "tasks") if name in asked}
    with pytest.raises(UserError, match=message):
        fit_to_cluster(SlurmResources(partition="mixed", **asked), **numbers)


def test_what_two_kinds_of_node_have_together_is_refused(monkeypatch):
    sinfo(
        monkeypatch, "a*|64|16000|(null)|4|infinite|1-infinite|UNLIMITED\na*|8|512000|gpu:4|4|infinite|1-infinite|2\n"
    )
    for asked, gpus in (({"cpus": 64, "memory_gb": 200}, 0), ({"cpus": 64}, 1), ({"cpus": 4}, 1)):
        with pytest.raises(UserError, match="no node of this cluster has"):
            fit_to_cluster(SlurmResources(**asked), gpus=gpus)


@pytest.mark.parametrize(
    ("partition", "numbers", "cpus"),
    [
        # Four nodes of 8 CPUs and two of 128 against one of 4.
        (None, {}, 8), ("mixed", {}, 8), ("mixed", {"nodes": 6}, 8), ("mixed", {"nodes": 7}, 4),
        ("mixed", {"nodes": 2, "tasks": 4}, 2), ("mixed", {"gpus": 8, "tasks": 32}, 4),
        # Twenty nodes of 2 CPUs; a job of 24 nodes can have no more, and the default partition has no such number.
        ("small", {}, 2), (None, {"nodes": 24}, 2), ("small,mixed", {}, 8),
    ],
)  # fmt: skip
def test_the_number_of_cpus_is_the_one_of_most_nodes(monkeypatch, partition, numbers, cpus):
    sinfo(monkeypatch, MIXED)
    assert fit_to_cluster(SlurmResources(partition=partition), **{"gpus": 0, **numbers}).cpus == cpus


def test_the_default_partition_s_number_of_cpus_counts_where_none_is_named(monkeypatch):
    sinfo(monkeypatch, MIXED.replace("mixed*", "mixed").replace("small", "small*"))
    assert fit_to_cluster(SlurmResources(), gpus=0).cpus == 2
    assert fit_to_cluster(SlurmResources(partition="small,mixed"), gpus=0).cpus == 8
    # Only the other one has GPUs.
    assert fit_to_cluster(SlurmResources(), gpus=1).cpus == 8


@pytest.mark.parametrize("how", ["--qos=long", "--qos long", "-q long", "-qlong", "SBATCH_QOS"])
def test_a_qos_may_lift_a_partition_s_limits_of_time_and_nodes(monkeypatch, capsys, how):
    sinfo(monkeypatch)
    if how == "SBATCH_QOS":
        monkeypatch.setenv("SBATCH_QOS", "long")
    asked = SlurmResources(time="7-00:00:00", further=("--constraint=a100" if how == "SBATCH_QOS" else f"-C a {how}",))
    for partition in ("gpu", None):
        assert fit_to_cluster(dataclasses.replace(asked, partition=partition), gpus=0).cpus == 8
        said = capsys.readouterr().err
        assert "gpu at most 2-00:00:00; unless the QOS lifts this limit, the job waits for ever" in said
    # The default partition counts, too, whose limit may be lifted.
    assert fit_to_cluster(dataclasses.replace(asked, time="2:00:00"), gpus=0, nodes=4).cpus == 8
    assert "cpu at most 1:00:00; submit with --partition=gpu, unless the QOS" in capsys.readouterr().err
    assert fit_to_cluster(dataclasses.replace(asked, time=None), gpus=1, nodes=3).cpus == 8
    assert "--nodes 3: no job may have so many such nodes here: gpu at most 2; unless" in capsys.readouterr().err
    # No QOS makes nodes.
    with pytest.raises(UserError, match="--nodes 4: this cluster has 3 such nodes"):
        fit_to_cluster(dataclasses.replace(asked, time=None), gpus=1, nodes=4)


def test_words_that_are_like_a_qos_lift_nothing(monkeypatch):
    sinfo(monkeypatch)
    asked = SlurmResources(time="7-00:00:00", further=("--quiet -Q --comment=no--qos",))
    with pytest.raises(UserError, match=r"for a QOS that lifts the limit \(--sbatch=--qos=NAME\)"):
        fit_to_cluster(asked, gpus=0)


@pytest.mark.parametrize("time", ["0", "unlimited", "INFINITE", "-1"])
def test_a_job_without_an_end_needs_a_partition_without_one(monkeypatch, capsys, time):
    sinfo(monkeypatch)
    with pytest.raises(UserError, match=f"--time {time}: no job may take so long here: cpu at most 1:00:00, gpu"):
        fit_to_cluster(SlurmResources(time=time), gpus=0)
    sinfo(monkeypatch, SINFO.replace("2-00:00:00", "infinite"))
    with pytest.raises(UserError, match="so long here: cpu at most 1:00:00"):
        fit_to_cluster(SlurmResources(time=time, partition="cpu"), gpus=0)
    assert fit_to_cluster(SlurmResources(time=time, partition="gpu"), gpus=0).time == time
    assert not capsys.readouterr().err
    fit_to_cluster(SlurmResources(time=time), gpus=0)
    assert "submit with --partition=gpu\n" in capsys.readouterr().err


def test_a_time_that_no_partition_gives_is_refused_and_one_of_another_partition_is_said(monkeypatch, capsys):
    """sbatch takes such jobs, and they wait for ever."""
    sinfo(monkeypatch)
    with pytest.raises(UserError, match="cpu at most 1:00:00, gpu at most 2-00:00:00"):
        fit_to_cluster(SlurmResources(time="49:00:00"), gpus=0)
    with pytest.raises(UserError, match="so long here: cpu at most 1:00:00"):
        fit_to_cluster(SlurmResources(time="2:00:00", partition="cpu"), gpus=0)
    assert fit_to_cluster(SlurmResources(time="1:00:00"), gpus=0).cpus == 8 and not capsys.readouterr().err
    fit_to_cluster(SlurmResources(time="2:00:00"), gpus=0)
    assert "cpu at most 1:00:00; submit with --partition=gpu" in capsys.readouterr().err
    fit_to_cluster(SlurmResources(time="2:00:00", partition="gpu"), gpus=0)
    assert not capsys.readouterr().err


def test_a_partition_s_own_limits_of_nodes_and_cpus_count(monkeypatch):
    sinfo(monkeypatch)
    # Three nodes, of which a job may have two, with sixteen of their CPUs.
    assert fit_to_cluster(SlurmResources(), gpus=4, nodes=2, tasks=4).cpus == 4
    with pytest.raises(UserError, match="--nodes 3: no job may have so many such nodes here: gpu at most 2"):
        fit_to_cluster(SlurmResources(), gpus=4, nodes=3)
    with pytest.raises(UserError, match="no node of this cluster has 17 CPUs"):
        fit_to_cluster(SlurmResources(cpus=17), gpus=1)
    assert fit_to_cluster(SlurmResources(), gpus=0, nodes=4).cpus == 8


def test_an_answer_of_another_kind_says_nothing(monkeypatch):
    sinfo(monkeypatch, "cpu|8\n")
    assert fit_to_cluster(SlurmResources(cpus=4096), gpus=0).cpus == 4096


@pytest.mark.parametrize(
    ("extras", "number"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu", 1),
        ("gpu:4090:2,mps:400", 2),
        ("gpu:a:2,gpu:b:1", 3),
    ],
)
def test_gpus_of_a_node_are_counted(extras, number):
    assert NodeKind(partition="p", cpus=1, memory_mb=1, extras=extras).gpus == number
