"""What a NIfTI file's stored numbers mean: intensities by slope and intercept, labels as whole numbers."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from utils.errors import UserError
from utils.geometry import Geometry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A file's voxels (C, S, A, R) as a view in the stored type, and what they mean: voxel * slope + intercept."""

    array: np.ndarray
    slope: float
    intercept: float
    geometry: Geometry

    @property
    def is_scaled(self) -> bool:
        """Whether the numbers are others than the stored ones."""
        return (self.slope, self.intercept) != (1, 0)


def read_scaling(header: nib.Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept of the intensities; (1, 0) where the header states none.

    Raises:
        UserError: they are not numbers.
    """
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise UserError(f"{path} has a damaged intensity scale: {error}") from None
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0))


def scaled(stored: Stored) -> np.ndarray:
    """float32(array * slope + intercept), computed in double precision one plane at a time to save memory."""
    result: np.ndarray = np.empty(stored.array.shape, np.float32)
    slope, intercept = np.float64(stored.slope), np.float64(stored.intercept)
    with np.errstate(over="ignore", invalid="ignore"):
        for plane in range(result.shape[1]):
            result[:, plane] = stored.array[:, plane] * slope + intercept
    return result


def unscaled_label(stored: Stored) -> np.ndarray | None:
    """Whole numbers (S, A, R) of a label that a program wrote as scaled integers; None where they are not explained.

    Such a program spreads 0..m over the integers of the file's type, so that a class comes out up to half a step beside
    its number (0.996 for 1 where m/255 is the step). Every class then has exactly one stored value, the nearest one:
    values in between, as interpolation leaves them, are not explained.
    """
    array, step = stored.array[0], abs(stored.slope)
    if array.dtype.kind not in "iu":
        return None
    raw = functools.reduce(np.union1d, (np.unique(plane) for plane in array))
    values = raw.astype(np.float64) * stored.slope + stored.intercept
    whole = np.rint(values)
    # A step of a class or more explains nothing: only the rounding of the header's own numbers is allowed then.
    allowed = np.maximum(step / 2 if step < 1 else 0, np.abs(values) * 2.0**-22)
    is_explained = (np.abs(values - whole) <= allowed * (1 + 1e-6)).all() and (np.abs(whole) < 2**31).all()
    if not is_explained or len(np.unique(whole)) < len(whole):
        return None
    classes = whole.astype(np.int16 if np.abs(whole).max() < 2**15 else np.int64)
    result = np.empty(array.shape, classes.dtype)
    for plane, target in zip(array, result):
        target[...] = classes[np.searchsorted(raw, plane)]
    return result


def contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in C order and in the machine's byte order."""
    # NumPy keeps the byte order of big-endian files; everything after this expects the machine's.
    # What float32 cannot hold becomes infinite and is reported by the check of the case.
    with np.errstate(over="ignore"):
        return np.array(array, dtype=dtype.newbyteorder("="), order="C")


def whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    """Integers of a floating-point label.

    Raises:
        UserError: values that are not whole; `path` is how the message calls the file.
    """
    odd = values[~(np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**31))]
    if odd.size:
        shown = ", ".join(f"{v:g}" for v in np.unique(odd)[:5])
        raise UserError(f"{path}: {odd.size} label values are not whole numbers ({shown}); save integers")
    return values.astype(np.int16 if np.abs(values).max() < 2**15 else np.int64)
