"""Several predictions of one case become one: the mean of their probabilities.

The one function serves folds, whose probabilities are in memory, and configurations, whose probabilities were saved.

Shapes: K classes or regions; z y x the voxels of a file as stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.errors import UserError
from utils.files import read_json
from utils.nifti import GRID_TOLERANCE_MM, grid_difference_mm, read_header
from utils.predictions import most_probable
from utils.schema import LabelScheme, Plan

SLAB_VALUES = 2**22
"""Probabilities of saved members that are in memory at a time, of each member, unless a plane has more."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One prediction of a case.

    `probabilities` is (K, ...) float; `affine` is the voxel-to-world matrix (4, 4) in mm of what was saved in a scan's
    grid, and None for what never left the memory.
    """

    name: str
    labels: LabelScheme
    probabilities: Tensor | np.ndarray
    affine: np.ndarray | None = None


def mean_probabilities(members: Iterable[Member]) -> Tensor | np.ndarray:
    """Mean probabilities (K, ...) of the members; of a single member its own array, untouched.

    They may come one after the other: beside the sum no more than one is held.

    Raises:
        UserError: a member differs from the first one in shape, affine or label scheme; the message names both.
    """
    total: Any = None
    first, count = None, 0
    # Not by enumerate, which holds on to the member before while the next one is made.
    for member in members:
        count += 1
        if first is None:
            first = member
        elif total is None:
            _require_same(first, member)
            # The first member's own array is left alone, and given up for the sum.
            total = first.probabilities + member.probabilities
            first = dataclasses.replace(first, probabilities=total)
        else:
            _require_same(first, member)
            total += member.probabilities
        del member
    assert first is not None, "the mean of nothing"
    if total is None:
        return first.probabilities
    total /= count
    return total


def saved_member(folder: Path, case: str) -> Member:
    """A case that `inference.py --save_probabilities` wrote; the probabilities (K, z, y, x) stay in the file.

    Raises:
        UserError: one of `<case>.npy`, `<case>.nii.gz` and `plan.json` is missing or damaged.
    """
    path = folder / f"{case}.npy"
    try:
        probabilities = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as probabilities: {error}") from None
    shape, affine = read_header(folder / f"{case}.nii.gz")
    if probabilities.ndim != 4 or probabilities.shape[1:] != shape[::-1]:
        raise UserError(f"{path} has shape {probabilities.shape}, its mask {shape[::-1]} (z, y, x); predict it again")
    labels = read_json(Plan, folder / "plan.json").labels
    return Member(name=str(path), labels=labels, probabilities=probabilities, affine=affine)


def member_planes(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Saved members (K, z, y, x), a few planes (K, d, y, x) of each in memory at a time, in their order.

    Each file is read once, however many means are made of the planes.

    Raises:
        UserError: as `mean_probabilities`.
    """
    num_outputs, depth, *plane = members[0].probabilities.shape
    step = max(1, SLAB_VALUES // (num_outputs * math.prod(plane)))
    for other in members[1:]:
        _require_same(members[0], other)
    for start in range(0, depth, step):
        part = slice(start, start + step)
        # Without the affines, which have been compared and hold for the whole scans.
        yield [dataclasses.replace(m, probabilities=np.array(m.probabilities[:, part]), affine=None) for m in members]


def mean_planes(members: Sequence[Member]) -> Iterator[np.ndarray]:
    """Mean probabilities of saved members, a few planes (K, d, y, x) float32 at a time, in their order.

    Raises:
        UserError: as `mean_probabilities`.
    """
    for planes in member_planes(members):
        yield mean_probabilities(planes)


def saved_classes(members: Sequence[Member]) -> np.ndarray:
    """Class indices (z, y, x) uint8 of the mean of saved members.

    Raises:
        UserError: as `mean_probabilities`.
    """
    return np.concatenate([most_probable(planes, members[0].labels) for planes in mean_planes(members)])


def _require_same(first: Member, other: Member) -> None:
    pair = f"{first.name} and {other.name} cannot be averaged"
    if first.labels != other.labels:
        raise UserError(f"{pair}: their label schemes differ ({_describe(first.labels)}; {_describe(other.labels)})")
    shapes = tuple(first.probabilities.shape), tuple(other.probabilities.shape)
    if shapes[0] != shapes[1]:
        raise UserError(f"{pair}: their shapes are {shapes[0]} and {shapes[1]}")
    if first.affine is None or other.affine is None:
        return
    distance_mm = grid_difference_mm(first.affine, other.affine, shapes[0][:0:-1])
    if distance_mm > GRID_TOLERANCE_MM:
        raise UserError(f"{pair}: their affines differ, the grids lie {distance_mm:.3g} mm apart")


def _describe(labels: LabelScheme) -> str:
    classes = ", ".join(f"{name} = {value}" for name, value in zip(labels.names, labels.values))
    return f"{classes}; regions {', '.join(labels.target_names)}" if labels.regions else classes
