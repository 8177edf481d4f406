"""Slices of one series put in order, and the grid that they make; what makes none is refused with its numbers.

Slices are ordered along the normal of their plane. Axes: LPS in headers, RAS in `Geometry`, mm both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from inference.dicom.headers import Slice
from inference.dicom.tilt import Tilt
from utils.errors import UserError
from utils.scan_formats import LPS_TO_RAS
from utils.schema import Geometry

SAME_DIRECTION = 1e-3
"""Difference of direction cosines up to which slices are parallel; headers are rounded."""
LARGEST_TILT_DEGREES = 0.2
"""Up to which a gantry counts as upright: positions are rounded."""
MOST_TILT_DEGREES = 45.0
PLACE_TOLERANCE = 0.1
"""How far a slice may lie from its place on the regular grid, as a share of the slice distance: positions are rounded,
too."""
MOST_MM = 1e6
"""No scan is so large, nor so far away; nor are voxels smaller than one divided by it."""
_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices in the order of the third axis of their grid, and what was done on the way, in words.

    With a `tilt` the grid is not that of the slices.
    """

    slices: tuple[Slice, ...]
    geometry: Geometry
    remarks: tuple[str, ...]
    tilt: Tilt | None = None


def fitting(slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """Those of a series that lie in the plane, and have the size, of most; and what was left out, in words.

    Raises:
        UserError: there is no such plane.
    """
    remarks: list[str] = []
    return _parallel(_without_copies(slices, remarks), remarks), remarks


def arrange(slices: Sequence[Slice], remarks: Sequence[str] = ()) -> Stack:
    """Order the parallel slices of one volume.

    A tilted gantry is straightened, with a word.

    Args:
        slices: as `fitting` returns them.
        remarks: what was done to them before.

    Raises:
        UserError: several slices lie in one place, or some are missing.
    """
    turn = np.asarray(slices[0].orientation, float).reshape(2, 3)
    normal = np.cross(turn[0], turn[1])
    along = np.array([np.asarray(each.position) @ normal for each in slices])
    order = np.argsort(along, kind="stable")
    kept, along = [slices[index] for index in order], along[order]
    positions = np.array([each.position for each in kept])
    between_rows, between_columns = kept[0].spacing_mm
    shape, tilt = (kept[0].rows, kept[0].columns), None
    if len(kept) == 1:
        # A single slice does not say how thick it is; nothing depends on it.
        step = normal
    else:
        _refuse_gaps(kept, along)
        step = (positions[-1] - positions[0]) / (len(kept) - 1)
        _refuse_uneven(kept, positions, step)
        tilt = _tilt(step, normal, kept, turn)
    origin = positions[0]
    if tilt is not None:
        rows, columns = tilt.low
        origin = origin + rows * between_rows * turn[1] + columns * between_columns * turn[0]
        step, shape = (step @ normal) * normal, tilt.grid
        remarks = [*remarks, f"the gantry was tilted by {tilt.degrees:.1f} degrees; slices are brought onto one grid"]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([turn[0] * between_columns, turn[1] * between_rows, step], axis=1)
    affine[:3, 3] = origin
    _refuse_odd_grid(affine)
    affine = LPS_TO_RAS @ affine + 0.0
    geometry = Geometry(
        shape_xyz=(shape[1], shape[0], len(kept)), affine=tuple(map(tuple, affine.tolist())), qform_code=1,
        sform_code=1, xyzt_units=2,
    )  # fmt: skip
    return Stack(slices=tuple(kept), geometry=geometry, remarks=tuple(remarks), tilt=tilt)


def _refuse_odd_grid(affine: np.ndarray) -> None:
    """Refuse voxels and places of such sizes that nothing can be computed with them, and axes that are no three."""
    if np.abs(affine).max() < MOST_MM:
        sizes_mm = np.linalg.norm(affine[:3, :3], axis=0)
        if sizes_mm.min() > 1 / MOST_MM and abs(np.linalg.det(affine[:3, :3] / sizes_mm)) > 1e-6:
            return
    told = "; ".join(", ".join(f"{value:.4g}" for value in row) for row in affine[:3])
    raise UserError(f"its headers make voxels that lie in no grid (voxels to mm: {told}); repair them")


def _without_copies(slices: Sequence[Slice], remarks: list[str]) -> list[Slice]:
    first: dict[tuple[str, int | None], Slice] = {}
    for each in slices:
        first.setdefault((each.instance, each.frame), each)
    if len(first) < len(slices):
        remarks.append(f"{len(slices) - len(first)} copies of slices are left out")
    return list(first.values())


def _parallel(slices: Sequence[Slice], remarks: list[str]) -> list[Slice]:
    """The slices of the plane and size that most have."""
    groups: list[list[Slice]] = []
    for each in slices:
        fitting = next((group for group in groups if _is_alike(each, group[0])), None)
        if fitting is None:
            groups.append([each])
        else:
            fitting.append(each)
    groups.sort(key=len, reverse=True)
    largest = groups[0]
    if len(groups) > 1:
        others = len(slices) - len(largest)
        if len(largest) <= others or len(largest) == 1:
            raise UserError(f"its {len(slices)} slices lie in {len(groups)} planes or sizes, as those of localizers do")
        remarks.append(f"{others} slices in other planes or of other sizes than the {len(largest)} others are left out")
    return largest


def _is_alike(one: Slice, other: Slice) -> bool:
    return (
        (one.rows, one.columns) == (other.rows, other.columns)
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-3)
        and np.allclose(one.orientation, other.orientation, rtol=0, atol=SAME_DIRECTION)
    )


