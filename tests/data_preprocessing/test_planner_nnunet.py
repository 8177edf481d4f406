"""Whole plans of different data sets, number by number those of nnU-Net v2's planners.

Expected values were computed by nnU-Net v2's own planners (2.8.1) from these very data sets; see
record_nnunet_plans.py. One rule differs on purpose: 2D batches are even, as the loader fills one from two volumes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.planner import PlanOptions, make_plan
from tests.data_preprocessing.nnunet_scans import PLANNERS, SCANS, Scans, describe_stage
from tests.data_preprocessing.planning.builders import STATISTICS, dataset
from utils.errors import UserError
from utils.schema import FORMAT_VERSION, Fingerprint, LabelScheme, Plan

PLANNED = json.loads(Path(__file__).with_name("nnunet_plans.json").read_text())["plans"]
CASES = [(name, planner, configuration) for name, plans in PLANNED.items()
         for planner in PLANNERS for configuration in plans[planner]]  # fmt: skip
NO_LOWRES = [(name, planner) for name, plans in PLANNED.items()
             for planner in PLANNERS if "3d_lowres" not in plans[planner]]  # fmt: skip
SCHEMES = {
    "ZScoreNormalization": ("zscore_crop", "zscore_mask"),
    "CTNormalization": ("ct", "ct"),
    "NoNormalization": ("none", "none"),
    "RescaleTo01Normalization": ("rescale_to_0_1", "rescale_to_0_1"),
    "RGBTo01Normalization": ("rgb_to_0_1", "rgb_to_0_1"),
}
"""Our schemes without and with nnU-Net's mask."""


def make_dataset(scans: Scans) -> Dataset:
    values = tuple(range(scans.num_classes))
    labels = LabelScheme(names=tuple(map(str, values)), values=values)
    return dataclasses.replace(dataset(), labels=labels, channels=scans.channels)


def plan_of(scans: Scans, planner: str, configuration: str, **options: object) -> Plan:
    numbers = Fingerprint(
        version=FORMAT_VERSION, cases=tuple(map(str, range(len(scans.spacings)))), spacings_mm=tuple(scans.spacings),
        shapes_after_crop=tuple(scans.shapes), foreground=(STATISTICS,) * len(scans.channels),
        median_relative_size=scans.relative_size,
    )  # fmt: skip
    options = PlanOptions(
        source="auto", planner=planner, gpu_memory_gb=scans.gpu_memory_gb, lowres=configuration == "3d_lowres",
        **options,
    )  # fmt: skip
    dim = 2 if configuration == "2d" else 3
    return make_plan(make_dataset(scans), numbers, dim=dim, mask_channel=False, options=options)


def describe(plan: Plan) -> str:
    stage = plan.stage
    return describe_stage(
        spacing_mm=stage.spacing_mm, patch=stage.patch_size, batch=stage.batch_size,
        # 2D stages leave it to --batch_dice auto.
        batch_dice=stage.batch_dice or stage.dim == 2,
        network=stage.block, strides=stage.strides, kernels=stage.kernels, filters=stage.filters,
        encoder=stage.level_convs, decoder=stage.step_convs[::-1],
    )  # fmt: skip


def with_even_batch(line: str) -> str:
    return re.sub(r"batch (\d+)", lambda found: f"batch {int(found[1]) // 2 * 2}", line)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "planner", "configuration"), CASES)
def test_plan_is_that_of_nnunet(name, planner, configuration):
    plan = plan_of(SCANS[name], planner, configuration)
    expected = PLANNED[name][planner][configuration]
    assert describe(plan) == (with_even_batch(expected) if configuration == "2d" else expected)
    assert list(plan.axes) == PLANNED[name]["scans"]["axes"]
    assert plan.stage.step_kernels == plan.stage.kernels[:-1]
    assert plan.planner == ("" if planner == "default" else planner)


@pytest.mark.parametrize(("name", "planner"), NO_LOWRES)
def test_low_resolution_stage_is_refused_where_nnunet_makes_none(name, planner):
    with pytest.raises(UserError, match="needs no low-resolution stage"):
        plan_of(SCANS[name], planner, "3d_lowres")


@pytest.mark.parametrize("name", SCANS)
def test_normalisation_is_that_of_nnunet(name):
    plan = plan_of(SCANS[name], "default", "2d", zscore="nnunet")
    expected = PLANNED[name]["scans"]
    schemes = [SCHEMES[scheme][mask] for scheme, mask in zip(expected["normalization"], expected["mask"])]
    assert [channel.scheme for channel in plan.channels] == schemes
