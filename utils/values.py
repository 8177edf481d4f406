"""The values that occur in an array of labels."""

from __future__ import annotations

import numpy as np

_TABLE_SIZE = 1 << 17


def distinct_values(array: np.ndarray) -> np.ndarray:
    """What `np.unique` gives, plane by plane with a table: without sorting, and without a copy of the array.

    Args:
        array: (D, H, W) of any real type; values without order (NaN) come once for each plane.
    """
    found = [_of_plane(plane) for plane in array if plane.size]
    return np.unique(np.concatenate(found)) if found else np.unique(array)


def _of_plane(plane: np.ndarray) -> np.ndarray:
    if plane.dtype.kind == "b":
        return np.unique(plane)
    low = plane.min()
    if plane.dtype.kind in "iu" and int(plane.max()) - int(low) < _TABLE_SIZE:
        # In Python's numbers and 64 bits: the distance of two values may be more than their own type holds.
        counts = np.bincount((plane.astype(np.int64) - int(low)).ravel()) if int(low) < 1 << 62 else None
        if counts is not None:
            return (np.flatnonzero(counts) + int(low)).astype(plane.dtype)
    return np.unique(plane)
