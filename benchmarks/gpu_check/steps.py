"""Training steps of the whole network in every combination of precision, layout, fused norm and torch.compile.

Numbers are held to the plain network in float32 on the CPU, from the same weights and the same batch. Time and memory
are those of the network and patch of BraTS.

Shapes: N batch, C channels, K classes, D H W space.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.computing import TrainingStep, autocast
from benchmarks.gpu_check.context import Checks, Context, Sizes, compare_speed, distance, judge, random_tensors
from benchmarks.gpu_check.findings import Numbers, Outcome
from data_preprocessing.dataset.synthetic import benchmark_plan
from models.acceleration import Acceleration
from models.inferer import InferenceSettings
from models.nn_unet import NNUnet
from utils.args import Config
from utils.config import CompileMode, ModelConfig
from utils.optim_config import OptimConfig
from utils.runtime import Runtime
from utils.schema import Plan, StagePlan
from utils.throughput import reset_peak_memory

LIGHTNING_NAMES: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
WAYS = {
    "NCDHW": Acceleration(),
    "NDHWC": Acceleration(channels_last=True),
    "NDHWC fused norm": Acceleration(channels_last=True, fused_norm=True),
}
BATCH_SIZE = 2
NUM_STEPS = 4
SCALE = 2.0**10
"""Gradients of fp16 are computed of a loss so many times as large, as a run does it."""
TOLERANCES = {"logits": 0.05, "gradient": 0.4, "loss": 0.01}
"""Largest distance of bf16 from float32 that rounding explains. The gradient of a deep network, through its norms, is
far off in each single value; what is wrong there is found by the items before this one."""
OF_BF16 = {"bf16": 1.0, "fp16": 0.2, "fp32": 0.2}
"""fp16 and TF32 round to an eighth of what bf16 does."""
OF_EXACT = 1e-3
"""fp32 on a CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combination:
    """One way to compute the same steps."""

    precision: str
    way: str
    compile_mode: CompileMode | None = None

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.precision} {self.way}" + (f" compile {self.compile_mode}" if self.compile_mode else "")

    @property
    def plain(self) -> str:
        """Name of the combination that this one should be faster than."""
        return Combination(precision=self.precision, way="NCDHW").name

    def acceleration(self, sizes: Sizes) -> Acceleration:
        """As a network is told."""
        return dataclasses.replace(WAYS[self.way], compile_mode=self.compile_mode, backend=sizes.backend)


CheckOf = Callable[[Combination, Context], tuple[str, Numbers]]


def combinations() -> list[Combination]:
    """All of them without CUDA graphs, what is fast to try and most used first."""
    precisions = ("bf16", "fp16", "fp32")
    plain = [Combination(precision=precision, way=way) for precision in precisions for way in WAYS]
    compiled = [
        Combination(precision=precision, way=way, compile_mode="default")
        for precision in precisions
        for way in reversed(WAYS)
    ]
    return plain + compiled


def number_checks(context: Context) -> Checks:
    """Logits, losses and gradients of all combinations."""
    for each in combinations():
        yield each.name, functools.partial(_where_it_runs, compare_numbers, each)


def speed_checks(context: Context) -> Checks:
    """Time and memory of all combinations."""
    for each in combinations():
        yield each.name, functools.partial(_where_it_runs, measure, each)


def graph_checks(context: Context) -> Checks:
    """Numbers, then time and memory, with CUDA graphs; without them first, to compare with."""
    plain = Combination(precision="bf16", way="NCDHW")
    yield plain.name, functools.partial(_on_gpu, "CUDA graphs need a GPU", measure, plain)
    modes: tuple[CompileMode, ...] = ("reduce-overhead", "max-autotune")
    for mode in modes:
        each = Combination(precision="bf16", way="NDHWC fused norm", compile_mode=mode)
        for name, check in (("numbers", compare_numbers), ("speed", measure)):
            yield f"{each.name}, {name}", functools.partial(_on_gpu, "CUDA graphs need a GPU", check, each)


def compare_numbers(each: Combination, context: Context) -> tuple[str, Numbers]:
    """Logits of a volume before any training, as a run begins, then a gradient, then the losses of some steps."""
    torch.compiler.reset()
    found = _run(_small_step(each, context.device, context.sizes), each)
    right = _right(context.sizes)
    distances = {name: distance(found[name], right[name]) for name in ("logits", "gradient")}
    pairs = zip(found["losses"], right["losses"])
    distances |= {f"loss of step {n}": abs(one - other) / abs(other) for n, (one, other) in enumerate(pairs, start=1)}
    rounding = OF_BF16[each.precision] if each.precision != "fp32" or context.on_gpu else OF_EXACT
    tolerances = {name: rounding * TOLERANCES[name.partition(" ")[0]] for name in distances}
    return judge(distances, tolerances, {"losses": found["losses"], "losses_of_cpu": right["losses"]})


