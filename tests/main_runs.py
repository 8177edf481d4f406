"""main.py run on a task of tiny scans, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import main
from tests.tiny_task import Task
from utils.errors import run_cli

TINY_NETWORK = ("--depth", "2", "--filters", "4", "8", "8")
TINY = (*TINY_NETWORK, "--batches_per_epoch", "2")


def run(task: Task, results: Path, mode: str, *flags: str, data: Path | None = None) -> int:
    return run_cli(lambda: main.main(command(task, results, mode, *flags, data=data)))


def command(task: Task, results: Path, mode: str, *flags: str, data: Path | None = None) -> list[str]:
    words = ["--exec_mode", mode, "--task", "77", "--data", str(data or task.results), "--results", str(results)]
    return [*words, "--accelerator", "cpu", "--num_workers", "1", *flags]


def outcome(results: Path) -> dict:
    return json.loads((results / "run.json").read_text())["outcome"]


def train(task: Task, results: Path, *flags: str) -> int:
    return run(task, results, "train", *flags)


def checkpoint(results: Path) -> dict:
    return torch.load(results / "checkpoints" / "last.ckpt", weights_only=True)


def history(results: Path) -> list[dict]:
    return checkpoint(results)["callbacks"]["EpochReport"]["history"]


def weights(results: Path) -> dict[str, torch.Tensor]:
    return checkpoint(results)["state_dict"]
