"""A training that a cluster stops and begins again ends with the weights of an uninterrupted one, to the last bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT
from tests.main_runs import TINY, checkpoint, command, run
from tests.tiny_task import Task, make_folds
from utils.training_state import read_training_state

pytestmark = pytest.mark.slow
# All that has a state of its own: moments, a schedule by step, a mean of weights, drawn augmentations.
FLAGS = (
    *TINY, "--nfolds", "3", "--max_epochs", "2", "--learning_rate", "0.01", "--scheduler", "cosine", "--schedule_by",
    "step", "--ema", "0.9", "--no_report",
)  # fmt: skip
LEARNED = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")
SIGNALLED = {
    "in a step": ("training_step", 4, signal.SIGTERM),
    "in a validation": ("validation_step", 5, signal.SIGUSR1),
}
"""Of the module: what is called for the so many-th time when which signal comes, in the second of two epochs."""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return make_folds(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    assert run(task, results, "train", *FLAGS) == 0
    return results


SIGNALLING = """
import os, sys
from models.nn_unet import NNUnet
from utils.errors import run_cli
import main

name, number, sent, *words = sys.argv[1:]
real, calls = getattr(NNUnet, name), []

def call(self, *args, **kwargs):
    calls.append(name)
    if len(calls) == int(number):
        os.kill(os.getpid(), int(sent))
    return real(self, *args, **kwargs)

setattr(NNUnet, name, call)
sys.exit(run_cli(lambda: main.main(words)))
"""
"""A program that gets a signal, as a job's script passes SIGTERM on, in the so many-th call of a module's method."""


def learned(results: Path) -> dict:
    """Weights, their mean, moments, rates and the number of steps."""
    return {name: checkpoint(results)[name] for name in LEARNED}


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("when", SIGNALLED)
def test_a_training_that_is_stopped_by_its_cluster_ends_as_one_that_is_not(task, whole, tmp_path, when):
    # In a process of its own: a signal that is not handled must not end all tests of this one.
    name, number, sent = SIGNALLED[when]
    words = [name, str(number), str(int(sent)), *command(task, tmp_path, "train", *FLAGS)]
    ended = subprocess.run([sys.executable, "-c", SIGNALLING, *words], cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 128 + sent, ended.stderr
    state = read_training_state(tmp_path / "checkpoints")
    assert not state.finished and state.epochs == 1
    assert run(task, tmp_path, "train", *FLAGS, "--resume_training") == 0
    assert same(learned(tmp_path), learned(whole))
    best = [json.loads((place / "run.json").read_text())["outcome"]["best_dice"] for place in (tmp_path, whole)]
    assert best[0] == best[1]
