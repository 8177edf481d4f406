"""main.py --exec_mode train where training cannot go as usual: no target to validate on, numbers that explode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import main
from tests.main_runs import TINY, checkpoint, history, train
from tests.tiny_task import Task, make_task, write_scan
from utils.errors import run_cli

pytestmark = pytest.mark.slow
SHORT = (*TINY, "--max_epochs", "4", "--min_epochs", "1", "--patience", "1")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    """Scans 0 and 3, one fold, show no target."""
    made = make_task(tmp_path_factory.mktemp("task"), num_cases=6)
    for index in (0, 3):
        write_scan(made.folder / f"labelsTr/scan{index}.nii.gz", np.zeros((10, 14, 12), np.uint8))
    assert made.run("--nfolds", "3") == 0
    return made


@pytest.fixture
def splits(tmp_path) -> tuple[str, str]:
    path = tmp_path / "folds.json"
    path.write_text('[{"train": ["scan1", "scan2", "scan4", "scan5"], "val": ["scan0", "scan3"]}]')
    return "--splits", str(path)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_gradients_are_clipped_in_mixed_precision_too(task, tmp_path, optimizer):
    flags = ("--optimizer", optimizer, "--gradient_clip_val", "1", "--precision", "bf16", "--nfolds", "3")
    assert train(task, tmp_path / "r", *TINY, *flags, "--max_epochs", "1", "--min_epochs", "1") == 0
    assert history(tmp_path / "r")


@pytest.mark.parametrize("scheduler", ["none", "plateau"])
def test_a_fold_without_a_target_trains_to_the_end(task, tmp_path, splits, scheduler):
    flags = ("--scheduler", scheduler, "--lr_patience", "1", "--learning_rate", "0.001")
    assert train(task, tmp_path / "r", *SHORT, *splits, *flags) == 0
    assert [record["learning_rate"] for record in history(tmp_path / "r")] == [0.001] * 4
    folder = tmp_path / "r/checkpoints"
    assert [path.name for path in folder.glob("*.ckpt")] == ["last.ckpt"]
    words = ["--task", "77", "--data", str(task.results), "--results", str(tmp_path / "e"), "--accelerator", "cpu"]
    scored = ["--exec_mode", "evaluate", "--ckpt_path", str(folder), *splits, "--num_workers", "1"]
    assert run_cli(lambda: main.main([*words, *scored])) == 0


def test_a_fold_with_targets_still_stops_early(task, tmp_path):
    assert train(task, tmp_path, *SHORT, "--fold", "1", "--learning_rate", "1e-12") == 0
    assert len(history(tmp_path)) == 2


def test_a_training_that_explodes_ends_with_a_message_and_leaves_no_such_checkpoint(task, tmp_path, capsys):
    assert train(task, tmp_path, *TINY, "--max_epochs", "2", "--fold", "1", "--learning_rate", "1e38") == 2
    assert "infinite or not a number" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt")) or all(
        weight.isfinite().all() for weight in checkpoint(tmp_path)["state_dict"].values() if torch.is_tensor(weight)
    )
