"""From a data set's fingerprint to its `Plan`: axes, spacing, normalisation, patch, network and batch.

The ten tasks of the Medical Segmentation Decathlon keep the numbers of the NVIDIA reference (`preset`). Every
other data set is planned from its fingerprint (`auto`): spacing as nnU-Net v2 has it, patch by a simple rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_preprocessing.configs import MSD_TASKS, MsdTask
from data_preprocessing.dataset import Dataset
from data_preprocessing.topology import (
    DEFAULT_DEPTH,
    DEFAULT_MIN_FMAP,
    SAME_SCALE_RATIO,
    divisible_patch,
    plan_topology,
)
from utils.errors import UserError
from utils.schema import FORMAT_VERSION, ChannelPlan, Fingerprint, Plan, StagePlan

BATCH_SIZE = {2: 16, 3: 2}
MAX_PATCH_VOXELS = {2: 512**2, 3: 128**3}
MIN_PATCH_AXIS = 2 * DEFAULT_MIN_FMAP
"""Shortest axis that can be halved once."""
ANISOTROPY_RATIO = 3.0
"""nnU-Net v2: an anisotropic axis is coarser, and shorter in voxels, than the others by this factor."""
NETWORK_REASONS = {
    "batch_size": "2 in 3D and 16 in 2D, as the reference trains; --batch_size of main.py changes it",
    "strides": f"each axis of the finest scale is halved while it keeps {DEFAULT_MIN_FMAP} voxels, "
    f"at most {DEFAULT_DEPTH} times",
    "kernels": f"convolve only across axes at most {SAME_SCALE_RATIO:g} times as coarse as the finest",
    "filters": "32, doubled from level to level, at most 320 in 3D and 512 in 2D",
}

Axes = tuple[int, int, int]


def make_plan(dataset: Dataset, fingerprint: Fingerprint, *, dim: int, mask_channel: bool) -> Plan:
    """Plan a data set for a 2D or 3D U-Net.

    The patch is divisible by the strides of the network, and D (the first working axis) is the coarse axis of
    anisotropic data.

    Args:
        dataset: channels, labels and name.
        fingerprint: of its training cases.
        dim: 2 or 3.
        mask_channel: append a channel that marks the non-zero voxels.

    Raises:
        UserError: a CT channel without intensity statistics (no labels), or with constant ones.
    """
    preset = _preset(dataset)
    axes, axes_reason = _choose_axes(fingerprint)
    if preset is None:
        stage, stage_reasons = _planned_stage(fingerprint, axes[3 - dim :])
    else:
        stage, stage_reasons = _preset_stage(preset, dim)
    channels, channel_reasons = _channel_plans(dataset.channels, fingerprint, preset)
    return Plan(
        version=FORMAT_VERSION,
        task=dataset.task,
        dataset=dataset.name,
        origin="auto" if preset is None else "preset",
        channels=channels,
        labels=dataset.labels,
        axes=axes,
        mask_channel=mask_channel,
        stage=stage,
        reasons={"axes": axes_reason, **stage_reasons, **NETWORK_REASONS, **channel_reasons},
    )


def plan_table(plan: Plan) -> str:
    """The plan as a plain-text table for people."""
    stage = plan.stage
    rows = [
        ("data set", f"{plan.dataset} (task {plan.task}), planned as {plan.origin}", ""),
        ("axes", " ".join("SAR"[axis] for axis in plan.axes), plan.reasons["axes"]),
        ("spacing", f"{_numbers(stage.spacing_mm)} mm", plan.reasons["spacing_mm"]),
        ("patch", _numbers(stage.patch_size), plan.reasons["patch_size"]),
        ("batch", str(stage.batch_size), plan.reasons["batch_size"]),
        ("strides", ", ".join(_numbers(s) for s in stage.strides), plan.reasons["strides"]),
        ("kernels", ", ".join(_numbers(k) for k in stage.kernels), plan.reasons["kernels"]),
        ("features", " ".join(map(str, stage.filters)), plan.reasons["filters"]),
        *(
            (f"channel {index}", _describe_channel(channel), plan.reasons[f"channel_{index}"])
            for index, channel in enumerate(plan.channels)
        ),
        ("labels", ", ".join(f"{v} {n}" for n, v in zip(plan.labels.names, plan.labels.values)), ""),
    ]
    if plan.mask_channel:
        rows.append((f"channel {len(plan.channels)}", "mask of the non-zero voxels", "--ohe"))
    if plan.labels.regions:
        rows.append(("regions", ", ".join(region.name for region in plan.labels.regions), ""))
    return "\n".join(f"{name:<10}{value}{f'  ({reason})' if reason else ''}" for name, value, reason in rows)


def _preset(dataset: Dataset) -> MsdTask | None:
    """The reference's numbers, for the data set they were made for: number and folder must both agree."""
    preset = MSD_TASKS.get(dataset.task)
    return preset if preset is not None and preset.folder == dataset.name else None


