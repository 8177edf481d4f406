"""Cases in memory and their plans, and what is done to them, written down once more in a simple way."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_preprocessing.preprocessor import CaseInput
from utils.nifti import Volume
from utils.schema import FORMAT_VERSION, ChannelPlan, Geometry, LabelScheme, Plan, StagePlan

LABELS = LabelScheme(names=("background", "a", "b"), values=(0, 1, 2))
CT = ChannelPlan(name="CT", scheme="ct", lower=-100, upper=200, mean=50, std=25)


def make_plan(*, patch=(4, 4, 4), spacing=(1.0, 1.0, 1.0), channels=("zscore",), **changes) -> Plan:
    dim = len(patch)
    stage = StagePlan(
        name="full", patch_size=patch, spacing_mm=spacing, batch_size=2, strides=((1,) * dim, (2,) * dim),
        kernels=((3,) * dim,) * 2, filters=(4, 8),
    )  # fmt: skip
    channels = tuple(CT if c == "ct" else ChannelPlan(name=f"m{i}", scheme=c) for i, c in enumerate(channels))
    plan = Plan(
        version=FORMAT_VERSION, task="99", dataset="Task99_Test", origin="auto", channels=channels, labels=LABELS,
        axes=(0, 1, 2), mask_channel=False, stage=stage, reasons={}, normalize_first=True,
    )  # fmt: skip
    return dataclasses.replace(plan, **changes)


def make_volume(array, spacing=(1.0, 1.0, 1.0)) -> Volume:
    s, a, r = array.shape[-3:]
    affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0])
    geometry = Geometry(
        shape_xyz=(r, a, s), affine=tuple(map(tuple, affine.tolist())), qform_code=1, sform_code=1, xyzt_units=2
    )
    return Volume(array=array, spacing_mm=spacing, geometry=geometry)


def make_case(image, label=None, spacing=(1.0, 1.0, 1.0)) -> CaseInput:
    return CaseInput(
        case="case", image=make_volume(image, spacing), label=None if label is None else make_volume(label, spacing),
        image_path="/data/case.nii.gz", label_path=None if label is None else "/data/label.nii.gz",
        source_stamp="s", plan_stamp="p",
    )  # fmt: skip


def random_image(shape, seed=0):
    return np.random.default_rng(seed).uniform(1, 9, shape).astype(np.float32)


def stripped(shape, seed=0, centre=0.4):
    """A scan (D, H, W) that is 0 outside an ellipsoid, also at its corners."""
    grid = np.indices(shape)
    inside = sum(((g + 0.5 - n / 2) / (n * centre)) ** 2 for g, n in zip(grid, shape)) < 1
    values = np.random.default_rng(seed).normal(300, 40, shape) + 20 * grid[0]
    # One voxel at each face keeps the crop from cutting the background away.
    inside[0, 0, 0] = inside[-1, -1, -1] = True
    return np.where(inside, values, 0).astype(np.float32)


def zscore(volume):
    """The formula, in double precision."""
    values = volume[volume != 0].astype(np.float64)
    return np.where(volume != 0, (volume - values.mean()) / values.std(), 0)


def nearest(volume, shape):
    """By nearest neighbour: the voxel that contains the centre of the new one."""
    return volume[np.ix_(*(((2 * np.arange(m) + 1) * n) // (2 * m) for n, m in zip(volume.shape, shape)))]
