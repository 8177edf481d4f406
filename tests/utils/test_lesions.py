"""Single lesions, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.lesions import LesionCounts, count_lesions, together


def masks(*voxels: tuple[int, int, int]) -> np.ndarray:
    out = np.zeros((4, 5, 6), bool)
    for voxel in voxels:
        out[voxel] = True
    return out


def test_lesions_are_found_by_any_overlap_and_the_rest_is_false():
    # Three lesions: two voxels of which one is met, one that is missed, one whose two parts in the mask both meet it.
    label = masks((0, 0, 0), (0, 0, 1), (3, 4, 5), (2, 2, 0), (2, 2, 1), (2, 2, 2))
    mask = masks((0, 0, 0), (2, 2, 0), (2, 2, 2), (0, 4, 4))
    counts = count_lesions(mask, label)
    assert counts == LesionCounts(true=3, found=2, claimed=4, false=1)
    assert (counts.sensitivity, counts.precision) == (2 / 3, 3 / 4)
    assert counts.f1 == pytest.approx(2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4))


def test_one_part_may_find_two_lesions_and_corners_touch():
    label = masks((0, 0, 0), (1, 1, 1), (0, 3, 0), (0, 3, 2))
    counts = count_lesions(masks((0, 3, 0), (0, 3, 1), (0, 3, 2)), label)
    # The first two voxels are one lesion, across a corner.
    assert counts == LesionCounts(true=3, found=2, claimed=1, false=0)


@pytest.mark.parametrize(
    ("mask", "label", "expected"),
    [
        (masks(), masks(), (math.nan, math.nan, math.nan)), (masks((0, 0, 0)), masks(), (math.nan, 0.0, 0.0)),
        (masks(), masks((0, 0, 0)), (0.0, math.nan, 0.0)), (masks((3, 3, 3)), masks((0, 0, 0)), (0.0, 0.0, 0.0)),
        (masks((0, 0, 0)), masks((0, 0, 0)), (1.0, 1.0, 1.0)),
    ],
)  # fmt: skip
def test_empty_masks(mask, label, expected):
    counts = count_lesions(mask, label)
    assert (counts.sensitivity, counts.precision, counts.f1) == pytest.approx(expected, nan_ok=True)


def test_where_nothing_is_known_parts_are_whole_and_not_counted_alone():
    label, ignored = masks((0, 0, 0)), masks((0, 0, 1), (0, 0, 2), (3, 3, 3))
    # One part reaches from the lesion through what is ignored and beyond; another lies there alone.
    mask = masks((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (3, 3, 3))
    assert count_lesions(mask, label, ignored) == LesionCounts(true=1, found=1, claimed=1, false=0)
    assert count_lesions(mask, label) == LesionCounts(true=1, found=1, claimed=2, false=1)


def test_cases_count_by_their_lesions():
    total = together([LesionCounts(true=9, found=9, claimed=9, false=0), LesionCounts(true=1, claimed=2, false=2)])
    assert total == LesionCounts(true=10, found=9, claimed=11, false=2) and total.sensitivity == 0.9
    assert together([]) == LesionCounts()
