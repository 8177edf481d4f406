"""NIfTI files in and out: scans and labels as arrays in working axes, masks back on the scan's own grid.

Axes: `x y z` as stored; `S A R` (superior, anterior, right: z, y, x of RAS+) as worked on; C channels.
Voxels change place by flips and permutations only, so a mask lies exactly where its scan has it.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError

from utils.errors import UserError
from utils.files import write_atomically
from utils.schema import Geometry

# Headers rewritten by other tools differ by rounding, some micrometres at the far corner of a scan; a true
# shift by a tenth of even the finest voxels is larger.
GRID_TOLERANCE_MM = 0.05

_HEADER_BYTES = 540
_GZIP_LEVEL = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Volume:
    """One image or label in (S, A, R) order, and the grid that it was stored on.

    `array` is (C, S, A, R) float32 for an image and (S, A, R) of some integer type for a label, C-contiguous.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    """Voxel size along S, A, R."""
    geometry: Geometry


def read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (x, y, z[, c]) and voxel-to-world matrix (4, 4) in mm; the voxels are not read.

    Raises:
        UserError: the file is missing, not a NIfTI, or its matrix cannot be inverted.
    """
    header = _parse_header(_read_bytes(path, limit=_HEADER_BYTES), path)
    return tuple(int(n) for n in header.get_data_shape()), _affine(header, path)


def read_image(paths: Sequence[Path], *, tolerance_mm: float = GRID_TOLERANCE_MM) -> Volume:
    """Read one 3D or 4D file (its last axis holds the channels), or one 3D file for each channel.

    Intensities are float32 with the file's slope and intercept applied. Files of one case may lie up to
    `tolerance_mm` off each other.

    Raises:
        UserError: a file is missing, truncated, no NIfTI, not 3D or 4D, or on another grid than the first.
    """
    arrays, geometries = zip(*(_read(Path(path)) for path in paths))
    first = geometries[0]
    for path, array, geometry in zip(paths, arrays, geometries):
        if len(paths) > 1 and len(array) != 1:
            raise UserError(f"{path} has {len(array)} channels; with one file per channel it must be 3D")
        if geometry.shape_xyz != first.shape_xyz:
            raise UserError(f"{path} has shape {geometry.shape_xyz}, but {paths[0]} has {first.shape_xyz}")
        distance_mm = grid_difference_mm(geometry.affine, first.affine, first.shape_xyz)
        if distance_mm > tolerance_mm:
            raise UserError(f"{path} lies {distance_mm:.3g} mm off {paths[0]}; resample it to the same grid")
    floats = [_contiguous(array, np.dtype(np.float32)) for array in arrays]
    array = floats[0] if len(floats) == 1 else np.concatenate(floats)
    return Volume(array=array, spacing_mm=_spacing(first.affine), geometry=first)


def read_label(path: Path) -> Volume:
    """Read a label (S, A, R); floating-point files are fine as long as their values are whole numbers.

    Raises:
        UserError: as `read_image`; more than one channel; values such as 0.999, NaN or infinity.
    """
    array, geometry = _read(Path(path))
    if len(array) != 1:
        raise UserError(f"{path} is 4D with {len(array)} channels; a label must be 3D")
    values = _contiguous(array[0], array.dtype)
    if values.dtype.kind == "f":
        values = _whole_numbers(values, path)
    return Volume(array=values, spacing_mm=_spacing(geometry.affine), geometry=geometry)


def working_grid(shape: Sequence[int], affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Voxels and voxel size in mm along S, A, R of a file with this shape (x, y, z, ...) and matrix."""
    order, _ = _orientation(affine)
    return tuple(int(shape[axis]) for axis in order), _spacing(affine)


