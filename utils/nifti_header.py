"""The header of a NIfTI file: shape, type, where the voxels begin, and where they lie in the patient, in mm.

Everything that a header can get wrong is refused by the file's name; nothing is guessed without a word.
"""

from __future__ import annotations

import functools
import io
import logging
import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from utils.axes import triple
from utils.errors import UserError
from utils.geometry import Geometry, HeaderForms

HEADER_BYTES = 540
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Codes of `xyzt_units` for metre, millimetre and micrometre; 0, which many programs write, means mm."""
LEAST_UPRIGHT = 0.1
"""Share of its volume that a voxel may be squeezed to by axes that are not perpendicular: a gantry that is tilted by 30
degrees leaves 0.87. One damaged number of the matrix makes voxels of metres in a direction of another axis."""
# nibabel repairs a damaged header and logs a line that does not name the file; what matters is refused here.
_SILENT = logging.Logger("nifti_header")
_SILENT.addHandler(logging.NullHandler())


def parse_header(content: bytes, path: Path) -> nib.Nifti1Header:
    """The header as the file has it; values that nibabel would set right in silence stay as they are.

    Raises:
        UserError: no NIfTI header, or a damaged one.
    """
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(content[: kind.sizeof_hdr]):
            try:
                header = kind.from_fileobj(io.BytesIO(content[: kind.sizeof_hdr]), check=False)
                _fixed(kind, header.binaryblock)
                return header
            except (HeaderDataError, ValueError, OSError) as error:
                raise UserError(f"{path} has a damaged NIfTI header: {error}") from None
    raise UserError(f"{path} is not a NIfTI file (.nii or .nii.gz)")


@functools.lru_cache(maxsize=4096)
def _fixed(kind: type[nib.Nifti1Header], block: bytes) -> nib.Nifti1Header:
    """The header of these bytes as nibabel would set it right; not to be changed.

    Files are opened several times (to plan the memory, to look for faults, to work), and each time takes longer than
    unpacking a small label.
    """
    header = kind.from_fileobj(io.BytesIO(block), check=False)
    header.check_fix(logger=_SILENT)
    return header


def scan_shape(header: nib.Nifti1Header, path: Path) -> tuple[int, ...]:
    """(x, y, z), or (x, y, z, c) for several channels. A plane (x, y) has z 1; further axes of one voxel are dropped.

    Raises:
        UserError: another number of axes, or an axis without voxels.
    """
    stated = tuple(int(n) for n in header.get_data_shape())
    shape = stated + (1,) * (3 - len(stated))
    shape = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    if len(stated) < 2 or len(shape) > 4 or min(shape) < 1:
        raise UserError(f"{path} has shape {stated}; a scan must be 3D, or 4D with the channels last")
    return shape


def most_offset(header: nib.Nifti1Header) -> int:
    """Where the voxels begin at the latest."""
    stated = float(header["vox_offset"])
    return max(int(header.single_vox_offset), int(stated) if math.isfinite(stated) else 0)


def data_offset(header: nib.Nifti1Header, content_bytes: int, data_bytes: int, path: Path) -> int:
    """Byte at which the voxels begin.

    A smaller `vox_offset` than the header is long would read the header as voxels. Where exactly the voxels follow the
    shortest header there is, that is where they begin.

    Raises:
        UserError: it cannot be known.
    """
    least, stated = int(header.single_vox_offset), float(header["vox_offset"])
    if math.isfinite(stated) and stated >= least:
        return int(stated)
    if content_bytes == least + data_bytes:
        return least
    raise UserError(
        f"{path} states that its voxels begin at byte {stated:g} (vox_offset), which lies inside its header; "
        "write the file anew with the program that made it"
    )


def header_affine(header: nib.Nifti1Header, path: Path) -> np.ndarray:
    """Voxel-to-world matrix (4, 4) in mm: the sform if it has a code, else the qform, else the voxel sizes alone.

    Raises:
        UserError: the matrix has no inverse, or it needs voxel sizes and they are 0.
    """
    fixed = _fixed(type(header), header.binaryblock)
    num_axes = min(3, len(header.get_data_shape()))
    sizes = np.asarray(header["pixdim"], float)[1 : 1 + num_axes]
    if not int(fixed["sform_code"]) and not (np.isfinite(sizes).all() and sizes.all()):
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise UserError(
            f"{path} states voxel sizes of {shown} (pixdim) and no sform, so its true voxel sizes are unknown; "
            "write them into its header"
        )
    try:
        affine = fixed.get_best_affine()
    except (HeaderDataError, ValueError) as error:
        raise UserError(f"{path} has a damaged orientation: {error}") from None
    affine = _in_mm(affine, int(header["xyzt_units"]))
    require_grid(affine, path)
    return affine


def require_grid(affine: np.ndarray, path: Path) -> None:
    """Refuse a voxel-to-world matrix (4, 4) that is none.

    Raises:
        UserError: it has no inverse, or its axes are almost parallel.
    """
    linear = affine[:3, :3]
    volume = np.prod(np.linalg.norm(linear, axis=0))
    # Written so that NaN fails, too. A box squeezed to a millionth of its volume is no grid.
    if not (np.isfinite(affine).all() and volume > 0 and abs(np.linalg.det(linear)) > 1e-6 * volume):
        raise UserError(f"{path}: voxel-to-world matrix {linear.tolist()} has no inverse; repair the header")
    if abs(np.linalg.det(linear)) < LEAST_UPRIGHT * volume:
        raise UserError(
            f"{path}: voxel-to-world matrix {linear.tolist()} has axes that are almost parallel, as those of no scan "
            "are; repair the header"
        )


def header_geometry(header: nib.Nifti1Header, path: Path) -> Geometry:
    """The grid that a header states. Raises as `scan_shape` and `header_affine` do."""
    affine = header_affine(header, path)
    quaternion = _finite([header["quatern_b"], header["quatern_c"], header["quatern_d"]])
    offset = _finite([header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]])
    rows = [_finite(header[name]) for name in ("srow_x", "srow_y", "srow_z")]
    pixdim = _finite(header["pixdim"][:4])
    # A form that is not made of numbers cannot be kept in JSON, and says nothing: it loses its code.
    is_whole = None not in (quaternion, offset, pixdim)
    return Geometry(
        shape_xyz=triple(scan_shape(header, path)[:3]),
        affine=tuple(tuple(float(v) for v in row) for row in affine),
        qform_code=int(header["qform_code"]) if is_whole else 0,
        sform_code=int(header["sform_code"]) if None not in rows else 0,
        xyzt_units=int(header["xyzt_units"]),
        forms=HeaderForms(
            pixdim=_four(pixdim or (1.0, *np.linalg.norm(affine[:3, :3], axis=0).tolist())),
            quaternion=triple(quaternion or (0.0,) * 3),
            offset=triple(offset or (0.0,) * 3),
            srow=tuple(_four(row or (0.0,) * 4) for row in rows),
        ),
    )


def set_geometry(header: nib.Nifti1Header, geometry: Geometry) -> None:
    """Write both forms of orientation, their codes and the units into a header of the grid's shape."""
    header["xyzt_units"] = geometry.xyzt_units
    forms = geometry.forms
    if forms is None:
        affine = _in_units(geometry.affine, geometry.xyzt_units)
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
        # With both codes 0 a reader derives the grid from the voxel sizes alone, as it did for the scan.
        if geometry.qform_code:
            header.set_qform(affine, geometry.qform_code)
        if geometry.sform_code:
            header.set_sform(affine, geometry.sform_code)
        return
    header["pixdim"][:4] = forms.pixdim
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = forms.quaternion
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = forms.offset
    header["srow_x"], header["srow_y"], header["srow_z"] = forms.srow
    header["qform_code"], header["sform_code"] = geometry.qform_code, geometry.sform_code


