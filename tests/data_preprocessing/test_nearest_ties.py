from __future__ import annotations

import numpy as np
import pytest

from data_preprocessing.nearest_ties import resample_to_nearest
from data_preprocessing.resampling import make_maps, resample_label


def resampled(label: list, shape: tuple[int, int, int], *, coarse: int | None = None) -> list:
    array = np.array(label, np.uint8)
    out = np.full(shape, 9, np.uint8)
    resample_to_nearest(array, make_maps(array.shape, shape, cubic=False, coarse=coarse), out)
    return out.tolist()


def test_of_equal_shares_the_nearest_voxel_counts():
    # The middle of two voxels lies on their face; the one behind it is nearest.
    assert resampled([[[2, 1, 0, 3]]], (1, 1, 2)) == [[[1, 3]]]
    other = np.full((1, 1, 2), 9, np.uint8)
    label = np.array([[[2, 1, 0, 3]]], np.uint8)
    resample_label(label, make_maps(label.shape, (1, 1, 2), cubic=False, coarse=None), other)
    assert other.tolist() == [[[2, 3]]]


def test_where_the_nearest_has_a_smaller_share_the_lowest_of_equals_counts():
    # One voxel of eight: 1 and 2 have three each, and the nearest voxel, the last, is a 3.
    assert resampled([[[3, 1], [1, 1]], [[2, 2], [2, 3]]], (1, 1, 1)) == [[[1]]]


def test_a_larger_share_wins():
    assert resampled([[[1, 1, 2]]], (1, 1, 1)) == [[[1]]]
    assert resampled([[[0, 4, 4, 4]]], (1, 1, 2)) == [[[4, 4]]]


def test_nothing_is_mixed_across_the_coarse_axis():
    assert resampled([[[1, 1]], [[2, 2]]], (4, 1, 1), coarse=0) == [[[1]], [[1]], [[2]], [[2]]]


@pytest.mark.parametrize("shape", [(2, 3, 4)])
def test_the_same_grid_is_a_copy(shape: tuple[int, int, int]):
    label = np.random.default_rng(0).integers(0, 5, shape)
    assert resampled(label.tolist(), shape) == label.tolist()
