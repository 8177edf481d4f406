"""The table finds what sorting finds."""

from __future__ import annotations

import numpy as np
import pytest

from utils import values
from utils.values import distinct_values

ARRAYS = {
    "labels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 5,
    "negative": np.array([[[-3, 0]], [[7, -3]]], dtype=np.int16),
    "ends of a type": np.array([[[-128, 127]], [[0, 1]]], dtype=np.int8),
    "ends of int16": np.array([[[-(2**15), 2**15 - 1]]], dtype=np.int16),
    "far apart": np.array([[[0, 2**40]], [[-(2**50), 3]]], dtype=np.int64),
    "largest": np.array([[[2**64 - 1, 2**64 - 2]], [[0, 1]]], dtype=np.uint64),
    "floats": np.array([[[0.0, 2.0]], [[1.5, -0.5]]], dtype=np.float32),
    "bool": np.array([[[True, False]]]),
    "big-endian": np.array([[[1, 300]], [[2, 1]]], dtype=">i2"),
    "empty": np.zeros((0, 3, 4), dtype=np.int16),
    "empty planes": np.zeros((3, 0, 4), dtype=np.int16),
    "one value": np.full((2, 2, 2), 4, dtype=np.uint16),
    "not contiguous": (np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 30).transpose(2, 0, 1)[:, ::-1],
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_equal_to_unique(array):
    result = distinct_values(array)
    np.testing.assert_array_equal(result, np.unique(array))
    assert result.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


def test_random_labels():
    array = np.random.default_rng(0).integers(-200, 200, (5, 30, 40)).astype(np.int16)
    np.testing.assert_array_equal(distinct_values(array), np.unique(array))


def test_nan_is_found():
    assert np.isnan(distinct_values(np.array([[[0.0, np.nan]]]))).any()


def test_labels_are_never_sorted_as_a_whole(monkeypatch):
    sorted_sizes, unique = [], np.unique
    monkeypatch.setattr(values.np, "unique", lambda array: sorted_sizes.append(array.size) or unique(array))
    distinct_values(np.random.default_rng(0).integers(0, 3, (4, 50, 50)).astype(np.uint8))
    assert max(sorted_sizes) <= 4 * 3
