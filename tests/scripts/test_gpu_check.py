"""scripts/gpu_check.py from its flags to its record, on a CPU that is compared with itself."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu_check import runner
from benchmarks.gpu_check.findings import Finding
from scripts import gpu_check
from utils.errors import run_cli


def command(*words: str) -> int:
    return run_cli(lambda: gpu_check.main(list(words)))


@pytest.mark.parametrize("flags", ["--items nothing", "--time_s 0", "--accelerator gpu"])
def test_bad_flags_end_with_status_2(flags, capsys):
    if "gpu" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert command(*flags.split()) == 2
    assert flags.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "verdict, status",
    [("ok", 0), ("skipped", 0), ("slower", 0), ("not run", 0), ("differs", 1), ("failed", 1)],
)
def test_the_status_says_whether_something_is_wrong(monkeypatch, tmp_path, capsys, verdict, status):
    finding = Finding(item="norms", case="a case", verdict=verdict, text="why")
    monkeypatch.setattr(runner, "run_items", lambda items, job, time_s: iter([finding]))
    path = tmp_path / "new" / "gpu.json"
    assert command("--accelerator", "cpu", "--json", str(path)) == status
    printed = capsys.readouterr().out
    assert "norms\n" in printed and f"{verdict:8} a case" in printed and f"1 {verdict}" in printed
    assert json.loads(path.read_text())["outcome"]["findings"][0]["verdict"] == verdict


@pytest.mark.slow
@pytest.mark.parametrize("items", ["environment convolutions norms loss graphs", "steps speed loading ddp"])
def test_all_checks_run_through_on_a_cpu(tmp_path, items):
    """In two halves, for the time: nine processes import torch."""
    path = tmp_path / "gpu.json"
    words = ["--accelerator", "cpu", "--time_s", "900", "--json", str(path), "--items", *items.split()]
    assert command(*words) == 0
    outcome = json.loads(path.read_text())["outcome"]
    assert outcome["finished"] and {each["verdict"] for each in outcome["findings"]} == {"ok", "skipped"}
    assert {each["item"] for each in outcome["findings"]} == set(items.split())
    skipped = [each["text"] for each in outcome["findings"] if each["verdict"] == "skipped"]
    assert skipped and all("GPU" in text or "CPU" in text for text in skipped)
