from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from data_preprocessing import normalization
from data_preprocessing.normalization import SCHEME_NAMES, filled_mask, intensity_fault, normalize_channel, scheme_of
from utils.schema import SCHEMES, ChannelPlan

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


def channel_of(scheme: str) -> ChannelPlan:
    return ChannelPlan(name="m", scheme=scheme)


def test_unnormalised_intensities_are_those_of_the_file():
    np.testing.assert_array_equal(_normalized([0, -3.5, 7], channel_of("none")), [0, -3.5, 7])


def test_rescaling_takes_the_smallest_to_0_and_the_largest_to_1_zeros_included():
    np.testing.assert_allclose(_normalized([0, 3, -2, 6], channel_of("rescale_to_0_1")), [0.25, 0.625, 0, 1])


def test_a_constant_rescales_to_zero():
    np.testing.assert_array_equal(_normalized([5, 5, 5], channel_of("rescale_to_0_1")), 0)


def test_rescaling_a_tiny_range_is_that_of_nnunet():
    # (x - min) / max(range, 1e-8): a range of 1e-9 is not blown up to 1.
    np.testing.assert_allclose(_normalized([0, 1e-9], channel_of("rescale_to_0_1")), [0, 0.1], rtol=1e-5)


def test_rgb_is_divided_by_255():
    np.testing.assert_allclose(_normalized([0, 51, 255], channel_of("rgb_to_0_1")), [0, 0.2, 1])


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"), ("ct", "ct"), (" Ct ", "ct"), ("noNorm", "none"), ("NONORM", "none"), ("nonorm", "none"),
        ("rescale_to_0_1", "rescale_to_0_1"), ("Rescale_To_0_1", "rescale_to_0_1"), ("rgb_to_0_1", "rgb_to_0_1"),
        ("RGB_to_0_1", "rgb_to_0_1"), ("zscore", "zscore"), ("ZScore", "zscore"), ("MRI", None), ("T1", None),
        ("CTA", None), ("no_norm", None), ("", None),
    ],
)  # fmt: skip
def test_names_choose_a_normalisation_in_any_case(name, scheme):
    assert scheme_of(name) == scheme


def test_every_scheme_has_a_name_but_those_that_planning_makes_of_zscore():
    assert sorted(SCHEME_NAMES.values()) == sorted({*SCHEMES} - {"zscore_crop", "zscore_mask"})


def test_zscore_of_the_crop_counts_zeros():
    # 0, 2, 4: mean 2, population standard deviation sqrt(8 / 3).
    np.testing.assert_allclose(_normalized([0, 2, 4], channel_of("zscore_crop")), [-1.2247449, 0, 1.2247449], rtol=1e-6)


def test_zscore_of_a_mask_counts_zeros_inside_and_leaves_0_outside():
    volume = np.array([7, 0, 2, 4], dtype=np.float32).reshape(1, 1, 4)
    inside = np.array([False, True, True, True]).reshape(1, 1, 4)
    normalize_channel(volume, channel_of("zscore_mask"), inside=inside)
    np.testing.assert_allclose(volume.ravel(), [0, -1.2247449, 0, 1.2247449], rtol=1e-6)


def test_zscores_of_constants_and_of_empty_masks_are_not_blown_up():
    np.testing.assert_array_equal(_normalized([0.1, 0.1, 0.1], channel_of("zscore_crop")), 0)
    volume = np.array([3, 4], dtype=np.float32).reshape(1, 1, 2)
    normalize_channel(volume, channel_of("zscore_mask"), inside=np.zeros((1, 1, 2), bool))
    np.testing.assert_array_equal(volume.ravel(), [3, 4])


def test_zscores_of_many_slices_are_those_of_numpy():
    volume = np.random.default_rng(0).normal(500, 3, (40, 100, 90)).astype(np.float32)
    inside = np.random.default_rng(1).random(volume.shape) < 0.5
    for scheme, chosen in (("zscore_crop", np.ones_like(inside)), ("zscore_mask", inside)):
        expected = np.where(chosen, (volume - volume[chosen].mean()) / volume[chosen].std(), 0)
        result = volume.copy()
        normalize_channel(result, channel_of(scheme), inside=inside)
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_mask_takes_all_channels_and_fills_holes_but_not_bays():
    # A ring of two channels around a hole, and a gap through which the outside comes in.
    ring = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=np.float32)
    image = np.zeros((2, 3, 4, 4), np.float32)
    image[0, 1], image[1, 1, 1, 0] = ring, 5
    image[0, 1, 1, 0] = 0
    image[:, 0, 1, 1] = image[:, 2, 1, 1] = 1
    filled = ring.astype(bool)
    filled[1, 1] = True
    mask = filled_mask(image)
    np.testing.assert_array_equal(mask[1], filled)
    assert mask.sum() == filled.sum() + 2
    image[1, 1, 1, 0] = 0
    np.testing.assert_array_equal(filled_mask(image)[1, 1], [False, False, True, False])


def test_mask_is_that_of_scipy():
    image = (np.random.default_rng(0).random((2, 12, 13, 14)) < 0.35).astype(np.float32)
    filled = ndimage.binary_fill_holes((image != 0).any(axis=0))
    np.testing.assert_array_equal(filled_mask(image), filled)


@pytest.mark.parametrize(("held", "slices"), [(36, [3, 3, 1]), (12, [1] * 7), (5, [1] * 7), (1000, [7])])
def test_slices_are_taken_as_many_at_a_time_as_the_cache_holds(held, slices, monkeypatch):
    monkeypatch.setattr(normalization, "_CHUNK_VOXELS", held)
    volume = np.arange(7 * 3 * 4).reshape(7, 3, 4)
    parts = list(normalization.chunks(volume))
    assert [len(part) for part in parts] == slices
    np.testing.assert_array_equal(np.concatenate(parts), volume)


@pytest.mark.parametrize(("values", "fits"), [([0, 255], True), ([-1, 3], False), ([0, 255.5], False)])
def test_rgb_lies_between_0_and_255(values, fits):
    volume = np.array(values, dtype=np.float32).reshape(1, 1, -1)
    assert (intensity_fault(volume, "rgb_to_0_1") is None) == fits
    assert intensity_fault(volume, "zscore") is None and intensity_fault(volume, None) is None
