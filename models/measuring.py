"""What a benchmark of main.py reports: speed, memory, and what the machine could do at best."""

from __future__ import annotations

from typing import Any

from models.flop_count import network_flops
from utils.args import Config
from utils.files import to_dict
from utils.flops import flop_facts, measure_ceiling
from utils.runtime import Runtime
from utils.schema import Plan
from utils.throughput import Throughput


def measured(
    config: Config, plan: Plan, runtime: Runtime, speed: Throughput, *, batch_size: int
) -> dict[str, Any]:  # fmt: skip
    """The outcome of a benchmark, JSON-ready.

    Args:
        config: what was measured.
        plan: of the network.
        runtime: on which hardware.
        speed: latencies and throughput.
        batch_size: patches that go through the network together in each process.
    """
    stage, mode = plan.stage, config.run.exec_mode
    outcome: dict[str, Any] = {"mode": mode, "unit": "volumes/s" if stage.dim == 3 else "slices/s"}
    outcome |= {"batch_size": batch_size, "processes": runtime.world_size, "patch_size": list(stage.patch_size)}
    outcome |= to_dict(speed) | {"peak_memory_bytes": runtime.peak_memory_bytes()}
    flops = network_flops(plan, config.model, batch_size=1, training=mode == "train")
    ceiling = measure_ceiling(runtime.device, runtime.precision)
    return outcome | flop_facts(flops, speed.items_per_second, ceiling, devices=runtime.world_size)
