"""Several nodes pretended on loopback: two torchrun that meet, each with its own number, and gloo between them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.main_runs import TINY_NETWORK, command, history, train, weights
from tests.tiny_task import Task, make_task

PROJECT = Path(__file__).resolve().parent.parent
# A step has all four training cases, whose patches are whole scans, so that nothing is left to chance.
FLAGS = (*TINY_NETWORK, "--augment", "none", "--batch_dice", "never", "--max_epochs", "2", "--no_report")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    made = make_task(tmp_path_factory.mktemp("task"), num_cases=6)
    assert made.run("--nfolds", "3") == 0
    return made


def two_nodes(*words: str) -> list[subprocess.CompletedProcess]:
    """What both nodes say, each with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(
            [*launch, "--node-rank", str(rank), str(PROJECT / "main.py"), *words], env=variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=600) for node in nodes]
    return [
        subprocess.CompletedProcess(node.args, node.returncode, *texts) for node, texts in zip(nodes, said)
    ]  # fmt: skip


@pytest.mark.slow
def test_two_nodes_train_and_validate_as_one_process_with_their_batches_together(task, tmp_path):
    assert train(task, tmp_path / "one", *FLAGS, "--batch_size", "4") == 0
    words = command(task, tmp_path / "two", "train", *FLAGS, "--batch_size", "2", "--nodes", "2")
    for node in two_nodes(*words):
        assert node.returncode == 0, node.stderr
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-6, msg=name)
    for alone, shared in zip(history(tmp_path / "one"), history(tmp_path / "two")):
        assert shared["mean_dice"] == pytest.approx(alone["mean_dice"], abs=1e-6)
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-6)
