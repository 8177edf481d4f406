"""The trial of the fused norm before a GPU run: what it finds, and what the run does then. No GPU is needed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models import acceleration, norm_check
from models.acceleration import Acceleration, default_acceleration, resolve_acceleration
from models.kernels.instance_norm import NormActivation
from models.norm_check import find_fault, fused_norm_fault
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.runtime import Machine, choose_runtime

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16, torch.float16]
FUSED = Acceleration(channels_last=True, fused_norm=True)
GPUS = Machine(num_gpus=2, capability=(9, 0), cpu_bf16=False)


def wrong_output(*arguments):
    return NormActivation.apply(*arguments) * 1.1


def not_a_number(*arguments):
    output = NormActivation.apply(*arguments)
    output.data[0, 0] = torch.nan
    return output


def wrong_order(*arguments):
    return NormActivation.apply(*arguments).contiguous()


def other_type(*arguments):
    return NormActivation.apply(*arguments).double()


def raising(*arguments):
    raise RuntimeError("PTX was compiled with an unsupported toolchain\nand more")


class WrongGradient(NormActivation):
    """Right output; one gradient is not (backward_formula with a wrong sign)."""

    wrong = 0

    @staticmethod
    def backward(ctx, gradient):
        found = list(NormActivation.backward(ctx, gradient))
        found[WrongGradient.wrong] = found[WrongGradient.wrong] * 0.9
        return tuple(found)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_right_numbers_pass(dtype):
    assert find_fault(NormActivation.apply, CPU, dtype) is None


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("fused", "words"),
    [
        (wrong_output, "output is off by 0.1"), (not_a_number, "output is off by nan"),
        (wrong_order, "order of memory"), (other_type, "another type"),
        (raising, "fails with RuntimeError: PTX was compiled with an unsupported toolchain"),
    ],
)  # fmt: skip
def test_wrong_numbers_and_failures_are_found(dtype, fused, words):
    fault = find_fault(fused, CPU, dtype)
    assert words in fault and "\n" not in fault


@pytest.mark.parametrize(("place", "name"), [(0, "by the maps"), (1, "by the scale"), (2, "by the shift")])
def test_a_wrong_gradient_is_found(monkeypatch, place, name):
    monkeypatch.setattr(WrongGradient, "wrong", place)
    assert f"gradient {name} is off by 0.1" in find_fault(WrongGradient.apply, CPU, torch.bfloat16)


def test_it_is_tried_once_per_process_and_works_in_inference_mode(monkeypatch):
    tried, state = [], torch.random.get_rng_state()
    real = norm_check.find_fault
    monkeypatch.setattr(norm_check, "_FAULTS", {})
    monkeypatch.setattr(norm_check, "find_fault", lambda *a: tried.append(a[2]) or real(*a))
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        with torch.inference_mode():
            assert fused_norm_fault(CPU, dtype) is None
    assert tried == [torch.float32, torch.bfloat16]
    assert torch.equal(state, torch.random.get_rng_state())


def on_gpu(monkeypatch, fault: str | None) -> list[torch.dtype]:
    """A GPU with Triton whose fused norm has that fault; the types that it is tried in."""
    tried: list[torch.dtype] = []
    monkeypatch.setattr(acceleration, "has_triton", lambda: True)
    monkeypatch.setattr(acceleration, "fused_norm_fault", lambda device, dtype: tried.append(dtype) or fault)
    return tried


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_run_whose_fused_norm_is_right_keeps_it(monkeypatch, capsys, precision, dtype):
    tried, hardware = on_gpu(monkeypatch, None), HardwareConfig(precision=precision, gpus=1, layout="NDHWC")
    assert resolve_acceleration(hardware, choose_runtime(hardware, GPUS), norm="instance") == FUSED
    assert tried == [dtype] and capsys.readouterr().err == ""


def test_a_run_whose_fused_norm_is_wrong_takes_torch_s_operators_and_says_so(monkeypatch, capsys):
    on_gpu(monkeypatch, "its output is off by 0.3 for maps (1, 2)")
    hardware = HardwareConfig(amp=True, gpus=1, layout="NDHWC")
    chosen = resolve_acceleration(hardware, choose_runtime(hardware, GPUS), norm="instance")
    assert chosen == Acceleration(channels_last=True)
    first, *more = capsys.readouterr().err.splitlines()
    assert "off by 0.3" in first and "takes torch's own operators" in first
    assert len(more) == 1


def test_the_python_api_gives_a_gpu_the_plain_path(monkeypatch, capsys):
    tried = on_gpu(monkeypatch, "it fails with KeyError: x")
    assert default_acceleration(torch.device("cuda"), torch.float16, norm="instance") == Acceleration()
    assert tried == [] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "norm"),
    [({"compile": True, "amp": True}, "instance"), ({"amp": True}, "batch"), ({}, "instance"),
     ({"fused_norm": "off", "amp": True, "layout": "NDHWC"}, "instance"), ({"gpus": 0}, "instance"),
     ({"amp": True}, "instance"), ({"amp": True, "layout": "NDHWC", "compile": True}, "instance")],
)  # fmt: skip
def test_runs_without_the_kernels_try_nothing(monkeypatch, flags, norm):
    tried, hardware = on_gpu(monkeypatch, "wrong"), HardwareConfig(**flags)
    resolve_acceleration(hardware, choose_runtime(hardware, GPUS), norm=norm)
    assert tried == []


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_graphs_on_several_gpus_are_refused(monkeypatch, mode):
    on_gpu(monkeypatch, None)
    hardware = HardwareConfig(compile=True, compile_mode=mode, gpus=2)
    with pytest.raises(UserError, match=r"several GPUs .* use --compile_mode default"):
        resolve_acceleration(hardware, choose_runtime(hardware, GPUS), norm="instance")
    for right in ({"gpus": 1}, {"compile_mode": "default"}, {"compile": False}):
        hardware_ = dataclasses.replace(hardware, **right)
        resolve_acceleration(hardware_, choose_runtime(hardware_, GPUS), norm="instance")
    cpus = HardwareConfig(compile=True, compile_mode="max-autotune", gpus=0, processes=2)
    resolve_acceleration(cpus, choose_runtime(cpus, GPUS), norm="instance")
