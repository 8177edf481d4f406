from __future__ import annotations

import json

import numpy as np
import pytest

from data_preprocessing.planning.fingerprint import SAMPLES_PER_CASE, combine, describe_twins, inspect_case
from utils.errors import UserError
from utils.files import to_dict
from utils.schema import LabelScheme

LABELS = LabelScheme(names=("background", "organ"), values=(0, 1))
SPACING_MM = (3.0, 1.0, 1.0)


def inspect(image, label, *, case="a", labels=LABELS):
    return inspect_case(case, image, label, spacing_mm=SPACING_MM, labels=labels)


def volume(foreground, *, shape=(1, 4, 5, 6)):
    """Image of zeros whose first voxels hold `foreground`, and the label that marks them."""
    image = np.zeros(shape, np.float32)
    image[0].reshape(-1)[: len(foreground)] = foreground
    label = np.zeros(shape[1:], np.uint8)
    label.reshape(-1)[: len(foreground)] = 1
    return image, label


def test_shape_is_that_of_the_box_around_voxels_that_any_channel_fills():
    image = np.zeros((2, 6, 7, 8), np.float32)
    image[0, 1, 2, 3] = -1000
    image[1, 4, 2, 7] = 1
    assert inspect(image, None).shape_after_crop == (4, 1, 5)


def test_all_zero_image_keeps_its_shape():
    assert inspect(np.zeros((1, 2, 3, 4), np.float32), None).shape_after_crop == (2, 3, 4)


def test_statistics_of_a_few_voxels_are_those_of_the_voxels():
    image, label = volume([1.0, 2.0, 3.0, 4.0])
    (statistics,) = combine([inspect(image, label)]).foreground
    assert statistics.mean == pytest.approx(2.5, abs=1e-3)
    assert statistics.std == pytest.approx(np.sqrt(1.25), abs=1e-3)
    assert (statistics.minimum, statistics.maximum) == (1, 4)
    assert (statistics.percentile_00_5, statistics.percentile_99_5) == (1, 4)


def test_percentiles_are_the_half_and_the_last_but_half():
    # 0, 1, ... 9999 in any order: 0.5 % of the way from the first to the last is 49.995.
    values = np.random.default_rng(0).permutation(SAMPLES_PER_CASE).astype(np.float32)
    (statistics,) = combine([inspect(*volume(values, shape=(1, 25, 25, 20)))]).foreground
    assert statistics.percentile_00_5 == pytest.approx(49.995)
    assert statistics.median == pytest.approx(4999.5)
    assert statistics.percentile_99_5 == pytest.approx(9949.005)


@pytest.mark.parametrize("count", [1, 13, 14, 15, 40, 131])
def test_statistics_of_many_cases_are_numpys_of_all_their_voxels_to_the_last_digit(count):
    # Plans hold them, and a plan with another last digit is another plan.
    rng = np.random.default_rng(count)
    cases = [inspect(*volume(rng.normal(n, 30, 5000), shape=(1, 25, 25, 20)), case=str(n)) for n in range(count)]
    (statistics,) = combine(cases).foreground
    voxels = np.concatenate([case.intensities[0] for case in cases])
    assert (statistics.mean, statistics.std) == (voxels.mean(dtype=np.float64), voxels.std(dtype=np.float64))
    assert (statistics.minimum, statistics.maximum) == (voxels.min(), voxels.max())
    found = (statistics.percentile_00_5, statistics.median, statistics.percentile_99_5)
    assert found == tuple(np.percentile(voxels.astype(np.float64), (0.5, 50, 99.5)))


def test_every_case_weighs_the_same():
    small, large = volume([0.5]), volume([1.5] * 100)
    (statistics,) = combine([inspect(*small, case="a"), inspect(*large, case="b")]).foreground
    assert statistics.mean == pytest.approx(1.0)


def test_memory_per_case_is_bounded():
    image, label = np.ones((2, 40, 40, 40), np.float32), np.ones((40, 40, 40), np.uint8)
    assert inspect(image, label).intensities.shape == (2, SAMPLES_PER_CASE)


def test_channels_are_sampled_at_the_same_voxels():
    image = np.arange(2 * 30**3, dtype=np.float32).reshape(2, 30, 30, 30)
    sample = inspect(image, np.ones((30, 30, 30), np.uint8)).intensities
    np.testing.assert_array_equal(sample[1] - sample[0], 30**3)


def test_case_name_seeds_the_sample():
    image, label = (
        np.random.default_rng(0).normal(size=(1, 30, 30, 30)).astype(np.float32),
        np.ones((30, 30, 30)),
    )
    first, again, other = (inspect(image, label, case=name).intensities for name in ("a", "a", "b"))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_ignored_and_background_voxels_are_no_foreground():
    image, label = volume([7.0, 8.0])
    label[0, 0, 1] = 9
    labels = LabelScheme(names=("background", "organ"), values=(0, 1), ignore_value=9)
    (statistics,) = combine([inspect(image, label, labels=labels)]).foreground
    assert (statistics.minimum, statistics.maximum) == (7, 7)


def test_data_without_a_labelled_voxel_are_refused():
    with pytest.raises(UserError, match="none of the 1 training cases has a single labelled voxel"):
        combine([inspect(np.ones((1, 2, 2, 2), np.float32), None)])


def test_the_same_voxels_under_two_names_are_said():
    rng = np.random.default_rng(0)
    images = {name: rng.normal(size=(1, 4, 5, 6)).astype(np.float32) for name in "abc"}
    cases = [inspect(image, None, case=name) for name, image in images.items()]
    assert describe_twins(cases) == []
    (text,) = describe_twins([*cases, inspect(images["a"].copy(), None, case="z")])
    assert text.startswith("a, z have the same voxels") and "--group_by" in text


def test_case_without_foreground_does_not_enter_the_statistics():
    empty = inspect(np.ones((1, 4, 5, 6), np.float32), np.zeros((4, 5, 6), np.uint8))
    (statistics,) = combine([empty, inspect(*volume([3.0]))]).foreground
    assert statistics.mean == 3


def test_numbers_are_plain_python():
    fingerprint = combine([inspect(*volume([1.0, 2.0]))])
    json.dumps(to_dict(fingerprint))
    assert type(fingerprint.foreground[0].mean) is float


def test_share_that_cropping_leaves_is_the_median_of_the_cases():
    cases = []
    for width in (1, 2, 4):
        image = np.zeros((1, 4, 4, 4), np.float32)
        image[0, :, :, :width] = 3
        cases.append(inspect(image, np.ones((4, 4, 4), np.uint8), case=str(width)))
    assert combine(cases).median_relative_size == 0.5
