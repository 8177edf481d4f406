"""Everything for which a training would refuse its flags, found before the first of many trainings begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from utils.args import Config
from utils.schema import Fold, Plan


def check_hardware(config: Config, *, on_gpu: bool) -> None:
    """Refuse flags that contradict each other on the device of each run.

    Raises:
        UserError: as main.py would say it.
    """
    from utils.runtime import Machine, choose_runtime, detect_machine

    hardware = dataclasses.replace(config.hardware, gpus=int(on_gpu))
    # A job may be written on a machine without a GPU for one that has it.
    there = detect_machine()
    machine = there if there.num_gpus or not on_gpu else Machine(num_gpus=1, capability=(8, 0), cpu_bf16=False)
    choose_runtime(hardware, machine)


def check_training(
    config: Config, plan: Plan, shards: Path, folds: Sequence[Fold], *, first_stage_follows: bool = False
) -> None:
    """Refuse flags that do not fit the data or the network, or a checkpoint to start from that does not.

    Args:
        config: of a training.
        plan: that the network is built from.
        shards: folder of the preprocessed data.
        folds: all of them.
        first_stage_follows: whether the network will see a first stage's mask too, whose data are yet to be made.

    Raises:
        UserError: as main.py would say it.
    """
    import torch

    from data_loading.data_module import ShardCases, batch_spec, find_shards
    from models.checkpoint import read_checkpoint, warm_start
    from models.unet import build_network
    from utils.runs import find_checkpoint

    batch_spec(plan, config.loader)
    cases = tuple(sorted({case for fold in folds for case in (*fold.train, *fold.val)}))
    single_slice = plan.stage.dim == 2 and config.loader.data2d_dim == 2
    find_shards(
        ShardCases(folder=shards, train=cases), channels=plan.image_channels, single_slice=single_slice,
        cascade=plan.previous_stage is not None,
    )  # fmt: skip
    # Without memory, unless weights are to be put into it.
    start = None if config.run.ckpt_path is None else read_checkpoint(find_checkpoint(config.run.ckpt_path))
    with torch.device("meta" if start is None else "cpu"):
        network = build_network(
            plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=config.model
        )
    if start is not None and not first_stage_follows:
        warm_start(network, start)
