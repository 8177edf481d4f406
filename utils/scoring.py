"""A mask against a label file: read as class indices, on one grid, counted.

Axes: S A R as worked on (see utils/nifti.py). T scored targets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.nifti import allowed_mm, grid_difference_mm, read_label
from utils.schema import Geometry, LabelScheme
from utils.scores import label_counts
from utils.values import distinct_values


def score_mask(classes: np.ndarray, grid: Geometry, label: Path, labels: LabelScheme, *, of: str) -> np.ndarray:
    """True positives, false positives and false negatives (T, 3) int64 of a mask against a label file.

    Args:
        classes: (S, A, R) class indices of the mask.
        grid: of the mask's file.
        label: file of the label; voxels that it marks as ignored are not counted.
        labels: values and targets.
        of: what messages call the mask.

    Raises:
        UserError: as `read_label_on`.
    """
    return label_counts(classes, read_label_on(grid, label, labels, of=of), labels)


def read_label_on(grid: Geometry, path: Path, labels: LabelScheme, *, of: str) -> np.ndarray:
    """Class indices (S, A, R) uint8 of a label file that lies on a grid; the ignored value becomes class K.

    Raises:
        UserError: the file cannot be read, holds values that the scheme does not name, or lies on another grid than
            `of`, which it is the label of.
    """
    volume = read_label(path, grid)
    require_same_grid(path, volume.geometry, grid, of)
    return class_indices(volume.array, labels, path)


def require_same_grid(path: Path, found: Geometry, grid: Geometry, other: str) -> None:
    """Refuse a file on another grid than that of `other`: another shape, or corners off by more than is tolerated.

    Raises:
        UserError: it is such a file.
    """
    if found.shape_xyz != grid.shape_xyz:
        raise UserError(f"{path} has shape {found.shape_xyz}, {other} {grid.shape_xyz} (x, y, z)")
    distance_mm = grid_difference_mm(found.affine, grid.affine, grid.shape_xyz)
    if distance_mm > allowed_mm(grid.affine):
        raise UserError(f"{path} lies {distance_mm:.3g} mm off {other}; resample it to that grid")


def class_indices(values: np.ndarray, labels: LabelScheme, path: Path) -> np.ndarray:
    """Class indices (S, A, R) uint8 of file values; the ignored value becomes class K.

    Raises:
        UserError: values that the scheme does not name.
    """
    known = (*labels.values, *(() if labels.ignore_value is None else (labels.ignore_value,)))
    strange = np.setdiff1d(distinct_values(values), known)
    if strange.size:
        shown = ", ".join(f"{value:g}" for value in strange[:5])
        raise UserError(f"{path} holds values that are no label: {shown} (labels: {', '.join(map(str, known))})")
    table = np.zeros(256, dtype=np.uint8)
    table[list(known)] = np.arange(len(known))
    out = np.empty(values.shape, dtype=np.uint8)
    # Plane by plane: the values may take eight bytes each.
    for plane, target in zip(values, out):
        target[...] = table[plane.astype(np.uint8)]
    return out
