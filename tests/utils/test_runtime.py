from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from utils.config import HardwareConfig
from utils.errors import UserError
from utils.runtime import (
    Machine,
    choose_runtime,
    configure_backends,
    detect_machine,
    find_ranks,
    resolve_hardware,
    seed_everything,
)

NO_GPU = Machine(num_gpus=0, capability=None, cpu_bf16=False)
BF16_CPU = Machine(num_gpus=0, capability=None, cpu_bf16=True)
VOLTA = Machine(num_gpus=2, capability=(7, 0), cpu_bf16=False)
HOPPER = Machine(num_gpus=2, capability=(9, 0), cpu_bf16=True)


def choose(machine, **options):
    return choose_runtime(HardwareConfig(**options), machine)


@pytest.mark.parametrize(
    ("machine", "options", "accelerator", "devices"),
    [
        (NO_GPU, {}, "cpu", 1),
        (HOPPER, {}, "gpu", 1),
        (HOPPER, {"accelerator": "gpu"}, "gpu", 1),
        (HOPPER, {"gpus": 2}, "gpu", 2),
        (HOPPER, {"gpus": 0}, "cpu", 1),
        (HOPPER, {"accelerator": "cpu"}, "cpu", 1),
        (HOPPER, {"accelerator": "cpu", "gpus": 0, "processes": 3}, "cpu", 3),
        (NO_GPU, {"processes": 2}, "cpu", 2),
    ],
)
def test_only_auto_chooses_the_device(machine, options, accelerator, devices):
    runtime = choose(machine, **options)
    assert (runtime.accelerator, runtime.devices, runtime.use_gpu) == (accelerator, devices, accelerator == "gpu")


@pytest.mark.parametrize(
    ("machine", "options", "message"),
    [
        (NO_GPU, {"gpus": 1}, "--gpus 1 asks for 1 GPU"),
        (NO_GPU, {"accelerator": "gpu"}, "--accelerator gpu asks for 1 GPU"),
        (HOPPER, {"gpus": 3}, "finds 2 on this machine; ask for at most 2"),
        (HOPPER, {"accelerator": "cpu", "gpus": 2}, "contradict"),
        (HOPPER, {"accelerator": "gpu", "gpus": 0}, "contradict"),
        (HOPPER, {"processes": 2}, "--processes 2 counts CPU processes"),
        (NO_GPU, {"precision": "fp16"}, "fp16 needs a GPU"),
        (NO_GPU, {"processes": 2, "sync_batchnorm": True}, "--sync_batchnorm"),
    ],
)
def test_what_cannot_be_had_is_a_user_error(machine, options, message):
    with pytest.raises(UserError, match=message):
        choose(machine, **options)


@pytest.mark.parametrize(
    ("machine", "options", "strategy", "backend", "world_size"),
    [
        (NO_GPU, {}, "auto", None, 1),
        (NO_GPU, {"processes": 2}, "ddp", "gloo", 2),
        (NO_GPU, {"nodes": 2}, "ddp", "gloo", 2),
        (HOPPER, {"gpus": 1}, "auto", None, 1),
        (HOPPER, {"gpus": 2, "nodes": 3}, "ddp", "nccl", 6),
    ],
)
def test_several_processes_need_ddp(machine, options, strategy, backend, world_size):
    runtime = choose(machine, **options)
    assert (runtime.strategy, runtime.backend, runtime.world_size) == (strategy, backend, world_size)


@pytest.mark.parametrize(
    ("machine", "options", "precision", "warns"),
    [
        (HOPPER, {}, "32-true", False),
        (HOPPER, {"amp": True}, "bf16-mixed", False),
        (VOLTA, {"amp": True}, "16-mixed", False),
        (BF16_CPU, {"amp": True}, "bf16-mixed", False),
        (NO_GPU, {"amp": True}, "32-true", True),
        (HOPPER, {"amp": True, "gpus": 0}, "bf16-mixed", False),
        (NO_GPU, {"precision": "bf16"}, "bf16-mixed", True),
        (VOLTA, {"precision": "bf16"}, "bf16-mixed", True),
        (HOPPER, {"precision": "fp16"}, "16-mixed", False),
        (HOPPER, {"precision": "fp32", "amp": True}, "32-true", False),
    ],
)
def test_mixed_precision_is_what_the_device_does_well(machine, options, precision, warns):
    runtime = choose(machine, **options)
    assert (runtime.precision, runtime.warning is not None) == (precision, warns)
    assert runtime.reason


@pytest.mark.parametrize(("rank", "printed"), [("0", True), ("1", False)])
def test_a_warning_is_printed_once(monkeypatch, capsys, rank, printed):
    monkeypatch.setattr("utils.runtime.detect_machine", lambda: NO_GPU)
    monkeypatch.setenv("LOCAL_RANK", rank)
    runtime = resolve_hardware(HardwareConfig(amp=True, processes=2))
    assert runtime.is_first_process == printed
    assert ("warning: --amp has no effect" in capsys.readouterr().err) == printed


def test_the_machine_is_described_as_torch_sees_it():
    machine = detect_machine()
    assert machine.num_gpus == torch.cuda.device_count()
    assert (machine.capability is None) == (machine.num_gpus == 0)


def test_a_torch_without_the_bf16_question_has_no_bf16(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not detect_machine().cpu_bf16


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, (0, 0)),
        ({"LOCAL_RANK": "1"}, (1, 1)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "2"}, (5, 1)),
        ({"NODE_RANK": "1"}, (2, 0)),
        ({"RANK": "3", "LOCAL_RANK": "1", "NODE_RANK": "7"}, (3, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, (3, 1)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "LOCAL_RANK": "1"}, (1, 1)),
    ],
)
def test_a_process_knows_its_rank_from_its_launcher(variables, ranks):
    assert find_ranks(variables, devices=2) == ranks


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_and_rank_give_one_stream():
    draws = {}
    for seed, rank in [(1, 0), (1, 1), (2, 0)]:
        seed_everything(seed, rank)
        draws[seed, rank] = draw()
    seed_everything(1, 0)
    assert draw() == draws[1, 0]
    assert len(set(draws.values())) == 3


def test_a_cpu_run_has_no_gpu_settings_and_all_cores():
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), os.sched_getaffinity(0)
    runtime = choose(NO_GPU)
    configure_backends(runtime)
    runtime.pin("single")
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), os.sched_getaffinity(0)) == before
    assert runtime.device == torch.device("cpu") and runtime.peak_memory_bytes() > 0
    assert runtime.environment()["cpu_cores"] == len(os.sched_getaffinity(0))


FAULTS = """
import resource, sys
import numpy as np
from utils.runtime import keep_freed_memory

def touch():
    np.ones(25_000_000, np.float32)

kept = keep_freed_memory()
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_freed_memory_is_used_again_without_asking_the_system():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    if not kept:
        pytest.skip("not glibc")
    # 100 MB are 24,000 pages of 4 KiB.
    assert faults < 1000


def test_a_gpu_run_may_use_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_float32_matmul_precision()
    configure_backends(choose(HOPPER))
    assert torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)


def test_threads_are_at_most_the_cores_at_hand():
    runtime = choose(NO_GPU)
    assert runtime.num_threads(1) == 1
    assert runtime.num_threads(10_000) == len(os.sched_getaffinity(0))
