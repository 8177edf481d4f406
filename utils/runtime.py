"""Decided once per run: which device, how many processes, which precision, which seed, which CPU cores."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import sys
from typing import TYPE_CHECKING, Any, Literal

from utils.affinity import pin_cpu
from utils.config import Affinity, HardwareConfig
from utils.errors import UserError
from utils.launch import check_launch, find_ranks
from utils.throughput import environment, num_cores, peak_memory_bytes

if TYPE_CHECKING:
    import torch

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""As Lightning calls it."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
KEPT_BLOCK_BYTES = 1 << 30
MOST_KEPT_BYTES = (1 << 31) - 1
BF16_CAPABILITY = (8, 0)
"""CUDA compute capability (Ampere) from which tensor cores multiply bf16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What the hardware offers, as far as the decisions here depend on it."""

    num_gpus: int
    capability: tuple[int, int] | None
    """The lowest CUDA compute capability among the GPUs."""
    cpu_bf16: bool
    """Whether the CPU has bf16 arithmetic (AVX512-BF16 or AMX) rather than a slow emulation of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """The hardware of a run, in the words of Lightning's `Trainer`."""

    accelerator: Literal["cpu", "gpu"]
    devices: int
    """Processes on each node: GPUs, or CPU processes."""
    num_nodes: int
    strategy: Literal["auto", "ddp"]
    backend: Literal["nccl", "gloo"] | None
    """How processes talk to each other; None where there is only one."""
    precision: Precision
    use_gpu: bool
    reason: str
    """Why this precision."""
    warning: str | None = None
    """What was asked for and could not be had."""

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.devices * self.num_nodes

    @property
    def is_first_process(self) -> bool:
        """Whether this process is the one that prints, logs and writes."""
        return find_ranks(os.environ, self.devices)[0] == 0

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        import torch

        return torch.device("cuda", find_ranks(os.environ, self.devices)[1]) if self.use_gpu else torch.device("cpu")

    def pin(self, affinity: Affinity) -> None:
        """Pin this process to cores near its GPU; nothing on a CPU, whose threads need all cores."""
        if self.use_gpu:
            pin_cpu(affinity, find_ranks(os.environ, self.devices)[1], self.devices)

    def num_threads(self, num_workers: int) -> int:
        """Threads for the data pipeline: what was asked for, at most the cores that this process may use."""
        return min(num_workers, num_cores())

    def peak_memory_bytes(self) -> int:
        """Most memory in use so far: tensors on the GPU, or this process's resident set on a CPU."""
        return peak_memory_bytes(self.device)

    def environment(self) -> dict[str, Any]:
        """Machine and versions, JSON-ready."""
        return environment(self.device)


def resolve_hardware(hardware: HardwareConfig) -> Runtime:
    """Decide device, processes and precision on this machine; a warning is printed by the first process.

    Raises:
        UserError: flags contradict each other, ask for a GPU that is not there or for fp16 on a CPU, or do not fit the
            processes that Slurm started.
    """
    runtime = choose_runtime(hardware, detect_machine())
    check_launch(os.environ, devices=runtime.devices, nodes=runtime.num_nodes)
    if runtime.warning and runtime.is_first_process:
        print(f"warning: {runtime.warning}", file=sys.stderr)
    return runtime


def choose_runtime(hardware: HardwareConfig, machine: Machine) -> Runtime:
    """`resolve_hardware` as a function of what the machine offers."""
    use_gpu = _use_gpu(hardware, machine)
    devices = (1 if hardware.gpus is None else hardware.gpus) if use_gpu else hardware.processes
    several = devices * hardware.nodes > 1
    if several and not use_gpu and hardware.sync_batchnorm:
        raise UserError("--sync_batchnorm works on GPUs only; leave it out for CPU processes")
    precision, reason, warning = _precision(hardware, machine, use_gpu)
    return Runtime(
        accelerator="gpu" if use_gpu else "cpu",
        devices=devices,
        num_nodes=hardware.nodes,
        strategy="ddp" if several else "auto",
        backend=("nccl" if use_gpu else "gloo") if several else None,
        precision=precision,
        use_gpu=use_gpu,
        reason=reason,
        warning=warning,
    )


