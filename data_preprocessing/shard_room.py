"""How large the shards of a data set will be, told from its fingerprint before any of them is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from data_preprocessing.grid_limit import require_sensible
from data_preprocessing.planning.fingerprint import CaseFingerprint
from data_preprocessing.preprocessor import padding, target_grid_mm
from data_preprocessing.resampling import resampled_shape
from data_preprocessing.shards import shard_paths
from utils.errors import UserError, list_problems
from utils.room import require_room
from utils.schema import Fingerprint, Plan


def shard_bytes(
    shape_after_crop: tuple[int, ...], spacing_mm: tuple[float, ...], plan: Plan, *, labelled: bool = True
) -> int:
    """Bytes of a case's voxels: float32 for each channel and uint8 for the label. Shape and spacing are in S, A, R.

    Raises:
        UserError: the voxels are of a size that cannot be meant.
    """
    shape = tuple(shape_after_crop[axis] for axis in plan.axes)
    spacing = tuple(spacing_mm[axis] for axis in plan.axes)
    target_mm = target_grid_mm(plan.stage, spacing)
    resampled = resampled_shape(shape, spacing, target_mm)
    # In stored orientation the axes of each scan are its own, which only reading it tells.
    if plan.orientation == "ras":
        require_sensible(shape, spacing, resampled, target_mm)
    padded, _ = padding(resampled, plan.stage.patch_size)
    return math.prod(padded) * (4 * plan.image_channels + labelled)


def require_shard_room(
    folder: Path, cases: Fingerprint | Sequence[CaseFingerprint], plan: Plan, *, labelled: bool = True
) -> None:
    """Find out before the shards are written that they do not fit; what is there already is written over.

    Args:
        folder: where they go.
        cases: sizes and spacings of the scans.
        plan: what shards are made by.
        labelled: whether the cases have labels.

    Raises:
        UserError: they need more room than the disk has, or voxels are of a size that cannot be meant; all such cases
            are named.
    """
    needed, sizes, faults = 0, _sizes(cases), list[str]()
    for case, shape, spacing in sizes:
        paths = shard_paths(folder, case)
        there = sum(path.stat().st_size for path in (paths.image, paths.label) if path.is_file())
        try:
            needed += max(0, shard_bytes(shape, spacing, plan, labelled=labelled) - there)
        except UserError as error:
            faults.append(f"{case}: {error}")
    if faults:
        raise list_problems(
            f"{len(faults)} of {len(sizes)} cases cannot be brought to the plan's grid; nothing was written:", faults,
            advice="Correct the voxel sizes in these files, or take the cases out of dataset.json, and run again.",
        )  # fmt: skip
    require_room(folder, needed, f"the shards of {len(sizes)} cases")


def _sizes(cases: Fingerprint | Sequence[CaseFingerprint]) -> list[tuple[str, tuple[int, ...], tuple[float, ...]]]:
    """(case, shape, spacing in mm) of each."""
    if isinstance(cases, Fingerprint):
        return list(zip(cases.cases, cases.shapes_after_crop, cases.spacings_mm))
    return [(case.case, case.shape_after_crop, case.spacing_mm) for case in cases]
