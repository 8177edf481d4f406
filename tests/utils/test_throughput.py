from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import throughput
from utils.errors import UserError
from utils.throughput import LatencyRecorder, environment, peak_memory_bytes, synchronize

ROOT = Path(throughput.__file__).resolve().parents[1]

CPU = torch.device("cpu")


def record(seconds, *, items=1, warmup=0):
    recorder = LatencyRecorder(items, warmup)
    for value in seconds:
        recorder.add(value)
    return recorder


def test_warm_up_batches_are_not_measured():
    recorder = record([9, 9, 0.5, 0.25], warmup=2)
    assert recorder.latencies_s == (0.5, 0.25)
    summary = recorder.summary()
    assert (summary.measured_batches, summary.warmup_batches) == (2, 2)
    assert summary.latency_mean_ms == 375


def test_throughput_is_all_items_over_all_seconds():
    """4 items in 1 s and 4 in 3 s are 2 a second; the mean of the two rates would be 2.67."""
    assert record([1.0, 3.0], items=4).summary().items_per_second == 2


def test_percentiles_are_of_single_batches_in_milliseconds():
    summary = record([value / 1000 for value in range(101)]).summary()
    assert summary.latency_mean_ms == pytest.approx(50)
    assert summary.latency_p90_ms == pytest.approx(90)
    assert summary.latency_p95_ms == pytest.approx(95)
    assert summary.latency_p99_ms == pytest.approx(99)


def test_waiting_is_a_share_of_the_measured_seconds():
    recorder = LatencyRecorder(1, 1)
    for seconds, waited_s in ((9, 9), (1, 0.5), (3, 0.5)):
        recorder.add(seconds, waited_s=waited_s)
    assert recorder.summary().data_wait_share == 0.25


@pytest.mark.parametrize(("batches", "warmup"), [(0, 0), (3, 3), (3, 5)])
def test_nothing_measured_is_a_user_error(batches, warmup):
    with pytest.raises(UserError, match=f"{batches} batches were run and the first {warmup} are warm-up"):
        record([1.0] * batches, warmup=warmup).summary()


def test_a_cpu_needs_no_synchronisation():
    assert synchronize(CPU) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_of_a_gpu_is_its_tensors():
    device = torch.device("cuda")
    kept = torch.zeros(1 << 20, device=device)
    synchronize(device)
    assert peak_memory_bytes(device) >= kept.nbytes


def test_peak_memory_of_a_cpu_is_this_process_in_bytes():
    assert 10 * 2**20 < peak_memory_bytes(CPU) < 2**40


def test_a_peak_can_begin_anew():
    # In a process of its own: what other tests have freed would take the large array in.
    code = """if True:
        from utils.throughput import peak_memory_bytes, reset_peak_memory
        from torch import device
        large = bytearray(200 << 20)
        peak = peak_memory_bytes(device("cpu"))
        del large
        reset_peak_memory(device("cpu"))
        print(peak, peak_memory_bytes(device("cpu")))
    """
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    peak, after = map(int, answer.stdout.split())
    if after >= peak:
        # Reading it may even add what had not been counted yet.
        pytest.skip("this system does not let a peak begin anew")
    assert after < peak - (100 << 20)


def test_the_environment_names_machine_and_versions():
    facts = environment(CPU)
    assert facts["cpu"] and facts["cpu_cores"] >= 1 and "gpu" not in facts
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert any(name.startswith("nvidia-dali") for name in facts["versions"])
    assert json.loads(json.dumps(facts)) == facts


def test_the_environment_needs_no_torch():
    """preprocess.py writes it too."""
    code = "import sys; from utils.throughput import environment; environment(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_a_changed_tree_is_marked_beside_its_commit(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})
    commit = throughput._commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert throughput._commit(tmp_path) == f"{commit}-dirty"


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    assert throughput._commit(tmp_path) is None
