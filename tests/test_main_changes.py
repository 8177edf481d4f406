"""main.py where what it works with changes: shards and labels made anew, other checkpoints, a moved folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import preprocess
from models.callbacks import EpochReport
from models.nn_unet import NNUnet
from tests.main_runs import TINY, checkpoint, command, run, train
from tests.tiny_task import make_folds, write_scan
from training.shard_watch import ShardWatch
from utils.errors import run_cli

pytestmark = pytest.mark.slow
PROJECT = Path(preprocess.__file__).resolve().parent
FOLDS = ("--nfolds", "3")
FLAGS = (*TINY, *FOLDS)


@pytest.fixture
def task(tmp_path):
    return make_folds(tmp_path / "task")


def correct_label(task, folder=None) -> str:
    """Change the label of a case that fold 0 validates on; returns its name."""
    name = json.loads((task.results / "77_3d/splits.json").read_text())["folds"][0]["val"][0]
    path = (folder or task.folder / "labelsTr") / f"{name}.nii.gz"
    array = np.asanyarray(nib.load(path).dataobj).copy()
    array[9:12, 9:12, 9:12] = 1
    write_scan(path, array)
    return name


def test_a_training_ends_where_its_shards_are_made_anew(task, tmp_path, capsys, monkeypatch):
    ended = EpochReport.on_train_epoch_end

    def then_preprocess(self, trainer, module):
        ended(self, trainer, module)
        if trainer.current_epoch == 0:
            os.utime(task.folder / "imagesTr/scan3.nii.gz", ns=(1, 1))
            assert task.run(*FOLDS) == 0

    monkeypatch.setattr(EpochReport, "on_train_epoch_end", then_preprocess)
    assert train(task, tmp_path / "out", "--max_epochs", "4", *FLAGS) == 2
    said = capsys.readouterr().err
    assert "training ended in epoch 2, of which no checkpoint was made" in said and "- scan3: its shard is" in said
    assert checkpoint(tmp_path / "out")["epoch"] == 0


def test_shards_made_anew_while_they_are_validated_choose_no_checkpoint(task, tmp_path, monkeypatch):
    monkeypatch.setattr(ShardWatch, "on_train_batch_end", lambda *_: None)
    validated = NNUnet.validation_step

    def then_preprocess(self, *batch):
        if self.trainer.current_epoch == 1:
            os.utime(task.folder / "imagesTr/scan3.nii.gz", ns=(1, 1))
            assert task.run(*FOLDS) == 0
        return validated(self, *batch)

    monkeypatch.setattr(NNUnet, "validation_step", then_preprocess)
    assert train(task, tmp_path / "out", "--max_epochs", "4", *FLAGS) == 2
    assert checkpoint(tmp_path / "out")["epoch"] == 0
    assert [path.name[:8] for path in (tmp_path / "out/checkpoints").glob("epoch=*")] == ["epoch=0-"]


def test_two_processes_end_together_and_say_it_once(task, tmp_path):
    words = command(task, tmp_path / "out", "train", "--max_epochs", "500", "--processes", "2", *FLAGS)
    start = [sys.executable, "-u", str(PROJECT / "main.py"), *words]
    with (
        open(tmp_path / "said", "w+") as said,
        subprocess.Popen(start, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        for line in process.stdout:
            if line.startswith("epoch 2 "):
                os.utime(task.folder / "imagesTr/scan3.nii.gz", ns=(1, 1))
                assert task.run(*FOLDS) == 0
        assert process.wait(timeout=300) == 2
        said.seek(0)
        text = said.read()
    assert text.count("scan3: its shard is missing or another one now") == 1
    assert "Traceback" not in text and "ended with status" not in text


def test_masks_of_another_checkpoint_are_not_mixed(task, tmp_path, capsys):
    assert task.run("--exec_mode", "test") == 0
    for name, seed in (("one", "1"), ("two", "2")):
        assert train(task, tmp_path / name, "--max_epochs", "1", "--seed", seed, *FLAGS) == 0
    out = tmp_path / "out"

    def predict(name, *flags):
        words = ("--save_preds", "--ckpt_path", str(tmp_path / name / "checkpoints"), *FOLDS, *flags)
        return run(task, out, "predict", *words)

    assert predict("one") == 0
    masks = out / "preds_task_77_dim_3_fold_0"
    lost = sorted(masks.glob("*.nii.gz"))[0]
    lost.unlink()
    assert predict("one") == 0 and lost.is_file()
    assert "were moved to" not in capsys.readouterr().out and not (out / f"earlier_{masks.name}_1").exists()
    assert predict("two") == 0
    assert "other weights" in (said := capsys.readouterr().out) and str(out / f"earlier_{masks.name}_1") in said
    assert predict("two", "--overlap", "0.25") == 0
    assert "--overlap was 0.5, now it is 0.25" in capsys.readouterr().out
    assert json.loads((masks / "made_by.json").read_text())["made_by"]["settings"]["--overlap"] == "0.25"
    assert len(list(masks.glob("*.nii.gz"))) == len(list((out / f"earlier_{masks.name}_2").glob("*.nii.gz"))) == 2


def test_corrected_labels_are_not_left_out_in_silence(task, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(task, out, "--max_epochs", "1", *FLAGS) == 0
    name = correct_label(task)
    capsys.readouterr()
    scoring = ("--ckpt_path", str(out / "checkpoints"), *FOLDS)
    for mode, flags in (("train", FLAGS), ("evaluate", scoring)):
        assert run(task, tmp_path / "new", mode, *flags) == 2
        said = capsys.readouterr().err
        assert f"{name}.nii.gz has changed since its shard was made from it" in said and "preprocess.py" in said
        assert not (tmp_path / "new").exists()
    # What is begun goes on, and says so; masks on the scans' grids are scored against the files.
    assert train(task, out, "--max_epochs", "2", "--resume_training", *FLAGS) == 0
    assert "goes on with 1 labels as they were" in capsys.readouterr().err
    assert run(task, tmp_path / "e", "evaluate", "--invert_resampled_y", *scoring) == 0
    assert task.run(*FOLDS) == 0
    assert run(task, tmp_path / "e", "evaluate", *scoring) == 0


@pytest.mark.parametrize("mode", ["training", "val"])
def test_what_is_advised_for_corrected_labels_is_enough(task, tmp_path, capsys, mode):
    assert task.run("--exec_mode", "val") == 0 and train(task, tmp_path / "out", "--max_epochs", "1", *FLAGS) == 0
    # Put in their place as a whole folder: no file in it is younger than the shards.
    other = task.folder / "labelsTr_v2"
    shutil.copytree(task.folder / "labelsTr", other)
    correct_label(task, other)
    for path in other.iterdir():
        os.utime(path, ns=(1, 1))
    (task.folder / "labelsTr").rename(task.folder / "labelsTr_v1")
    other.rename(task.folder / "labelsTr")
    data = task.results / "77_3d" / ("val" if mode == "val" else "")
    words = ("--ckpt_path", str(tmp_path / "out/checkpoints"), *FOLDS)
    capsys.readouterr()
    assert run(task, tmp_path / "e", "evaluate", *words, data=data) == 2
    advice = capsys.readouterr().err.split("Make their shards anew: ")[1]
    for each in advice.strip().split(", then "):
        python, script, *flags = shlex.split(each)
        assert (python, script) == ("python", "preprocess.py")
        # As it stands, but for the options of the first time.
        assert run_cli(lambda: preprocess.main([*flags, *FOLDS])) == 0  # noqa: B023
    assert run(task, tmp_path / "e", "evaluate", *words, data=data) == 0


def test_a_label_that_was_only_touched_is_the_same(task, tmp_path):
    os.utime(task.folder / "labelsTr/scan0.nii.gz")
    assert train(task, tmp_path / "out", "--max_epochs", "1", *FLAGS) == 0


def test_a_moved_training_goes_on_with_its_best_checkpoint(task, tmp_path, capsys):
    same = ("--learning_rate", "1e-9", *FLAGS)
    assert train(task, tmp_path / "out", "--max_epochs", "1", *same) == 0
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert train(task, tmp_path / "moved", "--max_epochs", "3", "--resume_training", *same) == 0
    assert "dirpath" not in capsys.readouterr().err
    folder = tmp_path / "moved/checkpoints"
    assert len(list(folder.glob("epoch=*.ckpt"))) == 1
    states = checkpoint(tmp_path / "moved")["callbacks"]
    [state] = [state for key, state in states.items() if key.startswith("ModelCheckpoint") and "'dice'" in key]
    assert os.path.dirname(state["best_model_path"]) == str(folder)


def test_memory_that_runs_out_is_one_message(task, tmp_path, capsys, monkeypatch):
    def too_large(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr(NNUnet, "training_step", too_large)
    assert train(task, tmp_path / "out", "--max_epochs", "1", *FLAGS) == 2
    assert "error: out of memory: [enforce" in (said := capsys.readouterr().err) and "--batch_size" in said


def test_features_of_levels_that_there_are_not_are_named(task, tmp_path, capsys):
    flags = ("--depth", "1", "--filters", "4", "8", "16", "32", "--batches_per_epoch", "2", *FOLDS)
    assert train(task, tmp_path / "out", "--max_epochs", "1", *flags) == 0
    assert "has 2 levels, so 16 32 at the end is left out" in capsys.readouterr().err
