"""The machinery of gpu-check: verdicts, shares of the time, and cases that crash or hang are lost alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import context, findings, runner
from benchmarks.gpu_check.findings import Finding, Outcome
from benchmarks.gpu_check.items import ITEMS, Item
from benchmarks.gpu_check.record import Record

FAKE = Path(__file__).resolve().parent / "fake_gpu_worker.py"
ON_CPU = context.Context(device=torch.device("cpu"), sizes=context.TINY)


def item(**values) -> Item:
    return Item(**{"name": "tried", "help": "", "checks": "", "share": 1.0, "case_s": 30.0} | values)


def run(monkeypatch, script, *, limit_s: float = 60.0, **values) -> list[Finding]:
    monkeypatch.setattr(runner, "WORKER", FAKE)
    return list(runner.ItemRun(item(**values), {"script": script}, limit_s=limit_s).findings())


@pytest.mark.slow
def test_a_crash_and_a_spoiled_device_lose_one_case(monkeypatch):
    script = [["a", "fine"], ["b", "crash"], ["c", "poison"], ["d", "fine"]]
    found = run(monkeypatch, script)
    assert [(each.case, each.verdict) for each in found] == [("a", "ok"), ("b", "failed"), ("c", "ok"), ("d", "ok")]
    assert found[1].text == "the process ended with signal SIGKILL: segmentation"
    # A new process knows the numbers of the cases before it.
    assert found[3].numbers == {"earlier": ["a", "c"]}


@pytest.mark.slow
def test_a_hang_ends_with_its_children_and_the_next_case_runs(monkeypatch):
    found = run(monkeypatch, [["a", "hang"], ["b", "fine"]], case_s=1.0)
    assert [(each.case, each.verdict) for each in found] == [("a", "failed"), ("b", "ok")]
    assert "no end within 1 s" in found[0].text
    child = int(found[0].numbers["last_words"][-1].split()[-1])
    end_s = time.monotonic() + 10
    while _lives(child) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not _lives(child)


@pytest.mark.slow
def test_what_does_not_fit_is_not_run(monkeypatch):
    found = run(monkeypatch, [["a", "fine"], ["b", "hang"], ["c", "fine"]], limit_s=5.0)
    assert [each.verdict for each in found][-2:] == ["not run", "not run"]
    assert not findings.is_bad(found)
    assert "5 s were over" in found[-1].text


def test_an_item_that_does_not_start_has_failed(monkeypatch):
    (found,) = run(monkeypatch, "does not start")
    assert (found.case, found.verdict) == ("start", "failed")
    assert "status 3: no such device" in found.text


def test_items_have_shares_of_what_is_left(monkeypatch):
    limits = []

    class Quick(runner.ItemRun):
        def findings(self):
            limits.append(self.limit_s)
            yield self._find("all", "ok", "")

    monkeypatch.setattr(runner, "ItemRun", Quick)
    assert len(list(runner.run_items([item(share=1.0), item(share=3.0)], {}, time_s=100.0))) == 2
    # The first one left nearly all of its share to the second.
    assert limits == [pytest.approx(25, abs=1), pytest.approx(100, abs=1)]


def test_every_item_says_where_its_cases_are():
    names = [each.name for each in ITEMS]
    assert len(set(names)) == len(names) and names[0] == "environment" and names[-1] == "graphs"
    assert all(each.share > 0 and each.case_s > 0 and each.help for each in ITEMS)


@pytest.mark.parametrize("distances, verdict", [
    ({"a": 0.5, "b": 0.001}, None), ({"a": 0.5, "b": 0.2}, "differs"), ({"a": float("nan"), "b": 0.0}, "differs"),
])  # fmt: skip
def test_distances_are_judged_by_their_own_tolerances(distances, verdict):
    tolerances = {"a": 1.0, "b": 0.01}
    if verdict is None:
        text, numbers = context.judge(distances, tolerances)
        assert text.startswith("at worst a is") and numbers["distances"] == distances
        return
    with pytest.raises(Outcome) as ended:
        context.judge(distances, tolerances)
    assert ended.value.verdict == verdict and "1 of 2" in ended.value.text


def test_only_large_work_is_called_slower():
    large = context.Context(device=torch.device("cpu"), sizes=context.FULL)
    assert context.compare_speed(ON_CPU, 2.0, 1.0, "x", {})[1] == {"times_as_fast": 0.5}
    assert context.compare_speed(large, 1.0, 2.0, "x", {})[0] == "x: 2.00 times as fast"
    with pytest.raises(Outcome) as ended:
        context.compare_speed(large, 2.0, 1.0, "x", {})
    assert ended.value.verdict == "slower"


def test_the_record_is_whole_after_every_case(tmp_path):
    path = tmp_path / "record.json"
    record = Record(path, options={}, device="cpu")
    record.add(Finding(item="i", case="a", verdict="differs", text="t", numbers={"n": float("nan")}))
    written = json.loads(path.read_text())["outcome"]
    assert written["finished"] is False and written["verdicts"]["differs"] == 1
    assert written["findings"][0]["numbers"] == {"n": None}
    record.finish()
    assert json.loads(path.read_text())["outcome"]["finished"] is True
    assert findings.summary(record.findings).splitlines() == ["1 differs", "differs: i: a"]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