def to_working(array: np.ndarray, affine: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """View of (..., x, y, z) as (..., S, A, R) of the nearest RAS+ orientation: axes swapped and flipped."""
    order, flips = _orientation(affine)
    lead = tuple(range(array.ndim - 3))
    return array.transpose(*lead, *(len(lead) + axis for axis in order))[(..., *flips)]


def from_working(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """View of (..., S, A, R) as the (..., x, y, z) that is stored: the inverse of `to_working`."""
    order, flips = _orientation(geometry.affine)
    lead = tuple(range(array.ndim - 3))
    return array[(..., *flips)].transpose(*lead, *(len(lead) + order.index(axis) for axis in range(3)))


def write_mask(path: Path, mask: np.ndarray, geometry: Geometry) -> None:
    """Write a uint8 mask (S, A, R) onto the grid of `geometry`; `.nii.gz` or `.nii`, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    assert mask.dtype == np.uint8, f"a mask is uint8, got {mask.dtype}"
    write_volume(path, mask, geometry)


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write an array ([C,] S, A, R) of any numeric type onto the grid of `geometry`; same input, same bytes.

    Matrix, its codes and the units are those of `geometry`, so viewers lay the file on top of its scan.

    Raises:
        UserError: the file cannot be written.
    """
    stored = from_working(array, geometry)
    stored = np.moveaxis(stored, 0, -1) if stored.ndim == 4 else stored
    assert stored.shape[:3] == geometry.shape_xyz, f"array of {stored.shape} for a grid of {geometry.shape_xyz}"
    affine = np.asarray(geometry.affine)
    image = nib.Nifti1Image(stored, None, dtype=array.dtype)
    header = image.header
    header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *(1,) * (stored.ndim - 3)))
    # With both codes 0 a reader derives the grid from the voxel sizes alone, as it did for the scan.
    if geometry.qform_code:
        image.set_qform(affine, geometry.qform_code, update_affine=False)
    if geometry.sform_code:
        image.set_sform(affine, geometry.sform_code, update_affine=False)
    header["xyzt_units"] = geometry.xyzt_units
    content = image.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
    try:
        write_atomically(Path(path), lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def grid_difference_mm(affine_a, affine_b, shape: Sequence[int]) -> float:
    """Largest distance in mm between equal corners of two (x, y, z) grids; voxels in between are nearer."""
    corners = np.array([(*ends, 1.0) for ends in itertools.product(*((0, n - 1) for n in shape[:3]))])
    shift = corners @ (np.asarray(affine_a, float) - np.asarray(affine_b, float)).T
    return float(np.linalg.norm(shift[:, :3], axis=1).max())


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """(C, S, A, R) with slope and intercept applied; without them a view in the stored type."""
    content = _read_bytes(path)
    header = _parse_header(content, path)
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise UserError(f"{path} has shape {tuple(shape)}; a scan must be 3D, or 4D with the channels last")
    if dtype.kind not in "iuf":
        raise UserError(f"{path} holds {dtype} voxels; convert it to integers or floating-point numbers")
    affine = _affine(header, path)
    needed = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(content) < needed:
        raise UserError(f"{path} is truncated: {len(content)} of {needed} bytes; copy or download it again")
    stored = np.ndarray(shape, dtype, buffer=content, offset=offset, order="F")
    channels = stored[None] if stored.ndim == 3 else np.moveaxis(stored, -1, 0)
    geometry = Geometry(
        shape_xyz=tuple(int(n) for n in shape[:3]),
        affine=tuple(tuple(float(v) for v in row) for row in affine),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        xyzt_units=int(header["xyzt_units"]),
    )
    working = to_working(channels, affine)
    slope, intercept = _scaling(header, path)
    if (slope, intercept) not in ((None, None), (1, 0)):
        working = _scaled(working, np.float64(slope), np.float64(intercept))
    return working, geometry


def _scaling(header: nib.Nifti1Header, path: Path) -> tuple[float | None, float | None]:
    try:
        return header.get_slope_inter()
    except HeaderDataError as error:
        raise UserError(f"{path} has a damaged intensity scale: {error}") from None


def _scaled(array: np.ndarray, slope: np.float64, intercept: np.float64) -> np.ndarray:
    """float32(array * slope + intercept), computed in double precision one plane at a time to save memory."""
    result = np.empty(array.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for plane in range(array.shape[1]):
            result[:, plane] = array[:, plane] * slope + intercept
    return result


def _contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    # NumPy keeps the byte order of big-endian files; everything after this expects the machine's.
    # What float32 cannot hold becomes infinite and is reported by the check of the case.
    with np.errstate(over="ignore"):
        return np.array(array, dtype=dtype.newbyteorder("="), order="C")


def _whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    odd = values[~(np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**31))]
    if odd.size:
        shown = ", ".join(f"{v:g}" for v in np.unique(odd)[:5])
        raise UserError(f"{path}: {odd.size} label values are not whole numbers ({shown}); save integers")
    return values.astype(np.int16 if np.abs(values).max() < 2**15 else np.int64)


def _read_bytes(path: Path, limit: int = -1) -> bytes:
    """The (unpacked) content of a file, or its first `limit` bytes.

    Reading to the end checks gzip's own checksum, so damage inside a file is found as well as a missing end.
    """
    try:
        with open(path, "rb") as file:
            if Path(path).suffix != ".gz":
                return file.read(limit)
            if limit >= 0:
                return gzip.GzipFile(fileobj=file).read(limit)
            return gzip.decompress(file.read())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (EOFError, zlib.error):
        raise UserError(f"{path} is truncated or damaged; copy or download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _parse_header(content: bytes, path: Path) -> nib.Nifti1Header:
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(content[: kind.sizeof_hdr]):
            try:
                return kind.from_fileobj(io.BytesIO(content[: kind.sizeof_hdr]))
            except (HeaderDataError, ValueError, OSError) as error:
                raise UserError(f"{path} has a damaged NIfTI header: {error}") from None
    raise UserError(f"{path} is not a NIfTI file (.nii or .nii.gz)")


def _affine(header: nib.Nifti1Header, path: Path) -> np.ndarray:
    try:
        affine = header.get_best_affine()
    except (HeaderDataError, ValueError) as error:
        raise UserError(f"{path} has a damaged orientation: {error}") from None
    linear = affine[:3, :3]
    volume = np.prod(np.linalg.norm(linear, axis=0))
    # Written so that NaN fails, too. A box squeezed to a millionth of its volume is no grid.
    if not (np.isfinite(affine).all() and volume > 0 and abs(np.linalg.det(linear)) > 1e-6 * volume):
        raise UserError(f"{path}: voxel-to-world matrix {linear.tolist()} has no inverse; repair the header")
    return affine


def _orientation(affine) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """For S, A, R: which stored axis runs along it, and whether that axis is read backwards."""
    return _orientation_of(np.ascontiguousarray(affine, float).tobytes())


@functools.lru_cache(maxsize=1024)
def _orientation_of(affine_bytes: bytes) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    # A scan asks several times, its label again, and most scans of a data set lie alike.
    nearest = io_orientation(np.frombuffer(affine_bytes).reshape(4, 4))
    order = tuple(int(np.flatnonzero(nearest[:, 0] == world)[0]) for world in (2, 1, 0))
    return order, tuple(slice(None, None, int(nearest[axis, 1])) for axis in order)


def _spacing(affine) -> tuple[float, float, float]:
    order, _ = _orientation(affine)
    sizes_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    return tuple(float(sizes_mm[axis]) for axis in order)
