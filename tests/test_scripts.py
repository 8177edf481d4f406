"""scripts/: the reference's wrappers, called as functions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from data_preprocessing.dataset.synthetic import benchmark_plan, write_benchmark_shards
from scripts import benchmark, inference, overlay, train
from tests.tiny_task import make_task, write_scan
from utils.args import parse_config
from utils.errors import run_cli


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    made = make_task(tmp_path_factory.mktemp("task"), num_cases=10)
    assert made.run() == 0
    return made


@pytest.mark.slow
def test_train_then_inference_then_overlay(task, tmp_path):
    folders = ["--data", str(task.results), "--results", str(tmp_path), "--dim", "3", "--fold", "0", "--gpus", "0"]
    assert train.main([*folders, "--task", "77", "--epochs", "1"]) == 0
    predicting = [*folders, "--ckpt_path", str(tmp_path / "checkpoints"), "--save_preds"]
    assert inference.main(predicting) == 0
    masks = tmp_path / "preds_task_77_dim_3_fold_0"
    assert len(list(masks.glob("*.nii.gz"))) == 2
    drawing = ["--images", str(task.folder / "imagesTr"), "--preds", str(masks), "--output", str(tmp_path / "o.png")]
    assert overlay.main([*drawing, "--lbls", str(task.folder / "labelsTr")]) == 0
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_exit_status_of_a_failed_run_is_returned(task, tmp_path, capsys):
    words = ["--data", str(tmp_path / "nothing"), "--dim", "3", "--fold", "0", "--gpus", "0"]
    assert run_cli(lambda: train.main(words)) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "epochs", "rate", "augment"),
    [("", 600, 8e-4, "reference"), ("--recipe nnunet", 1000, 1e-2, "nnunet"),
     ("--recipe nnunet --epochs 3 --learning_rate 0.5 --augment none", 3, 0.5, "none")],
)  # fmt: skip
def test_train_takes_what_is_not_given_from_the_recipe(monkeypatch, flags, epochs, rate, augment):
    configs = []
    monkeypatch.setattr(train.entry, "main", lambda words: configs.append(parse_config(words)) or 0)
    words = ["--gpus", "0", "--fold", "1", "--dim", "3", "--precision", "bf16", "--filters", "4", "8", *flags.split()]
    assert train.main(words) == 0
    (config,) = configs
    assert (config.optim.max_epochs, config.optim.learning_rate, config.loader.augment) == (epochs, rate, augment)
    assert (config.hardware.precision, config.model.filters, config.run.fold) == ("bf16", (4, 8), 1)


def test_train_leaves_the_batch_to_a_budget(monkeypatch):
    configs = []
    monkeypatch.setattr(train.entry, "main", lambda words: configs.append(parse_config(words)) or 0)
    for dim, size in (("3", 2), ("2", 64)):
        words = ["--gpus", "0", "--fold", "1", "--dim", dim]
        assert train.main(words) == train.main([*words, "--budget", "10m"]) == 0
        assert [config.loader.batch_size for config in configs[-2:]] == [size, None]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "predict"])
@pytest.mark.parametrize("dim", ["2", "3"])
def test_benchmark_reports_what_it_measured(task, tmp_path, mode, dim):
    if dim == "2":
        assert task.run("--dim", "2") == 0
    words = ["--mode", mode, "--dim", dim, "--task", "77", "--data", str(task.results), "--results", str(tmp_path)]
    batches = ["--train_batches", "7", "--test_batches", "7", "--warmup", "3", "--batch_size", "4", "--gpus", "0"]
    assert benchmark.main([*words, *batches]) == 0
    result = json.loads((tmp_path / f"benchmark_{mode}_{dim}d.json").read_text())
    outcome = result["outcome"]
    assert (outcome["measured_batches"], outcome["warmup_batches"], outcome["batch_size"]) == (4, 3, 4)
    assert outcome["unit"] == ("volumes/s" if dim == "3" else "slices/s")
    # Throughput and mean latency are two views of the same seconds.
    assert outcome["items_per_second"] == pytest.approx(4 / outcome["latency_mean_ms"] * 1000)
    assert outcome["latency_p90_ms"] <= outcome["latency_p95_ms"] <= outcome["latency_p99_ms"]
    assert outcome["peak_memory_bytes"] > 0
    assert 0 <= outcome["data_wait_share"] < 1 and outcome["ceiling_share"] > 0
    assert result["environment"]["precision"] == "32-true" and "torch" in result["environment"]["versions"]


def test_benchmark_without_measured_batches_is_refused(task, tmp_path, capsys):
    words = ["--mode", "predict", "--dim", "3", "--task", "77", "--data", str(task.results), "--gpus", "0"]
    words += ["--results", str(tmp_path), "--test_batches", "2", "--warmup", "2"]
    assert run_cli(lambda: benchmark.main(words)) == 2
    assert "--warmup" in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_makes_its_own_data(tmp_path):
    words = ["--mode", "predict", "--dim", "3", "--task", "4", "--results", str(tmp_path), "--gpus", "0"]
    assert benchmark.main([*words, "--batch_size", "1", "--test_batches", "2", "--warmup", "1"]) == 0
    outcome = json.loads((tmp_path / "benchmark_predict_3d.json").read_text())["outcome"]
    assert outcome["patch_size"] == [40, 56, 40]


def test_noise_has_the_shape_of_the_task_and_is_repeatable(tmp_path):
    plan = benchmark_plan("01", 3)
    assert (plan.in_channels, plan.labels.num_classes, plan.stage.patch_size) == (4, 4, (128, 128, 128))
    first, second = (write_benchmark_shards(tmp_path / name, task="04", dim=3) for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    voxels = math.prod((50, 70, 50))
    assert (first / "noise_0_x.npy").stat().st_size == 128 + 4 * voxels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "shift_mm", "reason"),
    [((5, 6, 7), 0, "has shape"), ((10, 14, 12), 3, "lies 3 mm off its scan"), ((10, 14, 12), 0, None)],
    ids=["shape", "place", "same"],
)
def test_a_mask_of_another_grid_is_not_drawn(tmp_path, capsys, shape, shift_mm, reason):
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    write_scan(tmp_path / "images/a_0000.nii.gz", np.ones((10, 14, 12), np.float32))
    write_scan(tmp_path / "preds/a.nii.gz", np.ones(shape, np.uint8), affine)
    (tmp_path / "preds/a.nii.gz").rename(tmp_path / "preds/a.NII.GZ")
    words = [
        "--images",
        str(tmp_path / "images"),
        "--preds",
        str(tmp_path / "preds"),
        "--output",
        str(tmp_path / "o.png"),
    ]
    assert run_cli(lambda: overlay.main(words)) == (2 if reason else 0)
    assert (tmp_path / "o.png").exists() == (reason is None)
    assert (reason or "") in capsys.readouterr().err
