"""CPU seconds of a forward pass by torch, ONNX Runtime and OpenVINO, and whether their masks are the same.

    python -m benchmarks.engines --threads 2

Every round runs each of them once, in turn, so that a machine that is busy is busy for all; medians of the rounds
count. The time is that of the process's threads, not of the clock. Torch is measured in every way that this CPU offers:
fp32 with and without Winograd convolutions, and bf16 where it has that.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inference.configuration import ConfigurationModel, FoldWeights, build_networks
from inference.engines.agreement import compare_logits
from inference.engines.cache import plain_network
from inference.engines.conversion import random_windows, write_onnx
from inference.engines.engine import EXTRAS, PACKAGES, Engine
from models.acceleration import Acceleration, default_acceleration
from models.metrics import case_counts, discretise
from models.unet import build_network
from utils.args import parse
from utils.config import ModelConfig
from utils.errors import run_cli
from utils.extras import optional_import
from utils.files import write_json
from utils.runtime import detect_machine
from utils.schema import ChannelPlan, LabelScheme, Plan, StagePlan
from utils.scores import dice_from_counts, finite_mean
from utils.throughput import environment

NetworkName = Literal["small", "planned", "flat", "large"]
Runs = Mapping[str, Callable[[Tensor], Tensor]]
SAME_DICE = 1e-4
"""Masks whose mean Dice with those of plain fp32 is no further from 1 are the same."""
LEAST_ROUNDS = 2
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A network: features by level, the patch, and how many patches go through it together."""

    filters: tuple[int, ...]
    patch: tuple[int, ...]
    windows: int = 1
    goal: float
    """At least so many times fewer CPU seconds than torch would make OpenVINO worth choosing by itself."""


