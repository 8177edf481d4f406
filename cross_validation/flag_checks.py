"""Everything for which a training would refuse its flags, found before the first of many trainings begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from cross_validation.fold_run import RunFlags
from data_preprocessing.planning.adapt import adapt_plan
from data_preprocessing.planning.plan_file import read_plan
from utils.args import Config
from utils.errors import list_problems
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


def check_filters(configurations: Mapping[str, tuple[Path, RunFlags]]) -> None:
    """Refuse `--filters` that do not fit all configurations, whose networks may have different numbers of levels.

    Args:
        configurations: preprocessed data and flags of each.

    Raises:
        UserError: there are too few for some; it says how many levels each configuration has.
    """
    given = next((flags.train.model.filters for _, flags in configurations.values()), None)
    if given is None:
        return
    levels = {name: _num_levels(shards, flags) for name, (shards, flags) in configurations.items()}
    few = [name for name, number in levels.items() if number > len(given)]
    if few and len(levels) > 1:
        raise list_problems(
            f"--filters has {len(given)} numbers, too few for {', '.join(few)}:",
            [f"{name} has {number} levels" for name, number in levels.items()],
            advice=f"Give {max(levels.values())} numbers (a network with fewer levels takes the first ones), or a "
            "smaller --depth, or train the configurations by commands of their own.",
        )  # fmt: skip


def _num_levels(shards: Path, flags: RunFlags) -> int:
    network = dataclasses.replace(flags.train.model, filters=None)
    plan = adapt_plan(read_plan(shards), network, batch_size=None, brats=False)
    return len(plan.stage.strides)


def has_no_first_stage(full: Path) -> bool:
    """Whether the plan of full resolution says that its data set needs no low-resolution stage.

    Plans by nnU-Net's rules take the Dice over a batch where there is one, and only there.
    """
    if not (full / "plan.json").is_file():
        return False
    plan = read_plan(full)
    return plan.origin == "auto" and not plan.stage.batch_dice


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
    from inference.start import read_start
    from models.checkpoint import warm_start
    from models.unet import build_network

    batch_spec(plan, config.loader)
    cases = tuple(sorted({case for fold in folds for case in (*fold.train, *fold.val)}))
    single_slice = plan.stage.dim == 2 and config.loader.data2d_dim == 2
    find_shards(
        ShardCases(folder=shards, train=cases), channels=plan.image_channels, single_slice=single_slice,
        cascade=plan.previous_stage is not None,
    )  # fmt: skip
    # Without memory, unless weights are to be put into it.
    start = None if config.run.ckpt_path is None else read_start(config.run.ckpt_path, plan)[0]
    with torch.device("meta" if start is None else "cpu"):
        network = build_network(
            plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=config.model
        )
    if start is not None and not first_stage_follows:
        warm_start(network, start)
