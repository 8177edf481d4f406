"""main.py from its flags to its files, on a task of tiny scans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import evaluate
import main
from data_preprocessing import case_restorer
from tests.main_runs import TINY_NETWORK, command, outcome, run, weights
from tests.tiny_task import Task, make_folds, make_task
from utils.errors import UserError, run_cli

PROJECT = Path(main.__file__).resolve().parent
TRAINING = (*TINY_NETWORK, "--nfolds", "3", "--learning_rate", "0.01")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    made = make_folds(tmp_path_factory.mktemp("task"))
    assert made.run("--nfolds", "3", "--exec_mode", "val") == 0
    assert made.run("--nfolds", "3", "--exec_mode", "test") == 0
    return made


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("trained")
    assert run(task, results, "train", "--max_epochs", "3", *TRAINING) == 0
    return results


@pytest.mark.slow
def test_training_leaves_logs_pictures_and_checkpoints(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"logs.json", "progress.png", "run.json", "checkpoints", "tensorboard"} <= names
    best = list((trained / "checkpoints").glob("epoch=*-dice=*.ckpt"))
    assert len(best) == 1 and (trained / "checkpoints/last.ckpt").is_file()
    lines = (trained / "logs.json").read_text().splitlines()
    records = [json.loads(line.removeprefix("DLLL ")) for line in lines]
    epochs = [r for r in records if r["type"] == "LOG" and isinstance(r["step"], int)]
    assert [record["step"] for record in epochs] == [0, 1, 2]
    assert all({"train_loss", "val_loss", "dice", "dice_organ"} <= set(record["data"]) for record in epochs)


@pytest.mark.slow
def test_train_loss_is_of_its_own_epoch(trained):
    contents = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    history = contents["callbacks"]["EpochReport"]["history"]
    losses = [record["train_loss"] for record in history]
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.slow
def test_augmentations_are_chosen_by_flag(task, tmp_path):
    flags = ("--augment", "nnunet", "--elastic_probability", "0.5", "--no_save_ckpt")
    assert run(task, tmp_path, "train", "--max_epochs", "1", *TRAINING, *flags) == 0
    assert (tmp_path / "run.json").is_file()


@pytest.mark.slow
def test_evaluate_repeats_the_last_validation(task, trained, tmp_path):
    checkpoint = trained / "checkpoints/last.ckpt"
    assert run(task, tmp_path, "evaluate", "--nfolds", "3", "--ckpt_path", str(checkpoint)) == 0
    history = torch.load(checkpoint, weights_only=True)["callbacks"]["EpochReport"]["history"]
    assert outcome(tmp_path)["dice"] == pytest.approx(history[-1]["mean_dice"], abs=1e-6)
    assert outcome(tmp_path)["val_loss"] == pytest.approx(history[-1]["val_loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tta", [(), ("--tta",)], ids=["plain", "tta"])
def test_masks_score_as_validation_in_native_space_says(task, trained, tmp_path, tta):
    flags = ("--nfolds", "3", "--ckpt_path", str(trained / "checkpoints"), *tta)
    assert run(task, tmp_path / "p", "predict", "--save_preds", *flags, data=task.results / "77_3d/val") == 0
    assert run(task, tmp_path / "e", "evaluate", "--invert_resampled_y", *flags) == 0
    masks = tmp_path / "p" / f"preds_task_77_dim_3_fold_0{'_tta' if tta else ''}"
    assert evaluate.main(["--preds", str(masks), "--lbls", str(task.folder / "labelsTr")]) == 0
    summary = json.loads((masks / "summary.json").read_text())
    assert outcome(tmp_path / "e")["dice"] == pytest.approx(summary["mean_dice"], abs=1e-6)
    assert outcome(tmp_path / "p")["dice"] == pytest.approx(summary["mean_dice"], abs=1e-6)
    for mask in masks.glob("*.nii.gz"):
        written, source = nib.load(mask), nib.load(task.folder / "imagesTr" / mask.name)
        assert written.shape == source.shape and written.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(written.affine, source.affine)


@pytest.mark.slow
def test_test_scans_are_predicted_whole_with_probabilities(task, trained, tmp_path):
    flags = ("--save_preds", "--save_probabilities", "--nfolds", "3", "--ckpt_path", str(trained / "checkpoints"))
    assert run(task, tmp_path, "predict", *flags, data=task.results / "77_3d/test") == 0
    folder = tmp_path / "preds_task_77_dim_3_fold_0"
    mask = np.asanyarray(nib.load(folder / "unseen.nii.gz").dataobj)
    probabilities = np.load(folder / "unseen.npy")
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=0).T, mask)


@pytest.mark.slow
def test_a_full_disk_fails_the_case_that_it_is_too_small_for(task, trained, tmp_path, capsys, monkeypatch):
    flags = ("--save_preds", "--save_probabilities", "--nfolds", "3", "--ckpt_path", str(trained / "checkpoints"))
    create = case_restorer.new_array

    def full_once(target, shape):
        monkeypatch.setattr(case_restorer, "new_array", create)
        raise UserError(f"{target} needs 9.0 GB of disk")

    monkeypatch.setattr(case_restorer, "new_array", full_once)
    assert run(task, tmp_path, "predict", *flags, data=task.results / "77_3d/val") == 1
    folder = tmp_path / "preds_task_77_dim_3_fold_0"
    assert len(list(folder.glob("*.npy"))) == len(list(folder.glob("*.nii.gz"))) == 1
    assert not list(folder.glob(".tmp*"))
    assert "could not be predicted" in (said := capsys.readouterr().err) and "9.0 GB of disk" in said
    assert outcome(tmp_path)["failed"] == 1 and outcome(tmp_path)["cases"] == 2
    assert "9.0 GB of disk" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_two_dimensional_way(task, tmp_path):
    assert task.run("--nfolds", "3", "--dim", "2") == 0
    flags = ("--dim", "2", "--nfolds", "3", "--batch_size", "4", "--depth", "1", "--filters", "4", "8")
    assert run(task, tmp_path, "train", "--max_epochs", "1", *flags) == 0
    predicting = ("--dim", "2", "--nfolds", "3", "--tta", "--save_preds", "--ckpt_path", str(tmp_path / "checkpoints"))
    assert run(task, tmp_path, "predict", *predicting) == 0
    assert len(list((tmp_path / "preds_task_77_dim_2_fold_0_tta").glob("*.nii.gz"))) == 2


INTERRUPTED = ("--max_epochs", "4", "--scheduler", "cosine", "--deep_supervision", "--deep_supr_num", "1", *TRAINING)


@pytest.fixture(scope="module")
def uninterrupted(task, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    assert run(task, results, "train", *INTERRUPTED) == 0
    return results


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", ["checkpoint", "epoch_line"])
def test_killed_training_resumes_to_the_same_weights(task, uninterrupted, tmp_path, kill_after):
    victim = subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *command(task, tmp_path / "cut", "train", *INTERRUPTED)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if kill_after == "checkpoint":
        while not (tmp_path / "cut/checkpoints/last.ckpt").exists():
            assert victim.poll() is None
            time.sleep(0.01)
    else:
        lines = iter(victim.stdout.readline, "")
        next(line for line in lines if line.startswith("epoch 2 of"))
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert run(task, tmp_path / "cut", "train", "--resume_training", *INTERRUPTED) == 0
    whole, cut = weights(uninterrupted), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    assert outcome(tmp_path / "cut")["epochs"] == 4
    assert outcome(tmp_path / "cut")["best_dice"] == outcome(uninterrupted)["best_dice"]


@pytest.fixture(scope="module")
def trained_twice(task, tmp_path_factory) -> Path:
    """The same command, given a second time."""
    results = tmp_path_factory.mktemp("twice")
    for _ in range(2):
        assert run(task, results, "train", "--max_epochs", "1", "--seed", "5", *TRAINING) == 0
    return results


@pytest.mark.slow
def test_same_seed_same_weights_another_seed_others(task, trained_twice, tmp_path):
    assert run(task, tmp_path, "train", "--max_epochs", "1", "--seed", "6", *TRAINING) == 0
    first = torch.load(trained_twice / "checkpoints_1/last.ckpt", weights_only=True)["state_dict"]
    second, other = weights(trained_twice), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_two_processes_score_as_one(task, trained, tmp_path):
    flags = ("--nfolds", "3", "--ckpt_path", str(trained / "checkpoints/last.ckpt"))
    assert run(task, tmp_path / "one", "evaluate", *flags) == 0
    words = command(task, tmp_path / "two", "evaluate", *flags, "--processes", "2")
    subprocess.run([sys.executable, str(PROJECT / "main.py"), *words], check=True, timeout=300)
    for key, value in outcome(tmp_path / "one").items():
        assert outcome(tmp_path / "two")[key] == pytest.approx(value, abs=1e-6), key


@pytest.mark.slow
def test_two_processes_train_and_one_of_them_has_nothing_to_validate(task, tmp_path):
    # Six folds of six cases: one validation case for two processes.
    flags = (*TINY_NETWORK, "--nfolds", "6", "--max_epochs", "2", "--processes", "2")
    words = command(task, tmp_path, "train", *flags)
    subprocess.run([sys.executable, str(PROJECT / "main.py"), *words], check=True, timeout=300)
    assert outcome(tmp_path)["epochs"] == 2
    best = ("--nfolds", "6", "--ckpt_path", str(tmp_path / "checkpoints"))
    assert run(task, tmp_path / "one", "evaluate", *best) == 0
    assert outcome(tmp_path / "one")["dice"] == pytest.approx(outcome(tmp_path)["best_dice"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_write_every_mask_once_and_score_as_one(task, trained, tmp_path):
    flags = ("--nfolds", "3", "--save_preds", "--ckpt_path", str(trained / "checkpoints"))
    assert run(task, tmp_path / "one", "predict", *flags) == 0
    words = command(task, tmp_path / "two", "predict", *flags, "--processes", "2")
    subprocess.run([sys.executable, str(PROJECT / "main.py"), *words], check=True, timeout=300)
    one, two = (tmp_path / name / "preds_task_77_dim_3_fold_0" for name in ("one", "two"))
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert (two / "report.html").is_file()
    assert all(path.read_bytes() == (two / path.name).read_bytes() for path in one.glob("*.nii.gz"))
    assert outcome(tmp_path / "two")["dice"] == pytest.approx(outcome(tmp_path / "one")["dice"], abs=1e-6)


@pytest.mark.slow
def test_early_checkpoints_are_set_aside(trained_twice):
    assert all((trained_twice / name / "last.ckpt").is_file() for name in ("checkpoints_1", "checkpoints"))


@pytest.mark.slow
def test_first_epochs_can_go_without_validation(task, tmp_path):
    assert run(task, tmp_path, "train", "--max_epochs", "3", "--skip_first_n_eval", "2", *TRAINING) == 0
    history = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["EpochReport"]["history"]
    assert [record["mean_dice"] is None for record in history] == [True, True, False]


@pytest.mark.slow
def test_whole_cases_are_validated_every_other_epoch_and_at_the_end(task, tmp_path, capsys):
    flags = ("--max_epochs", "3", "--validate_every", "2", "--invert_resampled_y", *TRAINING)
    assert run(task, tmp_path, "train", *flags) == 0
    assert "every 2 epochs and after the last one" in capsys.readouterr().out
    history = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["EpochReport"]["history"]
    assert [record["mean_dice"] is None for record in history] == [True, False, False]
    assert [record["patch_dice"] is None for record in history] == [False, True, True]
    assert outcome(tmp_path)["best_epoch"] in (1, 2)


@pytest.mark.slow
def test_patience_stops_after_min_epochs(task, tmp_path):
    flags = ("--max_epochs", "9", "--min_epochs", "3", "--patience", "1", "--learning_rate", "1e-9")
    assert run(task, tmp_path, "train", *TRAINING, *flags) == 0
    assert outcome(tmp_path)["epochs"] == 3


@pytest.mark.slow
def test_warm_start_renews_heads_of_another_class_count(task, trained, tmp_path, capsys):
    other = make_task(tmp_path, num_cases=6, shape=(14, 18, 16))
    other.describe(labels={"0": "background", "1": "organ", "2": "lesion"})
    assert other.run("--nfolds", "3") == 0
    flags = ("--max_epochs", "1", "--ckpt_path", str(trained / "checkpoints/last.ckpt"), *TRAINING)
    assert run(other, tmp_path / "r", "train", *flags) == 0
    assert "output_block" in capsys.readouterr().out


@pytest.mark.slow
def test_profile_writes_a_trace(task, tmp_path):
    assert run(task, tmp_path, "train", "--max_epochs", "1", "--profile", *TRAINING) == 0
    assert (tmp_path / "profile/trace_0.json").is_file()


@pytest.mark.slow
def test_flips_at_test_time_are_warned_of_after_a_training_without(task, tmp_path, capsys):
    assert run(task, tmp_path, "train", "--max_epochs", "1", "--augment", "none", *TRAINING) == 0
    flags = ("--nfolds", "3", "--tta", "--ckpt_path", str(tmp_path / "checkpoints"))
    assert run(task, tmp_path / "p", "predict", *flags) == 0
    assert "--tta makes its masks worse" in capsys.readouterr().err


@pytest.mark.slow
def test_data_may_be_the_shard_folder_itself(task, tmp_path):
    assert run(task, tmp_path, "train", "--max_epochs", "1", *TRAINING, data=task.results / "77_3d") == 0


class TestBadInput:
    """One message, exit code 2, nothing written."""

    def check(self, capsys, results: Path, status: int, *words: str) -> None:
        message = capsys.readouterr().err
        assert status == 2
        assert all(word in message for word in words), message
        assert "Traceback" not in message
        assert not results.exists() or not list(results.iterdir())

    @pytest.mark.slow
    def test_missing_checkpoint(self, task, tmp_path, capsys):
        status = run(task, tmp_path / "r", "predict", "--nfolds", "3", "--ckpt_path", "nowhere.ckpt")
        self.check(capsys, tmp_path / "r", status, "nowhere.ckpt", "does not exist")

    def test_no_checkpoint_at_all(self, task, tmp_path, capsys):
        self.check(capsys, tmp_path / "r", run(task, tmp_path / "r", "predict", "--nfolds", "3"), "--ckpt_path")

    @pytest.mark.slow
    def test_truncated_checkpoint(self, task, trained, tmp_path, capsys):
        whole = (trained / "checkpoints/last.ckpt").read_bytes()
        (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
        flags = ("--nfolds", "3", "--ckpt_path", str(tmp_path / "half.ckpt"))
        self.check(capsys, tmp_path / "r", run(task, tmp_path / "r", "predict", *flags), "half.ckpt")

    @pytest.mark.slow
    def test_checkpoint_of_another_task(self, trained, tmp_path, capsys):
        other = make_task(tmp_path, num_cases=3)
        other.describe(labels={"0": "background", "1": "organ", "2": "lesion"})
        assert other.run("--nfolds", "3") == 0
        capsys.readouterr()
        status = run(other, tmp_path / "r", "predict", "--nfolds", "3", "--ckpt_path", str(trained / "checkpoints"))
        self.check(capsys, tmp_path / "r", status, "labels")

    def test_fold_out_of_range(self, task, tmp_path, capsys):
        status = run(task, tmp_path / "r", "train", "--fold", "3", *TRAINING)
        self.check(capsys, tmp_path / "r", status, "--fold", "0..2")

    def test_resume_without_checkpoint(self, task, tmp_path, capsys):
        status = run(task, tmp_path / "r", "train", "--resume_training", *TRAINING)
        self.check(capsys, tmp_path / "r", status, "last.ckpt", "--resume_training")

    @pytest.mark.slow
    def test_resume_with_another_network(self, task, trained, capsys):
        before = (trained / "checkpoints/last.ckpt").read_bytes()
        status = run(task, trained, "train", "--resume_training", "--res_block", *TRAINING)
        assert status == 2 and "res_block" in capsys.readouterr().err
        assert (trained / "checkpoints/last.ckpt").read_bytes() == before

    def test_results_not_writable(self, task, tmp_path, capsys):
        (tmp_path / "file").write_text("in the way")
        status = run(task, tmp_path / "file" / "r", "train", "--max_epochs", "1", *TRAINING)
        self.check(capsys, tmp_path / "nothing", status, "--results")

    def test_no_shards(self, tmp_path, capsys):
        nothing = Task(tmp_path, tmp_path)
        self.check(capsys, tmp_path / "r", run(nothing, tmp_path / "r", "train"), "preprocess.py --task 77")

    @pytest.mark.slow
    def test_wrong_dimension(self, task, tmp_path, capsys):
        status = run(task, tmp_path / "r", "train", "--dim", "2", data=task.results / "77_3d")
        self.check(capsys, tmp_path / "r", status, "--dim 3")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_gpu_that_is_not_there(self, task, tmp_path, capsys):
        words = ["--exec_mode", "train", "--data", str(task.results), "--results", str(tmp_path / "r"), "--gpus", "1"]
        self.check(capsys, tmp_path / "r", run_cli(lambda: main.main(words)), "--gpus 1")
