"""Scans in and out: images and labels as arrays in working axes, masks back on the scan's own grid.

The same functions read and write every format: NIfTI is here, the others are in utils/scan_formats.py.

Axes: `x y z` as stored; `S A R` (superior, anterior, right: z, y, x of RAS+) as worked on; C channels.
Voxels change place by flips and permutations only, so a mask lies exactly where its scan has it.

All files of one case are turned alike, by the header of its first image: near 45 degrees, rounding decides which axis
is nearest to which direction, and two headers of one grid may round differently.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError

from utils.axes import triple
from utils.errors import UserError
from utils.files import write_atomically
from utils.nifti_header import (
    HEADER_BYTES,
    both_affines,
    data_offset,
    header_affine,
    header_geometry,
    most_offset,
    parse_header,
    scan_shape,
    set_geometry,
)
from utils.nifti_streams import read_start, read_whole, require_content
from utils.nifti_values import Stored, contiguous, read_scaling, scaled, unscaled_label, whole_numbers
from utils.scan_formats import needs_itk, read_grid, read_voxels, write_voxels
from utils.scan_names import is_picture
from utils.schema import Geometry

# Headers rewritten by other tools differ by rounding, some micrometres at the far corner of a scan; a true
# shift by a tenth of even the finest voxels is larger.
GRID_TOLERANCE_MM = 0.05

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
        UserError: the file is missing, not a NIfTI, too small for the voxels that it states, or its matrix cannot be
            inverted.
    """
    if needs_itk(Path(path)):
        shape, geometry = read_grid(Path(path))
        return shape, np.array(geometry.affine)
    header = parse_header(read_start(Path(path), HEADER_BYTES), path)
    shape, affine = scan_shape(header, path), header_affine(header, path)
    # Plans are made by the header alone, and must not be made for voxels that are not there.
    require_content(Path(path), most_offset(header) + math.prod(shape) * header.get_data_dtype().itemsize)
    return shape, affine


def read_image(paths: Sequence[Path], *, tolerance_mm: float = GRID_TOLERANCE_MM) -> Volume:
    """Read one 3D or 4D file (its last axis holds the channels), or one 3D file for each channel.

    Intensities are float32 with the file's slope and intercept applied. Files of one case may lie up to
    `tolerance_mm` off each other; all are turned as the first one is.

    Raises:
        UserError: a file is missing, truncated, no NIfTI, not 3D or 4D, or on another grid than the first.
    """
    floats: list[np.ndarray] = []
    first: Geometry | None = None
    for path in map(Path, paths):
        stored = _read(path, first, tolerance_mm)
        geometry = stored.geometry
        first = first or geometry
        if len(paths) > 1 and len(stored.array) != 1:
            raise UserError(f"{path} has {len(stored.array)} channels; with one file per channel it must be 3D")
        if geometry.shape_xyz != first.shape_xyz:
            raise UserError(f"{path} has shape {geometry.shape_xyz}, but {paths[0]} has {first.shape_xyz}")
        distance_mm = grid_difference_mm(geometry.affine, first.affine, first.shape_xyz)
        if distance_mm > allowed_mm(first.affine, tolerance_mm):
            raise UserError(f"{path} lies {distance_mm:.3g} mm off {paths[0]}; resample it to the same grid")
        floats.append(contiguous(scaled(stored) if stored.is_scaled else stored.array, np.dtype(np.float32)))
    assert first is not None, "a case has at least one file"
    array = floats[0] if len(floats) == 1 else np.concatenate(floats)
    return Volume(array=array, spacing_mm=_spacing(first.affine), geometry=first)


