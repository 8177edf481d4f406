"""python -m benchmarks.engines: what is measured, and what follows from it."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import engines
from benchmarks.engines import EngineBenchmark, Size
from tests.inference.engines.made_up import ENGINES
from tests.models.builders import TWO_CLASSES

TINY = Size(filters=(4, 6), patch=(8, 8, 8), windows=2, goal=1.3)
FLAT = Size(filters=(4, 6), patch=(8, 8), goal=1.3)


def test_ratios_are_medians_of_rounds_and_count_from_the_fastest_torch():
    seconds = {"torch fp32": [4.0, 4.0, 40.0], "torch bf16": [2.0, 2.0, 20.0], "openvino fp32": [1.0, 2.0, 10.0]}
    found = engines._ratios(seconds, 1.3)
    assert (found["fastest_torch"], found["fastest_torch_fp32"]) == ("torch bf16", "torch fp32")
    assert found["times_fewer"] == {"openvino fp32": {"than_fastest": 2.0, "than_fp32": 4.0}}


def test_masks_are_compared():
    expected = torch.zeros(1, 3, 2, 2, 2)
    expected[:, 1, 0], expected[:, 2, 1] = 1, 1
    found = engines._compare(expected, expected.clone(), TWO_CLASSES)
    assert found["dice"] == 1 and found["same_dice"] and found["differing"] == 0
    other = expected.clone()
    other[0, 0, 0, 0, 0] = 2
    found = engines._compare(expected, other, TWO_CLASSES)
    assert found["dice"] == pytest.approx((6 / 7 + 1) / 2) and not found["same_dice"] and found["differing"] == 1


@pytest.mark.parametrize(("size", "ways"), [(TINY, {"torch fp32", "torch fp32, Winograd"}), (FLAT, {"torch fp32"})])
def test_torch_is_measured_in_every_way(size, ways, monkeypatch):
    monkeypatch.setattr(engines, "LEAST_ROUNDS", 1)
    found = engines._measure(size, EngineBenchmark(engines=(), rounds=9, seconds=0.0))
    assert {name for name in found["runtimes"] if "bf16" not in name} == ways
    assert all(len(row["rounds"]) == 1 for row in found["runtimes"].values())
    # bf16, which only some CPUs compute in, rounds the scores of so tiny a network to other classes.
    assert all(row["same_dice"] for name, row in found["runtimes"].items() if "bf16" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_numbers_are_written_and_shown(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "SIZES", {"small": TINY})
    threads = torch.get_num_threads()
    words = ["--networks", "small", "--engines", name, "--rounds", "2", "--json", tmp_path / "x.json"]
    try:
        assert engines.main([*map(str, words)]) == 0
    finally:
        torch.set_num_threads(threads)
    written = json.loads((tmp_path / "x.json").read_text())
    row = written["outcome"]["small"]["runtimes"][f"{name} fp32"]
    assert row["same_dice"] and len(row["rounds"]) == 2 and row["voxels"] == 2 * 8**3
    assert written["environment"]["flags"] == engines.cpu_flags()
    assert f"{name} fp32" in capsys.readouterr().out
