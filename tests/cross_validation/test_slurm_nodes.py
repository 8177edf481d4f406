"""A training over two nodes as a job of a real Slurm, both of them pretended on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.main_runs import TINY_NETWORK, command, history, weights
from tests.slurm_node import is_training, slurm_node, stop, wait_for, wait_until_idle
from tests.tiny_task import make_task

PROJECT = Path(__file__).resolve().parents[2]
# A step has all four training cases, whose patches are whole scans, so that nothing is left to chance.
FLAGS = (*TINY_NETWORK, "--augment", "none", "--batch_dice", "never", "--max_epochs", "12")

pytestmark = pytest.mark.slow


def test_a_fold_that_is_stopped_on_two_nodes_is_the_one_of_a_process_with_their_batches_together(tmp_path):
    task = make_task(tmp_path, num_cases=6)
    assert task.run("--nfolds", "3") == 0
    jobs, fold = tmp_path / "scripts", tmp_path / "two/77_3d_fullres/fold_0"
    program = [sys.executable, PROJECT / "scripts/cross_validate.py", "--task", "77", "--data", task.results]
    program += ["--results", tmp_path / "two", "--folds", 0, "--no_report", "--gpus", 0]
    program += ["--slurm", jobs, "--nodes", 2, "--cpus", 1, "--", *FLAGS, "--batch_size", 2]
    with slurm_node(count=2) as environment:
        # The names of these nodes are known to Slurm alone.
        environment |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        for words in (program, [jobs / "submit.sh"]):
            done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        (script,) = jobs.glob("*_fold_*.sh")
        wait_for("an epoch is done", lambda: is_training(fold, 1), environment)
        number = stop(environment, script.stem, "its time is over")
        # With the threads of the nodes' processes: sums in another order grow over the steps.
        words = command(task, tmp_path / "one", "train", *FLAGS, "--batch_size", "4", "--no_report")
        environment_of_one = os.environ | {"OMP_NUM_THREADS": "1"}
        one_process = [sys.executable, PROJECT / "main.py", *words]
        done = subprocess.run(one_process, env=environment_of_one, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        wait_until_idle(environment, 500)
        words = ["scontrol", "show", "job", number]
        shown = subprocess.run(words, env=environment, capture_output=True, text=True).stdout
    said = "".join(path.read_text() for path in (*jobs.glob("*.out"), *fold.glob("*.log")))
    assert "MEMBER: 2/2" in said and "Restarts=1" in shown, said
    one, two = weights(tmp_path / "one"), weights(fold)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-6, msg=name)
    for alone, shared in zip(history(tmp_path / "one"), history(fold), strict=True):
        # Sums in another order may turn a voxel between two classes as good as equal, which is 4e-5 of this Dice.
        assert shared["mean_dice"] == pytest.approx(alone["mean_dice"], abs=2e-4)
    # Predicted by one process, of the first node.
    assert (fold / "done.json").is_file(), said