def _refuse_gaps(slices: Sequence[Slice], along: np.ndarray) -> None:
    """Refuse several slices in one place, and places without a slice."""
    steps = np.diff(along)
    usual = float(np.median(steps))
    if usual <= 1e-3:
        # Most places are taken twice or more.
        places = 1 + int(np.count_nonzero(steps > 1e-3))
        raise UserError(
            f"its {len(slices)} slices lie at {places} places: several volumes in one series, and neither echo, time, "
            "b-value nor instance numbers tell them apart; convert them to NIfTI, one file each"
        )
    twice = np.flatnonzero(steps < PLACE_TOLERANCE * usual).tolist()
    if twice:
        shown = ", ".join(f"{slices[i].number} and {slices[i + 1].number}" for i in twice[:_SHOWN])
        more = ", ..." if len(twice) > _SHOWN else ""
        raise UserError(
            f"{len(twice)} places have two slices of different content (instance numbers {shown}{more}); remove those "
            "that do not belong to it"
        )
    wide = np.flatnonzero(steps > 1.5 * usual).tolist()
    if wide:
        missing = [max(1, round(float(steps[i]) / usual) - 1) for i in wide]
        shown = "; ".join(
            f"{count} between instance numbers {slices[i].number} and {slices[i + 1].number} ({steps[i]:.4g} mm apart)"
            for i, count in list(zip(wide, missing))[:_SHOWN]
        )
        more = "; ..." if len(wide) > _SHOWN else ""
        raise UserError(f"slices are missing where others are {usual:.4g} mm apart: {shown}{more}; copy it again")


def _tilt(step: np.ndarray, normal: np.ndarray, slices: Sequence[Slice], turn: np.ndarray) -> Tilt | None:
    """How slices lean against their normal; None for those of an upright gantry."""
    cosine = float(step @ normal) / float(np.linalg.norm(step) * np.linalg.norm(normal))
    degrees = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if degrees <= LARGEST_TILT_DEGREES:
        return None
    if degrees > MOST_TILT_DEGREES:
        raise UserError(
            f"its slices are shifted against each other by {degrees:.1f} degrees, more than any gantry is tilted; "
            "convert it to NIfTI with the program that made it"
        )
    between_rows, between_columns = slices[0].spacing_mm
    return Tilt(
        degrees=degrees, step=(float(step @ turn[1]) / between_rows, float(step @ turn[0]) / between_columns),
        shape=(slices[0].rows, slices[0].columns), slices=len(slices),
    )  # fmt: skip


def _refuse_uneven(slices: Sequence[Slice], positions: np.ndarray, step: np.ndarray) -> None:
    places = positions[0] + np.arange(len(slices))[:, None] * step
    off_mm = np.linalg.norm(positions - places, axis=1)
    allowed_mm = PLACE_TOLERANCE * float(np.linalg.norm(step))
    worst = int(off_mm.argmax())
    if off_mm[worst] > allowed_mm:
        raise UserError(
            f"slice distances differ: instance number {slices[worst].number} lies {off_mm[worst]:.3g} mm off its "
            f"place, allowed are {allowed_mm:.3g} mm; resample it to equal distances first"
        )
