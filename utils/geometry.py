"""Where a NIfTI file's voxels lie in the patient, as its header states it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeaderForms:
    """Both forms of orientation of a NIfTI header, number by number and in the file's own unit of length.

    A mask gets them unchanged: programs disagree on which form counts, and each must see mask and scan in one place.
    """

    pixdim: tuple[float, float, float, float]
    """Sign of the third axis of the quaternion form (-1, 0 or 1; 0 means 1), then the voxel sizes along x, y, z."""
    quaternion: tuple[float, float, float]
    """`quatern_b`, `quatern_c`, `quatern_d`."""
    offset: tuple[float, float, float]
    """`qoffset_x`, `qoffset_y`, `qoffset_z`."""
    srow: tuple[tuple[float, float, float, float], ...]
    """`srow_x`, `srow_y`, `srow_z`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The grid of a NIfTI file as it is stored: enough to write a mask that lies on top of it."""

    shape_xyz: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    """4x4 voxel-to-world matrix in mm, from the form that counts here."""
    qform_code: int
    sform_code: int
    xyzt_units: int
    forms: HeaderForms | None = None
    """None for a grid that was made and not read: both forms are then those of `affine`."""
