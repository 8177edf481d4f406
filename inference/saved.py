"""Probabilities that were saved beside their masks, read and averaged a few planes at a time.

Shapes: K classes or regions; z y x the voxels of a file as stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from models.averaging import mean_of
from utils.errors import UserError
from utils.files import read_json
from utils.nifti import GRID_TOLERANCE_MM, grid_difference_mm, read_header
from utils.pages import give_back_pages
from utils.predictions import most_probable
from utils.schema import LabelScheme, Plan

SLAB_VALUES = 2**22
"""Saved probabilities that are in memory at a time, of each file, unless a plane has more."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SavedProbabilities:
    """Of one case: `values` (K, z, y, x) float32 stay in their file; `affine` (4, 4) is voxel to world in mm."""

    name: str
    labels: LabelScheme
    values: np.ndarray
    affine: np.ndarray


def read_probabilities(folder: Path, case: str) -> SavedProbabilities:
    """A case that `--save_probabilities` wrote.

    Raises:
        UserError: one of `<case>.npy`, `<case>.nii.gz` and `plan.json` is missing or damaged.
    """
    path = folder / f"{case}.npy"
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as probabilities: {error}") from None
    shape, affine = read_header(folder / f"{case}.nii.gz")
    if values.ndim != 4 or values.shape[1:] != shape[::-1]:
        raise UserError(f"{path} has shape {values.shape}, its mask {shape[::-1]} (z, y, x); predict it again")
    labels = read_json(Plan, folder / "plan.json").labels
    return SavedProbabilities(name=str(path), labels=labels, values=values, affine=affine)


def planes_of(saved: Sequence[SavedProbabilities]) -> Iterator[list[np.ndarray]]:
    """A few planes (K, d, y, x) of each file at a time, in their order, in memory.

    Each file is read once, however many means are made of the planes.

    Raises:
        UserError: files differ in shape, affine or label scheme; the message names two of them.
    """
    num_outputs, depth, *plane = saved[0].values.shape
    step = max(1, SLAB_VALUES // (num_outputs * math.prod(plane)))
    for other in saved[1:]:
        _require_same(saved[0], other)
    for start in range(0, depth, step):
        planes = [np.array(each.values[:, start : start + step]) for each in saved]
        for each in saved:
            give_back_pages(each.values)
        yield planes


def mean_planes(saved: Sequence[SavedProbabilities]) -> Iterator[np.ndarray]:
    """Mean probabilities, a few planes (K, d, y, x) float32 at a time, in their order.

    Raises:
        UserError: as `planes_of`.
    """
    return map(mean_of, planes_of(saved))


def mean_classes(saved: Sequence[SavedProbabilities]) -> np.ndarray:
    """Class indices (z, y, x) uint8 of the mean.

    Raises:
        UserError: as `planes_of`.
    """
    return np.concatenate([most_probable(planes, saved[0].labels) for planes in mean_planes(saved)])


def _require_same(first: SavedProbabilities, other: SavedProbabilities) -> None:
    pair = f"{first.name} and {other.name} cannot be averaged"
    if first.labels != other.labels:
        raise UserError(f"{pair}: their label schemes differ ({_describe(first.labels)}; {_describe(other.labels)})")
    shapes = first.values.shape, other.values.shape
    if shapes[0] != shapes[1]:
        raise UserError(f"{pair}: their shapes are {shapes[0]} and {shapes[1]}")
    distance_mm = grid_difference_mm(first.affine, other.affine, shapes[0][:0:-1])
    if distance_mm > GRID_TOLERANCE_MM:
        raise UserError(f"{pair}: their affines differ, the grids lie {distance_mm:.3g} mm apart")


def _describe(labels: LabelScheme) -> str:
    classes = ", ".join(f"{name} = {value}" for name, value in zip(labels.names, labels.values))
    return f"{classes}; regions {', '.join(labels.target_names)}" if labels.regions else classes