def _preset_stage(preset: MsdTask, dim: int) -> tuple[StagePlan, dict[str, str]]:
    spacing_mm = preset.spacing_mm_3d if dim == 3 else preset.spacing_mm_2d
    patch_size = preset.patch_size_3d if dim == 3 else preset.patch_size_2d
    reason = f"as the NVIDIA reference has it for {preset.folder}"
    return _stage(patch_size, spacing_mm), {"spacing_mm": reason, "patch_size": reason}


def _planned_stage(fingerprint: Fingerprint, axes: Sequence[int]) -> tuple[StagePlan, dict[str, str]]:
    """Stage whose patch lies along the given S, A, R axes."""
    spacing_sar, spacing_reason = _target_spacing(fingerprint)
    spacing_mm = tuple(spacing_sar[axis] for axis in axes)
    patch_size, patch_reason = _choose_patch(_median_shape(fingerprint, spacing_mm, axes), spacing_mm)
    return _stage(patch_size, spacing_mm), {"spacing_mm": spacing_reason, "patch_size": patch_reason}


def _stage(patch_size: tuple[int, ...], spacing_mm: tuple[float, ...]) -> StagePlan:
    topology = plan_topology(patch_size, spacing_mm, max_depth=DEFAULT_DEPTH, min_fmap=DEFAULT_MIN_FMAP)
    dim = len(patch_size)
    return StagePlan(
        name=f"{dim}d",
        patch_size=patch_size,
        spacing_mm=spacing_mm,
        batch_size=BATCH_SIZE[dim],
        strides=topology.strides,
        kernels=topology.kernels,
        filters=topology.filters,
    )


def _choose_axes(fingerprint: Fingerprint) -> tuple[Axes, str]:
    """Bring the coarse axis to the front (D): patches, kernels and slices all take D to be the coarse one."""
    median_mm = np.median(np.array(fingerprint.spacings_mm), axis=0)
    coarse = int(np.argmax(median_mm))
    others = tuple(axis for axis in range(3) if axis != coarse)
    ratio = median_mm[coarse] / max(median_mm[axis] for axis in others)
    if ratio > SAME_SCALE_RATIO:
        return (
            coarse,
            *others,
        ), f"{'SAR'[coarse]} is {ratio:.1f} times as coarse as the others, so it comes first"
    return (0, 1, 2), f"no axis is more than {SAME_SCALE_RATIO:g} times as coarse as the others: axial slices"