def read_label(path: Path, like: Geometry | None = None, *, tolerance_mm: float = GRID_TOLERANCE_MM) -> Volume:
    """Read a label (S, A, R); floating-point and scaled files are fine as long as their values are whole numbers.

    Args:
        path: the file.
        like: grid of the image that it belongs to. A label on that grid is turned as the image is and gets its
            geometry; one on another grid keeps its own, for the caller to find out.
        tolerance_mm: distance up to which corners of both grids count as the same.

    Raises:
        UserError: as `read_image`; more than one channel; values such as 0.999, NaN or infinity.
    """
    path = Path(path)
    stored = _read(path, like, tolerance_mm)
    if len(stored.array) != 1:
        kind = "in colours, also those of a palette," if is_picture(path) else f"4D with {len(stored.array)} channels"
        raise UserError(f"{path} is {kind}; a label must be {'grey values' if is_picture(path) else '3D'}")
    values = None
    if stored.is_scaled:
        values = unscaled_label(stored)
        stored = stored if values is not None else dataclasses.replace(stored, array=scaled(stored))
    if values is None:
        values = contiguous(stored.array[0], stored.array.dtype)
    if values.dtype.kind == "f":
        values = whole_numbers(values, path)
    return Volume(array=values, spacing_mm=_spacing(stored.geometry.affine), geometry=stored.geometry)


