"""Which of the ways to compute the same numbers faster a run uses, decided once from flags, device and network."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch

from models.fused_norm import has_triton
from utils.config import CompileMode, HardwareConfig
from utils.runtime import Runtime

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that record CUDA graphs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acceleration:
    """How a network computes; the default is the plain path. Names of parameters never depend on it."""

    channels_last: bool = False
    """Weights and feature maps lie in channels-last order."""
    fused_norm: bool = False
    """Instance norm and LeakyReLU are one operator."""
    winograd: bool = False
    """3x3x3 convolutions are those of host_conv.py."""
    compile_mode: CompileMode | None = None
    """Mode of torch.compile; None: not compiled."""
    backend: str = "inductor"
    """What torch.compile hands its graphs to."""

    def memory_format(self, dim: int) -> torch.memory_format:
        """torch's name of the order of memory in a 2D or 3D network."""
        if not self.channels_last:
            return torch.contiguous_format
        return {2: torch.channels_last, 3: torch.channels_last_3d}[dim]

    @property
    def compiles(self) -> bool:
        """Whether anything is compiled."""
        return self.compile_mode is not None

    @property
    def records_graphs(self) -> bool:
        """Whether compiled functions may be CUDA graphs, whose outputs the next call overwrites."""
        return self.compile_mode in GRAPH_MODES

    def compile_options(self) -> dict[str, Any]:
        """Arguments of torch.compile; every shape gets code of its own, since there are few of them."""
        assert self.compiles
        return {"mode": self.compile_mode, "backend": self.backend, "dynamic": False}


def resolve_acceleration(hardware: HardwareConfig, runtime: Runtime, *, norm: str) -> Acceleration:
    """`choose_acceleration` for a run; the first process prints a warning of each flag that does no good here."""
    half_precision = runtime.precision != "32-true"
    chosen = choose_acceleration(hardware, on_gpu=runtime.use_gpu, half_precision=half_precision, norm=norm)
    if runtime.is_first_process:
        for message in acceleration_warnings(hardware, chosen, on_gpu=runtime.use_gpu, norm=norm):
            print(f"warning: {message}", file=sys.stderr)
    return chosen


def choose_acceleration(hardware: HardwareConfig, *, on_gpu: bool, half_precision: bool, norm: str) -> Acceleration:
    """The flags' choice; `auto` means what this device is believed to be fastest with.

    Tensor cores want channels-last order in half precision, and convolutions on a CPU read it faster, but torch's
    instance and group norm copy such feature maps to the other order and back. So `--layout auto` is channels-last
    where no layer does that: with batch norm or with the fused instance norm, on a GPU in half precision or on a CPU.
    """
    fusable = norm == "instance" and hardware.fused_norm == "auto" and (has_triton() or not on_gpu)
    channels_last = hardware.layout == "NDHWC"
    if hardware.layout == "auto":
        # What torch.compile makes of either order on a CPU is not known; it gets torch's usual one.
        suits = half_precision if on_gpu else not hardware.compile
        channels_last = suits and (norm == "batch" or fusable)
    wanted = hardware.winograd == "on" or (hardware.winograd == "auto" and saves_by_winograd())
    return Acceleration(
        channels_last=channels_last,
        fused_norm=fusable and channels_last,
        winograd=wanted and channels_last and not (on_gpu or half_precision or hardware.compile),
        compile_mode=hardware.compile_mode if hardware.compile else None,
    )


def saves_by_winograd() -> bool:
    """Whether this CPU is one of those that were measured: wider vector units wait for memory instead."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def acceleration_warnings(hardware: HardwareConfig, chosen: Acceleration, *, on_gpu: bool, norm: str) -> list[str]:
    """What was asked for and changes nothing, or makes things slower, on this device."""
    messages = []
    if hardware.compile and hardware.compile_mode == "reduce-overhead" and not on_gpu:
        messages.append("--compile_mode reduce-overhead has no effect: CUDA graphs need a GPU")
    if hardware.winograd == "on" and not chosen.winograd:
        messages.append("--winograd on has no effect: it needs a CPU, fp32, channels-last order and no --compile")
    if chosen.channels_last and norm != "batch" and not chosen.fused_norm:
        messages.append(
            f"--layout NDHWC with --norm {norm} and torch's own operator copies every feature map twice; "
            "leave --layout out"
        )
    return messages
