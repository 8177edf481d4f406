from __future__ import annotations

import numpy as np

from data_preprocessing.normalization import normalize_channel
from utils.schema import ChannelPlan

ZSCORE = ChannelPlan(name="T1", scheme="zscore")
CT = ChannelPlan(name="CT", scheme="ct", lower=-100, upper=200, mean=50, std=25)


def _normalized(values, channel):
    volume = np.array(values, dtype=np.float32).reshape(1, 1, -1)
    normalize_channel(volume, channel)
    return volume.ravel()


def test_zscore_uses_and_changes_only_nonzero_voxels():
    # Non-zero 2, 4, 6: mean 4, population standard deviation sqrt(8 / 3).
    np.testing.assert_allclose(_normalized([0, 2, 4, 6, 0], ZSCORE), [0, -1.2247449, 0, 1.2247449, 0], rtol=1e-6)


def test_zscore_counts_negative_voxels():
    np.testing.assert_allclose(_normalized([-3, 0, 3], ZSCORE), [-1, 0, 1])


def test_equal_voxels_become_zero():
    np.testing.assert_array_equal(_normalized([0, 0.1, 0.1, 0.1], ZSCORE), 0)


def test_an_empty_channel_stays_zero():
    np.testing.assert_array_equal(_normalized([0, 0], ZSCORE), 0)


def test_ct_is_clipped_and_scaled_everywhere():
    np.testing.assert_allclose(_normalized([-1000, 0, 100, 3000], CT), [-6, -2, 2, 6])


def test_zscore_has_no_minus_zero():
    assert not np.signbit(_normalized([0, 2, 4, 6], ZSCORE)[0])


def test_large_offsets_keep_their_precision():
    values = 1e4 + np.random.default_rng(0).normal(0, 1, 1000)
    result = _normalized(values, ZSCORE)
    assert abs(result.mean()) < 1e-3
    assert abs(result.std() - 1) < 1e-3