SIZES: dict[NetworkName, Size] = {
    "small": Size(filters=(8, 16, 32, 64), patch=(40, 56, 40), goal=4.0),
    "planned": Size(filters=(32, 64, 128, 256), patch=(40, 56, 40), goal=1.3),
    "flat": Size(filters=(32, 64, 128, 256, 512, 512, 512), patch=(320, 320), windows=4, goal=1.3),
    "large": Size(filters=(32, 64, 128, 256, 320, 320), patch=(128, 128, 128), goal=1.3),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineBenchmark:
    """What is measured."""

    networks: tuple[NetworkName, ...] = ("small", "planned", "flat", "large")
    """small: 8-16-32-64 features, 40x56x40; planned: 32-64-128-256, 40x56x40; flat: 32 to 512, four slices of
    320x320; large: 32 to 320, 128x128x128."""
    engines: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime", "openvino")
    """Beside torch."""
    threads: int = 1
    """Of each runtime."""
    rounds: int = 15
    """Most rounds; their median counts."""
    seconds: float = 45.0
    """For each network: no round begins later than that after the first one (but two there are)."""
    json: Path | None = None
    """File of the numbers (default: benchmarks/results/engines_<flags of this CPU>.json)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write the numbers; returns the exit status."""
    options = parse(EngineBenchmark, argv, prog="python -m benchmarks.engines", doc=__doc__)
    for engine in options.engines:
        for package in PACKAGES[engine]:
            optional_import(package, extra=EXTRAS[engine], purpose=f"--engines {engine}")
    torch.set_num_threads(options.threads)
    target = options.json or RESULTS / f"engines_{cpu_flags()}.json"
    outcome: dict[str, Any] = {}
    for name in options.networks:
        outcome[name] = _measure(SIZES[name], options)
        _show(name, outcome[name], options.threads)
        # After each network, so that an interrupted run has those before.
        described = {**environment(torch.device("cpu")), "flags": cpu_flags()}
        write_json({"environment": described, "options": dataclasses.asdict(options), "outcome": outcome}, target)
    print(f"\nwrote {target}")
    return 0


def cpu_flags() -> str:
    """What decides which instructions are used, as part of a file's name: avx2, avx512 or avx512_bf16."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"{capability}_bf16" if detect_machine().cpu_bf16 else capability


def _measure(size: Size, options: EngineBenchmark) -> dict[str, Any]:
    """Seconds and masks of each runtime, and what follows from them."""
    configuration = _configuration(size)
    with tempfile.TemporaryDirectory(prefix="nnunet-engines-") as folder, torch.inference_mode():
        windows = random_windows(configuration.plan, size.windows, seed=2)
        plain = plain_network(configuration, configuration.folds[0])
        expected = plain(windows)
        with torch.inference_mode(False):
            runs = _runs(configuration, options, Path(folder))
        # The first time warms up; its masks are looked at.
        rows = {name: _compare(expected, run(windows).float(), configuration.plan.labels) for name, run in runs.items()}
        seconds = _rounds(runs, windows, options)
    for name, row in rows.items():
        row |= {"cpu_s": statistics.median(seconds[name]), "rounds": seconds[name]}
    return {"size": dataclasses.asdict(size), "runtimes": rows, **_ratios(seconds, size.goal)}


def _rounds(runs: Runs, windows: Tensor, options: EngineBenchmark) -> dict[str, list[float]]:
    """CPU seconds of each, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for number in range(options.rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - begun > options.seconds:
            break
        for name, run in runs.items():
            before = _cpu_s()
            run(windows)
            seconds[name].append(_cpu_s() - before)
    return seconds


def _ratios(seconds: Mapping[str, Sequence[float]], goal: float) -> dict[str, Any]:
    """How many times fewer CPU seconds each engine takes than the fastest torch: medians of the rounds' ratios."""
    torchs = {name: statistics.median(each) for name, each in seconds.items() if name.startswith("torch")}
    fastest = min(torchs, key=torchs.__getitem__)
    fastest_fp32 = min((name for name in torchs if "bf16" not in name), key=torchs.__getitem__)

    def fewer(base: str, name: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[base], seconds[name]))

    engines = [name for name in seconds if name not in torchs]
    ratios = {name: {"than_fastest": fewer(fastest, name), "than_fp32": fewer(fastest_fp32, name)} for name in engines}
    return {"fastest_torch": fastest, "fastest_torch_fp32": fastest_fp32, "times_fewer": ratios, "goal": goal}


def _compare(expected: Tensor, found: Tensor, labels: LabelScheme) -> dict[str, Any]:
    """Dice of the masks with those of plain torch, and how far the logits are from its."""
    agreement = compare_logits(expected, found, labels)
    counts = case_counts(discretise(found, labels), discretise(expected, labels), labels)
    dice = float(finite_mean(dice_from_counts(counts.numpy())))
    return {
        "dice": dice, "same_dice": abs(1 - dice) <= SAME_DICE, "differing": agreement.differing,
        "voxels": agreement.voxels, "largest": agreement.largest,
    }  # fmt: skip


def _show(name: NetworkName, found: Mapping[str, Any], threads: int) -> None:
    size, rounds = SIZES[name], 0
    for runtime, row in found["runtimes"].items():
        rounds = len(row["rounds"])
        ratio = found["times_fewer"].get(runtime)
        fewer = "" if ratio is None else f"{ratio['than_fastest']:5.2f}x, {ratio['than_fp32']:5.2f}x than fp32"
        same = "same" if row["same_dice"] else "OTHER"
        print(f"  {runtime:22} {row['cpu_s']:8.3f} CPU s  {same} masks, 1 - Dice {1 - row['dice']:.1e}  {fewer}")
    shape = "x".join(map(str, size.patch))
    print(
        f"{name}: {size.windows} of {shape}, features {'-'.join(map(str, size.filters))}; {threads} thread(s), median "
        f"of {rounds} rounds; fewer than {found['fastest_torch']}; the goal is {size.goal:g}x\n",
        flush=True,
    )


def _runs(configuration: ConfigurationModel, options: EngineBenchmark, folder: Path) -> Runs:
    """What computes windows, in every way that this CPU has."""
    cpu, is_3d = torch.device("cpu"), configuration.plan.stage.dim == 3
    fp32 = default_acceleration(cpu, None, norm="instance")
    has_bf16 = detect_machine().cpu_bf16
    runs: dict[str, Callable[[Tensor], Tensor]] = {}
    for winograd in (True, False) if is_3d else (False,):
        name = "torch fp32" + (", Winograd" if winograd else "")
        runs[name] = _torch(configuration, dataclasses.replace(fp32, winograd=winograd))
    if has_bf16:
        half = _torch(configuration, default_acceleration(cpu, torch.bfloat16, norm="instance"))
        runs["torch bf16"] = torch.autocast("cpu", torch.bfloat16)(half)
    path = folder / "network.onnx"
    if options.engines:
        write_onnx(path, plain_network(configuration, configuration.folds[0]), configuration.plan)
    for name in options.engines:
        runs[f"{name} fp32"] = Engine(name=name, threads=options.threads).run(path)
        if has_bf16 and name == "openvino":
            runs[f"{name} bf16"] = Engine(name=name, threads=options.threads, amp=torch.bfloat16).run(path)
    return runs


def _torch(configuration: ConfigurationModel, acceleration: Acceleration) -> nn.Module:
    [network] = build_networks(configuration, torch.device("cpu"), acceleration)
    return network


def _configuration(size: Size) -> ConfigurationModel:
    """A network of random weights, as a model's configuration."""
    dim, depth = len(size.patch), len(size.filters)
    stage = StagePlan(
        name=f"{dim}d", patch_size=size.patch, spacing_mm=(1.0,) * dim, batch_size=2, filters=size.filters,
        strides=((1,) * dim, *[(2,) * dim] * (depth - 1)), kernels=((3,) * dim,) * depth,
    )  # fmt: skip
    plan = Plan(
        version=1, task="00", dataset="noise", origin="auto", axes=(0, 1, 2), mask_channel=False, stage=stage,
        channels=(ChannelPlan(name="noise", scheme="zscore"),), reasons={},
        labels=LabelScheme(names=("background", "one", "two"), values=(0, 1, 2)),
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
