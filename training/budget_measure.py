"""What a step, its loading and a validation take here: measured on the real network, cases and device, in seconds."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Sequence

import torch

from data_loading.data_module import DataModule
from data_loading.validation_loader import ValidationLoader
from models.blocks import NUM_GROUPS
from models.launcher import share_threads
from models.nn_unet import NNUnet
from models.schedules import build_optimizer
from models.trainer import cluster_environment
from training.budget_rules import Facts, Speed, widths_of
from training.building import build_data, build_module
from training.run_setup import Setup, with_network
from utils.args import Config, with_options
from utils.runtime import Runtime
from utils.throughput import synchronize
from utils.validation_schedule import FORWARD_SHARE, count_windows

MEASURED_SHARE = 0.01
"""Of the budget, that each measurement may take beyond what it needs at least."""
MOST_STEPS = 30
TOO_LONG = 10
"""Times as long as it may take: then two steps have to do."""
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def look_at(config: Config, setup: Setup, budget_s: float) -> Facts:
    """What the data set, the plan and the flags say; nothing is measured."""
    stage = setup.plan.stage
    # Weights fit one width alone.
    given = config.model.filters is not None or config.run.ckpt_path is not None
    data = build_data(config, setup)
    box, loader = data.spec.box, data.train_dataloader()
    shares = [min(math.prod(box) / math.prod(shard.shape), 1.0) for shard in loader.shards]
    data.teardown("fit")
    return Facts(
        budget_s=budget_s,
        dim=stage.dim,
        optimizer=config.optim.optimizer,
        widths=(tuple(stage.filters),) if given else _widths(stage.filters, config.model.norm),
        batch_size=stage.batch_size,
        batch_fixed=config.loader.batch_size is not None,
        nvol=config.loader.nvol if stage.dim == 2 and config.loader.data2d_dim == 3 else 0,
        cases=len(setup.fold.train),
        processes=setup.runtime.world_size,
        patch_share=statistics.mean(shares),
        levels=len(stage.strides),
    )


def _widths(planned: Sequence[int], norm: str) -> tuple[tuple[int, ...], ...]:
    """Those that a network can have with its layers of normalisation; the planned one in any case."""
    parts = NUM_GROUPS if norm == "group" else 1
    first, *others = widths_of(planned)
    return (first, *(width for width in others if all(features % parts == 0 for features in width)))


def measure_speed(config: Config, setup: Setup, size: tuple[tuple[int, ...], int], budget_s: float) -> Speed:
    """The speed of a network; nothing of it is kept.

    Args:
        config: of the run.
        setup: of the run, whatever its network.
        size: features of the levels, and patches in a batch.
        budget_s: of the run, of which this takes a share.
    """
    # Few cases make short epochs, and the first step of each waits for its loader.
    chosen = {"filters": size[0], "batch_size": size[1], "batches_per_epoch": MOST_STEPS}
    config = with_options(config, chosen)
    setup = with_network(setup, config)
    runtime = setup.runtime
    # A launcher gives each process its own part, and so do the pins of GPUs.
    if runtime.devices > 1 and not (runtime.use_gpu or cluster_environment().creates_processes_externally):
        share_threads(runtime.devices)
    data, module = build_data(config, setup), build_module(config, setup).to(setup.runtime.device)
    limit_s = MEASURED_SHARE * budget_s
    try:
        step_s = _step_seconds(data, module, setup.runtime, limit_s)
    finally:
        data.teardown("fit")
    return _with_validation(step_s, data, module, setup, limit_s)


def autocast(runtime: Runtime) -> contextlib.AbstractContextManager:
    """The precision of the run."""
    dtype = AUTOCAST.get(runtime.precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(runtime.device.type, dtype=dtype)


def _step_seconds(data: DataModule, module: NNUnet, runtime: Runtime, limit_s: float) -> float:
    optimizer = build_optimizer(module.network.parameters(), module.optim, fused=runtime.precision != "16-mixed")
    module.train()
    seconds: list[float] = []
    batches = iter(data.train_dataloader())
    first_s = mark_s = time.perf_counter()
    for batch in batches:
        batch = {name: tensor.to(runtime.device) for name, tensor in batch.items()}
        with autocast(runtime):
            loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(runtime.device)
        now_s = time.perf_counter()
        seconds.append(now_s - mark_s)
        mark_s = now_s
        used_s, made = now_s - first_s, len(seconds)
        # The first one prepares kernels and memory, and compiles: it says nothing of the others.
        if made >= MOST_STEPS or (made >= 3 and used_s > limit_s) or (made == 2 and used_s > TOO_LONG * limit_s):
            break
    return statistics.median(seconds[1:] or seconds)


def _with_validation(step_s: float, data: DataModule, module: NNUnet, setup: Setup, limit_s: float) -> Speed:
    """Validation by its first cases, or by the number of its windows where a single case takes too long to try."""
    patch, overlap, size = data.spec.patch, module.inference.overlap, data.spec.batch_size
    loader = data.val_dataloader()
    windows = [count_windows([shard.shape], patch, overlap) for shard in loader.volumes.shards]
    share = 1 / setup.runtime.world_size
    forward_s = step_s / (FORWARD_SHARE * size)
    window_s = forward_s
    if windows[0] * forward_s <= limit_s:
        window_s = _case_seconds(loader, module, setup.runtime, limit_s) / windows[0]
    return Speed(
        step_s=step_s,
        validation_s=sum(windows) * window_s * share,
        patches_s=len(windows) * forward_s * share,
    )


def _case_seconds(loader: ValidationLoader, module: NNUnet, runtime: Runtime, limit_s: float) -> float:
    """Seconds of the first validation case, with kernels and memory at hand where the time allows a second look."""
    module.eval()
    module.on_validation_epoch_start()
    seconds: list[float] = []
    batch = next(iter(loader))
    while not seconds or (len(seconds) < 3 and sum(seconds) <= limit_s):
        start_s = time.perf_counter()
        with torch.no_grad(), autocast(runtime):
            module.validation_step(batch, 0)
        synchronize(runtime.device)
        seconds.append(time.perf_counter() - start_s)
    return min(seconds)