def _target_spacing(fingerprint: Fingerprint) -> tuple[tuple[float, ...], str]:
    """Spacing (S, A, R) in mm to resample to.

    Source: nnU-Net v2, experiment planner: the median, and along the coarse axis of anisotropic data the 10th
    percentile, but not finer than the other axes.
    """
    spacings = np.array(fingerprint.spacings_mm)
    target = np.median(spacings, axis=0)
    median_shape = np.median(np.array(fingerprint.shapes_after_crop), axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    largest_other = max(target[others])
    is_coarse = target[coarse] > ANISOTROPY_RATIO * largest_other
    if not (is_coarse and median_shape[coarse] * ANISOTROPY_RATIO < min(median_shape[others])):
        return tuple(float(s) for s in target), "median over the training cases"
    # A little above, so that this axis stays the coarse one.
    target[coarse] = max(float(np.percentile(spacings[:, coarse], 10)), largest_other + 1e-5)
    reason = f"median over the training cases; along {'SAR'[coarse]}, the anisotropic axis, the 10th percentile"
    return tuple(float(s) for s in target), reason


def _median_shape(fingerprint: Fingerprint, spacing_mm: Sequence[float], axes: Sequence[int]) -> tuple[int, ...]:
    """Median of the cropped shapes at the target spacing, along the given S, A, R axes; rounded up."""
    extents_mm = np.array(fingerprint.shapes_after_crop) * np.array(fingerprint.spacings_mm)
    shapes = np.maximum(np.rint(extents_mm[:, list(axes)] / np.array(spacing_mm)), 1)
    return tuple(math.ceil(n) for n in np.median(shapes, axis=0))


def _choose_patch(median_shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> tuple[tuple[int, ...], str]:
    """The median scan, rounded up to what the strides divide; if that is too much, its longest axis is cut.

    In-plane axes have at least MIN_PATCH_AXIS voxels, and so has D where it alone is of the finest scale: the
    network needs an axis to halve.
    """
    finest = [s for s in spacing_mm if s / min(spacing_mm) <= SAME_SCALE_RATIO]
    needs_depth = len(spacing_mm) == 3 and finest == [spacing_mm[0]]
    smallest = (MIN_PATCH_AXIS if needs_depth else 1, MIN_PATCH_AXIS, MIN_PATCH_AXIS)[-len(spacing_mm) :]
    size = tuple(max(n, least) for n, least in zip(median_shape, smallest))
    patch = divisible_patch(size, spacing_mm)
    budget = MAX_PATCH_VOXELS[len(spacing_mm)]
    while math.prod(patch) > budget:
        shrinkable = [axis for axis, least in enumerate(smallest) if size[axis] > least]
        longest = max(shrinkable, key=lambda axis: size[axis] * spacing_mm[axis])
        size = tuple(n - (axis == longest) for axis, n in enumerate(size))
        patch = divisible_patch(size, spacing_mm)
    reason = f"median scan {_numbers(median_shape)} at the target spacing, rounded up to multiples of the strides"
    if any(p < n for p, n in zip(patch, median_shape)):
        reason += f"; the longest axis in mm cut until it has at most {budget:,} voxels"
    return patch, reason


def _channel_plans(
    names: Sequence[str], fingerprint: Fingerprint, preset: MsdTask | None
) -> tuple[tuple[ChannelPlan, ...], dict[str, str]]:
    """Normalisation of each channel by its name: CT by the data set's statistics, everything else z-score."""
    plans, reasons = [], {}
    for index, name in enumerate(names):
        if name.strip().lower() != "ct":
            plans.append(ChannelPlan(name=name, scheme="zscore"))
            reasons[f"channel_{index}"] = "no CT: mean and deviation of each scan's own non-zero voxels"
        elif preset is not None and preset.ct is not None:
            ct = preset.ct
            plans.append(ChannelPlan(name=name, scheme="ct", lower=ct.lower, upper=ct.upper, mean=ct.mean, std=ct.std))
            reasons[f"channel_{index}"] = f"CT: statistics of the NVIDIA reference for {preset.folder}"
        else:
            plans.append(_ct_from_fingerprint(name, index, fingerprint))
            reasons[f"channel_{index}"] = "CT: 0.5 and 99.5 percentile, mean and deviation of the foreground"
    return tuple(plans), reasons


def _ct_from_fingerprint(name: str, index: int, fingerprint: Fingerprint) -> ChannelPlan:
    if not fingerprint.foreground:
        raise UserError(
            f"channel {index} ({name}) is CT, which is normalised by the intensities of labelled voxels, but "
            "no training case has any. Add labels, or rename the channel in dataset.json to use z-scores."
        )
    statistics = fingerprint.foreground[index]
    lower, upper = statistics.percentile_00_5, statistics.percentile_99_5
    if not (lower < upper and statistics.std > 0):
        raise UserError(
            f"channel {index} ({name}) is CT, but (nearly) all its labelled voxels have the intensity "
            f"{statistics.median:g}. Check that images and labels belong together."
        )
    return ChannelPlan(name=name, scheme="ct", lower=lower, upper=upper, mean=statistics.mean, std=statistics.std)


def _describe_channel(channel: ChannelPlan) -> str:
    if channel.scheme == "zscore":
        return f"{channel.name}: z-score"
    return (
        f"{channel.name}: clip to {channel.lower:.4g} .. {channel.upper:.4g}, mean {channel.mean:.4g}, "
        f"std {channel.std:.4g}"
    )


def _numbers(values: Sequence[float]) -> str:
    return "x".join(f"{v:.4g}" for v in values)
