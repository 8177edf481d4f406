from __future__ import annotations

import numpy as np
import pytest

from data_preprocessing.cascade import previous_classes
from data_preprocessing.nearest_ties import resample_to_nearest
from data_preprocessing.preprocessor import outside_mask, preprocess_case
from data_preprocessing.resampling import make_maps, resample_label
from tests.data_preprocessing.builders import make_case, make_plan, make_volume
from utils.rules import NNUNET_V2


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


def test_background_outside_of_the_scan_is_a_class_of_its_own_while_shares_are_compared():
    # Eight voxels become one: three are 2, the nearest one too, three lie outside and two are background.
    scan, mask = np.ones((1, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8)
    scan[0, 0, :, 0] = scan[0, 0, 0, 1] = 0
    mask[1, :, 0] = mask[1, 1, 1] = 2
    plan = make_plan(patch=(4, 2, 2), spacing=(2.0, 2.0, 2.0), rules=NNUNET_V2)
    meta = preprocess_case(make_case(scan), plan).meta
    outside = outside_mask(make_volume(scan[0][None]), meta)
    assert np.array_equal(outside, scan[0] == 0)
    expected = np.zeros((1, 4, 2, 2), np.uint8)
    assert np.array_equal(previous_classes(make_volume(mask), meta, plan), expected)
    # Padding around the only voxel is background still.
    expected[0, 1, 0, 0] = 2
    assert np.array_equal(previous_classes(make_volume(mask), meta, plan, outside=outside), expected)


def test_nothing_is_mixed_across_the_coarse_axis():
    assert resampled([[[1, 1]], [[2, 2]]], (4, 1, 1), coarse=0) == [[[1]], [[1]], [[2]], [[2]]]


@pytest.mark.parametrize("shape", [(2, 3, 4)])
def test_the_same_grid_is_a_copy(shape: tuple[int, int, int]):
    label = np.random.default_rng(0).integers(0, 5, shape)
    assert resampled(label.tolist(), shape) == label.tolist()
