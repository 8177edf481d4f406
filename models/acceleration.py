"""Which of the ways to compute the same numbers faster a run uses, decided once from flags, device and network."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch

from models.kernels.instance_norm import has_triton
from models.norm_check import fused_norm_fault
from utils.config import CompileMode, HardwareConfig
from utils.errors import UserError
from utils.machine import cpu_family
from utils.runtime import Runtime

GRAPH_MODES: tuple[CompileMode, ...] = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that record CUDA graphs."""
HALF_WIDTH = frozenset({("AuthenticAMD", 25)})
"""Vendor and family of CPUs that compute AVX512 in two halves, and so gain what those with AVX2 do: Zen 4."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acceleration:
    """How a network computes; the default is the plain path. Names of parameters never depend on it."""

    channels_last: bool = False
    """Weights and feature maps lie in channels-last order."""
    fused_norm: bool = False
    """Instance norm and LeakyReLU are one operator."""
    winograd: bool = False
    """3x3x3 convolutions are those of kernels/cpu_conv.py."""
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
    """`choose_acceleration` for a run, with a fused norm only where it gives torch's numbers on this GPU.

    The first process prints a warning of each flag that does no good here.

    Raises:
        UserError: a mode that records CUDA graphs on several GPUs.
    """
    if hardware.compile and hardware.compile_mode in GRAPH_MODES and runtime.use_gpu and runtime.world_size > 1:
        raise UserError(
            f"--compile_mode {hardware.compile_mode} records CUDA graphs, which have not been measured on several "
            f"GPUs ({runtime.world_size} here); use --compile_mode default"
        )
    half_precision = runtime.precision != "32-true"
    place: dict[str, Any] = {"on_gpu": runtime.use_gpu, "half_precision": half_precision, "norm": norm}
    chosen = choose_acceleration(hardware, **place)
    messages: list[str] = []
    if runtime.use_gpu:
        chosen, messages = check_fused_norm(chosen, hardware, place, device=runtime.device, dtype=runtime_type(runtime))
    if runtime.is_first_process:
        for message in (*messages, *acceleration_warnings(hardware, chosen, on_gpu=runtime.use_gpu, norm=norm)):
            print(f"warning: {message}", file=sys.stderr)
    return chosen


def default_acceleration(device: torch.device, amp: torch.dtype | None, *, norm: str) -> Acceleration:
    """What suits a device without any flags; `amp` is the type under autocast, None for float32."""
    return choose_acceleration(
        HardwareConfig(), on_gpu=device.type == "cuda", half_precision=amp is not None, norm=norm
    )


def check_fused_norm(
    chosen: Acceleration, hardware: HardwareConfig, place: dict[str, Any], *, device: torch.device, dtype: torch.dtype
) -> tuple[Acceleration, list[str]]:
    """What was chosen, or what is chosen without a fused norm where its kernels are wrong on this device, and why.

    Compiled networks run no kernel of ours: torch.compile fuses the formulas.
    """
    if not chosen.fused_norm or chosen.compiles:
        return chosen, []
    fault = fused_norm_fault(device, dtype)
    if fault is None:
        return chosen, []
    message = f"the fused instance norm is wrong on this GPU ({fault}); this run takes torch's own operators"
    return choose_acceleration(dataclasses.replace(hardware, fused_norm="off"), **place), [message]


def runtime_type(runtime: Runtime) -> torch.dtype:
    """The type of feature maps in a run's precision."""
    return {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[runtime.precision]


def choose_acceleration(hardware: HardwareConfig, *, on_gpu: bool, half_precision: bool, norm: str) -> Acceleration:
    """The flags' choice; `auto` means what was measured to be fastest on this device, else torch's usual path.

    Convolutions on a CPU read channels-last order faster, but torch's instance and group norm copy such feature maps to
    the other order and back. So `--layout auto` is channels-last on a CPU where no layer does that: with batch norm or
    with the fused instance norm. Tensor cores want that order, too, in half precision; but nobody has measured that
    here, so on a GPU it is there for who asks for it.
    """
    fusable = norm == "instance" and hardware.fused_norm == "auto" and (has_triton() or not on_gpu)
    channels_last = hardware.layout == "NDHWC"
    if hardware.layout == "auto":
        # What torch.compile makes of either order on a CPU is not known; it gets torch's usual one.
        channels_last = not (on_gpu or hardware.compile) and (norm == "batch" or fusable)
    wanted = hardware.winograd == "on" or (hardware.winograd == "auto" and saves_by_winograd())
    return Acceleration(
        channels_last=channels_last,
        fused_norm=fusable and channels_last,
        winograd=wanted and channels_last and not (on_gpu or half_precision or hardware.compile),
        compile_mode=hardware.compile_mode if hardware.compile else None,
    )


def saves_by_winograd() -> bool:
    """Whether this CPU is one of those that were measured; units that compute 512 bits at once may wait for memory."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability == "AVX2" or (capability == "AVX512" and cpu_family() in HALF_WIDTH)


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
