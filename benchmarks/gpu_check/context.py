"""What every check is given, and what all of them share: sizes, distances between tensors, clocks."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.gpu_check.findings import Numbers, Outcome
from utils.throughput import synchronize

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"NCDHW": torch.contiguous_format, "NDHWC": torch.channels_last_3d}
LEAST_SPEED = 0.95
"""Of what it should replace; what is slower than that is called slower."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the work is: as in a training on a large GPU, or so small that a CPU does all of it in a minute."""

    side: int
    """Of maps whose numbers are compared."""
    channels: int
    maps: tuple[tuple[int, int, int], ...]
    """(N, C, side) of the maps that are timed: those of the top, a middle and the last level of a U-Net."""
    patch: int
    """Side of the patch of training steps that are timed."""
    filters: tuple[int, ...]
    small_patch: int
    """Side of the patch of training steps whose numbers are compared: the CPU makes them, too."""
    small_filters: tuple[int, ...]
    repeats: int
    loads: int
    """Batches of a data pipeline that are timed."""
    backend: str
    """What torch.compile hands its graphs to."""
    says_speed: bool
    """Whether the work is so large that its speed says something."""


FULL = Sizes(
    side=24, channels=32, maps=((2, 32, 128), (2, 128, 32), (2, 320, 8)), patch=128,
    filters=(32, 64, 128, 256, 320, 320), small_patch=32, small_filters=(16, 32, 64), repeats=10, loads=12,
    backend="inductor", says_speed=True,
)  # fmt: skip
"""BraTS: 128 voxels a side, 32 to 320 features."""
TINY = Sizes(
    side=6, channels=4, maps=((2, 4, 8),), patch=8, filters=(4, 6, 8), small_patch=8, small_filters=(4, 6, 8),
    repeats=1, loads=2, backend="aot_eager", says_speed=False,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """Where and how large: the device that is checked against the CPU."""

    device: torch.device
    sizes: Sizes
    earlier: dict[str, Numbers] = dataclasses.field(default_factory=dict)
    """Numbers of the cases of this item that came before, by case; of those that ended without a verdict, none."""

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is checked; else the CPU is compared with itself, which only tries out the checks."""
        return self.device.type == "cuda"

    def need_gpu(self, reason: str) -> None:
        """End the case as skipped where there is no GPU."""
        if not self.on_gpu:
            raise Outcome("skipped", reason)

    def need_memory(self, num_bytes: float) -> None:
        """End the case as skipped where the GPU has less free memory."""
        free = torch.cuda.mem_get_info(self.device)[0]
        if free < num_bytes:
            raise Outcome("skipped", f"needs {num_bytes / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} GB are free")

    def time_ms(self, function: Callable[[], object]) -> float:
        """Median of the milliseconds that a call takes, after some that are not counted."""
        for _ in range(3 if self.on_gpu else 1):
            function()
        taken = []
        for _ in range(self.sizes.repeats):
            synchronize(self.device)
            start = time.perf_counter()
            function()
            synchronize(self.device)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken) * 1000


Check = Callable[[Context], tuple[str, Numbers]]
"""Returns text and numbers of a case that is ok; ends with `Outcome` where it is not, or with any exception."""
Checks = Iterator[tuple[str, Check]]


def distance(found: Tensor, right: Tensor) -> float:
    """Norm of the difference, as a share of the norm of what is right; NaN is no distance that is small."""
    found, right = found.detach().double().cpu(), right.detach().double().cpu()
    if found.shape != right.shape:
        raise Outcome("differs", f"its shape is {tuple(found.shape)}, not {tuple(right.shape)}")
    norm = right.norm().item()
    return ((found - right).norm() / (norm or 1.0)).item()


def judge(
    distances: Mapping[str, float], tolerance: float | Mapping[str, float], numbers: Numbers | None = None
) -> tuple[str, Numbers]:
    """Text and numbers of distances by name, if all of them are tolerated.

    Args:
        distances: by name.
        tolerance: the largest that is tolerated, for all or by name.
        numbers: further ones for the record.

    Raises:
        Outcome: one is larger, or is NaN.
    """
    allowed = {name: tolerance if isinstance(tolerance, float) else tolerance[name] for name in distances}
    shares = {name: distances[name] / allowed[name] for name in distances}
    # NaN is larger than everything here.
    worst = max(shares, key=lambda name: (math.isnan(shares[name]), shares[name]))
    numbers = {"distances": dict(distances), "tolerances": allowed} | (numbers or {})
    text = f"{worst} is {distances[worst]:.1e} off, {allowed[worst]:.0e} tolerated"
    if far := [name for name, share in shares.items() if not share <= 1]:
        raise Outcome("differs", f"{len(far)} of {len(distances)} numbers differ; worst: {text}", numbers)
    return f"at worst {text}", numbers


def compare_speed(
    context: Context, ours_ms: float, others_ms: float, text: str, numbers: Numbers
) -> tuple[str, Numbers]:
    """Text and numbers, if ours is not slower than what it should replace; small work is not judged.

    Raises:
        Outcome: it is slower.
    """
    ratio = others_ms / ours_ms
    numbers = numbers | {"times_as_fast": ratio}
    text = f"{text}: {ratio:.2f} times as fast"
    if context.sizes.says_speed and ratio < LEAST_SPEED:
        raise Outcome("slower", text, numbers)
    return text, numbers


def random_tensors(*shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Normal numbers on the CPU, the same on every machine; rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator).to(dtype) for shape in shapes]
