"""Arithmetic: how much a computation does, and how much the machine can do at best.

A FLOP is one multiplication or one addition. Counted are convolutions and matrix products, forward and backward; what
passes over values once (normalisation, activation, loss, optimiser) costs memory traffic and is not counted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from utils.throughput import synchronize

TYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's name of a precision -> type of the operands that its products have."""
SMALLEST, LARGEST = 512, 8192
LEAST_S = 0.02
"""A product that takes less than this is tried at twice the size: small ones do not fill a large machine."""
RUNS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The best rate of a product of two square matrices of `size`, in FLOP/s."""

    flop_per_second: float
    size: int


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of the convolutions and matrix products in a call, the backward pass included where it makes one.

    Source: torch.utils.flop_counter, whose formulas depend on shapes alone; tensors on the meta device will do.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def measure_ceiling(device: torch.device, precision: str, *, size: int | None = None, runs: int = RUNS) -> Ceiling:
    """What the device reaches in a large product of matrices: warm, synchronised, the best of several.

    Args:
        device: where to compute.
        precision: Lightning's name; float32 on a GPU means what `torch.set_float32_matmul_precision` says.
        size: rows and columns; None doubles them until a product takes a while.
        runs: products that are timed, after one that is not.
    """
    dtype = TYPES[precision]
    size, fixed = size or SMALLEST, size is not None
    while True:
        left, right = (torch.randn((size, size), dtype=dtype, device=device) for _ in range(2))
        seconds = [_product_s(left, right) for _ in range(2 if not fixed else runs + 1)][1:]
        if fixed:
            return Ceiling(flop_per_second=2 * size**3 / min(seconds), size=size)
        fixed = min(seconds) >= LEAST_S or size >= LARGEST
        size = size if fixed else 2 * size


def flop_facts(flop_per_item: float, items_per_second: float, ceiling: Ceiling, *, devices: int = 1) -> dict[str, Any]:
    """Achieved FLOP/s of all devices and its share of what they could do, as a benchmark reports them."""
    achieved, most = flop_per_item * items_per_second, ceiling.flop_per_second * devices
    assert math.isfinite(achieved) and most > 0
    return {
        "flop_per_item": flop_per_item,
        "flop_per_second": achieved,
        "ceiling_flop_per_second": most,
        "ceiling_matrix_size": ceiling.size,
        "ceiling_share": achieved / most,
    }


def _product_s(left: torch.Tensor, right: torch.Tensor) -> float:
    synchronize(left.device)
    start_s = time.perf_counter()
    torch.mm(left, right)
    synchronize(left.device)
    return time.perf_counter() - start_s