def working_grid(shape: Sequence[int], affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Voxels and voxel size in mm along S, A, R of a file with this shape (x, y, z, ...) and matrix."""
    order, _ = _orientation(affine)
    return triple(int(shape[axis]) for axis in order), _spacing(affine)


def to_working(array: np.ndarray, affine: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """View of (..., x, y, z) as (..., S, A, R) of the nearest RAS+ orientation: axes swapped and flipped."""
    order, flips = _orientation(affine)
    lead = tuple(range(array.ndim - 3))
    return array.transpose(*lead, *(len(lead) + axis for axis in order))[flips]


def from_working(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """View of (..., S, A, R) as the (..., x, y, z) that is stored: the inverse of `to_working`."""
    order, flips = _orientation(geometry.affine)
    lead = tuple(range(array.ndim - 3))
    return array[flips].transpose(*lead, *(len(lead) + order.index(axis) for axis in range(3)))


def stored_axes(affine: np.ndarray | Sequence[Sequence[float]]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For the axes z, y, x of a file: which of S, A, R each runs along, and whether it does so backwards."""
    order, flips = _orientation(affine)
    axes = [order.index(axis) for axis in (2, 1, 0)]
    # The last three are those of the axes.
    first, second, third = ((axis, flips[axis - 3].step == -1) for axis in axes)
    return (first[0], second[0], third[0]), (first[1], second[1], third[1])


def write_mask(path: Path, mask: np.ndarray, geometry: Geometry) -> None:
    """Write a uint8 mask (S, A, R) onto the grid of `geometry`, in the format of the name; whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    assert mask.dtype == np.uint8, f"a mask is uint8, got {mask.dtype}"
    write_volume(path, mask, geometry)


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write an array ([C,] S, A, R) of any numeric type onto the grid of `geometry`; same input, same bytes.

    Both forms of orientation, their codes and the units are those of `geometry`, number by number, so every viewer lays
    the file on top of its scan.

    Raises:
        UserError: the file cannot be written.
    """
    stored = from_working(array, geometry)
    stored = np.moveaxis(stored, 0, -1) if stored.ndim == 4 else stored
    assert stored.shape[:3] == geometry.shape_xyz, f"array of {stored.shape} for a grid of {geometry.shape_xyz}"
    try:
        if needs_itk(path):
            write_voxels(path, stored, geometry)
            return
        image = nib.Nifti1Image(stored, None, dtype=array.dtype)
        set_geometry(image.header, geometry)
        content = image.to_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
        write_atomically(Path(path), lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def grid_difference_mm(affine_a, affine_b, shape: Sequence[int]) -> float:
    """Largest distance in mm between equal corners of two (x, y, z) grids; voxels in between are nearer."""
    corners = np.array([(*ends, 1.0) for ends in itertools.product(*((0, n - 1) for n in shape[:3]))])
    shift = corners @ (np.asarray(affine_a, float) - np.asarray(affine_b, float)).T
    return float(np.linalg.norm(shift[:, :3], axis=1).max())


def allowed_mm(affine, tolerance_mm: float = GRID_TOLERANCE_MM) -> float:
    """The tolerance for a grid: the default one is never more than half of the finest voxel, as in microscopy."""
    finest_mm = float(np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0).min())
    return min(tolerance_mm, finest_mm / 2) if tolerance_mm == GRID_TOLERANCE_MM else tolerance_mm


def is_same_grid(a: Geometry, b: Geometry, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
    """Whether two files have the same shape and their corners lie within the tolerance of each other."""
    if a.shape_xyz != b.shape_xyz:
        return False
    return grid_difference_mm(a.affine, b.affine, a.shape_xyz) <= allowed_mm(b.affine, tolerance_mm)


def forms_difference_mm(geometry: Geometry) -> float:
    """How far the corners of a grid lie apart by its file's two forms of orientation; 0 where it states only one.

    Infinite where the quaternion is none.
    """
    try:
        forms = both_affines(geometry)
    except (HeaderDataError, ValueError):
        return float("inf")
    return 0.0 if forms is None else grid_difference_mm(*forms, geometry.shape_xyz)


def _read(path: Path, like: Geometry | None = None, tolerance_mm: float = GRID_TOLERANCE_MM) -> Stored:
    """The voxels, turned by the header of `like` where the file lies on its grid, else by its own."""
    channels, geometry, slope, intercept = _read_voxels(path)
    if like is not None and is_same_grid(geometry, like, tolerance_mm):
        geometry = like
    return Stored(array=to_working(channels, geometry.affine), slope=slope, intercept=intercept, geometry=geometry)


def _read_voxels(path: Path) -> tuple[np.ndarray, Geometry, float, float]:
    """Channels (C, x, y, z) in the stored type, the grid, slope and intercept."""
    if needs_itk(path):
        return *read_voxels(path), 1.0, 0.0
    header = parse_header(read_start(path, HEADER_BYTES), path)
    geometry, dtype = header_geometry(header, path), header.get_data_dtype()
    shape = scan_shape(header, path)
    if dtype.kind not in "iuf":
        raise UserError(f"{path} holds {dtype} voxels; convert it to integers or floating-point numbers")
    voxel_bytes = math.prod(shape) * dtype.itemsize
    content, total = read_whole(path, most_offset(header) + voxel_bytes)
    offset = data_offset(header, total, voxel_bytes, path)
    if total < offset + voxel_bytes:
        needed = offset + voxel_bytes
        raise UserError(f"{path} is truncated: {total} of {needed} bytes; copy or download it again")
    stored = np.ndarray(shape, dtype, buffer=content, offset=offset, order="F")
    channels = stored[None] if stored.ndim == 3 else np.moveaxis(stored, -1, 0)
    return channels, geometry, *read_scaling(header, path)


def _orientation(affine) -> tuple[tuple[int, int, int], tuple[Any, ...]]:
    """For S, A, R: which stored axis runs along it; and an index that reads those axes backwards which have to be."""
    return _orientation_of(np.ascontiguousarray(affine, float).tobytes())


@functools.lru_cache(maxsize=1024)
def _orientation_of(affine_bytes: bytes) -> tuple[tuple[int, int, int], tuple[Any, ...]]:
    # A scan asks several times, its label again, and most scans of a data set lie alike.
    nearest = io_orientation(np.frombuffer(affine_bytes).reshape(4, 4))
    order = triple(int(np.flatnonzero(nearest[:, 0] == world)[0]) for world in (2, 1, 0))
    return order, (..., *(slice(None, None, int(nearest[axis, 1])) for axis in order))


def _spacing(affine) -> tuple[float, float, float]:
    order, _ = _orientation(affine)
    sizes_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    return triple(float(sizes_mm[axis]) for axis in order)
