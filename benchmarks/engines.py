"""CPU seconds of a forward pass by torch, ONNX Runtime and OpenVINO, on networks of planned and of small sizes.

    python -m benchmarks.engines --threads 1 --rounds 5 --json result.json

Every round runs each of them once, so that a machine that is busy is busy for all; the least of the rounds counts. The
time is that of the process's threads, not of the clock.
"""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from inference.configuration import ConfigurationModel, FoldWeights, build_networks
from inference.engines.agreement import compare_logits
from inference.engines.conversion import random_windows
from inference.engines.engine import Engine
from models.acceleration import Acceleration, default_acceleration
from models.unet import PLAIN, build_network
from utils.args import parse
from utils.cache import VARIABLE
from utils.config import ModelConfig
from utils.errors import run_cli
from utils.files import write_json
from utils.schema import ChannelPlan, LabelScheme, Plan, StagePlan
from utils.throughput import environment

NetworkName = Literal["small", "planned", "brats"]
TORCH, FASTEST = "torch, plain", "torch, fastest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A network: features by level, the patch, and input channels (as many classes, or two at least)."""

    filters: tuple[int, ...]
    patch: tuple[int, int, int]
    channels: int = 1


SIZES: dict[NetworkName, Size] = {
    "small": Size(filters=(8, 16, 32, 64), patch=(40, 56, 40)),
    "planned": Size(filters=(32, 64, 128, 256, 320), patch=(64, 64, 64)),
    "brats": Size(filters=(32, 64, 128, 256, 320, 320), patch=(128, 128, 128), channels=4),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineBenchmark:
    """What is measured."""

    networks: tuple[NetworkName, ...] = ("small", "planned")
    """small: 8-16-32-64 features, 40x56x40; planned: 32 to 320, 64x64x64; brats: 4 channels, 128x128x128."""
    engines: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime", "openvino")
    """Beside torch."""
    threads: int = 1
    """Of each runtime."""
    rounds: int = 5
    """How often each one runs; the least counts."""
    bf16: bool = False
    """Also torch and OpenVINO in bf16, for CPUs that have it."""
    json: Path | None = None
    """Also write the numbers there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table; returns the exit status."""
    options = parse(EngineBenchmark, argv, prog="python -m benchmarks.engines", doc=__doc__)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="nnunet-engines-") as folder:
        # Networks of random weights are nothing to keep, unless a place for them is named.
        os.environ.setdefault(VARIABLE, folder)
        outcome = {name: _measure(SIZES[name], options) for name in options.networks}
    for name, rows in outcome.items():
        print(f"\n{name}: {SIZES[name]}, {options.threads} thread(s), least of {options.rounds}")
        fastest = rows[FASTEST]["cpu_s"]
        for runtime, row in rows.items():
            print(
                f"  {runtime:22} {row['cpu_s']:8.3f} CPU s  {fastest / row['cpu_s']:5.2f}x  "
                f"{row['differing']:.0f} of {row['voxels']:.0f} voxels differ, logits by {row['largest']:.1e}"
            )
    if options.json is not None:
        described = {**environment(torch.device("cpu")), "capability": torch.backends.cpu.get_cpu_capability()}
        write_json({"environment": described, "options": dataclasses.asdict(options), "outcome": outcome}, options.json)
    return 0


def _measure(size: Size, options: EngineBenchmark) -> dict[str, dict[str, float]]:
    """Runtime -> CPU seconds of one window, and how far it is from torch."""
    configuration = _configuration(size)
    runs = _runs(configuration, options)
    windows = random_windows(configuration.plan, 1, seed=2)
    seconds = dict.fromkeys(runs, math.inf)
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for number in range(options.rounds + 1):
            for name, run in runs.items():
                before = _cpu_s()
                logits = run(windows)
                # The first round warms up.
                if number:
                    seconds[name] = min(seconds[name], _cpu_s() - before)
                else:
                    found[name] = logits.float()
    rows = {}
    for name in runs:
        agreement = compare_logits(found[TORCH], found[name], configuration.plan.labels)
        numbers = {"differing": agreement.differing, "voxels": agreement.voxels, "largest": agreement.largest}
        rows[name] = {"cpu_s": seconds[name], **numbers}
    return rows


def _runs(configuration: ConfigurationModel, options: EngineBenchmark) -> dict[str, Callable[[Tensor], Tensor]]:
    cpu = torch.device("cpu")
    runs: dict[str, Callable[[Tensor], Tensor]] = {TORCH: _torch(configuration, PLAIN)}
    runs[FASTEST] = _torch(configuration, default_acceleration(cpu, None, norm="instance"))
    types: list[torch.dtype | None] = [None, *([torch.bfloat16] if options.bf16 else [])]
    if options.bf16:
        half = _torch(configuration, default_acceleration(cpu, torch.bfloat16, norm="instance"))
        runs["torch, bf16"] = torch.autocast("cpu", torch.bfloat16)(half)
    for name in options.engines:
        for amp in types if name == "openvino" else [None]:
            [network] = Engine(name=name, threads=options.threads, amp=amp).networks(configuration)
            runs[name if amp is None else f"{name}, bf16"] = network
    return runs


def _torch(configuration: ConfigurationModel, acceleration: Acceleration) -> nn.Module:
    [network] = build_networks(configuration, torch.device("cpu"), acceleration)
    return network


def _configuration(size: Size) -> ConfigurationModel:
    """A network of random weights, as a model's configuration."""
    dim, depth = len(size.patch), len(size.filters)
    stage = StagePlan(
        name="3d", patch_size=size.patch, spacing_mm=(1.0,) * dim, batch_size=2, filters=size.filters,
        strides=((1,) * dim, *[(2,) * dim] * (depth - 1)), kernels=((3,) * dim,) * depth,
    )  # fmt: skip
    classes = max(size.channels, 3)
    plan = Plan(
        version=1, task="00", dataset="noise", origin="auto", axes=(0, 1, 2), mask_channel=False, stage=stage,
        channels=tuple(ChannelPlan(name=f"noise {i}", scheme="zscore") for i in range(size.channels)), reasons={},
        labels=LabelScheme(names=tuple(f"class {k}" for k in range(classes)), values=tuple(range(classes))),
    )  # fmt: skip
    torch.manual_seed(0)
    model = ModelConfig()
    network = build_network(stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=model)
    fold = FoldWeights(name="network", fold=None, state_dict=dict(network.state_dict()))
    return ConfigurationModel(source=Path("noise"), plan=plan, model=model, folds=(fold,))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(run_cli(main))
