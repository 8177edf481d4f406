"""Where a run reads and writes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.models.builders import make_plan
from utils import runs
from utils.config import RunConfig
from utils.errors import UserError
from utils.files import write_json


def shard_folder(folder: Path) -> Path:
    for name in ("val", "test"):
        (folder / name).mkdir(parents=True)
    write_json(make_plan(), folder / "plan.json")
    return folder


@pytest.mark.parametrize("where", [".", "04_3d", "04_3d/val", "04_3d/test"])
def test_data_may_be_the_folder_above_or_any_folder_of_the_task(tmp_path, where):
    root = shard_folder(tmp_path / "04_3d")
    found = runs.find_shards(RunConfig(data=tmp_path / where, task="04", dim=3))
    assert found.root == root
    assert found.cases == (root if where == "." else tmp_path / where)
    assert found.is_test == (where == "04_3d/test")


def test_val_somewhere_in_the_path_is_not_the_val_folder(tmp_path):
    root = shard_folder(tmp_path / "interval_study" / "04_3d")
    assert runs.find_shards(RunConfig(data=tmp_path / "interval_study", task="04")).cases == root


def test_task_is_needed_only_where_there_are_several(tmp_path):
    shard_folder(tmp_path / "04_3d")
    assert runs.find_shards(RunConfig(data=tmp_path)).root.name == "04_3d"
    shard_folder(tmp_path / "07_3d")
    with pytest.raises(UserError, match=r"04_3d, 07_3d.*--task"):
        runs.find_shards(RunConfig(data=tmp_path))


def test_missing_shards_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(UserError, match=r"preprocess.py --task 04 --dim 2"):
        runs.find_shards(RunConfig(data=tmp_path, task="04", dim=2))


def test_best_checkpoint_of_a_folder_comes_before_the_last(tmp_path):
    for age, name in enumerate(("last.ckpt", "epoch=1-dice=0.5.ckpt", "epoch=7-dice=0.8.ckpt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert runs.find_checkpoint(tmp_path).name == "epoch=7-dice=0.8.ckpt"
    for path in tmp_path.glob("epoch*"):
        path.unlink()
    assert runs.find_checkpoint(tmp_path).name == "last.ckpt"
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        runs.find_checkpoint(tmp_path)


def test_best_dice_counts_and_not_the_newest_file(tmp_path):
    names = ("epoch=12-dice=0.8125.ckpt", "epoch=3-dice=0.9001.ckpt", "epoch=20-dice=0.4000.ckpt")
    for age, name in enumerate((*names, "epoch=30-dice=nan.ckpt", "epoch=31.ckpt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert runs.find_checkpoint(tmp_path).name == "epoch=3-dice=0.9001.ckpt"


def test_of_equal_dice_the_later_epoch_is_the_better_one(tmp_path):
    for age, epoch in enumerate((10, 9, 2)):
        (tmp_path / f"epoch={epoch}-dice=0.5000.ckpt").touch()
        os.utime(tmp_path / f"epoch={epoch}-dice=0.5000.ckpt", (age, age))
    assert runs.find_checkpoint(tmp_path).name == "epoch=10-dice=0.5000.ckpt"


@pytest.mark.parametrize("where", [".", "04_3d", "04_3d/val"])
def test_folder_that_is_not_ready_names_what_is_missing_and_no_other_is_taken(tmp_path, where):
    root = shard_folder(tmp_path / "04_3d")
    shard_folder(tmp_path / "07_3d")
    (root / "plan.json").unlink()
    write_json({"version": 1, "folds": [{"train": ["a"], "val": ["b"]}]}, root / "splits.json")
    for name in ("a_x.npy", "a.json", "b_x.npy"):
        (root / name).touch()
    with pytest.raises(UserError, match=r"(?s)04_3d is not ready.*the shards of b are missing") as error:
        runs.find_shards(RunConfig(data=tmp_path / where, task="04"))
    assert "of a are" not in str(error.value)
    with pytest.raises(UserError, match=r"04_3d, 07_3d.*--task"):
        runs.find_shards(RunConfig(data=tmp_path))


def train_record(folder: Path, **changes) -> None:
    write_json({"options": {"run": {"exec_mode": "train", "benchmark": False, **changes}}}, folder / "run.json")


def test_record_of_a_training_keeps_its_name(tmp_path):
    predict, train = (RunConfig(results=tmp_path, exec_mode=mode) for mode in ("predict", "train"))
    assert runs.record_path(predict).name == runs.record_path(train).name == "run.json"
    train_record(tmp_path)
    assert runs.record_path(predict).name == "run_predict.json" and runs.record_path(train).name == "run.json"
    assert runs.record_path(dataclasses.replace(train, benchmark=True)).name == "run_benchmark.json"
    train_record(tmp_path, exec_mode="evaluate")
    assert runs.record_path(predict).name == "run.json"
    # A training that has not come to its end has no record yet.
    (tmp_path / "run.json").unlink()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert runs.record_path(predict).name == "run_predict.json"


def test_record_goes_aside_with_its_checkpoints(tmp_path):
    folder, record = tmp_path / "checkpoints", tmp_path / "run.json"
    (tmp_path / "run_1.json").touch()
    folder.mkdir()
    (folder / "last.ckpt").touch()
    train_record(tmp_path)
    assert runs.set_aside(folder, record) == tmp_path / "checkpoints_2"
    assert (tmp_path / "run_2.json").is_file() and not record.exists()
    train_record(tmp_path)
    assert runs.set_aside(folder, record) is None
    assert (tmp_path / "run_3.json").is_file() and not record.exists()


def test_setting_aside_overwrites_no_earlier_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    assert runs.set_aside(folder) is None
    for number in (1, 2):
        folder.mkdir()
        (folder / "last.ckpt").write_text(str(number))
        assert runs.set_aside(folder) == tmp_path / f"checkpoints_{number}"
    assert [(tmp_path / f"checkpoints_{n}" / "last.ckpt").read_text() for n in (1, 2)] == ["1", "2"]


def test_checkpoints_are_resumed_from_where_they_were_stored(tmp_path):
    run = RunConfig(results=tmp_path / "results", ckpt_store_dir=tmp_path / "store")
    with pytest.raises(UserError, match="store"):
        runs.last_checkpoint(run)
    (tmp_path / "store/checkpoints").mkdir(parents=True)
    (tmp_path / "store/checkpoints/last.ckpt").touch()
    assert runs.last_checkpoint(run) == tmp_path / "store/checkpoints/last.ckpt"


def test_folder_below_a_file_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--results"):
        runs.prepare_folder(tmp_path / "file/results", "--results")


def test_predictions_are_named_by_task_dimension_fold_and_flips():
    plan = dataclasses.replace(make_plan(), task="07")
    folder = runs.prediction_folder(RunConfig(results=Path("r"), fold=2), plan, tta=True)
    assert folder == Path("r/preds_task_07_dim_3_fold_2_tta")


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_made(tmp_path):
    odd = tmp_path / os.fsdecode(b"r_\xff")
    with pytest.raises(UserError, match=r"--results .*r_.udcff.deep has bytes that are not UTF-8"):
        runs.prepare_folder(odd / "deep", "--results")
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match=r"--data .* rename"):
        runs.find_shards(RunConfig(data=odd))


def test_a_folder_that_cannot_be_made_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output: cannot write to .*file: Not a directory"):
        runs.require_creatable(tmp_path / "file/new", "--output")
    runs.require_creatable(tmp_path / "a/b/c", "--output")
    assert not (tmp_path / "a").exists()
