"""How much memory a case takes while it is inspected or preprocessed, as far as the headers of its files tell.

Python and its libraries, which each process loads once, are not in it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.preprocessor import padding, target_grid_mm
from data_preprocessing.resampling import resampled_shape
from utils.errors import UserError
from utils.nifti import read_header, working_grid
from utils.schema import Plan

FLOAT_BYTES = 4
LABEL_BYTES = 4
"""Of a voxel of a label: the file's content and the values, in two bytes each."""
MASK_BYTES = 7
"""Of a voxel while the holes of a mask are filled: the mask, what is outside, and the number of its region."""
POSITION_BYTES = 9
"""Of a voxel of the foreground while some are drawn, at most: whether it is foreground, and its place."""


def inspection_bytes(files: CaseFiles) -> int:
    """Memory of reading and checking a case at most; 0 for files that cannot be read, which are reported later."""
    grid = _grid(files.images)
    if grid is None:
        return 0
    channels, shape, _ = grid
    voxels = math.prod(shape)
    reading, label = _reading_bytes(channels, voxels), _label_bytes(files, voxels)
    return max(reading, FLOAT_BYTES * channels * voxels + label + POSITION_BYTES * voxels)


def preprocessing_bytes(files: CaseFiles, plan: Plan) -> int:
    """Memory of making a shard at most, taking the scan as uncropped; 0 as in `inspection_bytes`."""
    grid = _grid(files.images)
    if grid is None:
        return 0
    channels, shape, spacing_mm = grid
    voxels = math.prod(shape)
    spacing = tuple(spacing_mm[axis] for axis in plan.axes)
    new_shape = resampled_shape([shape[axis] for axis in plan.axes], spacing, target_grid_mm(plan.stage, spacing))
    padded, _ = padding(new_shape, plan.stage.patch_size)
    reading, label = _reading_bytes(channels, voxels), _label_bytes(files, voxels)
    # The scan, a normalised channel of it, and the shard; the label as read, as classes, and on the shard's grid.
    made = FLOAT_BYTES * (channels + 1) * voxels + FLOAT_BYTES * plan.image_channels * math.prod(padded)
    if files.label is not None:
        made += label + voxels + math.prod(padded)
    masked = any(channel.scheme == "zscore_mask" for channel in plan.channels)
    filling = (FLOAT_BYTES * channels + MASK_BYTES) * voxels if masked else 0
    return max(reading + label, made + masked * voxels, filling + label)


def mask_bytes(files: CaseFiles) -> int:
    """Memory of bringing a mask to the grid of its shard, roughly; 0 as in `inspection_bytes`."""
    grid = _grid(files.images)
    return 0 if grid is None else (LABEL_BYTES + 2 * FLOAT_BYTES) * math.prod(grid[1])


def _reading_bytes(channels: int, voxels: int) -> int:
    """The files' content, the scan as it is scaled, and as one array."""
    return 3 * FLOAT_BYTES * channels * voxels


def _label_bytes(files: CaseFiles, voxels: int) -> int:
    return 0 if files.label is None else LABEL_BYTES * voxels


@functools.lru_cache(maxsize=4096)
def _header(path: Path, size: int, mtime_ns: int) -> tuple[tuple[int, ...], np.ndarray]:
    """The header of a file as it is now: both passes over a data set ask for it."""
    return read_header(path)


def _grid(images: Sequence[Path]) -> tuple[int, tuple[int, int, int], tuple[float, float, float]] | None:
    """Channels, voxels along S, A, R and their size in mm."""
    try:
        found = images[0].stat()
        shape, affine = _header(images[0], found.st_size, found.st_mtime_ns)
    except (UserError, OSError, ValueError):
        return None
    if len(shape) not in (3, 4) or min(shape) < 1:
        return None
    channels = len(images) if len(images) > 1 else math.prod(shape[3:])
    return channels, *working_grid(shape, affine)
