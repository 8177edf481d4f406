"""Which way a scan is turned before it is cropped: the axes (S, A, R) of a `Volume` become the plan's D, H, W.

A plan whose orientation is `ras` turns all scans alike in the patient. With `stored` they are turned as they lie in
their files, so the same plan means another order of (S, A, R), and other flips, for each scan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from utils.nifti import stored_axes
from utils.schema import CaseMeta, Geometry, Plan

Affine = np.ndarray | Sequence[Sequence[float]]
"""Voxel-to-world matrix (4, 4) in mm."""
_PIXDIM_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkingAxes:
    """D, H and W: which of (S, A, R) each is, and which of them (0 is D) are read backwards."""

    order: tuple[int, int, int]
    flipped: tuple[int, ...] = ()

    def view(self, array: np.ndarray) -> np.ndarray:
        """View of (..., S, A, R) as (..., D, H, W)."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.order))
        return turned[(..., *(slice(None, None, -1 if axis in self.flipped else None) for axis in range(3)))]


def working_axes(plan: Plan, affine: Affine) -> WorkingAxes:
    """How a scan with this voxel-to-world matrix is turned."""
    if plan.orientation == "ras":
        return WorkingAxes(order=plan.axes)
    stored, backwards = stored_axes(affine)
    first, second, third = (stored[axis] for axis in plan.axes)
    flipped = tuple(place for place, axis in enumerate(plan.axes) if backwards[axis])
    return WorkingAxes(order=(first, second, third), flipped=flipped)


def case_axes(meta: CaseMeta) -> WorkingAxes:
    """How a case was turned."""
    return WorkingAxes(order=meta.axes, flipped=meta.flipped)


def working_spacing(
    plan: Plan, spacing_mm: Sequence[float], axes: WorkingAxes, geometry: Geometry
) -> tuple[float, float, float]:
    """Voxel size along D, H, W, of a scan that has `spacing_mm` along S, A, R.

    As stored, sizes are those that the header states, as readers take them that ignore the orientation: the columns of
    the matrix round differently, and rounding may decide whether a scan counts as anisotropic.
    """
    sizes = [float(spacing_mm[axis]) for axis in axes.order]
    if plan.orientation == "stored" and geometry.forms is not None:
        stated = [abs(float(geometry.forms.pixdim[3 - axis])) for axis in plan.axes]
        if all(abs(a - b) <= _PIXDIM_TOLERANCE * b for a, b in zip(stated, sizes)):
            sizes = stated
    depth, height, width = sizes
    return depth, height, width
