"""Network, loss and optimiser alone: one batch lies on the device, no loader and no Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_preprocessing.planning.adapt import adapt_plan
from models.flop_count import network_flops
from models.nn_unet import NNUnet
from models.schedules import build_optimizer
from training.building import build_module
from training.run_setup import Setup, prepare
from utils.args import Config
from utils.files import to_dict
from utils.flops import TYPES, flop_facts, measure_ceiling
from utils.runs import ShardFolder
from utils.runtime import Runtime, configure_backends, resolve_hardware, seed_everything
from utils.schema import Fold, Plan
from utils.throughput import LatencyRecorder, reset_peak_memory, synchronize


class TrainingStep:
    """Forward, loss, backward and optimiser step on one batch of noise that lies on the device.

    Mixed precision, loss scaling and clipping are as Lightning does them.
    """

    def __init__(self, module: NNUnet, config: Config, runtime: Runtime) -> None:
        self.module, self.runtime, self.clip = module, runtime, config.optim.gradient_clip_val
        plan, size = module.plan, module.plan.stage.batch_size
        device, patch = runtime.device, plan.stage.patch_size
        self.batch = {
            "image": torch.randn(size, plan.in_channels, *patch, device=device),
            "label": torch.randint(plan.labels.num_classes, (size, 1, *patch), dtype=torch.uint8, device=device),
        }
        half = runtime.precision == "16-mixed"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        fused = self.clip == 0 or not half
        self.optimizer = build_optimizer(module.network.parameters(), config.optim, fused=fused)

    def __call__(self) -> Tensor:
        """One step; returns the loss."""
        self.optimizer.zero_grad()
        with autocast(self.runtime):
            loss = self.module.training_step(self.batch, 0)
        self.scaler.scale(loss).backward()
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.module.network.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def forward(self) -> Any:
        """Logits of the batch, without a gradient."""
        with torch.inference_mode(), autocast(self.runtime):
            return self.module.predict_step({"image": self.batch["image"]}, 0)


def measure_computing(config: Config, plan: Plan | None) -> tuple[dict[str, Any], Runtime]:
    """Speed, FLOP/s and memory of training steps, and then of forward passes (`forward`).

    Args:
        config: flags of main.py.
        plan: what to build the network of; None takes the plan of the shards.

    Raises:
        UserError: as `training.run_setup.prepare`, or no batch remains after the warm-up.
    """
    setup = prepare(config) if plan is None else _resident_setup(config, plan)
    runtime, stage = setup.runtime, setup.plan.stage
    module = build_module(config, setup).to(runtime.device)
    step = TrainingStep(module.train(), config, runtime)
    reset_peak_memory(runtime.device)
    training = _time(step, config, stage.batch_size, runtime)
    peak_bytes = runtime.peak_memory_bytes()
    step.optimizer.zero_grad()
    module.eval()
    forward = _time(step.forward, config, stage.batch_size, runtime)
    ceiling = measure_ceiling(runtime.device, runtime.precision)

    def facts(recorder: LatencyRecorder, training: bool) -> dict[str, Any]:
        speed = recorder.summary()
        flops = network_flops(setup.plan, config.model, batch_size=1, training=training)
        return to_dict(speed) | flop_facts(flops, speed.items_per_second, ceiling)

    outcome: dict[str, Any] = {"unit": "volumes/s" if stage.dim == 3 else "slices/s", "batch_size": stage.batch_size}
    outcome |= {"patch_size": list(stage.patch_size), "channels": setup.plan.in_channels}
    outcome |= {"filters": list(stage.filters), "outputs": setup.plan.labels.num_outputs}
    outcome |= facts(training, True) | {"peak_memory_bytes": peak_bytes}
    return outcome | {"forward": facts(forward, False)}, runtime


def autocast(runtime: Runtime) -> AbstractContextManager:
    """The mixed precision of a run."""
    dtype = TYPES[runtime.precision]
    return torch.autocast(runtime.device.type, dtype=dtype, enabled=dtype is not torch.float32)


def _resident_setup(config: Config, plan: Plan) -> Setup:
    runtime = resolve_hardware(config.hardware)
    configure_backends(runtime)
    seed_everything(config.run.seed)
    runtime.pin(config.hardware.affinity)
    adapted = adapt_plan(plan, config.model, batch_size=config.loader.batch_size, brats=config.labels.brats)
    # No case is read.
    shards, fold = ShardFolder(root=Path(), cases=Path()), Fold(train=(), val=())
    return Setup(shards=shards, plan=adapted, fold=fold, cases=(), runtime=runtime)


def _time(function: Callable[[], Any], config: Config, batch_size: int, runtime: Runtime) -> LatencyRecorder:
    recorder = LatencyRecorder(items_per_batch=batch_size, warmup=config.run.warmup)
    for _ in range(config.run.train_batches):
        synchronize(runtime.device)
        start_s = time.perf_counter()
        function()
        synchronize(runtime.device)
        recorder.add(time.perf_counter() - start_s)
    return recorder
