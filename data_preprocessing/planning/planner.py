"""From a data set's fingerprint to its `Plan`: axes, spacing, normalisation, patch, network and batch.

The ten tasks of the Medical Segmentation Decathlon keep the numbers of the NVIDIA reference (`preset`) unless the user
wants otherwise. Every other data set is planned from its fingerprint by nnU-Net v2's rules (`auto`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.channels import ZscoreRule, choose_zscore, plan_channels
from data_preprocessing.planning.planners import PLANNERS
from data_preprocessing.planning.presets import MSD_TASKS, MsdTask
from data_preprocessing.planning.stages import Grid, plan_lowres_stage, plan_stage
from data_preprocessing.planning.topology import DEFAULT_DEPTH, DEFAULT_MIN_FMAP, SAME_SCALE_RATIO, plan_topology
from utils.errors import UserError
from utils.schema import FORMAT_VERSION, Fingerprint, Plan, StagePlan

PRESET_BATCH = {2: 16, 3: 2}
ANISOTROPY_RATIO = 3.0
"""nnU-Net v2: an anisotropic axis is coarser, and shorter in voxels, than the others by this factor."""
COARSE_AXIS_RATIO = {"preset": SAME_SCALE_RATIO, "auto": 1.01}
"""An axis that is coarser than both others by this factor comes first. nnU-Net v2 turns scans for any difference; one
per cent keeps rounding errors of headers from doing it. The presets are meant for axial slices."""
PRESET_REASONS = {
    "batch_size": "2 in 3D and 16 in 2D, as the reference trains; --batch_size of main.py changes it",
    "strides": f"each axis of the finest scale is halved while it keeps {DEFAULT_MIN_FMAP} voxels, "
    f"at most {DEFAULT_DEPTH} times",
    "kernels": f"convolve only across axes at most {SAME_SCALE_RATIO:g} times as coarse as the finest",
    "decoder_kernels": "those of the level below, as the reference has it",
}
FILTERS_REASON = "32, doubled from level to level, at most 320 in 3D and 512 in 2D"
Axes = tuple[int, int, int]
PlannerName = Literal["default", "resenc_m", "resenc_l", "resenc_xl"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How the user wants a data set to be planned."""

    source: Literal["auto", "preset"] | None = None
    """None: the preset of a Decathlon task, else auto."""
    planner: PlannerName = "default"
    """Which of nnU-Net's planners; those for residual encoders are always auto."""
    gpu_memory_gb: float | None = None
    """What auto plans patch and batch for; None: the planner's own."""
    lowres: bool = False
    """Plan the low-resolution 3D stage, which is always auto."""
    zscore: ZscoreRule = "nonzero"
    """auto: which voxels z-scores are computed from."""

    @property
    def always_auto(self) -> str | None:
        """The flag that asks for what no preset has, if any."""
        if self.lowres:
            return "--lowres"
        return None if self.planner == "default" else f"--planner {self.planner}"


def plan_source(dataset: Dataset, options: PlanOptions) -> Literal["auto", "preset"]:
    """Where the numbers come from.

    Raises:
        UserError: `preset` for a data set that has none, or for what no preset has.
    """
    if options.source == "preset":
        if options.always_auto is not None:
            lacking = "low-resolution stage" if options.lowres else "residual encoder"
            raise UserError(f"--plan preset has no {lacking}; leave out --plan or {options.always_auto}")
        if _preset(dataset) is None:
            folders = ", ".join(task.folder for task in MSD_TASKS.values())
            raise UserError(f"--plan preset: {dataset.folder} is none of {folders}; use --plan auto")
    if options.source is not None or options.always_auto is not None or _preset(dataset) is None:
        return options.source or "auto"
    return "preset"


def make_plan(
    dataset: Dataset,
    fingerprint: Fingerprint,
    *,
    dim: int,
    mask_channel: bool,
    options: PlanOptions = PlanOptions(),
) -> Plan:
    """Plan a data set for a 2D or 3D U-Net.

    The patch is divisible by the strides of the network, and D (the first working axis) is the coarse axis of
    anisotropic data.

    Args:
        dataset: channels, labels and name.
        fingerprint: of its training cases.
        dim: 2 or 3.
        mask_channel: append a channel that marks the non-zero voxels.
        options: preset or auto, and for which memory.

    Raises:
        UserError: a CT channel without intensity statistics (no labels), or with constant ones; a preset that does
            not exist; z-scores that need what the fingerprint does not say; a low-resolution stage that is not needed;
            too little memory; scans that are single slices, for a 3D network or along different axes.
    """
    refuse_single_slices(dataset, fingerprint, dim=dim)
    source = plan_source(dataset, options)
    preset = _preset(dataset) if source == "preset" else None
    axes, axes_reason = _choose_axes(fingerprint, COARSE_AXIS_RATIO[source])
    if preset is None:
        stage, stage_reasons = _auto_stage(fingerprint, axes, dim, dataset.labels.num_outputs, options)
    else:
        stage, stage_reasons = _preset_stage(preset, dim)
    zscore = "zscore" if preset is not None else choose_zscore(fingerprint, options.zscore)
    channels, channel_reasons = plan_channels(dataset.channels, fingerprint, preset, zscore)
    return Plan(
        version=FORMAT_VERSION,
        task=dataset.task,
        dataset=dataset.name,
        origin=source,
        channels=channels,
        labels=dataset.labels,
        axes=axes,
        mask_channel=mask_channel,
        stage=stage,
        reasons={"axes": axes_reason, **stage_reasons, "filters": FILTERS_REASON, **channel_reasons},
        normalize_first=True,
        planner="" if preset is not None else PLANNERS[options.planner].name,
    )


