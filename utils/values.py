"""The values that occur in an array of labels."""

from __future__ import annotations

import numpy as np

_TABLE_SIZE = 1 << 17
_PART_VOXELS = 1 << 18


def distinct_values(array: np.ndarray) -> np.ndarray:
    """What `np.unique` gives, plane by plane with a table: without sorting, and without a copy of the array.

    Args:
        array: (D, H, W) of any real type; values without order (NaN) come once for each part.
    """
    if not array.size:
        return np.unique(array)
    # Of small scans several planes at a time: each call costs more than counting a part.
    step = max(1, _PART_VOXELS // array[0].size)
    found = [_of_part(array[start : start + step]) for start in range(0, len(array), step)]
    return np.unique(np.concatenate(found))


def _of_part(part: np.ndarray) -> np.ndarray:
    if part.dtype.kind == "b":
        return np.unique(part)
    low, kind = part.min(), part.dtype.kind
    if kind in "iu" and part.dtype.itemsize < 8 and low >= 0 and part.max() < _TABLE_SIZE:
        return np.flatnonzero(np.bincount(part.ravel())).astype(part.dtype)
    if part.dtype.kind in "iu" and int(part.max()) - int(low) < _TABLE_SIZE:
        # In Python's numbers and 64 bits: the distance of two values may be more than their own type holds.
        counts = np.bincount((part.astype(np.int64) - int(low)).ravel()) if int(low) < 1 << 62 else None
        if counts is not None:
            return (np.flatnonzero(counts) + int(low)).astype(part.dtype)
    return np.unique(part)
