"""A training that a cluster stops and begins again ends with the weights of an uninterrupted one, to the last bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from models.nn_unet import NNUnet
from tests.main_runs import TINY, checkpoint, run
from tests.tiny_task import Task, make_folds
from utils.errors import interrupt_run
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


@pytest.fixture(autouse=True)
def unhandled():
    """Signals as a new process has them: a library that an earlier test imported may have put its own handler there."""
    before = {sent: signal.signal(sent, signal.SIG_DFL) for _, _, sent in SIGNALLED.values()}
    yield
    for sent, handler in before.items():
        signal.signal(sent, signal.SIG_DFL if handler is None else handler)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    assert run(task, results, "train", *FLAGS) == 0
    return results


def signal_at(monkeypatch, name: str, number: int, sent: signal.Signals) -> None:
    """Let this process get a signal, as a job's script passes SIGTERM on, in the so many-th call of a method."""
    real, calls = getattr(NNUnet, name), []

    def call(self, *args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            # Else the signal would end all tests of this process without a word.
            assert signal.getsignal(sent) is interrupt_run
            os.kill(os.getpid(), sent)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(NNUnet, name, call)


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
def test_a_training_that_is_stopped_by_its_cluster_ends_as_one_that_is_not(task, whole, tmp_path, monkeypatch, when):
    with monkeypatch.context() as patched:
        signal_at(patched, *SIGNALLED[when])
        assert run(task, tmp_path, "train", *FLAGS) == 128 + SIGNALLED[when][2]
    state = read_training_state(tmp_path / "checkpoints")
    assert not state.finished and state.epochs == 1
    assert run(task, tmp_path, "train", *FLAGS, "--resume_training") == 0
    assert same(learned(tmp_path), learned(whole))
    best = [json.loads((place / "run.json").read_text())["outcome"]["best_dice"] for place in (tmp_path, whole)]
    assert best[0] == best[1]
