"""main.py --resume_training, --ckpt_path and records in one results folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.main_runs import TINY_NETWORK, history, run, weights
from tests.tiny_task import Task, make_folds, make_task, write_scan
from utils.locks import folder_lock
from utils.training_state import read_training_state

pytestmark = pytest.mark.slow
TRAINING = (*TINY_NETWORK, "--nfolds", "3", "--learning_rate", "0.01", "--scheduler", "cosine")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return make_folds(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def two_epochs(task, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("two")
    assert run(task, results, "train", "--max_epochs", "2", *TRAINING) == 0
    return results


@pytest.fixture
def trained(two_epochs, tmp_path) -> Iterator[Path]:
    """The same folder for all, as a checkpoint knows where it was written; put back as it was afterwards."""
    shutil.copytree(two_epochs, tmp_path / "as it was")
    yield two_epochs
    shutil.rmtree(two_epochs)
    shutil.copytree(tmp_path / "as it was", two_epochs)


def test_resumed_training_takes_more_epochs_by_the_longer_schedule(task, trained, tmp_path):
    assert run(task, trained, "train", "--max_epochs", "4", "--resume_training", *TRAINING) == 0
    rates = [epoch["learning_rate"] for epoch in history(trained)]
    # 0.01 * (1 + cos(pi * epoch / 4)) / 2
    assert rates[2:] == pytest.approx([0.005, 0.0014645], rel=1e-3)
    state = read_training_state(trained / "checkpoints")
    assert (state.fold, state.epochs, state.max_epochs, state.finished) == (0, 4, 4, True)
    # Once more, with nothing to do.
    before = weights(trained)
    assert run(task, trained, "train", "--max_epochs", "4", "--resume_training", *TRAINING) == 0
    assert all(torch.equal(value, before[name]) for name, value in weights(trained).items())
    assert read_training_state(trained / "checkpoints") == state


@pytest.mark.parametrize("epochs", [0, 2])
def test_an_interrupted_training_says_what_continues_it(task, two_epochs, tmp_path, capsys, monkeypatch, epochs):
    def interrupted(self, *ignored, **named):
        if epochs:
            shutil.copytree(two_epochs / "checkpoints", tmp_path / "r/checkpoints", dirs_exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", interrupted)
    assert run(task, tmp_path / "r", "train", "--max_epochs", "4", *TRAINING) == 130
    said = "with --resume_training continues after the last finished" if epochs else "the same command begins anew"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--scheduler", "none"), "--scheduler was cosine, now it is none"),
        (("--optimizer", "sgd"), "--optimizer was adam, now it is sgd"),
        (("--batch_size", "1"), "--batch_size was 2, now it is 1"),
        (("--fold", "1"), "--fold was 0, now it is 1"),
        (("--nfolds", "2"), "validation cases now"),
    ],
)
def test_another_training_is_not_resumed(task, trained, capsys, flags, says):
    before = {path: path.read_bytes() for path in sorted(trained.rglob("*")) if path.is_file()}
    assert run(task, trained, "train", "--max_epochs", "4", "--resume_training", *TRAINING, *flags) == 2
    assert says in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted(trained.rglob("*")) if path.is_file()} == before


def test_training_on_shards_that_have_changed_is_not_resumed_and_the_cases_are_named(tmp_path, capsys):
    task = make_task(tmp_path, num_cases=4, shape=(14, 18, 16))
    assert task.run("--nfolds", "2") == 0
    assert run(task, tmp_path / "run", "train", "--max_epochs", "1", *TINY_NETWORK) == 0
    path = task.folder / "labelsTr/scan1.nii.gz"
    write_scan(path, 1 - np.asarray(nib.load(path).dataobj))
    assert task.run("--nfolds", "2") == 0
    capsys.readouterr()
    assert run(task, tmp_path / "run", "train", "--max_epochs", "2", "--resume_training", *TINY_NETWORK) == 2
    assert "the preprocessed data of 1 case (scan1) have changed since" in capsys.readouterr().err


def test_checkpoint_of_an_earlier_version_is_resumed_with_a_warning(task, trained, capsys):
    path = trained / "checkpoints/last.ckpt"
    contents = torch.load(path, weights_only=True)
    del contents["training"]
    torch.save(contents, path)
    assert run(task, trained, "train", "--max_epochs", "3", "--resume_training", *TRAINING) == 0
    assert "written by an earlier version" in capsys.readouterr().err


def test_training_stopped_by_patience_is_finished(task, tmp_path):
    flags = ("--max_epochs", "9", "--min_epochs", "2", "--patience", "1", "--learning_rate", "1e-9")
    assert run(task, tmp_path, "train", *TRAINING, *flags) == 0
    state = read_training_state(tmp_path / "checkpoints")
    assert state.finished and state.epochs < state.max_epochs


def test_training_that_fails_is_not_finished(task, tmp_path, monkeypatch):
    from models.callbacks import EpochReport

    def die(self, trainer, module) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(EpochReport, "on_train_epoch_end", die)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(task, tmp_path, "train", "--max_epochs", "2", *TRAINING)
    assert not read_training_state(tmp_path / "checkpoints").finished


def test_scoring_cases_that_were_trained_on_is_said_with_their_names(task, trained, tmp_path, capsys):
    checkpoint = ("--ckpt_path", str(trained / "checkpoints"), "--nfolds", "3")
    assert run(task, tmp_path / "own", "evaluate", *checkpoint) == 0
    assert "was trained on" not in capsys.readouterr().err
    assert run(task, tmp_path / "other", "evaluate", "--fold", "1", *checkpoint) == 0
    message = capsys.readouterr().err
    validated = json.loads((task.results / "77_3d/splits.json").read_text())["folds"][1]["val"]
    assert f"(fold 0) was trained on 2 cases ({', '.join(validated)})" in message


def test_warm_start_says_where_validation_cases_were_trained_on_and_remembers_it(task, trained, tmp_path, capsys):
    flags = ("--max_epochs", "1", "--fold", "1", "--ckpt_path", str(trained / "checkpoints"), *TRAINING)
    assert run(task, tmp_path / "warm", "train", *flags) == 0
    assert "was trained on 2 cases" in capsys.readouterr().err
    record = torch.load(tmp_path / "warm/checkpoints/last.ckpt", weights_only=True)["training"]
    first = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["training"]
    assert sorted(record["earlier"]) == sorted(first["cases"]["train"])
    # It can be resumed, and remembers still.
    more = ("--max_epochs", "2", "--fold", "1", "--resume_training", *TRAINING)
    assert run(task, tmp_path / "warm", "train", *more) == 0
    again = torch.load(tmp_path / "warm/checkpoints/last.ckpt", weights_only=True)["training"]
    assert again["earlier"] == record["earlier"]


def test_predictions_and_evaluations_leave_the_records_of_a_training(task, trained):
    before = {name: (trained / name).read_bytes() for name in ("run.json", "logs.json")}
    flags = ("--nfolds", "3", "--ckpt_path", str(trained / "checkpoints"))
    for mode in ("predict", "evaluate"):
        assert run(task, trained, mode, *flags) == 0
        record = json.loads((trained / f"run_{mode}.json").read_text())
        assert record["options"]["run"]["exec_mode"] == mode
    assert (trained / "run.json").read_bytes() == before["run.json"]
    assert (trained / "logs.json").read_bytes().startswith(before["logs.json"])


def test_new_training_keeps_the_record_of_the_earlier_one_beside_its_checkpoints(task, trained):
    before = (trained / "run.json").read_bytes()
    assert run(task, trained, "train", "--max_epochs", "1", *TRAINING) == 0
    assert (trained / "run_1.json").read_bytes() == before and (trained / "checkpoints_1/last.ckpt").is_file()


@pytest.mark.parametrize("flags", [(), ("--resume_training",)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_two_trainings_do_not_write_into_one_folder(task, trained, tmp_path, capsys, flags, elsewhere):
    """Nor into one folder of checkpoints."""
    results = tmp_path / "second" if elsewhere and not flags else trained
    store = ("--ckpt_store_dir", str(trained)) if results != trained else ()
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with folder_lock(trained):
        assert run(task, results, "train", "--max_epochs", "3", *flags, *store, *TRAINING) == 2
    said = capsys.readouterr().err
    assert "another run" in said and f"writes into {trained}" in said
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert not (results / ".lock").exists()


def test_weights_that_a_continued_training_does_not_begin_with_are_named(task, trained, capsys):
    begin = ("--ckpt_path", "nowhere.ckpt")
    assert run(task, trained, "train", "--max_epochs", "3", "--resume_training", *begin, *TRAINING) == 0
    assert "--ckpt_path nowhere.ckpt is not read: --resume_training continues" in capsys.readouterr().err
