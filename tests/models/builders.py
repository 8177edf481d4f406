"""Small plans, label schemes and networks that the tests of this folder share."""

from __future__ import annotations

import dataclasses

import torch

from models.unet import DynamicUNet, build_network
from utils.config import ModelConfig
from utils.schema import ChannelPlan, LabelScheme, Plan, Region, StagePlan

TWO_CLASSES = LabelScheme(names=("background", "anterior", "posterior"), values=(0, 1, 2))
WITH_IGNORE = LabelScheme(names=("background", "a"), values=(0, 1), ignore_value=9)
# BraTS of the Decathlon: 1 edema, 2 non-enhancing, 3 enhancing.
BRATS = LabelScheme(
    names=("background", "edema", "non-enhancing", "enhancing"),
    values=(0, 1, 2, 3),
    regions=(
        Region(name="WT", classes=(1, 2, 3), write_class=1),
        Region(name="TC", classes=(2, 3), write_class=2),
        Region(name="ET", classes=(3,), write_class=3),
    ),
)


def make_stage(patch: tuple[int, ...] = (8, 8, 8), filters: tuple[int, ...] = (4, 6, 8)) -> StagePlan:
    """A stage whose levels after the first halve every axis."""
    dim, depth = len(patch), len(filters)
    return StagePlan(
        name=f"{dim}d", patch_size=patch, spacing_mm=(1.0,) * dim, batch_size=2, filters=filters,
        strides=((1,) * dim, *[(2,) * dim] * (depth - 1)), kernels=((3,) * dim,) * depth,
    )  # fmt: skip


def make_plan(stage: StagePlan | None = None, labels: LabelScheme = TWO_CLASSES, num_channels: int = 1) -> Plan:
    """A plan of z-scored channels."""
    return Plan(
        version=1, task="04", dataset="Task04_Test", origin="auto",
        channels=tuple(ChannelPlan(name=f"MRI {i}", scheme="zscore") for i in range(num_channels)),
        labels=labels, axes=(0, 1, 2), mask_channel=False, stage=stage or make_stage(), reasons={},
    )  # fmt: skip


def make_network(plan: Plan, model: ModelConfig | None = None, seed: int = 0) -> DynamicUNet:
    """The network of a plan with reproducible weights."""
    torch.manual_seed(seed)
    return build_network(
        plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=model or ModelConfig()
    )


def with_spacing(plan: Plan, spacing_mm: tuple[float, ...]) -> Plan:
    """The same plan on another grid."""
    return dataclasses.replace(plan, stage=dataclasses.replace(plan.stage, spacing_mm=spacing_mm))