def measure(each: Combination, context: Context) -> tuple[str, Numbers]:
    """Milliseconds of a step, and the most memory that tensors took in it."""
    torch.compiler.reset()
    plan = make_plan(context.sizes.patch, context.sizes.filters)
    step = make_step(each, plan, context.device, context.sizes)
    # Searching convolutions and compiling take memory of their own.
    for _ in range(2):
        step()
    reset_peak_memory(context.device)
    step_ms = context.time_ms(step)
    numbers: Numbers = {"step_ms": step_ms, "volumes_per_second": BATCH_SIZE / step_ms * 1e3}
    text = f"{step_ms:.1f} ms a step, {numbers['volumes_per_second']:.1f} volumes/s at batch {BATCH_SIZE}"
    if context.on_gpu:
        numbers["peak_memory_bytes"] = step.runtime.peak_memory_bytes()
        text += f", {numbers['peak_memory_bytes'] / 1e9:.1f} GB"
    plain = context.earlier.get(each.plain, {}).get("step_ms")
    return (text, numbers) if plain is None else compare_speed(context, step_ms, plain, text, numbers)


def make_plan(side: int, filters: tuple[int, ...], batch_size: int = BATCH_SIZE) -> Plan:
    """BraTS with another patch and fewer features."""
    levels = len(filters)
    stage = StagePlan(
        name="check", patch_size=(side,) * 3, spacing_mm=(1.0,) * 3, batch_size=batch_size, filters=filters,
        strides=((1,) * 3, *((2,) * 3,) * (levels - 1)), kernels=((3,) * 3,) * levels,
    )  # fmt: skip
    return dataclasses.replace(benchmark_plan("01", 3), stage=stage)


def make_step(each: Combination, plan: Plan, device: torch.device, sizes: Sizes) -> TrainingStep:
    """Training steps of the combination on one batch; weights and batch are the same wherever it is made."""
    torch.manual_seed(0)
    acceleration = each.acceleration(sizes)
    # Dice of each patch, so that a batch may be shared out over processes.
    config = Config(model=ModelConfig(deep_supervision=True, deep_supr_num=1), optim=OptimConfig(batch_dice="never"))
    module = NNUnet(
        plan=plan, model=config.model, optim=config.optim, acceleration=acceleration,
        inference=InferenceSettings(window_batch=2, fill_batches=acceleration.compiles),
    )  # fmt: skip
    runtime = Runtime(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, num_nodes=1, strategy="auto", backend=None,
        precision=LIGHTNING_NAMES[each.precision], use_gpu=device.type == "cuda", reason="",
    )  # fmt: skip
    step = TrainingStep(module.to(device).train(), config, runtime)
    step.batch = make_batch(plan, device)
    return step


def make_batch(plan: Plan, device: torch.device) -> dict[str, Tensor]:
    """Image of noise, and a label that can be seen in it."""
    patch, classes = plan.stage.patch_size, plan.labels.num_classes
    (image,) = random_tensors((plan.stage.batch_size, plan.in_channels, *patch))
    label = (image[:, :1] * 1.5 + 1).round().clamp(0, classes - 1).to(torch.uint8)
    return {"image": image.to(device), "label": label.to(device)}


@functools.cache
def _right(sizes: Sizes) -> dict[str, Any]:
    """What the plain network gives in float32 on the CPU."""
    plain = Combination(precision="fp32", way="NCDHW")
    return _run(_small_step(plain, torch.device("cpu"), sizes), plain)


def _small_step(each: Combination, device: torch.device, sizes: Sizes) -> TrainingStep:
    return make_step(each, make_plan(sizes.small_patch, sizes.small_filters), device, sizes)


def _run(step: TrainingStep, each: Combination) -> dict[str, Any]:
    module, side = step.module, step.module.plan.stage.patch_size[0]
    (volume,) = random_tensors((1, module.plan.in_channels, side, side + 3, side + side // 2), seed=2)
    with autocast(step.runtime):
        logits = module.eval().predict_logits(volume.to(module.device)).float().cpu()
    module.train()
    parameters = [each for each in module.network.parameters() if each.requires_grad]
    with autocast(step.runtime):
        loss = module.training_step(step.batch, 0)
    scale = SCALE if each.precision == "fp16" else 1.0
    gradients = torch.autograd.grad(loss * scale, parameters)
    gradient = torch.cat([(one.double() / scale).flatten().cpu() for one in gradients])
    losses = [float(step().detach()) for _ in range(NUM_STEPS)]
    return {"logits": logits, "gradient": gradient, "losses": losses}


def _where_it_runs(check: CheckOf, each: Combination, context: Context) -> tuple[str, Numbers]:
    if each.precision == "fp16":
        context.need_gpu("trainings in fp16 need a GPU")
    if each.compile_mode:
        context.need_gpu("it would take minutes on a CPU")
    if each.precision == "bf16" and context.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Outcome("skipped", "this GPU has no bf16 arithmetic")
    return check(each, context)


def _on_gpu(reason: str, check: CheckOf, each: Combination, context: Context) -> tuple[str, Numbers]:
    context.need_gpu(reason)
    return _where_it_runs(check, each, context)
