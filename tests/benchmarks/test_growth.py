"""The growth table from made-up costs whose powers are known."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.growth import COLUMNS, SCALES, growth_table, measure_growth, measure_in_process
from tests.conftest import PROJECT
from utils.errors import UserError


def made_up(mode: str, scale: int) -> dict:
    """Preprocessing linear, loading constant, inference with the square root."""
    power = {"preprocess": 1.0, "data": 0.0, "inference": 0.5}[mode]
    costs = {column.key: 3.0 * scale**power for column in COLUMNS}
    return {"voxels_per_scan": 1000.0 * scale, **costs}


def test_powers_are_found():
    outcome = measure_growth(made_up)
    assert [size["scale"] for size in outcome["sizes"]] == [1, 2, 4, 8] == list(SCALES)
    expected = {"preprocess": 1.0, "data": 0.0, "inference": 0.5}
    for column in COLUMNS:
        assert outcome["exponents"][column.name] == pytest.approx(expected[column.mode], abs=1e-12)
    assert outcome["sizes"][2]["preprocess_seconds_per_scan"] == 12


def test_table_has_a_line_for_each_size_and_one_for_the_powers():
    lines = growth_table(measure_growth(made_up)).splitlines()
    assert len(lines) == 1 + len(SCALES) + 1 and len({len(line) for line in lines}) == 1
    assert lines[4].split()[:3] == ["8x", "0.008", "24"]


def test_each_measurement_is_a_process_of_its_own_and_its_failure_is_told(monkeypatch):
    calls = []

    def run(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, 2, "", "error: no memory")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match=r"--mode data --scale 4 failed: error: no memory"):
        measure_in_process(["--dim", "3"])("data", 4)
    (command,) = calls
    assert command[:4] == [sys.executable, str(PROJECT / "scripts" / "benchmark.py"), "--mode", "data"]
    assert command[4:6] == ["--scale", "4"] and command[-2:] == ["--dim", "3"]