def refuse_single_slices(dataset: Dataset, fingerprint: Fingerprint, *, dim: int) -> None:
    """Refuse scans in which a 3D network has nothing to see.

    Raises:
        UserError: they are single slices, for a 3D network.
    """
    if dim == 3 and (single := _slice_axis(fingerprint)) is not None:
        raise UserError(
            f"the scans of {dataset.folder} are single slices: one voxel along {'SAR'[single]} (S, A, R: superior, "
            "anterior, right). A 3D network has nothing to see there; use --dim 2"
        )


def _preset(dataset: Dataset) -> MsdTask | None:
    """The reference's numbers, for the data set they were made for: number and folder must both agree."""
    preset = MSD_TASKS.get(dataset.task)
    return preset if preset is not None and preset.folder == dataset.name else None


def _preset_stage(preset: MsdTask, dim: int) -> tuple[StagePlan, dict[str, str]]:
    spacing_mm = preset.spacing_mm_3d if dim == 3 else preset.spacing_mm_2d
    patch_size = preset.patch_size_3d if dim == 3 else preset.patch_size_2d
    topology = plan_topology(patch_size, spacing_mm)
    stage = StagePlan(
        name=f"{dim}d", patch_size=patch_size, spacing_mm=spacing_mm, batch_size=PRESET_BATCH[dim],
        strides=topology.strides, kernels=topology.kernels, filters=topology.filters,
    )  # fmt: skip
    reason = f"as the NVIDIA reference has it for {preset.folder}"
    return stage, {"spacing_mm": reason, "patch_size": reason, **PRESET_REASONS}


def _auto_stage(
    fingerprint: Fingerprint, axes: Axes, dim: int, num_outputs: int, options: PlanOptions
) -> tuple[StagePlan, dict[str, str]]:
    spacing_sar, spacing_reason = _target_spacing(fingerprint)
    grid = _grid(fingerprint, tuple(spacing_sar[axis] for axis in axes), axes)
    planner = PLANNERS[options.planner]
    memory_gb = planner.memory_gb if options.gpu_memory_gb is None else options.gpu_memory_gb
    if options.lowres:
        stage, reasons = plan_lowres_stage(grid, num_outputs=num_outputs, gpu_memory_gb=memory_gb, planner=planner)
    else:
        if dim == 2:
            grid = dataclasses.replace(grid, spacing_mm=grid.spacing_mm[1:], median_shape=grid.median_shape[1:])
        stage, reasons = plan_stage(
            f"{dim}d", grid, num_outputs=num_outputs, gpu_memory_gb=memory_gb, planner=planner
        )  # fmt: skip
        reasons = {"spacing_mm": spacing_reason, **reasons}
    return stage, reasons


def _grid(fingerprint: Fingerprint, spacing_mm: tuple[float, ...], axes: Axes) -> Grid:
    """The cropped scans at a spacing along the given S, A, R axes."""
    extents_mm = np.array(fingerprint.shapes_after_crop) * np.array(fingerprint.spacings_mm)
    shapes = np.maximum(np.rint(extents_mm[:, list(axes)] / np.array(spacing_mm)), 1)
    median = tuple(float(n) for n in np.median(shapes, axis=0))
    return Grid(spacing_mm=spacing_mm, median_shape=median, num_voxels=float(np.prod(median)) * len(shapes))


def _choose_axes(fingerprint: Fingerprint, least_ratio: float) -> tuple[Axes, str]:
    """Bring the coarse axis to the front (D): patches, kernels and slices all take D to be the coarse one.

    An axis of one voxel comes before any other: what is stored as single slices has nothing to see across them, and the
    distance that such a file states between slices means nothing.
    """
    single = _slice_axis(fingerprint)
    if single is not None:
        return _first(single), f"scans have one voxel along {'SAR'[single]}, so slices lie across it"
    median_mm = np.median(np.array(fingerprint.spacings_mm), axis=0)
    coarse = int(np.argmax(median_mm))
    ratio = median_mm[coarse] / max(median_mm[axis] for axis in _first(coarse)[1:])
    if ratio > least_ratio:
        return _first(coarse), f"{'SAR'[coarse]} is {ratio:.3g} times as coarse as the others, so it comes first"
    return (0, 1, 2), f"no axis is more than {least_ratio:g} times as coarse as the others: axial slices"


def _first(axis: int) -> Axes:
    """The axes with one of them brought to the front."""
    second, third = (other for other in range(3) if other != axis)
    return axis, second, third


def _slice_axis(fingerprint: Fingerprint) -> int | None:
    """The axis along which the median scan has one voxel, if any.

    Raises:
        UserError: most scans are single slices, but not along the same axis.
    """
    shapes = np.array(fingerprint.shapes_after_crop)
    found = np.flatnonzero(np.median(shapes, axis=0) == 1)
    if found.size:
        return int(found[0])
    slices = (shapes == 1).any(axis=1)
    if 2 * np.count_nonzero(slices) > len(shapes):
        counts = ", ".join(f"{n} along {axis}" for axis, n in zip("SAR", (shapes == 1).sum(axis=0)) if n)
        raise UserError(
            f"{np.count_nonzero(slices)} of {len(shapes)} scans are single slices, but not along the same axis "
            f"({counts}; S, A, R are superior, anterior, right); make a data set of each kind"
        )
    return None


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
