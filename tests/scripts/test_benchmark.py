"""Modes of scripts/benchmark.py that measure one stage, on noise of a few voxels."""

from __future__ import annotations

import json

import pytest

from benchmarks import growth
from scripts import benchmark
from tests.tiny_task import make_task
from utils.errors import run_cli

TINY = ("--dim", "3", "--task", "04", "--gpus", "0", "--patch_size", "8", "16", "16", "--filters", "4", "8")
BATCHES = ("--train_batches", "4", "--warmup", "2", "--num_workers", "1")
EVERYWHERE = {"mode", "unit", "items_per_second", "peak_memory_bytes", "data_wait_share", "flop_per_second"}


def measure(folder, mode, *flags):
    words = ["--mode", mode, "--results", str(folder / "results"), "--json", str(folder / "new" / "result.json")]
    assert run_cli(lambda: benchmark.main([*words, *flags])) == 0
    result = json.loads((folder / "new" / "result.json").read_text())
    assert result["environment"]["device"] == "cpu" and "torch" in result["environment"]["versions"]
    assert {*EVERYWHERE, "ceiling_share"} <= result["outcome"].keys() and result["outcome"]["mode"] == mode
    return result["outcome"]


def test_preprocessing_of_noise(tmp_path):
    outcome = measure(tmp_path, "preprocess", *TINY[:-3], "--scale", "2", "--scans", "2")
    # 1.25 patches, 0.8 times as large voxels, and twice as many of them.
    assert (outcome["scans"], outcome["voxels_per_scan"]) == (2, 2 * 12 * 25 * 25)
    assert outcome["cpu_s_per_scan"] == outcome["cpu_s_per_scan_inspect"] + outcome["cpu_s_per_scan_write"] > 0
    assert outcome["mvoxels_per_cpu_s"] == pytest.approx(outcome["voxels_per_scan"] / 1e6 / outcome["cpu_s_per_scan"])
    assert outcome["ceiling_share"] is None


@pytest.mark.slow
def test_preprocessing_of_a_data_set_in_two_processes(tmp_path):
    task = make_task(tmp_path, num_cases=3)
    before = sorted(tmp_path.rglob("*"))
    outcome = measure(tmp_path, "preprocess", "--dim", "3", "--task", "77", "--data", str(task.data), "--n_jobs", "2")
    assert (outcome["scans"], outcome["processes"], outcome["voxels_per_scan"]) == (3, 2, 10 * 14 * 12)
    assert outcome["peak_memory_bytes"] > 0
    assert [path for path in before if not path.exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["reference", "nnunet", "none"])
def test_loading(tmp_path, augment):
    outcome = measure(tmp_path, "data", *TINY[:-3], *BATCHES, "--augment", augment, "--channels", "2")
    assert (outcome["augment"], outcome["channels"], outcome["voxels_per_volume"]) == (augment, 2, 10 * 20 * 20)
    assert (outcome["measured_batches"], outcome["warmup_batches"], outcome["batch_size"]) == (2, 2, 2)
    assert outcome["data_wait_share"] == 1 and outcome["cpu_ms_per_patch"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--recipe nnunet --filters 4 8 8", "--precision bf16 --batch_size 1"])
def test_computing(tmp_path, flags):
    """nnU-Net's recipe clips gradients and supervises the levels between, here none of three."""
    outcome = measure(tmp_path, "compute", *TINY, *BATCHES, *flags.split())
    assert outcome["filters"][:2] == [4, 8] and outcome["patch_size"] == [8, 16, 16]
    assert outcome["data_wait_share"] == 0
    for part in (outcome, outcome["forward"]):
        assert part["ceiling_share"] > 0
        assert part["flop_per_second"] == pytest.approx(part["flop_per_item"] * part["items_per_second"])
        assert part["ceiling_share"] == pytest.approx(part["flop_per_second"] / part["ceiling_flop_per_second"])
    assert 2 < outcome["flop_per_item"] / outcome["forward"]["flop_per_item"] < 3


@pytest.mark.slow
def test_inference(tmp_path):
    outcome = measure(tmp_path, "inference", *TINY, "--scans", "2", "--scale", "2")
    # A grid of 19 x 20 x 20 at half overlap: 4 starts along D, 2 along H and W.
    assert (outcome["scans"], outcome["windows_per_scan"]) == (2, 4 * 2 * 2)
    assert 0 <= outcome["data_wait_share"] <= 1 and outcome["ceiling_share"] > 0
    assert outcome["cpu_s_per_scan"] > 0 and "start_up_s" not in outcome


@pytest.mark.slow
def test_start_up_is_apart(tmp_path):
    outcome = measure(tmp_path, "inference", *TINY, "--scans", "1")
    assert outcome["start_up_s"] > outcome["seconds_per_scan"] and outcome["start_up_cpu_s"] > 0


def test_growth_passes_its_flags_on_and_writes_its_table(tmp_path, monkeypatch, capsys):
    passed = []

    def measure_in_process(words):
        passed.extend(words)
        keys = {"voxels_per_scan", *(column.key for column in growth.COLUMNS)}
        return lambda mode, scale: dict.fromkeys(keys, scale)

    monkeypatch.setattr(growth, "measure_in_process", measure_in_process)
    words = ["--mode", "growth", *TINY, "--augment", "none", "--results", str(tmp_path)]
    assert benchmark.main(words) == 0
    assert "--mode" not in passed and "--results" not in passed
    assert passed[passed.index("--patch_size") :][:4] == ["--patch_size", "8", "16", "16"]
    outcome = json.loads((tmp_path / "benchmark_growth_3d.json").read_text())["outcome"]
    assert [size["scale"] for size in outcome["sizes"]] == [1, 2, 4, 8]
    assert "power" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--mode compute --augment none", "--augment has no effect with --mode compute"),
        ("--mode preprocess --amp", "--amp has no effect with --mode preprocess"),
        ("--mode data --data d --channels 2", "--channels has no effect with --data"),
        ("--mode growth --scans 2 --filters 8 16", None),
        ("--mode train --recipe nnunet --scale 2 --precision bf16", None),
    ],
)
def test_an_option_without_effect_is_named(words, expected):
    options = benchmark.parse(benchmark.BenchmarkOptions, [*words.split(), "--dim", "3"], prog="benchmark.py")
    assert benchmark.ineffective(options) == ([expected] if expected else [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mode compute --gpus 2", "measures one process"),
        ("--mode growth --data d", "leave out --data"),
        ("--mode preprocess --data d", "needs --task"),
        ("--mode preprocess --n_jobs 0", "--n_jobs"),
        ("--mode data --scale 3", "power of two"),
        ("--mode compute --task 77", "--task 77"),
        ("--mode compute --train_batches 2 --warmup 2 --patch_size 8 8 8 --filters 4 8 --gpus 0", "--warmup"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, capsys, words, message):
    words = [*words.split(), "--dim", "3", "--results", str(tmp_path)]
    assert run_cli(lambda: benchmark.main(words)) == 2
    assert message in capsys.readouterr().err
