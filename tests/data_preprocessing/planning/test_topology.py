from __future__ import annotations

import math

import pytest

from data_preprocessing.planning.topology import DEFAULT_DEPTH, DEFAULT_MIN_FMAP, divisible_patch, plan_topology
from utils.errors import UserError

DEFAULTS = {"max_depth": DEFAULT_DEPTH, "min_fmap": DEFAULT_MIN_FMAP}


def test_brats_3d_has_five_strided_levels_up_to_320_features():
    topology = plan_topology((128, 128, 128), (1.0, 1.0, 1.0), **DEFAULTS)
    assert topology.strides == ((1, 1, 1), *[(2, 2, 2)] * 5)
    assert topology.kernels == ((3, 3, 3),) * 6
    assert topology.filters == (32, 64, 128, 256, 320, 320)


def test_hippocampus_3d_has_three_strided_levels():
    topology = plan_topology((40, 56, 40), (1.0, 1.0, 1.0), **DEFAULTS)
    assert topology.strides == ((1, 1, 1), *[(2, 2, 2)] * 3)
    assert topology.filters == (32, 64, 128, 256)


def test_brats_2d_goes_up_to_512_features():
    topology = plan_topology((192, 160), (1.0, 1.0), **DEFAULTS)
    assert topology.strides == ((1, 1), *[(2, 2)] * 5)
    assert topology.filters == (32, 64, 128, 256, 512, 512)


def test_coarse_axis_is_neither_halved_nor_convolved_across_until_the_others_catch_up():
    topology = plan_topology((20, 320, 256), (3.6, 0.62, 0.62), **DEFAULTS)
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert topology.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert topology.total_strides == (4, 32, 32)


def test_axis_is_halved_only_while_min_fmap_voxels_remain():
    assert plan_topology((8, 16), (1.0, 1.0), max_depth=5, min_fmap=4).strides == ((1, 1), (2, 2), (1, 2))
    assert plan_topology((8, 16), (1.0, 1.0), max_depth=5, min_fmap=8).strides == ((1, 1), (1, 2))


def test_depth_limits_the_strided_levels():
    topology = plan_topology((128, 128, 128), (1.0, 1.0, 1.0), max_depth=2, min_fmap=4)
    assert len(topology.strides) == len(topology.kernels) == len(topology.filters) == 3


def test_five_slices_are_not_halved():
    assert plan_topology((5, 16, 16), (1.0, 1.0, 1.0), **DEFAULTS).total_strides == (1, 4, 4)


def test_given_filters_are_used_level_by_level():
    assert plan_topology((16, 16), (1.0, 1.0), **DEFAULTS, filters=(8, 9, 10, 11)).filters == (8, 9, 10)


def test_too_few_filters_are_a_user_error():
    with pytest.raises(UserError, match=r"--filters has 2 numbers, but the U-Net has 3 levels"):
        plan_topology((16, 16), (1.0, 1.0), **DEFAULTS, filters=(8, 9))


def test_indivisible_patch_is_a_user_error():
    with pytest.raises(UserError, match="not divisible"):
        plan_topology((50, 50, 50), (1.0, 1.0, 1.0), **DEFAULTS)


def test_patch_that_cannot_be_halved_is_a_user_error():
    with pytest.raises(UserError, match="too small for a U-Net"):
        plan_topology((5, 7, 7), (1.0, 1.0, 1.0), **DEFAULTS)


def test_nnunet_prostate_halves_the_coarse_axis_last_and_the_others_six_times():
    topology = plan_topology((20, 320, 256), (3.6, 0.62, 0.62), rule="nnunet")
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert topology.kernels == ((1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5)


def test_nnunet_halves_large_slices_seven_times():
    topology = plan_topology((512, 512), (1.0, 1.0), rule="nnunet")
    assert topology.total_strides == (128, 128)
    assert topology.filters == (32, 64, 128, 256, 512, 512, 512, 512)


def test_axis_exactly_twice_as_coarse_waits_by_nnunets_rule_only():
    patch, spacing_mm = (32, 64, 64), (2.0, 1.0, 1.0)
    assert plan_topology(patch, spacing_mm, rule="nnunet").strides[1] == (1, 2, 2)
    assert plan_topology(patch, spacing_mm).strides[1] == (2, 2, 2)


def test_nnunet_compares_only_axes_that_can_still_be_halved():
    # The finest axis is too short to be halved; by the reference's rule nothing is of its scale.
    patch, spacing_mm = (5, 16, 16), (0.3, 1.0, 1.0)
    assert plan_topology(patch, spacing_mm, rule="nnunet").total_strides == (1, 4, 4)
    with pytest.raises(UserError, match="too small"):
        plan_topology(patch, spacing_mm)


def test_nnunet_halves_a_lone_axis_only_while_it_is_long():
    assert plan_topology((8, 24), (1.0, 1.0), rule="nnunet").strides == ((1, 1), (2, 2), (1, 2))
    assert plan_topology((8, 16), (1.0, 1.0), rule="nnunet").strides == ((1, 1), (2, 2))


def test_nnunet_keeps_convolving_across_an_axis():
    # W outgrows the scale of D, which is not halved, and is still convolved across.
    kernels = plan_topology((4, 64, 64), (1.0, 1.0, 1.0), rule="nnunet").kernels
    assert kernels == ((3, 3, 3),) * len(kernels)


def test_depth_limits_nnunets_rule_too():
    assert plan_topology((512, 512), (1.0, 1.0), max_depth=2, rule="nnunet").total_strides == (4, 4)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(5, 5), (9, 10), (15, 16), (17, 20), (36, 40), (50, 56), (64, 64), (65, 80), (129, 160)],
)
def test_sizes_are_rounded_up_to_their_own_strides(size, expected):
    assert divisible_patch((size,) * 3, (1.0,) * 3) == (expected,) * 3


@pytest.mark.parametrize("rule", ["reference", "nnunet"])
def test_every_rounded_patch_can_be_planned(rule):
    for depth in range(5, 60, 3):
        for width in range(8, 70, 7):
            for spacing in ((1.0, 1.0, 1.0), (3.3, 1.0, 0.9), (0.3, 1.0, 1.0)):
                patch = divisible_patch((max(depth, 8), width, width + 3), spacing, rule=rule)
                if rule == "nnunet" and (width < 12 or depth < 12):
                    continue  # It leaves a lone axis that is too short as it is.
                total = plan_topology(patch, spacing, rule=rule).total_strides
                assert all(size % stride == 0 for size, stride in zip(patch, total))
                assert math.prod(patch) >= max(depth, 8) * width * (width + 3)
