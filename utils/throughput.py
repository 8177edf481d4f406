"""Honest timing: the device is synchronised, warm-up is sliced off, the machine is named with the numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.limits import cpu_quota

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "pytorch-lightning", "monai", "numpy", "scipy", "nibabel")
DALI_PACKAGES = tuple(f"nvidia-dali-cuda{version}" for version in (110, 120, 130))
"""One for each generation of CUDA."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it; a CPU has when the call returns."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
    """Speed over the measured batches (warm-up not among them); latencies are per batch, in milliseconds."""

    items_per_second: float
    latency_mean_ms: float
    latency_p90_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    data_wait_share: float
    """Share of the seconds in which the device had no batch to work on."""
    measured_batches: int
    warmup_batches: int


class LatencyRecorder:
    """Collects the seconds that each batch took.

    Args:
        items_per_batch: volumes (3D) or slices (2D) in a batch, of all processes together.
        warmup: batches at the beginning that are not measured.
    """

    def __init__(self, items_per_batch: int, warmup: int) -> None:
        assert items_per_batch >= 1 and warmup >= 0
        self.items_per_batch, self.warmup = items_per_batch, warmup
        self._seconds: list[float] = []
        self._waited_s: list[float] = []

    def add(self, seconds: float, *, waited_s: float = 0.0) -> None:
        """Record one more batch, and for how many of its seconds the device waited for its data."""
        self._seconds.append(seconds)
        self._waited_s.append(waited_s)

    @property
    def latencies_s(self) -> tuple[float, ...]:
        """Seconds of each batch after the warm-up."""
        return tuple(self._seconds[self.warmup :])

    def summary(self) -> Throughput:
        """Speed of the measured batches.

        Throughput is all items divided by all seconds, not the mean of each batch's own rate, which fast
        batches would dominate.

        Raises:
            UserError: no batch remains after the warm-up.
        """
        import numpy as np

        latencies_ms = np.asarray(self.latencies_s) * 1000
        if latencies_ms.size == 0:
            raise UserError(
                f"nothing was measured: {len(self._seconds)} batches were run and the first {self.warmup} "
                "are warm-up. Lower --warmup or raise --train_batches / --test_batches."
            )
        p90, p95, p99 = np.percentile(latencies_ms, (90, 95, 99)).tolist()
        return Throughput(
            items_per_second=self.items_per_batch * latencies_ms.size / (float(latencies_ms.sum()) / 1000),
            latency_mean_ms=float(latencies_ms.mean()),
            latency_p90_ms=p90,
            latency_p95_ms=p95,
            latency_p99_ms=p99,
            data_wait_share=sum(self._waited_s[self.warmup :]) / sum(self.latencies_s),
            measured_batches=int(latencies_ms.size),
            warmup_batches=self.warmup,
        )


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far: tensors on the GPU, or this process's resident set on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return host_peak_memory_bytes()


def host_peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    # What getrusage says is never less than what the process that started this one had.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: torch.device | None = None) -> None:
    """Let the peaks begin anew with what is in use now; where a system cannot, the host's peak stays as it was."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Machine and versions of a run, JSON-ready; without a device torch stays unloaded and GPUs unnamed."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cpu_cores": num_cores(),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(Path(__file__).parents[1]),
    }
    if device is not None and device.type == "cuda":
        import torch

        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_count": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def num_cores() -> int:
    """CPU cores that this process may use (a container or a pinning may allow fewer than there are)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, cpu_quota() or allowed)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _versions() -> dict[str, str]:
    """Versions as installed, read without importing anything; DALI's name contains its CUDA version."""
    found = {}
    # Asked one by one: a list of all that is installed is read from hundreds of files.
    for name in sorted((*PACKAGES, *DALI_PACKAGES)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit(root: Path) -> str | None:
    """Commit of this source tree, with `-dirty` where files differ from it; None outside a git checkout."""
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
