"""Patch, levels and batch of a stage by nnU-Net v2's rules: as large a patch as the GPU memory holds, then the batch.

The patch starts as a cube in millimetres that is certainly too large, clipped to the median scan. While two of them do
not fit the memory, the axis that is longest relative to the median scan loses one step of its strides.

Source: nnU-Net v2, experiment_planners/default_experiment_planner.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from data_preprocessing.planning import memory
from data_preprocessing.planning.planners import DEFAULT, Planner
from data_preprocessing.planning.topology import (
    DEFAULT_MIN_FMAP,
    LONE_AXIS_FMAPS,
    Topology,
    divisible_patch,
    plan_topology,
)
from utils.errors import UserError
from utils.schema import StagePlan

FIRST_PATCH = {2: 2048, 3: 256}
"""Voxels along each axis of the patch to start with, if voxels are as long in all directions."""
LOWRES_SHARE = 0.25
"""A data set whose full-resolution patch covers less of the median scan needs a low-resolution stage."""
LOWRES_STEP = 1.03
"""Factor by which the spacing grows until the patch covers that share."""
LOWRES_LEAST_SAVING = 2.0
"""A low-resolution scan that is less than this many times smaller than the full one is of no use."""
SAME_SCALE = 2.0
"""Axes that are finer than the coarsest by more than this factor are made coarser first."""

Size = tuple[int, ...]
Reasons = dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """What a stage is planned for: a spacing and the data set's scans at it, along the axes of the stage."""

    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    """Median of the scans' shapes, axis by axis; half voxels where the number of scans is even."""
    num_voxels: float
    """Of the whole data set, also for a 2D stage."""

    def coarser(self, spacing_mm: tuple[float, ...]) -> Grid:
        """The same scans at a coarser 3D spacing."""
        shape = [n * here / there for n, here, there in zip(self.median_shape, self.spacing_mm, spacing_mm)]
        share = math.prod(shape) / math.prod(self.median_shape)
        rounded = tuple(float(max(round(n), 1)) for n in shape)
        return Grid(spacing_mm=spacing_mm, median_shape=rounded, num_voxels=self.num_voxels * share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a patch and a batch must fit."""

    num_outputs: int
    """K of the logits."""
    gpu_memory_gb: float
    planner: Planner

    def values(self, levels: memory.Levels, patch: Size) -> int:
        """Feature map values of one patch."""
        return memory.feature_map_values(levels, patch, num_outputs=self.num_outputs)


def plan_stage(
    name: str, grid: Grid, *, num_outputs: int, gpu_memory_gb: float, planner: Planner = DEFAULT
) -> tuple[StagePlan, Reasons]:
    """The stage whose training fills the memory.

    Args:
        name: of the stage.
        grid: what it is for; its axes decide between 2D and 3D.
        num_outputs: K of the logits.
        gpu_memory_gb: memory to plan for.
        planner: what fills it.

    Returns:
        The stage and, for its patch, batch and levels, why they are what they are.

    Raises:
        UserError: no patch is small enough for the memory.
    """
    budget = Budget(num_outputs=num_outputs, gpu_memory_gb=gpu_memory_gb, planner=planner)
    stage, reasons = _fill_memory(name, grid, budget)
    # nnU-Net v2: where a patch shows so little of a scan that there is a coarser stage, a single one says too little
    # about its Dice.
    batch_dice = name == "3d" and not isinstance(_lowres_stage(grid, stage, budget), UserError)
    return dataclasses.replace(stage, batch_dice=batch_dice), reasons


def _fill_memory(name: str, grid: Grid, budget: Budget) -> tuple[StagePlan, Reasons]:
    patch, levels, patch_reason = _choose_patch(grid, budget)
    batch, batch_reason = _choose_batch(grid, patch, budget.values(levels, patch), budget)
    stage = StagePlan(
        name=name, patch_size=patch, spacing_mm=grid.spacing_mm, batch_size=batch,
        strides=levels.strides, kernels=levels.kernels, filters=levels.filters,
        decoder_kernels=levels.decoder_kernels, encoder_convs=levels.encoder_convs,
        decoder_convs=levels.decoder_convs, block=levels.block,
    )  # fmt: skip
    return stage, {
        "patch_size": patch_reason,
        "batch_size": batch_reason,
        "strides": f"an axis is halved while {DEFAULT_MIN_FMAP} voxels of it remain, and only if it is less than "
        "2 times as coarse as the finest axis that can still be halved",
        "kernels": "convolve across an axis once it is less than 2 times as coarse as the finest",
        "decoder_kernels": "those of the encoder at the same level, as nnU-Net v2 has it",
    } | budget.planner.reasons()


def plan_lowres_stage(
    fullres: Grid, *, num_outputs: int, gpu_memory_gb: float, planner: Planner = DEFAULT
) -> tuple[StagePlan, Reasons]:
    """The stage that sees at least LOWRES_SHARE of the median scan: a coarser spacing, and its own patch and batch.

    Raises:
        UserError: the full-resolution patch covers that share already, or the scans would hardly get smaller.
    """
    budget = Budget(num_outputs=num_outputs, gpu_memory_gb=gpu_memory_gb, planner=planner)
    full_stage, _ = _fill_memory("3d", fullres, budget)
    found = _lowres_stage(fullres, full_stage, budget)
    if isinstance(found, UserError):
        raise found
    return found


def _lowres_stage(fullres: Grid, full_stage: StagePlan, budget: Budget) -> tuple[StagePlan, Reasons] | UserError:
    """The low-resolution stage beside a full-resolution one, or why there is none."""
    full_voxels = math.prod(fullres.median_shape)
    covered = math.prod(full_stage.patch_size) / full_voxels
    scans = f"the median scan of {size_text(fullres.median_shape)} voxels"
    if covered >= LOWRES_SHARE:
        return UserError(
            f"this data set needs no low-resolution stage: the full-resolution patch {size_text(full_stage.patch_size)}"
            f" covers {covered:.0%} of {scans}; --lowres is for less than {LOWRES_SHARE:.0%}"
        )
    grid, share = fullres, covered
    stage, reasons = full_stage, Reasons()
    while share < LOWRES_SHARE:
        grid = fullres.coarser(_next_coarser(grid.spacing_mm))
        stage, reasons = _fill_memory("3d_lowres", grid, budget)
        share = math.prod(stage.patch_size) / (full_voxels * grid.num_voxels / fullres.num_voxels)
    saving = fullres.num_voxels / grid.num_voxels
    if saving < LOWRES_LEAST_SAVING:
        return UserError(
            f"this data set needs no low-resolution stage: it would make {scans} only {saving:.1f} times smaller"
        )
    reasons["spacing_mm"] = (
        f"{size_text(fullres.spacing_mm)} mm of full resolution, where the patch covers {covered:.1%} of {scans}, in "
        f"steps of {LOWRES_STEP - 1:.0%} until it covers {LOWRES_SHARE:.0%}; finer axes first"
    )
    return stage, reasons


def size_text(values: Sequence[float]) -> str:
    """Numbers along axes, such as 40x56x40."""
    return "x".join(f"{v:.4g}" for v in values)


def _choose_patch(grid: Grid, budget: Budget) -> tuple[Size, Topology, str]:
    dim, median, gpu_memory_gb = len(grid.spacing_mm), grid.median_shape, budget.gpu_memory_gb
    first = _smallest_useful(_first_patch(grid), grid.spacing_mm)
    patch = first = divisible_patch(first, grid.spacing_mm, rule="nnunet")
    while True:
        levels = budget.planner.equip(plan_topology(patch, grid.spacing_mm, rule="nnunet"))
        if memory.fits(budget.values(levels, patch), dim, gpu_memory_gb, budget.planner):
            break
        patch = _shrink(patch, levels.total_strides, grid)
        if not patch:
            raise UserError(f"--gpu_memory_gb {gpu_memory_gb:g} is too little to train a {dim}D U-Net on these scans")
    reason = f"median scan {size_text(median)} at this spacing, in multiples of the strides"
    if any(size < n for size, n in zip(first, median)):
        reason = f"first as long in mm along all axes, at most the median scan {size_text(median)}"
    if patch != first:
        reason += (
            f"; from {size_text(first)} on, always the axis that is longest relative to the median scan was cut until "
            f"{budget.planner.must_fit[dim]} patches fit {gpu_memory_gb:g} GB"
        )
    return patch, levels, reason


def _first_patch(grid: Grid) -> Size:
    dim = len(grid.spacing_mm)
    edge_mm = FIRST_PATCH[dim] * math.prod(grid.spacing_mm) ** (1 / dim)
    return tuple(math.ceil(min(round(edge_mm / mm), n)) for mm, n in zip(grid.spacing_mm, grid.median_shape))


def _smallest_useful(size: Size, spacing_mm: tuple[float, ...]) -> Size:
    """The size, or the next one that is so long, in plane or at last along all axes, that something can be halved."""
    lone = LONE_AXIS_FMAPS * DEFAULT_MIN_FMAP
    for least in ((1, 1, 1), (1, 2 * DEFAULT_MIN_FMAP, 2 * DEFAULT_MIN_FMAP), (1, lone, lone), (lone, lone, lone)):
        grown = tuple(max(n, shortest) for n, shortest in zip(size, least[-len(size) :]))
        if _can_be_planned(grown, spacing_mm):
            break
    return grown


def _can_be_planned(patch: Size, spacing_mm: tuple[float, ...]) -> bool:
    try:
        plan_topology(divisible_patch(patch, spacing_mm, rule="nnunet"), spacing_mm, rule="nnunet")
    except UserError:
        return False
    return True


def _shrink(patch: Size, total_strides: Size, grid: Grid) -> Size:
    """One step smaller along the axis that is longest relative to the median scan; empty where nothing is left.

    The step is the smaller patch's own: 256 voxels that are halved six times go to 224, halved five times, not to 192.
    """
    longest = max(range(len(patch)), key=lambda axis: (patch[axis] / grid.median_shape[axis], axis))
    lowered = _lower(patch, longest, total_strides[longest])
    if not _can_be_planned(lowered, grid.spacing_mm):
        return ()
    step = _strides_of(lowered, grid.spacing_mm)[longest]
    smaller = _lower(patch, longest, step)
    return divisible_patch(smaller, grid.spacing_mm, rule="nnunet") if _can_be_planned(smaller, grid.spacing_mm) else ()


def _lower(patch: Size, axis: int, step: int) -> Size:
    return tuple(size - step if index == axis else size for index, size in enumerate(patch))


def _strides_of(patch: Size, spacing_mm: tuple[float, ...]) -> Size:
    whole = divisible_patch(patch, spacing_mm, rule="nnunet")
    return plan_topology(whole, spacing_mm, rule="nnunet").total_strides


def _choose_batch(grid: Grid, patch: Size, values: int, budget: Budget) -> tuple[int, str]:
    dim, gpu_memory_gb, planner = len(patch), budget.gpu_memory_gb, budget.planner
    by_memory = memory.memory_batch(values, dim, gpu_memory_gb, planner)
    by_data = memory.data_batch(grid.num_voxels, patch, planner)
    batch = min(by_memory, by_data)
    share = f"{planner.data_share:.0%} of the data set's voxels"
    if batch < memory.MIN_BATCH:
        return memory.MIN_BATCH, f"the least; {share} are {by_data} patches"
    if by_data < by_memory:
        reason = f"{share}; the memory of {gpu_memory_gb:g} GB would hold {by_memory}"
    else:
        reason = f"as many as fit {gpu_memory_gb:g} GB; {share} are {by_data} patches"
    if dim == 2 and batch % 2:
        # The loader fills a 2D batch from two volumes with the same number of slices.
        return batch - 1, f"{reason}; rounded down to an even number"
    return batch, reason


def _next_coarser(spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    """One step coarser: the axes that are much finer than the coarsest, or all of them where none is."""
    spacing = np.array(spacing_mm)
    finer = max(spacing) / spacing > SAME_SCALE
    return tuple(float(mm) for mm in np.where(finer if finer.any() else True, spacing * LOWRES_STEP, spacing))
