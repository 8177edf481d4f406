"""The harness of compare_peers.py with workers that only pretend: order, ratios, table, memory."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.peers import harness


def run_of(cpu_s: float, wall_s: float = 1.0, peak_bytes: int = 100, items: int = 1, **more: float) -> harness.Run:
    return {"cpu_s": cpu_s, "wall_s": wall_s, "peak_bytes": peak_bytes, "items": items, **more}


def worker(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_every_other_round_runs_backwards():
    order = []
    harness.interleave(["a", "b", "c"], 3, lambda side, number: order.append((side, number)) or run_of(1))
    assert order == [(side, n) for n, sides in enumerate(("abc", "cba", "abc")) for side in sides]


def test_a_side_that_failed_is_left_out_and_the_others_go_on():
    calls = []

    def run(side: str, number: int) -> harness.Run:
        calls.append(side)
        if side == "b":
            raise harness.WorkerFailed("no such thing")
        return run_of(1)

    runs, failed = harness.interleave(["a", "b"], 2, run)
    assert calls == ["a", "b", "a"]
    assert {side: len(each) for side, each in runs.items()} == {"a": 2}
    assert failed == {"b": "no such thing"}


def test_ratio_is_the_median_over_rounds_of_theirs_by_ours():
    ours, theirs = [run_of(1), run_of(2), run_of(4)], [run_of(3), run_of(4), run_of(40)]
    # 3, 2 and 10: neither the ratio of the medians (2) nor the mean (5).
    assert harness.ratios({"ours": ours, "peer": theirs})["peer"]["cpu_s"] == 3


def test_seconds_are_for_an_item_and_memory_is_not():
    runs = {"ours": [run_of(1, items=2)], "peer": [run_of(1, peak_bytes=300, items=1)]}
    assert harness.ratios(runs)["peer"] == {"cpu_s": 2, "wall_s": 2, "peak_bytes": 3}


def test_without_ours_there_is_no_ratio():
    assert harness.ratios({"peer": [run_of(1)]}) == {}


def test_table_has_a_row_for_each_side_and_names_what_is_absent():
    record = {
        "runs": {"ours": [run_of(1, 2, 5_000_000, dice=0.5)], "peer": [run_of(3, 3, 10_000_000)]},
        "absent": {"other": "numpy not installed"},
        "failed": {"broken": "why"},
    }
    assert harness.table({"work": record}).splitlines()[2:] == [
        "| work | ours | 1 | 2 | 5 |  |  |  | 0.5000 (0.5000 to 0.5000) |",
        "| work | peer | 3 | 3 | 10 | 3.00 | 1.50 | 2.00 |  |",
        "| work | other | absent: numpy not installed | | | | | | |",
        "| work | broken | failed | | | | | | |",
    ]


def test_last_line_that_is_json_counts():
    text = "print('{\"early\": 1}'); print('{\"peak_bytes\": 7, \"items\": 1}'); print('done')"
    run = harness.run_worker(worker(text), os.environ)
    assert run["items"] == 1 and run["peak_bytes"] >= 7


@pytest.mark.parametrize("text", ["raise SystemExit('broken')", "print('broken')"])
def test_worker_without_a_result_fails_with_what_it_said(text):
    with pytest.raises(harness.WorkerFailed, match="broken"):
        harness.run_worker(worker(text), os.environ)


@pytest.mark.slow
def test_memory_of_children_counts():
    if harness.tree_bytes(os.getpid()) == 0:
        pytest.skip("this system does not tell the memory of a process")
    child = "import time; held = bytearray([1]) * 60_000_000; time.sleep(3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('{{}}')"
    assert harness.run_worker(worker(parent), os.environ)["peak_bytes"] > 60_000_000


def test_packages_that_are_not_there_are_not_named():
    assert set(harness.installed(sys.executable, ["numpy", "no-such-package"])) == {"numpy"}
