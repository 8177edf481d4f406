"""On what a model computes, and in which precision."""

from __future__ import annotations

import sys

import torch

from inference.configuration import flips_warning
from inference.model import Model
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.runtime import Runtime

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