def _use_gpu(hardware: HardwareConfig, machine: Machine) -> bool:
    gpus, accelerator = hardware.gpus, hardware.accelerator
    if accelerator == "cpu" and gpus:
        raise UserError(f"--accelerator cpu and --gpus {gpus} contradict each other; leave one of them out")
    if accelerator == "gpu" and gpus == 0:
        raise UserError("--accelerator gpu and --gpus 0 contradict each other; leave one of them out")
    wanted = gpus if gpus is not None else int(accelerator == "gpu")
    if wanted > machine.num_gpus:
        flag = f"--gpus {gpus}" if gpus else "--accelerator gpu"
        remedy = f"ask for at most {machine.num_gpus}" if machine.num_gpus else "use --gpus 0 to run on the CPU"
        raise UserError(
            f"{flag} asks for {wanted} GPU(s) and torch finds {machine.num_gpus} on this machine; "
            f"{remedy}, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if accelerator == "cpu" or gpus == 0 or machine.num_gpus == 0:
        return False
    if hardware.processes > 1:
        raise UserError(
            f"--processes {hardware.processes} counts CPU processes and this run uses a GPU; "
            "add --accelerator cpu, or choose the number of GPUs with --gpus"
        )
    return True


def _precision(hardware: HardwareConfig, machine: Machine, use_gpu: bool) -> tuple[Precision, str, str | None]:
    """(Lightning's name, why, warning or None)."""
    fast_bf16 = (machine.capability or (0, 0)) >= BF16_CAPABILITY if use_gpu else machine.cpu_bf16
    if hardware.precision == "fp16":
        if not use_gpu:
            raise UserError("--precision fp16 needs a GPU; on a CPU use --precision bf16 or fp32")
        return "16-mixed", "--precision fp16", None
    if hardware.precision == "bf16":
        slow = None if fast_bf16 else "this device emulates bf16; --precision bf16 will be slower than fp32"
        return "bf16-mixed", "--precision bf16", slow
    if hardware.precision == "fp32":
        return "32-true", "--precision fp32", None
    if not hardware.amp:
        return "32-true", "no --amp", None
    if fast_bf16:
        return "bf16-mixed", f"--amp, and the {'GPU' if use_gpu else 'CPU'} computes in bf16", None
    if use_gpu:
        return "16-mixed", "--amp, and the GPU is older than bf16 arithmetic", None
    reason = "the CPU has no bf16 arithmetic (AVX512-BF16 or AMX)"
    return "32-true", reason, f"--amp has no effect: {reason}; running in fp32"


def detect_machine() -> Machine:
    """Ask torch for GPUs and for the CPU's bf16 arithmetic."""
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    capabilities = [torch.cuda.get_device_capability(index) for index in range(num_gpus)]
    # torch.ops.mkldnn's own bf16 test also says yes to CPUs that emulate it. These names are private to
    # torch: to a version without them, a CPU has no bf16.
    tests = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    cpu_bf16 = any(bool(test()) for test in tests if test is not None)
    return Machine(num_gpus=num_gpus, capability=min(capabilities, default=None), cpu_bf16=cpu_bf16)


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, numpy and torch of one process; different ranks get unrelated streams.

    Networks of one run must start equal: build them under the same rank everywhere, or let DDP send rank 0's.
    """
    import numpy as np
    import torch

    mixed = int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def configure_backends(runtime: Runtime) -> None:
    """Let a GPU choose its fastest convolutions and use TF32 where fp32 is asked for; let a CPU keep freed memory."""
    if not runtime.use_gpu:
        keep_freed_memory()
        return
    import torch

    # Patches have one size, so the search pays off after the first step. cuDNN convolutions use TF32 unless
    # told otherwise; only matrix products need the word.
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def keep_freed_memory() -> bool:
    """Let the C library give freed feature maps to the next ones; elsewhere than in glibc nothing changes.

    By default glibc asks the system for each block above 32 MiB and gives it back, and the system clears every page
    anew: a third of the time of a training step on a CPU. Blocks above a gibibyte, such as whole scans, still go back.

    Returns:
        Whether the C library took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES))
