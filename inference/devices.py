"""On what a model computes, and in which precision."""

from __future__ import annotations

import dataclasses
import sys

import torch

from inference.configuration import flips_warning
from inference.model import Model
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.launch import Launch
from utils.runtime import Runtime, detect_machine

AMP_TYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def warn_of_flips(model: Model) -> None:
    """Say so on the error output where test-time augmentation makes masks worse."""
    for text in dict.fromkeys(filter(None, map(flips_warning, model.configurations))):
        print(f"warning: {text}", file=sys.stderr)


def amp_type(runtime: Runtime) -> torch.dtype | None:
    """The type in which a run's networks compute under autocast; None for float32."""
    return AMP_TYPES[runtime.precision]


def hardware_of(device: str, amp: bool) -> HardwareConfig:
    """The options of a device by its name: auto, cpu, cuda or cuda:<number>.

    Raises:
        UserError: there is no such name.
    """
    if device == "auto":
        return HardwareConfig(amp=amp)
    if device == "cpu":
        return HardwareConfig(accelerator="cpu", amp=amp)
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:<number>, got {device!r}")
    # As many GPUs as the number asks for must be there.
    return HardwareConfig(gpus=int(number or 0) + 1, amp=amp)


def one_device(wanted: HardwareConfig, launch: Launch) -> HardwareConfig:
    """What one of several processes is to use; `--gpus` counts those of a machine.

    Raises:
        UserError: it is another number than that of the processes.
    """
    if wanted.gpus in (None, 0):
        return wanted
    if wanted.gpus not in (1, launch.local_size):
        raise UserError(
            f"--gpus {wanted.gpus}: {launch.local_size} processes were started on this machine, each for one GPU; "
            f"start {wanted.gpus} processes, or leave out --gpus"
        )
    return dataclasses.replace(wanted, gpus=1)


def devices_of(runtime: Runtime, launch: Launch | None) -> list[torch.device]:
    """What a run computes on: its GPUs, or the CPU; one of several processes that each do a part has one GPU.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if not runtime.use_gpu:
        return [runtime.device]
    if launch is None:
        return [torch.device("cuda", index) for index in range(runtime.devices)]
    there = detect_machine().num_gpus
    # Slurm may show each process its own GPU only.
    index = 0 if there == 1 and launch.by_srun else launch.local_rank
    if index >= there:
        raise UserError(
            f"{launch.local_size} processes were started on this machine and torch finds {there} GPU(s); "
            "start as many processes as there are GPUs, or use --gpus 0"
        )
    return [torch.device("cuda", index)]
