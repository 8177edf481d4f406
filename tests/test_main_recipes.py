"""main.py --recipe, epochs of a set length, and folds from a file or by patient, on tiny scans."""

from __future__ import annotations

import json

import pytest
import torch

from models.callbacks import EpochReport
from tests.main_runs import TINY, checkpoint, history, train
from tests.tiny_task import Task, make_task


def stop_in_epoch_2(report, trainer, module) -> None:
    """Stands in for EpochReport.on_train_epoch_start."""
    if trainer.current_epoch == 2:
        raise KeyError("stop")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    made = make_task(tmp_path_factory.mktemp("task"), num_cases=6)
    assert made.run("--nfolds", "3") == 0
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "rates"), [("paper", [3e-4] * 3), ("nnunet", [1e-2 * (1 - epoch / 3) ** 0.9 for epoch in range(3)])]
)
def test_a_recipe_trains_and_a_killed_training_ends_with_the_same_weights(task, tmp_path, monkeypatch, recipe, rates):
    flags = ("--recipe", recipe, *TINY, "--max_epochs", "3")
    assert train(task, tmp_path / "whole", *flags) == 0
    assert [record["learning_rate"] for record in history(tmp_path / "whole")] == pytest.approx(rates)
    with monkeypatch.context() as patch:
        patch.setattr(EpochReport, "on_train_epoch_start", stop_in_epoch_2)
        with pytest.raises(KeyError):
            train(task, tmp_path / "cut", *flags)
    assert len(history(tmp_path / "cut")) == 2
    assert train(task, tmp_path / "cut", *flags, "--resume_training") == 0
    assert history(tmp_path / "cut")[2]["train_loss"] == history(tmp_path / "whole")[2]["train_loss"]
    whole, cut = (checkpoint(tmp_path / name)["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.slow
def test_the_recipe_and_its_values_are_in_the_parameter_line(task, tmp_path):
    assert train(task, tmp_path, "--recipe", "nnunet", *TINY, "--max_epochs", "1", "--momentum", "0.5") == 0
    lines = [json.loads(line.removeprefix("DLLL ")) for line in (tmp_path / "logs.json").read_text().splitlines()]
    optim = next(line["data"]["optim"] for line in lines if line.get("step") == "PARAMETER")
    assert (optim["recipe"], optim["optimizer"], optim["momentum"]) == ("nnunet", "sgd", 0.5)


@pytest.mark.slow
def test_training_ends_when_the_learning_rate_has_fallen(task, tmp_path):
    # A loss that stands still: one epoch is tolerated, the next one drops the rate below its least.
    flags = ("--recipe", "paper", *TINY, "--lr_patience", "1", "--learning_rate", "4e-6", "--min_epochs", "1")
    assert train(task, tmp_path, *flags) == 0
    assert len(history(tmp_path)) == 3
    assert train(task, tmp_path, *flags, "--resume_training") == 0
    assert len(history(tmp_path)) == 3


@pytest.mark.slow
def test_stored_folds_are_used_without_saying_how_many(task, tmp_path, capsys):
    assert train(task, tmp_path / "r", *TINY, "--max_epochs", "1", "--fold", "2") == 0
    assert train(task, tmp_path / "s", *TINY, "--fold", "3") == 2
    assert "--fold must lie in 0..2, got 3" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_of_a_file_and_of_patients(task, tmp_path):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps([{"train": ["scan0", "scan3"], "val": ["scan5"]}]))
    assert train(task, tmp_path / "file", *TINY, "--max_epochs", "1", "--splits", str(path)) == 0
    assert train(task, tmp_path / "bad", *TINY, "--splits", str(path), "--fold", "1") == 2
    group = ("--group_by", "scan(.)", "--nfolds", "6", "--fold", "5")
    assert train(task, tmp_path / "group", *TINY, "--max_epochs", "1", *group) == 0