def both_affines(geometry: Geometry) -> tuple[np.ndarray, np.ndarray] | None:
    """Matrices (4, 4) in mm of the qform and the sform of a file that states both; None if it does not.

    Raises:
        ValueError: the quaternion is none.
    """
    if geometry.forms is None or not (geometry.qform_code > 0 and geometry.sform_code > 0):
        return None
    header = nib.Nifti1Header()
    set_geometry(header, geometry)
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    return _in_mm(header.get_qform(), geometry.xyzt_units), _in_mm(header.get_sform(), geometry.xyzt_units)


def _mm_per_unit(xyzt_units: int) -> float:
    # The lower three bits are the unit of length, the next three that of time.
    return MM_PER_UNIT.get(xyzt_units & 7, 1.0)


def _in_mm(affine: np.ndarray, xyzt_units: int) -> np.ndarray:
    return np.concatenate([np.asarray(affine, float)[:3] * _mm_per_unit(xyzt_units), [[0.0, 0, 0, 1]]])


def _in_units(affine, xyzt_units: int) -> np.ndarray:
    return np.concatenate([np.asarray(affine, float)[:3] / _mm_per_unit(xyzt_units), [[0.0, 0, 0, 1]]])


def _four(values: tuple[float, ...]) -> tuple[float, float, float, float]:
    a, b, c, d = values
    return a, b, c, d


def _finite(values) -> tuple[float, ...] | None:
    numbers = tuple(float(value) for value in values)
    return numbers if all(map(math.isfinite, numbers)) else None
