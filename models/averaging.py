"""Several predictions of one case become one: the mean of their probabilities.

The one function serves folds, whose probabilities are in memory, and configurations, whose probabilities were saved.

Shapes: K classes or regions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from utils.errors import UserError
from utils.nifti import GRID_TOLERANCE_MM, grid_difference_mm
from utils.schema import LabelScheme


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
            require_same(first, member)
            # The first member's own array is left alone, and given up for the sum.
            total = first.probabilities + member.probabilities
            first = dataclasses.replace(first, probabilities=total)
        else:
            require_same(first, member)
            total += member.probabilities
        del member
    assert first is not None, "the mean of nothing"
    if total is None:
        return first.probabilities
    total /= count
    return total


def require_same(first: Member, other: Member) -> None:
    """Refuse to average what differs in shape, affine or label scheme.

    Raises:
        UserError: it does; the message names both.
    """
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
