"""Predictions that were saved with their probabilities, read and averaged a few planes at a time.

Shapes: K classes or regions; z y x the voxels of a file as stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from models.averaging import Member, mean_probabilities, require_same
from utils.errors import UserError
from utils.files import read_json
from utils.nifti import read_header
from utils.pages import give_back_pages
from utils.predictions import most_probable
from utils.schema import Plan

SLAB_VALUES = 2**22
"""Probabilities of saved members that are in memory at a time, of each member, unless a plane has more."""


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
        require_same(members[0], other)
    for start in range(0, depth, step):
        part = slice(start, start + step)
        # Without the affines, which have been compared and hold for the whole scans.
        planes = [
            dataclasses.replace(m, probabilities=np.array(m.probabilities[:, part]), affine=None) for m in members
        ]
        for member in members:
            give_back_pages(member.probabilities)
        yield planes


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
